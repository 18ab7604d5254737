"""Deleting cut-off links in the background: many at a time, at a good moment, whatever goes wrong."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from pycni.errors import KernelError
from pycni.kernel import poddel
from pycni.model.cni import Bandwidth
from tests.netns.podenv import Env, links, run


@pytest.fixture
def deletions(monkeypatch) -> list[int]:
    """Sizes of the groups that were deleted."""
    sizes: list[int] = []
    real = poddel._delete_group

    def counted(sock, batch):
        sizes.append(len(batch))
        real(sock, batch)

    monkeypatch.setattr(poddel, "_delete_group", counted)
    return sizes


def gone(env: Env, pods) -> bool:
    return all(env.driver.wait_gone(pod.plan.owner) for pod in pods)


def test_links_that_go_together_are_deleted_together(env: Env, monkeypatch, deletions):
    monkeypatch.setattr(poddel, "PAUSE_S", 0.5)
    monkeypatch.setattr(poddel, "LONGEST_S", 60)
    pods = [env.attach() for _ in range(12)]
    for pod in pods:
        env.driver.detach(pod.plan.owner, pod.fd)
    time.sleep(2 * poddel.PAUSE_S)
    assert gone(env, pods)
    assert [size for size in deletions if size] == [12]
    assert not [name for name in links() if name.startswith("veth")]


def test_deletion_waits_for_a_pause_but_not_for_ever(env: Env, monkeypatch, deletions):
    monkeypatch.setattr(poddel, "LONGEST_S", 0.2)
    pod = env.attach()
    done = threading.Event()
    start = time.monotonic()
    env.driver.detach(pod.plan.owner, pod.fd, lambda _: done.set())
    while not done.is_set() and time.monotonic() < start + 10:
        env.driver._remover.busy()
        time.sleep(0.005)
    assert done.is_set()
    assert time.monotonic() - start > 0.15


def test_many_waiting_are_deleted_without_a_pause(env: Env, monkeypatch, deletions):
    monkeypatch.setattr(poddel, "MOST", 4)
    monkeypatch.setattr(poddel, "PAUSE_S", 60)
    monkeypatch.setattr(poddel, "LONGEST_S", 60)
    pods = [env.attach() for _ in range(4)]
    done = threading.Semaphore(0)
    for pod in pods:
        env.driver.detach(pod.plan.owner, pod.fd, lambda _: done.release())
    assert all(done.acquire(timeout=2) for _ in pods)


def test_hurry_deletes_now(env: Env, monkeypatch):
    monkeypatch.setattr(poddel, "PAUSE_S", 60)
    monkeypatch.setattr(poddel, "LONGEST_S", 60)
    pod = env.attach()
    done = threading.Event()
    env.driver.detach(pod.plan.owner, pod.fd, lambda _: done.set())
    assert not done.wait(0.1)
    env.driver.hurry()
    assert done.wait(2)


def test_a_link_that_cannot_be_deleted_does_not_keep_the_others(env: Env):
    """The kernel deletes a group whole or not at all; ``lo`` can never be deleted."""
    pod = env.attach(bandwidth=Bandwidth(egress_rate=10**7, egress_burst=10**6))
    run(f"ip link set lo group {poddel.DYING_GROUP}")
    env.detach(pod)
    assert pod.plan.host not in links()
    assert pod.plan.names.shaper not in links()


def test_a_refusal_is_tried_again(env: Env, monkeypatch, caplog):
    monkeypatch.setattr(poddel, "RETRY_S", 0.01)
    real, failures = poddel._delete_group, iter([True, True, False])

    def failing(sock, batch):
        if next(failures, False):
            raise KernelError(errno.EBUSY, "delete link group")
        real(sock, batch)

    pod = env.attach()
    assert env.driver.wait_gone(pod.plan.owner)
    monkeypatch.setattr(poddel, "_delete_group", failing)
    calls = []
    env.driver.detach(pod.plan.owner, pod.fd, calls.append)
    assert env.driver.wait_gone(pod.plan.owner)
    assert calls == [None]
    assert caplog.text.count("trying again") == 2


def test_a_callback_that_fails_is_logged_and_spares_the_others(env: Env, caplog):
    pods = [env.attach() for _ in range(3)]
    calls = []

    def failing(_: object) -> None:
        raise ValueError("no disk")

    for pod, done in zip(pods, (calls.append, failing, calls.append), strict=True):
        env.driver.detach(pod.plan.owner, pod.fd, done)
    assert gone(env, pods)
    assert calls == [None, None]
    assert "no disk" in caplog.text


def test_closing_deletes_what_waits_and_tells(env: Env, monkeypatch):
    monkeypatch.setattr(poddel, "PAUSE_S", 60)
    monkeypatch.setattr(poddel, "LONGEST_S", 60)
    driver = env.new_driver()
    pod = env.pod()
    plan = env.plan(pod)
    driver.attach(plan, pod.fd)
    calls = []
    driver.detach(plan.owner, pod.fd, calls.append)
    driver.close()
    assert calls == [None]
    assert plan.host not in links()


def test_rows_that_stay_are_told_to_the_caller(env: Env, monkeypatch):
    pod = env.attach(ip_masq=True)

    def refuse(_: str) -> None:
        raise KernelError(errno.ENOBUFS, "nft transaction")

    monkeypatch.setattr(env.driver._tables, "release", refuse)
    calls = []
    env.driver.detach(pod.plan.owner, pod.fd, calls.append)
    assert env.driver.wait_gone(pod.plan.owner)
    assert [str(problem) for problem in calls] == ["nft transaction: ENOBUFS"]
    assert pod.plan.host not in links()
