"""What operators see of policies in a lab: the documentation's example, explained across nodes, denied live, counted."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycni.lab.ask_client import ask_from
from pycni.lab.run import Lab

from .lab_tools import COMMAND, apply, ctl, environment, running

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with running(nodes=2, pods=0, proxy="nftables", policy="nftables") as made:
        apply(made, EXAMPLES / "web.yaml", EXAMPLES / "policy-tiers.yaml")
        yield made


EXPLAINED = [
    ("guest/visitor", "shop/web", "9000/UDP", 1, "denied   by rule ingress[0] (no-statistics) of ClusterNetworkPolicy no-guests"),
    ("shopper", "shop/web", "80", 0, "allowed  by rule ingress[0] of NetworkPolicy shop/web"),
    ("web-1", "kube-system/kube-dns", "53/UDP", 0, "allowed  by rule egress[0] of NetworkPolicy shop/web-out"),
]  # fmt: skip


def test_connections_are_explained_across_nodes_and_every_kernel_agrees(lab: Lab) -> None:
    for source, destination, what, code, why in EXPLAINED:
        done = ctl("policy", "explain", "--name", lab.spec.name, source, destination, what)
        assert (done.returncode, done.stderr) == (code, ""), done.stdout
        assert why in done.stdout
        assert "not asked" not in done.stdout
        blocks = done.stdout.count(" -> ")
        assert blocks == done.stdout.count("\n  kernel   node"), done.stdout
    done = ctl("policy", "explain", "--name", lab.spec.name, "--json", "shopper", "web", "80")
    asked = [item["by_node"] for item in json.loads(done.stdout)["connections"]]
    assert len(asked) == 3
    assert {node for nodes in asked for node in nodes} == {"node1", "node2"}


def test_a_denied_connection_is_told_live_and_counted(lab: Lab) -> None:
    words = ["drops", "-f", "-c", "1", "--json", "--pod", "guest/visitor", "--name", lab.spec.name]
    with subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, text=True, env=environment()
    ) as listener:
        assert listener.stdout is not None
        ready = sorted(json.loads(listener.stdout.readline())["node"] for _ in range(2))
        assert ready == ["node1", "node2"]
        tally = ask_from(lab, "visitor.guest", "web.shop:80", timeout=0.5)
        assert not tally.pods
        told = json.loads(listener.stdout.readline())
        assert listener.wait(20) == 0
    assert (told["source_pod"], told["port"], told["policy"]) == (
        "guest/visitor",
        8080,
        "NetworkPolicy shop/web",
    )
    assert told["destination_pod"].startswith("shop/web-")
    listed = json.loads(ctl("policy", "--json", "--name", lab.spec.name).stdout)["nodes"]
    denied = {
        row["name"]: row["denied"]["ingress"]["packets"]
        for node in listed
        if node["node"] == told["node"]
        for row in node["policies"]
        if "ingress" in row["denied"]
    }
    assert denied["web"] >= 1
    assert denied["no-guests"] == 0


def test_what_somebody_deletes_from_a_kernel_is_named(lab: Lab) -> None:
    found = json.loads(ctl("policy", "--json", "--name", lab.spec.name, "web-1").stdout)
    assert found["node"] == found["runs_on"]
    element = f"{{ {found['addresses'][0]} }}"
    for name in ("judged_ingress4", "closed_ingress4"):
        lab.exec(found["node"], ["nft", "delete", "element", "inet", "pycni_policy", name, element])
    done = ctl("policy", "explain", "--name", lab.spec.name, "visitor", "web-1", "8080")
    assert done.returncode == 2
    assert (
        f"{found['node']}: nftables in the kernel: allowed, expected ingress denied by NetworkPolicy shop/web"
        in done.stdout
    )
    assert f"note: {found['node']}: nftables in the kernel: rows of judged_ingress4: 1 missing" in done.stdout
