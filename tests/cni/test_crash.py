"""The whole path under fire: real shim, real pycnid killed by SIGKILL at random moments, callers that act as kubelet.

At no moment have two pods one address; in the end nothing is left; what is up works.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from pycni.kernel import netns
from tests.cni.callers import Callers, Slot, reaches_gateways
from tests.cni.node import AgentNode
from tests.cni.remains import NET, OPTIONS, TIGHT, elements, leftovers, until

SEED = int(os.environ.get("PYT_SEED", "20260731"))
SLOTS, AT_ONCE, KILLS, ADDS, DELS = 40, 12, 12, 200, 200


def conf_of(number: int) -> dict[str, Any]:
    """Half of the slots in each network, of both kinds; some masquerade, some publish a port, some are shaped."""
    conf = dict(NET if number % 2 else TIGHT)
    if number % 8 in {1, 2, 4, 7}:
        conf["attachment"] = "ptp"
    if number % 3 == 0:
        conf["ipMasq"] = True
    runtime: dict[str, Any] = {}
    if number % 4 < 2:
        port = {"hostPort": 20000 + number, "containerPort": 80, "protocol": "tcp"}
        runtime["portMappings"] = [port]
    if number % 5 == 0:
        runtime["bandwidth"] = {
            "ingressRate": 10**8,
            "ingressBurst": 10**7,
            "egressRate": 10**8,
            "egressBurst": 10**7,
        }
    if number % 7 == 0:
        conf["macspoofchk"] = True
    return {**conf, "runtimeConfig": runtime} if runtime else conf


@pytest.fixture(scope="module")
def slots(quick: AgentNode) -> Iterator[list[Slot]]:
    made = [Slot(f"{quick.name}{number}", conf_of(number)) for number in range(SLOTS)]
    try:
        for slot in made:
            netns.create(slot.name)
        yield made
    finally:
        for slot in made:
            if os.path.exists(slot.path):
                netns.delete(slot.name)


class Killer(threading.Thread):
    """Kills the agent at random moments, mostly while it serves, and starts it again."""

    def __init__(self, callers: Callers, chance: random.Random) -> None:
        super().__init__(name="killer")
        self.callers, self.node, self.chance = callers, callers.node, chance
        self.kills = 0
        self.failure: BaseException | None = None
        self.end = threading.Event()

    def run(self) -> None:
        try:
            while self.kills < KILLS and not self.end.wait(self.chance.uniform(0, 0.8)):
                assert self.node.agent is not None
                assert self.node.agent.poll() is None, "the agent ended by itself"
                self.node.kill_agent()
                self.kills += 1
                self.node.spawn_agent(*OPTIONS)
                if self.chance.random() < 0.8:
                    self.node.wait_ready()
        except BaseException as exc:
            self.failure = exc


def test_two_hundred_adds_and_dels_while_the_agent_is_killed(quick: AgentNode, slots: list[Slot]) -> None:
    node = quick
    callers = Callers(node, slots, SEED)
    killer = Killer(callers, random.Random(SEED))
    deadline = time.monotonic() + 90
    enough = threading.Event()

    def watch() -> None:
        while not enough.is_set():
            callers.faults += callers.shared_addresses()
            full = killer.kills >= KILLS and callers.done["ADD"] >= ADDS and callers.done["DEL"] >= DELS
            if full or callers.faults or killer.failure or time.monotonic() > deadline:
                enough.set()
            time.sleep(0.1)

    watcher = threading.Thread(target=watch, name="watcher")
    began = time.monotonic()
    killer.start()
    watcher.start()
    try:
        callers.run(enough.is_set, AT_ONCE)
    finally:
        killer.end.set()
        enough.set()
        killer.join()
        watcher.join()
    took = time.monotonic() - began
    errors = ", ".join(f"{' '.join(map(str, key))}: {n}" for key, n in sorted(callers.errors.items()))
    print(f"seed {SEED}: {killer.kills} kills, {dict(callers.done)} in {took:.1f} s, errors: {errors}")
    assert not callers.faults, callers.faults
    assert killer.failure is None
    assert killer.kills >= KILLS
    assert min(callers.done["ADD"], callers.done["DEL"]) >= 200
    assert {code for _, code, _ in callers.errors} <= {11}, callers.errors
    node.wait_ready()
    everything_is_right(node, callers)
    survivors_of_a_gc_after_a_crash_work(node, callers)
    nothing_is_left(node, callers)


def everything_is_right(node: AgentNode, callers: Callers) -> None:
    """The pods that are up work, have what they were given, and nobody else has anything."""
    assert callers.up, "no pod is up: nothing to see"
    for pod in callers.up.values():
        callers.look(pod, "at the end")
    assert not callers.faults, callers.faults
    assert not callers.shared_addresses()
    chance = random.Random(SEED)
    for slot, container in chance.sample(callers.seen, 20):  # a DEL that comes late takes nothing from others
        if container not in {pod.container for pod in callers.up.values()}:
            callers.remove(slot, container, None, chance)
    held = {address for pod in callers.up.values() for address in pod.addresses}
    until(lambda: set(leftovers(node)["reservations"]) == held, lambda: (held, leftovers(node)))
    until(lambda: len(leftovers(node)["records"]) == len(callers.up), lambda: leftovers(node))
    veths = [name for name in leftovers(node)["links"] if name.startswith("veth")]
    assert len(veths) == len(callers.up)


def survivors_of_a_gc_after_a_crash_work(node: AgentNode, callers: Callers) -> None:
    """Killed again, the first thing the new agent is told is who stays."""
    node.kill_agent()
    node.start_agent(*OPTIONS)
    stay = [pod for number, pod in enumerate(callers.up.values()) if number % 2]
    valid = [{"containerID": pod.container, "ifname": "eth0"} for pod in stay]
    for conf in (NET, TIGHT):
        assert node.cni("GC", {**conf, "cni.dev/valid-attachments": valid}) == (0, None)
    held = {address for pod in stay for address in pod.addresses}
    until(lambda: set(leftovers(node)["reservations"]) == held, lambda: (held, leftovers(node)))
    assert len(leftovers(node)["records"]) == len(stay)
    assert all(reaches_gateways(pod) for pod in stay)
    gone = {element for element in elements(node) if re.search(r"\b20\d{3}\b", element)}
    assert len(gone) <= 2 * len([p for p in stay if "portMappings" in p.slot.conf.get("runtimeConfig", {})])


def nothing_is_left(node: AgentNode, callers: Callers) -> None:
    """After the last DELs."""
    chance = random.Random(SEED)
    for pod in list(callers.up.values()):
        callers.remove(pod.slot, pod.container, pod.result, chance)
    callers.up.clear()
    until(lambda: not any(leftovers(node).values()), lambda: leftovers(node))
    assert "Traceback" not in (node.folder / "pycnid.log").read_text()
