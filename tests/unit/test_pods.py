"""Repairs of pods' kernel state beside CNI calls: a driver made up here, threads that are real."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from pycni.agent import pods as module
from pycni.agent.pods import NotQuietError, PodKeeper, Pods
from pycni.errors import KernelError
from pycni.model.endpoint import Owner

A, B, C = (Owner("net", name, "eth0") for name in "abc")


class Driver:
    """Remembers calls; ``gate`` holds attach and resync until it is set."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.inside = threading.Event()
        self.error = None

    def attach(self, plan, _netns_fd):
        self.calls.append(("attach", plan.owner))
        self.inside.set()
        assert self.gate.wait(5)
        return "links"

    def detach(self, owner, _netns_fd, done):
        self.calls.append(("detach", owner))
        done(self.error)
        return True

    def resync(self, plans):
        self.calls.append(("resync", [plan.owner for plan in plans]))
        self.inside.set()
        assert self.gate.wait(5)
        return ["a row"]


class Endpoints(dict):
    """States by owner."""

    def get(self, owner):
        return SimpleNamespace(state=self[owner], netns="", netns_inode=0) if owner in self else None


def plan(owner):
    return SimpleNamespace(owner=owner)


@pytest.fixture
def driver():
    return Driver()


@pytest.fixture
def pods(driver):
    return Pods(driver, Endpoints({A: "ready", B: "dying"}))


def in_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    return thread


def test_what_was_removed_since_it_was_listed_is_not_put_back(pods, driver):
    assert pods.resync([plan(A), plan(B), plan(C)]) == ["a row"]
    assert driver.calls == [("resync", [A])]


def test_a_repair_waits_for_the_call_under_way(pods, driver):
    driver.gate.clear()
    call = in_thread(lambda: pods.attach(plan(C), 3))
    assert driver.inside.wait(5)
    repair = in_thread(lambda: pods.resync([plan(A)]))
    time.sleep(0.05)
    assert driver.calls == [("attach", C)]
    driver.gate.set()
    call.join()
    repair.join()
    assert driver.calls == [("attach", C), ("resync", [A])]


def test_a_call_waits_for_the_repair_under_way(pods, driver):
    driver.gate.clear()
    repair = in_thread(lambda: pods.resync([plan(A)]))
    assert driver.inside.wait(5)
    call = in_thread(lambda: pods.detach(A, None, (), None))
    time.sleep(0.05)
    assert driver.calls == [("resync", [A])]
    driver.gate.set()
    repair.join()
    call.join()
    assert driver.calls == [("resync", [A]), ("detach", A)]


def test_calls_go_on_while_a_repair_waits_and_the_repair_gives_up(pods, driver, monkeypatch):
    monkeypatch.setattr(module, "QUIET_WAIT_S", 0.5)
    driver.gate.clear()
    call = in_thread(lambda: pods.attach(plan(C), 3))
    assert driver.inside.wait(5)
    refused = []

    def repair():
        try:
            pods.resync([plan(A)])
        except NotQuietError as exc:
            refused.append(exc)

    waiting = in_thread(repair)
    time.sleep(0.02)
    pods.detach(A, None, (), None)
    assert not refused, "the call did not wait for it"
    waiting.join()
    driver.gate.set()
    call.join()
    assert len(refused) == 1
    assert ("resync", [A]) not in driver.calls


@pytest.mark.parametrize("error", [None, KernelError(16, "delete row")], ids=["well", "rows-left"])
def test_the_caller_hears_when_the_devices_are_gone(pods, driver, error, caplog):
    driver.error, gone = error, []
    assert pods.detach(A, None, (), lambda: gone.append(A)) is True
    assert gone == [A]
    assert ("rows are left" in caplog.text) is (error is not None)


class Watch:
    """An nftables watch nobody writes to."""

    def __init__(self, _tables):
        self.near, self.far = socket.socketpair()

    def fileno(self):
        return self.near.fileno()

    def drain(self):
        return bool(self.near.recv(1))

    def close(self):
        self.near.close()
        self.far.close()


def test_keeper_begins_with_the_pod_network_and_tries_again_soon_when_it_is_busy(monkeypatch):
    monkeypatch.setattr(module, "NftWatch", Watch)
    monkeypatch.setattr(module, "PODNET_POLL_S", 0.01)
    monkeypatch.setattr(module, "MIN_GAP_S", 0.01)
    known, calls, seen = [None], [], []
    answers = [NotQuietError("busy"), ["x", "y"]]

    def adopt():
        calls.append(1)
        answer = answers.pop(0) if answers else []
        if isinstance(answer, Exception):
            raise answer
        return answer

    observer = SimpleNamespace(passed=lambda *_: seen.append("ok"), failed=lambda *_: seen.append("failed"))
    keeper = PodKeeper(adopt, lambda: known[0], observer)

    async def scenario():
        task = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.05)
        assert calls == []
        known[0] = "the pod network"
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert len(calls) == 2
    assert keeper.repairs == 2
    assert set(seen) == {"ok"}
