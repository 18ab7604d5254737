"""Each damage is named where it was done, by what it is; and once it is put right, nothing is named."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec
from pycni.lab.tracing import LabEyes
from pycni.trace.report import as_json
from pycni.tracing.course import Asked, trace

from . import trace_faults
from .conftest import unique_name
from .lab_tools import ctl
from .trace_faults import Damage, names_of


@pytest.fixture(scope="module")
def world() -> Iterator[Lab]:
    """Two nodes with everything, whose agents are dead: nobody repairs what tests damage."""
    lab = Lab.up(LabSpec(name=unique_name(), nodes=2, family="dual", proxy="nftables", policy="nftables"))
    try:
        apply(lab, trace_faults.OBJECTS)
        apply(lab, trace_faults.ENDPOINTS.format(**names_of(lab, "")))
        kill_agents(lab)
        yield lab
    finally:
        lab.down()


@pytest.fixture(scope="module")
def plain() -> Iterator[Lab]:
    """Three nodes that reach each other by routes alone; nobody keeps pods from using others' addresses."""
    lab = Lab.up(LabSpec(name=unique_name(), nodes=3, family="dual", backend="host-gw"))
    try:
        kill_agents(lab)
        yield lab
    finally:
        lab.down()


def kill_agents(lab: Lab) -> None:
    for node in lab.record.nodes:
        lab.signal_agent(node, signal.SIGKILL)


def apply(lab: Lab, objects: str) -> None:
    done = ctl("lab", "apply", "--name", lab.spec.name, "-f", "-", feed=objects)
    assert done.returncode == 0, done.stderr


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


def test_there_are_as_many_as_there_should_be() -> None:
    assert len(IN_WORLD) + len(trace_faults.PLAIN) >= 60
