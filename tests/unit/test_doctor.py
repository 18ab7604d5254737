"""The doctor's rules: a sound node has nothing wrong, and each damage is told once, with level and cure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from pycni.doctor import features
from pycni.doctor.features import OPTIONS
from pycni.doctor.judge import changes, judge
from pycni.doctor.model import ConfFile, Facts, Finding, PathTry
from pycni.doctor.report import as_json, as_text, sysctl_lines
from pycni.model.space import AddressState, ForeignHook, LinkState, NeighbourState

from .doctor_world import LINKS, node, space

FORWARD_DROP = ForeignHook(
    family="ip", table="filter", chain="FORWARD", hook="forward", priority=0, policy="drop"
)
PEER = bytes((192, 0, 2, 2))


class Case(NamedTuple):
    name: str
    facts: Facts
    check: str
    level: str
    says: str
    """Part of subject, reason or fix."""
    sets: dict[str, str] | None = None
    """What --fix would set."""


def without(*options: str) -> dict[str, str]:
    return dict.fromkeys(OPTIONS, "y") | dict.fromkeys(options, "n")


def link(of: str, /, **changed: Any) -> LinkState:
    return msgspec.structs.replace(next(item for item in LINKS if item.name == of), **changed)


def neighbours(count: int, state: str = "stale") -> tuple[NeighbourState, ...]:
    return tuple(
        NeighbourState("eth0", bytes((10, 0, *divmod(n, 256))), b"\2\0\0\0\0\1", state) for n in range(count)
    )


GC = "net.ipv4.neigh.default.gc_thresh"
CT = "net.netfilter.nf_conntrack_"
CASES = [
    # switches
    Case("ipv4 forwarding", node(sysctls={"net.ipv4.ip_forward": "0"}), "forwarding-off", "error",
         "net.ipv4.ip_forward = 0", {"net.ipv4.ip_forward": "1"}),
    Case("ipv4 forwarding before there are pods", node(sysctls={"net.ipv4.ip_forward": "0"}, uses=()), "forwarding-off",
         "warning", "when it has a lease", {"net.ipv4.ip_forward": "1"}),
    Case("ipv6 forwarding keeps router advertisements", node(sysctls={"net.ipv6.conf.all.forwarding": "0"}),
         "forwarding-off", "error", "accept_ra",
         {"net/ipv6/conf/eth0/accept_ra": "2", "net.ipv6.conf.all.forwarding": "1"}),
    Case("no ipv6", node(sysctls={"net.ipv6.conf.all.disable_ipv6": "1"}), "ipv6-off", "error", "pods are to have IPv6"),
    Case("bridged packets unseen", node(sysctls={"net.bridge.bridge-nf-call-ip6tables": "0"}), "bridge-nf-off", "error",
         "policy-nftables, proxy-nftables unseen", {"net.bridge.bridge-nf-call-ip6tables": "1"}),
    Case("strict by the device", node(sysctls={"net/ipv4/conf/flannel.1/rp_filter": "1"}), "rp-filter-strict", "warning",
         "flannel.1", {"net/ipv4/conf/flannel.1/rp_filter": "2"}),
    Case("strict by all", node(sysctls={"net.ipv4.conf.all.rp_filter": "1"}), "rp-filter-strict", "warning",
         "all has 1", {"net/ipv4/conf/flannel.1/rp_filter": "2"}),
    Case("conntrack small", node(sysctls={f"{CT}max": "65536"}, cores=8), "conntrack-small", "warning",
         "by 8 CPUs it should be 262144", {f"{CT}max": "262144"}),
    Case("conntrack with long chains", node(sysctls={f"{CT}buckets": "16384"}), "conntrack-small", "warning",
         "16384 chains", {f"{CT}buckets": "65536"}),
    Case("conntrack nearly full", node(sysctls={f"{CT}count": "220000"}), "conntrack-full", "error",
         "220000 of 262144", {f"{CT}max": "524288"}),
    Case("conntrack of many cores has a ceiling", node(sysctls={f"{CT}max": "262144"}, cores=96), "conntrack-small",
         "warning", "1048576", {f"{CT}max": "1048576"}),
    Case("conntrack timeouts", node(sysctls={f"{CT}tcp_timeout_established": "432000"}), "conntrack-timeouts", "info",
         "432000", {f"{CT}tcp_timeout_established": "86400"}),
    Case("conntrack strict about windows", node(sysctls={f"{CT}tcp_be_liberal": "0"}), "conntrack-strict", "warning",
         "resets", {f"{CT}tcp_be_liberal": "1"}),
    Case("small neighbour table", node(sysctls={f"{GC}{at}": v for at, v in ((1, "128"), (2, "512"), (3, "1024"))}),
         "neighbours-few", "info", "1024 fit", {f"{GC}1": "1024", f"{GC}2": "28672", f"{GC}3": "32768"}),
    Case("neighbour table half full", node(sysctls={f"{GC}{at}": v for at, v in ((1, "128"), (2, "512"), (3, "1024"))},
         space=space(neighbours=neighbours(300))), "neighbours-few", "warning", "1024 fit",
         {f"{GC}1": "1024", f"{GC}2": "28672", f"{GC}3": "32768"}),
    Case("neighbour table full beyond the recommended", node(sysctls={f"{GC}3": "40000"},
         space=space(neighbours=neighbours(33000))), "neighbours-full", "error", "33000",
         {f"{GC}1": "2048", f"{GC}2": "57344", f"{GC}3": "80000"}),
    Case("ports overlap NodePorts", node(sysctls={"net.ipv4.ip_local_port_range": "1024\t65535",
         "net.ipv4.ip_local_reserved_ports": "8080"}), "ports-overlap", "warning", "NodePort may be taken",
         {"net.ipv4.ip_local_reserved_ports": "8080,30000-32767"}),
    Case("few ports", node(sysctls={"net.ipv4.ip_local_port_range": "50000\t60999"}), "ports-few", "warning",
         "11000 ports", {"net.ipv4.ip_local_port_range": "32768\t60999"}),
    Case("ARP for virtual addresses", node(uses=("ipv4", "bridge", "proxy-ipvs"), sysctls={"net.ipv4.conf.all.arp_announce": "1"}),
         "arp-answers", "error", "dummy device",
         {"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.all.arp_announce": "2"}),
    Case("short queues", node(sysctls={"net.core.somaxconn": "128"}), "somaxconn-small", "warning", "128",
         {"net.core.somaxconn": "4096"}),
    Case("reno", node(sysctls={"net.ipv4.tcp_congestion_control": "reno"}), "congestion-control", "info", "reno fills",
         {"net.ipv4.tcp_congestion_control": "bbr"}),
    Case("reno and nothing better", node(sysctls={"net.ipv4.tcp_congestion_control": "reno",
         "net.ipv4.tcp_available_congestion_control": "reno"}), "congestion-control", "info", "cubic"),
    Case("bbr without pacing", node(sysctls={"net.ipv4.tcp_congestion_control": "bbr"}, release="4.9.0",
        space=space(link("flannel.1", checksum=False))),
         "congestion-bbr", "warning", "qdisc fq"),
    Case("loopback reachable", node(sysctls={"net.ipv4.conf.all.route_localnet": "1"}), "route-localnet", "warning",
         "127.0.0.1"),
    Case("few IPv6 routes", node(sysctls={"net.ipv6.route.max_size": "4096"}), "ipv6-routes-few", "warning", "4096",
         {"net.ipv6.route.max_size": "16384"}),
    Case("few watches", node(sysctls={"fs.inotify.max_user_instances": "128"}), "inotify-few", "info", "too many open",
         {"fs.inotify.max_user_instances": "512"}),
    Case("interpreted eBPF", node(uses=("ipv4", "bridge", "proxy-ebpf"), sysctls={"net.core.bpf_jit_enable": "0"}), "bpf-jit-off",
         "warning", "interpreted", {"net.core.bpf_jit_enable": "1"}),
    # kernel
    Case("a used feature is missing", node(kernel=without("VXLAN")), "kernel-feature", "error", "CONFIG_VXLAN"),
    Case("an unused feature is missing", node(kernel=without("NET_IPIP")), "kernel-cannot", "info", "NET_IPIP"),
    Case("no nftables where only masquerading needs it", node(kernel=without("NFT_MASQ"), uses=("ipv4", "bridge")),
         "kernel-feature", "warning", "NFT_MASQ"),
    Case("a module nobody loads", node(kernel={**without(), "BRIDGE_NETFILTER": "m"},
         loadable=frozenset({"br_netfilter"})), "module-not-loaded", "warning", "modprobe br_netfilter"),
    Case("a kernel nobody knows", node(kernel={}), "kernel-unknown", "info", "6.1.0-56"),
    # sizes
    Case("overlay too large", node(space=space(link("flannel.1", mtu=1500))), "mtu-overlay", "error", "mtu 1450"),
    Case("overlay over IPv6 too large", node(space=space(link("flannel.1", local=bytes(16)) ), underlay="eth0"),
         "mtu-overlay", "error", "mtu 1430"),
    Case("jumbo unused", node(space=space(link("eth0", mtu=9000))), "mtu-unused", "info", "8930"),
    Case("ports of a bridge differ", node(space=space(link("veth1", name="veth2", index=9, mtu=1400))), "mtu-bridge",
         "warning", "1400 and 1450 (1400: veth2)"),
    Case("a pod larger than its host end", node(pods={"web": (link("veth1", name="eth0", index=2, peer_index=5,
         mtu=1500, master=""),)}), "mtu-pod", "error", "1450 bytes leaves it"),
    Case("a way between that is too small", node(paths=(PathTry(address=PEER, size=9000, small=True, full=False),)),
         "mtu-path", "error", "9000 bytes are lost"),
    Case("a silent peer", node(paths=(PathTry(address=PEER, size=1500, small=False, full=False),)), "peer-silent", "info",
         "192.0.2.2"),
    # offloads
    Case("GRO off", node(offloads={"eth0": {"rx-gro": False}}), "offload-off", "info", "ethtool -K eth0 rx-gro on"),
    Case("LRO on", node(offloads={"eth0": {"rx-lro": True}}), "lro-on", "error", "lro off"),
    Case("checksums of an old kernel", node(release="5.4.0-42"), "vxlan-checksum", "warning",
         "flannel.1 tx-checksum-ip-generic off"),
    Case("checksums of a device", node(drivers={"eth0": "vmxnet3"}), "vxlan-checksum", "warning", "vmxnet3"),
    # conflicts
    Case("another network comes first", node(conf_files=(ConfFile(name="05-cilium.conflist", network="cilium",
         plugins=("cilium-cni",)), ConfFile(name="10-pycni.conflist", plugins=("pycni",)))), "conflist-first", "error",
         "mv /etc/cni/net.d/05-cilium.conflist"),
    Case("another network comes behind", node(conf_files=(ConfFile(name="10-pycni.conflist", plugins=("pycni",)),
         ConfFile(name="87-podman.conflist", plugins=("bridge",)))), "conflist-others", "info", "87-podman"),
    Case("no network of ours", node(conf_files=(ConfFile(name="87-podman.conflist", plugins=("bridge",)),)),
         "conflist-none", "info", "install-cni"),
    Case("the first file is broken", node(conf_files=(ConfFile(name="00-x.conf", trouble="cannot be read"),
         ConfFile(name="10-pycni.conflist", plugins=("pycni",)))), "conflist-broken", "error", "00-x.conf"),
    Case("docker has shut FORWARD", node(space=space(LinkState(name="docker0", kind="bridge", mtu=1500),
         hooks=(FORWARD_DROP,))), "docker", "warning", "DOCKER-USER"),
    Case("docker may shut FORWARD", node(space=space(LinkState(name="docker0", kind="bridge", mtu=1500),
         hooks=(msgspec.structs.replace(FORWARD_DROP, policy="accept"),))), "docker", "info", "docker0"),
    Case("a foreign chain drops", node(space=space(hooks=(FORWARD_DROP,))), "forward-drop", "warning",
         "nft list chain ip filter FORWARD"),
    Case("legacy iptables drops", node(space=space(hooks=(msgspec.structs.replace(FORWARD_DROP, family="ip legacy"),))),
         "forward-drop", "warning", "iptables-legacy -t filter -S FORWARD"),
    Case("docker's network is the pods'", node(space=space(LinkState(name="br-x", kind="bridge", mtu=1500),
         addresses=(AddressState("br-x", bytes((10, 244, 0, 1)), 16),)), underlay="eth0"), "networks-overlap", "error",
         "10.244.2.0/24"),
    Case("firewalld", node(tables=(("inet", "firewalld"),)), "firewalld", "warning", "trusted"),
    Case("kube-proxy beside ours", node(chains=(("ip", "nat", "KUBE-SERVICES"),)), "kube-proxy", "warning",
         "has left traces (chain KUBE-SERVICES)"),
    Case("kube-proxy instead of ours", node(uses=("ipv4", "bridge"), processes=frozenset({"kube-proxy"})), "kube-proxy", "info",
         "runs here"),
    Case("another network's devices", node(space=space(LinkState(name="cilium_host", kind="veth"))), "other-network",
         "warning", "Cilium has left devices: cilium_host"),
    Case("networkd removes routes", node(processes=frozenset({"systemd-network"}),
         networkd={"ManageForeignRoutingPolicyRules": "no"}), "networkd", "warning", "has ManageForeignRoutes=yes"),
    Case("NetworkManager takes devices", node(processes=frozenset({"NetworkManager"}),
         unmanaged=("interface-name:cni*", "interface-name:veth*")), "networkmanager", "warning", "devices flannel*"),
    Case("both kinds of iptables", node(legacy=("ip filter",), tables=(("ip", "nat"),)), "iptables-mix", "warning",
         "iptables-nft ip nat"),
]  # fmt: skip


def test_a_sound_node_has_nothing_wrong() -> None:
    assert judge([node()]) == ()


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_damage_is_told_once_with_its_cure(case: Case) -> None:
    [found] = judge([case.facts])
    assert (found.check, found.level) == (case.check, case.level)
    assert case.says in f"{found.subject}\n{found.reason}\n{found.fix}"
    assert all((found.subject, found.reason, found.fix, found.source))
    assert {item.name: item.after for item in changes([found]).get("", ())} == (case.sets or {})


def test_every_rule_has_a_case_and_is_described() -> None:
    folder = Path(features.__file__).parent
    text = "".join(file.read_text() for file in folder.glob("*.py"))
    named = set(re.findall(r'check="([a-z0-9-]+)"|_found\(\s*facts,\s*"([a-z0-9-]+)"', text))
    known = {one or other for one, other in named}
    assert known == {case.check for case in CASES} | {"mtu-differs"}
    described = (folder.parents[1] / "docs" / "doctor.md").read_text()
    assert not [check for check in known if f"`{check}`" not in described]


@pytest.mark.parametrize(
    "facts",
    [
        node(space=space(neighbours=neighbours(40000, "permanent"))),
        node(sysctls={"net.ipv4.ip_local_port_range": "20000\t60999", "net.ipv4.ip_local_reserved_ports": "30000-32767"}),
        node(sysctls={f"{CT}max": "0"}),
        node(kernel=without("WIREGUARD"), programs=frozenset({"wireguard-go"})),
        node(kernel={**without(), "VXLAN": "m"}, modules=frozenset({"vxlan"})),
        node(kernel={**without(), "VXLAN": "m"}, loadable=frozenset({"vxlan"})),
        node(release="5.4.0", space=space(link("flannel.1", checksum=False))),
        node(space=space(link("eth0", kind="veth")), offloads={"eth0": {"rx-gro": False}}),
        node(processes=frozenset({"systemd-network"}),
             networkd={"ManageForeignRoutes": "no", "ManageForeignRoutingPolicyRules": "false"}),
        node(tables=(("inet", "pycni_policy"), ("ip", "nat"))),
        node(paths=(PathTry(address=PEER, size=1500, small=True, full=True),)),
        node(sysctls={"net.bridge.bridge-nf-call-iptables": "0"}, uses=("ipv4", "bridge", "vxlan")),
        node(sysctls={"net.ipv6.conf.all.forwarding": "0"}, uses=("ipv4", "bridge", "vxlan")),
        node(sysctls={"net.ipv4.ip_forward": "0"}, uses=("bridge", "ipv6")),
        node(sysctls={"net.ipv4.conf.all.rp_filter": "1", "net/ipv4/conf/flannel.1/rp_filter": "2"}),
    ],
    ids=["permanent neighbours", "reserved NodePorts", "conntrack without limit", "a program instead", "a loaded module",
         "a module that loads itself", "checksums off already", "a virtual uplink", "networkd told", "our own tables",
         "all sizes pass", "a bridge nobody filters", "IPv6 unused", "IPv4 unused", "loose beside strict"],
)  # fmt: skip
def test_what_is_well_is_not_told_of(facts: Facts) -> None:
    assert judge([facts]) == ()


def test_what_a_node_does_is_seen_from_our_marks() -> None:
    seen = node(uses=None, tables=(("inet", "pycni_policy"),), kernel=without("VXLAN", "BRIDGE", "IP_VS"))
    found = {item.check: item for item in judge([seen])}
    assert {item.subject for item in judge([seen]) if item.check == "kernel-feature"} == {
        "the kernel lacks CONFIG_VXLAN (module vxlan)", "the kernel lacks CONFIG_BRIDGE (module bridge)"
    }  # fmt: skip
    assert "IP_VS" in found["kernel-cannot"].subject


def test_machine_wide_switches_are_left_to_the_machine_where_the_namespace_may_not_set_them() -> None:
    low = {f"{GC}{at}": value for at, value in ((1, "128"), (2, "512"), (3, "1024"))}
    inside = node("n1", sysctls=dict.fromkeys(low), machine=low, first=False)
    [found] = judge([inside])
    assert (found.check, found.changes, found.fixable) == ("neighbours-few", {}, False)
    assert "on the machine itself" in found.fix
    read_only = node("n1", sysctls={f"{CT}max": "65536"}, first=False)
    [found] = judge([msgspec.structs.replace(read_only, writable=read_only.writable - {f"{CT}max"})])
    assert (found.check, found.changes) == ("conntrack-small", {})


@pytest.mark.parametrize(
    ("sizes", "named", "says"),
    [
        ((1500, 1400, 1500), ("n2",), "1400 on n2, 1500 on n1, n3"),
        ((9000, 9000, 1500), ("n3",), "jumbo frames"),
    ],
    ids=["smaller", "jumbo"],
)
def test_nodes_whose_mtu_differs_are_named(sizes: tuple[int, ...], named: tuple[str, ...], says: str) -> None:
    nodes = [
        node(f"n{at}", space=space(link("eth0", mtu=size), link("flannel.1", mtu=size - 50)))
        for at, size in enumerate(sizes, 1)
    ]
    found = [item for item in judge(nodes) if item.check == "mtu-differs"]
    assert [(item.level, item.nodes) for item in found] == [("error", named)] * 2
    assert all(says in f"{item.subject} {item.reason}" for item in found if "underlay" in item.subject)
    assert {item.subject.split(":")[0] for item in found} == {"MTU of the underlay", "MTU of flannel.1"}


def test_nodes_of_one_mtu_are_well() -> None:
    assert judge([node("n1"), node("n2"), node("n3")]) == ()


def test_what_nodes_have_in_common_is_told_once_and_set_on_each() -> None:
    off = {"net.ipv4.ip_forward": "0"}
    found = judge(
        [node("n1", sysctls=off), node("n2"), node("n3", sysctls={**off, "net.core.somaxconn": "128"})]
    )
    assert [(item.check, item.nodes) for item in found] == [
        ("forwarding-off", ("n1", "n3")),
        ("somaxconn-small", ("n3",)),
    ]
    assert {name: [item.name for item in items] for name, items in changes(found).items()} == {
        "n1": ["net.ipv4.ip_forward"], "n3": ["net.ipv4.ip_forward", "net.core.somaxconn"]
    }  # fmt: skip
    assert all(item.fixable for item in found)


def damaged() -> tuple[Finding, ...]:
    return judge([
        node("n1", sysctls={"net.core.somaxconn": "128"}),
        node("n2", sysctls={"net.ipv4.ip_forward": "0", "net.core.somaxconn": "128"}, kernel=without("IPVLAN")),
    ])  # fmt: skip


def test_the_table_has_the_worst_first_and_says_what_fix_does() -> None:
    text = as_text(damaged(), ["n1", "n2"])
    assert [line.split()[:3] for line in text.splitlines() if not line.startswith(" ")] == [
        ["LEVEL", "CHECK", "NODES"],
        ["error", "forwarding-off", "n2"],
        ["warning", "somaxconn-small", "all"],
        ["info", "kernel-cannot", "n2"],
        ["*", "done", "by"],
        ["1", "error,", "1"],
    ]
    assert text.count("fix*") == 2
    assert "\033" not in text
    assert "\033[31merror" in as_text(damaged(), ["n1", "n2"], colour=True)


def test_json_has_all_of_a_finding() -> None:
    value = as_json(damaged(), ["n1", "n2"])
    assert (value["ok"], value["counts"]) == (False, {"error": 1, "warning": 1, "info": 1})
    first = value["findings"][0]
    assert first.keys() == {
        "check",
        "level",
        "nodes",
        "subject",
        "reason",
        "fix",
        "source",
        "fixable",
        "changes",
    }
    assert first["changes"] == [{"node": "n2", "name": "net.ipv4.ip_forward", "before": "0", "after": "1"}]


def test_values_to_keep_are_told_once_as_sysctl_d_has_them() -> None:
    assert sysctl_lines(changes(damaged())) == ["net.core.somaxconn = 4096", "net.ipv4.ip_forward = 1"]


def test_facts_travel_as_json() -> None:
    facts = node("n1", pods={"p": LINKS}, paths=(PathTry(address=PEER, size=1500, small=True, full=True),))
    assert msgspec.json.decode(msgspec.json.encode(facts), type=Facts) == facts
