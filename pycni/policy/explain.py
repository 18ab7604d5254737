"""What becomes of a connection and why: the API's judgement, and whether compiled value and kernel agree. Pure.

Life of an answer: the oracle judges both directions from the objects; this node is then asked about the directions that
are its own (egress of its pods, ingress to its pods), as compiled, as read back from the kernel, and by the fast path.
Any of them that says otherwise is a difference, in words. Who asks several nodes puts their answers together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from pycni.errors import PycniError
from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.policy.base import Decision, Packet
from pycni.policy.ends import End, Objects, Way
from pycni.policy.nft.layout import shortened
from pycni.view.policy_oracle import Cause, Judgement, Reason, verdict

CLOSED = "pods not known yet"
"""Who denies what comes from and to addresses that are closed (``policy/nft/layout``)."""

KERNEL = " in the kernel"
"""Ends the names of deciders by what was read back."""


class EndText(msgspec.Struct, frozen=True, kw_only=True):
    """One end."""

    address: str
    pod: str = ""
    """``namespace/name``."""
    node: str = ""
    """Where the pod runs, or the node itself."""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """The API's judgement of one direction."""

    direction: str
    """egress or ingress."""
    allowed: bool
    subject: str
    """``Pod a/x``: whose policies these are."""
    node: str
    """Which node judges it; "" when none does."""
    cause: str
    policies: tuple[str, ...] = ()
    rule: int = -1
    """Place in the policy's list, from 0; -1: no rule decided."""
    rule_name: str = ""
    passed_by: tuple[str, ...] = ()
    why: str = ""
    """One line."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What one of the node's tables says of the directions that are the node's."""

    by: str
    """``compiled``, ``nftables in the kernel``, ``ebpf``, ``ebpf in the kernel``."""
    allowed: bool
    direction: str = ""
    """The one that is denied."""
    denied_by: tuple[str, ...] = ()
    agrees: bool = True
    broken: str = ""
    """Why nothing can be said by this table: parts of it are missing."""
    leaves: bool = False
    """It leaves the connection to the data plane below, for want of room or because it stands aside."""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One connection."""

    source: EndText
    destination: EndText
    protocol: str
    port: int
    through: str
    """The Service it was translated by."""
    allowed: bool
    egress: Side
    ingress: Side
    node: str
    """Whose checks these are."""
    judges: tuple[str, ...]
    """The directions this node judges."""
    checks: tuple[Check, ...] = ()
    differences: tuple[str, ...] = ()
    """What is not as it should be, in words."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``/policies/explain``."""

    node: str
    connections: tuple[Explanation, ...]
    trouble: str = ""
    """Why the kernel is not as the policies say; "" when it is."""
    notes: tuple[str, ...] = ()


class Together(msgspec.Struct, frozen=True, kw_only=True):
    """One connection as the nodes it concerns see it; what ``pycnictl policy explain --json`` prints a list of."""

    connection: Explanation
    """``egress`` is the source's node's word, ``ingress`` the destination's; ``checks`` are in ``by_node``."""
    by_node: dict[str, Explanation]
    """Of the nodes that judge it and were asked."""
    not_asked: tuple[str, ...]
    """Nodes that judge it and did not answer or were not asked."""

    @property
    def differences(self) -> list[str]:
        """By node."""
        return [f"{node}: {text}" for node, item in self.by_node.items() for text in item.differences]


Decide = Callable[[Packet], Decision | None]


def explain(objects: Objects, way: Way, node: str, deciders: Mapping[str, Decide]) -> Explanation:
    """What the API says of a connection, and what ``deciders`` (by name) of this node say."""
    told = judge(objects, way)
    judges = directions_of(way, node)
    expected = expectation(told, judges)
    packet = packet_of(way, node)
    checks = [_check(name, decide, packet, expected) for name, decide in deciders.items()] if judges else []
    return Explanation(
        source=_end(way.source),
        destination=_end(way.destination),
        protocol=PROTOCOL_NAMES.get(way.protocol, str(way.protocol)),
        port=way.port,
        through=way.through,
        allowed=told.allowed,
        egress=_side(told.egress, way.source.node),
        ingress=_side(told.ingress, way.destination.node),
        node=node,
        judges=judges,
        checks=tuple(checks),
        differences=tuple(
            f"{check.by}: {_said(check)}, expected {_expected(expected)}"
            for check in checks
            if not check.agrees
        ),
    )


