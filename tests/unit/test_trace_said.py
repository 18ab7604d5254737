"""What kernels said of a packet: put to its hops, made into causes, many probes in one table."""

from __future__ import annotations

import msgspec
import pytest

from pycni.trace.frames import Dissected
from pycni.trace.match import Seen
from pycni.trace.model import TCP, UDP, Fault, Flow, Hop, Note, Trace
from pycni.trace.notes import attach, limits
from pycni.trace.report import as_json, as_text
from pycni.trace.said import cause, decisive, settle
from pycni.trace.series import Run, series

from .test_trace_frames import flow

SENT = flow(4, TCP)
BEHIND = msgspec.structs.replace(SENT, destination=bytes((10, 5, 9, 9)), destination_port=8080)
AROUND = Flow(
    protocol=UDP,
    source=bytes((192, 0, 2, 1)),
    destination=bytes((192, 0, 2, 2)),
    source_port=5,
    destination_port=8472,
)


def hop(component: str, node: str, what: Flow = SENT, *, space: str = "", interface: str = "") -> Hop:
    action = {"service": "translated", "socket": "sent"}.get(component, "forwarded")
    around = AROUND if component in {"underlay", "overlay"} else None
    return Hop(
        node=node,
        space=space,
        component=component,
        action=action,
        interface=interface,
        flow=what,
        outer=around,
    )


THERE = (
    hop("socket", "n1", space="a/x"),
    hop("bridge", "n1", interface="veth1"),
    hop("service", "n1", BEHIND),
    hop("routing", "n1", BEHIND, interface="v0"),
    hop("underlay", "n1", BEHIND, interface="eth0"),
    hop("overlay", "n2", BEHIND, interface="v0"),
    hop("policy", "n2", BEHIND),
    hop("routing", "n2", BEHIND, interface="cni0"),
    hop("socket", "n2", BEHIND, space="b/y"),
)
BACK = (hop("socket", "n2", BEHIND.back, space="b/y"), hop("routing", "n2", BEHIND.back, interface="v0"))


def note(
    kind: str,
    node: str,
    what: Flow | None = BEHIND,
    *,
    time_ns: int = 0,
    space: str = "",
    detail: str = "",
    place: str = "",
    verdict: str = "",
    interface: str = "",
    outgoing: bool = False,
) -> Note:
    return Note(
        kind=kind, node=node, flow=what, time_ns=time_ns, space=space, detail=detail, place=place, verdict=verdict,
        interface=interface, outgoing=outgoing,
    )  # fmt: skip


PLACES = {
    "a rule of the proxy": (note("rule", "n1", SENT, place="inet pycni_proxy x"), 2),
    "a rule of policies": (note("rule", "n2", place="inet pycni_policy x", verdict="drop"), 6),
    "a rule on the way out": (note("rule", "n1", place="ip foe c", interface="v0", outgoing=True), 3),
    "a rule on arrival": (note("rule", "n1", SENT, place="ip foe c", interface="cni0"), 1),
    "a rule around the packet": (note("rule", "n1", AROUND, place="ip foe c", interface="eth0"), 4),
    "a drop by an interface": (note("drop", "n2", interface="cni0", verdict="x"), 7),
    "a drop nobody knows where": (note("drop", "n2", interface="gone", verdict="x"), 7),
    "a drop in a pod": (note("drop", "n2", space="b/y", verdict="no_socket"), 8),
    "a denial of a fast path": (note("drop", "n2", verdict="policy"), 6),
    "a connection": (note("connection", "n1", SENT), 2),
    "of the answer": (note("drop", "n2", BEHIND.back, interface="v0", verdict="x"), 10),
}


@pytest.mark.parametrize(("said", "index"), PLACES.values(), ids=PLACES)
def test_a_note_is_put_to_its_hop(said: Note, index: int) -> None:
    found = attach(THERE, BACK, [said, said])
    hops = (*found.there, *found.back)
    assert [at for at, item in enumerate(hops) if item.notes] == [index]
    assert hops[index].notes == (said,), "what is said twice is said once"
    assert found.rest == ()


