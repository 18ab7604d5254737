"""Traces in a lab of guests: kernels of their own, clocks of their own, Services by IPVS."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from pycni.lab.run import Lab

from . import lab_tools
from .lab_tools import ROOT, apply, ctl, running

EXAMPLE = ROOT / "docs" / "examples" / "web.yaml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two guests, IPVS, agents that listen for traces, the example applied."""
    with running(driver="uml", nodes=2, pods=1, proxy="ipvs", trace_tls=True) as made:
        apply(made, EXAMPLE)
        yield made


def trace(lab: Lab, *words: str) -> dict[str, Any]:
    return lab_tools.trace(lab, *words)[1]


@pytest.mark.parametrize("way", [(), ("--by-agents",)], ids=["directly", "by agents"])
def test_a_service_by_ipvs_is_followed_to_its_endpoint_and_back(lab: Lab, way: tuple[str, ...]) -> None:
    found = trace(lab, *way, "pod1", "shop/web:80")
    assert found["ok"], found["fault"]
    turn = next(hop for hop in found["hops"] if hop["component"] == "service")
    assert turn["detail"].startswith("shop/web")
    assert found["hops"][-1]["action"] == found["back"][-1]["action"] == "delivered"
    assert found["round_trip_us"] > 0


def test_two_clocks_make_one_way(lab: Lab) -> None:
    found = trace(lab, "pod1", "pod2")
    assert found["ok"], found["fault"]
    shown = [hop for hop in (*found["hops"], *found["back"]) if "seen" in hop]
    assert shown[0]["node"] == shown[-1]["node"] == "node1"
    assert {hop["node"] for hop in shown} == {"node1", "node2"}
    times = [hop["seen"]["time_ns"] for hop in shown]
    late = [(one, two) for one, two in itertools.pairwise(times) if two < one - 50_000]
    assert late == [], "each is seen after the one before"


def test_a_damage_in_a_guest_is_named_also_when_agents_are_dead(lab: Lab) -> None:
    for node in lab.record.nodes:
        lab.signal_agent(node, signal.SIGKILL)
    read = "bridge fdb show dev flannel.1 | awk '/172.20.0.2/{print $1; exit}'"
    mac = lab.exec("node1", ["sh", "-c", read]).stdout.strip()
    lab.exec("node1", ["bridge", "fdb", "del", mac, "dev", "flannel.1", "dst", "172.20.0.2"])
    found = trace(lab, "pod1", "pod2")
    assert (found["fault"]["kind"], found["fault"]["node"]) == ("fdb-missing", "node1"), found["fault"]
    assert "agent-dead" in {item["kind"] for item in found["suspicions"]}
    done = ctl("trace", "--name", lab.spec.name, "--by-agents", "pod1", "pod2")
    assert done.returncode == 1
    assert "node1 does not answer: Connection refused; node2 does not answer" in done.stderr
