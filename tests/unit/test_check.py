"""What a check tries, what it makes of answers, and how it tells: without any network."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from pycni.check import cause, judge, model, objects, peer, plan, report
from pycni.check.model import Answer, Case, Expect, Failure, Host, Outcome, Result, Scene, Site, Task
from pycni.model.family import Family
from pycni.trace.model import Fault, Flow, Hop, Trace

FLOW = Flow(protocol=6, source=bytes(4), destination=bytes(4))


def scene(nodes: int, **site: Any) -> Scene:
    hosts = tuple(
        Host(name=f"n{index}", kind=model.NODE, node=f"n{index}", addresses={Family.V4: f"192.0.2.{index}"})
        for index in range(1, nodes + 1)
    )
    made = Site(name="made up", nodes=hosts, families=(Family.V4,), **site)
    pods = {
        name: Host(name=name, kind=model.POD, node=node, addresses={Family.V4: f"10.0.0.{number}"})
        for number, (name, node) in enumerate(objects.pods(made).items(), 1)
    }
    services = {
        name: {"clusterIPs": [f"10.96.0.{number}"], "ports": [{"protocol": "TCP", "nodePort": 30000}]}
        for number, name in enumerate(("all", "own", "sticky"), 1)
    }
    return Scene(site=made, pods=pods, services={**services, "headless": {"clusterIPs": ["None"]}})


def case(**expect: Any) -> Case:
    source = Host(name="a", kind=model.POD, node="n1", addresses={Family.V4: "10.0.0.1"})
    task = Task(number=1, kind="tcp", host="10.0.0.2", port=8080)
    return Case(source=source, target="b", family=Family.V4, task=task, expect=Expect(**expect))


def test_with_one_node_what_needs_two_is_skipped_with_the_reason() -> None:
    found = {test.name: test for test in plan.tests(scene(1))}
    assert found["pod-to-pod-other-node"].skipped == plan.NO_OTHER
    assert found["pod-to-pod-same-node"].cases
    assert found["policy-deny-ingress"].cases[0].target == "c"
    assert not found["policy-others-denied"].cases


@pytest.mark.parametrize(("nodes", "pairs"), [(2, 2), (3, 6), (6, 30), (9, 18)])
def test_few_nodes_are_tried_each_with_each_and_many_in_a_ring(nodes: int, pairs: int) -> None:
    found = {test.name: test for test in plan.tests(scene(nodes))}
    cases = found["pod-to-pod-other-node"].cases
    assert len(cases) == pairs * len(plan.REACH)
    assert {item.source.node for item in cases} == {f"n{index}" for index in range(1, nodes + 1)}


def test_every_case_has_a_number_of_its_own() -> None:
    numbers = [item.task.number for test in plan.tests(scene(3)) for item in test.cases]
    assert len(set(numbers)) == len(numbers) > 90


def test_pods_on_the_underlay_are_not_asked_what_they_cannot() -> None:
    found = {test.name: test for test in plan.tests(scene(2, beside_node=True))}
    assert found["pod-to-own-node"].skipped
    assert found["service-from-pod"].skipped
    assert found["service-from-node"].cases
    assert found["pod-to-pod-same-node"].cases


def test_a_denied_case_waits_for_silence_and_one_that_is_let_in_for_an_answer() -> None:
    found = {test.name: test for test in plan.tests(scene(3, patience_s=7.0))}
    denied, allowed = (found[f"policy-{name}-ingress"].cases[0].task for name in ("deny", "allow"))
    assert (denied.silence, denied.wait_s, denied.patience_s) == (True, model.SILENCE_S, 7.0)
    assert (allowed.silence, allowed.wait_s, allowed.patience_s) == (False, model.ANSWER_S, 7.0)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["mtu-*"], ["mtu-same-node", "mtu-other-node"]),
        (["hairpin"], ["service-hairpin"]),
        (["bulk-other-node", "dns"], ["bulk-other-node", "dns-service", "dns-headless"]),
        (["nothing"], []),
    ],
    ids=str,
)
def test_tests_are_chosen_by_name(patterns: list[str], names: list[str]) -> None:
    assert [test.name for test in plan.chosen(plan.tests(plan.sketch()), patterns)] == names


def test_long_names_of_nodes_do_not_become_labels() -> None:
    site = scene(2).site
    long = msgspec.structs.replace(site.nodes[1], name="ip-10-0-0-1." + "x" * 60)
    names = objects.far(msgspec.structs.replace(site, nodes=(site.nodes[0], long)))
    assert names == ["far-2"]


JUDGED = {
    "answered": (case(who=("b",)), Answer(number=1, who=("b",)), ""),
    "silent": (case(), Answer(number=1, why="no answer within 4 s"), "no answer within 4 s"),
    "nobody told": (case(), None, "a did not tell what came of it"),
    "denied and silent": (case(denied=True), Answer(number=1, why="no answer"), ""),
    "denied and answered": (case(denied=True), Answer(number=1), "it got through, though policies deny it"),
    "by somebody else": (case(who=("b",)), Answer(number=1, who=("c",)), "answered by c, not by b"),
    "by two": (case(same=True), Answer(number=1, who=("b", "c")), "in spite of session affinity"),
    "not masqueraded": (case(seen=("n1",)), Answer(number=1, seen=("10.0.0.1",)), "not masqueraded"),
    "another address": (case(addresses=("1", "2")), Answer(number=1, who=("2",)), "the name stands for 2, not for 1 2"),
    "the same addresses": (case(addresses=("1", "2")), Answer(number=1, who=("2", "1")), ""),
}  # fmt: skip


@pytest.mark.parametrize(("asked", "answer", "said"), JUDGED.values(), ids=JUDGED)
def test_an_answer_is_right_or_wrong_for_a_reason(asked: Case, answer: Answer | None, said: str) -> None:
    found = judge.judge(asked, answer)
    assert said in found
    assert bool(found) is bool(said)


def trace(fault: Fault | None = None, *suspicions: Fault, hops: tuple[Hop, ...] = ()) -> Trace:
    return Trace(ok=fault is None, question="?", fault=fault, suspicions=suspicions, hops=hops)


FDB = Fault(kind="fdb-missing", node="n1", component="overlay", cause="no entry", command="bridge fdb")
SMALL = Fault(kind="mtu-too-small", node="n2", component="underlay", cause="too small", command="ip link")
DEAD = Fault(kind="agent-dead", node="n2", component="agent", cause="it is dead")
POLICY = Hop(node="n2", space="", component="policy", action="dropped", detail="NetworkPolicy x", flow=FLOW)


@pytest.mark.parametrize(
    ("kind", "found", "said"),
    [
        ("tcp", trace(FDB, DEAD), ("fdb-missing", "n1", "no entry")),
        ("mtu", trace(None, DEAD, SMALL), ("mtu-too-small", "n2", "too small")),
        ("tcp", trace(None, SMALL), ("mtu-too-small", "n2", "too small")),
        ("mtu", trace(None), ("", "", "a small packet gets through: a smaller path MTU may be remembered, for up to ten minutes")),
        ("tcp", None, ("", "", "")),
    ],
    ids=["fault", "size", "suspicion", "nothing", "no trace"],
)  # fmt: skip
def test_the_cause_is_what_the_trace_found(
    kind: str, found: Trace | None, said: tuple[str, str, str]
) -> None:
    asked = msgspec.structs.replace(case(), task=Task(number=1, kind=kind, host="10.0.0.2"))
    failure = cause.explained(asked, "no answer", found)
    assert (failure.kind, failure.node, failure.cause) == said


def test_what_gets_through_in_spite_of_a_policy_is_not_enforced() -> None:
    failure = cause.explained(case(denied=True), "it got through", trace(None, DEAD, hops=(POLICY,)))
    assert failure.cause == "policies deny it at n2: NetworkPolicy x, and its kernel does not; it is dead"


def test_a_trace_asks_for_the_same_packet() -> None:
    asked = case()
    assert cause.question(asked) == ("pycni-check/a", "10.0.0.2:8080", "tcp")
    six = msgspec.structs.replace(asked, task=Task(number=1, kind="udp", host="fd00::2", port=80))
    assert cause.question(six) == ("pycni-check/a", "[fd00::2]:80", "udp")
    ping = msgspec.structs.replace(asked, task=Task(number=1, kind="mtu", host="fd00::2"))
    assert cause.question(ping) == ("pycni-check/a", "fd00::2", "icmp")
    name = msgspec.structs.replace(asked, task=Task(number=1, kind="name", host="all.pycni-check.svc"))
    assert cause.question(name) == ("pycni-check/a", cause.DNS, "udp")
    outside = msgspec.structs.replace(asked, source=Host(name="outside", kind=model.OUTSIDE))
    assert cause.question(outside) is None


def outcome(*results: Result) -> Outcome:
    return Outcome(site="made up", results=results, seconds=1.0)


FAILURES = tuple(
    Failure(case=f"a -> b{number}", reason="no answer", kind="fdb-missing", node="n1", cause="no entry", command="bridge fdb")
    for number in range(9)
)  # fmt: skip


def test_the_report_tells_a_cause_once_and_counts_the_rest() -> None:
    good = Result(name="x", about="it works", status="ok", tried=3, slowest_ms=1.0)
    bad = Result(name="y", about="it does too", status="failed", tried=9, failures=FAILURES)
    gone = Result(name="z", about="it might", status="skipped", note="there is none")
    text = report.as_text(outcome(good, bad, gone), colour=False)
    assert "✓ x  it works (3 tries, slowest 1.0 ms)" in text
    assert "✗ y  9 of 9 FAILED: it does too" in text
    assert "- z  skipped: there is none" in text
    assert text.count("likely: fdb-missing at n1: no entry") == 1
    assert "look further on n1: bridge fdb" in text
    assert "... and 3 more (--json lists all)" in text
    assert text.endswith("made up: 1 tests ok, 1 skipped, 12 tries in 1.0 s: 1 FAILED")
    assert report.as_json(outcome(good, bad, gone))["ok"] is False
    assert report.as_json(outcome(good))["ok"] is True
    assert report.as_json(outcome(gone))["ok"] is False, "nothing was tried"
    assert "\033[32m✓" in report.as_text(outcome(good), colour=True)


def test_answers_fit_into_a_termination_message() -> None:
    answers = [
        {"number": number, "why": "", "who": ["far-node2"], "seen": ["fd00:10:244::2"], "ms": 1.25}
        for number in range(400)
    ]
    text = peer.packed(answers)
    assert len(text) <= 4096
    back = msgspec.json.decode(peer.unpacked(text), type=list[Answer])
    assert [item.number for item in back] == list(range(400))[0:400]
    assert back[3] == Answer(number=3, who=("far-node2",), seen=("fd00:10:244::2",), ms=1.25)
    few = peer.packed(answers[:2])
    assert json.loads(few) == json.loads(peer.unpacked(few))
