"""Where a probe's addresses, or its bytes, are not what they should be at the places it was seen at. Pure.

What should happen to addresses is said by the cluster's objects (``ways``); a data plane that has lost an entry, or
rules of somebody else, show in what leaves the next interface.
"""

from __future__ import annotations

from collections.abc import Sequence

from pycni.model.family import show
from pycni.model.space import World
from pycni.trace.match import Matched
from pycni.trace.model import TCP, UDP, Fault, Flow, Hop
from pycni.trace.suspects import SURE, Suspect, translators

_TURNS = frozenset({"service", "masquerade"})


def readdressed(world: World, hops: Sequence[Hop]) -> Fault | None:
    """The first place at which a probe on its way there has other addresses than it should have."""
    good = -1
    for index, hop in enumerate(hops):
        seen = hop.sight.flow if hop.sight is not None else None
        if seen is None or hop.optional:
            continue
        should = _expected(hops, index)
        if seen.destination != should.destination or _port(seen) != _port(should):
            return _destination(world, hops, good, index, seen)
        if seen.source != should.source:
            return _source(world, hops, good, index, seen)
        good = index
    return None


def _port(flow: Flow) -> int:
    return flow.destination_port if flow.protocol in {TCP, UDP} else 0


def _expected(hops: Sequence[Hop], index: int) -> Flow:
    """What leaves by a device is masqueraded before it shows there."""
    after = hops[index + 1] if index + 1 < len(hops) else None
    if after is not None and (after.component, after.interface) == ("masquerade", hops[index].interface):
        return after.flow
    return hops[index].flow


def _turn(hops: Sequence[Hop], good: int, index: int, component: str) -> int | None:
    """The translation that should have happened between two places."""
    last = min(index + 1, len(hops) - 1)
    return next((at for at in range(last, max(good, 0), -1) if hops[at].component == component), None)


def _destination(world: World, hops: Sequence[Hop], good: int, index: int, seen: Flow) -> Fault:
    at = _turn(hops, good, index, "service")
    should = _expected(hops, index)
    if at is not None and hops[at].action == "translated":
        before = hops[at - 1].flow
        if (seen.destination, _port(seen)) == (before.destination, _port(before)):
            cause = f"{hops[at].detail} should be translated to {_end(should)} here, and {_end(seen)} is what leaves"
            return _fault(hops[at], at, "service-not-translated", cause, "pycnictl services")
    found = f"it goes to {_end(seen)} instead of {_end(should)}"
    return _by_others(world, hops, (good, index), found)


def _source(world: World, hops: Sequence[Hop], good: int, index: int, seen: Flow) -> Fault:
    at = _turn(hops, good, index, "masquerade")
    should = _expected(hops, index)
    if at is not None and seen.source == hops[at - 1].flow.source:
        cause = f"it leaves as {show(seen.source)} where {show(should.source)} should hide it"
        return _fault(hops[at], at, "masquerade-missing", cause, "nft list table inet pycni_fabric")
    found = f"it comes from {show(seen.source)} instead of {show(should.source)}"
    return _by_others(world, hops, (good, index), found)


def _by_others(world: World, hops: Sequence[Hop], span: tuple[int, int], found: str) -> Fault:
    """Somebody else's rules have done it, if there are such."""
    good, index = span
    likely = [item for item in translators(world, hops) if good < item.before <= index]
    best: Suspect | None = max(likely, key=lambda item: item.weight, default=None)
    if best is None:
        return _fault(hops[index], index, "translated-wrongly", f"the packet is readdressed: {found}", "")
    return Fault(
        kind=best.fault.kind, node=best.fault.node, space=best.fault.space, component=best.fault.component,
        interface=best.fault.interface, hop=index, cause=f"{found}: {best.fault.cause}", command=best.fault.command,
    )  # fmt: skip


def elsewhere(world: World, there: Matched) -> Fault | None:
    """Rules of others that have sent a packet where it should not go, although it is answered."""
    if there.lost is None:
        return None
    good = max((at for at, hop in enumerate(there.hops[: there.lost]) if hop.sight is not None), default=-1)
    hop = there.hops[there.lost]
    likely = [item for item in translators(world, there.hops) if good < item.before <= there.lost]
    if not any(item.weight == SURE for item in likely):
        return None
    return _by_others(
        world, there.hops, (good, there.lost), f"it does not come to {hop.interface} of {hop.node}"
    )


def damaged(hops: Sequence[Hop]) -> Fault | None:
    """The first place at which a probe's checksum is wrong, when it was right before."""
    before = None
    for index, hop in enumerate(hops):
        if hop.sight is None:
            continue
        if hop.sight.damaged:
            if before is None:
                return None  # as it was sent: whoever sends it leaves checksums to a device
            cause = (
                f"its {hop.sight.damaged} is wrong here and was right at {before.interface} of {before.node}: something"
                " in between changed it, and who gets it throws it away"
            )
            command = f"ethtool -k {hop.interface} | grep checksum; nft list ruleset"
            return _fault(hop, index, "checksum-wrong", cause, command)
        before = hop
    return None


def _fault(hop: Hop, index: int, kind: str, cause: str, command: str) -> Fault:
    return Fault(
        kind=kind, node=hop.node, space=hop.space, component=hop.component, interface=hop.interface, hop=index,
        cause=cause, command=command,
    )  # fmt: skip


def _end(flow: Flow) -> str:
    port = _port(flow)
    if not port:
        return show(flow.destination)
    return (
        f"[{show(flow.destination)}]:{port}"
        if len(flow.destination) == 16
        else f"{show(flow.destination)}:{port}"
    )
