"""Services of a lab: manifests in, real look-ups and connections out, while pods and agents come and go."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from pycni.kernel import netns as kernel_netns
from pycni.lab import cleanup, netns, processes
from pycni.lab.apply import Cluster
from pycni.lab.ask import ask
from pycni.lab.ask_client import ask_from
from pycni.lab.objects import Key, Mappings
from pycni.lab.run import Lab
from pycni.lab.stations import Inside
from pycni.lab.topology import LabSpec
from pycni.model.kube import TCP

from .conftest import LabMaker, unique_name
from .lab_tools import ROOT, ctl, within

EXAMPLE = ROOT / "docs" / "examples" / "web.yaml"
A, CNAME, PTR, AAAA, SRV = 1, 5, 12, 28, 33


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Three nodes, both families, nftables, the example applied. Tests leave it as they found it."""
    made = Lab.up(LabSpec(name=unique_name(), nodes=3, family="dual", pods=1, proxy="nftables"))
    try:
        done = ctl("lab", "apply", "--name", made.spec.name, "-f", str(EXAMPLE))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "Namespace shop created",
            "Deployment shop/web created",
            "Service shop/web created",
        ]
        assert settled(made, "web", 3)
        yield made
    finally:
        made.down()


def objects(*values: Mappings) -> list[tuple[str, Mappings]]:
    return [("the test", value) for value in values]


def service(name: str, **spec: object) -> Mappings:
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def pod(name: str, labels: dict[str, str], ports: list[dict[str, object]], **spec: object) -> Mappings:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": ports}], **spec},
    }


@contextmanager
def applied(lab: Lab, *values: Mappings) -> Iterator[Cluster]:
    """The objects while the block runs."""
    cluster = Cluster(lab)
    cluster.apply(objects(*values))
    try:
        yield cluster
    finally:
        there = cluster.objects()
        keys = [Key(value["kind"], "default", value["metadata"]["name"]) for value in values]
        cluster.delete([key for key in keys if key in there], grace_s=0)


def settled(lab: Lab, name: str, pods: int) -> bool:
    """Whether this many pods of the shop answer, from every node's point of view."""

    def all_answer() -> bool:
        return all(
            len(ask_from(lab, node.name, f"{vip(lab, 'shop', name)}:80", count=20).pods) == pods
            for node in lab.nodes()
        )

    return within(10, all_answer)


def vip(lab: Lab, namespace: str, name: str) -> str:
    value = Cluster(lab).objects()[Key("Service", namespace, name)]
    return str(value["spec"]["clusterIP"])


