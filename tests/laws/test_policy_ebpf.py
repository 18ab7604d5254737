"""Laws of the maps that judge connections, over random clusters: what the API says is what the packed rows do."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.policy import Direction
from pycni.policy.base import Packet
from pycni.policy.ebpf import evaluate, layout
from pycni.policy.ebpf.compile import Maps
from pycni.policy.ebpf.layout import ALLOW, BLOCKS, DENY, PAIRS, PEERS, PORTS, RULES, SUBJECTS, TABLES
from pycni.reconcile.delta import patched
from pycni.view.policies import PolicyView
from pycni.view.policy_oracle import verdict
from pycni.view.policy_stages import ABSENT, RowDiff
from tests.laws.policy_worlds import NODES, make_world
from tests.laws.test_policy_nft import random_steps

SEEDS = st.integers(0, 1 << 32)


class Node:
    """A node's view and its maps, without a kernel."""

    def __init__(self, name, **room):
        self.view = PolicyView(name)
        self.maps = Maps(room)

    def update(self, objects, changed=None):
        rows = self.view.update(objects, changed)
        if changed is None:
            tables = self.view.tables
            rows = [RowDiff(name, key, ABSENT, row) for name in tables for key, row in tables[name].items()]
        self.maps.update(rows, full=changed is None)


def fresh(name, objects, **room):
    node = Node(name, **room)
    node.update(objects)
    return node


def asked(ask, name):
    return Packet(ask.source, ask.destination, ask.protocol, ask.port, local=ask.node == name)


@settings(max_examples=200, deadline=None)
@given(SEEDS)
def test_the_maps_do_what_the_api_says_and_name_who_denies(seed):
    """All nodes together: each judges its own pods."""
    world = make_world(seed, connections=60)
    nodes = {name: fresh(name, world.snapshot()) for name in NODES}
    for ask in world.connections:
        told = verdict(world, *ask)
        found = [node.maps.decide(asked(ask, name)) for name, node in nodes.items()]
        assert all(one.allowed for one in found) is told.allowed, f"{told}\n{ask}"
        for one in found:
            if not one.allowed:
                reason = told.egress if one.direction == "egress" else told.ingress
                assert (reason.allowed, one.denied_by) == (False, reason.policies), told


def rightly(node, world, ask, found):
    """Whether what programs do on one node is what the API says, as far as they say anything."""
    if found.action == ALLOW:
        return node.maps.decide(asked(ask, "n1")).allowed
    return found.action != DENY or not verdict(world, *ask).allowed


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_programs_are_right_or_leave_it_to_the_stack(seed):
    world = make_world(seed, connections=40)
    node = fresh("n1", world.snapshot())
    for ask in world.connections:
        assert rightly(node, world, ask, evaluate.judge(node.maps.tables, asked(ask, "n1")))


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.sampled_from((PAIRS, BLOCKS, PORTS)), st.integers(0, 6))
def test_what_does_not_fit_is_left_and_nothing_is_judged_wrongly(seed, name, room):
    world = make_world(seed, connections=30)
    node, right = fresh("n1", world.snapshot(), **{name: room}), fresh("n1", world.snapshot()).maps
    assert len(node.maps.tables[name]) <= room
    assert bool(node.maps.problems()) is (len(right.tables[name]) > room)
    for ask in world.connections:
        packet = asked(ask, "n1")
        decision = node.maps.decide(packet)
        if decision is None:
            assert node.maps.problems()
            assert evaluate.judge(node.maps.tables, packet).action not in {ALLOW, DENY}
        else:
            assert decision.allowed or not verdict(world, *ask).allowed
            assert decision == right.decide(packet)


