"""A kernel in memory that answers rtnetlink messages as the real one does, with switches to make it fail.

It stands where ``NetlinkSocket`` stands, so drivers, encoders and decoders under test are the real ones. What the
kernel does on the side is done too: entries go with their device, neighbours with its MAC, IPv6 metric 0 is 1024.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

from pycni.errors import KernelError
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import HEADER, NLM_F_EXCL, Message, attr, attr_u32, parse_attrs

Keyed = dict[Any, bytes]


class KilledError(Exception):
    """The process under test ends here."""


class FakeKernel:
    """Links, addresses, routes, neighbours and forwarding entries as the payloads that made them."""

    def __init__(self) -> None:
        self.links: dict[int, tuple[int, dict[int, bytes]]] = {}
        """index -> (flags, attributes)"""
        self.addresses: Keyed = {}
        self.routes: Keyed = {}
        self.neighbours: Keyed = {}
        self.fdb: Keyed = {}
        self.messages = 0
        """Changes asked for so far."""
        self.kill_at: int | None = None
        """The message of this number is not carried out: KilledError."""
        self.fail_at: dict[int, int] = {}
        """Number of a message -> errno it fails with, once."""
        self._next_index = 1

    # what a NetlinkSocket does

    def request(self, msg: bytes, operation: str = "", obj: str = "") -> list[Message]:
        if _take(msg).kind == rtlink.RTM_GETLINK:
            index = self._link_named(_name(_take(msg)), operation, obj)
            return [self._link_message(index)]
        error = self._carry_out(msg)
        if error:
            raise KernelError(error, operation, obj)
        return []

    def batch(self, msgs: Sequence[bytes], operation: str = "", obj: str = "") -> list[KernelError | None]:
        results = []
        for msg in msgs:
            error = self._carry_out(msg)
            results.append(KernelError(error, operation, obj) if error else None)
        return results

    def dump(self, msg: bytes, operation: str = "dump", obj: str = "") -> list[Message]:
        asked = _take(msg)
        if asked.kind == rtlink.RTM_GETLINK:
            return [self._link_message(index) for index in self.links]
        if asked.kind == rtnl.RTM_GETADDR:
            wanted = rtnl.parse_address(asked).ifindex
            return _messages(rtnl.RTM_NEWADDR, (p for k, p in self.addresses.items() if k[0] == wanted))
        if asked.kind == rtnl.RTM_GETROUTE:
            return self._dump_routes(asked)
        family = asked.payload[0]
        if family == rtnl.AF_BRIDGE:
            index = rtnl.parse_neighbour(asked).ifindex
            return _messages(rtnl.RTM_NEWNEIGH, (p for k, p in self.fdb.items() if k[0] == index))
        index = int.from_bytes(parse_attrs(asked.payload, 12)[8], "little")
        size = 4 if family == rtnl.AF_INET else 16
        entries = (p for k, p in self.neighbours.items() if k[0] == index and len(k[1]) == size)
        return _messages(rtnl.RTM_NEWNEIGH, entries)

    def close(self) -> None:
        """Nothing to close."""

    # for tests

    def add_link(self, name: str, kind: str = "veth") -> int:
        """A device that is not ours."""
        assert self._new_link(_take(rtlink.new_link(name, kind, up=True))) == 0
        return self._next_index - 1

    def put(self, *msgs: bytes) -> None:
        """What another tool did."""
        for msg in msgs:
            assert self._do(_take(msg)) == 0, msg

    def _carry_out(self, msg: bytes) -> int:
        number, self.messages = self.messages, self.messages + 1
        if number == self.kill_at:
            raise KilledError
        return self.fail_at.pop(number, 0) or self._do(_take(msg))

    def _do(self, msg: Message) -> int:
        if msg.kind == rtlink.RTM_NEWLINK:
            return self._new_link(msg) if msg.flags & NLM_F_EXCL else self._change_link(msg)
        if msg.kind == rtlink.RTM_DELLINK:
            return self._del_link(msg)
        if msg.kind in {rtnl.RTM_NEWADDR, rtnl.RTM_DELADDR}:
            info = rtnl.parse_address(msg)
            key = (info.ifindex, info.address, info.prefix_len)
            return self._plain(
                self.addresses, key, msg, rtnl.RTM_DELADDR, errno.EADDRNOTAVAIL, device=info.ifindex
            )
        if msg.kind in {rtnl.RTM_NEWROUTE, rtnl.RTM_DELROUTE}:
            return self._new_route(msg) if msg.kind == rtnl.RTM_NEWROUTE else self._del_route(msg)
        neighbour = rtnl.parse_neighbour(msg)
        index = neighbour.ifindex
        if neighbour.family == rtnl.AF_BRIDGE:
            return self._plain(
                self.fdb, (index, neighbour.mac), msg, rtnl.RTM_DELNEIGH, errno.ENOENT, device=index
            )
        key = (index, neighbour.destination)
        return self._plain(self.neighbours, key, msg, rtnl.RTM_DELNEIGH, errno.ENOENT, device=index)

    def _plain(self, table: Keyed, key: Any, msg: Message, removes: int, missing: int, *, device: int) -> int:
        if device not in self.links:
            return errno.ENODEV
        if msg.kind != removes:
            table[key] = msg.payload
            return 0
        return 0 if table.pop(key, None) is not None else missing

    # links

    def _new_link(self, msg: Message) -> int:
        if any(attrs[rtlink.IFLA_IFNAME] == _name(msg) for _, attrs in self.links.values()):
            return errno.EEXIST
        made = rtlink.parse_link(msg)
        tunnel = made.vxlan or made.ipip
        if tunnel is not None and tunnel.parent not in self.links:
            return errno.ENODEV
        attrs = parse_attrs(msg.payload, 16)
        attrs.pop(rtlink.IFLA_IFALIAS, None)  # rtnl_newlink_create passes over it
        self.links[self._next_index] = (rtlink.parse_link(msg).flags, attrs)
        self._next_index += 1
        return 0

    def _change_link(self, msg: Message) -> int:
        change = rtlink.parse_link(msg)
        if change.ifindex not in self.links:
            return errno.ENODEV
        flags, attrs = self.links[change.ifindex]
        new = {k: v for k, v in parse_attrs(msg.payload, 16).items() if k != rtlink.IFLA_AF_SPEC}
        mask = int.from_bytes(msg.payload[12:16], "little")
        if attrs.get(rtlink.IFLA_ADDRESS) != new.get(rtlink.IFLA_ADDRESS, attrs.get(rtlink.IFLA_ADDRESS)):
            self._drop(self.neighbours, change.ifindex)
        self.links[change.ifindex] = (flags & ~mask | change.flags & mask, attrs | new)
        return 0

    def _del_link(self, msg: Message) -> int:
        try:
            index = self._link_named(_name(msg), "", "")
        except KernelError as exc:
            return exc.errno
        del self.links[index]
        for table in (self.addresses, self.neighbours, self.fdb):
            self._drop(table, index)
        self.routes = {k: p for k, p in self.routes.items() if _route(p).oif != index}
        return 0

    def _link_named(self, name: bytes, operation: str, obj: str) -> int:
        for index, (_, attrs) in self.links.items():
            if attrs[rtlink.IFLA_IFNAME] == name:
                return index
        raise KernelError(errno.ENODEV, operation, obj)

    def _link_message(self, index: int) -> Message:
        flags, attrs = self.links[index]
        body = b"".join(attr(kind, payload) for kind, payload in attrs.items())
        return Message(rtlink.RTM_NEWLINK, 0, 0, rtlink.ifinfo(index, flags) + body)

    @staticmethod
    def _drop(table: Keyed, index: int) -> None:
        for key in [key for key in table if key[0] == index]:
            del table[key]

    # routes

    def _new_route(self, msg: Message) -> int:
        info = _route(msg.payload)
        if info.oif and info.oif not in self.links:
            return errno.ENODEV
        payload = msg.payload
        metric = info.metric
        if info.family == rtnl.AF_INET6 and not metric:
            metric = 1024
            payload += attr_u32(rtnl.RTA_PRIORITY, metric)
        key = (info.family, info.table, info.destination, info.prefix_len, metric)
        if key in self.routes and msg.flags & NLM_F_EXCL:
            return errno.EEXIST
        self.routes[key] = payload
        return 0

    def _del_route(self, msg: Message) -> int:
        asked = _route(msg.payload)
        for key, payload in sorted(self.routes.items()):
            info = _route(payload)
            same = key[:4] == (asked.family, asked.table, asked.destination, asked.prefix_len)
            pairs = ((asked.oif, info.oif), (asked.gateway, info.gateway), (asked.protocol, info.protocol))
            if same and all(not a or a == b for a, b in (*pairs, (asked.metric, key[4]))):
                del self.routes[key]
                return 0
        return errno.ESRCH

    def _dump_routes(self, asked: Message) -> list[Message]:
        family, protocol = asked.payload[0], asked.payload[5]
        attrs = parse_attrs(asked.payload, 12)
        oif = int.from_bytes(attrs.get(rtnl.RTA_OIF, b""), "little")
        infos = ((payload, _route(payload)) for payload in self.routes.values())
        found = (
            payload
            for payload, info in infos
            if info.family == family and info.protocol == (protocol or info.protocol) and oif in {0, info.oif}
        )
        return _messages(rtnl.RTM_NEWROUTE, found)


def _take(raw: bytes) -> Message:
    _, kind, flags, seq, _ = HEADER.unpack_from(raw)
    return Message(kind, flags, seq, raw[16:])


def _name(msg: Message) -> bytes:
    return parse_attrs(msg.payload, 16)[rtlink.IFLA_IFNAME]


def _route(payload: bytes) -> rtnl.RouteInfo:
    return rtnl.parse_route(Message(rtnl.RTM_NEWROUTE, 0, 0, payload))


def _messages(kind: int, payloads: Any) -> list[Message]:
    return [Message(kind, 0, 0, payload) for payload in payloads]
