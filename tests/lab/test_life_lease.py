"""The node's own record under attack, and records nobody should have written: real agents, one clear line each."""

from __future__ import annotations

import itertools
import json
import re
import struct
import time
from typing import Any

import pytest

from .small_fabric import SmallFabric, fabrics, ghost, took, udp, until

shared = fabrics("46 vxlan", "4 host-gw", count=2)


def test_a_deleted_record_is_written_again(fabric: SmallFabric) -> None:
    witness, node = fabric.nodes
    key, value, before = node.key, fabric.get(node.key), witness.tables()
    fabric.delete(key)
    seconds = took(lambda: fabric.get(key) == value, node.said, 1.0)
    until(lambda: witness.tables() == before, witness.tables, 1.0)
    until(lambda: node.reaches(witness), node.said, 1.0)
    until(lambda: "the record had vanished from etcd; taken back" in node.said())
    assert node.ready()
    print(f"written again after {seconds * 1000:.0f} ms")


def test_a_record_that_is_deleted_again_and_again_comes_back_every_time(fabric: SmallFabric) -> None:
    witness, node = fabric.nodes
    before = witness.tables()
    streams = fabric.streams(*fabric.nodes)
    with streams:
        for _ in range(8):
            fabric.delete(node.key)
            until(lambda: fabric.get(node.key), node.said, 0.5)
            time.sleep(0.1)
    until(lambda: witness.tables() == before, witness.tables, 1.0)
    for report in streams.reports():
        assert report.longest_gap < 2, streams.reports()
    print(streams)


@pytest.mark.parametrize("damage", ["not json", '{"PublicIP": 7}', "{}"])
def test_a_damaged_record_of_ours_is_written_again(fabric: SmallFabric, damage: str) -> None:
    witness, node = fabric.nodes
    value, before, said = fabric.get(node.key), witness.tables(), len(node.said())
    fabric.put(node.key, damage)
    until(lambda: fabric.get_raw(node.key) != damage, node.said, 2.0)
    assert fabric.get(node.key) == value
    until(lambda: witness.tables() == before, witness.tables, 1.0)
    until(lambda: node.reaches(witness), node.said, 1.0)
    assert "Traceback" not in node.said(said)


def test_a_subnet_taken_by_another_node_ends_the_agent_which_takes_another(fabric: SmallFabric) -> None:
    witness, node = fabric.nodes
    assert node.agent is not None
    old, key, said = node.subnets, node.key, len(node.said())
    taken = ghost(fabric, 99)[1]
    fabric.put(key, json.dumps(taken))
    try:
        assert node.agent.wait(2) == 1
        node.end()
        last = node.said(said).splitlines()
        assert len([line for line in last if " CRITICAL " in line]) == 1
        owner = taken.get("PublicIP")
        assert f"pycnid ends: lease {key.removeprefix('subnets/')}: taken by {owner}" in node.said(said)
        assert "Traceback" not in node.said(said)
        assert fabric.get(key) == taken, "never overwritten"
        node.start()
        until(lambda: "CNI calls are served" in node.said(said), node.said)
        until(lambda: not set(old) & set(node.subnets), node.said)
        until(lambda: witness.has(*(f"{net} " for net in node.subnets)), witness.tables, 1.0)
        # Its pod still has an address of the old subnet: no route can lead to the new owner beside it.
        until(lambda: "in the way and not ours" in node.health(), node.health)
        start = time.monotonic()
        node.drop_pod()
        until(node.ready, node.health, 12.0)
        print(f"ready {time.monotonic() - start:.1f} s after its last pod of the old subnet")
        assert node.has(*(f"{net} " for net in old)), "the other one's now"
    finally:
        fabric.delete(key)
        if node.pod:
            node.drop_pod()
        node.add_pod()
    until(lambda: node.reaches(witness) and witness.reaches(node), node.said, 2.0)


