"""Each damage is named where it was done, by what it is; and once it is put right, nothing is named."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pycni.lab.run import Lab
from pycni.lab.tracing import LabEyes
from pycni.trace.report import as_json
from pycni.tracing.course import Asked, trace

from . import trace_faults
from .lab_tools import PATIENCE_S, apply, running, within
from .trace_faults import Damage, names_of


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Two nodes with everything, whose agents are dead: nobody repairs what tests damage."""
    with running(nodes=2, family="dual", proxy="nftables", policy="nftables") as lab:
        apply(lab, text=trace_faults.OBJECTS)
        apply(lab, text=trace_faults.ENDPOINTS.format(**names_of(lab, "")))
        kill_agents(lab)
        yield lab


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    """Three nodes that reach each other by routes alone; nobody keeps pods from using others' addresses."""
    with running(nodes=3, family="dual", backend="host-gw") as lab:
        kill_agents(lab)
        yield lab


@pytest.fixture(scope="module")
def secret() -> Iterator[Lab]:
    """Two nodes that speak WireGuard, with policies by eBPF."""
    with running(nodes=2, family="dual", backend="wireguard", policy="ebpf") as lab:
        apply(lab, text=trace_faults.DENIED)
        kill_agents(lab)
        yield lab


@pytest.fixture(scope="module")
def living() -> Iterator[Lab]:
    """Two nodes whose agents live, and carry packets in UDP."""
    with running(nodes=2, backend="udp", pods=1) as lab:
        yield lab


def kill_agents(lab: Lab) -> None:
    for node in lab.record.nodes:
        lab.signal_agent(node, signal.SIGKILL)


def ask(lab: Lab, *words: str) -> dict[str, Any]:
    return as_json(trace(LabEyes(Lab.open(lab.spec.name)), Asked(*words), time.perf_counter()))


def run(lab: Lab, steps: tuple[tuple[str, str], ...], names: Mapping[str, str]) -> None:
    for where, command in steps:
        done = lab.exec(where.format(**names), ["sh", "-ec", command.format(**names)], check=False)
        assert done.returncode == 0, f"{command.format(**names)}: {done.stderr}"


def named(lab: Lab, damage: Damage, folder: Path) -> None:
    names = names_of(lab, str(folder))
    words = [word.format(**names) for word in damage.words]
    try:
        run(lab, damage.do, names)
        found = ask(lab, *words)
    finally:
        run(lab, damage.undo, names)
    fault = found["fault"]
    place = (damage.kind, damage.node, damage.component, damage.interface.format(**names))
    assert fault is not None, found["suspicions"]
    assert (fault["kind"], fault["node"], fault["component"], fault["interface"]) == place, fault
    for said in damage.said:
        assert said.format(**names) in fault["cause"]
    assert found["ok"] is False
    assert fault["hop"] in range(len(found["hops"]) + len(found["back"])), fault
    after = ask(lab, *words)
    kind = after["fault"]["kind"] if after["fault"] is not None else ""
    assert kind == damage.after, after["fault"]
    assert {item["kind"] for item in after["suspicions"]} <= {"agent-dead"}, after["suspicions"]


IN_WORLD = {
    **trace_faults.OVERLAY,
    **trace_faults.NODE_FAULTS,
    **trace_faults.POD_FAULTS,
    **trace_faults.SERVICES,
}


@pytest.mark.parametrize("damage", IN_WORLD.values(), ids=IN_WORLD)
def test_a_damage_is_named_where_it_was_done(world: Lab, damage: Damage, tmp_path: Path) -> None:
    named(world, damage, tmp_path)


@pytest.mark.parametrize("damage", trace_faults.PLAIN.values(), ids=trace_faults.PLAIN)
def test_a_damage_is_named_without_an_overlay(plain: Lab, damage: Damage, tmp_path: Path) -> None:
    named(plain, damage, tmp_path)


@pytest.mark.parametrize("damage", trace_faults.SECRET.values(), ids=trace_faults.SECRET)
def test_a_damage_is_named_inside_of_wireguard(secret: Lab, damage: Damage, tmp_path: Path) -> None:
    named(secret, damage, tmp_path)


def beside(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(item["kind"], item["node"]) for item in found["suspicions"]]


def test_a_dead_agent_is_told_beside(living: Lab) -> None:
    found = ask(living, "pod1", "pod2")
    assert (found["fault"], beside(found)) == (None, [])
    living.signal_agent("node2", signal.SIGKILL)
    try:
        found = ask(living, "pod1", "pod2")
    finally:
        living.start_agent("node2")
    assert (found["fault"], beside(found)) == (None, [("agent-dead", "node2")])
    assert within(PATIENCE_S, lambda: beside(ask(living, "pod1", "pod2")) == [])


@pytest.mark.parametrize("node", ["node1", "node2"])
def test_a_dead_forwarder_is_named(living: Lab, node: str) -> None:
    living.signal_agent(node, signal.SIGSTOP)  # else it starts another one
    try:
        os.kill(forwarder(living, node), signal.SIGKILL)
        assert within(
            PATIENCE_S, lambda: "NO-CARRIER" in living.exec(node, ["ip", "link", "show", "flannel0"]).stdout
        )
        found = ask(living, "pod1", "pod2")
    finally:
        living.signal_agent(node, signal.SIGCONT)
    fault = found["fault"]
    component = "interface" if node == "node1" else "overlay"
    assert (fault["kind"], fault["node"], fault["component"], fault["interface"]) == (
        "forwarder-dead", node, component, "flannel0",
    )  # fmt: skip
    assert "the program that serves it is not running" in fault["cause"]
    assert within(30, lambda: ask(living, "pod1", "pod2")["ok"])


def forwarder(lab: Lab, node: str) -> int:
    """Process that carries a node's packets."""
    folder = str(lab.state.node_folder(node))
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().split(b"\0")
            if b"pycni.forwarder" in words and any(word.decode().startswith(folder) for word in words):
                return int(entry.parent.name)
    raise AssertionError("no forwarder")


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(IN_WORLD) + len(trace_faults.PLAIN) + len(trace_faults.SECRET) >= 75
