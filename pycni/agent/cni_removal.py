"""Taking attachments away: DEL, the end of a failed ADD, GC and the collector all come here.

Life of a removal: the endpoint is marked ``dying`` on disk; the pod is cut off; gates are told; a delegated IPAM plugin
gets its DEL; the call returns. The kernel takes its time to destroy a link, so that goes on in the background; only
when the devices are gone are our own addresses released and the endpoint forgotten. Everything is tried even
after an error. What cannot be finished stays ``dying`` and is found by the collector; nothing here needs the
namespace, prevResult or a record, but uses what there is.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from pycni.agent.cni_locks import OwnerLocks
from pycni.agent.cni_ports import EndpointGate, Endpoints, Interface, Ipam, IpamFactory, PodDriver
from pycni.agent.cni_records import recorded_conf
from pycni.agent.delegate import Delegates
from pycni.errors import CniError, PycniError
from pycni.model.cni import PluginConf, Request
from pycni.model.endpoint import Endpoint, Owner

log = logging.getLogger("pycni.cni")

LINK_TIMEOUT_S = 15.0
"""How long something that needs a removal's end waits for it; a link takes some ten milliseconds."""


class Pending:
    """Removals whose second half goes on in the background. Thread-safe."""

    def __init__(self, hurry: Callable[[], None]) -> None:
        """``hurry`` is called before something waits."""
        self._hurry = hurry
        self._changed = threading.Condition()
        self._owners: set[Owner] = set()
        self._finished = 0

    def begin(self, owner: Owner) -> bool:
        """False when one is under way for the owner already."""
        with self._changed:
            if owner in self._owners:
                return False
            self._owners.add(owner)
            return True

    def end(self, owner: Owner) -> None:
        """The removal is over, well or not."""
        with self._changed:
            self._owners.discard(owner)
            self._finished += 1
            self._changed.notify_all()

    def wait(self, owner: Owner, timeout_s: float = LINK_TIMEOUT_S) -> bool:
        """Wait for the owner's removal; True when none is under way any more."""
        if owner in self._owners:
            self._hurry()
        with self._changed:
            return self._changed.wait_for(lambda: owner not in self._owners, timeout_s)

    def wait_any(self, timeout_s: float) -> bool:
        """Wait until any removal ends; False at once when none is under way, or when time is up."""
        with self._changed:
            seen = self._finished
        self._hurry()
        with self._changed:
            if self._finished != seen:
                return True
            return bool(self._owners) and self._changed.wait_for(lambda: self._finished != seen, timeout_s)

    def of(self, network: str) -> bool:
        """Whether a removal in the network is under way."""
        with self._changed:
            return any(owner.network == network for owner in self._owners)


