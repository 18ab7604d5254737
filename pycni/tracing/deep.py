"""What the kernel says of a trace's packets on one node: rules they met, why they were dropped, their connections.

Life: ``Deep`` opens, for one watch, rule traces in every namespace of the node that has nftables rules, one listener
for drops that all nodes of this machine share, and a socket to ask connection tracking; ``read`` makes notes of what
came, ``connections`` asks about the flows that were seen; ``close`` leaves nothing behind. What a kernel cannot tell is
one note of kind ``limit``; nothing else fails by it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from pycni.errors import KernelError
from pycni.kernel import nfttrace
from pycni.kernel.capture import Enter
from pycni.kernel.conntrack_ask import ConnectionAsker
from pycni.kernel.dropreason import Drop, DropWatch, Symbols
from pycni.kernel.nfttrace import RuleTrace, Told
from pycni.model.family import show
from pycni.model.space import NODE
from pycni.model.spot import Spot
from pycni.trace.frames import flow_of, inside, split_ip
from pycni.trace.model import ICMP, ICMPV6, Flow, Note
from pycni.tracing.ask import AskError, Door
from pycni.tracing.denials import Denials
from pycni.tracing.eyes import Order
from pycni.wire.ctnetlink import ASSURED, SEEN_REPLY, TCP_STATES, Entry, Tuple

_NEEDLESS = frozenset({"queue_purge", "otherhost", "consumed"})
"""Copies that nobody waits for, and what closes with our own socket."""
FLOWS = 32
"""Asked about in one watch."""
_ECHO = {ICMP: 8 << 8, ICMPV6: 128 << 8}
_ECHO_ANSWER = {ICMP: 0, ICMPV6: 129 << 8}


class Place(NamedTuple):
    """A node."""

    name: str
    spaces: Mapping[str, Enter]
    agent: Door | None = None
    """Whose agent tells what a fast path of policies denies; None: the node has no such plane."""


class Deep:
    """One watch of one node."""

    def __init__(self, node: Place, order: Order, marks: Sequence[Spot], drops: Sequence[Spot]) -> None:
        """``marks``: what packets are known by whose rules are told, (): none; ``drops``: whose drops are.

        Raises OSError, KernelError when a namespace cannot be entered.
        """
        self._name, self._spaces, self._own = node.name, node.spaces, order.flow
        self._denials: Denials | None = None
        self._rules: dict[str, RuleTrace] = {}
        self._askers: dict[str, ConnectionAsker] = {}
        self._drops: _Listener | None = None
        self._notes: list[Note] = []
        self._flows: dict[tuple[str, Flow], Note | None] = {}
        self._last: dict[tuple[str, str], Flow] = {}
        self._by_packet: dict[tuple[str, int], tuple[Flow | None, int, int]] = {}
        self._interfaces: dict[tuple[str, int], str] = {}
        try:
            for space, enter in node.spaces.items():
                ruled = bool(enter(nfttrace.tables))
                if ruled and marks:
                    self._trace(space, enter, order.token, marks)
                if ruled or space == NODE:
                    self._ask(space, enter)
            if drops:
                self._hear(order.token, drops)
            if node.agent is not None:
                self._listen(node.agent)
        except BaseException:
            self.close()
            raise

    def filenos(self) -> list[int]:
        """To poll for reading."""
        found = [trace.fileno() for trace in self._rules.values()]
        others = (self._drops, self._denials)
        return found + [item.fileno() for item in others if item is not None]

    def read(self) -> list[Note]:
        """What came since the last call. Raises KernelError."""
        found, self._notes = self._notes, []
        for space, trace in self._rules.items():
            found += [self._rule(space, told) for told in trace.read()]
        if self._drops is not None:
            found += [note for space, drop in self._drops.read() if (note := self._drop(space, drop))]
        if self._denials is not None:
            found += self._denials.read(self._mine)
        return found

    def connections(self, flows: Sequence[tuple[str, Flow]]) -> list[Note]:
        """What connection tracking says of flows by space: these and those of earlier calls, where it is news."""
        for place in flows:
            if place[0] in self._askers and len(self._flows) < FLOWS:
                self._flows.setdefault(place, None)
        found = []
        told = {note for note in self._flows.values() if note is not None}
        for (space, flow), before in self._flows.items():
            note = self._connection(space, flow)
            if note is None or (before is not None and _same(before, note)):
                continue
            self._flows[space, flow] = note
            if not any(_same(note, other) for other in told):
                told.add(note)
                found.append(note)
        return found

    def close(self) -> None:
        """Leave nothing behind; harmless when done before."""
        if self._drops is not None:
            self._drops.close()
            self._drops = None
        if self._denials is not None:
            self._denials.close()
            self._denials = None
        for trace in self._rules.values():
            trace.close()
        for asker in self._askers.values():
            asker.close()
        self._rules.clear()
        self._askers.clear()

    # --- opening --------------------------------------------------------------------------------------------

    def _trace(self, space: str, enter: Enter, token: int, marks: Sequence[Spot]) -> None:
        try:
            self._rules[space] = enter(lambda: RuleTrace(list(marks), token))
        except KernelError as error:
            self._limit(space, f"rules are not told: {error}")

    def _ask(self, space: str, enter: Enter) -> None:
        try:
            self._askers[space] = enter(ConnectionAsker)
        except (OSError, KernelError) as error:
            self._limit(space, f"connections are not told: {error}")

    def _hear(self, token: int, drops: Sequence[Spot]) -> None:
        numbers = {
            enter(lambda: os.stat("/proc/thread-self/ns/net").st_ino): space
            for space, enter in self._spaces.items()
        }
        try:
            self._drops = _Listener(token, drops, numbers)
        except KernelError as error:
            self._limit(NODE, f"drop reasons are not told: {error}")

    def _listen(self, agent: Door) -> None:
        try:
            self._denials = Denials(self._name, agent)
        except AskError as error:
            self._limit(NODE, f"denials of the fast path are not told: {error}")

    def _mine(self, flow: Flow) -> bool:
        """Whether a denied packet is the probe or its answer, behind a translation of either end too."""
        own = (
            self._own
            if self._own.protocol not in _ECHO
            else msgspec.structs.replace(self._own, source_port=0)
        )
        ends = {(own.source, own.source_port), (own.destination, own.destination_port)}
        return flow.protocol == own.protocol and not ends.isdisjoint(
            {(flow.source, flow.source_port), (flow.destination, flow.destination_port)}
        )

    def _limit(self, space: str, detail: str) -> None:
        self._notes.append(
            Note(node=self._name, space=space, time_ns=time.time_ns(), kind="limit", detail=detail)
        )

    # --- telling --------------------------------------------------------------------------------------------

    def _rule(self, space: str, told: Told) -> Note:
        met = told.met
        key = (space, met.packet)
        flow, iif, oif = self._by_packet.get(key, (None, 0, 0))
        if met.network:
            flow = _flow(met.network + met.transport) or flow
            iif, oif = met.iif, met.oif
            self._by_packet[key] = flow, iif, oif
        return Note(
            node=self._name,
            space=space,
            time_ns=time.time_ns(),
            kind="rule",
            place=f"{met.family} {met.table} {met.chain}",
            detail=_text(told),
            verdict=met.verdict,
            interface=self._interface(space, oif or iif),
            outgoing=bool(oif),
            flow=flow,
        )

    def _drop(self, space: str, drop: Drop) -> Note | None:
        flow = _flow(drop.packet)
        if flow is None or drop.reason in _NEEDLESS:
            return None
        if drop.reason == "no_socket" and flow == self._own.back:
            return None  # the asker's kernel does not know the probe: we know its answer
        place = _SYMBOLS.name(drop.place)
        return Note(
            node=self._name,
            space=space,
            time_ns=drop.time_ns,
            kind="drop",
            place=place,
            detail=f"in {place}" if place else "",
            verdict=drop.reason,
            interface=self._interface(space, drop.interface),
            flow=flow,
        )

    def _connection(self, space: str, flow: Flow) -> Note | None:
        for way in _ways(flow):
            entry = self._askers[space].ask(flow.protocol, way)
            if entry is not None:
                return Note(
                    node=self._name,
                    space=space,
                    time_ns=time.time_ns(),
                    kind="connection",
                    detail=entry_text(entry),
                    verdict=_state(entry),
                    flow=_as_flow(entry.protocol, entry.original),
                    translated=_translated(entry),
                )
        return None

    def _interface(self, space: str, index: int) -> str:
        if index and (space, index) not in self._interfaces:
            try:
                self._interfaces[space, index] = self._spaces[space](lambda: socket.if_indextoname(index))
            except OSError:  # it is gone
                self._interfaces[space, index] = ""
        return self._interfaces.get((space, index), "")


class _Listener:
    """This watch's part in a listener for drops that all nodes of this machine share while they watch for one thing."""

    def __init__(self, token: int, drops: Sequence[Spot], spaces: Mapping[int, str]) -> None:
        """``spaces``: by number of the namespace. Raises KernelError."""
        self.spaces = spaces
        self.pending: list[tuple[str, Drop]] = []
        self._key = (token, tuple(drops))
        with _LOCK:
            if self._key not in _SHARED:
                _SHARED[self._key] = DropWatch(drops), []
            self._watch, self._all = _SHARED[self._key]
            self._all.append(self)

    def fileno(self) -> int:
        """Becomes readable when any of its packets was dropped, in whoever's namespace."""
        return self._watch.fileno()

    def read(self) -> list[tuple[str, Drop]]:
        """Drops in this watch's namespaces."""
        with _LOCK:
            for drop in self._watch.read():
                for listener in self._all:
                    space = listener.spaces.get(drop.space)
                    if space is not None:
                        listener.pending.append((space, drop))
            found, self.pending = self.pending, []
        return found

    def close(self) -> None:
        """The last one that goes takes the listener away."""
        with _LOCK:
            if self in self._all:
                self._all.remove(self)
                if not self._all:
                    del _SHARED[self._key]
                    self._watch.close()


