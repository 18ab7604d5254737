"""Laws of the part of a node's policies that one pod gets: it judges the pod as the whole does, and is kept like it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.policy import Direction
from pycni.policy.base import Packet
from pycni.policy.nft.compile import NftCompiler
from pycni.policy.nft.layout import SIDES
from pycni.reconcile.ledger import Ledger
from pycni.view.policy_part import part
from pycni.view.policy_stages import ABSENT, MEMBERS, SECTIONS, SUBJECTS
from tests.laws.policy_worlds import make_world
from tests.laws.test_policy_nft import fresh, random_steps

SEEDS = st.integers(0, 1 << 32)
COMPILER = NftCompiler()


def compiled(rows):
    ledger = Ledger(COMPILER.tables, COMPILER.shared)
    for (table, key), value in rows.items():
        ledger.put(COMPILER.rows(table, key, value))
    return ledger.tables


def pods(node):
    """Addresses of the node's pods that policies judge, pod by pod."""
    found = {}
    for address, _ in node.view.tables[SUBJECTS]:
        found.setdefault(node.view.holder(address), set()).add(address)
    return found.values()


def judged(tables, packet, side):
    """Whether one direction is denied, and by whom."""
    found = COMPILER.decide(tables, packet)
    return (found.denied_by, found.direction) if not found.allowed and found.direction == side else None


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_a_pods_part_judges_it_as_the_whole_does(seed):
    world = make_world(seed, connections=60)
    node = fresh("n1", world.snapshot())
    for addresses in pods(node):
        mine = compiled(part(node.view, addresses).rows)
        for ask in world.connections:
            packet = Packet(ask.source, ask.destination, ask.protocol, ask.port)
            if ask.source in addresses:
                assert judged(mine, packet, "egress") == judged(node.ledger.tables, packet, "egress")
            elif ask.destination in addresses and judged(node.ledger.tables, packet, "egress") is None:
                assert judged(mine, packet, "ingress") == judged(node.ledger.tables, packet, "ingress")


def test_both_directions_are_denied_and_allowed_in_these_worlds():
    seen = Counter()
    for seed in range(60):
        world = make_world(seed, connections=60)
        node = fresh("n1", world.snapshot())
        for addresses in pods(node):
            mine = compiled(part(node.view, addresses).rows)
            for ask in world.connections:
                for side, end in zip(SIDES.values(), (ask.source, ask.destination), strict=True):
                    if end in addresses:
                        packet = Packet(ask.source, ask.destination, ask.protocol, ask.port)
                        seen[side, judged(mine, packet, side) is None] += 1
    assert len(seen) == 4
    assert min(seen.values()) > 20


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_a_part_that_is_kept_is_the_part_taken_anew(seed):
    store, tracker, change = random_steps(seed)
    node = fresh("n1", store.current())
    tracker.take()
    addresses = {address for address, _ in node.view.tables[SUBJECTS]}
    addresses = set(sorted(addresses)[: len(addresses) // 2 + 1])
    held = part(node.view, addresses)
    for _ in change():
        changed = node.update(store.current(), tracker.take())
        if any(held.outdated(row) for row in changed):
            held = part(node.view, addresses)
        else:
            for row in filter(held.takes, changed):
                if row.after is ABSENT:
                    del held.rows[row.table, row.key]
                else:
                    held.rows[row.table, row.key] = row.after
        assert held == part(node.view, addresses)


def test_a_part_has_nothing_of_other_pods_policies():
    sizes = []
    for seed in range(40):
        node = fresh("n1", make_world(seed).snapshot())
        for addresses in pods(node):
            mine = part(node.view, addresses)
            assert {key[0] for table, key in mine.rows if table == SUBJECTS} <= addresses
            named = {
                (policy, direction)
                for address in addresses
                for direction in Direction
                if (subject := node.view.tables[SUBJECTS].get((address, direction))) is not None
                for policy in subject.stages.policies or ()
            }
            assert {key for table, key in mine.rows if table == SECTIONS} == named
            sizes.append(
                (len([1 for table, _ in mine.rows if table == MEMBERS]), len(node.view.tables[MEMBERS]))
            )
    assert sum(own for own, _ in sizes) < sum(whole for _, whole in sizes)
