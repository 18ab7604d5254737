"""One network with flannel: records as flanneld writes them, a node laid by hand as flanneld lays it, and moving a
node with its running pods from flannel to pycni and back (docs/migrate-from-flannel.md, step by step).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.lab.conflist import parse_list
from pycni.lab.runtime import Attachment, CniRuntime
from pycni.lab.traffic import Traffic
from tests.cni.node import AgentNode, ip, tcp_answers
from tests.cni.runtimes import inside, plugin_folder

PREFIX = "/coreos.com/network/subnets/"
FLANNEL_MAC = {"4": "0e:2a:00:00:00:04", "6": "0e:2a:00:00:00:06"}
CBR0 = {"cniVersion": "0.4.0", "name": "cbr0"}


@pytest.fixture
def node() -> Iterator[AgentNode]:
    """A node without an agent yet; the far side of its underlay becomes the flannel node."""
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    made = AgentNode(f"pyt{os.getpid()}f", folder, {
        "Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10:244::/48", "Backend": {"Type": "vxlan"},
    })  # fmt: skip
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


def pycni_record(node: AgentNode) -> tuple[str, str, dict[str, Any]]:
    """Subnets (IPv4, IPv6) and value of the record pycnid wrote."""
    rows = node.etcdctl("get", "--prefix", PREFIX).splitlines()
    for key, value in zip(rows[::2], rows[1::2], strict=True):
        record = json.loads(value)
        if record["PublicIP"] == "192.168.50.1":
            v4, v6 = key.removeprefix(PREFIX).split("&")
            return v4.replace("-", "/"), re.sub(r"-(\d+)$", r"/\1", v6), record
    raise AssertionError(rows)


def announce_flannel_node(node: AgentNode) -> None:
    """The record of a flannel node at the far side, byte for byte as flanneld (Go) encodes it."""
    value = (
        '{"PublicIP":"192.168.50.9","PublicIPv6":"fd00:50::9","BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{FLANNEL_MAC["4"]}"}},'
        f'"BackendV6Data":{{"VNI":1,"VtepMAC":"{FLANNEL_MAC["6"]}"}}}}'
    )
    node.etcdctl("put", f"{PREFIX}10.244.77.0-24&fd00:10:244:77::-64", value)


def lay_flannel_devices(namespace: str, own: str, v4_base: str, v6_base: str) -> None:
    """flannel.1 and flannel-v6.1 exactly as field practice has them: nolearning, local, explicit MAC, base address."""
    local4, local6 = ("192.168.50.9", "fd00:50::9") if own == "far" else ("192.168.50.1", "fd00:50::1")
    ip(
        namespace,
        f"link add flannel.1 address {FLANNEL_MAC['4']} mtu 1450 type vxlan id 1 dev eth0 local {local4} dstport 8472 nolearning",
        f"link add flannel-v6.1 address {FLANNEL_MAC['6']} mtu 1430 type vxlan id 1 dev eth0 local {local6} dstport 8472 nolearning",
        f"addr add {v4_base}/32 dev flannel.1",
        f"addr add {v6_base}/128 dev flannel-v6.1 nodad",
        "link set flannel.1 up",
        "link set flannel-v6.1 up",
    )


def lay_flannel_peer(
    namespace: str, subnet4: str, subnet6: str, remote4: str, remote6: str, macs: dict[str, str]
) -> None:
    """One remote lease by hand: neighbour, FDB entry, onlink route, per family."""
    base4, base6 = subnet4.partition("/")[0], subnet6.partition("/")[0]
    ip(
        namespace,
        f"neigh add {base4} lladdr {macs['4']} dev flannel.1 nud permanent",
        f"neigh add {base6} lladdr {macs['6']} dev flannel-v6.1 nud permanent",
        f"route add {subnet4} via {base4} dev flannel.1 onlink",
        f"route add {subnet6} via {base6} dev flannel-v6.1 onlink",
    )
    for device, mac, remote in (("flannel.1", macs["4"], remote4), ("flannel-v6.1", macs["6"], remote6)):
        subprocess.run(
            [*inside(namespace), *f"bridge fdb add {mac} dev {device} dst {remote} self permanent".split()],
            check=True,
        )


def far_pod(node: AgentNode) -> tuple[str, str]:
    """Addresses of the flannel node that stand for its pods."""
    ip(
        node.far,
        "link add cni0 type bridge",
        "link set cni0 up",
        "addr add 10.244.77.5/24 dev cni0",
        "addr add fd00:10:244:77::5/64 dev cni0 nodad",
    )
    return "10.244.77.5", "fd00:10:244:77::5"


def runtime(node: AgentNode, plugins: list[dict[str, Any]]) -> CniRuntime:
    folder = node.folder / "bin"
    if not folder.exists():
        plugin_folder(folder)
    return CniRuntime(
        parse_list(json.dumps({**CBR0, "plugins": plugins}).encode()),
        cache_dir=node.folder / "cache",
        path=[str(folder)],
        prefix=inside(node.name),
        environment={"PYCNI_SOCKET": str(node.socket)},
    )


@pytest.fixture
def pods(node: AgentNode) -> Iterator[list[str]]:
    """Namespaces for two pods of our node."""
    names = [f"{node.name}a", f"{node.name}b"]
    for name in names:
        subprocess.run(["ip", "netns", "add", name], check=True)
    yield [f"/run/netns/{name}" for name in names]
    for name in names:
        subprocess.run(["ip", "netns", "del", name], check=True)


def addresses(result: dict[str, Any] | None) -> list[str]:
    assert result is not None
    return [entry["address"].split("/")[0] for entry in result["ips"]]


def eventually(condition: Any, what: str) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_a_flannel_node_laid_by_hand_exchanges_packets_with_a_pycni_node(
    node: AgentNode, pods: list[str]
) -> None:
    announce_flannel_node(node)
    node.start_agent()
    subnet4, subnet6, record = pycni_record(node)
    assert set(record) == {"PublicIP", "PublicIPv6", "BackendType", "BackendData", "BackendV6Data"}
    lay_flannel_devices(node.far, "far", "10.244.77.0", "fd00:10:244:77::")
    macs = {"4": record["BackendData"]["VtepMAC"], "6": record["BackendV6Data"]["VtepMAC"]}
    lay_flannel_peer(node.far, subnet4, subnet6, "192.168.50.1", "fd00:50::1", macs)
    theirs = far_pod(node)
    cni = runtime(node, [{"type": "pycni"}])
    ours = addresses(cni.add(Attachment("ctr", pods[0])).result)
    try:
        for mine, other in zip(ours, theirs, strict=True):
            assert tcp_answers(pods[0], other, 80, listen_in=f"/run/netns/{node.far}") == mine
            seen = tcp_answers(f"/run/netns/{node.far}", mine, 80, listen_in=pods[0])
            assert seen in {other, "10.244.77.0", "fd00:10:244:77::"}
    finally:
        cni.delete(Attachment("ctr", pods[0]))


def test_a_node_moves_from_flannel_to_pycni_and_back_with_its_pods(node: AgentNode, pods: list[str]) -> None:
    # The node as flannel left it: lease, subnet.env, devices, a running pod by bridge + host-local.
    subnet4, subnet6 = "10.244.33.0/24", "fd00:10:244:33::/64"
    value = json.dumps({
        "PublicIP": "192.168.50.1", "PublicIPv6": "fd00:50::1", "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": FLANNEL_MAC["4"]}, "BackendV6Data": {"VNI": 1, "VtepMAC": FLANNEL_MAC["6"]},
    })  # fmt: skip
    node.etcdctl("put", f"{PREFIX}10.244.33.0-24&fd00:10:244:33::-64", value)
    announce_flannel_node(node)
    lay_flannel_devices(node.name, "near", "10.244.33.0", "fd00:10:244:33::")
    far_macs = {"4": "0e:2a:00:00:01:04", "6": "0e:2a:00:00:01:06"}
    lay_flannel_devices(node.far, "far", "10.244.77.0", "fd00:10:244:77::")
    ip(
        node.far,
        *(f"link set {dev} address {far_macs[n]}" for n, dev in (("4", "flannel.1"), ("6", "flannel-v6.1"))),
    )
    node.etcdctl("put", f"{PREFIX}10.244.77.0-24&fd00:10:244:77::-64", value.replace("192.168.50.1", "192.168.50.9")
                 .replace("fd00:50::1", "fd00:50::9").replace(FLANNEL_MAC["4"], far_macs["4"]).replace(FLANNEL_MAC["6"], far_macs["6"]))  # fmt: skip
    lay_flannel_peer(
        node.name, "10.244.77.0/24", "fd00:10:244:77::/64", "192.168.50.9", "fd00:50::9", far_macs
    )
    lay_flannel_peer(node.far, subnet4, subnet6, "192.168.50.1", "fd00:50::1", FLANNEL_MAC)
    for switch in ("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"):
        subprocess.run([*inside(node.name), "sysctl", "-qw", switch], check=True)
    theirs = far_pod(node)
    bridge = {
        "type": "bridge", "bridge": "cni0", "mtu": 1430, "isDefaultGateway": True, "hairpinMode": True,
        "ipam": {"type": "host-local", "dataDir": str(node.ipam), "ranges": [[{"subnet": subnet4}], [{"subnet": subnet6}]],
                 "routes": [{"dst": "10.244.0.0/16"}]},
    }  # fmt: skip
    by_flannel = runtime(node, [bridge])
    old = addresses(by_flannel.add(Attachment("old", pods[0])).result)
    assert tcp_answers(pods[0], theirs[0], 80, listen_in=f"/run/netns/{node.far}") == old[0]

    # flanneld is stopped, pycnid started: same lease, same devices, no packet lost.
    for address in theirs:  # IPv6 starts once duplicate address detection is over everywhere
        with Traffic(pods[0], address) as start:
            assert start.wait_answered(20)
    with Traffic(pods[0], theirs[0]) as first, Traffic(pods[0], theirs[1]) as second:
        assert first.wait_answered(20)
        assert second.wait_answered(20)
        node.start_agent()
        assert first.wait_answered(100)
        assert second.wait_answered(100)
    assert [first.report().lost, second.report().lost] == [0, 0]
    got4, got6, record = pycni_record(node)
    assert (got4, got6) == (subnet4, subnet6)
    assert record["BackendData"]["VtepMAC"] == FLANNEL_MAC["4"]

    # New pods come from pycni and share the address files; the old pod is deleted through pycni.
    by_pycni = runtime(node, [{"type": "pycni", "hairpinMode": True}])
    new = addresses(by_pycni.add(Attachment("new", pods[1])).result)
    assert not set(new) & set(old)
    for mine, other in zip(new, theirs, strict=True):
        assert tcp_answers(pods[1], other, 80, listen_in=f"/run/netns/{node.far}") == mine
    assert tcp_answers(pods[1], old[0], 80, listen_in=pods[0]) == new[0]
    assert node.reservations("cbr0") == {*old, *new}
    by_pycni.delete(Attachment("old", pods[0]))
    eventually(lambda: node.reservations("cbr0") == set(new), "the old pod's addresses are released")

    # And back: the agent stops, what it made serves on, the reference plugins take over.
    node.kill_agent(signal.SIGTERM)
    assert tcp_answers(pods[1], theirs[0], 80, listen_in=f"/run/netns/{node.far}") == new[0]
    again = addresses(by_flannel.add(Attachment("again", pods[0])).result)
    assert not set(again) & set(new)
    by_flannel.delete(Attachment("new", pods[1]))
    by_flannel.delete(Attachment("again", pods[0]))
    assert node.reservations("cbr0") == set()
