"""``pycnictl drops`` and what it stands on: sources, listeners, and answers of the control socket that go on."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest

from pycni import cli_agent
from pycni.agent import httpd
from pycni.agent.httpd import Response
from pycni.cli_agent import Agent
from pycni.errors import KernelError
from pycni.model.kube import TCP
from pycni.policy.base import Drop
from pycni.policy.drops import QUEUE, DropHub
from tests.unit.control_socket import serving
from tests.unit.policy_agents import POLICIES, FakeReader, at_once, engine_of, pycnictl, routes_of
from tests.unit.policy_world import world

pytestmark = pytest.mark.timeout(30)


def drop(**fields):
    given = {
        "time": 1700000000.25, "source": bytes((10, 244, 2, 12)), "destination": bytes((10, 244, 1, 11)), "protocol": TCP,
        "source_port": 40000, "port": 80, "direction": "ingress", "policy": "NetworkPolicy x/web", "more": 1, "by": "nftables",
    }  # fmt: skip
    return Drop(**{**given, **fields})


@pytest.fixture
def source(tmp_path, monkeypatch):
    """An agent whose only source of drops is a test's."""
    objects = world(POLICIES)
    engine = engine_of("n1", objects)
    made = []
    routes = routes_of("n1", engine, objects)

    def opened():
        made.append(
            FakeReader(
                [drop(), drop(source=bytes((192, 0, 2, 1)), protocol=1, port=0, source_port=0, more=0)]
            )
        )
        return [made[-1]]

    monkeypatch.setattr(routes._hub, "_open", opened)
    with serving(tmp_path / "s", routes.routes()):
        yield str(tmp_path / "s"), made, routes