def test_what_is_about_no_hop_is_kept_and_limits_are_told_once() -> None:
    stray = note("drop", "n9", verdict="x")
    cannot = [note("limit", name, None, detail="no reasons") for name in ("n1", "n2", "n1")]
    found = attach(THERE, BACK, [stray, *cannot])
    assert found.rest == (stray,)
    assert limits(cannot) == ("n1, n2: no reasons",)


LOG = note(
    "rule", "n2", place="inet pycni_policy d", detail="log pycni ingress NetworkPolicy a/p +1: ", time_ns=1
)
DENIED = note("rule", "n2", place="inet pycni_policy d", detail="drop", verdict="drop", time_ns=2)
FOE = note("rule", "n2", place="ip foe c", detail="tcp dport 8080 drop", verdict="drop", interface="cni0")
HOOK = note("drop", "n2", verdict="netfilter_drop", detail="in nft_do_chain", interface="cni0")
CAUSES = {
    "a rule of somebody else": ([FOE, HOOK], "foreign-rule", "rule of ip foe c: tcp dport 8080 drop"),
    "a policy": ([LOG, DENIED, HOOK], "policy-denied", "ingress is denied by NetworkPolicy a/p, rule of"),
    "a policy without rules": (
        [
            note("drop", "n2", verdict="policy", detail="ingress is denied by NetworkPolicy a/p"),
            note("drop", "n2", verdict="tc_ingress", interface="v0", time_ns=5),
        ],
        "policy-denied",
        "dropped: ingress is denied by NetworkPolicy a/p",
    ),
    "no rule": ([HOOK], "foreign-rule", "a firewall hook drops it (netfilter_drop, in nft_do_chain)"),
    "a checksum": (
        [note("drop", "n2", verdict="tcp_csum")],
        "checksum-wrong",
        "its TCP checksum is wrong (tcp_csum)",
    ),
    "a reason nobody knows": ([note("drop", "n2", verdict="new_one")], "kernel-drop", "reason new_one"),
    "no socket": (
        [note("drop", "n2", space="b/y", verdict="no_socket")],
        "nobody-listens",
        "no socket takes it",
    ),
}


@pytest.mark.parametrize(("said", "kind", "text"), CAUSES.values(), ids=CAUSES)
def test_what_ended_a_packet_is_its_cause(said: list[Note], kind: str, text: str) -> None:
    found = attach(THERE, BACK, said)
    fault = cause(found.there, found.back)
    assert fault is not None
    assert (fault.kind, fault.node) == (kind, "n2")
    assert text in fault.cause
    assert fault.cause.startswith("the packet is dropped: ")
    assert fault.hop in {6, 7, 8}, fault


def test_a_drop_by_no_rule_on_a_node_without_room_is_connection_tracking() -> None:
    found = attach(THERE, BACK, [HOOK])
    full = cause(found.there, found.back, full=True)
    assert full is not None
    assert full.kind == "conntrack-full"
    found = attach(THERE, BACK, [FOE, HOOK])
    ruled = cause(found.there, found.back, full=True)
    assert ruled is not None
    assert ruled.kind == "foreign-rule"


def test_what_lets_a_packet_pass_is_no_cause() -> None:
    passed = note("rule", "n2", place="ip foe c", detail="counter", verdict="continue")
    copied = note("drop", "n2", verdict="otherhost")
    assert not decisive(passed)
    assert not decisive(copied)
    found = attach(THERE, BACK, [passed, copied])
    assert cause(found.there, found.back) is None


GUESS = Fault(kind="vanished", node="n2", component="routing", cause="it vanishes", hop=7)
KNOWN = Fault(kind="forwarding-off", node="n2", component="routing", cause="forwarding is off", hop=7)
SAID = Fault(kind="checksum", node="n2", component="routing", cause="the packet is dropped: bad", hop=7)
PROGRAM = msgspec.structs.replace(GUESS, kind="foreign-program", cause="a program")
VAGUE = msgspec.structs.replace(SAID, kind="kernel-drop", cause="the packet is dropped: reason x")
EARLY = msgspec.structs.replace(SAID, node="n1", hop=3)


