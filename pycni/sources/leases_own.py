"""This node's own lease record: taken, kept, changed and taken back.

Life: ``acquire`` lists all records, chooses (``view/subnets``) and writes in one transaction that fails when
somebody was quicker; every later write is guarded by the record's last revision, so that no other node's record is
ever overwritten. A record lives as long as its etcd lease; renewing means a new etcd lease, as flannel does. A
static reservation (a record without etcd lease) is used and stays permanent. A record that has vanished is written
again as long as nobody else has its subnet; otherwise the lease is lost and the agent decides.

Methods make one attempt and raise StoreError; whoever calls repeats. Repeating is harmless: a write whose answer
was lost is recognised as ours by its address.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pycni.errors import ConfigError, PycniError, StoreError
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.sources.etcd import EtcdClient
from pycni.sources.etcd_pb import rpc_pb2 as rpc
from pycni.sources.etcd_watch import Record, prefix_end, to_record
from pycni.view.subnets import Choice, Known, Previous, choose, is_ours, overlapping
from pycni.wire.lease import HeldLease, decode_attrs, decode_key, encode_attrs

log = logging.getLogger("pycni.leases")


class LeaseLostError(PycniError):
    """This node's subnet belongs to another node now. The agent has to acquire another one."""

    def __init__(self, key: str, owner: str) -> None:
        self.key = key
        self.owner = owner
        super().__init__(f"lease {key}: taken by {owner}")


class Grant(NamedTuple):
    """An etcd lease of ours, id 0 for "none" (a record that never dies)."""

    lease: int
    expires: float | None
    """Seconds since the epoch, for people and for other lives of this node."""
    ends: float | None
    """Seconds of ``now``, for timers."""


FOR_EVER = Grant(0, None, None)


