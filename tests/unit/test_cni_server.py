"""The server answers every connection, keeps probes away from the workers, and leaks nothing."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from pycni.agent import cni_pool
from pycni.agent.cni_server import CniServer
from pycni.errors import CniError, ConfigError
from pycni.wire.cniframe import MAX_STDIN, decode_reply, encode_request

Answer = tuple[int, bytes]


class Ops:
    """Runs what a test gives it per operation; remembers every call."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[Mapping[str, str], bytes, int | None], Answer]] = {}
        self.calls: list[str] = []

    def handle(self, environment: Mapping[str, str], stdin: bytes, netns_fd: int | None) -> Answer:
        command = environment.get("CNI_COMMAND", "")
        self.calls.append(command)
        answer = self.answers.get(command)
        return answer(environment, stdin, netns_fd) if answer else (0, command.encode())


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def ops() -> Ops:
    return Ops()


@pytest.fixture
def server(tmp_path: Path, ops: Ops) -> Iterator[CniServer]:
    before, interval = fds(), sys.getswitchinterval()
    made = CniServer(str(tmp_path / "run" / "cni.sock"), ops, workers=2, frame_timeout_s=0.3)
    made.start()
    yield made
    made.stop()
    assert fds() == before
    assert sys.getswitchinterval() == interval


@pytest.fixture
def path(server: CniServer, tmp_path: Path) -> str:
    return str(tmp_path / "run" / "cni.sock")


