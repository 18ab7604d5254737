"""``pycnictl policy`` and ``drops``: what people see, what programs get, exit codes, and what is refused in which words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest

from pycni import cli, cli_agent
from pycni.agent import httpd
from pycni.agent.httpd import Response, UnixHttpServer
from pycni.cli_agent import Agent
from pycni.model.kube import TCP
from pycni.policy.base import Decision
from pycni.policy.drops import QUEUE, DropHub
from pycni.policy.report import Routes
from tests.unit.policy_world import cluster, policy, world

pytestmark = pytest.mark.timeout(30)

POLICIES = (
    policy("web", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}, {port: serve-81-tcp}]}]")
    + policy("out", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}]}]")
    + policy("none", "podSelector: {matchLabels: {pod: b}}, ingress: []", space="y")
    + cluster("guard", "ingress: [{action: Deny, name: no-z, from: [{namespaces: {matchLabels: {ns: z}}}]}, {action: Pass, from: [{nodes: {}}]}]", priority=3)
)  # fmt: skip


class FakeDriver:
    """A kernel that has what was compiled, until ``broken``."""

    def __init__(self, names):
        self.tables, self.counts = {name: {} for name in names}, []

    def read(self):
        return {name: dict(rows) for name, rows in self.tables.items()}

    def apply(self, changes):
        for name, delta in changes:
            table = self.tables[name]
            for key in delta.remove:
                table.pop(key, None)
            table.update({**delta.add, **delta.change})

    def denied(self):
        return self.counts


class FakeReader:
    """A source of drops that a test writes into."""

    def __init__(self, drops=()):
        import socket

        self.ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self.drops, self.lost, self.closed = list(drops), 0, False
        self.ours.send(b"x")

    def fileno(self):
        return self._theirs.fileno()

    def read(self):
        with contextlib.suppress(BlockingIOError):
            self._theirs.recv(100)
        found, self.drops = self.drops, []
        return found

    def close(self):
        self.closed = True
        self.ours.close()
        self._theirs.close()


@pytest.fixture
def bridged(monkeypatch):
    monkeypatch.setattr("pycni.policy.report.sysctl.get", lambda _: "1")


def engine_of(node, objects):
    from pycni.policy.base import Dataplane
    from pycni.policy.engine import PolicyEngine
    from pycni.policy.nft.compile import NftCompiler

    compiler = NftCompiler()
    engine = PolicyEngine(node, Dataplane("nftables", compiler, FakeDriver(compiler.tables)))
    engine.sync(Frozen(objects))
    return engine


class Frozen:
    """Objects as the store gives them."""

    def __init__(self, objects):
        self._objects = objects

    def of(self, kind):
        return self._objects.get(kind, {})

    def frozen(self):
        return self


async def at_once(job):
    return job()


def routes_of(node, engine, objects, **more):
    return Routes(node, lambda: engine, lambda: Frozen(objects), at_once, **more)


@contextlib.contextmanager
def serving(path, routes):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    server = UnixHttpServer(str(path), routes)
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(5)
        yield
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


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


def pycnictl(capsys, *words):
    try:
        code = cli.main(list(words))
    except SystemExit as exc:
        code = exc.code
    found = capsys.readouterr()
    assert "\033" not in found.out
    assert not any(line.endswith(" ") for line in found.out.split("\n"))
    return code, found.out, found.err


# --- what people see -------------------------------------------------------------------------------------------------


def test_the_list_adds_up_what_nodes_say(lab, capsys):
    from pycni.policy.base import Denied

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
    ("a node that is silent", ("192.0.2.1", "y/c", "80"), 1, "n3 was not asked"),
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
    from pycni.policy.base import Denied, Hits

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


# --- drops -----------------------------------------------------------------------------------------------------------


def drop(**fields):
    from pycni.policy.base import Drop

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


def test_a_source_that_cannot_be_opened_is_said(source, capsys, monkeypatch):
    from pycni.errors import KernelError

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


def test_a_source_that_breaks_is_told_and_the_others_go_on():
    from pycni.errors import KernelError

    class Broken(FakeReader):
        def read(self):
            raise KernelError(74, "read packet log", "group 100", "nonsense")

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