class Remover:
    """Removes attachments. Callers hold the owner's lock."""

    def __init__(
        self,
        *,
        ipam: IpamFactory,
        endpoints: Endpoints,
        pods: PodDriver,
        gates: Sequence[EndpointGate],
        delegates: Delegates,
        locks: OwnerLocks,
    ) -> None:
        self._ipam = ipam
        self._endpoints = endpoints
        self._pods = pods
        self._gates = tuple(gates)
        self._delegates = delegates
        self._locks = locks
        self.pending = Pending(pods.hurry)

    def remove(
        self,
        owner: Owner,
        conf: PluginConf | None,
        request: Request,
        netns_fd: int | None,
        *,
        wait: bool = False,
        keep_addresses: bool = False,
    ) -> list[Exception]:
        """Remove one attachment as far as it exists. ``conf`` None: only the record says how it was made.

        ``wait``: return when its devices are gone, not already when it is cut off. ``keep_addresses``: our own
        reservation stays (the same owner is about to be attached again). Raises one CniError for all that failed
        until now; what fails in the background is added to the list that is returned.
        """
        endpoint = self._endpoints.get(owner)
        confs = [conf] if conf is not None else []
        if endpoint is not None and (recorded := recorded_conf(endpoint)) is not None:
            confs.append(recorded)
        directories = {found.ipam.data_dir for found in confs if not found.ipam.type}
        if endpoint is not None and endpoint.data_dir:
            directories.add(endpoint.data_dir)
        pools = {pool.data_dir: pool for pool in (self._ipam(name, owner.network) for name in directories)}
        failed: list[Exception] = []
        if endpoint is not None and endpoint.state != "dying":
            _attempt(failed, lambda: self._endpoints.put(msgspec.structs.replace(endpoint, state="dying")))
        outcome: list[Exception] = []
        cut_off = True
        if self.pending.begin(owner):
            addresses = endpoint.addresses if endpoint is not None else ()
            finish = partial(self._finish, owner, () if keep_addresses else tuple(pools.values()), outcome)
            cut_off = _attempt(failed, partial(self._detach, owner, netns_fd, addresses, finish))
            if wait and not self.pending.wait(owner):
                failed.append(
                    CniError(CniError.TRY_AGAIN_LATER, f"{_show(owner)}: its devices are still there")
                )
        if cut_off:
            # A pod that could not be cut off goes on sending: what checks it stays until somebody has managed to.
            self._tell_gates(owner, endpoint, failed)
        for plugin in sorted({found.ipam.type for found in confs if found.ipam.type}):
            _attempt(failed, partial(self._delegates.delete, plugin, request))
        if failed or outcome:
            raise combined(failed + outcome)
        return outcome

    def _tell_gates(self, owner: Owner, endpoint: Endpoint | None, failed: list[Exception]) -> None:
        gone = endpoint or Endpoint(
            network=owner.network, container_id=owner.container_id, ifname=owner.ifname
        )
        for gate in self._gates:
            _attempt(failed, partial(gate.gone, gone))

    def _detach(
        self, owner: Owner, netns_fd: int | None, addresses: Iterable[Interface], finish: Callable[[], None]
    ) -> None:
        """Cut the pod off; ``finish`` is called when its devices are gone. The owner is busy until then."""
        self._locks.begin(owner)
        once = threading.Lock()

        def end(last: Callable[[], None] = finish) -> None:
            if once.acquire(blocking=False):
                try:
                    last()
                finally:
                    self._locks.end(owner)
                    self.pending.end(owner)

        try:
            self._pods.detach(owner, netns_fd, addresses, end)
        except BaseException as exc:
            log.warning("%s: cannot be cut off: %s", _show(owner), exc)
            end(_nothing)
            raise

    def _finish(self, owner: Owner, pools: Iterable[Ipam], outcome: list[Exception]) -> None:
        """The devices are gone: release and forget. On any thread."""
        try:
            for pool in pools:
                freed = pool.release(owner)
                log.debug("%s: released %s", _show(owner), ", ".join(map(str, freed)) or "no address")
            self._endpoints.remove(owner)
        except Exception as exc:
            unexpected = not isinstance(exc, PycniError | OSError)
            log.error("%s: removal is left to the collector: %s", _show(owner), exc, exc_info=unexpected)  # noqa: TRY400
            outcome.append(exc)


def _nothing() -> None:
    """Release nothing: the pod may still be reachable under its addresses."""


def combined(errors: Sequence[Exception]) -> CniError:
    """One error for several: the code of the first one, all their texts."""
    first = errors[0] if isinstance(errors[0], CniError) else as_cni_error(errors[0])
    if len(errors) == 1:
        return first
    return CniError(first.code, f"{len(errors)} errors", "; ".join(str(error) for error in errors))


def as_cni_error(exc: Exception) -> CniError:
    """What a runtime is told about an error of ours: 11 when trying again may help, 5 for files, else 999."""
    if isinstance(exc, CniError):
        return exc
    if isinstance(exc, PycniError):
        return CniError(CniError.TRY_AGAIN_LATER if exc.transient else CniError.INTERNAL, str(exc))
    if isinstance(exc, OSError):
        return CniError(CniError.IO_FAILURE, str(exc))
    return CniError(CniError.INTERNAL, f"internal error: {type(exc).__name__}", str(exc))


def _attempt(failed: list[Exception], action: Callable[[], object]) -> bool:
    """Whether it went well."""
    try:
        action()
    except Exception as exc:
        if not isinstance(exc, PycniError | OSError):
            log.exception("removal: unexpected error")
        failed.append(exc)
        return False
    return True


def _show(owner: Owner) -> str:
    return f"network {owner.network} container {owner.container_id} {owner.ifname}"