_LOCK = threading.Lock()
_SHARED: dict[tuple[int, tuple[Spot, ...]], tuple[DropWatch, list[_Listener]]] = {}
_SYMBOLS = Symbols()


def entry_text(entry: Entry) -> str:
    """An entry in words: ``tcp syn-sent, not answered, 10.1.0.2:40000 > 10.96.0.1:80, answered by 10.1.1.3:8080``."""
    sent = _as_flow(entry.protocol, entry.original)
    said = [_state(entry) or sent.text().partition(" ")[0]]
    if not entry.status & SEEN_REPLY:
        said.append("not answered yet")
    elif entry.status & ASSURED:
        said.append("assured")
    if entry.target_translated:
        said.append(f"to {_end(entry.reply.source, entry.reply.source_port, entry.protocol)}")
    if entry.source_translated:
        said.append(f"from {_end(entry.reply.target, entry.reply.target_port, entry.protocol)}")
    if entry.timeout_s >= 0:
        said.append(f"{entry.timeout_s} s left")
    return ", ".join(said)


def _translated(entry: Entry) -> Flow | None:
    if not (entry.target_translated or entry.source_translated):
        return None
    back = entry.reply
    if entry.protocol in _ECHO:
        return _as_flow(entry.protocol, back._replace(source=back.target, target=back.source))
    return _as_flow(entry.protocol, Tuple(back.target, back.source, back.target_port, back.source_port))


