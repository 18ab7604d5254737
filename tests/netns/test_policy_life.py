"""Policies that change under a flood of packets none of which they allow: not one passes while the kernel changes over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pycni.model.kube import Meta
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    NetworkPolicy,
    Peer,
    Selector,
    Tier,
)
from tests.lab.policy_flood import Ear, Flood
from tests.netns.evade_world import FROM_C, POLICIES, Judged, address, judged, only
from tests.netns.fresh import fresh_spaces

TURNS = {"nftables": 800, "ebpf": 150}


@pytest.fixture(scope="module", params=TURNS)
def world(request: pytest.FixtureRequest) -> Iterator[Judged]:
    with fresh_spaces() as make, judged(make, programs=request.param == "ebpf") as found:
        yield found


def isolated(name: str) -> NetworkPolicy:
    """b hears c only."""
    return NetworkPolicy(meta=Meta(name=name, namespace="ns"), pods=only("b"), ingress=(FROM_C,))


def denied(name: str) -> ClusterNetworkPolicy:
    """b hears nobody in the namespace: no NetworkPolicy isolates it."""
    rule = ClusterRule(action=Action.DENY, peers=(Peer(namespaces=Selector()),), ports=None)
    return ClusterNetworkPolicy(
        meta=Meta(name=name), tier=Tier.ADMIN, priority=1, pods=only("b"), ingress=(rule,)
    )


def replaced(world: Judged, kind: str, make) -> None:
    """Another policy that says the same takes the place of the one before, in one change."""
    for turn in range(TURNS["nftables" if world.fast is None else "ebpf"]):
        new, old = make(f"t{turn}"), make(f"t{turn - 1}" if turn else "first")
        world.store.put(kind, new.meta.key, new)
        world.store.delete(kind, old.meta.key)
        world.sync()
    world.store.delete(kind, new.meta.key)


CHANGES = {
    "NetworkPolicy": (NETWORK_POLICY, isolated),
    "ClusterNetworkPolicy": (CLUSTER_NETWORK_POLICY, denied),
}


@pytest.mark.parametrize("change", CHANGES)
def test_nothing_passes_while_policies_change_over(world: Judged, change: str):
    kind, make = CHANGES[change]
    world.store.put(kind, make("first").meta.key, make("first"))
    if kind != NETWORK_POLICY:
        world.store.delete(NETWORK_POLICY, "ns/b")
    world.sync()
    targets = [address(world.b, family) for family in (4, 6)]
    with Ear(world.b.name) as ear:
        with Flood(world.a.name, targets), Flood(world.e.name, targets[:1]):
            replaced(world, kind, make)
        assert ear.heard() == 0
    world.store.put(NETWORK_POLICY, "ns/b", POLICIES["ns/b"])
    world.sync()
