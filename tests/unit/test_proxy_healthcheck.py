"""Health-check node ports, the proxy's own health port, the agent's Unix socket: with real sockets on loopback."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from types import MappingProxyType

import pytest

from pycni.agent.httpd import ANY, HttpServer, Response, UnixHttpServer
from pycni.agent.settings_file import load
from pycni.model.kube import KubeNode, Meta
from pycni.model.service import HealthCheck
from pycni_proxy.cli_services import AgentError, fetch
from pycni_proxy.healthcheck import HealthChecks, answer
from pycni_proxy.report import ProxyReport
from pycni_proxy.surroundings import Surroundings

HOST = ("127.0.0.1",)


def free_ports(count):
    socks = [socket.socket() for _ in range(count)]
    try:
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]
    finally:
        for sock in socks:
            sock.close()


async def get(port, path="/"):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        raw = await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body.decode()


def check(port, local, service="web"):
    return HealthCheck(port, "default", service, local)


ANSWERS = [
    ("endpoints", 3, True, 200, "3"),
    ("none here", 0, True, 503, "0"),
    ("proxy not well", 3, False, 503, "3"),
]


@pytest.mark.parametrize(
    ("local", "healthy", "status", "weight"), [c[1:] for c in ANSWERS], ids=[c[0] for c in ANSWERS]
)
def test_answer_is_kube_proxys(local, healthy, status, weight):
    found = answer(check(30000, local), proxy_healthy=healthy)
    assert found.status == status
    assert dict(found.headers)["X-Load-Balancing-Endpoint-Weight"] == weight
    assert json.loads(found.body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    }


def test_ports_open_change_and_close_without_losing_others():
    async def scenario():
        one, two = free_ports(2)
        healthy = [True]
        checks = HealthChecks(lambda: healthy[0])
        try:
            await checks.update([check(one, 1), check(two, 0, "db")], HOST)
            status, headers, body = await get(one, "/any/path")
            assert (status, headers["X-Load-Balancing-Endpoint-Weight"]) == (200, "1")
            assert json.loads(body)["localEndpoints"] == 1
            assert (await get(two))[0] == 503
            held = await asyncio.open_connection("127.0.0.1", one)
            await checks.update([check(one, 4)], HOST)
            held[1].write(b"GET / HTTP/1.0\r\n\r\n")
            assert b"X-Load-Balancing-Endpoint-Weight: 4" in await held[0].read()
            held[1].close()
            await held[1].wait_closed()
            with pytest.raises(OSError, match=r"refused|Connect call failed"):
                await get(two)
            healthy[0] = False
            assert (await get(one))[0] == 503
        finally:
            await checks.close()
        with pytest.raises(OSError, match=r"refused|Connect call failed"):
            await get(one)

    asyncio.run(scenario())


def test_a_port_in_use_is_a_problem_of_its_service_until_it_is_free():
    async def scenario():
        [port, other] = free_ports(2)
        checks = HealthChecks(lambda: True)
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            await checks.update([check(port, 1), check(other, 1, "db")], HOST)
            assert list(checks.problems) == ["default/web"]
            assert f"healthCheckNodePort {port}" in checks.problems["default/web"]
            assert "in use" in checks.problems["default/web"]
            assert (await get(other))[0] == 200
            taken.close()
            await checks.update([check(port, 1), check(other, 1, "db")], HOST)
            assert checks.problems == {}
            assert (await get(port))[0] == 200
        finally:
            taken.close()
            await checks.close()

    asyncio.run(scenario())


def test_two_services_with_one_port_do_not_take_turns():
    async def scenario():
        [port] = free_ports(1)
        checks = HealthChecks(lambda: True)
        try:
            await checks.update([check(port, 1, "b"), check(port, 0, "a")], HOST)
            assert (await get(port))[0] == 503
            assert checks.problems == {"default/b": f"healthCheckNodePort {port} is default/a's"}
        finally:
            await checks.close()

    asyncio.run(scenario())


class Passes:
    """A result of a pass that nothing came of."""

    resolve_s = apply_s = 0.0
    operations = 0
    full = True
    services = MappingProxyType({})


HEALTH = [
    ("programmed", True, False, 0, (200, 200)),
    ("nothing programmed yet", False, False, 0, (503, 503)),
    ("node is being deleted", True, True, 0, (503, 200)),
    ("failing for a second", True, False, 1, (200, 200)),
    ("stalled", True, False, 31, (503, 503)),
]


@pytest.mark.parametrize(
    ("programmed", "deleting", "failing_s", "statuses"), [c[1:] for c in HEALTH], ids=[c[0] for c in HEALTH]
)
def test_healthz_is_for_load_balancers_and_livez_for_supervisors(programmed, deleting, failing_s, statuses):
    async def scenario():
        [port] = free_ports(1)
        now = [100.0]
        report = ProxyReport(clock=lambda: now[0])
        if programmed:
            report.waiting("")
            report.programmed(Passes(), ["nftables"], 1)
        if failing_s:
            report.failed("proxy", RuntimeError("x"), 1)
            now[0] += failing_s
        settings = load([f"--proxy-healthz-port={port}", "--healthz-ip=127.0.0.1"], {}, "n1").settings
        node = KubeNode(meta=Meta(name="n1", deleting=deleting))
        around = Surroundings(settings, report, lambda: node)
        await around._listen()
        try:
            found = [await get(port, path) for path in ("/healthz", "/livez")]
        finally:
            await around._stop()
        assert tuple(status for status, _, _ in found) == statuses
        assert json.loads(found[0][2])["nodeEligible"] is not deleting

    asyncio.run(scenario())


def test_a_health_port_in_use_is_said_and_the_component_lives_on():
    async def scenario():
        [port] = free_ports(1)
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", port))
            taken.listen()
            report = ProxyReport()
            settings = load([f"--proxy-healthz-port={port}", "--healthz-ip=127.0.0.1"], {}, "n1").settings
            around = Surroundings(settings, report, lambda: None)
            around.others = ("kube-proxy is running (process 7)",)
            await around._listen()
            assert f"cannot listen on port {port}" in report.reason
            assert "kube-proxy is running" in report.reason
        finally:
            taken.close()

    asyncio.run(scenario())


# --- the Unix socket -----------------------------------------------------------------------------------------


async def hello(query):
    await asyncio.sleep(0)
    if query == "bad":
        raise RuntimeError("broken")
    return Response(200, body=f"hello {query}\n")


def serving(path, ask):
    async def scenario():
        server = UnixHttpServer(str(path), {"/hello": hello})
        await server.start()
        try:
            return await asyncio.to_thread(ask)
        finally:
            await server.stop()

    return asyncio.run(scenario())


def test_the_socket_is_roots_alone_answers_and_goes(tmp_path):
    path = tmp_path / "sub" / "agent.sock"

    def ask():
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        return fetch(str(path), "/hello?x")

    assert serving(path, ask) == b"hello x\n"
    assert not path.exists()


def test_errors_of_the_socket_say_which_and_why(tmp_path, caplog):
    path = tmp_path / "a.sock"
    with pytest.raises(AgentError, match=r"no agent with a service proxy answers at .*: No such file"):
        fetch(str(path), "/hello")

    def ask():
        with pytest.raises(AgentError, match="does not run what answers /nothing") as caught:
            fetch(str(path), "/nothing")
        assert caught.value.status == 404
        with pytest.raises(AgentError, match="answers 500"):
            fetch(str(path), "/hello?bad")

    serving(path, ask)


def test_a_dead_socket_is_replaced_a_live_one_and_a_file_are_not(tmp_path):
    path = tmp_path / "a.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()

    def ask():
        async def second():
            await UnixHttpServer(str(path), {}).start()

        with pytest.raises(OSError, match="another process listens"):
            asyncio.run(second())
        return fetch(str(path), "/hello?y")

    assert serving(path, ask) == b"hello y\n"
    path.write_text("precious")
    with pytest.raises(OSError, match="no socket"):
        serving(path, lambda: None)
    assert path.read_text() == "precious"


def test_a_server_for_every_path_has_own_headers():
    async def scenario():
        server = HttpServer("127.0.0.1", 0, {ANY: lambda _query: Response(200, headers=(("X-A", "b"),))})
        await server.start()
        try:
            return await get(server.port, "/whatever")
        finally:
            await server.stop()

    status, headers, _ = asyncio.run(scenario())
    assert (status, headers["X-A"]) == (200, "b")
