"""Laws of network policies in nftables, over random clusters: what the API says is what the compiled tables do."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycni.policy.base import Packet
from pycni.policy.nft import compile as compile_module
from pycni.policy.nft.compile import NftCompiler
from pycni.policy.nft.layout import CHAINS, ID, PORTS, fixed_chains, group_id, row_sets
from pycni.policy.nft.rules import condition, instructions
from pycni.reconcile.ledger import Ledger
from pycni.view import policy_apart, policy_rules
from pycni.view.policies import KINDS, PolicyView
from pycni.view.policy_oracle import Cause, verdict
from pycni.view.policy_stages import ABSENT, GROUPS, TABLES
from tests.laws.policy_worlds import NODES, make_world

SEEDS = st.integers(0, 1 << 32)
COMPILER = NftCompiler()


class Node:
    """A node's view and its compiled tables, without a kernel."""

    def __init__(self, name):
        self.view = PolicyView(name)
        self.ledger = Ledger(COMPILER.tables, COMPILER.shared)
        self.ledger.put(COMPILER.common())

    def update(self, objects, changed=None):
        rows = self.view.update(objects, changed)
        for row in rows:
            if row.before is not ABSENT:
                self.ledger.drop(COMPILER.rows(row.table, row.key, row.before))
        for row in rows:
            if row.after is not ABSENT:
                self.ledger.put(COMPILER.rows(row.table, row.key, row.after))
        return rows


def fresh(name, objects):
    node = Node(name)
    node.update(objects)
    return node


def decided(nodes, ask):
    """What all nodes together do to a connection: each judges its own pods."""
    found = [
        COMPILER.decide(
            node.ledger.tables,
            Packet(ask.source, ask.destination, ask.protocol, ask.port, local=ask.node == name),
        )
        for name, node in nodes.items()
    ]
    return all(one.allowed for one in found)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_the_compiled_tables_do_what_the_api_says(seed):
    world = make_world(seed, connections=40)
    nodes = {name: fresh(name, world.snapshot()) for name in NODES}
    for ask in world.connections:
        told = verdict(world, *ask)
        assert decided(nodes, ask) is told.allowed, f"{told}\n{ask}"


@pytest.fixture
def eager(monkeypatch):
    """Rules are brought together and apart as soon as it is possible."""
    monkeypatch.setattr(policy_apart, "MANY", 0)
    monkeypatch.setattr(policy_rules, "SEVERAL", 0)
    monkeypatch.setattr(compile_module, "MANY", 0)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SEEDS)
def test_rules_by_ports_do_what_the_api_says(eager, seed):
    world = make_world(seed, connections=40)
    nodes = {name: fresh(name, world.snapshot()) for name in NODES}
    for ask in world.connections:
        told = verdict(world, *ask)
        assert decided(nodes, ask) is told.allowed, f"{told}\n{ask}"


@pytest.mark.usefixtures("eager")
def test_rules_by_ports_are_there():
    words = Counter(
        word
        for seed in range(40)
        for rules in fresh("n1", make_world(seed).snapshot()).ledger.tables[CHAINS].values()
        for rule in rules
        for word in ("group-of", "block-of", " group ", " block ", " ports ", " named ")
        if word in rule
    )
    assert min(words.values()) > 5
    assert len(words) == 6


def random_steps(seed, steps=12):
    """A store, a tracker of it, and a generator that changes one to three objects per step."""
    random = Random(seed)
    worlds = [make_world(seed), make_world(seed + 1)]
    store = worlds[0].store()
    tracker = store.track(*KINDS)

    def change():
        for _ in range(steps):
            for _ in range(random.randint(1, 3)):
                kind = random.choice(KINDS)
                keys = sorted({key for world in worlds for key in world.of(kind)})
                if not keys:
                    continue
                key = random.choice(keys)
                found = random.choice(worlds).of(kind).get(key)
                if found is None:
                    store.delete(kind, key)
                else:
                    store.put(kind, key, found)
            yield

    return store, tracker, change


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_change_leads_to_what_a_fresh_start_gives(seed):
    store, tracker, change = random_steps(seed)
    node = Node("n1")
    node.update(store.current(), tracker.take())
    mirror = {name: dict(node.view.tables[name]) for name in TABLES}
    for _ in change():
        for row in node.update(store.current(), tracker.take()):
            assert mirror[row.table].get(row.key, ABSENT) == row.before
            assert row.before != row.after
            if row.after is ABSENT:
                del mirror[row.table][row.key]
            else:
                mirror[row.table][row.key] = row.after
        other = fresh("n1", store.snapshot())
        assert node.view.tables == other.view.tables == mirror
        assert node.ledger.tables == other.ledger.tables
    assert node.update(store.snapshot()) == []


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_what_leads_somewhere_leads_to_what_is_there(seed):
    node = fresh("n1", make_world(seed).snapshot())
    tables = node.ledger.tables
    chains = {**fixed_chains(), **tables[CHAINS]}
    wanted = {
        words[-1]
        for rules in chains.values()
        for rule in rules
        for words in [rule.split()]
        if words[-2:-1] in (["goto"], ["jump"])
    }
    assert wanted <= chains.keys()
    maps = [name for name, spec in row_sets().items() if spec.value == ()]
    assert len(maps) == 4
    assert {chain for name in maps for chain in tables[name].values()} <= chains.keys()
    live = {group_id(name) for name in node.view.tables[GROUPS]}
    assert {group_id(item.group) for item in found_in(tables) if item.group} <= live
    for version, size in ((4, 4), (6, 16)):
        assert {key[size:] for key in tables[f"groups{version}"]} <= live
        mine = [item for item in found_in(tables) if item.version == version]
        places = {bytes.fromhex(item.block) for item in mine if item.block and not item.by_port}
        assert {key[:ID] for key in tables[f"blocks{version}"]} == places
    assert {key[:ID] for key in tables[PORTS]} == {
        bytes.fromhex(item.ports) for item in found_in(tables) if item.ports
    }
    for name in chains:
        assert len(name) < 250
    for rules in chains.values():
        assert all(len(rule.encode()) < 250 and len(instructions(rule)) > 0 for rule in rules)


def found_in(tables):
    """All rules with conditions."""
    return [condition(rule) for rules in tables[CHAINS].values() for rule in rules if rule.startswith("if ")]


def test_the_worlds_ask_enough():
    """Many connections are allowed and many denied, in both directions and for every reason there is."""
    found = Counter()
    for seed in range(60):
        world = make_world(seed, connections=20)
        for ask in world.connections:
            told = verdict(world, *ask)
            found[told.egress.allowed, told.ingress.allowed] += 1
            found.update(reason.cause for reason in (told.egress, told.ingress))
    assert min(found[key] for key in ((True, True), (True, False), (False, True))) > 40, found
    assert min(found[cause] for cause in Cause) > 0, found
