"""Handing out the addresses of one network: the choice (``allocate``), the files (``journal``), an index of both.

Life: `Pools` makes one `Ipam` per (dataDir, network) when it is first asked for. Its index, by address and by
owner, is built from the directory under the directory's lock and used until somebody else changes the
directory; then it is built anew. So host-local may run beside us, and an operator may remove a file, at any time.
Every change goes to the files first. While a change is under way the directory counts as unknown, so
whatever interrupts it, the next operation starts from what the files say.

The file of an address is the truth about who holds it. ``in_use`` adds what the node knows besides (the addresses of
its endpoints): an address whose file somebody removed under a running pod is not handed out again.

Locking: one lock per network, none global; `Ipam.status` waits for neither threads nor processes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from pycni.errors import IpamError
from pycni.ipam.allocate import (
    Allocation,
    RangeSet,
    RangeSets,
    SetStatus,
    Taken,
    allocation,
    assign_requests,
    compile_sets,
    exhausted,
    held_in,
    pick_unused,
    status_of,
)
from pycni.ipam.index import Index
from pycni.ipam.journal import Entry, Journal
from pycni.model.endpoint import Owner
from pycni.model.family import FAMILIES, Address, Family

log = logging.getLogger("pycni.ipam")

RETRIES = 3
"""How often an operation starts over because files appeared without the directory's lock being held."""

InUse = Callable[[Owner, Address], bool]
"""Whether an address belongs to somebody else than the owner, although no reservation says so."""


class Reservation(NamedTuple):
    """One reserved address. An owner without container id: the file is torn, nobody knows whose it was."""

    address: Address
    owner: Owner


class Usage(NamedTuple):
    """Addresses of one family."""

    reserved: int
    capacity: int | None
    """How many can be had at all, with those in use that are in no range any more; None: not known yet."""


class _Collision(Exception):  # noqa: N818 - control flow, never leaves this module
    """A file is there that the index does not know: somebody works without the lock."""