def look_up(lab: Lab, source: str, name: str, kind: int) -> tuple[int, list[str]]:
    """Response code and answers of the DNS service, asked by its ClusterIP from a pod's namespace."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    query = struct.pack("!6H", 7, 0x0100, 1, 0, 0, 0) + labels + struct.pack("!2H", kind, 1)
    with Inside() as inside:
        path = kernel_netns.path(lab.pod(source).namespace)
        sock = inside(path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        sock.settimeout(2)
        sock.connect((vip(lab, "kube-system", "kube-dns"), 53))
        for _attempt in range(3):
            sock.send(query)
            try:
                return parse(sock.recv(4096), len(query))
            except TimeoutError:
                continue
    raise AssertionError(f"nobody answers for {name}")


def parse(message: bytes, offset: int) -> tuple[int, list[str]]:
    flags, count = struct.unpack_from("!2xH2xH", message)
    found = []
    for _ in range(count):
        offset = name_at(message, offset)[1]
        kind, _class, _ttl, length = struct.unpack_from("!2HIH", message, offset)
        offset += 10
        data = message[offset : offset + length]
        if kind in {A, AAAA}:
            found.append(str(ip_address(data)))
        elif kind == SRV:
            port = struct.unpack_from("!4xH", data)[0]
            found.append(f"{name_at(message, offset + 6)[0]}:{port}")
        else:
            found.append(name_at(message, offset)[0])
        offset += length
    return flags & 15, found


def name_at(message: bytes, offset: int) -> tuple[str, int]:
    """A domain name (RFC 1035 section 4.1.4) and where what follows it begins."""
    labels, end = [], 0
    while length := message[offset]:
        if length >= 0xC0:
            end = end or offset + 2
            offset = struct.unpack_from("!H", message, offset)[0] & 0x3FFF
            continue
        labels.append(message[offset + 1 : offset + 1 + length].decode())
        offset += 1 + length
    return ".".join(labels), end or offset + 1


def test_the_documented_example_answers_by_name_from_every_endpoint(lab: Lab) -> None:
    for protocol, port in (("tcp", 80), ("udp", 9000)):
        done = ctl(
            *("lab", "ask", "--name", lab.spec.name, "pod1", f"web.shop:{port}", "--json"),
            *("--protocol", protocol, "--count", "60"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout)
        assert set(found["pods"]) == {"web-1.shop", "web-2.shop", "web-3.shop"}
        assert set(found["clients"]) == {lab.pod("pod1").ips[0]}, "a pod is seen with its own address"


def test_everybody_reaches_the_service_and_the_client_every_node_port(lab: Lab) -> None:
    matrix = lab.matrix()
    assert matrix.failed() == []
    assert matrix.services == ("shop/web",)
    kinds = {check.kind for check in matrix.reasons if check.source == "client"}
    assert kinds == {
        f"{proto} {port} at node{n}" for n in (1, 2, 3) for proto, port in (("tcp", 30000), ("udp", 30000))
    }
    assert {check.source for check in matrix.reasons if check.target == "shop/web"} == {
        "client", "node1", "node2", "node3", *(pod.name for pod in lab.pods()),
    }  # fmt: skip


def test_a_balancers_address_is_reached_by_a_route_to_any_node(lab: Lab) -> None:
    value = Cluster(lab).objects()[Key("Service", "shop", "web")]
    address = value["status"]["loadBalancer"]["ingress"][0]["ip"]
    lab.exec("client", ["ip", "route", "add", f"{address}/32", "via", "172.20.0.2"])
    try:
        found = ask_from(lab, "client", f"{address}:80", count=30)
    finally:
        lab.exec("client", ["ip", "route", "del", f"{address}/32"])
    assert not found.failures
    assert len(found.pods) == 3


def test_a_dual_stack_service_answers_in_both_families(lab: Lab) -> None:
    server = pod("both", {"app": "both"}, [{"containerPort": 8080}])
    value = service(
        "both",
        selector={"app": "both"},
        ipFamilyPolicy="RequireDualStack",
        ports=[{"port": 80, "targetPort": 8080}],
    )
    with applied(lab, server, value) as cluster:
        ips = cluster.objects()[Key("Service", "default", "both")]["spec"]["clusterIPs"]
        assert len(ips) == 2
        for ip in ips:
            assert within(5, lambda ip=ip: not ask_from(lab, "pod2", f"[{ip}]:80").failures)
        assert look_up(lab, "pod2", "both.default.svc.cluster.local", AAAA) == (0, [ips[1]])


# names


def test_names_of_services(lab: Lab) -> None:
    address = vip(lab, "shop", "web")
    assert look_up(lab, "pod1", "web.shop.svc.cluster.local", A) == (0, [address])
    assert look_up(lab, "pod1", "web.shop.svc.cluster.local", AAAA) == (0, []), (
        "the name is there, the address not"
    )
    assert look_up(lab, "pod1", "nope.shop.svc.cluster.local", A) == (3, [])
    assert look_up(lab, "pod1", "_http._tcp.web.shop.svc.cluster.local", SRV) == (
        0, ["web.shop.svc.cluster.local:80"],
    )  # fmt: skip
    back = ".".join(reversed(address.split("."))) + ".in-addr.arpa"
    assert look_up(lab, "pod1", back, PTR) == (0, ["web.shop.svc.cluster.local"])


@pytest.mark.parametrize("name", ["web.shop", "web.shop.svc", "web.shop.svc.cluster.local"])
def test_the_pods_resolver_finds_short_names(lab: Lab, name: str) -> None:
    done = lab.exec("pod1", ["getent", "hosts", name])
    assert done.stdout.split() == [vip(lab, "shop", "web"), "web.shop.svc.cluster.local"]


def test_the_search_domain_is_that_of_the_pods_namespace(lab: Lab) -> None:
    assert lab.exec("web-1.shop", ["getent", "hosts", "web"]).stdout.split()[0] == vip(lab, "shop", "web")
    assert lab.exec("pod1", ["getent", "hosts", "web"], check=False).returncode == 2
    before = Path("/etc/resolv.conf").read_text()
    assert "cluster.local" in lab.exec("pod1", ["cat", "/etc/resolv.conf"]).stdout
    assert Path("/etc/resolv.conf").read_text() == before, "the machine's own is not touched"


def test_a_headless_service_names_its_ready_pods(lab: Lab) -> None:
    servers = [
        pod(f"db-{n}", {"app": "db"}, [{"containerPort": 5432}], hostname=f"db-{n}", subdomain="db")
        for n in (0, 1)
    ]
    value = service("db", clusterIP="None", selector={"app": "db"}, ports=[{"name": "sql", "port": 5432}])
    with applied(lab, *servers, value) as cluster:
        ips = {name: lab.pod(name).ips for name in ("db-0", "db-1")}
        code, found = look_up(lab, "pod1", "db.default.svc.cluster.local", A)
        assert (code, set(found)) == (0, {ips["db-0"][0], ips["db-1"][0]})
        assert look_up(lab, "pod1", "db-0.db.default.svc.cluster.local", AAAA) == (0, [ips["db-0"][1]])
        _code, targets = look_up(lab, "pod1", "_sql._tcp.db.default.svc.cluster.local", SRV)
        assert set(targets) == {f"db-{n}.db.default.svc.cluster.local:5432" for n in (0, 1)}
        assert ask_from(lab, "pod1", "db-1.db:5432").pods == {"db-1": 1}
        cluster.set_ready("db-0", ready=False)
        assert within(
            1, lambda: look_up(lab, "pod1", "db.default.svc.cluster.local", A)[1] == [ips["db-1"][0]]
        )


def test_an_external_name_is_an_alias(lab: Lab) -> None:
    outside = service("outside", type="ExternalName", externalName="example.org")
    inside = service("inside", type="ExternalName", externalName="web.shop.svc.cluster.local")
    with applied(lab, outside, inside):
        assert look_up(lab, "pod1", "outside.default.svc.cluster.local", CNAME) == (0, ["example.org"])
        assert look_up(lab, "pod1", "inside.default.svc.cluster.local", A) == (
            0, ["web.shop.svc.cluster.local", vip(lab, "shop", "web")],
        )  # fmt: skip
    assert look_up(lab, "pod1", "outside.default.svc.cluster.local", CNAME)[0] == 3


def test_no_query_is_lost_while_records_change(lab: Lab) -> None:
    words = [sys.executable, "-c", textwrap.dedent(LOOK_UPS), vip(lab, "kube-system", "kube-dns")]
    with client(lab, "pod1", words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        for number in range(3):
            named = service(f"s{number}", selector={"no": "body"}, ports=[{"name": "http", "port": 80}])
            with applied(lab, named):
                _code, found = look_up(lab, "pod2", f"_http._tcp.s{number}.default.svc.cluster.local", SRV)
                assert found == [f"s{number}.default.svc.cluster.local:80"]
        out, _err = process.communicate("\n", timeout=20)
    asked, lost = map(int, out.split())
    assert asked > 50
    assert lost == 0


LOOK_UPS = """
    import select, socket, struct, sys
    name = b"".join(bytes([len(x)]) + x for x in b"web.shop.svc.cluster.local".split(b".")) + b"\\0"
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((sys.argv[1], 53))
    sock.settimeout(1)
    asked = lost = 0
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        asked += 1
        sock.send(struct.pack("!6H", asked & 0xFFFF, 0x100, 1, 0, 0, 0) + name + struct.pack("!2H", 1, 1))
        try:
            lost += not (sock.recv(512)[:2] == struct.pack("!H", asked & 0xFFFF))
        except OSError:
            lost += 1
    print(asked, lost)
