"""What is made of a probe that was seen so far and no further, in the made-up world of ``test_trace_walk``."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from pycni.model.space import (
    NODE,
    AddressState,
    Conntrack,
    ForeignHook,
    ForeignProgram,
    NeighbourState,
    SpaceState,
    World,
)
from pycni.trace.match import Matched, visible
from pycni.trace.model import TCP, Fault, Flow, Hop, Sight
from pycni.trace.passages import between, passages
from pycni.trace.suspects import suspects
from pycni.trace.tables import Walks
from pycni.trace.verdict import Verdict, judge, on_wire, too_big, watched
from pycni.trace.walk import answer, walk
from pycni.trace.ways import Path, Turn

from .test_trace_walk import (
    VIP,
    Quiet,
    also,
    also_sysctl,
    changed,
    go,
    link,
    mac,
    packed,
    sound,
    to,
    without,
)

Change = Callable[[SpaceState], SpaceState]


def seen(path: Path, upto: str = "", start: int = 1000, **flow: object) -> Matched:
    """A probe that shows everywhere before the first hop of these words; nowhere ``-``."""
    hops, lost = list[Hop](), None
    for index, hop in enumerate(path.hops):
        words = " ".join(filter(None, (hop.node, hop.component, hop.interface, hop.action)))
        if lost is None and visible(hop) is not None and (upto == "-" or (upto and upto in words)):
            lost = index
        sight = (
            Sight(time_ns=start + index, flow=hop.flow) if visible(hop) is not None and lost is None else None
        )
        hops.append(msgspec.structs.replace(hop, sight=sight))
    return Matched(tuple(hops), lost, start)


def walks(world: World, there: Path, back: Path) -> Walks:
    return Walks(there, back, there, back)


def verdict(
    world: World, upto: str = "", *, back: str = "-", ways: Quiet | None = None, protocol: int = 1
) -> Verdict:
    """Of a probe that was lost there, or whose answer was."""
    there, home = go(world, ways=ways, protocol=protocol)
    found = judge(world, walks(world, there, home))
    answered = not upto and not back
    return watched(
        world,
        found,
        seen(there, upto),
        seen(home, back),
        answered=answered,
        reply="answer" if answered else "",
    )


def hook(where: str, rule: str, family: str = "ip", device: str = "") -> Change:
    found = ForeignHook(
        family=family, table="t", chain="c", hook=where, priority=0, rules=(rule,), device=device
    )
    return also(hooks=(found,))


FULL = without(conntrack=Conntrack(5, 5))
XDP = also(programs=(ForeignProgram(device="eth0", where="xdp", words="xdp prog id 1"),))
SHAPER = also(programs=(ForeignProgram(device="veth2", where="egress", words="tc filter", drops=True),))
LOSSES = {
    "rule on forwarding": (2, NODE, hook("forward", "drop"), "n2 routing cni0", "foreign-rule", "n2", "cni0"),
    "rule on what comes in": (2, NODE, hook("prerouting", 'iifname "flannel.1" drop'), "n2 routing cni0", "foreign-rule", "n2", "flannel.1"),
    "rule on the overlay's packets": (2, NODE, hook("input", "udp dport 8472 drop"), "n2 overlay", "foreign-rule", "n2", "eth0"),
    "rule on the overlay's packets, leaving": (1, NODE, hook("output", "udp dport 8472 drop"), "n1 underlay eth0", "foreign-rule", "n1", "eth0"),
    "rule of a bridge": (2, NODE, hook("output", "drop", "bridge"), "n2 bridge veth2", "foreign-rule", "n2", "veth2"),
    "rule of a device": (2, NODE, hook("ingress", "drop", "netdev", "eth0"), "n2 overlay", "foreign-rule", "n2", "eth0"),
    "program on the underlay": (2, NODE, XDP, "n2 underlay eth0", "foreign-program", "n2", "eth0"),
    "program on a port": (2, NODE, SHAPER, "n2 bridge veth2", "foreign-program", "n2", "veth2"),
    "no room for connections": (2, NODE, FULL, "n2 routing cni0", "conntrack-full", "n2", "flannel.1"),
    "nothing to accuse": (2, NODE, without(), "n2 bridge veth2", "vanished", "n2", "veth2"),
    "nothing to accuse between nodes": (2, NODE, without(), "n2 underlay eth0", "lost-on-wire", "n2", "eth0"),
    "a rule elsewhere": (1, NODE, hook("forward", "drop"), "n2 bridge veth2", "vanished", "n2", "veth2"),
    "a rule for others": (2, NODE, hook("forward", "ip daddr 10.5.2.9 drop"), "n2 routing cni0", "vanished", "n2", "cni0"),
    "a rule of the other family": (2, NODE, hook("forward", "drop", "ip6"), "n2 routing cni0", "vanished", "n2", "cni0"),
    "a rule at another hook": (2, NODE, hook("input", "drop"), "n2 routing cni0", "vanished", "n2", "cni0"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("node", "space", "change", "lost", "kind", "where", "device"), LOSSES.values(), ids=LOSSES
)
def test_what_lies_before_the_loss_is_accused(
    node: int, space: str, change: Change, lost: str, kind: str, where: str, device: str
) -> None:
    found, _ = verdict(changed(node, space, change), lost)
    assert found is not None
    assert (found.kind, found.node, found.interface) == (kind, where, device), found.cause
    assert "vanishes before" in found.cause


def test_the_sure_one_is_accused_before_the_likely_one() -> None:
    def both(state: SpaceState) -> SpaceState:
        state = hook("prerouting", "ip saddr @bad drop")(state)
        return hook("forward", "ip daddr 10.5.2.2 drop")(state)

    found, others = verdict(changed(2, NODE, both), "n2 routing cni0")
    assert found is not None
    assert "ip daddr 10.5.2.2 drop" in found.cause
    assert [item.kind for item in others] == ["foreign-rule"]


def test_a_rule_of_a_pod_is_found_behind_its_interface() -> None:
    world = changed(2, "d/p22", hook("input", "icmp type echo-request drop"))
    found, _ = verdict(world)
    assert found is not None
    assert (found.kind, found.node, found.space, found.interface) == ("foreign-rule", "n2", "d/p22", "eth0")


def test_a_lost_answer_is_told_as_one() -> None:
    world = changed(1, NODE, hook("forward", "ct state established drop"))
    found, _ = verdict(world, back="n1 routing cni0")
    assert found is not None
    assert (found.kind, found.node) == ("foreign-rule", "n1")
    assert found.cause.startswith("the answer vanishes before")


def test_what_passes_is_no_fault_whatever_rules_there_are() -> None:
    found, others = verdict(changed(2, NODE, hook("forward", "ip saddr @bad drop")), back="")
    assert found is None
    assert [item.kind for item in others] == ["foreign-rule"]


def test_a_loss_before_the_damage_in_the_tables_comes_first() -> None:
    world = changed(2, NODE, also_sysctl("net.ipv4.ip_forward", "0"))
    there, back = go(world)
    found = watched(
        world,
        judge(world, walks(world, there, back)),
        seen(there, "n1 routing flannel.1"),
        None,
        answered=False,
    )
    assert found[0] is not None
    assert (found[0].kind, found[0].node) == ("vanished", "n1")
    assert [item.kind for item in found[1]] == ["forwarding-off"]
    found = watched(world, judge(world, walks(world, there, back)), seen(there), None, answered=False)
    assert found[0] is not None
    assert found[0].kind == "forwarding-off"


def lost_on_wire() -> tuple[Fault, Matched]:
    world = sound()
    there, _ = go(world)
    matched = seen(there, "n2 underlay eth0")
    found, _ = verdict(world, "n2 underlay eth0")
    assert found is not None
    return found, matched


@pytest.mark.parametrize(("echoed", "kind"), [(True, "underlay-filtered"), (False, "node-cut-off")])
def test_an_echo_between_nodes_tells_a_filter_from_a_cut(echoed: bool, kind: str) -> None:
    fault, matched = lost_on_wire()
    found = on_wire(fault, matched.hops[fault.hop], echoed=echoed)
    assert (found.kind, found.node, found.hop) == (kind, "n2", fault.hop)
    assert "192.0.2.1 to 192.0.2.2" in found.cause


def test_a_large_packet_that_vanishes_is_laid_to_the_link_that_takes_less() -> None:
    world = changed(2, NODE, link("eth0", mtu=1400))
    there, back = go(world)
    found = judge(world, walks(world, there, back))
    assert [item.kind for item in found[1]] == ["mtu-too-small"]
    fault, others = too_big(world, found, seen(there, "n2 underlay eth0"), None, size=1450)
    assert fault is not None
    assert (fault.kind, fault.node, fault.component, fault.interface) == (
        "mtu-too-small",
        "n2",
        "underlay",
        "eth0",
    )
    assert "1450 bytes vanishes" in fault.cause
    assert "eth0 takes 1400 bytes" in fault.cause
    assert others == ()
    assert too_big(world, found, seen(there), seen(back), size=1450) == found


SHOP = Quiet({"pod": Turn("d/web:http", (packed("10.5.2.2"), 80))})


def shop(there: Path, flow: Flow | None) -> Matched:
    """Seen everywhere, with other addresses from the translation on."""
    matched = seen(there)
    turned = next(index for index, hop in enumerate(there.hops) if hop.component == "service")
    hops = [
        msgspec.structs.replace(hop, sight=msgspec.structs.replace(hop.sight, flow=flow))
        if index > turned and hop.sight is not None and flow is not None
        else hop
        for index, hop in enumerate(matched.hops)
    ]
    return Matched(tuple(hops), None, 1)


@pytest.mark.parametrize(
    ("target", "kind", "component"),
    [
        (None, "", ""),
        (VIP, "service-not-translated", "service"),
        (packed("10.5.1.3"), "translated-wrongly", "routing"),
    ],
)
def test_a_translation_is_compared_with_what_leaves(target: bytes | None, kind: str, component: str) -> None:
    world = sound()
    flow = Flow(
        protocol=TCP, source=packed("10.5.1.2"), destination=VIP, source_port=40000, destination_port=80
    )
    there = walk(world, SHOP, "n1", "d/p12", flow)
    back = answer(world, SHOP, there)
    other = msgspec.structs.replace(flow, destination=target) if target is not None else None
    found, _ = watched(
        world,
        judge(world, walks(world, there, back)),
        shop(there, other),
        seen(back),
        answered=True,
        reply="answer",
    )
    assert (found.kind if found is not None else "") == kind
    assert (found.component if found is not None else "") == component


def test_masquerading_is_compared_with_what_leaves() -> None:
    world = sound()
    there, back = go(world, "192.0.2.2")
    given = judge(world, walks(world, there, back))
    right = Matched(
        tuple(
            msgspec.structs.replace(hop, sight=msgspec.structs.replace(hop.sight, flow=there.flow))
            if hop.sight is not None and hop.interface == "eth0" and not hop.space
            else hop
            for hop in seen(there).hops
        ),
        None,
        1,
    )
    assert watched(world, given, right, seen(back), answered=True, reply="answer")[0] is None
    own = there.hops[0].flow
    wrong = Matched(
        tuple(
            msgspec.structs.replace(hop, sight=msgspec.structs.replace(hop.sight, flow=own))
            if hop.sight is not None
            else hop
            for hop in right.hops
        ),
        None,
        1,
    )
    found, _ = watched(world, given, wrong, seen(back), answered=True, reply="answer")
    assert found is not None
    assert (found.kind, found.node, found.interface) == ("masquerade-missing", "n1", "eth0")


def test_an_answer_to_what_a_policy_denies_says_that_nobody_enforces_it() -> None:
    world = sound()
    there, _ = go(world, ways=Quiet(denied="n2"))
    given = judge(world, Walks(there, None, there, None))
    denied = watched(world, given, seen(there), None, answered=False)
    assert denied[0] is not None
    assert denied[0].kind == "policy-denied"
    passed = watched(world, given, seen(there), None, answered=True, reply="answer")
    assert passed[0] is not None
    assert passed[0].kind == "policy-not-enforced"
    told = watched(world, given, seen(there), None, answered=True, reply="error")
    assert told[0] is not None
    assert told[0].kind == "policy-denied"


def test_a_refusal_without_a_reason_in_the_tables_is_a_fault() -> None:
    world = changed(2, NODE, hook("forward", "ip saddr @bad reject"))
    there, back = go(world)
    given = judge(world, walks(world, there, back))
    found, _ = watched(
        world, given, seen(there, "n2 routing cni0"), seen(back, "-"), answered=True, reply="error"
    )
    assert found is not None
    assert (found.kind, found.node) == ("foreign-rule", "n2")
    found, _ = watched(
        sound(), (None, ()), seen(there, "n2 routing cni0"), seen(back, "-"), answered=True, reply="reset"
    )
    assert found is not None
    assert found.kind == "refused"


DOUBTS = {
    "two with one address": (
        "d/p12", also(addresses=(AddressState("eth0", packed("10.5.1.3"), 24),)), "address-duplicate",
    ),
    "somebody who answers for another": (
        "d/p12",
        lambda state: also_sysctl("net.ipv4.ip_forward", "1")(
            also_sysctl("net/ipv4/conf/eth0/proxy_arp", "1")(also(routes=(to("10.5.1.3/32", "lo"),))(state))
        ),
        "proxy-arp",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("space", "change", "kind"), DOUBTS.values(), ids=DOUBTS)
def test_who_answers_for_an_address_of_another_is_named(space: str, change: Change, kind: str) -> None:
    world = changed(1, space, change)
    if kind == "proxy-arp":
        entry = NeighbourState("cni0", packed("10.5.1.3"), mac(18), "stale")
        part = world.nodes["n1"]
        state = also(neighbours=(entry,))(part.actual[NODE])
        part = msgspec.structs.replace(part, actual={**part.actual, NODE: state})
        world = msgspec.structs.replace(world, nodes={**world.nodes, "n1": part})
    flow = Flow(protocol=1, source=packed("10.5.1.1"), destination=packed("10.5.1.3"))
    there = walk(world, Quiet(), "n1", NODE, flow)
    found, _ = judge(world, Walks(there, None, there, None))
    assert found is not None
    assert (found.kind, found.node, found.component) == (kind, "n1", "neighbour")


def test_passages_are_in_the_kernels_order() -> None:
    there, _ = go(sound())
    found = [(item.node, item.hook, item.iif, item.oif) for item in passages(sound(), there.hops)]
    wanted = [
        ("n1", "forward", "cni0", "flannel.1"),
        ("n1", "output", "", "eth0"),
        ("n2", "xdp", "eth0", ""),
        ("n2", "ingress", "eth0", ""),
        ("n2", "prerouting", "eth0", ""),
        ("n2", "input", "eth0", ""),
        ("n2", "prerouting", "flannel.1", ""),
        ("n2", "forward", "flannel.1", "cni0"),
        ("n2", "bridge output", "", "veth2"),
        ("n2", "egress", "", "veth2"),
        ("n2", "input", "eth0", ""),
    ]
    places = []
    for item in wanted:
        places.append(found.index(item, places[-1] + 1 if places else 0))
    assert places == sorted(places)
    assert not between(passages(sound(), there.hops), 3, 3)
    assert suspects(sound(), there.hops, answer=False) == []
