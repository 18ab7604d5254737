"""Our plugin in chains with the reference plugins, and alone doing the same by capabilities."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.errors import CniError
from pycni.lab.conflist import parse_list
from pycni.lab.runtime import Attachment, CniRuntime
from tests.cni.node import AgentNode, agent_node, tcp_answers
from tests.cni.runtimes import inside, plugin_folder

CAPABILITIES = {"portMappings": True, "bandwidth": True, "ips": True, "mac": True}
OURS: dict[str, Any] = {"type": "pycni", "hairpinMode": True}
CHAINS: dict[str, list[dict[str, Any]]] = {
    "alone": [{**OURS, "capabilities": CAPABILITIES}],
    "portmap": [OURS, {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}],
    "all": [
        {**OURS, "capabilities": {"mac": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "tuning", "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
        {"type": "firewall", "backend": "iptables"},
    ],
}
MAPPING = {"portMappings": [{"hostPort": 8090, "containerPort": 80, "protocol": "tcp"}]}
SHAPE = {
    "bandwidth": {
        "ingressRate": 8_000_000,
        "ingressBurst": 800_000,
        "egressRate": 8_000_000,
        "egressBurst": 800_000,
    }
}


@pytest.fixture(scope="module")
def node() -> Iterator[AgentNode]:
    """IPv4 only, as most chains in the field."""
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    conf = {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}
    try:
        with agent_node(f"pyt{os.getpid()}c", folder, conf, "--ip-masq") as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runtime(node: AgentNode) -> Callable[..., CniRuntime]:
    plugins = node.folder / "bin"
    if not plugins.exists():
        plugin_folder(plugins)

    def make(chain: str, version: str = "1.0.0", chosen: list[dict[str, Any]] | None = None) -> CniRuntime:
        listing = {"cniVersion": version, "name": f"c-{chain}", "plugins": chosen or CHAINS[chain]}
        return CniRuntime(
            parse_list(json.dumps(listing).encode()),
            cache_dir=node.folder / "cache",
            path=[str(plugins)],
            prefix=inside(node.name),
            environment={"PYCNI_SOCKET": str(node.socket)},
        )

    return make


@pytest.fixture
def pod(node: AgentNode) -> Iterator[str]:
    name = f"{node.name}p"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "del", name], check=True)


def veths(node: AgentNode) -> str:
    return subprocess.run(
        ["ip", "-n", node.name, "-br", "link", "show", "type", "veth"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("eth0@", "")


@pytest.mark.parametrize(
    ("chain", "version"),
    [
        (c, v) for c in CHAINS for v in ("0.3.1", "0.4.0", "1.0.0") if (c, v) != ("all", "0.3.1")
    ],  # firewall: 0.4.0 on
)
def test_add_check_del_through_the_chain(
    node: AgentNode, runtime: Callable[..., CniRuntime], pod: str, chain: str, version: str
) -> None:
    cni = runtime(chain, version)
    attachment = Attachment(f"ctr-{chain}", pod, capability_args={**MAPPING, **SHAPE})
    result = cni.add(attachment).result
    try:
        assert result is not None
        assert [i["name"] for i in result["interfaces"]][:3:2] == ["cni0", "eth0"]
        tcp_answers(f"/run/netns/{node.far}", "192.168.50.1", 8090, listen_in=pod, listen_port=80)
        if version != "0.3.1":
            # Alone: CHECK of Debian's portmap fails for every pod that has one family only.
            alone = CHAINS[chain] if chain == "alone" else CHAINS[chain][:1]
            runtime(chain, version, alone).check(attachment)
    finally:
        cni.delete(attachment)
    cni.delete(attachment)
    deadline = time.monotonic() + 5
    while node.reservations(f"c-{chain}") or "veth" in veths(node):
        assert time.monotonic() < deadline, (node.reservations(f"c-{chain}"), veths(node))
        time.sleep(0.02)


def test_check_names_what_was_taken_away(
    node: AgentNode, runtime: Callable[..., CniRuntime], pod: str
) -> None:
    cni = runtime("alone")
    attachment = Attachment("ctr-check", pod)
    cni.add(attachment)
    try:
        subprocess.run(["ip", "-n", Path(pod).name, "route", "del", "default"], check=True)
        with pytest.raises(CniError, match="default"):
            cni.check(attachment)
    finally:
        cni.delete(attachment)


def test_a_failing_later_plugin_leaves_nothing(
    node: AgentNode, runtime: Callable[..., CniRuntime], pod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CHAINS, "broken", [OURS, {"type": "tuning", "sysctl": {"net.no.such": "1"}}])
    with pytest.raises(CniError, match="tuning ADD failed"):
        runtime("broken").add(Attachment("ctr-broken", pod))
    deadline = time.monotonic() + 5
    while node.reservations("c-broken") or "veth" in veths(node):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_gc_takes_what_the_runtime_no_longer_names(
    node: AgentNode, runtime: Callable[..., CniRuntime], pod: str
) -> None:
    cni = runtime("alone", "1.1.0")
    cni.add(Attachment("ctr-gone", pod))
    cni.cache_file("ctr-gone", "eth0").unlink()
    cni.gc([])
    deadline = time.monotonic() + 5
    while node.reservations("c-alone") or "veth" in veths(node):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("ipam", ["host-local", "static"])
def test_another_plugin_may_do_the_addresses(
    node: AgentNode, runtime: Callable[..., CniRuntime], pod: str, monkeypatch: pytest.MonkeyPatch, ipam: str
) -> None:
    settings: dict[str, dict[str, Any]] = {
        "host-local": {"ranges": [[{"subnet": "10.91.0.0/24"}]], "dataDir": str(node.folder / "hl")},
        "static": {"addresses": [{"address": "10.91.0.2/24", "gateway": "10.91.0.1"}]},
    }
    plugin = {"type": "pycni", "bridge": "cni91", "ipam": {"type": ipam, **settings[ipam]}}
    monkeypatch.setitem(CHAINS, "delegate", [plugin])
    cni = runtime("delegate")
    attachment = Attachment("ctr-delegate", pod)
    result = cni.add(attachment).result
    assert result is not None
    assert result["ips"][0]["address"] == "10.91.0.2/24"
    cni.check(attachment)
    cni.delete(attachment)
    if ipam == "host-local":
        assert not [f for f in (node.folder / "hl" / "c-delegate").iterdir() if f.name.startswith("10.")]
