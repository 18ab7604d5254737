"""What a lab remembers, and how its processes are told from others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pycni.lab import processes
from pycni.lab.processes import ProcessId
from pycni.lab.state import LabRecord, LabState, PodRecord, recorded
from pycni.lab.topology import LabError, LabSpec

RECORD = LabRecord(
    spec=LabSpec(name="x", chain=("portmap",)),
    boot_id="b",
    nodes=("node1",),
    processes={"etcd": ProcessId(7, 8)},
)


@pytest.fixture
def state(tmp_path: Path) -> LabState:
    return LabState("x", tmp_path)


@pytest.fixture
def sleeper() -> Iterator[ProcessId]:
    with subprocess.Popen(["sleep", "60"]) as child:
        yield processes.identify(child.pid)
        child.kill()


def test_a_record_comes_back_as_it_was_saved(state: LabState) -> None:
    assert state.load() is None
    state.save(RECORD)
    assert state.load() == RECORD
    state.save(msgspec.structs.replace(RECORD, phase="up"))
    loaded = state.load()
    assert loaded is not None
    assert loaded.phase == "up"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 2}', b'{"phase": "no"}'])
def test_a_damaged_record_is_an_error_that_says_how_to_clean_up(state: LabState, content: bytes) -> None:
    state.save(RECORD)
    state.file.write_bytes(content)
    with pytest.raises(LabError, match="lab down --name x"):
        state.load()


def test_pods_are_listed_in_the_order_of_their_numbers(state: LabState) -> None:
    assert state.pods() == []
    for name in ("pod10", "pod2", "web", "pod1"):
        state.put_pod(PodRecord(name=name, node="node1", namespace="n", container_id="c"))
    assert [pod.name for pod in state.pods()] == ["pod1", "pod2", "pod10", "web"]
    state.drop_pod("pod2")
    state.drop_pod("pod2")
    assert [pod.name for pod in state.pods()] == ["pod1", "pod10", "web"]


def test_removing_forgets_everything_and_twice_is_fine(state: LabState, tmp_path: Path) -> None:
    state.save(RECORD)
    assert recorded(tmp_path) == ["x"]
    state.remove()
    state.remove()
    assert recorded(tmp_path) == []
    assert recorded(tmp_path / "none") == []


def test_the_lock_keeps_two_changes_apart_and_names_the_holder(state: LabState) -> None:
    with (
        state.lock(),
        pytest.raises(LabError, match=rf"being changed by another command \(pid {os.getpid()}\)"),
        LabState("x", state.folder.parent).lock(wait=0.05),
    ):
        pass
    with state.lock(wait=0.05):
        pass


def test_shared_holders_do_not_keep_each_other_out_but_a_change(state: LabState) -> None:
    other = LabState("x", state.folder.parent)
    with (
        state.lock(shared=True),
        other.lock(shared=True, wait=0.05),
        pytest.raises(LabError),
        LabState("x", state.folder.parent).lock(wait=0.05),
    ):
        pass


def test_a_waiter_gets_the_lock_although_its_file_was_removed_meanwhile(state: LabState) -> None:
    holding, done = threading.Event(), threading.Event()

    def second() -> None:
        holding.wait(5)
        with LabState("x", state.folder.parent).lock(wait=5):
            done.set()

    thread = threading.Thread(target=second)
    thread.start()
    with state.lock():
        holding.set()
        assert not done.wait(0.1)
    thread.join(5)
    assert done.is_set()
    assert os.listdir(state.folder.parent) == [], (
        "the last holder of a lab that is gone removes the lock's file"
    )


def test_a_process_is_known_by_pid_and_start_time(sleeper: ProcessId) -> None:
    assert sleeper.alive()
    assert not ProcessId(sleeper.pid, sleeper.start + 1).alive()


def test_kill_ends_exactly_the_process_meant(sleeper: ProcessId) -> None:
    processes.kill([ProcessId(sleeper.pid, sleeper.start + 1)])
    time.sleep(0.05)
    assert sleeper.alive(), "a reused pid is not hit"
    processes.kill([sleeper, sleeper])
    assert not sleeper.alive()
    processes.kill([sleeper])


def test_other_signals_do_not_wait_for_an_end(sleeper: ProcessId) -> None:
    processes.kill([sleeper], signal.SIGSTOP)
    assert sleeper.alive()


def test_a_process_that_does_not_end_is_reported(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        stubborn = processes.identify(child.pid)
        with pytest.raises(LabError, match=f"do not end after 0.1 s: {child.pid}"):
            processes.kill([stubborn], signal.SIGTERM, timeout=0.1)
        processes.kill([stubborn])


def test_a_dead_process_has_no_identity() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.start_time(child.pid) is None, "a zombie is dead"
    child.wait()
    with pytest.raises(LabError, match="has ended"):
        processes.identify(child.pid)


def test_a_daemon_is_known_by_its_mark_from_its_first_moment(tmp_path: Path) -> None:
    lab = f"pyt{os.getpid()}"
    process = processes.spawn(["sleep", "60"], tmp_path / "log", {**os.environ, **processes.mark(lab)})
    try:
        assert processes.marked(lab) == [process]
        assert processes.marked(lab[:-1]) == []
    finally:
        processes.kill([process])
    assert processes.marked(lab) == []


def test_spawned_daemons_have_their_own_session_and_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["sh", "-c", 'echo "$X" "$(cat)"; ps -o sid= -p $$; exec sleep 60']
    process = processes.spawn(words, log, {"X": "hello", "PATH": os.environ["PATH"]})
    try:
        for _ in range(200):
            if log.read_text().count("\n") == 2:
                break
            threading.Event().wait(0.01)
        first, session = log.read_text().splitlines()
        assert first == "hello ", "standard input is empty"
        assert int(session) == process.pid
    finally:
        processes.kill([process])
