"""Laws of the maps that judge connections, over random clusters: what the API says is what the packed rows do."""

from __future__ import annotations

from collections import Counter
from random import Random

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


def decided(nodes, ask):
    """What all nodes together do to a connection: each judges its own pods."""
    return all(node.maps.decide(asked(ask, name)).allowed for name, node in nodes.items())


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_the_maps_do_what_the_api_says(seed):
    world = make_world(seed, connections=40)
    nodes = {name: fresh(name, world.snapshot()) for name in NODES}
    for ask in world.connections:
        told = verdict(world, *ask)
        assert decided(nodes, ask) is told.allowed, f"{told}\n{ask}"
