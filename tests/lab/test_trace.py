"""Traces in a lab: sound ways are followed to their end. Damages are in test_trace_faults."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.vxlan import VXLAN
from scapy.utils import rdpcap

from pycni.lab.run import Lab

from . import lab_tools
from .lab_tools import apply, ctl, running
from .trace_objects import SHOP

OBJECTS = (
    SHOP
    + """
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
"""
)


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Two nodes whose agents have set everything up and are dead: nobody repairs what tests damage."""
    with running(nodes=2, family="dual", proxy="nftables", policy="nftables") as lab:
        apply(lab, text=OBJECTS)
        for node in lab.record.nodes:
            lab.signal_agent(node, signal.SIGKILL)
        yield lab


def trace(lab: Lab, *words: str) -> tuple[int, dict[str, Any]]:
    code, found = lab_tools.trace(lab, *words)
    assert found["ok"] is (code == 0)
    return code, found


WAYS = (
    ("pod1", "pod2"),
    ("pod1", "pod3"),
    ("pod2", "pod1"),
    ("node1", "pod2"),
    ("node1", "pod1"),
    ("pod1", "node2"),
    ("pod1", "node1"),
    ("pod1", "shop"),
    ("node2", "shop:80"),
    ("pod1", "web:8080"),
    ("pod1", "kube-dns:53", "--proto", "udp"),
)


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
def test_a_sound_way_is_followed_to_its_end_and_back(world: Lab, words: tuple[str, ...]) -> None:
    code, found = trace(world, *words)
    assert (code, found["fault"]) == (0, None), found
    assert {item["kind"] for item in found["suspicions"]} == {"agent-dead"}, (
        "they are, and nothing else is wrong"
    )
    assert found["hops"][-1]["action"] == found["back"][-1]["action"] == "delivered"
    assert found["hops"][0]["node"] == found["back"][-1]["node"]


def test_an_answer_for_programs_has_its_shape(world: Lab) -> None:
    """``ok``, ``hops`` and ``fault``; exit code 1 when the packet does not arrive."""
    code, found = trace(world, "pod1", "pod2")
    assert (code, found["ok"], found["fault"]) == (0, True, None)
    code, found = trace(world, "pod1", "pod2:81")
    assert (code, found["ok"]) == (1, False)
    assert {"kind", "node", "component", "interface", "hop", "cause", "command"} <= set(found["fault"])
    for hop in (*found["hops"], *found["back"]):
        assert {"node", "component", "interface", "action", "detail", "reason"} <= set(hop)


def test_a_probe_is_seen_at_every_interface_and_a_prediction_sends_none(world: Lab) -> None:
    _, found = trace(world, "pod1", "pod2")
    places = [(hop["node"], hop["interface"]) for hop in found["hops"] if "seen" in hop]
    shown = [(hop["node"], hop["interface"]) for hop in found["hops"] if hop["interface"]]
    assert [item for item in shown if item in places] == [item for item in shown if item[1]]
    assert found["round_trip_us"] > 0
    _, found = trace(world, "pod1", "pod2", "--predict")
    assert not [hop for hop in (*found["hops"], *found["back"]) if "seen" in hop]
    assert found["round_trip_us"] is None


def test_a_policy_that_denies_is_named(world: Lab) -> None:
    code, found = trace(world, "pod1", "shut:8080")
    assert code == 1
    fault = found["fault"]
    assert (fault["kind"], fault["node"], fault["component"]) == ("policy-denied", "node2", "policy")
    assert "NetworkPolicy default/closed" in fault["cause"]
    assert fault["command"].startswith("pycnictl policy explain 10.244.")


def test_a_service_without_endpoints_is_named(world: Lab) -> None:
    code, found = trace(world, "pod1", "nobody")
    assert (code, found["fault"]["kind"]) == (1, "service-without-endpoints")
    assert "default/nobody" in found["hops"][-1]["detail"]


def test_a_port_nobody_listens_on_is_named(world: Lab) -> None:
    code, found = trace(world, "pod1", "pod2:81")
    assert (code, found["fault"]["kind"], found["fault"]["node"]) == (1, "nobody-listens", "node2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pod1", "nothing"), "'nothing': no pod, node, Service or address"),
        (("pod1", "pod2:x"), "port from 1 to 65535"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(world: Lab, words: tuple[str, ...], said: str) -> None:
    done = ctl("trace", "--name", world.spec.name, *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


def test_people_read_a_line_per_hop(world: Lab) -> None:
    done = ctl("trace", "--name", world.spec.name, "pod1", "shop")
    assert done.returncode == 0, done.stderr
    for said in ("service     translated  default/shop", "encapsulated  vxlan id 1 to 172.20.0.2", "OK "):
        assert said in done.stdout


def test_frames_of_all_interfaces_are_written_to_one_file(world: Lab, tmp_path: Path) -> None:
    file = tmp_path / "way.pcapng"
    code, found = trace(world, "pod1", "pod2", "--pcap", str(file))
    assert code == 0, found["fault"]
    packets = rdpcap(str(file))
    probes = [packet for packet in packets if packet.haslayer("ICMP") and packet["ICMP"].type == 8]
    wrapped = [packet for packet in probes if packet.haslayer("VXLAN")]
    assert len(wrapped) == 2, "leaving one node and entering the other"
    assert {packet[VXLAN].vni for packet in wrapped} == {1}
    times = [float(packet.time) for packet in packets]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 3600