"""


# readiness, deletion, restarts


@contextmanager
def client(lab: Lab, source: str, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program in a pod."""
    process = subprocess.Popen(
        lab.exec_argv(source, words), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


HELD = """
    import select, socket, sys
    sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
    lines = sock.makefile("rw")
    print(lines.readline().split()[0], flush=True)
    lines.write("hold\\n"); lines.flush()
    answers = 0
    while not select.select([sys.stdin], [], [], 0.01)[0]:
        lines.write("still there?\\n"); lines.flush()
        answers += bool(lines.readline()) or sys.exit(f"closed after {answers} answers")
    print(answers, flush=True)
"""


@contextmanager
def held(lab: Lab, source: str, address: str, port: int) -> Iterator[tuple[str, Callable[[], int]]]:
    """An open connection that is used all the time: the pod behind it, and what ends it and counts its answers."""
    words = [sys.executable, "-c", textwrap.dedent(HELD), address, str(port)]
    with client(lab, source, words) as process:
        assert process.stdout is not None
        behind = process.stdout.readline().strip()

        def end() -> int:
            out, _err = process.communicate("\n", timeout=20)
            assert process.returncode == 0, out
            return int(out)

        yield behind, end


def test_a_pod_that_is_not_ready_leaves_the_service_within_a_second(lab: Lab) -> None:
    name = lab.spec.name
    target = f"{vip(lab, 'shop', 'web')}:80"
    done = ctl("lab", "pod", "ready", "--name", name, "web-2.shop", "false")
    assert (done.returncode, done.stdout) == (0, "web-2.shop: not ready\n")
    assert within(1, lambda: "web-2.shop" not in ask_from(lab, "pod1", target, count=30).pods)
    found = ask_from(lab, "pod1", target, count=40)
    assert (set(found.pods), dict(found.failures)) == ({"web-1.shop", "web-3.shop"}, {})
    status = ctl("lab", "status", "--name", name).stdout
    assert "-> web-1 web-2(not ready) web-3" in status
    assert ctl("lab", "pod", "ready", "--name", name, "web-2.shop", "true").returncode == 0
    assert settled(lab, "web", 3)


def test_a_pod_whose_server_has_failed_refuses(lab: Lab) -> None:
    own = lab.pod("web-3.shop").ips[0]
    assert (
        ctl(
            "lab", "pod", "ready", "--name", lab.spec.name, "web-3.shop", "true", "--listen", "off"
        ).returncode
        == 0
    )
    try:
        assert ask_from(lab, "pod1", f"{own}:8080").failures == {"Connection refused": 1}
        found = ask_from(lab, "pod1", f"{vip(lab, 'shop', 'web')}:80", count=40)
        assert set(found.pods) == {"web-1.shop", "web-2.shop"}
        assert set(found.failures) == {"Connection refused"}, "it is still behind the service"
    finally:
        ctl("lab", "pod", "ready", "--name", lab.spec.name, "web-3.shop", "true", "--listen", "on")
    assert settled(lab, "web", 3)


def test_no_request_fails_and_no_connection_breaks_while_a_pod_ends(lab: Lab) -> None:
    target = vip(lab, "shop", "web")
    cluster = Cluster(lab)
    with held(lab, "pod1", target, 80) as (behind, end):
        victim = Key("Pod", "shop", behind.partition(".")[0])
        node = lab.pod(behind).node
        command = [
            sys.executable,
            "-m",
            "pycni.cli",
            "lab",
            "delete",
            "--name",
            lab.spec.name,
            "pod",
            victim.name,
        ]
        with subprocess.Popen(
            [*command, "-n", "shop", "--grace", "4"], env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/usr/sbin:/bin:/sbin"},
            stdout=subprocess.PIPE, text=True,
        ) as deleting:  # fmt: skip
            assert within(10, lambda: "deletionTimestamp" in cluster.objects()[victim]["metadata"])
            slices = [value for key, value in cluster.objects().items() if key.kind == "EndpointSlice"]
            conditions = [
                entry["conditions"]
                for value in slices
                for entry in value["endpoints"]
                if entry["targetRef"]["name"] == victim.name
            ]
            assert conditions == [{"ready": False, "serving": True, "terminating": True}]
            failures = [
                ask_from(lab, source, f"{target}:80", count=40).failures for source in ("pod2", "pod3", node)
            ]
            assert failures == [{}, {}, {}]
            assert victim in cluster.objects()
            assert end() > 20, "the open connection stays with the pod that is ending"
            out, _err = deleting.communicate(timeout=30)
    assert deleting.returncode == 0
    assert out == f"Pod shop/{victim.name} deleted\n"
    assert victim not in cluster.objects()
    assert behind not in [record.name for record in lab.pods()]
    assert settled(lab, "web", 3), "another pod has taken its place"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "stop"])
