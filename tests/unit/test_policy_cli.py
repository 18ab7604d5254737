"""``pycnictl policy``: what people see, what programs get, exit codes, and what is refused in which words."""

from __future__ import annotations

import contextlib
import json

import pytest

from pycni import cli_agent
from pycni.cli_agent import Agent
from pycni.policy.base import Decision, Denied, Hits
from pycni.policy.report import Routes
from tests.unit.control_socket import serving
from tests.unit.policy_agents import POLICIES, Frozen, at_once, engine_of, pycnictl, routes_of
from tests.unit.policy_world import world

pytestmark = pytest.mark.timeout(30)


@pytest.fixture
def bridged(monkeypatch):
    monkeypatch.setattr("pycni.policy.report.sysctl.get", lambda _: "1")


@pytest.fixture
def lab(tmp_path, monkeypatch, bridged):
    """Agents of nodes n1 and n2; n3 does not answer."""
    objects = world(POLICIES)
    engines = {name: engine_of(name, objects) for name in ("n1", "n2")}
    monkeypatch.setattr(
        cli_agent,
        "agents",
        lambda args: [
            Agent(name, str(tmp_path / name)) for name in ([args.node] if args.node else ["n1", "n2", "n3"])
        ],
    )
    with contextlib.ExitStack() as stack:
        for name, engine in engines.items():
            stack.enter_context(serving(tmp_path / name, routes_of(name, engine, objects).routes()))
        yield engines


def test_the_list_adds_up_what_nodes_say(lab, capsys):
    lab["n1"].plane.driver.counts = [Denied("NetworkPolicy x/web", "ingress", 3, 180)]
    lab["n2"].plane.driver.counts = [
        Denied("NetworkPolicy x/web", "ingress", 1, 60),
        Denied("spoofed source", "egress", 2, 90),
    ]
    code, out, _ = pycnictl(capsys, "policy")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert code == 0
    assert lines[0] == "node n1: 3 pods, 1 isolated for ingress, 1 isolated for egress; enforced by nftables"
    assert lines[1] == "node n2: 3 pods, 1 isolated for ingress, 0 isolated for egress; enforced by nftables"
    assert lines[2].startswith("no agent answers at ")
    assert lines[3:] == [
        "POLICY TIER FOR SELECTS PODS DENIED STATE",
        "guard admin 3 ingress all namespaces 6 - in use",
        "x/out network egress pods pod=a 1 - in use",
        "x/web network ingress pods pod=a 1 4 packets in use",
        "y/none network ingress pods pod=b 1 - in use",
        "ClusterNetworkPolicy guard: ingress[1]: nodes: not known here, so this rule denies everything",
    ]
    code, out, _ = pycnictl(capsys, "drops")
    assert [line.split() for line in out.splitlines()][1:4] == [
        ["n1", "NetworkPolicy", "x/web", "ingress", "3", "180"],
        ["n2", "NetworkPolicy", "x/web", "ingress", "1", "60"],
        ["n2", "spoofed", "source", "egress", "2", "90"],
    ]


def test_a_pod_has_a_page(lab, capsys):
    code, out, _ = pycnictl(capsys, "policy", "x/a")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines == [
        "pod x/a on n1 (10.244.1.11, fd00:244:1::11), pod=a",
        "enforced by nftables",
        "",
        "ingress: 2 policies; what no rule decides is denied",
        "POLICY TIER SELECTS HITS DENIED RULE ACTION FROM PORTS",
        "guard admin 3 all namespaces - - ingress[0] no-z Deny all pods of namespaces ns=z (3 pods) everything",
        "ingress[1] Deny nodes (not known here) everything",
        "nodes: not known here, so this rule denies everything",
        "x/web network pods pod=a - - ingress[0] Accept pods pod=b of namespace x (1 pod) TCP 80",
        "TCP serve-81-tcp (81)",
        "",
        "egress: 1 policy; what no rule decides is denied",
        "POLICY TIER SELECTS HITS DENIED RULE ACTION TO PORTS",
        "x/out network pods pod=a - - egress[0] Accept 10.0.0.0/8 except 10.9.0.0/16 everything",
    ]


EXPLAINED = [
    ("denied on another node", ("x/a", "y/b", "80"), 1, "x/a (10.244.1.11) -> y/b (10.244.2.22), TCP port 80: denied\n  egress   allowed  by rule egress[0] of NetworkPolicy x/out (on n1)\n  ingress  denied   by rule ingress[1] of ClusterNetworkPolicy guard (on n2)\n  kernel   n1 agrees (nftables); n2 agrees (nftables)\n"),
    ("a node's own pods", ("node/n1", "x/a", "80/udp"), 0, "node n1 (192.168.0.1) -> x/a (10.244.1.11), UDP port 80: allowed\n  egress   allowed  policies are not for nodes and pods on their network\n  ingress  allowed  a node and its own pods reach each other (on n1)\n"),
    ("ICMP", ("x/a", "10.9.1.1", "icmp"), 1, "x/a (10.244.1.11) -> 10.9.1.1, ICMP: denied\n  egress   denied   no rule of NetworkPolicy x/out allows it (on n1)\n  ingress  allowed  no pod\n"),
    ("a node that is silent", ("192.0.2.1", "y/c", "80"), 1, "n3 did not answer"),
    ("nobody to judge", ("192.0.2.1", "192.0.2.2", "80"), 0, "  kernel   nobody has to judge this\n"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "code", "text"), [case[1:] for case in EXPLAINED], ids=[case[0] for case in EXPLAINED]
)
def test_explain_says_why_and_exits_by_the_verdict(lab, capsys, words, code, text):
    found, out, _ = pycnictl(capsys, "policy", "explain", *words)
    assert text in out
    assert found == code


