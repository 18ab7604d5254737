"""etcd frozen, killed, compacted, emptied, without its leader: traffic goes on, nothing is deleted, all recovers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator

import pytest

from .small_fabric import SmallFabric, fabrics, ghost, took, until

shared = fabrics("46 vxlan", "4 host-gw", count=2)


def waits_for_etcd(fabric: SmallFabric) -> bool:
    return all(node.metric("pycni_etcd_connected") == 0 for node in fabric.nodes)


def follows(fabric: SmallFabric) -> bool:
    return all(node.metric("pycni_etcd_connected") == 1 for node in fabric.nodes)


@pytest.fixture
def kept(fabric: SmallFabric) -> Iterator[SmallFabric]:
    """The fabric under traffic: no packet is lost, and afterwards everything is as it was."""
    until(lambda: follows(fabric), seconds=10.0)
    before = [(node.tables(), node.key, fabric.get(node.key)) for node in fabric.nodes]
    with fabric.traffic() as streams:
        yield fabric
        until(lambda: follows(fabric), fabric.nodes[0].said, 10.0)
        time.sleep(0.2)
    assert [(node.tables(), node.key, fabric.get(node.key)) for node in fabric.nodes] == before
    assert not fabric.missing()
    print(streams)


def change(fabric: SmallFabric, number: int) -> float:
    """Put a record and delete it again; seconds until the nodes had it."""
    name, value = ghost(fabric, number)
    fabric.put(name, json.dumps(value))
    seconds = took(
        lambda: all(node.has(f"10.5.{number}.0/24") for node in fabric.nodes), fabric.nodes[0].said, 10.0
    )
    fabric.delete(name)
    until(
        lambda: not any(node.has(f"10.5.{number}.0/24") for node in fabric.nodes), fabric.nodes[0].said, 5.0
    )
    return seconds


def test_etcd_is_killed_and_comes_back_with_its_data(kept: SmallFabric) -> None:
    (member,) = kept.members
    member.kill()
    until(lambda: waits_for_etcd(kept), seconds=5.0)
    time.sleep(1.0)
    for node in kept.nodes:
        assert node.ready(), "the fabric is as it should be, and new pods can be attached"
    kept.restart_etcd()
    seconds = change(kept, 140)
    print(f"a change arrives {seconds:.2f} s after etcd is back")


@pytest.mark.parametrize("shared", ["46 vxlan"], indirect=True)
def test_a_frozen_etcd_is_noticed_and_taken_up_again(kept: SmallFabric) -> None:
    (member,) = kept.members
    member.signal(signal.SIGSTOP)
    try:
        seconds = took(lambda: waits_for_etcd(kept), seconds=9.0)
        assert all(node.ready() for node in kept.nodes)
    finally:
        member.signal(signal.SIGCONT)
    print(f"noticed after {seconds:.1f} s, a change arrives {change(kept, 141):.2f} s after it goes on")


def test_what_was_compacted_while_etcd_was_away_is_seen(kept: SmallFabric) -> None:
    """The agents are frozen instead, as after a long time away; etcd goes on without them."""
    gone, value = ghost(kept, 142)
    kept.put(gone, json.dumps(value))
    until(lambda: all(node.has("10.5.142.0/24") for node in kept.nodes))
    (member,) = kept.members
    member.kill()
    until(lambda: waits_for_etcd(kept), seconds=5.0)
    for node in kept.nodes:
        assert node.agent is not None
        node.agent.send_signal(signal.SIGSTOP)
    try:
        kept.restart_etcd()
        kept.delete(gone)
        come, value = ghost(kept, 143)
        revision = kept.put(come, json.dumps(value))
        kept.call("kv/compaction", revision=revision, physical=True)
    finally:
        for node in kept.nodes:
            assert node.agent is not None
            node.agent.send_signal(signal.SIGCONT)
    for node in kept.nodes:
        until(lambda node=node: node.has("10.5.143.0/24") and not node.has("10.5.142.0/24"), node.said, 8.0)
    kept.delete(come)
    until(lambda: not any(node.has("10.5.143.0/24") for node in kept.nodes), seconds=3.0)


def test_etcd_comes_back_empty_and_everybody_registers_anew(kept: SmallFabric) -> None:
    (member,) = kept.members
    conf, names = dict(kept.netconf), kept.names()
    absent, value = ghost(kept, 144)  # a node that is away at that moment
    kept.put(absent, json.dumps(value))
    until(lambda: all(node.has("10.5.144.0/24") for node in kept.nodes))
    member.kill()
    until(lambda: waits_for_etcd(kept), seconds=5.0)
    kept.restart_etcd(empty=True)
    seconds = took(lambda: kept.names() == names, lambda: f"{kept.names()}\n{kept.nodes[0].said()}", 10.0)
    for node in kept.nodes:
        assert "etcd was replaced" in node.said()
        assert node.has("10.5.144.0/24"), "not forgotten before a time of grace"
    print(f"registered {seconds:.2f} s after etcd is back")
    kept.configure(**conf)
    kept.put(absent, json.dumps(value))
    change(kept, 145)
    kept.delete(absent)
    until(lambda: not any(node.has("10.5.144.0/24") for node in kept.nodes), kept.nodes[0].said, 3.0)


def test_an_agent_that_starts_before_an_emptied_etcd_was_filled_again_deletes_nothing(
    kept: SmallFabric,
) -> None:
    (member,) = kept.members
    conf, (node, other) = dict(kept.netconf), kept.nodes
    assert other.agent is not None
    other.agent.send_signal(signal.SIGSTOP)
    try:
        before = node.tables()
        member.kill()
        node.end()
        kept.restart_etcd(empty=True)
        node.start()
        time.sleep(1.0)
        assert node.tables() == before
        kept.configure(**conf)
        until(lambda: kept.get(node.key), node.said, 5.0)
        time.sleep(1.0)
        assert node.tables() == before, node.said()[-3000:]
    finally:
        other.agent.send_signal(signal.SIGCONT)
    until(lambda: kept.get(other.key), other.said, 10.0)
    assert "the leases were not listed yet" in node.health()
    assert "etcd may have lost its data; for 60 s nothing is removed" in node.said()
    node.end()  # sooner than a minute: at this start its record is there
    node.start()
    node.wait_ready()
