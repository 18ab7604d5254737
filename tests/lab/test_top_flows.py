"""``pycnictl top`` and ``flows`` over a lab: what a client sends shows, with names, translation, verdicts; nothing stays."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest

from pycni.lab.ask_client import ask_from
from pycni.lab.run import Lab

from .lab_tools import COMMAND, ROOT, apply, ctl, environment, running, within

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running(nodes=2, pods=0, proxy="nftables", policy="nftables") as made:
        apply(made, EXAMPLES / "web.yaml", EXAMPLES / "policy-tiers.yaml")
        yield made


class Listener:
    """A command that goes on printing JSON, one object a line."""

    def __init__(self, lab: Lab, *words: str) -> None:
        command = [*COMMAND, *words, "--json", "--name", lab.spec.name]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment())
        self.rows: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.rows.append(json.loads(line))

    def of(self, **fields: object) -> list[dict[str, Any]]:
        return [
            row
            for row in list(self.rows)
            if all(row.get(name, "") == value for name, value in fields.items())
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            assert self.process.wait(20) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self._thread.join()
            assert self.process.stdout is not None
            self.process.stdout.close()


def test_flows_show_what_is_allowed_denied_and_translated_with_names(lab: Lab) -> None:
    with Listener(lab, "flows", "-f") as listener:
        # Connections and denials, of two nodes.
        assert within(20, lambda: len(listener.of(type="listening")) == 4), listener.rows
        assert ask_from(lab, "shopper.shop", "web.shop:80", timeout=5.0).pods
        assert not ask_from(lab, "visitor.guest", "web.shop:80", timeout=0.5).pods
        closed = {"event": "ended", "source_name": "shop/shopper", "service": "shop/web"}
        assert within(20, lambda: bool(listener.of(**closed) and listener.of(verdict="denied"))), (
            listener.rows
        )
    (began,) = listener.of(event="new", source_name="shop/shopper", service="shop/web")
    assert (began["verdict"], began["protocol"], began["port"]) == ("allowed", "TCP", 80)
    assert began["translated_name"].startswith("shop/web-")
    assert began["translated_port"] == 8080
    ended = listener.of(**closed)[0]
    assert ended["answered"] is True
    assert ended["bytes_out"] > 0, "the agent has accounting switched on"
    denied = listener.of(verdict="denied")[0]
    assert (denied["source_name"], denied["policy"], denied["direction"], denied["port"]) == (
        "guest/visitor",
        "NetworkPolicy shop/web",
        "ingress",
        8080,
    )
    assert denied["destination_name"].startswith("shop/web-")
    assert listener.of(type="lost") == []
    times = [row["time"] for row in listener.rows if row["type"] == "flow"]
    assert all(later >= earlier - 1.0 for earlier, later in pairwise(times))
    assert not [row for row in listener.rows if row.get("port") == 8472], "tunnels are nobody's connection"


def test_the_present_table_is_filtered_and_says_what_it_leaves_out(lab: Lab) -> None:
    assert ask_from(lab, "shopper.shop", "web.shop:80", timeout=5.0).pods
    done = ctl("flows", "--json", "--name", lab.spec.name, "--service", "web", "--pod", "shopper")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert rows
    assert {(row["event"], row["service"], row["source_name"]) for row in rows} == {
        ("present", "shop/web", "shop/shopper")
    }
    done = ctl("flows", "--name", lab.spec.name)
    assert "shop/shopper (" in done.stdout
    assert "\033[" not in done.stdout, "colours are for terminals"
    assert "concern neither pods nor services: --all shows them" in done.stderr
    assert ":8472" in ctl("flows", "--all", "--name", lab.spec.name).stdout
    assert ctl("flows", "--json", "--name", lab.spec.name, "--verdict", "untranslated").stdout == ""


def test_top_shows_the_traffic_that_a_client_makes(lab: Lab) -> None:
    with (
        Listener(lab, "top", "--interval", "0.5") as listener,
        lab.traffic("shopper.shop", lab.pod("visitor.guest").ips[0], 0.01),
    ):

        def best(view: str, field: str, **which: str) -> float:
            return max(
                (
                    row[field] or 0
                    for frame in list(listener.rows)
                    for row in frame[view]
                    if all(row[name] == value for name, value in which.items())
                ),
                default=0,
            )

        web, client, served = {"service": "shop/web"}, {"pod": "shop/shopper"}, {"pod": "guest/visitor"}
        assert within(20, lambda: best("pods", "packets_out", **client) > 20)
        assert within(20, lambda: best("pods", "packets_in", **served) > 20)

        def shown() -> bool:
            ask_from(lab, "shopper.shop", "web.shop:80", count=20, timeout=5.0)
            return bool(
                best("services", "new", **web)
                and best("services", "bytes_in", **web)
                and best("pods", "new", **client)
            )

        assert within(30, shown)
    # A hundred pings a second, of 84 bytes and their frames' heads.
    ping = [row for frame in listener.rows[1:] for row in frame["pods"] if row["pod"] == "shop/shopper"]
    assert any(row["bytes_out"] >= row["packets_out"] * 60 > 0 for row in ping)
    assert 20 < sorted(row["packets_out"] for row in ping)[len(ping) // 2] < 2000
    first = listener.rows[0]
    assert {row["node"] for row in first["nodes"]} == {"node1", "node2"}
    assert {row["pod"] for row in first["pods"]} >= {"shop/shopper", "guest/visitor", "kube-system/dns"}
    assert all(row["troubles"] == [] for row in first["nodes"])


def test_top_once_prints_tables_of_all_nodes_or_of_one(lab: Lab) -> None:
    done = ctl("top", "--once", "--name", lab.spec.name, "-i", "0.3")
    assert done.returncode == 0, done.stderr
    heads = [line.split()[0] for line in done.stdout.splitlines() if "NODE" in line]
    assert heads[:3] == ["NODE", "POD", "SERVICE"]
    assert "shop/shopper" in done.stdout
    done = ctl(
        "top",
        "pods",
        "--once",
        "--name",
        lab.spec.name,
        "-i",
        "0.3",
        "--filter",
        "shop web",
        "-n",
        "1",
        "-s",
        "pod",
    )
    assert [line.split()[0] for line in done.stdout.splitlines() if line] == ["POD", "shop/web-1", "..."]
    done = ctl("top", "pods", "--once", "--name", lab.spec.name, "--node", "node1", "-i", "0.3")
    assert {line.split()[1] for line in done.stdout.splitlines()[1:] if line} == {"node1"}


def test_on_a_node_itself_no_lab_has_to_be_named(lab: Lab) -> None:
    """The commands as they run on a real node: in its own namespace, with the agent's socket alone."""
    socket = str(Path(lab.node("node2").socket).with_name("agent.sock"))
    here = ["env", f"PYTHONPATH={ROOT}", *COMMAND]
    done = lab.exec("node2", [*here, "top", "--once", "--json", "-i", "0.3", "--socket", socket])
    (node,) = json.loads(done.stdout)["nodes"]
    assert (node["node"], node["troubles"]) == ("node2", [])
    assert node["tracked"] > 0
    done = lab.exec("node2", [*here, "flows", "--all", "--json", "--socket", socket])
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["node"] for row in rows} == {"node2"}
    assert any(row.get("source_name") == "node/node2" for row in rows)


def test_an_agent_that_is_away_is_named_and_the_others_are_shown(lab: Lab) -> None:
    lab.signal_agent("node1", 9)
    try:
        done = ctl("top", "nodes", "--once", "--name", lab.spec.name, "-i", "0.3")
        assert done.returncode == 0
        assert "node2" in done.stdout
        assert "node1: agent: no agent answers" in done.stderr
        done = ctl("flows", "--name", lab.spec.name, "--all")
        assert "node1" in done.stdout, "connection tracking needs no agent"
    finally:
        lab.start_agents(["node1"])


REFUSED = [
    (["top", "--once", "-i", "0"], "at least 0.2 s"),
    (["top", "--once", "-s", "colour"], "--sort colour: pods have pod, node"),
    (["flows", "--changes"], "add -f"),
    (["flows", "two words"], "'two words'"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_makes_no_sense_is_refused(words: list[str], said: str) -> None:
    done = ctl(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