def connect(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(5)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def read(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def call(path: str, command: str, stdin: bytes = b"{}", send_fds: tuple[int, ...] = ()) -> Answer:
    with connect(path) as sock:
        frame = encode_request({"CNI_COMMAND": command}, stdin)
        sent = socket.send_fds(sock, [frame], send_fds)
        if sent < len(frame):
            sock.sendall(frame[sent:])
        return decode_reply(read(sock))


def code_of(answer: Answer) -> int:
    assert answer[0] == 1
    code = json.loads(answer[1])["code"]
    assert isinstance(code, int)
    return code


def test_a_call_reaches_the_operations_whole(path: str, ops: Ops) -> None:
    seen: list[tuple[Mapping[str, str], bytes, int | None]] = []
    ops.answers["ADD"] = lambda environment, stdin, fd: (seen.append((environment, stdin, fd)), (0, b"ok"))[1]
    stdin = os.urandom(3 << 20)
    assert call(path, "ADD", stdin) == (0, b"ok")
    assert seen == [({"CNI_COMMAND": "ADD"}, stdin, None)]


def test_the_namespace_arrives_open_and_is_closed_after_the_call(path: str, ops: Ops, tmp_path: Path) -> None:
    marked = tmp_path / "netns"
    marked.write_bytes(b"here")
    seen: list[int] = []

    def answer(_environment: Mapping[str, str], _stdin: bytes, fd: int | None) -> Answer:
        assert fd is not None
        seen.append(fd)
        assert not os.get_inheritable(fd)
        return 0, os.pread(fd, 10, 0)

    ops.answers["ADD"] = answer
    with marked.open("rb") as file:
        assert call(path, "ADD", send_fds=(file.fileno(),)) == (0, b"here")
        before = fds()
        for _ in range(20):
            call(path, "ADD", send_fds=(file.fileno(),) * 5)
        wait_until(lambda: fds() <= before)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_request_may_come_in_small_pieces(path: str) -> None:
    with connect(path) as sock:
        for byte in encode_request({"CNI_COMMAND": "DEL"}, b"{}"):
            sock.sendall(bytes([byte]))
        assert decode_reply(read(sock)) == (0, b"DEL")


def test_an_unexpected_error_is_answered_with_999_in_one_line(
    path: str, ops: Ops, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(*_: object) -> Answer:
        raise ZeroDivisionError("really")

    ops.answers["ADD"] = answer
    answered = call(path, "ADD", b'{"cniVersion":"0.4.0"}')
    assert code_of(answered) == CniError.INTERNAL
    assert json.loads(answered[1])["cniVersion"] == "0.4.0"
    assert b"Traceback" not in answered[1]
    assert "Traceback" in caplog.text


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0" * 100_000,
        b"pycni1 0 %d\n" % (MAX_STDIN + 1) + b"x" * 3_000_000,
        b"pycni1 0 1\nxy",
    ],
    ids=["http", "nul", "too large", "too long"],
)
def test_what_is_no_request_gets_an_error_and_the_connection_is_closed(path: str, data: bytes) -> None:
    with connect(path) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert code_of(decode_reply(read(sock))) == CniError.IO_FAILURE
    assert call(path, "DEL") == (0, b"DEL")


def test_a_shim_that_never_finishes_its_request_is_given_up(path: str) -> None:
    with connect(path) as sock:
        sock.sendall(b"pycni1 5 5\nab")
        assert code_of(decode_reply(read(sock))) == CniError.IO_FAILURE


def test_a_shim_that_goes_away_leaves_nothing(path: str, tmp_path: Path) -> None:
    before = fds()
    file = (tmp_path / "x").open("wb")
    with file:
        for _ in range(10):
            with connect(path) as sock:
                socket.send_fds(sock, [b"pycni1 5 5\nab"], [file.fileno()])
    wait_until(lambda: fds() <= before)
    assert call(path, "DEL") == (0, b"DEL")


def test_a_shim_that_does_not_wait_for_the_reply_hurts_nobody(path: str, ops: Ops) -> None:
    hold = threading.Event()
    ops.answers["ADD"] = lambda *_: (hold.wait(5), (0, b"x" * 1_000_000))[1]
    for _ in range(3):
        with connect(path) as sock:
            sock.sendall(encode_request({"CNI_COMMAND": "ADD"}, b""))
    hold.set()
    wait_until(lambda: ops.calls.count("ADD") == 3)
    assert call(path, "DEL") == (0, b"DEL")


def test_probes_do_not_wait_behind_workers(path: str, ops: Ops) -> None:
    hold = threading.Event()
    ops.answers["ADD"] = lambda *_: (hold.wait(5), (0, b""))[1]
    threads = [threading.Thread(target=call, args=(path, "ADD")) for _ in range(20)]
    for thread in threads:
        thread.start()
    wait_until(lambda: ops.calls.count("ADD") >= 2)
    assert call(path, "STATUS") == (0, b"STATUS")
    assert call(path, "VERSION") == (0, b"VERSION")
    assert all(thread.is_alive() for thread in threads), "they were answered first"
    hold.set()
    for thread in threads:
        thread.join()


def test_calls_that_wait_get_out_of_the_others_way(path: str, ops: Ops, server: CniServer) -> None:
    hold = threading.Event()
    ops.answers["ADD"] = lambda *_: (hold.wait(5), (0, b""))[1]
    threads = [threading.Thread(target=call, args=(path, "ADD")) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: ops.calls.count("ADD") >= 2)
    assert call(path, "DEL") == (0, b"DEL")
    assert server._workers.threads > 2
    hold.set()
    for thread in threads:
        thread.join()


def test_extra_threads_end_when_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cni_pool, "IDLE_S", 0.05)
    pool, hold, begun = cni_pool.Pool("p", 1), threading.Event(), threading.Semaphore(0)

    def job() -> None:
        begun.release()
        hold.wait(5)

    pool.start()
    for _ in range(3):
        pool.submit(job)
    running = 0
    for now, threads in [
        (100.0, 1),
        (100.05, 1),
        (100.15, 2),
        (100.2, 2),
        (100.3, 3),
        (101.0, 3),
        (102.0, 3),
    ]:
        while running < min(pool.threads, 3):
            begun.acquire()
            running += 1
        pool.relieve(now)
        assert pool.threads == threads, now
    hold.set()
    wait_until(lambda: pool.threads == 1)
    assert pool.stop(5)


