"""pycnictl wireguard: what it prints, what it waits for, when it gives up."""

import json

import msgspec
import pytest

from pycni import cli, cli_agent, cli_wireguard
from pycni.agent.wireguard_rotate import KeyStatus
from pycni.cli_agent import AgentError

OLD, NEW = "old=", "new="


class FakeAgent:
    """Answers with each status in turn, the last one for ever."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.asked = []

    def fetch(self, target):
        self.asked.append(target)
        status = self.statuses[0] if len(self.statuses) == 1 else self.statuses.pop(0)
        return msgspec.json.encode(status)


def status(key=OLD, following="", period_s=0.0):
    return KeyStatus(node="n1", key=key, made=0.0, following=following, period_s=period_s)


def run(monkeypatch, agent, *words):
    monkeypatch.setattr(cli_agent, "agents", lambda _args: [agent])
    monkeypatch.setattr(cli_wireguard, "POLL_S", 0.0)
    return cli.main(["wireguard", *words])


def test_the_key_is_shown_and_nothing_asked_for(monkeypatch, capsys):
    agent = FakeAgent(status(period_s=86400.0))
    assert run(monkeypatch, agent) == 0
    words = capsys.readouterr().out
    assert words.startswith("node n1: old=, made 19")
    assert "changed every 24 h" in words
    assert agent.asked == ["/wireguard"]


def test_rotate_waits_until_the_new_key_is_in_force(monkeypatch, capsys):
    agent = FakeAgent(status(), status(), status(), status(following=NEW), status(NEW))
    assert run(monkeypatch, agent, "--rotate", "--json") == 0
    assert json.loads(capsys.readouterr().out)["key"] == NEW
    assert agent.asked == ["/wireguard", "/wireguard/rotate", *["/wireguard"] * 3]


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        (status(following=NEW), "old= is still in force: new= is to follow, the lease does not say it yet"),
        (status(), "old= is still in force: the agent did nothing yet"),
    ],
    ids=["not published", "nothing done"],
)
def test_a_key_that_does_not_come_is_an_error(monkeypatch, capsys, last, reason):
    assert run(monkeypatch, FakeAgent(status(), last), "--rotate", "--timeout", "0") == 1
    assert reason in capsys.readouterr().err


def test_an_answer_nobody_can_read_is_an_error(monkeypatch, capsys):
    agent = FakeAgent()
    agent.fetch = lambda _target: b"nonsense"
    assert run(monkeypatch, agent) == 1
    assert "cannot be read" in capsys.readouterr().err


def test_a_network_of_another_type_is_told_in_the_agents_words(monkeypatch, capsys):
    agent = FakeAgent()

    def fetch(_target):
        raise AgentError("the agent at x answers 503: no WireGuard key is in use", 503)

    agent.fetch = fetch
    assert run(monkeypatch, agent, "--rotate") == 1
    assert "no WireGuard key is in use" in capsys.readouterr().err
