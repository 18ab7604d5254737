"""pycnictl status, ipam and dump: what they ask, print and exit with."""

import json
import re
import subprocess
import sys

import msgspec
import pytest

from pycni import cli, cli_agent, cli_status_text
from pycni.agent.status_model import (
    Complaint,
    Dump,
    IpamStatus,
    LeaseStatus,
    NetworkStatus,
    PartStatus,
    PeerStatus,
    Released,
    RepairStatus,
    Reserved,
    Section,
    Status,
)
from pycni.cli_agent import AgentError

ANSI = "\033["


def peer(number=1, **fields):
    return PeerStatus(
        **{
            "lease": f"10.5.{number}.0-24",
            "family": "ipv4",
            "subnet": f"10.5.{number}.0/24",
            "public": f"192.0.2.{number}",
            "backend": "vxlan",
            "reachable": True,
            "latency_ms": 0.25,
            "asked_s": 3.0,
            "answered_s": 3.0,
            "refused": "",
        }
        | fields
    )


def network(*peers, **fields):
    lease = LeaseStatus(
        key="10.5.9.0-24",
        subnets=("10.5.9.0/24",),
        public=("192.0.2.9",),
        backend="vxlan",
        expires_in_s=7000.0,
        confirmed=True,
    )
    return NetworkStatus(
        **{
            "backend": "vxlan",
            "subnets": ("10.5.9.0/24",),
            "networks": ("10.5.0.0/16",),
            "underlay": "eth0",
            "underlay_mtu": 1500,
            "mtu": 1450,
            "lease": lease,
            "leases": len(peers) + 1,
            "waiting": "",
            "probed": True,
            "peers": peers,
        }
        | fields
    )


def status(net=None, **fields):
    return Status(
        **{
            "node": "n1",
            "version": "1",
            "kernel": "6.1",
            "pid": 7,
            "up_s": 60.0,
            "memory_bytes": 50 << 20,
            "ready": True,
            "components": ("network",),
            "parts": (PartStatus("cni", True, "", 50.0),),
            "pods": {"ready": 2, "pending": 0, "dying": 0},
            "network": net,
            "errors": (),
            "repairs": (),
            "repaired": {},
        }
        | fields
    )


class FakeAgent:
    """Answers by path; an exception is raised."""

    def __init__(self, answers, node="n1"):
        self.node = node
        self.answers = answers
        self.asked = []

    def fetch(self, target):
        self.asked.append(target)
        answer = self.answers[target.partition("?")[0]]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, bytes) else msgspec.json.encode(answer)


@pytest.fixture
def run(monkeypatch, capsys):
    def call(words, *agents):
        monkeypatch.setattr(cli_agent, "agents", lambda _args: list(agents))
        code = cli.main(words.split())
        return code, capsys.readouterr().out

    return call


DEAD = AgentError("no agent answers at /x: gone")

STATUSES = {
    "all well": (
        status(network(peer())),
        0,
        ["n1: ready", "1 peer, 1 of 1 probed reachable", "0.25 ms", "drift     none"],
    ),
    "part red": (
        status(network(), ready=False, parts=(PartStatus("proxy", False, "no listing", 3.0),)),
        1,
        ["NOT READY", r"proxy +RED +3 s +no listing"],
    ),
    "peer lost": (
        status(network(peer(reachable=False, latency_ms=None, answered_s=300.0))),
        0,
        ["1 unreachable", r"UNREACHABLE, answered 5 min ago +- +3 s ago"],
    ),
    "peer refused": (status(network(peer(refused="it overlaps"))), 0, ["skipped: it overlaps"]),
    "peer silent": (status(network(peer(reachable=None, latency_ms=None))), 0, ["never answered"]),
    "not probed": (
        status(network(peer(reachable=None, latency_ms=None, asked_s=None), probed=False)),
        0,
        ["not probed \\(vtep-probe-port 0\\)"],
    ),
    "etcd away": (
        status(network(waiting="etcd is silent", lease=None)),
        0,
        ["waiting   etcd is silent", "lease     none"],
    ),
    "errors": (
        status(network(), errors=(Complaint(0.0, 0.0, 3, "error", "etcd", "went away"),)),
        0,
        [r"error +etcd +3x +went away"],
    ),
    "repairs": (
        status(
            network(),
            repairs=(RepairStatus(0.0, "fabric", 2, "a route was deleted"),),
            repaired={"fabric": 9},
        ),
        0,
        ["set right: 9 of fabric", r"fabric +2 +a route was deleted"],
    ),
    "no network": (status(None, components=("proxy",)), 0, ["runs      proxy"]),
}


@pytest.mark.parametrize(("answer", "code", "words"), STATUSES.values(), ids=STATUSES)
def test_status_shows(run, answer, code, words):
    found, text = run("status", FakeAgent({"/status": answer}))
    assert found == code
    for word in words:
        assert re.search(word, text), (word, text)
    assert ANSI not in text, "coloured though it goes into a pipe"


def test_status_lists_many_peers_only_where_something_is_wrong(run):
    many = [peer(number) for number in range(1, 40)]
    agent = FakeAgent({"/status": status(network(*many, peer(77, reachable=False)))})
    _, text = run("status", agent)
    assert "10.5.77.0/24" in text
    assert "10.5.3.0/24" not in text
    assert "40 peers" in text
    assert "10.5.3.0/24" in run("status --all", agent)[1]