def test_connections_through_the_service_outlive_every_agent(lab: Lab, number: int) -> None:
    target = vip(lab, "shop", "web")
    with held(lab, "pod1", target, 80) as (_behind, end):
        for node in lab.nodes():
            lab.signal_agent(node.name, number)
        found = ask_from(lab, "pod2", f"{target}:80", count=30)
        assert (len(found.pods), dict(found.failures)) == (3, {}), "new ones are possible without any agent"
        for node in lab.nodes():
            lab.start_agent(node.name)
        time.sleep(0.3)
        assert end() > 20
    assert settled(lab, "web", 3)


# manifests


def state(lab: Lab) -> tuple[Any, ...]:
    return Cluster(lab).objects(), [record.name for record in lab.pods()], sorted(netns.found(lab.spec.name))


WRONG = {
    "second document": (
        yaml.safe_dump_all([pod("fine", {}, []), service("x", ports=[{"port": "http"}])]),
        "document 2: Service default/x: spec.ports[0].port='http'",
    ),
    "not YAML": ("a: [", "is not YAML"),
    "no object": ("", "there is no object in it"),
    "taken address": (
        yaml.safe_dump_all([pod("fine", {}, []), service("x", clusterIP="10.96.0.10", ports=[{"port": 1}])]),
        "spec.clusterIP='10.96.0.10': is Service kube-system/kube-dns's",
    ),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_manifest_is_one_line_and_changes_nothing(
    lab: Lab, tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    before = state(lab)
    good = ["-f", str(EXAMPLE)] if content else []
    done = ctl("lab", "apply", "--name", lab.spec.name, *good, "-f", str(file))
    assert done.returncode == (1 if content else 2)
    assert said in done.stderr
    assert str(file) in done.stderr
    assert done.stderr.count("\n") == 1
    assert state(lab) == before


def test_a_manifest_applied_again_changes_nothing(lab: Lab) -> None:
    before = state(lab)
    assert ctl("lab", "apply", "--name", lab.spec.name, "-f", str(EXAMPLE)).returncode == 0
    after = state(lab)
    assert {key: value for key, value in after[0].items() if before[0].get(key) != value} == {}
    assert after == before


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        pytest.param(["delete", "pod", "nope"], 2, "there is no Pod default/nope", id="no such pod"),
        pytest.param(["delete", "node", "node1"], 2, "belongs to the lab", id="node"),
        pytest.param(["delete", "ns", "kube-system"], 2, "belongs to the lab", id="namespace of the lab"),
        pytest.param(["delete", "cat", "x"], 2, "kind 'cat': the lab knows Pod", id="kind"),
        pytest.param(["delete"], 2, "delete what?", id="nothing"),
        pytest.param(["delete", "pod"], 2, "which?", id="no name"),
        pytest.param(["apply", "-f", "/nowhere.yaml"], 2, "/nowhere.yaml: No such file", id="no file"),
        pytest.param(["ask", "pod1", "web"], 2, "expected HOST:PORT", id="no port"),
        pytest.param(["ask", "nobody", "web:80"], 2, "has no node or pod 'nobody'", id="nobody"),
        pytest.param(["pod", "ready", "nope", "true"], 2, "has no pod 'nope'", id="ready"),
    ],
)
def test_mistakes_are_one_line_with_an_exit_code(lab: Lab, words: list[str], code: int, said: str) -> None:
    before = state(lab)
    done = ctl("lab", *words, "--name", lab.spec.name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1)
    assert said in done.stderr
    assert state(lab) == before


