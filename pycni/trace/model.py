"""A packet's way in words and values: flows, hops, faults and the whole report. Pure.

Life: ``walk`` makes hops, ``observe`` adds what was seen at each, ``verdict`` names the fault; ``report`` shows them
as text or JSON.
"""

from __future__ import annotations

import msgspec

from pycni.model.family import Family, show

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
NAMES = {ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPV6: "icmp"}


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """A packet's addresses, as it is at one place."""

    protocol: int
    source: bytes
    destination: bytes
    source_port: int = 0
    """Of ICMP: the identifier."""
    destination_port: int = 0

    @property
    def family(self) -> Family:
        """Of its addresses."""
        return Family.of_packed(self.source)

    @property
    def back(self) -> Flow:
        """Its answer's."""
        echo = self.protocol in {ICMP, ICMPV6}
        return Flow(
            protocol=self.protocol,
            source=self.destination,
            destination=self.source,
            source_port=self.source_port if echo else self.destination_port,
            destination_port=0 if echo else self.source_port,
        )

    def text(self) -> str:
        """``tcp 10.1.0.2:40000 > 10.1.1.3:80``."""
        name = NAMES.get(self.protocol, str(self.protocol))
        if self.protocol in {ICMP, ICMPV6}:
            return f"{name} {show(self.source)} > {show(self.destination)}"
        return (
            f"{name} {_end(self.source, self.source_port)} > {_end(self.destination, self.destination_port)}"
        )


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """The packet as it was seen at a hop."""

    time_ns: int
    """Kernel time stamp, nanoseconds since the epoch."""
    after_us: float = 0.0
    """Since the hop before, where that was seen."""
    length: int = 0
    """Bytes with the Ethernet header."""
    flow: Flow | None = None
    """Its addresses, innermost."""
    damaged: str = ""
    """Which checksum of it is wrong."""
    said: str = ""
    """What the kernel told besides: rules it met, the connection's entry, why it was dropped."""


class Hop(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that happens to a packet."""

    node: str
    space: str
    """"" for the node's own namespace, else the pod."""
    component: str
    """One of socket, interface, bridge, guard, policy, service, routing, neighbour, overlay, underlay, masquerade and
    firewall (somebody else's rules)."""
    interface: str = ""
    action: str
    """sent, received, forwarded, translated, encapsulated, decapsulated, delivered, dropped, refused."""
    detail: str = ""
    """What decided: the route, the entry, the rule, in the kernel's notation."""
    reason: str = ""
    """Why, for people."""
    flow: Flow
    """The packet as it leaves this hop (inside, where it is encapsulated)."""
    mtu: int = 0
    overhead: int = 0
    """Bytes of encapsulation around the packet here."""
    outer: Flow | None = None
    """The packet around it, where there is one and its addresses are known."""
    kind: str = ""
    """The fault's short, stable name (see ``verdict``): of a hop that ends the way too early, or that is wrong although
    the packet goes on."""
    optional: bool = False
    """It cannot always be seen (what is around it is encrypted): its absence is no fault."""
    sight: Sight | None = None
    notes: tuple[Note, ...] = ()
    """What the kernel said of the packet there."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """Something the kernel said of the probe."""

    node: str
    space: str
    time_ns: int
    kind: str
    """rule (a firewall rule it met), drop (why it was dropped), connection (its conntrack entry), limit (what this
    node cannot tell)."""
    detail: str
    interface: str = ""
    outgoing: bool = False
    """Whether it was leaving by that interface."""
    place: str = ""
    """Of a rule: family, table and chain; of a drop: the function in the kernel."""
    verdict: str = ""
    """Of a rule: accept, drop, goto x, ...; of a drop: the kernel's reason; of a connection: its state."""
    flow: Flow | None = None
    translated: Flow | None = None
    """Of a connection: as its packets are named behind this node, where that differs."""


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Where what should happen and what does part."""

    kind: str
    """Short, stable name: ``fdb-missing``, ``neighbour-stale``, ``policy-denied``, ``node-cut-off``, ..."""
    node: str
    space: str = ""
    component: str
    interface: str = ""
    hop: int = -1
    """Index in the hops (there, then back); -1: none of them."""
    cause: str
    """One sentence."""
    command: str = ""
    """To look further."""


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """The whole."""

    ok: bool
    """The packet arrived as predicted, and its answer came back."""
    question: str
    hops: tuple[Hop, ...] = ()
    back: tuple[Hop, ...] = ()
    fault: Fault | None = None
    suspicions: tuple[Fault, ...] = ()
    """What else is not as it should be on the way."""
    notes: tuple[Note, ...] = ()
    """What the kernel said of the packet where no hop was to be expected."""
    limits: tuple[str, ...] = ()
    """What some kernel could not tell."""
    series: Series | None = None
    """Of many probes."""
    predicted_ms: float = 0.0
    took_ms: float = 0.0
    round_trip_us: float | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Many probes in a row, or many connections of live traffic."""

    sent: int
    answered: int
    shown: int = 0
    """Which of them the hops are of, from 0 on: the first that failed, else the first."""
    round_trip_us: tuple[float, float, float] | None = None
    """Shortest, median, longest."""
    hops_us: tuple[float | None, ...] = ()
    """Median since the hop before, of each hop there and back; None: not seen."""
    endpoints: tuple[tuple[str, int], ...] = ()
    """Where they were translated to, and how many; of Services."""
    ways: tuple[tuple[str, int], ...] = ()
    """Which interfaces of the underlay they took, and how many; where that differs."""


def _end(address: bytes, port: int) -> str:
    return f"[{show(address)}]:{port}" if len(address) == 16 else f"{show(address)}:{port}"
