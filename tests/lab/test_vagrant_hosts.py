"""vagrant/provision, run for real: what a virtual machine would run makes hosts of namespaces here, with systemd's part left out.

The same on machines with kernels of their own: ``make vagrant-qemu``.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from bench.model import decode

from .conftest import unique_name
from .vagrant_hosts import PROVISION, Hosts

NODES = 3
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    with Hosts(unique_name(), folder, NODES, PYCNI_PODS="2") as made:
        with ThreadPoolExecutor() as pool:
            list(pool.map(made.provision, made.rows))
        made.cluster("up")
        yield made


def verified(hosts, name):
    done = hosts.run(name, "sh", str(PROVISION / "verify.sh"), check=False)
    return (
        done.returncode,
        re.findall(r"^(ok  |FAIL)  (\w+) +(.+?)  +(.*)$", done.stdout, re.MULTILINE),
        done.stdout,
    )


def test_pods_services_and_policies_of_all_hosts_work_with_each_other(hosts):
    with ThreadPoolExecutor() as pool:
        found = dict(zip(hosts.rows, pool.map(lambda name: verified(hosts, name), hosts.rows), strict=True))
    for name, (code, rows, text) in found.items():
        assert code == 0, text
        assert {row[:2] for row in rows} == {("ok  ", name)}, text
    node = {check: detail for _, _, check, detail in found["node1"][1]}
    # 2 pods here to 4 there and each other, to 3 nodes, from this node to 6: by 4 kinds in 2 families.
    assert node["matrix"].startswith(f"{(2 * 5 + 2 * 3 + 6) * 4 * 2} of ")
    assert node["policies"] == "6 connections allowed, 6 denied"
    assert all(f"node{i}-p{j}:" in node["ClusterIP from pod"] for i in (1, 2, 3) for j in (1, 2))
    # A pod is seen outside by its node's addresses.
    assert re.fullmatch(
        r"192\.168\.57\.2 sees 10\.244\.[\d.]+ as 192\.168\.57\.11, fd57::2 sees fd00:10:244:[\w:]+ as fd57::11",
        node["seen outside (NAT)"],
    )
    assert re.match(
        r"node1-p1 -> node2-p1:8080: \d+ hops on node1; \d+ hops on node2; round trip", node["trace to pod"]
    )
    assert "node2: the packet is dropped: ingress of Pod default/node2-closed" in node["trace, denied"]
    assert [check for _, _, check, _ in found["router"][1]] == [
        f"{what} {family}" for family in ("ipv4", "ipv6") for what in ("BGP", "external IP")
    ]


def test_what_is_measured_across_hosts_is_a_report_like_that_of_bench(hosts, tmp_path):
    small = {"PYCNI_BENCH_SECONDS": "1", "PYCNI_BENCH_ROUNDS": "1", "PYCNI_BENCH_SUITE": ""}
    hosts.cluster("bench", PYCNI_BENCH_BACKENDS="vxlan", **small)
    hosts.cluster("report", str(tmp_path / "found"))
    report = decode((tmp_path / "found.json").read_bytes(), "found.json")
    rows = {screen.name: screen.rows for screen in report.screens}
    assert {name: len(found) for name, found in rows.items()} == {
        "hosts_backends": 3,
        "hosts_drain": 2,
        "hosts_policy": 2,
        "hosts_services": 2,
    }
    for name, found in rows.items():
        assert all(row.ratio is not None and row.direction for row in found)
        assert name == "hosts_drain" or all(row.ratio > 0 and row.peer for row in found)
    assert len(report.rows()) == 9
    assert report.quick
    page = (tmp_path / "found.html").read_text()
    assert page.endswith("</html>\n")
    assert all(f'id="{name}"' in page for name in rows)
    # The drained node came back.
    told = hosts.run("node1", "pycnictl", "bgp").stdout
    assert "10.99.0.80/32" in told
    assert "being drained" not in told


def test_etcd_is_one_of_three_members(hosts):
    answer = hosts.run("node2", "etcdctl", "member", "list", ETCDCTL_API="3").stdout
    assert re.findall(r"started, (\w+), http://(\S+):2380", answer) == [
        (f"node{i}", f"192.168.57.{10 + i}")
        for i in sorted(range(1, NODES + 1), key=lambda i: answer.index(f"node{i},"))
    ]
    assert len(answer.splitlines()) == NODES


def test_the_router_speaks_with_every_node(hosts):
    answer = json.loads(hosts.run("router", "vtysh", "-c", "show bgp summary json").stdout)
    for family in ("ipv4Unicast", "ipv6Unicast"):
        peers = answer[family]["peers"]
        assert {address: peer["state"] for address, peer in peers.items()} == {
            f"192.168.57.{10 + i}": "Established" for i in range(1, NODES + 1)
        }


def test_provisioned_again_nothing_is_started_anew(hosts):
    pids = [
        "sh",
        "-c",
        "cat /run/pycni-hosts/etcd.pid /run/pycni-hosts/pycnid.pid; cat /etc/pycni/pycnid.env | sha256sum",
    ]
    before = hosts.run("node1", *pids).stdout
    hosts.provision("node1")
    assert hosts.run("node1", *pids).stdout == before
    frr = hosts.run("router", "cat", "/run/frr/watchfrr.pid").stdout
    hosts.provision("router")
    assert hosts.run("router", "cat", "/run/frr/watchfrr.pid").stdout == frr


def test_another_setting_restarts_the_agent_and_pods_stay(hosts):
    pods = hosts.run("node2", "cat", "/var/lib/pycni-hosts/pods.json").stdout
    pid = hosts.run("node2", "cat", "/run/pycni-hosts/pycnid.pid").stdout
    hosts.run("node2", "sh", str(PROVISION / "agent.sh"), PYCNI_BGP="none")
    assert hosts.run("node2", "cat", "/run/pycni-hosts/pycnid.pid").stdout != pid
    assert "bgp" not in hosts.run("node2", "pycnictl", "status", check=False).stdout
    hosts.provision("node2")
    hosts.run("node2", "sh", str(PROVISION / "pods.sh"))
    assert hosts.run("node2", "cat", "/var/lib/pycni-hosts/pods.json").stdout == pods


@pytest.mark.parametrize(
    ("script", "wrong", "told"),
    [
        ("host", {"PYCNI_HOST": "node9"}, "PYCNI_HOST='node9': not in PYCNI_HOSTS="),
        (
            "agent",
            {"PYCNI_PROXY": "haproxy"},
            "PYCNI_PROXY='haproxy': not one of none auto nftables ipvs ebpf",
        ),
        (
            "common",
            {"PYCNI_ADDRESS": "192.0.2.77"},
            "PYCNI_ADDRESS='192.0.2.77': no device here has this address",
        ),
        (
            "install",
            {"PYCNI_SOURCE": "/nowhere"},
            "PYCNI_PYTHON='checkout': there is no /nowhere/.venv/bin/pycnid",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_a_script_refuses_what_cannot_be(hosts, script, wrong, told):
    done = hosts.run("node3", "sh", str(PROVISION / f"{script}.sh"), check=False, **wrong)
    assert done.returncode != 0
    assert told in done.stderr