def test_a_pod_that_cannot_be_made_takes_the_whole_manifest_back(lab: Lab) -> None:
    before = state(lab)
    lab.signal_agent("node3", signal.SIGKILL)
    try:
        done = ctl(
            "lab", "apply", "--name", lab.spec.name, "-f", "-", feed=yaml.safe_dump_all(
                [
                    pod("here", {}, [], nodeName="node1"),
                    pod("there", {}, [], nodeName="node3"),
                    service("x", ports=[{"port": 1}]),
                ]
            ),
        )  # fmt: skip
        assert done.returncode == 1
        assert "pod there on node3" in done.stderr
        assert state(lab) == before
    finally:
        lab.start_agent("node3")


def test_objects_are_made_listed_and_deleted_by_file(lab: Lab, tmp_path: Path) -> None:
    name, file = lab.spec.name, tmp_path / "a.yaml"
    server = pod("cache", {"app": "cache"}, [{"containerPort": 11211}], nodeName="node2")
    file.write_text(
        yaml.safe_dump_all([server, service("cache", selector={"app": "cache"}, ports=[{"port": 11211}])])
    )
    before = state(lab)
    assert ctl("lab", "apply", "--name", name, "-f", str(file)).returncode == 0
    assert lab.pod("cache").node == "node2"
    assert within(5, lambda: ask_from(lab, "pod3", "cache:11211").pods == {"cache": 1})
    shown = ctl("lab", "get", "svc", "--name", name, "-n", "default").stdout.splitlines()
    assert shown[0].split() == ["NAMESPACE", "NAME", "TYPE", "ADDRESSES", "PORTS", "ENDPOINTS"]
    assert [line.split()[1] for line in shown[1:]] == ["cache"]
    listed = json.loads(ctl("lab", "get", "pods", "--name", name, "--json").stdout)["items"]
    wanted = {"cache", "pod1", a_server(lab).partition(".")[0]}
    assert wanted <= {item["metadata"]["name"] for item in listed}
    again = ctl("lab", "apply", "--name", name, "-f", str(file))
    assert again.stdout.splitlines() == ["Pod default/cache unchanged", "Service default/cache unchanged"]
    assert ctl("lab", "delete", "--name", name, "-f", str(file), "--grace", "0").returncode == 0
    assert state(lab) == before
    assert ask_from(lab, "pod3", "cache:11211").failures == {"cache: Name or service not known": 1}