def _end(address: bytes, port: int, protocol: int) -> str:
    if protocol in _ECHO:
        return show(address)
    return f"[{show(address)}]:{port}" if len(address) == 16 else f"{show(address)}:{port}"


def _state(entry: Entry) -> str:
    return TCP_STATES[entry.state] if 0 <= entry.state < len(TCP_STATES) else ""


def _same(one: Note, two: Note) -> bool:
    """But for the time that is left."""
    cut = tuple(note.detail.rpartition(", ")[0] for note in (one, two))
    return (one.space, one.flow, one.verdict, cut[0]) == (two.space, two.flow, two.verdict, cut[1])


def _ways(flow: Flow) -> list[Tuple]:
    """As connection tracking names a flow, one way or the other."""
    if flow.protocol not in _ECHO:
        return [Tuple(flow.source, flow.destination, flow.source_port, flow.destination_port)]
    return [
        Tuple(flow.source, flow.destination, flow.source_port, kind)
        for kind in (_ECHO[flow.protocol], _ECHO_ANSWER[flow.protocol])
    ]


def _as_flow(protocol: int, way: Tuple) -> Flow:
    echo = protocol in _ECHO
    return Flow(
        protocol=protocol,
        source=way.source,
        destination=way.target,
        source_port=way.source_port,
        destination_port=0 if echo else way.target_port,
    )


def _flow(packet: bytes) -> Flow | None:
    """Of the innermost IP packet as far as it is there; of an ICMP error that of its own."""
    found = None
    for _, layer in inside(packet):
        parts = split_ip(layer)
        if parts is None or len(parts.rest) < 8:
            break
        found = flow_of(parts)
    return found


def _text(told: Told) -> str:
    met = told.met
    if met.kind == "policy":
        return f"policy {met.verdict}"
    if not met.handle:
        return "end of the chain"
    return told.rule.text or f"handle {met.handle}"