class Ipam:
    """The reservations of one network in one data directory. Thread-safe."""

    def __init__(
        self,
        data_dir: str,
        network: str,
        *,
        lock_timeout_s: float = 10.0,
        in_use: InUse = lambda _owner, _address: False,
    ) -> None:
        """Nothing is read or made before the first use. Raises ConfigError for a name no directory can have."""
        self.data_dir = data_dir
        self.network = network
        self._journal = Journal(data_dir, network, lock_timeout_s=lock_timeout_s)
        self._in_use = in_use
        self._lock = threading.Lock()
        self._index: Index | None = None
        self._sets: tuple[RangeSet, ...] = ()

    def close(self) -> None:
        """Give back the descriptors."""
        with self._lock:
            self._journal.close()

    def reserve(
        self, owner: Owner, range_sets: RangeSets, requested: Sequence[Address] = ()
    ) -> tuple[Allocation, ...]:
        """One address from each range set, on disk when this returns; all of them or none.

        An owner that holds an address of a set already gets the same one again. ``requested`` addresses are taken
        from the set they lie in; every one of them must be had. Raises IpamError (``exhausted`` when a set is
        full), ConfigError for ranges that contradict themselves.
        """
        self._sets = sets = compile_sets(range_sets)
        if not sets:
            raise IpamError(f"network {self.network!r}: no address range is configured")
        wanted = assign_requests(self.network, sets, requested)
        for _ in range(RETRIES):
            with self._exclusive() as index:
                try:
                    return self._reserve(index, owner, sets, wanted)
                except _Collision:
                    self._journal.unseal()
        raise IpamError(
            f"network {self.network!r}: {self._journal.path} is being changed by somebody who does not lock it"
        )

    def release(self, owner: Owner) -> tuple[Address, ...]:
        """Free everything an owner holds and say what it was; nothing held is no error.

        A file of a host-local so old that it names no interface belongs to any interface of its container, when
        nothing is recorded for this very interface. Raises IpamError when a file cannot be removed.
        """
        if not self._journal.exists():
            return ()
        with self._exclusive() as index:
            entry = Entry(owner.container_id, owner.ifname)
            if not entry.container_id:
                return ()
            if entry not in index.by_owner:
                entry = Entry(owner.container_id, "")
            addresses = index.by_owner.get(entry, ())
            self._remove(index, addresses)
            return addresses

    def discard(self, reservation: Reservation, unless: Callable[[], bool] = lambda: False) -> bool:
        """Free one address if it is still held by that very owner; False when it is not.

        ``unless`` is asked while nobody can reserve: an ADD of this owner that has begun must make it true.
        """
        if not self._journal.exists():
            return False
        with self._exclusive() as index:
            if index.by_address.get(reservation.address) != _entry(reservation.owner) or unless():
                return False
            self._remove(index, (reservation.address,))
            return True

    def restore(self, reservation: Reservation, unless: Callable[[], bool] = lambda: False) -> bool:
        """Reserve the address of a running endpoint whose file is gone; False when there is a file.

        ``unless`` is asked while nobody can release: a DEL of this owner that has begun must make it true.
        """
        address, owner = reservation
        with self._exclusive() as index:
            if address in index.by_address or unless():
                return False
            try:
                self._create(index, owner, address)
            except _Collision:
                return False
            self._journal.seal()
            return True

    def addresses(self, owner: Owner) -> tuple[Address, ...]:
        """What an owner holds."""
        if not self._journal.exists():
            return ()
        with self._exclusive() as index:
            return index.by_owner.get(_entry(owner), ())

    def holder(self, address: Address) -> Owner | None:
        """Who holds an address."""
        if not self._journal.exists():
            return None
        with self._exclusive() as index:
            entry = index.by_address.get(address)
            return None if entry is None else self._owner(entry)

    def owners(self) -> dict[Owner, tuple[Address, ...]]:
        """Every owner with what it holds."""
        if not self._journal.exists():
            return {}
        with self._exclusive() as index:
            return {self._owner(entry): addresses for entry, addresses in index.by_owner.items()}

    def reservations(self) -> tuple[Reservation, ...]:
        """Every reservation, read from the files anew whatever the index believes."""
        if not self._journal.exists():
            return ()
        with self._exclusive(anew=True) as index:
            return tuple(
                Reservation(address, self._owner(entry)) for address, entry in index.by_address.items()
            )

    def status(self, range_sets: RangeSets) -> tuple[SetStatus, ...]:
        """Free and used addresses of each set.

        Waits for no other operation: while one is under way the answer is as of just before or after it, and a
        change made by another process at this moment shows in the next answer.
        """
        self._sets = sets = compile_sets(range_sets)
        taken = self._taken()
        return tuple(status_of(compiled, taken) for compiled in sets)

    def usage(self, otherwise: Callable[[], RangeSets] = tuple) -> Mapping[Family, Usage]:
        """How full the network is, by family; waits for no other operation, as ``status``.

        Its size is that of the ranges asked for last in this life, before that of ``otherwise()`` when the addresses in
        use are in there. Raises IpamError when the files cannot be read.
        """
        taken = self._taken()
        sets = self._sets or compile_sets(otherwise())
        found = {}
        for family in FAMILIES:
            version = 4 if family is Family.V4 else 6
            reserved = taken.total(version)
            own = [item for item in sets if item.ranges and item.ranges[0].version == version]
            if reserved or own:
                outside = reserved - sum(status_of(item, taken).used for item in own)
                size = sum(item.size for item in own) + outside
                found[family] = Usage(reserved, size if self._sets or not outside else None)
        return found

    def _taken(self) -> Taken:
        index = self._index
        if index is None or self._journal.moved_now():
            index = self._glance()
        return Taken() if index is None else index.taken

    def _glance(self) -> Index | None:
        """The newest index that can be had without waiting; one is waited for only when there is none yet."""
        if not self._journal.exists():
            return None
        first = self._index is None
        if self._lock.acquire(blocking=first):
            try:
                with self._journal.locked(None if first else 0):
                    self._refresh()
            except IpamError as exc:
                if first:
                    raise
                log.debug("network %s: status from memory: %s", self.network, exc)
            finally:
                self._lock.release()
        return self._index

    @contextlib.contextmanager
    def _exclusive(self, *, anew: bool = False) -> Iterator[Index]:
        """The index, true to the directory and nobody else's until the end."""
        with self._lock, self._journal.locked():
            yield self._refresh(anew=anew)

    def _refresh(self, *, anew: bool = False) -> Index:
        if self._index is None or anew or self._journal.moved():
            self._index = Index(self._journal.read())
            self._journal.seal()
        return self._index

    def _reserve(
        self, index: Index, owner: Owner, sets: Sequence[RangeSet], wanted: Sequence[Address | None]
    ) -> tuple[Allocation, ...]:
        held = index.by_owner.get(_entry(owner), ())
        result: list[Allocation] = []
        created: list[Address] = []
        try:
            for number, (compiled, request) in enumerate(zip(sets, wanted, strict=True)):
                kept = held_in(compiled, held)
                if kept is None:
                    kept = self._choose(index, owner, number, compiled, request)
                    self._create(index, owner, kept.address.ip)
                    created.append(kept.address.ip)
                    self._journal.set_last(number, kept.address.ip)
                    index.last[number] = kept.address.ip
                elif request is not None and kept.address.ip != request:
                    raise IpamError(
                        f"network {self.network!r}: requested address {request} cannot be had: {_show(owner)} holds"
                        f" {kept.address.ip} already"
                    )
                result.append(kept)
        except BaseException:
            self._remove(index, created)
            raise
        if created:
            self._journal.seal()
        return tuple(result)

    def _choose(
        self, index: Index, owner: Owner, number: int, compiled: RangeSet, request: Address | None
    ) -> Allocation:
        if request is None:
            found = pick_unused(
                compiled, index.taken, index.last.get(number), lambda address: self._in_use(owner, address)
            )
            if found is None:
                raise exhausted(self.network, number, compiled, index.taken)
            return allocation(found[0], int(found[1]))
        holder = index.by_address.get(request)
        if holder is not None or self._in_use(owner, request):
            by = "a running pod" if holder is None else _show(self._owner(holder))
            raise IpamError(f"network {self.network!r}: requested address {request} is in use by {by}")
        bounds = compiled.range_of(request)
        assert bounds is not None, f"{request} was assigned to a set it is not in"
        return allocation(bounds, int(request))

    def _create(self, index: Index, owner: Owner, address: Address) -> None:
        entry = _entry(owner)
        self._journal.unseal()
        if not self._journal.create(address, entry):
            raise _Collision
        index.add(address, entry)

    def _remove(self, index: Index, addresses: Sequence[Address]) -> None:
        """Remove as much as possible, then raise the first error."""
        failed: IpamError | None = None
        if not addresses:
            return
        for address in addresses:
            self._journal.unseal()
            try:
                self._journal.delete(address)
            except IpamError as exc:
                failed = failed or exc
            else:
                index.remove(address)
        if failed is not None:
            raise failed
        self._journal.seal()

    def _owner(self, entry: Entry) -> Owner:
        return Owner(self.network, entry.container_id, entry.ifname)