def now() -> float:
    """Seconds that also pass while the machine sleeps and do not jump when somebody sets the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class OwnRecord:
    """The record of one node below ``folder`` (``<prefix>/subnets/``)."""

    def __init__(
        self,
        client: EtcdClient,
        folder: str,
        *,
        ttl_s: int,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self.client = client
        self.folder = folder
        self.ttl_s = ttl_s
        self.held: HeldLease | None = None
        self.ends: float | None = None
        """When the record dies, in seconds of ``now``; None: never (or none is held)."""
        self.revision = 0
        """Revision of the last write of ours."""
        self.written = 0
        """Records written (acquired, renewed, changed)."""
        self.restored = 0
        """Of these the ones that had vanished."""
        self.was_missing = False
        """Whether the remembered record was not there when we came."""
        self._rng = rng
        self._clock = clock
        self._grant: Grant | None = None
        """An etcd lease without a key yet: made once, used by the attempt that succeeds."""

    async def known(self) -> tuple[list[Known], int]:
        """Every record with a readable key, and the revision of the listing."""
        response = await self.client.range(
            rpc.RangeRequest(key=self.folder.encode(), range_end=prefix_end(self.folder))
        )
        return self._known(response), response.header.revision

    async def acquire(
        self, conf: NetConf, mine: LeaseAttrs, previous: Previous, remembered: HeldLease | None
    ) -> HeldLease | None:
        """One attempt to get a record. None: another node was quicker, try again.

        Raises OutOfSubnetsError and StoreError.
        """
        known, revision = await self.known()
        last = remembered.lease if remembered is not None else None
        if last is not None and self.held is None and all(record.name != last.key for record in known):
            self.was_missing = True
        etcd_lease = remembered.etcd_lease if remembered is not None else 0
        choice = choose(
            conf, known, mine, previous, draw=self._rng.randrange, remembered=last, etcd_lease=etcd_lease
        )
        lease = Lease(subnet=choice.subnet, subnet6=choice.subnet6, attrs=mine)
        permanent = choice.reuse is not None and choice.reuse.permanent
        grant = FOR_EVER if permanent else await self._granted()
        if choice.reuse is not None:
            guards = [unchanged(self.folder + choice.reuse.name, choice.reuse.revision)]
        else:
            guards = self._vacant(lease, revision)
        operations = [put(self.folder + lease.key, mine, grant)]
        if choice.replaces is not None:
            # The new record may share a subnet with the old one, so "free" means: nothing made since the listing.
            old = self.folder + choice.replaces.name
            guards = [none_made_since(self.folder, revision), unchanged(old, choice.replaces.revision)]
            operations.append(delete(old))
            log.warning(
                "lease %s: does not fit the network any more, replaced by %s", choice.replaces.name, lease.key
            )
        response = await self._write(guards, operations, grant)
        if not response.succeeded:
            return None
        return self._taken(lease, grant, response, choice)

    async def settle(self, mine: LeaseAttrs, *, renew: bool) -> HeldLease:
        """See to it that the record is there, is ours and says ``mine``; give it a new etcd lease if ``renew``.

        Returns what is held then. Raises LeaseLostError, StoreError (also when somebody interfered: try again).
        """
        assert self.held is not None, "settle before acquire"
        lease = Lease(subnet=self.held.lease.subnet, subnet6=self.held.lease.subnet6, attrs=mine)
        found = await self.client.get(self.folder + lease.key)
        if found is None:
            return await self._take_back(lease)
        record = to_record(found)
        self._need_ours(lease.key, record, mine)
        if record.lease == 0:
            return await self._rewrite(lease, record, FOR_EVER)
        if renew or self.held.permanent:
            return await self._rewrite(lease, record, await self._granted())
        return await self._rewrite(lease, record, Grant(record.lease, self.held.expires, self.ends))

    async def exists(self, mine: LeaseAttrs) -> bool:
        """Whether our record is there, right or wrong. Raises LeaseLostError when it is another node's, StoreError."""
        assert self.held is not None, "exists before acquire"
        found = await self.client.get(self.folder + self.held.lease.key)
        if found is not None:
            self._need_ours(self.held.lease.key, to_record(found), mine)
        return found is not None

    # --- inside ----------------------------------------------------------------------------------------------

    def _need_ours(self, key: str, record: Record, mine: LeaseAttrs) -> None:
        """Raise LeaseLostError for another node's record. One that names no node is ours to correct."""
        attrs = self._attrs(key, record.value)
        if attrs is None or (attrs.public_ip is None and attrs.public_ipv6 is None):
            log.warning("lease %s: %r under our key names no node; written again", key, record.value[:100])
        elif not self._own(attrs, mine):
            raise LeaseLostError(key, _owner(attrs))

    async def _take_back(self, lease: Lease) -> HeldLease:
        """Write a record that has vanished, unless somebody has its subnets."""
        known, revision = await self.known()
        others = [
            other for other in overlapping(known, lease.subnet, lease.subnet6) if other.name != lease.key
        ]
        if others:
            raise LeaseLostError(lease.key, f"{others[0].name} of {_owner(others[0].attrs)}")
        grant = await self._granted()
        response = await self._write(
            self._vacant(lease, revision), [put(self.folder + lease.key, lease.attrs, grant)], grant
        )
        if not response.succeeded:
            raise StoreError(f"lease {lease.key}: somebody wrote a record while it was taken back")
        log.warning("lease %s: the record had vanished from etcd; taken back", lease.key)
        self.restored += 1
        return self._taken(lease, grant, response, None)

    async def _rewrite(self, lease: Lease, record: Record, grant: Grant) -> HeldLease:
        """Write our record again where value or etcd lease differ; nothing when both are right."""
        assert self.held is not None
        key = self.folder + lease.key
        if record.lease == grant.lease and record.value == encode_attrs(lease.attrs):
            return self._holds(lease, grant, record.mod_revision)
        operations = [put(key, lease.attrs, grant)]
        response = await self._write([unchanged(key, record.mod_revision)], operations, grant)
        if not response.succeeded:
            raise StoreError(f"lease {lease.key}: the record changed while it was written")
        return self._taken(lease, grant, response, None)

    async def _write(
        self, guards: list[rpc.Compare], operations: list[rpc.RequestOp], grant: Grant
    ) -> rpc.TxnResponse:
        """The guarded write; forgets a grant that etcd does not know any more."""
        try:
            return await self.client.txn(rpc.TxnRequest(compare=guards, success=operations))
        except StoreError:
            if self._grant == grant:
                self._grant = None
            raise

    async def _granted(self) -> Grant:
        """An etcd lease to hang the record on."""
        start, epoch = now(), self._clock()
        if self._grant is None or self._grant.ends is None or self._grant.ends - start < self.ttl_s / 2:
            lease, ttl_s = await self.client.lease_grant(math.ceil(self.ttl_s))
            self._grant = Grant(lease, epoch + ttl_s, start + ttl_s)
        return self._grant

    def _taken(
        self, lease: Lease, grant: Grant, response: rpc.TxnResponse, choice: Choice | None
    ) -> HeldLease:
        """The record was written."""
        if choice is not None:
            log.info("lease %s: held, %s", lease.key, choice.why)
        if self._grant == grant:
            self._grant = None  # it has its record now
        self.written += 1
        return self._holds(lease, grant, response.header.revision)

    def _holds(self, lease: Lease, grant: Grant, revision: int) -> HeldLease:
        self.revision = revision
        self.ends = grant.ends
        self.held = HeldLease(lease=lease, expires=grant.expires, etcd_lease=grant.lease)
        return self.held

    def _vacant(self, lease: Lease, revision: int) -> list[rpc.Compare]:
        """Conditions under which the lease's subnets are still free.

        The IPv4 part begins the key, so all records with it are one range: none may exist. The IPv6 part ends it;
        in a dual-stack network, therefore, no record at all may have been made since the listing.
        """
        key = self.folder + lease.key
        if lease.subnet is None:
            return [absent(key)]
        start = self.folder + lease.key.partition("&")[0]
        guards = [absent(start, prefix_end(start))]
        if lease.subnet6 is not None:
            guards.append(none_made_since(self.folder, revision))
        return guards

    def _known(self, response: rpc.RangeResponse) -> list[Known]:
        """Records by which subnets are taken. Unreadable keys take none and are reported by the follower."""
        found = []
        for record in map(to_record, response.kvs):
            name = record.key.removeprefix(self.folder)
            try:
                subnet, subnet6 = decode_key(name)
            except ConfigError:
                continue
            attrs = self._attrs(name, record.value)
            found.append(
                Known(name, subnet, subnet6, attrs, record.lease == 0, record.mod_revision, record.lease)
            )
        return found

    def _attrs(self, name: str, value: bytes) -> LeaseAttrs | None:
        try:
            return decode_attrs(name, value)
        except ConfigError:
            return None

    def _own(self, attrs: LeaseAttrs | None, mine: LeaseAttrs) -> bool:
        """Whether a record under our key is ours: with the address we have, or had when we wrote it."""
        assert self.held is not None
        return is_ours(attrs, mine) or is_ours(attrs, self.held.lease.attrs)


