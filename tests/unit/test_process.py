"""The process around the agent: locks, signals, exit codes, and what is said on the way. Parts are made up here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import asyncio, sys, threading, time
from pycni.agent import logs, process
from pycni.agent.settings_file import load
from pycni.errors import ConfigError, PycniError

async def forever():
    await asyncio.Event().wait()

async def returns():
    await asyncio.sleep(0.05)

async def fails():
    raise PycniError("lease 10.1.2.0-24 is lost")

async def breaks():
    raise RuntimeError("a bug")

async def wire(context):
    {wire}

logs.configure("info", "text")
process.SHUTDOWN_SECONDS = 0.5
loaded = load(sys.argv[1:], {{}}, "node-a")
sys.exit(process.run(loaded, wire))
"""
UP = 'context.health.set("parts", ok=True)\n    return {"parts": forever()}'


def start(tmp_path, wire, *argv, **environment):
    program = PROGRAM.format(wire=wire)
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), f"--state-dir={tmp_path}/state", *argv],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def ended(process, timeout=15):
    """Exit code and log of a process, which is killed when it does not end."""
    try:
        _, log = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    return process.returncode, log


def wait_for(process, text):
    """Read the log up to a line that has the text."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_success(tmp_path, number):
    process = start(tmp_path, UP)
    wait_for(process, "ready ")
    process.send_signal(signal.SIGHUP)
    wait_for(process, "SIGHUP")
    process.send_signal(number)
    code, log = ended(process)
    assert code == 0, log
    assert "pycnid has stopped; the data plane stays" in log


def test_a_signal_while_parts_are_being_made_stops_it_too(tmp_path):
    process = start(tmp_path, 'context.health.expect("etcd", "waiting"); await forever()')
    time.sleep(0.6)
    process.terminate()
    assert ended(process)[0] == 0


ENDS = [
    ("a task that returns", 'return {"collector": returns()}', 1, "pycnid ends: collector ended although it must run for ever", False),
    ("a task that fails", 'return {"a": fails(), "b": forever()}', 1, "pycnid ends: lease 10.1.2.0-24 is lost", False),
    ("a program error", 'return {"a": breaks()}', 1, "pycnid ends: a bug", True),
    ("a part that refuses its settings", 'raise ConfigError("settings", "iface", "eth9", "no such interface")', 2, "pycnid ends: settings: iface='eth9': no such interface", False),
    ("a part that cannot be made", 'raise PycniError("no")', 1, "pycnid ends: no", False),
    ("a program error in making", "raise KeyError('x')", 1, "pycnid ends: 'x'", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wire", "code", "line", "traceback"), [c[1:] for c in ENDS], ids=[c[0] for c in ENDS]
)
def test_it_ends_with_one_line(tmp_path, wire, code, line, traceback):
    found, log = ended(start(tmp_path, wire))
    assert found == code, log
    assert line in log
    assert ("Traceback" in log) is traceback
    if not traceback:
        assert log.count("CRITICAL") == 1


def test_stopping_that_hangs_is_cut(tmp_path):
    stuck = "threading.Thread(target=time.sleep, args=(60,)).start(); " + UP.replace("\n    ", "; ")
    process = start(tmp_path, stuck)
    wait_for(process, "ready ")
    process.terminate()
    code, log = ended(process)
    assert code == 1
    assert "stopping took more than 0.5 s" in log


def test_one_agent_per_state_folder(tmp_path):
    first = start(tmp_path, UP)
    try:
        wait_for(first, "ready ")
        code, log = ended(start(tmp_path, UP))
        assert code == 2
        assert f"state-dir='{tmp_path}/state': in use by another pycnid (pid {first.pid})" in log
    finally:
        first.kill()
        ended(first)
    second = start(tmp_path, UP)
    wait_for(second, "ready ")
    second.terminate()
    assert ended(second)[0] == 0


def test_a_state_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "state").write_text("a file")
    code, log = ended(start(tmp_path, UP))
    assert (code, log.count("\n")) == (2, 2)
    assert f"state-dir='{tmp_path}/state'" in log


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def get(port, path):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_answers_before_and_after_the_parts_are_ready(tmp_path):
    port, gate = free_port(), tmp_path / "gate"
    wire = f"""
    import os
    context.health.expect("etcd", "waiting")
    while not os.path.exists({str(gate)!r}):
        await asyncio.sleep(0.02)
    context.health.set("etcd", ok=True)
    return {{"parts": forever()}}"""
    process = start(tmp_path, wire.strip(), "--healthz-ip=127.0.0.1", f"--healthz-port={port}")
    try:
        wait_for(process, "health and metrics are served")
        assert get(port, "/healthz") == (200, "ok\n")
        assert get(port, "/readyz") == (503, "etcd: waiting\n")
        gate.touch()
        wait_for(process, "ready ")
        assert get(port, "/readyz") == (200, "ok\n")
        assert "pycni_ready 1\n" in get(port, "/metrics")[1]
        assert "pycni_event_loop_lag_seconds" in get(port, "/metrics")[1]
    finally:
        process.terminate()
        assert ended(process)[0] == 0


def test_a_health_port_in_use_is_refused(tmp_path):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        code, log = ended(start(tmp_path, UP, "--healthz-ip=127.0.0.1", f"--healthz-port={port}"))
    assert code == 2
    assert f"healthz-port={port}: cannot listen on 127.0.0.1" in log


def test_the_service_manager_hears_of_it(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        process = start(tmp_path, UP, NOTIFY_SOCKET=str(tmp_path / "notify"), WATCHDOG_USEC="200000")
        try:
            heard = {manager.recv(200) for _ in range(5)}
            assert {b"READY=1\nSTATUS=ready", b"STATUS=ready", b"WATCHDOG=1"} <= heard
        finally:
            process.terminate()
            while manager.recv(200) != b"STOPPING=1":
                pass
            assert ended(process)[0] == 0


def test_the_service_manager_does_not_wait_for_the_network(tmp_path):
    wire = 'context.health.set("network", ok=False, reason="etcd is away"); return {"parts": forever()}'
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        process = start(tmp_path, wire, NOTIFY_SOCKET=str(tmp_path / "notify"))
        try:
            heard = {manager.recv(200) for _ in range(3)}
            assert b"READY=1\nSTATUS=not ready: network: etcd is away" in heard
        finally:
            process.terminate()
            ended(process)


def pycnid(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pycni.agent.main", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=30,
        check=False,
    )


def test_wrong_settings_are_listed_all_at_once_with_exit_code_2():
    done = pycnid("run", "--healthz-ip=x", "--public-ip=fd00::1", FLANNELD_HEALTHZ_PORT="99999")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "pycnid: environment FLANNELD_HEALTHZ_PORT: healthz-port='99999': not in 0..65535",
        "pycnid: flag: healthz-ip='x': not an IP address",
        "pycnid: flag: public-ip='fd00::1': not an IPv4 address",
    ]


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (["version"], 0, "pycnid "),
        (["--version"], 0, "pycnid "),
        (["run", "--version"], 0, "pycnid "),
        (["--help"], 0, "--etcd-endpoints <list of URLs> (default: http://127.0.0.1:2379)"),
        (["install-cni", "--help"], 0, "--with-interpreter"),
        (["stop"], 2, "stop: no such command"),
        (
            ["install-cni", "--socket=x", "--cni-bin-dir=/no", "--cni-conf-dir=/no"],
            2,
            "pycnid: install-cni: socket='x'",
        ),
        (["uninstall-cni", "--cni-bin-dir=/no", "--cni-conf-dir=/no"], 0, "nothing is installed there"),
    ],
    ids=["version", "flag", "run-flag", "help", "install-help", "unknown", "wrong-socket", "nothing-there"],
)
def test_commands(argv, code, text):
    done = pycnid(*argv)
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
