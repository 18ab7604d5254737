"""Health, the HTTP server it is asked by, and the service manager it is told to."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from pycni.agent import httpd
from pycni.agent.health import Health, routes
from pycni.agent.httpd import HEAD_LIMIT, HttpServer, Response, respond
from pycni.agent.metrics import Registry
from pycni.agent.notify import Notifier


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


# --- health


def test_ready_only_when_every_part_is_well():
    health = Health(Clock())
    health.expect("network")
    health.set("cni", ok=True)
    assert (health.ready, health.reason()) == (False, "network: starting")
    health.set("network", ok=False, reason="no lease")
    health.expect("network")
    assert health.red() == {"network": "no lease"}
    health.set("network", ok=True)
    assert (health.ready, health.reason()) == (True, "")
    health.set("probe", ok=False)
    health.forget("probe")
    assert health.ready


def test_a_word_that_is_not_renewed_turns_red():
    clock = Clock()
    health = Health(clock)
    health.set("sync", ok=True, valid_for=10)
    clock.now += 10
    assert health.ready
    clock.now += 3
    assert health.reason() == "sync: nothing heard since 3 s after its deadline"
    health.set("sync", ok=True, valid_for=10)
    assert health.ready


def test_a_part_that_is_asked_answers_for_itself():
    health, waiting = Health(Clock()), ["etcd is away"]
    health.set("network", ok=True)
    health.ask("network", lambda: waiting[0])
    assert health.reason() == "network: etcd is away"
    waiting[0] = ""
    assert health.ready
    health.set("network", ok=False, reason="pass failed")
    assert health.reason() == "network: pass failed"


def test_listeners_hear_changes_only():
    health, heard = Health(Clock()), []
    health.subscribe(lambda: heard.append(health.ready))
    for ok in (False, False, True, True):
        health.set("a", ok=ok, reason="r")
    assert heard == [False, True]


def test_readyz_names_what_is_red():
    clock = Clock()
    health = Health(clock)
    assert health.readyz("") == Response(200, body="ok\n")
    health.set("cni", ok=True)
    health.set("network", ok=False, reason="etcd away")
    clock.now += 1.5
    assert health.readyz("") == Response(503, body="network: etcd away\n")
    verbose = health.readyz("verbose")
    assert (verbose.status, verbose.content_type) == (503, "application/json")
    assert json.loads(verbose.body) == {
        "ready": False,
        "parts": {
            "cni": {"ok": True, "reason": "", "for_seconds": 1.5},
            "network": {"ok": False, "reason": "etcd away", "for_seconds": 1.5},
        },
    }


def test_health_is_a_metric_too():
    registry, health = Registry(), Health()
    health.register(registry)
    health.set("cni", ok=False, reason="x")
    assert "pycni_ready 0\n" in registry.expose()
    assert 'pycni_part_healthy{part="cni"} 0\n' in registry.expose()


# --- HTTP


def raises(_query):
    raise RuntimeError("boom")


ROUTES = {"/a": lambda query: Response(200, body=f"query={query}\n"), "/broken": raises}
HEADS = [
    ("GET", b"GET /a HTTP/1.1\r\nHost: x", b"200 OK", b"query=\n"),
    ("query", b"GET /a?x=1&y HTTP/1.0", b"200 OK", b"query=x=1&y\n"),
    ("HEAD has no body", b"HEAD /a HTTP/1.1", b"200 OK", b""),
    ("unknown path", b"GET /b HTTP/1.1", b"404 Not Found", b"there are /a, /broken\n"),
    ("POST", b"POST /a HTTP/1.1", b"405 Method Not Allowed", b"only GET and HEAD\n"),
    ("failing handler", b"GET /broken HTTP/1.1", b"500 Internal Server Error", b"see the log\n"),
    ("HTTP/2", b"PRI * HTTP/2.0", b"505 HTTP Version Not Supported", b"HTTP/2.0 is not spoken here\n"),
    ("two words", b"GET /a", b"400 Bad Request", b"not an HTTP request\n"),
    ("empty", b"", b"400 Bad Request", b"not an HTTP request\n"),
    ("binary", b"\x16\x03\x01\x02 \xff \x80", b"400 Bad Request", b"not an HTTP request\n"),
]


@pytest.mark.parametrize(("head", "status", "body"), [c[1:] for c in HEADS], ids=[c[0] for c in HEADS])
def test_answer_to_a_head(head, status, body, caplog):
    answer = respond(head, ROUTES)
    first, _, rest = answer.partition(b"\r\n")
    assert first == b"HTTP/1.1 " + status
    assert rest.partition(b"\r\n\r\n")[2] == body
    assert b"Connection: close" in rest
    assert ("boom" in caplog.text) == (status[:3] == b"500")


def serve(scenario):
    """Run ``scenario(server)`` beside a server on the loopback."""

    async def run():
        server = HttpServer("127.0.0.1", 0, ROUTES)
        await server.start()
        try:
            return await scenario(server)
        finally:
            await server.stop()

    return asyncio.run(run())


async def exchange(server, data, *, eof=False):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        if eof:
            writer.write_eof()
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize(
    ("data", "eof", "start"),
    [
        (b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n", False, b"HTTP/1.1 200 OK\r\n"),
        (b"GET /a HTT", True, b"HTTP/1.1 400 Bad Request\r\n"),
        (b"GET /a HTTP/1.1\r\nX: " + b"x" * HEAD_LIMIT * 3, False, b"HTTP/1.1 431 "),
        (b"", True, b""),
    ],
    ids=["request", "cut", "huge", "nothing"],
)
def test_server_answers_and_closes(data, eof, start):
    answer = serve(lambda server: exchange(server, data, eof=eof))
    assert answer.startswith(start)
    assert bool(answer) == bool(start)


def test_a_client_that_sends_nothing_is_cut(monkeypatch):
    monkeypatch.setattr(httpd, "REQUEST_SECONDS", 0.05)
    assert serve(lambda server: exchange(server, b"GET ")) == b""


def test_too_many_connections_are_told_so(monkeypatch):
    monkeypatch.setattr(httpd, "CONNECTIONS", 1)

    async def scenario(server):
        _, idle = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.05)
        try:
            return await exchange(server, b"GET /a HTTP/1.1\r\n\r\n")
        finally:
            idle.close()
            await idle.wait_closed()

    assert serve(scenario).startswith(b"HTTP/1.1 503 ")


def test_stop_cuts_open_connections():
    async def scenario(server):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.02)
        await asyncio.wait_for(server.stop(), 1)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    serve(scenario)


def test_agents_routes():
    found = routes(Health(), Registry())
    assert {path: handler("").status for path, handler in found.items()} == {
        "/healthz": 200,
        "/readyz": 200,
        "/metrics": 200,
    }


# --- service manager


@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_notify_sends_datagrams(tmp_path, abstract):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + path if abstract else path)
        manager.settimeout(1)
        notifier = Notifier({"NOTIFY_SOCKET": "@" + path if abstract else path})
        notifier.ready("3 peers\nup")
        notifier.watchdog()
        notifier.stopping()
        assert [manager.recv(100) for _ in range(3)] == [
            b"READY=1\nSTATUS=3 peers up",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]


def test_notify_without_a_manager_sends_nothing_and_a_dead_one_is_logged_once(caplog, tmp_path):
    assert Notifier({}).send(READY="1") is False
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert [notifier.send(READY="1") for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, 0.0),
        ({"WATCHDOG_USEC": "soon"}, 0.0),
    ],
    ids=["none", "set", "for-us", "for-another", "nonsense"],
)
def test_watchdog_interval(environment, seconds):
    assert Notifier(environment, pid=7).watchdog_seconds == seconds