def absent(key: str, range_end: bytes = b"") -> rpc.Compare:
    """No such key; with a range: none in it."""
    return rpc.Compare(
        result=rpc.Compare.EQUAL, target=rpc.Compare.VERSION, key=key.encode(), version=0, range_end=range_end
    )


def unchanged(key: str, revision: int) -> rpc.Compare:
    """The key's last write is the one at ``revision``."""
    return rpc.Compare(
        result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=key.encode(), mod_revision=revision
    )


def none_made_since(prefix: str, revision: int) -> rpc.Compare:
    """Every key below ``prefix`` existed at ``revision``."""
    return rpc.Compare(
        result=rpc.Compare.LESS,
        target=rpc.Compare.CREATE,
        key=prefix.encode(),
        range_end=prefix_end(prefix),
        create_revision=revision + 1,
    )


def put(key: str, attrs: LeaseAttrs, grant: Grant) -> rpc.RequestOp:
    """Write a record."""
    return rpc.RequestOp(
        request_put=rpc.PutRequest(key=key.encode(), value=encode_attrs(attrs), lease=grant.lease)
    )


def delete(key: str) -> rpc.RequestOp:
    """Delete a record."""
    return rpc.RequestOp(request_delete_range=rpc.DeleteRangeRequest(key=key.encode()))


def _owner(attrs: LeaseAttrs | None) -> str:
    """Whose record it is, for a message."""
    if attrs is None:
        return "an unreadable record"
    addresses: Iterable[object] = (attrs.public_ip, attrs.public_ipv6)
    return " ".join(str(address) for address in addresses if address is not None) or "nobody"
