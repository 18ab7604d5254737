"""Second probes: what the first one leaves open is tried.

Life: after the first verdict at most one more probe is sent. A packet that was lost between two nodes is told from a
node that is cut off by an echo between the nodes themselves. Where small packets pass, one of the largest size that
should pass is tried, as links that take too little drop without telling anybody.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pycni.model.space import NODE, World
from pycni.trace.match import Matched, Seen, match
from pycni.trace.model import ICMP, ICMPV6, Fault, Flow, Hop
from pycni.trace.verdict import Verdict, on_wire, too_big

Send = Callable[[str, str, Flow, int], tuple[Sequence[Seen], str]]
"""Sends a probe of a size (0: small) from a node and a space; what was seen of it, and why it did not leave."""
TRIES = 2
"""How often a large packet has to be lost."""
PROBE = frozenset({"probe"})
ANSWER = frozenset({"answer", "reset", "error"})


def follow(world: World, found: Verdict, there: Matched, back: Matched | None, send: Send) -> Verdict:
    """The verdict after another probe, where one tells more. Raises what sending raises."""
    fault, others = found
    if fault is not None and fault.kind == "lost-on-wire":
        hops = (*there.hops, *(back.hops if back is not None else ()))
        return _echo(fault, hops, send), others
    if fault is None and back is not None and there.hops and back.hops:
        return _largest(world, found, there, back, send)
    return found


def _echo(fault: Fault, hops: Sequence[Hop], send: Send) -> Fault:
    lost = hops[fault.hop]
    around = lost.outer or lost.flow
    sender = next((hop.node for hop in reversed(hops[: fault.hop]) if hop.node != lost.node), "")
    if not sender:
        return fault
    protocol = ICMP if len(around.source) == 4 else ICMPV6
    flow = Flow(protocol=protocol, source=around.source, destination=around.destination)
    seen, _ = send(sender, NODE, flow, 0)
    arrived = any((item.node, item.what.kind) == (lost.node, "probe") for item in seen)
    return on_wire(fault, lost, echoed=arrived)


def _largest(world: World, found: Verdict, there: Matched, back: Matched, send: Send) -> Verdict:
    """An echo of the size that every link on the way should take."""
    first = there.hops[0]
    if first.flow.protocol not in {ICMP, ICMPV6}:
        # A program would get what it did not ask for: only where something is wrong already.
        _, others = found
        if not any(item.kind == "mtu-too-small" for item in others):
            return found
    size = _size(there.hops)
    if not size:
        return found
    verdict = found
    for _ in range(TRIES):  # a single one may be lost by chance
        seen, refused = send(first.node, first.space, first.flow, size)
        if refused or any(item.what.kind == "error" for item in seen):
            return found  # the sender is told, and sends smaller ones
        forth = match(there.hops, seen, PROBE)
        # An answer may be cut in pieces that cannot be told from others'.
        whole = forth.lost is None and _size(back.hops) >= size
        home = match(back.hops, seen, ANSWER, forth.last_ns) if whole else None
        verdict = too_big(world, found, forth, home, size=size)
        if verdict == found:
            return found
    return verdict


def _size(hops: Sequence[Hop]) -> int:
    """Of the largest IP packet a way should take: routers tell who sends larger ones."""
    sizes = [hop.mtu for hop in hops if (hop.component, hop.action) == ("routing", "forwarded")]
    return min((size for size in sizes if size), default=0)