def test_explain_says_when_a_kernel_does_something_else(lab, capsys, monkeypatch):
    lab["n1"].plane.driver.tables["judged_egress4"].clear()
    lab["n1"].plane.driver.tables["closed_egress4"].clear()
    code, out, _ = pycnictl(capsys, "policy", "explain", "x/a", "10.9.1.1", "80")
    assert code == 2
    assert "  kernel   n1 does something else\n" in out
    assert "  n1: nftables in the kernel: allowed, expected egress denied by NetworkPolicy x/out\n" in out
    assert "note: n1: nftables in the kernel: rows of judged_egress4: 1 missing\n" in out
    code, out, _ = pycnictl(capsys, "policy", "explain", "--json", "x/a", "10.9.1.1", "80")
    found = json.loads(out)
    assert code == 2
    assert found["connections"][0]["by_node"]["n1"]["differences"]
    assert found["connections"][0]["connection"]["allowed"] is False


def test_a_table_with_parts_missing_is_a_difference_and_no_failure(lab, capsys):
    lab["n1"].plane.driver.tables["chains"].clear()
    code, out, _ = pycnictl(capsys, "policy", "explain", "x/a", "10.9.1.1", "80")
    assert code == 2
    assert "  n1: nftables in the kernel: cannot be told (look up pods-egress4-" in out
    assert ": ENOENT), expected egress denied by NetworkPolicy x/out\n" in out


def test_a_fast_path_is_asked_too(bridged, tmp_path, capsys):
    objects = world(POLICIES)
    engine = engine_of("n1", objects)

    class Fast:
        name = "ebpf"

        def decide(self, packet):
            return engine.plane.compiler.decide(engine.tables, packet)

        def read_back(self, packet):
            return Decision(True)

        def problems(self):
            return ["uplink eth1 has no programs"]

        def denied(self):
            return [Denied("NetworkPolicy x/out", "egress", 2, 120)]

        def hits(self):
            return [Hits("NetworkPolicy x/out", "egress", 7)]

    engine.fast = Fast()
    with serving(tmp_path / "s", routes_of("n1", engine, objects).routes()):
        words = ("policy", "explain", "--socket", str(tmp_path / "s"), "x/a", "10.9.1.1", "80")
        code, out, _ = pycnictl(capsys, *words)
        assert code == 2
        assert "n1: ebpf in the kernel: allowed, expected egress denied by NetworkPolicy x/out" in out
        assert "note: n1: ebpf: uplink eth1 has no programs" in out
        _, out, _ = pycnictl(capsys, "policy", "--socket", str(tmp_path / "s"), "x/a")
        assert "enforced by ebpf, nftables" in out
        assert "  x/out   network  pods pod=a  7     2 packets  egress[0]" in out
        assert "  guard   admin 3  all namespaces  0     -       ingress[0] no-z" in out
        engine.fast.decide = engine.fast.read_back = lambda _: None
        code, out, _ = pycnictl(capsys, *words)
        assert code == 1
        assert "n1 agrees (nftables)" in out, "ebpf leaves it to nftables"
        engine.aside = "the maps are full"
        code, out, _ = pycnictl(capsys, *words)
        assert code == 1
        assert "note: n1: ebpf stands aside: the maps are full" in out


def test_a_pod_that_is_shut_is_shown_as_closed(bridged, tmp_path, capsys):
    objects = world(POLICIES)
    engine = engine_of("n1", objects)
    routes = routes_of("n1", engine, objects, shut=lambda: frozenset({bytes((10, 244, 1, 11))}))
    with serving(tmp_path / "s", routes.routes()):
        socket = ("--socket", str(tmp_path / "s"))
        _, out, _ = pycnictl(capsys, "policy", "x/a", *socket)
        assert out.count("  closed: nothing passes until the pod's policies are programmed\n") == 2
        code, out, _ = pycnictl(capsys, "policy", "explain", "x/a", "10.1.1.1", "80", *socket)
        assert code == 2
        assert "n1: pycni_shut: egress denied by pods without their policies yet, expected allowed" in out
        code, out, _ = pycnictl(capsys, "policy", "explain", "y/a", "10.1.1.1", "80", *socket)
        assert code == 0
        _, out, _ = pycnictl(capsys, "policy", *socket)
        assert "  1 addresses closed for egress until their policies are programmed\n" in out
        engine.closed = {"y/a": "rule refused: E2BIG"}
        _, out, _ = pycnictl(capsys, "policy", "y/a", *socket)
        assert "note: pod y/a is closed: rule refused: E2BIG" in out
        assert "closed" in out