def test_drops_are_lines(source, capsys, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    path, made, _ = source
    code, out, err = pycnictl(capsys, "drops", "-f", "-c", "2", "--socket", path)
    assert (code, err) == (0, "listening on n1\n")
    assert [line.partition(" ")[2] for line in out.splitlines()] == [
        "n1 nftables TCP   x/b (10.244.2.12:40000) -> x/a (10.244.1.11:80)  ingress NetworkPolicy x/web and 1 more",
        "n1 nftables ICMP  192.0.2.1 -> x/a (10.244.1.11)  ingress NetworkPolicy x/web",
    ]
    _, out, _ = pycnictl(capsys, "drops", "-f", "-c", "1", "--json", "--socket", path)
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows[0] == {"node": "n1", "listening": True}
    assert (rows[1]["source_pod"], rows[1]["port"], rows[1]["by"], rows[1]["more"]) == (
        "x/b",
        80,
        "nftables",
        1,
    )
    for reader in made:
        for _ in range(100):
            if reader.closed:
                break
            threading.Event().wait(0.02)
        assert reader.closed, "the source is closed when its last listener has gone"


def test_one_pods_drops(source, capsys):
    path, _, _ = source
    _, out, _ = pycnictl(capsys, "drops", "-f", "-c", "1", "--pod", "x/b", "--json", "--socket", path)
    assert json.loads(out.splitlines()[1])["source_pod"] == "x/b"
    code, _, err = pycnictl(capsys, "drops", "-f", "--pod", "x/none", "--socket", path)
    assert code == 1
    assert "x/none: not a pod that this agent knows of" in err


def test_an_agent_that_ends_is_told(tmp_path, capsys):
    async def brief():
        yield '{"node":"n1","listening":true}\n'

    async def answer(_query):
        return Response(200, stream=brief)

    with serving(tmp_path / "s", {"/drops": answer}):
        code, _, err = pycnictl(capsys, "drops", "-f", "--socket", str(tmp_path / "s"))
    assert (code, err) == (1, f"listening on n1\npycnictl: {tmp_path / 's'}: the agent has ended\n")


def test_a_source_that_cannot_be_opened_is_said(source, capsys, monkeypatch):
    path, _, routes = source

    def fails():
        raise KernelError(1, "listen to packet log", "group 100", "another program listens to this group")

    monkeypatch.setattr(routes._hub, "_open", fails)
    code, _, err = pycnictl(capsys, "drops", "-f", "--socket", path)
    assert code == 1
    assert (
        err == "pycnictl: n1: listen to packet log group 100: EPERM (another program listens to this group)\n"
    )


def test_a_slow_listener_is_told_what_it_missed_and_others_miss_nothing():
    async def story():
        reader = FakeReader()
        hub = DropHub(lambda: [reader], at_once)
        slow, quick = hub.listen(), hub.listen()
        await anext(slow)
        await anext(quick)
        seen = 0
        for number in range(3):
            reader.drops = [drop(port=number)] * 600
            reader.lost += 5
            reader.ours.send(b"x")
            news = await anext(quick)
            seen += len(news.drops)
            assert news.lost == 5
        news = await anext(slow)
        assert (len(news.drops), news.lost) == (QUEUE, 3 * 600 - QUEUE + 15)
        assert seen == 1800
        await slow.aclose()
        assert not reader.closed
        await quick.aclose()
        assert reader.closed

    asyncio.run(story())


@pytest.mark.parametrize("way", ["read", "lost"])
def test_a_source_that_breaks_is_told_and_the_others_go_on(way):
    class Broken(FakeReader):
        def read(self):
            if way == "read":
                raise KernelError(74, "read packet log", "group 100", "nonsense")
            self.opened = True
            return []

        @property
        def lost(self):
            if getattr(self, "opened", False):
                raise KernelError(74, "read packet log", "group 100", "nonsense")
            return 0

        @lost.setter
        def lost(self, _):
            pass

    async def story():
        broken, fine = Broken(), FakeReader([drop()])
        hub = DropHub(lambda: [broken, fine], at_once)
        listener = hub.listen()
        found = [await anext(listener) for _ in range(3)]
        assert max(item.trouble for item in found) == "read packet log group 100: EBADMSG (nonsense)"
        assert sum(len(item.drops) for item in found) == 1
        assert (broken.closed, fine.closed) == (True, False)
        await listener.aclose()
        assert fine.closed

    asyncio.run(story())


# --- streams of the control socket -----------------------------------------------------------------------------------


def test_a_stream_ends_when_the_client_goes_and_does_not_count_against_the_time_for_an_answer(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(httpd, "REQUEST_SECONDS", 0.1)
    ended = threading.Event()

    async def endless():
        try:
            number = 0
            while True:
                yield f"{number}\n"
                number += 1
                await asyncio.sleep(0.05)
        finally:
            ended.set()

    async def answer(_query):
        return Response(200, "text/plain", stream=endless)

    with serving(tmp_path / "s", {"/x": answer}):
        lines = cli_agent.lines(str(tmp_path / "s"), "/x")
        assert [next(lines) for _ in range(5)] == [b"0\n", b"1\n", b"2\n", b"3\n", b"4\n"]
        lines.close()
        assert ended.wait(5)


def test_a_stream_nobody_has_begun_opens_nothing(tmp_path):
    opened = []

    async def stream():
        opened.append(1)
        yield "x"

    async def answer(_query):
        return Response(200, stream=stream)

    head = asyncio.run(httpd.respond_later(b"HEAD /x HTTP/1.1\r\n", {"/x": answer}))
    assert head.stream is None
    assert b"Content-Length" not in head.head
    assert not opened


def test_an_agent_in_another_kernel_is_asked_over_there(tmp_path):
    """By a program, whose answer, lines and complaints are the same."""

    async def counting():
        for number in range(3):
            yield f"{number}\n"

    async def answer(query):
        if query == "bad":
            return Response(404, body="nothing of that name\n")
        return Response(200, stream=counting) if query == "stream" else Response(200, body="hello\n")

    path = str(tmp_path / "s")
    there = Agent("n1", path, ("nice",))
    with serving(path, {"/x": answer}):
        assert there.fetch("/x") == b"hello\n"
        assert list(there.lines("/x?stream")) == [b"0\n", b"1\n", b"2\n"]
        for ask in (there.fetch, lambda target: list(there.lines(target))):
            with pytest.raises(
                cli_agent.AgentError, match=f"^the agent at {path} answers 404: nothing of that name$"
            ) as caught:
                ask("/x?bad")
            assert (caught.value.status, caught.value.reason) == (404, "nothing of that name")
    with pytest.raises(cli_agent.AgentError, match=f"^no agent answers at {path}: "):
        there.fetch("/x")
    with pytest.raises(cli_agent.AgentError, match="No such file"):
        Agent("n1", path, ("nice", "/no/such/program")).fetch("/x")