@pytest.mark.parametrize("shared", ["46 vxlan"], indirect=True)
def test_a_lease_is_renewed_before_it_ends_and_ends_with_its_node(fabric: SmallFabric) -> None:
    witness = fabric.nodes[0]
    before = witness.tables()
    node = fabric.join(9, "--etcd-lease-ttl=2")
    node.wait_ready()
    until(lambda: witness.has(*(f"{net} " for net in node.subnets)), witness.tables)
    since = len(witness.said())
    for _ in range(90):
        assert fabric.get(node.key) is not None
        time.sleep(0.05)
    assert node.metric("pycni_lease_renewals_total") >= 3
    assert node.said().count(": renewed") >= 3
    assert node.ready()
    assert "10.5" not in witness.said(since), "a renewal is no news to peers"
    fabric.leave(node)
    seconds = took(lambda: witness.tables() == before, witness.tables, 6.0)
    print(f"gone {seconds:.1f} s after the node died")


def hostile(fabric: SmallFabric) -> dict[str, tuple[str, Any, str]]:
    """What -> name, value, what the log has to say of it."""
    (own, other), v6 = fabric.nodes, "6" in fabric.families
    mine = own.subnets[0]
    base = mine.rpartition(".")[0]
    far = itertools.count(230)

    def name() -> str:
        return ghost(fabric, next(far))[0]

    def value(number: int, **changes: Any) -> dict[str, Any]:
        return ghost(fabric, number, **changes)[1]

    half = f"subnets/{base}.0-25" + ("&fd00:5:0:e0::-64" if v6 else "")
    cases: dict[str, tuple[str, Any, str]] = {
        "a key that is no subnet": ("subnets/hello", value(201), "ignoring etcd record"),
        "a key with host bits": ("subnets/10.5.9.7-24", value(202), "ignoring etcd record"),
        "a deeper key": ("subnets/10.5.9.0-24/x", value(203), "ignoring etcd record"),
        "no JSON": (name(), "{", "ignoring etcd record"),
        "not an object": (name(), "[1]", "ignoring etcd record"),
        "a number for an address": (name(), '{"PublicIP": 12}', "ignoring etcd record"),
        "a multicast address": (name(), value(204) | {"PublicIP": "224.0.0.1"}, "ignoring etcd record"),
        "invalid UTF-8": (name(), b'{"PublicIP": "\xff\xfe"}', "ignoring etcd record"),
        "a part of our subnet": (half, value(205), f"overlaps this node's own subnet {mine}"),
        "a subnet outside": (
            "subnets/10.99.1.0-24" + ("&fd00:99::-64" if v6 else ""),
            value(206),
            "10.99.1.0/24 is not inside the cluster network",
        ),
        "our address": (name(), value(1), "its public address 192.0.2.1 is this node's own"),
        "another backend": (name(), value(207) | {"BackendType": "wireguard"}, "its backend is 'wireguard'"),
    }
    if fabric.kind == "vxlan":
        stolen = (fabric.get(other.key) or {})["BackendData"]["VtepMAC"]
        cases |= {
            "a MAC twice": (
                "subnets/10.5.99.0-24&fd00:5:0:fe::-64",  # of two the record with the smaller name counts
                value(208, BackendData={"VNI": 1, "VtepMAC": stolen}),
                rf"its VtepMAC {stolen} is announced by lease",
            ),
            "our MAC": (
                "subnets/10.5.98.0-24&fd00:5:0:fd::-64",  # so that we stay our peer's peer
                value(
                    209,
                    BackendData={"VNI": 1, "VtepMAC": (fabric.get(own.key) or {})["BackendData"]["VtepMAC"]},
                ),
                "is this node's own",
            ),
            "a multicast MAC": (
                name(),
                value(210, BackendData={"VNI": 1, "VtepMAC": "01:00:5e:00:00:01"}),
                "is no unicast MAC address",
            ),
            "another VNI": (
                name(),
                value(211, BackendData={"VNI": 9, "VtepMAC": "02:00:00:00:04:d3"}),
                "its VNI is 9, this network's is 1",
            ),
            "backend data of another kind": (
                name(),
                value(212) | {"BackendData": {"PublicKey": "x"}},
                "its backend data",
            ),
        }
    else:
        cases["not on our link"] = (
            name(),
            value(213, PublicIP="198.51.100.1"),
            "198.51.100.1 is not on a network of eth0",
        )
    return cases