def test_policies_that_cannot_be_read_are_listed(bridged, tmp_path, capsys):
    objects = world(POLICIES)
    lines = {
        "NetworkPolicy x/bad": ["spec.ingress: no list"],
        "NetworkPolicy x/web": ["the kernel refuses it"],
        "file zz.yaml": ["no YAML"],
    }
    routes = routes_of(
        "n1",
        engine_of("n1", objects),
        objects,
        problems=lambda: lines,
        trouble=lambda: "1 policy cannot be read",
    )
    with serving(tmp_path / "s", routes.routes()):
        _, out, _ = pycnictl(capsys, "policy", "--socket", str(tmp_path / "s"))
    assert "not as policies say: 1 policy cannot be read\n" in out
    assert "zz.yaml" not in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("cannot be read")][-1] == "x/bad"
    assert "NetworkPolicy x/bad: spec.ingress: no list\n" in out
    assert "NetworkPolicy x/web: the kernel refuses it\n" in out


def test_json_is_what_the_agents_say(lab, capsys):
    code, out, _ = pycnictl(capsys, "policy", "--json")
    found = json.loads(out)
    assert code == 0
    assert [node["node"] for node in found["nodes"]] == ["n1", "n2"]
    assert len(found["silent"]) == 1
    assert found["nodes"][0]["policies"][2]["name"] == "web"
    _, out, _ = pycnictl(capsys, "policy", "--json", "y/b")
    assert (json.loads(out)["node"], json.loads(out)["pod"]) == ("n2", "y/b")
    _, out, _ = pycnictl(capsys, "drops", "--json")
    assert [node["node"] for node in json.loads(out)["nodes"]] == ["n1", "n2"]


REFUSED = [
    (
        ("policy", "x/nobody"),
        1,
        "pycnictl: x/nobody: not a pod that this agent knows of",
    ),
    (
        ("policy", "a"),
        1,
        "pycnictl: a: there are several pods of this name: x/a, y/a, z/a",
    ),
    (("policy", "explain", "x/a", "y/b"), 2, "explain wants SOURCE DESTINATION PORT[/PROTOCOL]"),
    (
        ("policy", "explain", "x/a", "y/b", "http"),
        2,
        "protocol 'http': expected TCP, UDP, SCTP, ICMP or a number below 256",
    ),
    (("policy", "explain", "x/a", "y/b", "70000"), 2, "port '70000': expected a number from 1 to 65535"),
    (("policy", "explain", "x/a", "y/b", "80/TPC"), 2, "protocol 'TPC': expected"),
    (("policy", "explain", "x/a", "fd00::1", "80", "90"), 2, "explain wants"),
    (
        ("policy", "explain", "10.0.0.1", "fd00::1", "80"),
        2,
        "10.0.0.1 and fd00::1 have no address family in common",
    ),
    (("policy", "x/a", "x/b"), 2, "one pod at a time, or explain: x/a x/b"),
    (("drops", "--pod", "x/a"), 2, "--pod and --count are for following: add -f"),
]


@pytest.mark.parametrize(("words", "code", "text"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_what_is_refused_is_said_in_one_line(lab, tmp_path, capsys, words, code, text):
    found, out, err = pycnictl(capsys, *words)
    assert (found, out) == (code, "")
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("words", "code"), [(("policy",), 1), (("policy", "a/x"), 1), (("policy", "explain", "a/x", "b/y", "80"), 2), (("drops",), 1), (("drops", "-f"), 1)])  # fmt: skip
def test_an_agent_that_is_not_there_is_named(tmp_path, capsys, words, code):
    path = str(tmp_path / "no.sock")
    found, out, err = pycnictl(capsys, words[0], "--socket", path, *words[1:])
    assert (found, out) == (code, "")
    assert err == f"pycnictl: no agent answers at {path}: No such file or directory\n"


def test_an_agent_without_policies_is_told_from_one_that_waits(tmp_path, capsys):
    path = tmp_path / "s"
    waiting = Routes("n1", lambda: None, lambda: Frozen({}), at_once, trouble=lambda: "no listing of Pod yet")
    with serving(path, waiting.routes()):
        found, _, err = pycnictl(capsys, "policy", "--socket", str(path))
    assert found == 1
    assert (
        "answers 503: policies are not known yet: the agent has not programmed any (no listing of Pod yet)"
        in err
    )
    with serving(tmp_path / "t", {"/services": at_once}):
        found, _, err = pycnictl(capsys, "policy", "--socket", str(tmp_path / "t"))
    assert found == 1
    assert (
        err
        == f"pycnictl: the agent at {tmp_path / 't'} does not run what answers /policies (setting components)\n"
    )