def test_the_socket_is_private(path: str) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_second_agent_is_refused_and_the_first_keeps_serving(path: str, ops: Ops) -> None:
    with pytest.raises(ConfigError, match="another agent"):
        CniServer(path, ops).start()
    assert call(path, "DEL") == (0, b"DEL")


def test_a_dead_agents_socket_is_replaced(tmp_path: Path, ops: Ops) -> None:
    path = str(tmp_path / "cni.sock")
    for left in (path, f"{path}.new"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(left)
    server = CniServer(path, ops)
    server.start()
    assert call(path, "DEL") == (0, b"DEL")
    server.stop()
    assert not os.path.exists(path)


def test_what_is_no_socket_is_left_alone(tmp_path: Path, ops: Ops) -> None:
    path = tmp_path / "cni.sock"
    path.write_text("mine")
    before = fds()
    with pytest.raises(ConfigError, match="not a socket"):
        CniServer(str(path), ops).start()
    assert path.read_text() == "mine"
    assert fds() == before


def test_stopping_finishes_what_is_under_way_and_queued(tmp_path: Path, ops: Ops) -> None:
    path = str(tmp_path / "cni.sock")
    server = CniServer(path, ops, workers=1)
    server.start()
    ops.answers["ADD"] = lambda *_: (time.sleep(0.1), (0, b"done"))[1]
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(call(path, "ADD"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(ops.calls) >= 1)
    time.sleep(0.02)
    server.stop()
    for thread in threads:
        thread.join()
    assert answers == [(0, b"done")] * 4
    with pytest.raises(FileNotFoundError):
        connect(path)


def test_a_call_that_never_ends_does_not_keep_the_agent_from_stopping(
    tmp_path: Path, ops: Ops, caplog: pytest.LogCaptureFixture
) -> None:
    server, hold = CniServer(str(tmp_path / "cni.sock"), ops, workers=1), threading.Event()
    server.start()
    ops.answers["ADD"] = lambda *_: (hold.wait(5), (0, b""))[1]
    thread = threading.Thread(target=call, args=(str(tmp_path / "cni.sock"), "ADD"))
    thread.start()
    wait_until(lambda: ops.calls == ["ADD"])
    with caplog.at_level(logging.ERROR):
        server.stop(0.05)
    assert "still under way" in caplog.text
    hold.set()
    thread.join()


def test_calls_are_counted_with_their_exit_code(tmp_path: Path, ops: Ops) -> None:
    seen: list[tuple[str, int, float]] = []
    server = CniServer(str(tmp_path / "cni.sock"), ops, observe=lambda *call: seen.append(call))
    ops.answers["DEL"] = lambda *_: (1, b"{}")
    server.start()
    call(str(tmp_path / "cni.sock"), "STATUS")
    call(str(tmp_path / "cni.sock"), "DEL")
    server.stop()
    assert [(operation, code) for operation, code, _ in seen] == [("STATUS", 0), ("DEL", 1)]
    assert all(0 < seconds < 5 for _, _, seconds in seen)


def test_another_user_is_refused(path: str, server: CniServer, ops: Ops) -> None:
    server._allowed = frozenset({4711})
    assert code_of(call(path, "ADD", b"x" * 3_000_000)) == CniError.IO_FAILURE
    assert ops.calls == []


def test_what_an_urgent_thread_starts_is_not_urgent() -> None:
    """Real-time priority is for the agent's few microseconds, not for a delegated plugin it waits for."""
    seen: dict[str, int] = {}
    pool, done = cni_pool.Pool("p", 1, urgent=True), threading.Event()

    def job() -> None:
        seen["thread"] = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        child = subprocess.run(["cat", "/proc/self/stat"], capture_output=True, check=True)
        seen["child"] = int(child.stdout.split()[40])
        done.set()

    pool.start()
    pool.submit(job)
    assert done.wait(5)
    assert pool.stop(5)
    assert seen["child"] == os.SCHED_OTHER
    if os.geteuid() == 0:
        assert seen["thread"] == os.SCHED_RR