def test_hostile_records_get_one_line_each_and_change_nothing(fabric: SmallFabric) -> None:
    node, other = fabric.nodes
    cases, before, since = hostile(fabric), node.tables(), len(node.said())
    good, value = ghost(fabric, 100)
    passes = node.metric("pycni_fabric_pass_seconds_count")
    with fabric.traffic():
        for name, record, _ in cases.values():
            fabric.put(name, record if isinstance(record, str | bytes) else json.dumps(record))
        fabric.put(good, json.dumps(value))
        until(lambda: node.has("10.5.100.0/24"), node.tables, 1.0)
        time.sleep(0.3)
        text = node.said(since)
        for what, (name, _, said) in cases.items():
            record = name.removeprefix("subnets/")
            lines = [line for line in text.splitlines() if record in line and " agent: " not in line]
            lines = [line for line in lines if "(ipv6)" not in line]
            assert len([line for line in lines if re.search(said, line)]) == 1, f"{what}: {lines}\n{text}"
        extra = [line for line in node.tables() if line not in before]
        # Families are judged by themselves: what is wrong with IPv4 does not take IPv6 from a peer.
        four = [line for line in extra if "fd00:" not in line and "2001:" not in line]
        assert len(four) == (3 if fabric.kind == "vxlan" else 1), four
        fabric.delete(good)
        for name, _, _ in cases.values():
            fabric.delete(name)
        until(lambda: node.tables() == before, node.tables, 1.0)
    assert "Traceback" not in node.said(since)
    until(node.ready, node.health, 1.0)
    until(other.ready, other.health, 1.0)
    assert node.metric("pycni_fabric_pass_seconds_count") - passes < 2 * len(cases) + 10


def vxlan(vni: int, mac: str) -> bytes:
    """A VXLAN packet with a broadcast Ethernet frame (RFC 7348 section 5)."""
    return struct.pack("!II", 0x08000000, vni << 8) + bytes.fromhex(mac.replace(":", "")) + bytes(50)


@pytest.mark.parametrize("shared", ["46 vxlan"], indirect=True)
def test_vxlan_from_strangers_is_dropped_and_counted(fabric: SmallFabric) -> None:
    node, peer = fabric.nodes

    def dropped(family: str) -> int:
        saddr = "ip saddr" if family == "4" else "ip6 saddr"
        rules = node("nft list chain inet pycni_fabric vxlan")
        return sum(int(n) for n in re.findall(rf"{saddr} .*counter packets (\d+)", rules))

    def received(device: str) -> int:
        return int(json.loads(node(f"ip -j -s link show dev {device}"))[0]["stats64"]["rx"]["packets"])

    for family, device, there in (("4", "flannel.1", "192.0.2.1"), ("6", "flannel-v6.1", "2001:db8::1")):
        mac = node(f"ip -o link show dev {device}").split("link/ether ")[1].split()[0]
        with udp(fabric.switch, family) as stranger, udp(peer.name, family) as known:
            before, drops = received(device), dropped(family)
            for _ in range(10):
                stranger.sendto(vxlan(1, mac), (there, 8472))
            until(lambda family=family, drops=drops: dropped(family) == drops + 10, family, 1.0)
            assert received(device) == before
            stranger.sendto(vxlan(77, mac), (there, 8472))
            known.sendto(vxlan(1, mac), (there, 8472))
            until(lambda device=device, before=before: received(device) > before, device, 1.0)
            assert dropped(family) == drops + 10, "another VNI is none of ours, a known node is welcome"
