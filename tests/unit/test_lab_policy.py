"""Policies in a lab, as far as no kernel is needed: flags, probe packets, the matrix and its text."""

from __future__ import annotations

import pytest

from pycni.lab import policy_wire as wire
from pycni.lab.cli import configure
from pycni.lab.objects import Mappings, key_of
from pycni.lab.policy_matrix import Pair, PolicyMatrix, Snapshot, grid, judge, plan, port_of, summary
from pycni.lab.policy_probe import REFUSED, Outcome
from pycni.lab.policy_station import Target
from pycni.lab.report import policies
from pycni.lab.topology import LabError, LabSpec, check_spec, component_flags
from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP

OPEN, SHUT = Outcome(arrived=True, answered=True), Outcome(arrived=False, answered=False)


@pytest.mark.parametrize(
    ("fields", "components"),
    [
        ({"policy": "nftables"}, "network,policy"),
        ({"proxy": "ipvs", "policy": "ebpf"}, "network,proxy,policy"),
        ({"proxy": "nftables"}, "network,proxy"),
        ({}, None),
    ],
)
def test_agents_get_the_components_a_lab_has_planes_for(
    fields: dict[str, str], components: str | None
) -> None:
    flags = component_flags(LabSpec(**fields), "/m")
    assert flags.get("components") == components
    assert flags.get("policy") == fields.get("policy")
    assert ("manifest-dir" in flags) is (components is not None)
    assert ("cluster-cidr" in flags) is ("proxy" in fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"policy": "iptables"}, "--policy 'iptables'"),
        ({"policy": "ebpf", "driver": "uml"}, "guests' kernel"),
    ],
)
def test_planes_that_cannot_be_are_refused(fields: dict[str, str], said: str) -> None:
    with pytest.raises(LabError, match=said) as refused:
        check_spec(LabSpec(**fields))
    assert refused.value.usage


def test_the_flag_alone_means_nftables() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    configure(parser)
    assert parser.parse_args(["up"]).policy is None
    assert parser.parse_args(["up", "--policy"]).policy == "nftables"
    assert parser.parse_args(["up", "--policy", "ebpf"]).policy == "ebpf"


@pytest.mark.parametrize(
    ("plane", "count", "lines"),
    [
        ("none", 0, []),
        ("none", 1, ["policies, which nothing enforces here", "   NetworkPolicy a/p"]),
        ("ebpf", 0, ["policies, by ebpf: none yet"]),
        ("ebpf", 2, ["policies, by ebpf", "   NetworkPolicy a/p", "   ClusterNetworkPolicy c"]),
    ],
)
def test_the_picture_of_a_lab_tells_its_policies(plane: str, count: int, lines: list[str]) -> None:
    there = [
        {"kind": "NetworkPolicy", "namespace": "a", "name": "p"},
        {"kind": "ClusterNetworkPolicy", "namespace": "", "name": "c"},
    ]
    assert policies({"policy": plane, "policies": there[:count]}) == lines


# --- packets ---------------------------------------------------------------------------------------------------------


def test_the_checksum_of_sctp_is_crc32c() -> None:
    assert wire.crc32c(b"123456789") == 0xE3069283, "the check value of the algorithm"
    assert wire.crc32c(bytes(32)) == 0x8A9136AA, "RFC 3720 appendix B.4"


def test_an_init_is_answered_by_what_finds_its_way_back() -> None:
    packet = wire.sctp_init(1234, 80, 77)
    found = wire.parse_sctp(packet, Family.V6)
    assert found == wire.SctpHead(wire.INIT, 1234, 80, 77)
    assert packet[4:8] == bytes(4), "an INIT's verification tag is 0 (RFC 9260 section 8.5.1)"
    answer = wire.sctp_init_ack(found)
    assert wire.parse_sctp(b"\x45" + bytes(19) + answer, Family.V4) == wire.SctpHead(
        wire.INIT_ACK, 80, 1234, 77
    )
    assert len(answer) % 4 == 0
    assert wire.parse_sctp(packet[:15], Family.V6) is None
    other = packet[:12] + b"\x00" + packet[13:]
    assert wire.parse_sctp(other, Family.V6) is None, "DATA"


def run_filter(program: list[tuple[int, int, int, int]], packet: bytes) -> bool:
    """Classic BPF of the instructions in use."""
    at = accumulator = index = 0
    while True:
        code, yes, no, value = program[at]
        at += 1
        if code == 0x06:
            return bool(value)
        if code == 0xB1:
            index = (packet[value] & 0xF) * 4
        elif code == 0x01:
            index = value
        elif code == 0x30:
            accumulator = packet[value]
        elif code == 0x50:
            accumulator = packet[index + value]
        elif code == 0x48:
            accumulator = int.from_bytes(packet[index + value : index + value + 2], "big")
        elif code == 0x54:
            accumulator &= value
        else:
            assert code == 0x15
            at += yes if accumulator == value else no


