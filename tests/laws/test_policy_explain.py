"""Laws of ``explain`` over random clusters: it says what the API says, and all planes of all nodes together say so too."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.family import show
from pycni.policy import ends, explain
from pycni.policy.base import Decision
from pycni.policy.ebpf.compile import Maps
from pycni.policy.ends import End, Way
from pycni.view.policy_oracle import verdict
from pycni.view.policy_stages import ABSENT, RowDiff
from tests.laws.policy_worlds import NODES, make_world
from tests.laws.test_policy_nft import COMPILER, fresh

SEEDS = st.integers(0, 1 << 32)


def way_of(world, ask):
    """The connection as ``ends`` understands it: from addresses alone, but for what a node sends itself."""
    if ask.node:
        cluster = ends._Cluster(world)
        return Way(End(ask.source, sender=ask.node), cluster.at(ask.destination), ask.protocol, ask.port)
    (found,) = ends.ways(
        world, show(ask.source), show(ask.destination), str(ask.port or ""), str(ask.protocol)
    )
    return found


def explained(world, nodes, ask):
    way = way_of(world, ask)
    return [explain.explain(world, way, name, deciders(*planes)) for name, planes in nodes.items()]


def deciders(node, maps):
    return {"compiled": lambda packet: COMPILER.decide(node.ledger.tables, packet), "ebpf": maps.decide}


def both(name, snapshot):
    """What the two planes of a node have compiled."""
    node, maps = fresh(name, snapshot), Maps()
    tables = node.view.tables
    rows = [RowDiff(table, key, ABSENT, row) for table in tables for key, row in tables[table].items()]
    maps.update(rows, full=True)
    return node, maps


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_explain_says_what_the_api_says_and_finds_no_difference(seed):
    world = make_world(seed, connections=30)
    nodes = {name: both(name, world.snapshot()) for name in NODES}
    for ask in world.connections:
        told = verdict(world, *ask)
        answers = explained(world, nodes, ask)
        assert {one.allowed for one in answers} == {told.allowed}
        assert [one.differences for one in answers] == [()] * 3, f"{told}\n{ask}"
        assert {len(one.checks) for one in answers if one.judges} <= {2}
        assert all(check.allowed for one in answers for check in one.checks) is told.allowed
        judged = sorted(side for one in answers for side in one.judges)
        assert len(judged) == len(set(judged))
        for side, reason in ((answers[0].egress, told.egress), (answers[0].ingress, told.ingress)):
            assert (side.allowed, side.policies, side.rule) == (reason.allowed, reason.policies, reason.rule)
            assert side.why in str(reason)
            if not reason.allowed:
                assert side.direction in judged


def test_a_plane_that_says_otherwise_is_named():
    """Whatever the API says, a plane that says the contrary, or denies for another reason, is a difference."""
    found = Counter()
    for seed in range(30):
        world = make_world(seed, connections=15)
        nodes = {name: fresh(name, world.snapshot()) for name in NODES}
        for ask in world.connections:
            way = way_of(world, ask)
            for name, node in nodes.items():
                right = COMPILER.decide(node.ledger.tables, explain.packet_of(way, name))
                wrong = (
                    Decision(True) if not right.allowed else Decision(False, ("NetworkPolicy z/z",), "egress")
                )
                other = right._replace(denied_by=("NetworkPolicy z/z",))
                liars = {"wrong": lambda _, said=wrong: said, "other": lambda _, said=other: said}
                told = explain.explain(world, way, name, liars)
                if not told.judges:
                    assert not told.checks
                    continue
                found[right.allowed] += 1
                assert told.differences[0].startswith("wrong: ")
                assert len(told.differences) == (1 if right.allowed else 2)
    assert min(found[True], found[False]) > 20, found
