"""The CNI operations, composed of what the rest of the agent can do.

Life of an ADD: variables and configuration are checked; under the container's lock addresses are reserved (on disk),
the attachment is compiled, the endpoint is recorded as ``pending`` before the kernel is touched, gates admit the pod
(policy is in place before its first packet), the kernel is changed, the endpoint becomes ``ready``, the result is
written in the asked version. An error at any point takes back all that was done. DEL is in ``cni_removal``. Every
outcome is a line in the log and an answer by the specification; what nobody expected is error 999 with its traceback
in the log alone.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from pycni.agent import cni_netns
from pycni.agent.cni_addresses import AddressSource
from pycni.agent.cni_check import expected_addresses, missing_interface
from pycni.agent.cni_locks import OwnerLocks
from pycni.agent.cni_ports import EndpointGate, Endpoints, IpamFactory, PodDriver
from pycni.agent.cni_records import compiled, new_endpoint, recorded_plan, removal_request
from pycni.agent.cni_removal import Remover, as_cni_error, combined
from pycni.agent.delegate import Delegates
from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks, result
from pycni.errors import CniError, KernelError, PycniError
from pycni.ipam.collect import invalid
from pycni.model.cni import Dns, PluginConf, Request
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.podnet import PodNetwork
from pycni.wire.cni import answer_version, at_least, encode_error, encode_versions, parse_request
from pycni.wire.cniconf import parse_conf, parse_conf_for_removal
from pycni.wire.cniresult import encode_result

log = logging.getLogger("pycni.cni")

ALREADY_ATTACHED = 100
"""Our own code: the interface exists in the container."""
INTERFACE_WAIT_S = 2.0
"""How long ADD waits for an interface that may be on its way out."""
CHECK_FAILED = 101
"""Our own code: CHECK found differences; ``details`` lists them."""


class CniOps:
    """Runs CNI calls; ``handle`` may be called by any number of threads."""

    def __init__(
        self,
        *,
        ipam: IpamFactory,
        endpoints: Endpoints,
        pods: PodDriver,
        podnet: Callable[[], PodNetwork | None],
        not_ready_reason: Callable[[], str],
        boot_id: str,
        gates: Sequence[EndpointGate] = (),
        delegates: Delegates | None = None,
        namespaces: cni_netns.Namespaces | None = None,
        on_error: Callable[[str, int], None] = lambda _operation, _code: None,
    ) -> None:
        """``boot_id``: of the running kernel; ``on_error`` is told of every error: operation and CNI code."""
        self._ipam = ipam
        self._endpoints = endpoints
        self._pods = pods
        self._podnet = podnet
        self._not_ready_reason = not_ready_reason
        self._boot_id = boot_id
        self._gates = tuple(gates)
        self._delegates = delegates or Delegates()
        self._namespaces = namespaces or cni_netns.Namespaces()
        self._on_error = on_error
        self._locks = OwnerLocks()
        self._remover = Remover(
            ipam=ipam,
            endpoints=endpoints,
            pods=pods,
            gates=self._gates,
            delegates=self._delegates,
            locks=self._locks,
        )
        self._pending = self._remover.pending
        self._addresses = AddressSource(ipam, self._delegates, self._pending.wait_any)

    def handle(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> tuple[int, bytes]:
        """Run one call; exit code and what goes to stdout. Never raises."""
        began = time.perf_counter()
        operation = environment.get("CNI_COMMAND", "")
        try:
            request = parse_request(environment, stdin)
            output = self._run(request, netns_fd)
        except (PycniError, OSError) as exc:
            err = as_cni_error(exc)
        except Exception as exc:
            log.exception("CNI %s: unexpected error", operation)
            err = as_cni_error(exc)
        else:
            return 0, output
        level = logging.DEBUG if operation == "STATUS" else logging.WARNING
        about = f"{environment.get('CNI_CONTAINERID', '')} {environment.get('CNI_IFNAME', '')}".strip()
        took = (time.perf_counter() - began) * 1000
        log.log(level, "CNI %s %s: error %d after %.1f ms: %s", operation, about, err.code, took, err)
        self._on_error(operation, err.code)
        return 1, encode_error(err, answer_version(stdin))

    def _run(self, request: Request, netns_fd: int | None) -> bytes:
        match request.command:
            case "ADD":
                return self._add(request, netns_fd)
            case "DEL":
                self._delete(request, netns_fd)
            case "CHECK":
                self._check(request, netns_fd)
            case "GC":
                self._collect(request)
            case "STATUS":
                self._status(request)
            case "VERSION":
                return encode_versions(answer_version(request.stdin))
        return b""

    def busy(self) -> Collection[Owner]:
        """Attachments with anything under way, for the collector."""
        return self._locks.busy()

    def remove(self, endpoint: Endpoint) -> None:
        """Remove an endpoint that outlived its pod, unless it has changed meanwhile. Raises CniError."""
        with self._locks.hold(endpoint.owner):
            if self._endpoints.get(endpoint.owner) == endpoint:
                self._remover.remove(endpoint.owner, None, removal_request(endpoint), None, wait=True)

    def resume(self) -> None:
        """After a start: take back what the last agent left half made or half removed. Call before serving."""
        for endpoint in self._endpoints.all():
            if endpoint.state == "ready":
                continue
            log.warning("CNI: %s was left %s by the last agent: removing it", endpoint.owner, endpoint.state)
            try:
                with self._locks.hold(endpoint.owner):
                    self._remover.remove(endpoint.owner, None, removal_request(endpoint), None)
            except CniError as err:
                log.error("CNI: %s stays until the collector gets it: %s", endpoint.owner, err)  # noqa: TRY400

    def adopt(self) -> list[str]:
        """Take over the attachments on record and repair what they share (bridges, nft rows); says what it repaired.

        Call it once the pod network is known and from time to time. Raises PycniError.
        """
        podnet = self._podnet()
        plans: list[AttachPlan] = []
        for endpoint in self._endpoints.all():
            if endpoint.state != "ready":
                continue
            try:
                plans.append(recorded_plan(endpoint, podnet))
            except CniError as err:
                log.warning(
                    "CNI: the record of %s gives no plan, it is left as it is: %s", endpoint.owner, err
                )
        return self._pods.resync(plans)

    # ADD

    def _add(self, request: Request, netns_fd: int | None) -> bytes:
        began = time.perf_counter()
        conf = parse_conf(request)
        fd = cni_netns.required(self._namespaces, request, netns_fd)
        if self._is_own(request, fd):
            raise cni_netns.own_namespace_error(request)
        if conf.layer2_only and not at_least(conf.cni_version, "0.3.0"):
            msg = f"cniVersion={conf.cni_version} cannot express an attachment without an address"
            raise CniError(CniError.INVALID_NETWORK_CONFIG, msg, "0.3.0 and later can")
        owner = Owner(conf.name, request.container_id, request.ifname)
        with self._locks.hold(owner):
            podnet = self._ready_podnet(conf, CniError.TRY_AGAIN_LATER)
            self._make_room(owner, request, fd)
            output, addresses = self._attach(owner, conf, request, fd, podnet)
        took = (time.perf_counter() - began) * 1000
        log.info("CNI ADD %s %s: %s after %.1f ms", request.container_id, request.ifname, addresses, took)
        return output

    def _ready_podnet(self, conf: PluginConf, code: int) -> PodNetwork | None:
        """The pod network when it is there; an error with ``code`` when it is not and the attachment needs it."""
        podnet = self._podnet()
        own_addresses = not (conf.ipam.type or conf.ipam.range_sets or conf.layer2_only)
        if podnet is None and (own_addresses or not conf.mtu):
            reason = self._not_ready_reason() or "no subnet yet"
            raise CniError(code, f"not ready: {reason}")
        return podnet

    def _make_room(self, owner: Owner, request: Request, fd: int) -> None:
        """Refuse when the interface is there; wait for removals, clear away what a broken ADD of the same left."""
        if not self._pending.wait(owner):
            raise CniError(CniError.TRY_AGAIN_LATER, f"{owner}: the last attachment is still being removed")
        deadline = time.monotonic() + INTERFACE_WAIT_S
        while self._namespaces.has_interface(fd, owner.ifname):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._pending.wait_any(left_s):
                msg = f"CNI_IFNAME={owner.ifname} exists already in CNI_NETNS={request.netns}"
                raise CniError(ALREADY_ATTACHED, msg, "DEL has to come before another ADD")
        left = self._endpoints.get(owner)
        if left is not None:
            log.warning("CNI ADD %s: clearing away an attachment left %s", owner, left.state)
            undo = removal_request(left, request.path)
            self._remover.remove(owner, None, undo, None, wait=True, keep_addresses=True)

    def _attach(
        self, owner: Owner, conf: PluginConf, request: Request, fd: int, podnet: PodNetwork | None
    ) -> tuple[bytes, str]:
        """From addresses to the result; everything is taken back on the way out of an error."""
        given = self._addresses.allocate(owner, conf, request, podnet)
        try:
            if conf.dns == Dns() and given.dns != Dns():
                conf = msgspec.structs.replace(conf, dns=given.dns)
            plan = compiled(conf, podnet, given.allocations, owner, given.routes)
            endpoint = msgspec.structs.replace(
                new_endpoint(plan, conf, request, given),
                netns_inode=self._namespaces.inode(fd),
                boot_id=self._boot_id,
                data_dir="" if conf.ipam.type or conf.layer2_only else self._directory(conf),
                created=time.time(),
            )
            self._endpoints.put(endpoint)
            for gate in self._gates:
                gate.admit(endpoint, fd)
            links = self._pods.attach(plan, fd)
            endpoint = msgspec.structs.replace(endpoint, mac=links.pod_mac.hex(":"))
            for gate in self._gates:
                gate.attached(endpoint)
            output = _encoded(plan, links, conf, request)
            self._endpoints.put(msgspec.structs.replace(endpoint, state="ready"))
        except BaseException as exc:
            self._undo(owner, conf, request, exc)
            if isinstance(exc, KernelError) and exc.errno == errno.EEXIST:
                raise CniError(ALREADY_ATTACHED, str(exc)) from exc
            raise
        return output, ", ".join(str(item.address) for item in given.allocations) or "no address"

    def _undo(self, owner: Owner, conf: PluginConf, request: Request, cause: BaseException) -> None:
        """Take a failed ADD back. The namespace is not given: whatever else is in it is not ours."""
        log.warning("CNI ADD %s failed, taking it back: %s", owner, cause)
        try:
            self._remover.remove(owner, conf, request, None, wait=True)
        except CniError as err:
            log.error("CNI ADD %s could not be taken back whole: %s", owner, err)  # noqa: TRY400

    def _directory(self, conf: PluginConf) -> str:
        return self._ipam(conf.ipam.data_dir, conf.name).data_dir

    # DEL

    def _delete(self, request: Request, netns_fd: int | None) -> None:
        began = time.perf_counter()
        conf = parse_conf_for_removal(request)
        owner = Owner(conf.name, request.container_id, request.ifname)
        fd = netns_fd if netns_fd is not None and self._namespaces.is_namespace(netns_fd) else None
        own = fd is not None and self._is_own(request, fd)
        with self._locks.hold(owner):
            usable = None if own or not self._is_ours(owner, conf) else fd
            self._remover.remove(owner, conf, request, usable)
        took = (time.perf_counter() - began) * 1000
        log.info("CNI DEL %s %s: done after %.1f ms", request.container_id, request.ifname, took)
        if own:
            raise cni_netns.own_namespace_error(request)

    def _is_own(self, request: Request, fd: int) -> bool:
        return not cni_netns.overridden(request.environment) and self._namespaces.is_node(fd)

    def _is_ours(self, owner: Owner, conf: PluginConf) -> bool:
        """Whether anything says that the interface in the container belongs to this network.

        A DEL that follows an ADD refused because of another network's interface must not take that one away.
        """
        if self._endpoints.get(owner) is not None:
            return True
        if conf.prev_result is not None:
            return any(item.sandbox and item.name == owner.ifname for item in conf.prev_result.interfaces)
        if conf.ipam.type:
            return True
        try:
            return bool(self._ipam(conf.ipam.data_dir, conf.name).addresses(owner))
        except PycniError as exc:  # the release will say it again; until then nothing speaks for it
            log.debug("CNI DEL %s: %s", owner, exc)
            return False

    # CHECK, GC, STATUS

    def _check(self, request: Request, netns_fd: int | None) -> None:
        conf = parse_conf(request)
        if conf.prev_result is None:
            raise CniError(CniError.INVALID_NETWORK_CONFIG, "missing prevResult", "CHECK compares with it")
        fd = cni_netns.required(self._namespaces, request, netns_fd)
        owner = Owner(conf.name, request.container_id, request.ifname)
        with self._locks.hold(owner):
            podnet = self._ready_podnet(conf, CniError.TRY_AGAIN_LATER)
            faults = self._addresses.check(owner, conf, request)
            endpoint = self._endpoints.get(owner)
            if endpoint is not None and endpoint.state != "ready":
                faults.append(f"the attachment is {endpoint.state}")
            faults += missing_interface(conf, request)
            expected = expected_addresses(conf, request, endpoint, faults)
            routes = conf.prev_result.routes if conf.ipam.type else None
            plan = compiled(conf, podnet, expected, owner, routes).with_result(conf.prev_result)
            faults += self._pods.check(plan, fd)
        if faults:
            raise CniError(CHECK_FAILED, f"CHECK found {len(faults)} differences", "; ".join(faults))

    def _collect(self, request: Request) -> None:
        """GC: remove as much as possible of what the runtime no longer names, then report what failed."""
        conf = parse_conf(request)
        valid = {(item.container_id, item.ifname) for item in conf.valid_attachments or ()}
        began, busy = time.time(), self._locks.busy()
        known = [endpoint.owner for endpoint in self._endpoints.all()]
        if not conf.ipam.type:
            known += self._ipam(conf.ipam.data_dir, conf.name).owners()
        errors: list[Exception] = []
        removed: list[tuple[Owner, list[Exception]]] = []
        for owner in invalid(conf.name, known, valid, busy):
            try:
                removed += self._collect_one(owner, conf, request, began)
            except CniError as err:
                errors.append(err)
        for owner, failed in removed:
            self._pending.wait(owner)
            errors += failed
        if conf.ipam.type:
            try:
                self._delegates.collect(conf.ipam.type, request)
            except CniError as err:
                errors.append(err)
        log.info("CNI GC %s: %d attachments stay, %d removed", conf.name, len(valid), len(removed))
        if errors:
            raise combined(errors)

    def _collect_one(
        self, owner: Owner, conf: PluginConf, request: Request, began: float
    ) -> list[tuple[Owner, list[Exception]]]:
        with self._locks.hold(owner):
            endpoint = self._endpoints.get(owner)
            if endpoint is not None and endpoint.created >= began:
                return []
            log.warning("CNI GC: removing %s, which the runtime no longer names", owner)
            record = endpoint or Endpoint(
                network=owner.network,
                container_id=owner.container_id,
                ifname=owner.ifname,
                conf=request.stdin,
            )
            undo = removal_request(record, request.path)
            return [(owner, self._remover.remove(owner, None if endpoint else conf, undo, None))]

    def _status(self, request: Request) -> None:
        conf = parse_conf(request)
        podnet = self._ready_podnet(conf, CniError.UNAVAILABLE)
        reason = self._not_ready_reason()
        if reason:
            raise CniError(CniError.UNAVAILABLE, f"not ready: {reason}")
        self._addresses.status(conf, request, podnet, freeing=self._pending.of(conf.name))


def _encoded(plan: AttachPlan, links: AttachedLinks, conf: PluginConf, request: Request) -> bytes:
    return encode_result(result(plan, links, conf, request.netns), conf.cni_version)