@pytest.mark.parametrize("family", Family, ids=lambda family: family.label)
@pytest.mark.parametrize(
    ("protocol", "flags", "port", "taken"),
    [
        (TCP, 0x02, 80, True),
        (TCP, 0x02, 81, True),
        (TCP, 0x02, 82, False),
        (TCP, 0x12, 80, False),
        (TCP, 0x10, 80, False),
        (UDP, 0, 81, True),
        (UDP, 0, 53, False),
        (SCTP, 0, 80, True),
        (1, 0, 80, False),
    ],
)
def test_the_tap_takes_first_packets_to_the_ports_asked_about(
    family: Family, protocol: int, flags: int, port: int, taken: bool
) -> None:
    source = bytes(range(1, 5)) if family is Family.V4 else bytes(range(1, 17))
    if family is Family.V4:
        head = (
            b"\x46" + bytes(8) + bytes([protocol]) + bytes(2) + source + bytes(4) + bytes(4)
        )  # with options
    else:
        head = b"\x60" + bytes(5) + bytes([protocol]) + bytes(1) + source + bytes(16)
    packet = head + b"\x12\x34" + port.to_bytes(2, "big") + bytes(9) + bytes([flags]) + bytes(10)
    assert run_filter(wire.first_packets(family, {80, 81}), packet) is taken
    assert wire.HEADS[family](packet) == (source, protocol, port)


# --- the matrix ------------------------------------------------------------------------------------------------------


def pod(name: str, ip: str, ports: list[Mappings]) -> Mappings:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"pod": name}},
        "spec": {"nodeName": "node1", "containers": [{"name": "c", "ports": ports}]},
        "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
    }


OBJECTS = [
    pod("a", "10.244.1.2", []),
    pod("b", "10.244.1.3", [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]),
    {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "b", "namespace": "default"},
        "spec": {"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{"ports": [{"port": 80}]}]},
    },
]
TARGETS = [Target("a", "", {Family.V4: "10.244.1.2"}), Target("b", "", {Family.V4: "10.244.1.3"})]


def made(**seen: Outcome) -> PolicyMatrix:
    """``seen``: outcomes by ``<from><to><port>``; else what the oracle says."""
    snapshot = Snapshot({key_of(value): value for value in OBJECTS})
    shots = plan(snapshot, TARGETS)
    said = judge(snapshot, shots, TARGETS)
    pairs = {
        shot: Pair(
            seen.get(f"{shot.source}{shot.target}{shot.port}", OPEN if said[shot].allowed else SHUT),
            said[shot],
        )
        for shot in shots
    }
    return PolicyMatrix(pods=(("a", "node1"), ("b", "node1")), pairs=pairs)


def test_every_declared_port_is_tried_and_one_of_pods_without() -> None:
    assert [(shot.source, shot.target, shot.protocol, shot.port) for shot in made().pairs] == [
        ("b", "a", TCP, 80),
        ("a", "b", TCP, 80),
        ("a", "b", UDP, 53),
    ]
    snapshot = Snapshot({key_of(value): value for value in OBJECTS})
    assert {shot.port for shot in plan(snapshot, TARGETS, (SCTP, 7))} == {7}
    assert port_of("53/udp") == (UDP, 53)
    assert port_of("80") == (TCP, 80)
    for wrong in ("x", "80/ICMP", "0", "70000"):
        with pytest.raises(LabError, match="expected NUMBER"):
            port_of(wrong)


def test_a_table_shows_who_reaches_whom_and_who_denies() -> None:
    matrix = made()
    assert matrix.ok
    assert [line.split() for line in grid(matrix).splitlines()[1:3]] == [
        ["1", "a", "node1", "-", "◐"],
        ["2", "b", "node1", "●", "-"],
    ]
    text = summary(matrix)
    assert "1 denied by NetworkPolicy default/b" in text
    assert "a -> b only by 80/TCP" in text
    assert text.splitlines()[-1].startswith("3 connections, 2 allowed: all as the policies say")


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ({"ab53": OPEN}, "got through, though"),
        ({"ab80": SHUT}, "did not get through, though"),
        ({"ab53": Outcome(arrived=True, answered=False)}, "did not get through, but arrived, though"),
        ({"ba80": Outcome(arrived=True, answered=False, trouble="odd")}, "but arrived (odd), though"),
    ],
)
def test_what_differs_is_marked_and_told_with_its_reason(seen: dict[str, Outcome], said: str) -> None:
    matrix = made(**seen)
    assert not matrix.ok
    assert len(matrix.differences()) == 1
    assert "!" in grid(matrix).splitlines()[1] + grid(matrix).splitlines()[2]
    assert said in summary(matrix)
    assert matrix.json()["differences"] == 1


def test_a_closed_port_refuses_what_policies_allow() -> None:
    assert made(ab80=Outcome(arrived=True, answered=False, trouble=REFUSED)).ok
