"""The verdict over a probe that was watched: what happened counts for more than what tables lead to. Pure.

Life: ``tables.judge`` has said where the packet should be stopped, if anywhere. A probe that got further, or not so
far, or was changed on its way, tells more: by whom follows from what lies between the last place it was seen at and
the first it was not (``suspects``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from pycni.model.family import show
from pycni.model.space import World
from pycni.trace import drift
from pycni.trace.match import Matched
from pycni.trace.model import Fault, Hop
from pycni.trace.suspects import suspects
from pycni.trace.tables import CERTAIN, ELSEWHERE, MEANT, Verdict, Walks, brief, fault, judge

__all__ = ["Verdict", "Walks", "judge", "on_wire", "too_big", "watched"]


def watched(
    world: World, found: Verdict, there: Matched, back: Matched | None, *, answered: bool, reply: str = ""
) -> Verdict:
    """The verdict once a probe was watched: what happened counts for more than what tables lead to.

    ``answered``: the asker got something back; ``reply``: what (answer, reset, error). ``back`` None: answers of this
    kind cannot be told from others.
    """
    fault, others = found
    changed = drift.readdressed(world, there.hops)
    if changed is not None and (fault is None or changed.hop <= fault.hop):
        return changed, others
    if answered:
        return _got_through(world, found, there, back, reply)
    hurt = drift.damaged(there.hops)
    if hurt is not None and (fault is None or hurt.hop <= fault.hop):
        return hurt, others
    for matched, start, what in ((there, 0, "the packet"), (back, len(there.hops), "the answer")):
        if matched is None or matched.lost is None:
            continue
        if matched is back and not any(hop.sight is not None for hop in back.hops[: matched.lost]):
            break  # nobody has sent one
        if fault is None or _earlier(matched, start, fault):
            return _vanished(world, _Loss(matched, start, what), (fault, others))
    if fault is not None:
        return fault, others
    if back is not None:
        return _silence(world, there, back, others)
    return None, others


def _earlier(matched: Matched, start: int, fault: Fault) -> bool:
    """Whether a packet was lost before it came to where tables stop it."""
    lost, stop = matched.lost or 0, fault.hop - start
    if not 0 <= lost < stop:
        return False
    # What finds no neighbour does not show at the device it was to leave by; and what stops packets on a link stops the
    # question for the neighbour too.
    way = matched.hops[lost:stop]
    if fault.component in {"neighbour", "interface"}:
        return any(hop.interface != fault.interface for hop in way)
    if fault.component == "bridge" and way[0].component == "routing":
        return any(hop.component not in {"bridge", "interface", "neighbour"} for hop in way[1:])
    return True


def _got_through(world: World, found: Verdict, there: Matched, back: Matched | None, reply: str) -> Verdict:
    """The asker has got something back."""
    fault, others = found
    if reply in {"reset", "error"}:
        return found if fault is not None else _refused(world, found, there, back, reply)
    if fault is None:
        return drift.elsewhere(world, there), others
    if fault.kind == "policy-denied" and reply == "answer":
        cause = f"{fault.cause.partition(': ')[2] or fault.cause}: and yet an answer came back"
        return msgspec.structs.replace(fault, kind="policy-not-enforced", cause=cause), others
    if fault.kind in MEANT | CERTAIN or (fault.kind == "answer-unknown" and _strange(there, back)):
        return found
    hops = (*there.hops, *(back.hops if back is not None else ()))
    if fault.kind in ELSEWHERE and any(hop.sight is not None for hop in hops[max(fault.hop, 0) :]):
        return found
    return None, (fault, *others)


def _strange(there: Matched, back: Matched | None) -> bool:
    """Whether what came back is not the answer the asker waits for."""
    flows = [hop.sight.flow for hop in back.hops if hop.sight is not None] if back is not None else []
    asked = there.hops[0].flow
    return bool(flows) and flows[-1] is not None and flows[-1].source != asked.destination


def _refused(world: World, found: Verdict, there: Matched, back: Matched | None, reply: str) -> Verdict:
    """Tables let it through, and the asker was told that it does not get through."""
    index = there.lost if there.lost is not None else len(there.hops) - 1
    hop = there.hops[index]
    told = "an ICMP error" if reply == "error" else "a reset"
    said = (
        next(
            (item.sight.said for item in reversed(back.hops) if item.sight is not None and item.sight.said),
            "",
        )
        if back is not None
        else ""
    )
    at = f"before {brief(hop)}" if there.lost is not None else f"at {brief(hop)}"
    cause = f"the asker gets {told}{f' ({said})' if said else ''}: the packet is refused {at}"
    shown = [at for at, item in enumerate(there.hops[: index + 1]) if item.sight is not None]
    accused = _accused(world, there.hops, shown[-1] if shown else -1, index, answer=False)
    if accused:
        return msgspec.structs.replace(accused[0], hop=index, cause=f"{cause}: {accused[0].cause}"), found[1]
    for place in range(index, shown[-1] if shown else 0, -1):
        turn = there.hops[place]
        if (turn.component, turn.action) == ("service", "translated"):
            what = f"{turn.detail} should be translated to {show(turn.flow.destination)} here, and {cause}"
            return fault(msgspec.structs.replace(turn, kind="service-not-translated"), what, place), found[1]
    return fault(msgspec.structs.replace(hop, kind="refused"), cause, index), found[1]


def _silence(world: World, there: Matched, back: Matched, others: tuple[Fault, ...]) -> Verdict:
    """Delivered, and nothing comes."""
    last = there.hops[-1]
    shown = [index for index, hop in enumerate(there.hops) if hop.sight is not None]
    accused = _accused(world, there.hops, shown[-1] if shown else -1, len(there.hops) - 1, answer=False)
    accused += (
        _accused(world, back.hops, len(back.hops) - 2, len(back.hops) - 1, answer=True) if back.hops else []
    )
    if accused:
        cause = f"it is seen at the end of its way and nobody gets it: {accused[0].cause}"
        return msgspec.structs.replace(accused[0], hop=len(there.hops) - 1, cause=cause), others
    silent = world.silent.get(last.node)
    if silent is not None:
        cause = f"nothing is known of {last.node}, where it was sent to, and nobody answers: {silent}"
    elif last.component == "underlay":
        cause = f"it has left what is known here by {last.interface} of {last.node}, and nobody answers"
    else:
        cause = "the packet was delivered and nobody answered"
    kind = "no-answer" if silent is None else "node-silent"
    return Fault(
        kind=kind, node=last.node, space=last.space, component=last.component, interface=last.interface,
        hop=len(there.hops) - 1, cause=cause,
    ), others  # fmt: skip


def _accused(
    world: World, hops: Sequence[Hop], seen: int, lost: int, *, answer: bool, size: int = 0
) -> list[Fault]:
    """Who may have stopped a packet between two places, the surest first."""
    found = [item for item in suspects(world, hops, answer=answer, size=size) if seen < item.before <= lost]
    if not size:
        found = [item for item in found if item.fault.kind != "mtu-too-small"]
    return [item.fault for item in sorted(found, key=lambda item: (-item.weight, item.before))]


class _Loss(NamedTuple):
    """A packet that was seen up to somewhere, and not where it should have been next."""

    matched: Matched
    start: int
    """Index of the first of its hops among all."""
    what: str
    size: int = 0
    """Of its IP packet; 0: small."""


def _vanished(world: World, loss: _Loss, found: Verdict) -> Verdict:
    """By whom, as far as states tell."""
    fault, others = found
    matched, start, what, size = loss
    index = matched.lost or 0
    hop = matched.hops[index]
    at = next((at for at in range(index - 1, -1, -1) if matched.hops[at].sight is not None), -1)
    seen = matched.hops[at] if at >= 0 else None
    after = f"it was seen last at {brief(seen)}" if seen is not None else "it was seen nowhere"
    accused = _accused(world, matched.hops, at, index, answer=start > 0, size=size)
    silent = [name for name in (hop.node, seen.node if seen is not None else "") if name in world.silent]
    cause = f"{what} vanishes before {brief(hop)}; {after}"
    beside = others if fault is None else (fault, *others)
    if accused:
        lost = msgspec.structs.replace(accused[0], hop=start + index, cause=f"{cause}: {accused[0].cause}")
        return lost, tuple(item for item in beside if item.cause != accused[0].cause)
    on_wire = (hop.component, hop.action) == ("underlay", "received")
    if silent:
        cause = f"{cause}: {world.silent[silent[0]]}"
    return Fault(
        kind="lost-on-wire" if on_wire else "vanished", node=hop.node, space=hop.space, component=hop.component,
        interface=hop.interface, hop=start + index, cause=cause, command="pycnictl trace --json",
    ), beside  # fmt: skip


def too_big(world: World, found: Verdict, there: Matched, back: Matched | None, *, size: int) -> Verdict:
    """The verdict over a second probe, of the largest size that should pass, after a small one has passed."""
    for matched, start, what in ((there, 0, "a packet"), (back, len(there.hops), "the answer")):
        if matched is not None and matched.lost is not None:
            lost, others = _vanished(world, _Loss(matched, start, f"{what} of {size} bytes", size), found)
            if lost is not None and lost.kind in {"vanished", "lost-on-wire"}:
                lost = msgspec.structs.replace(lost, kind="mtu-too-small")
            return (
                msgspec.structs.replace(lost, cause=f"{lost.cause}; small ones pass")
                if lost is not None
                else None
            ), others
    return found


def on_wire(fault: Fault, outer: Hop, *, echoed: bool) -> Fault:
    """What a loss between two nodes means, once an echo between the nodes themselves was tried."""
    flow = outer.outer or outer.flow
    ends = f"{show(flow.source)} to {show(flow.destination)}"
    if not echoed:
        cause = f"{fault.node} is cut off: an echo from {ends} is lost as well; {fault.cause}"
        command = f"ping -I {outer.interface} {show(flow.destination)}"
        return msgspec.structs.replace(fault, kind="node-cut-off", cause=cause, command=command)
    what = flow.text().split(" ", maxsplit=1)[0]
    port = f" port {flow.destination_port}" if flow.destination_port else ""
    cause = f"{what}{port} from {ends} is filtered on the way, an echo gets through; {fault.cause}"
    command = f"tcpdump -ni {outer.interface} host {show(flow.source)}"
    return msgspec.structs.replace(fault, kind="underlay-filtered", cause=cause, command=command)
