"""Calls for one container that meet, and a subnet that runs out: one right answer each, and nothing is left."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pycni.kernel import netns
from tests.cni.callers import addresses_in
from tests.cni.node import AgentNode
from tests.cni.remains import NET, OPTIONS, TIGHT, leftovers, until

SMALL = {**TIGHT, "bridge": "cni78", "ipam": {"ranges": [[{"subnet": "10.78.0.0/28"}]]}}
SLOW = {**NET, "name": "slow", "bridge": "cni79", "ipam": {"type": "slow"}}
SLOW_PLUGIN = """#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >>{folder}/slow.log
case $CNI_COMMAND in
ADD) sleep 1.5; echo '{{"cniVersion": "1.1.0", "ips": [{{"address": "10.79.0.2/24", "gateway": "10.79.0.1"}}]}}' ;;
VERSION) echo '{{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}}' ;;
esac
echo "$CNI_COMMAND $CNI_CONTAINERID ended" >>{folder}/slow.log
"""


class Calls:
    """CNI calls for containers in one namespace each."""

    def __init__(self, node: AgentNode, names: list[str]) -> None:
        self.node, self.names = node, names

    def __call__(self, command: str, conf: dict[str, Any], number: int = 0) -> tuple[int, Any]:
        path = netns.path(self.names[number])
        return self.node.cni(command, conf, CONTAINERID=f"r{number}", NETNS=path, IFNAME="eth0")


@pytest.fixture
def calls(quick: AgentNode) -> Iterator[Calls]:
    """Fifteen namespaces; after the test nothing may be left of what was attached in them."""
    names = [f"{quick.name}r{number}" for number in range(15)]
    try:
        for name in names:
            netns.create(name)
        yield Calls(quick, names)
        until(lambda: not any(leftovers(quick).values()), lambda: leftovers(quick))
        assert not [name for name in names if addresses_in(name)]
        assert "Traceback" not in (quick.folder / "pycnid.log").read_text()
    finally:
        for name in names:
            if os.path.exists(netns.path(name)):
                netns.delete(name)


@pytest.fixture
def slow(quick: AgentNode) -> Iterator[None]:
    """An IPAM plugin that takes its time and keeps a list of its calls."""
    file = quick.folder / "bin" / "slow"
    file.parent.mkdir(exist_ok=True)
    file.write_text(SLOW_PLUGIN.format(folder=quick.folder))
    file.chmod(0o755)
    yield
    (quick.folder / "slow.log").unlink()


def slow_said(node: AgentNode) -> list[str]:
    file = node.folder / "slow.log"
    return file.read_text().splitlines() if file.exists() else []


def test_a_full_subnet_is_told_by_status_and_add_and_served_again_after_a_del(calls: Calls) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: calls("ADD", SMALL, n), range(13)))
    assert [code for code, _ in answers] == [0] * 13, answers
    given = {result["ips"][0]["address"] for _, result in answers}
    assert given == {f"10.78.0.{n}/28" for n in range(2, 15)}
    code, error = calls("STATUS", SMALL)
    assert (code, error["code"]) == (1, 50)
    assert "no free address in 10.78.0.1-10.78.0.14" in error["msg"]
    code, error = calls("ADD", SMALL, 13)
    assert (code, error["code"]) == (1, 11)
    assert "10.78.0.1-10.78.0.14" in error["msg"], error
    assert calls("DEL", SMALL, 13) == (0, None)
    # An ADD right behind the DEL that makes room: its address is free when its link is gone.
    assert calls("DEL", SMALL, 5) == (0, None)
    code, result = calls("ADD", SMALL, 13)
    assert code == 0, result
    assert result["ips"] == answers[5][1]["ips"]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda n: calls("DEL", SMALL, n), range(14))) == {(0, None)}
    assert calls("STATUS", SMALL) == (0, None)


def test_a_full_subnet_survives_a_kill(calls: Calls, quick: AgentNode) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert {code for code, _ in pool.map(lambda n: calls("ADD", SMALL, n), range(13))} == {0}
    quick.kill_agent()
    quick.start_agent(*OPTIONS)
    assert calls("STATUS", SMALL)[1]["code"] == 50
    assert calls("ADD", SMALL, 14)[1]["code"] == 11
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda n: calls("DEL", SMALL, n), range(15))) == {(0, None)}


@pytest.mark.parametrize("seed", range(3))
def test_add_and_del_of_one_container_at_once_leave_a_whole_pod_or_none(
    calls: Calls, quick: AgentNode, seed: int
) -> None:

    def after(seconds: float, command: str) -> tuple[int, Any]:
        time.sleep(seconds)
        return calls(command, TIGHT)

    def gone() -> bool:
        return not addresses_in(calls.names[0])

    chance = random.Random(seed)
    came: list[str] = []
    for turn in range(6):
        with ThreadPoolExecutor(3) as pool:
            lead = chance.uniform(-0.02, 0.02)
            add = pool.submit(after, max(lead, 0), "ADD")
            removals = [pool.submit(after, max(-lead, 0), "DEL") for _ in range(chance.choice([1, 2]))]
            code, answer = add.result()
            assert [removal.result() for removal in removals] == [(0, None)] * len(removals), turn
        assert code == 0 or answer["code"] in (11, 100), answer
        # Removed by the DEL (its second half may be under way) or made after it, and then whole.
        check = {**TIGHT, "prevResult": answer}
        until(lambda check=check: gone() or calls("CHECK", check) == (0, None), lambda: leftovers(quick))
        came.append("none" if gone() else "pod")
        assert calls("DEL", TIGHT) == (0, None)
    print(f"seed {seed}: {came}")


def test_a_del_that_comes_while_the_add_runs_waits_and_ends_what_it_made(
    calls: Calls, quick: AgentNode, slow: None
) -> None:
    with ThreadPoolExecutor(2) as pool:
        add = pool.submit(calls, "ADD", SLOW)
        until(lambda: "ADD r0" in slow_said(quick), lambda: slow_said(quick))
        assert calls("STATUS", NET) == (0, None)
        assert calls("ADD", TIGHT, 1)[0] == 0
        assert calls("DEL", TIGHT, 1)[0] == 0
        assert not add.done(), "nobody else waits"
        assert calls("DEL", SLOW) == (0, None)
        assert add.result(timeout=10)[0] == 0
    assert [line for line in slow_said(quick) if "ended" in line and "r0" in line] == [
        "ADD r0 ended",
        "DEL r0 ended",
    ]


def test_a_kill_while_a_delegate_runs_is_made_good_by_the_del(
    calls: Calls, quick: AgentNode, slow: None
) -> None:
    with ThreadPoolExecutor(1) as pool:
        add = pool.submit(calls, "ADD", SLOW)
        until(lambda: "ADD r0" in slow_said(quick), lambda: slow_said(quick))
        quick.kill_agent()
        code, answer = add.result()
    assert (code, answer["code"]) == (1, 11)
    assert calls("DEL", SLOW)[1]["code"] == 11, "the agent is not there"
    quick.start_agent(*OPTIONS)
    assert calls("DEL", SLOW) == (0, None)
    assert "DEL r0 ended" in slow_said(quick)
    code, answer = calls("ADD", SLOW)
    assert code == 0, answer
    assert calls("DEL", {**SLOW, "prevResult": answer}) == (0, None)


def test_a_gc_beside_adds_takes_only_what_was_there_before_it(calls: Calls, quick: AgentNode) -> None:
    assert calls("ADD", TIGHT, 0)[0] == 0
    assert calls("ADD", TIGHT, 1)[0] == 0
    valid = [{"containerID": "r1", "ifname": "eth0"}]
    with ThreadPoolExecutor(6) as pool:
        adds = [pool.submit(calls, "ADD", TIGHT, number) for number in range(2, 10)]
        sweep = pool.submit(calls, "GC", {**TIGHT, "cni.dev/valid-attachments": valid}, 14)
        assert sweep.result() == (0, None)
        answers = [future.result() for future in adds]
    assert {code for code, _ in answers} == {0}, answers
    assert addresses_in(calls.names[0]) == set(), "named by nobody"
    assert addresses_in(calls.names[1]), "named"
    files = json.dumps(sorted(quick.reservations("tight")))
    for number in range(2, 10):  # attached before the GC or after it; never half
        there = addresses_in(calls.names[number])
        assert all(address in files for address in there)
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda n: calls("DEL", TIGHT, n), range(1, 10))) == {(0, None)}