@pytest.mark.parametrize(
    ("verdict", "said", "answered", "kind", "text"),
    [
        (GUESS, SAID, False, "checksum", "the packet is dropped: bad"),
        (None, SAID, False, "checksum", "the packet is dropped: bad"),
        (KNOWN, SAID, False, "forwarding-off", "forwarding is off; the kernel says: bad"),
        (KNOWN, EARLY, False, "checksum", "the packet is dropped: bad"),
        (PROGRAM, VAGUE, False, "foreign-program", "a program; the kernel says: reason x"),
        (GUESS, VAGUE, False, "kernel-drop", "the packet is dropped: reason x"),
        (GUESS, SAID, True, "vanished", "it vanishes"),
        (GUESS, None, False, "vanished", "it vanishes"),
    ],
    ids=[
        "a guess",
        "nothing",
        "adds to what is known",
        "before",
        "no name for who is accused",
        "no name",
        "answered all the same",
        "nothing said",
    ],
)
def test_a_kernels_word_outweighs_what_is_likely(
    verdict: Fault | None, said: Fault | None, kind: str, text: str, *, answered: bool
) -> None:
    found = settle(verdict, said, answered=answered)
    assert found is not None
    assert (found.kind, found.cause) == (kind, text)


def test_people_and_programs_read_what_was_said() -> None:
    found = attach(THERE, BACK, [FOE, HOOK, LOG])
    whole = Trace(
        ok=False, question="x", hops=found.there, back=found.back, fault=cause(found.there, found.back)
    )
    shown = as_text(whole)
    assert "rule  ip foe c: tcp dport 8080 drop" in shown
    assert "drop  netfilter_drop in nft_do_chain" in shown
    assert "log pycni" not in shown, "rules of ours are shown where they decide"
    told = as_json(whole)["hops"]
    assert [item["verdict"] for item in told[7]["notes"]] == ["drop", "netfilter_drop"]
    assert told[6]["notes"][0]["detail"] == LOG.detail


def seen(node: str, interface: str, time_ns: int, kind: str = "probe", *, out: bool = True) -> Seen:
    return Seen(node, "", interface, out, time_ns, 60, Dissected(SENT, kind, 0))


def test_many_probes_become_one_table() -> None:
    hops = (hop("routing", "n1", interface="v0"), hop("routing", "n2", interface="cni0"))

    def one(trip: float | None, gap: int, by: str, end: int) -> Run:
        frames = (seen("n1", "v0", 1_000_000), seen("n1", by, 1_000_100), seen("n2", "cni0", 1_000_000 + gap))
        return Run(trip, (bytes((10, 0, 0, end)), 80), frames)

    found = series(
        [one(30.0, 20_000, "e0", 1), one(None, 10_000, "e1", 2), one(10.0, 60_000, "e0", 1)], 1, hops, ()
    )
    assert (found.sent, found.answered, found.shown) == (3, 2, 1)
    assert found.round_trip_us == (10.0, 20.0, 30.0)
    assert found.hops_us == (0.0, 20.0)
    assert found.endpoints == (("10.0.0.1:80", 2), ("10.0.0.2:80", 1))
    assert found.ways == (("n1 e0", 2), ("n1 e1", 1))
    text = as_text(Trace(ok=False, question="x", hops=hops, series=found))
    assert "3 sent, 2 answered, 1 not (33 %)" in text
    assert "median 20 us" in text
    assert "number 2, the first that was not answered" in text


def test_of_none_that_was_answered_there_are_no_round_trips() -> None:
    found = series([Run(None, None, ())], 0, (), ())
    assert (found.round_trip_us, found.endpoints, found.ways, found.hops_us) == (None, (), (), ())