class Pools:
    """Every network's `Ipam`, made when first asked for: ``pools(data_dir, network)``. Thread-safe."""

    def __init__(
        self,
        default_data_dir: str = "/var/lib/cni/networks",
        *,
        in_use: InUse = lambda _owner, _address: False,
        lock_timeout_s: float = 10.0,
    ) -> None:
        """``default_data_dir`` stands for an empty ``data_dir``; ``in_use`` is asked before an address is chosen."""
        self._default_data_dir = default_data_dir
        self._in_use = in_use
        self._lock_timeout_s = lock_timeout_s
        self._lock = threading.Lock()
        self._pools: dict[tuple[str, str], Ipam] = {}

    def __call__(self, data_dir: str, network: str) -> Ipam:
        """The pool of one network. Raises ConfigError for a name no directory can have."""
        key = (data_dir or self._default_data_dir, network)
        with self._lock:
            pool = self._pools.get(key)
            if pool is None:
                pool = Ipam(*key, lock_timeout_s=self._lock_timeout_s, in_use=self._in_use)
                self._pools[key] = pool
            return pool

    def all(self) -> tuple[Ipam, ...]:
        """Every pool asked for so far."""
        with self._lock:
            return tuple(self._pools.values())

    def close(self) -> None:
        """Give back every pool's descriptors."""
        for pool in self.all():
            pool.close()


def _entry(owner: Owner) -> Entry:
    return Entry(owner.container_id, owner.ifname)


def _show(owner: Owner) -> str:
    if not owner.container_id:
        return "an unknown owner (its reservation file is empty)"
    return f"container {owner.container_id} interface {owner.ifname or '(any)'}"