def consistent(tables):
    """Everything that rows lead to is there, and nothing else."""
    subjects = [layout.SubjectRow.unpack(raw) for raw in tables[SUBJECTS].values()]
    peers = [layout.PeerRules.unpack(raw) for name in (PAIRS, BLOCKS) for raw in tables[name].values()]
    blocks = {tier.blocks for row in subjects for tier in row.tiers} - {layout.NONE}
    assert {layout.unpack_block_key(key)[0] for key in tables[BLOCKS]} == blocks
    pairs = {tier.pairs for row in subjects for tier in row.tiers} - {layout.NONE}
    assert {key[:8] for key in tables[PAIRS]} <= pairs
    assert {key[8:] for key in tables[PAIRS]} <= {layout.NONE, *tables[PEERS].values()}
    assert {row.ports for row in peers} - {layout.NONE} == {key[4:12] for key in tables[PORTS]}
    assert layout.PeerRules().pack() not in tables[PAIRS].values()
    telling = {key[4:12] for key, raw in tables[BLOCKS].items() if raw != layout.PeerRules().pack()}
    assert telling == {key[4:12] for key in tables[BLOCKS]}
    said = [row.rest for row in peers] + [layout.Said.unpack(raw) for raw in tables[PORTS].values()]
    rules = {item.rule for item in said} | {row.isolated for row in subjects}
    assert rules - {layout.NONE} <= tables[RULES].keys()


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_change_leads_to_what_a_fresh_start_gives(seed):
    store, tracker, change = random_steps(seed)
    node = Node("n1")
    node.update(store.current(), tracker.take())
    mirror = {name: {} for name in TABLES}
    for _ in change():
        node.update(store.current(), tracker.take())
        changes = node.maps.take()
        assert [name for name, _ in changes] == [name for name in TABLES if name in dict(changes)]
        for name, delta in changes:
            mirror[name] = patched(mirror[name], delta)
            assert not delta.change or name in {PEERS, SUBJECTS}
        other = fresh("n1", store.snapshot())
        assert node.maps.tables == other.maps.tables == mirror
        assert node.maps.rule_names() == other.maps.rule_names()
        assert node.maps.rule_names().keys() == mirror[RULES].keys()
        consistent(mirror)
    node.update(store.snapshot())
    assert node.maps.take() == [] == node.maps.against(mirror)


@settings(max_examples=30, deadline=None)
@given(SEEDS, st.sampled_from((PAIRS, BLOCKS, PORTS)), st.integers(0, 6))
def test_changes_in_full_maps_are_never_judged_wrongly(seed, name, room):
    store, tracker, change = random_steps(seed, steps=8)
    world = make_world(seed, connections=20)
    node = Node("n1", **{name: room})
    node.update(store.current(), tracker.take())
    for _ in change():
        node.update(store.current(), tracker.take())
        assert len(node.maps.tables[name]) <= room
        right = fresh("n1", store.snapshot()).maps
        for ask in world.connections:
            decision = node.maps.decide(asked(ask, "n1"))
            assert decision is None or decision == right.decide(asked(ask, "n1"))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_rows_say_the_same_unpacked_and_packed_again(seed):
    tables = fresh("n1", make_world(seed).snapshot()).maps.tables
    sizes = {name: (key, value) for name, _, key, value, _, _ in layout.MAPS}
    for name, table in tables.items():
        assert all((len(key), len(value)) == sizes[name] for key, value in table.items())
    for raw, value in tables[SUBJECTS].items():
        assert layout.subject_key(*layout.unpack_subject_key(raw)) == raw
        assert layout.SubjectRow.unpack(value).pack() == value
    for raw, value in tables[BLOCKS].items():
        assert layout.block_key(*layout.unpack_block_key(raw)) == raw
        assert layout.PeerRules.unpack(value).pack() == value
    for raw, value in tables[PORTS].items():
        assert layout.port_key(*layout.unpack_port_key(raw)) == raw
        assert layout.Said.unpack(value).pack() == value
    for value in tables[PAIRS].values():
        assert layout.PeerRules.unpack(value).pack() == value
    for raw in tables[PEERS]:
        assert layout.pack_address(layout.unpack_address(raw)) == raw


def test_programs_are_certain_of_enough():
    """Many connections are allowed and many denied by programs, and some left for each reason there is."""
    found, why = Counter(), Counter()
    for seed in range(80):
        world = make_world(seed, connections=20)
        node = fresh("n1", world.snapshot())
        for ask in world.connections:
            told = evaluate.judge(node.maps.tables, asked(ask, "n1"))
            found[told.action, told.direction] += 1
            why[told.why] += 1
    assert (
        min(found[key] for key in ((ALLOW, None), (DENY, Direction.EGRESS), (DENY, Direction.INGRESS))) > 40
    ), found
    assert min(why[reason] for reason in ("own", "unknown", "itself")) > 0, why