def judge(objects: Objects, way: Way) -> Judgement:
    """The API's judgement."""
    return verdict(
        objects, way.source.address, way.destination.address, way.protocol, way.port, way.source.sender
    )


def packet_of(way: Way, node: str) -> Packet:
    """The connection as a node sees it."""
    return Packet(
        way.source.address, way.destination.address, way.protocol, way.port, local=way.source.sender == node
    )


def directions_of(way: Way, node: str) -> tuple[str, ...]:
    """The directions a node judges: of its own pods."""
    return tuple(
        side
        for side, end in (("egress", way.source), ("ingress", way.destination))
        if end.pod and end.node == node
    )


def expectation(told: Judgement, judges: tuple[str, ...]) -> Decision:
    """What a node that judges these directions should say: what egress denies never comes to ingress."""
    for side, reason in (("egress", told.egress), ("ingress", told.ingress)):
        if side in judges and not reason.allowed:
            return Decision(False, reason.policies, side)
    return Decision(True)


def put_together(answers: Sequence[Answer]) -> list[Together]:
    """Of each connection what its nodes say, in the order of the first answer."""
    by_key: dict[tuple[str, ...], list[Explanation]] = {}
    for answer in answers:
        for item in answer.connections:
            key = (item.source.address, item.destination.address, item.protocol, str(item.port))
            by_key.setdefault(key, []).append(item)
    merged = []
    for items in by_key.values():
        egress, ingress = (_judged_by(items, side) for side in ("egress", "ingress"))
        whole = msgspec.structs.replace(
            egress, ingress=ingress.ingress, allowed=egress.egress.allowed and ingress.ingress.allowed
        )
        nodes = {whole.egress.node, whole.ingress.node} - {""}
        asked = {item.node: item for item in items if item.judges}
        merged.append(
            Together(
                connection=msgspec.structs.replace(whole, node="", judges=(), checks=(), differences=()),
                by_node=asked,
                not_asked=tuple(sorted(nodes - asked.keys())),
            )
        )
    return merged


def _judged_by(items: Sequence[Explanation], side: str) -> Explanation:
    return next((item for item in items if side in item.judges), items[0])


def _check(by: str, decide: Decide, packet: Packet, expected: Decision) -> Check:
    try:
        said = decide(packet)
    except PycniError as error:
        return Check(by=by, allowed=False, agrees=False, broken=str(error))
    if said is None:
        return Check(by=by, allowed=True, leaves=True)
    return Check(
        by=by,
        allowed=said.allowed,
        direction=said.direction,
        denied_by=said.denied_by,
        agrees=_same(said, expected),
    )


def _same(said: Decision, expected: Decision) -> bool:
    if said.allowed or expected.allowed:
        return said.allowed is expected.allowed
    names = {shortened(name, 200) for name in expected.denied_by}
    return said.direction == expected.direction and {shortened(name, 200) for name in said.denied_by} == names


def _said(check: Check) -> str:
    if check.broken:
        return f"cannot be told ({check.broken})"
    if check.allowed:
        return "allowed"
    if CLOSED in check.denied_by:
        return f"{check.direction} closed, because the pod with this address is not known yet"
    return f"{check.direction} denied by {', '.join(check.denied_by) or 'nobody'}"


def _expected(decision: Decision) -> str:
    if decision.allowed:
        return "allowed"
    return f"{decision.direction} denied by {', '.join(decision.denied_by)}"


def _side(reason: Reason, node: str) -> Side:
    text = str(reason)
    judged = reason.cause not in {Cause.HOST, Cause.OUTSIDE}
    return Side(
        direction=reason.direction.name.lower(),
        allowed=reason.allowed,
        subject=reason.subject,
        node=node if judged else "",
        cause=reason.cause.value,
        policies=reason.policies,
        rule=reason.rule,
        rule_name=reason.rule_name,
        passed_by=reason.passed,
        why=text.partition(": ")[2].partition(": ")[2],
    )


def _end(end: End) -> EndText:
    return EndText(address=show(end.address), pod=end.pod, node=end.node or end.sender)