def test_pods_added_by_hand_are_objects_too(lab: Lab) -> None:
    added = lab.add_pod("node1", "plain")
    key = Key("Pod", "default", "plain")
    try:
        value = Cluster(lab).objects()[key]
        assert [entry["ip"] for entry in value["status"]["podIPs"]] == list(added.ips)
    finally:
        lab.remove_pod("plain")
    assert key not in Cluster(lab).objects()


def test_a_pod_removed_by_hand_is_out_of_its_services_at_once(lab: Lab) -> None:
    server = pod("brief", {"app": "brief"}, [{"containerPort": 80}])
    with applied(lab, server, service("brief", selector={"app": "brief"}, ports=[{"port": 80}])) as cluster:
        assert within(5, lambda: not ask_from(lab, "pod1", "brief:80").failures)
        assert ctl("lab", "pod", "rm", "--name", lab.spec.name, "brief").returncode == 0
        slices = cluster.objects()[Key("EndpointSlice", "default", "brief-ipv4-0")]
        assert slices["endpoints"] == []
        assert within(1, lambda: ask_from(lab, "pod1", "brief:80").failures == {"Connection refused": 1})


def a_server(lab: Lab) -> str:
    """A pod of Service web: which ones there are depends on which one a test before has deleted."""
    return min(record.name for record in lab.pods() if record.name.startswith("web-"))