def test_status_of_a_lab_says_who_does_not_answer_and_fails(run):
    alive, dead = FakeAgent({"/status": status(network())}), FakeAgent({"/status": DEAD}, "n2")
    code, text = run("status", alive, dead)
    assert code == 1
    assert "node n2: no agent answers at /x: gone" in text
    code, text = run("status --json", alive, dead)
    found = json.loads(text)
    assert (code, found["ready"], found["nodes"][0]["node"]) == (1, False, "n1")
    assert found["silent"] == [{"node": "n2", "reason": "no agent answers at /x: gone"}]


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert cli_status_text.paint("x", "red") == "\033[31mx\033[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli_status_text.paint("x", "red") == "x"


def test_what_agents_say_cannot_steer_the_terminal(run):
    text = run("status", FakeAgent({"/status": status(network(peer(refused="\033[2Jaway")))}))[1]
    assert "\033" not in text
    assert "\\x1b[2Jaway" in text


HELD = Reserved(
    network="net",
    address="10.5.9.2",
    container_id="abcdef0123456789",
    ifname="eth0",
    state="ready",
    pod_namespace="shop",
    pod_name="web",
)
LEAK = msgspec.structs.replace(HELD, kind="leaked-reservation", why="its container is gone")


@pytest.mark.parametrize(
    ("rows", "code", "words"),
    [((), 0, "every reservation has its pod"), ((LEAK,), 1, "leaked-reservation  10.5.9.2")],
    ids=["clean", "leak"],
)
def test_ipam_check_fails_when_something_is_irregular(run, rows, code, words):
    agent = FakeAgent({"/ipam/check": IpamStatus(node="n1", rows=rows)})
    found, text = run("ipam check", agent)
    assert found == code
    assert words in text
    assert json.loads(run("ipam check --json", agent)[1])["ok"] is (code == 0)


@pytest.mark.parametrize(
    ("word", "shown"),
    [("", True), ("shop/web", True), ("web", True), ("abcdef", True), ("10.5.9.2", True), ("10.5.9", False)],
)
def test_ipam_show_finds_by(run, word, shown):
    text = run(f"ipam show {word}", FakeAgent({"/ipam": IpamStatus(node="n1", rows=(HELD,))}))[1]
    assert ("shop/web" in text) is shown


def test_ipam_release_asks_until_one_agent_has_the_address(run):
    no = FakeAgent({"/ipam/release": AgentError("...", 400, "10.5.9.2 is not reserved")})
    yes = FakeAgent(
        {
            "/ipam/release": Released(
                node="n2", address="10.5.9.2", network="net", container_id="c", how="gone"
            )
        }
    )
    code, text = run("ipam release 10.5.9.2 --force --network net", no, yes)
    assert code == 0
    assert "node n2: 10.5.9.2 of network net is free: gone" in text
    assert yes.asked == ["/ipam/release?address=10.5.9.2&network=net&force=1"]


def test_ipam_release_tells_the_reason_of_the_agent_that_has_it(monkeypatch, capsys):
    agents = [
        FakeAgent({"/ipam/release": AgentError("...", 400, text)})
        for text in (
            "10.5.9.2 is not reserved",
            "10.5.9.2: pod shop/web runs and has it",
            "10.5.9.2 is not reserved",
        )
    ]
    monkeypatch.setattr(cli_agent, "agents", lambda _args: agents)
    assert cli.main(["ipam", "release", "10.5.9.2"]) == 1
    assert "pod shop/web runs and has it" in capsys.readouterr().err


SAME = Section(part="fabric", name="kernel", desired=("a", "b"), actual=("a", "b"))
OTHER = Section(part="pods", name="shop/web", desired=("a",), actual=("c",), missing=("a",), extra=("c",))


def lines(*pieces):
    return b"".join(msgspec.json.encode(piece) + b"\n" for piece in pieces)


@pytest.mark.parametrize(
    ("words", "code", "has", "lacks"),
    [
        ("dump", 1, ["fabric kernel: as wanted, 2 lines", "- a", "+ c"], ["\nb\n"]),
        ("dump --desired", 0, ["a\nb\n"], ["\nc\n", "- a"]),
        ("dump --actual", 0, ["a\nb\n", "\nc\n"], ["+ c"]),
    ],
    ids=["diff", "desired", "actual"],
)
def test_dump_shows_one_side_or_what_differs(run, words, code, has, lacks):
    agent = FakeAgent({"/dump": lines(Dump(node="n1", sections=(SAME,)), Dump(node="n1", sections=(OTHER,)))})
    found, text = run(words, agent)
    assert found == code
    assert all(word in text for word in has), text
    assert not any(word in text for word in lacks), text


def test_dump_fails_when_a_part_cannot_be_had(run):
    agent = FakeAgent({"/dump": lines(Dump(node="n1", sections=(SAME,), troubles={"pods": "not yet"}))})
    code, text = run("dump --actual", agent)
    assert code == 1
    assert "# node n1 pods: not yet" in text
    found = json.loads(run("dump --json", agent)[1])
    assert (found["same"], found["nodes"][0]["troubles"]) == (False, {"pods": "not yet"})


def test_dump_asks_for_one_part_only(run):
    agent = FakeAgent({"/dump": lines(Dump(node="n1", sections=(SAME,)))})
    assert run("dump --part fabric", agent)[0] == 0
    assert agent.asked == ["/dump?part=fabric"]


def test_help_imports_none_of_the_commands():
    code = (
        "import sys; from pycni import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in sys.modules if name.startswith('pycni.cli_') or name in ('msgspec', 'rich', 'tarfile')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for command in ("status", "ipam", "dump", "sysdump"):
        assert f"  {command} " in out