def test_killed_servers_are_started_again_by_the_next_change(lab: Lab) -> None:
    for node in lab.nodes():
        state_file = json.loads((node.folder / "serve.done.json").read_bytes())
        processes.kill([processes.identify(state_file["pid"])])
    server = a_server(lab)
    own = lab.pod(server).ips[0]
    assert ask_from(lab, "pod1", f"{own}:8080").failures == {"Connection refused": 1}
    assert ctl("lab", "apply", "--name", lab.spec.name, "-f", str(EXAMPLE)).returncode == 0
    assert ask_from(lab, "pod1", f"{own}:8080").pods == {server: 1}


def test_a_datagram_is_answered_from_the_address_it_was_sent_to(lab: Lab) -> None:
    """As direct server return needs it: the virtual address is the pod's own."""
    served = lab.pod(a_server(lab))
    node = served.node
    lab.exec(served.name, ["ip", "address", "add", "192.0.2.9/32", "dev", "lo"])
    lab.exec(node, ["ip", "route", "add", "192.0.2.9", "via", served.ips[0]])
    try:
        assert ask_from(lab, node, "192.0.2.9:9000", protocol="UDP").pods == {served.name: 1}
    finally:
        lab.exec(node, ["ip", "route", "del", "192.0.2.9"])
        lab.exec(served.name, ["ip", "address", "del", "192.0.2.9/32", "dev", "lo"])


def test_many_pods_are_served_by_one_small_process(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=0)
    manifest = yaml.safe_load_all(EXAMPLE.read_text())
    values = [{**value} for value in manifest if value["kind"] == "Deployment"]
    values[0]["spec"]["replicas"] = 30
    Cluster(lab).apply(objects(*values))
    pods = lab.pods()
    answers = ask([(pods[0].namespace, record.ips[0], TCP, 8080) for record in pods])
    assert [line.split()[0] for line, _reason in answers] == [record.name for record in pods]
    pid = json.loads((lab.node("node1").folder / "serve.done.json").read_bytes())["pid"]
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    assert resident < 40 << 20, "17 MB were measured, with 50 pods too"


def test_a_node_that_is_lost_takes_its_pods_out_of_services_and_others_replace_them(
    make_lab: LabMaker,
) -> None:
    lab = make_lab(nodes=3, pods=1, proxy="nftables")
    assert ctl("lab", "apply", "--name", lab.spec.name, "-f", str(EXAMPLE)).returncode == 0
    lost = lab.pod("dns.kube-system").node
    source = next(pod.name for pod in lab.pods() if pod.node != lost and pod.name.startswith("pod"))
    lab.remove_node(lost)
    assert lab.pod("dns.kube-system").node != lost
    assert len([pod for pod in lab.pods() if pod.name.startswith("web-")]) == 3
    assert within(5, lambda: not ask_from(lab, source, "web.shop:80", count=30).failures)
    assert len(ask_from(lab, source, "web.shop:80", count=60).pods) == 3
    assert lab.matrix().failed() == []
    added = lab.add_node()
    assert Key("Node", "", added.name) in Cluster(lab).objects()
    assert lab.matrix().failed() == []


def test_down_leaves_nothing(lab_name: str) -> None:
    up = ctl("lab", "up", "--name", lab_name, "--nodes", "2", "--pods", "1", "--json")
    assert up.returncode == 0, up.stderr
    assert json.loads(up.stdout)["proxy"] == "nftables"
    assert ctl("lab", "apply", "--name", lab_name, "-f", str(EXAMPLE)).returncode == 0
    lab = Lab.open(lab_name)
    assert ask_from(lab, "pod1", "web.shop:80", count=10).failures == {}
    names = [process.pid for process in processes.marked(lab_name)]
    assert len(names) >= 7, "an etcd, two agents, two servers, two dnsmasq"
    assert ctl("lab", "down", "--name", lab_name).returncode == 0
    assert processes.marked(lab_name) == []
    assert netns.found(lab_name) == []
    assert lab_name not in cleanup.known()
    assert not lab.state.folder.exists()
