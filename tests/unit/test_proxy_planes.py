"""Facts of the node, leftovers of data planes, other proxies: the pure parts beside the component."""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Interface

import pytest

from pycni.agent.service_facts import EVERYWHERE, differences, node_facts
from pycni.agent.settings_file import load
from pycni.errors import KernelError
from pycni.model.family import Family
from pycni.model.kube import KubeNode, Meta
from pycni.model.node import Underlay
from pycni.model.podnet import PodNetwork
from pycni.model.service import NodeFacts
from pycni_proxy import detect, planes
from tests.unit.proxy_fakes import FakePlane
from tests.unit.service_world import net, pack

NODE = KubeNode(
    meta=Meta(name="n1", labels={"topology.kubernetes.io/zone": "z1"}),
    internal_ips=("192.0.2.1", "192.0.2.9", "2001:db8::1"),
)
UNDERLAY = Underlay(
    name="eth1", mtu=1500, address=IPv4Interface("10.0.0.1/24"), address6=IPv6Interface("fd00::1/64")
)
PODS = PodNetwork(subnets=(), networks=(net("10.244.0.0/16"),), mtu=1450)
V4, V6 = Family.V4, Family.V6

FACTS = [
    ("the node object's addresses count", [], NODE, UNDERLAY, None, "addresses", (pack("192.0.2.1"), pack("2001:db8::1"))),
    ("without it the underlay's", [], None, UNDERLAY, None, "addresses", (pack("10.0.0.1"), pack("fd00::1"))),
    ("families of the pod network", [], NODE, UNDERLAY, PODS, "families", (V4,)),
    ("only addresses of those families", [], NODE, UNDERLAY, PODS, "addresses", (pack("192.0.2.1"),)),
    ("families of cluster-cidr", ["--cluster-cidr=10.0.0.0/8,fd00::/8"], NODE, UNDERLAY, PODS, "families", (V4, V6)),
    ("families of the addresses", [], NODE, None, None, "families", (V4, V6)),
    ("nothing known", [], None, None, None, "families", (V4,)),
    ("a broken address is passed over", [], KubeNode(meta=Meta(name="n1"), internal_ips=("x", "192.0.2.3")), None, None, "addresses", (pack("192.0.2.3"),)),
    ("zone", [], NODE, None, None, "zone", "z1"),
    ("uplink", [], NODE, UNDERLAY, None, "uplink", "eth1"),
    ("pods' networks", [], NODE, None, PODS, "cluster_networks", (net("10.244.0.0/16"),)),
    ("cluster-cidr beats them", ["--cluster-cidr=10.0.0.0/8"], NODE, None, PODS, "cluster_networks", (net("10.0.0.0/8"),)),
    ("node ports everywhere", ["--nodeport-bindon-all-ip"], NODE, None, None, "node_port_ranges", EVERYWHERE),
    ("node ports of a family that is off", ["--node-port-addresses=fd00::/8"], NODE, None, PODS, "node_port_ranges", ()),
    ("external IPs are refused by default", [], NODE, None, None, "any_external_ip", False),
    ("unless switched", ["--strict-external-ip-validation=false"], NODE, None, None, "any_external_ip", True),
    ("port range", ["--node-port-range=1-9"], NODE, None, None, "node_ports", (1, 9)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "node", "underlay", "pods", "field", "value"), [c[1:] for c in FACTS], ids=[c[0] for c in FACTS]
)
def test_facts(flags, node, underlay, pods, field, value):
    settings = load(["--components=proxy", *flags], {}, "n1").settings
    assert getattr(node_facts(settings, node, underlay, pods), field) == value


def test_link_local_underlay_addresses_serve_no_node_ports():
    underlay = Underlay(name="eth1", mtu=1500, address6=IPv6Interface("fe80::1/64"))
    assert node_facts(load([], {}, "n1").settings, None, underlay, None).addresses == ()


def test_ipvs_settings_reach_the_facts():
    flags = [
        "--hairpin-mode",
        "--ipvs-graceful-termination=false",
        "--ipvs-graceful-period=7",
        "--ipvs-permit-all=false",
        "--excluded-cidrs=10.9.0.0/16",
    ]
    found = node_facts(load(flags, {}, "n1").settings, None, None, None).ipvs
    assert (found.hairpin, found.graceful, found.graceful_s, found.permit_all, found.excluded) == (
        True,
        False,
        7.0,
        False,
        (net("10.9.0.0/16"),),
    )


def test_differences_are_told_in_words():
    before = NodeFacts(name="n", zone="a", addresses=(pack("192.0.2.1"),))
    after = NodeFacts(name="n", zone="b", addresses=())
    assert differences(before, after) == "zone 'a' -> 'b'; addresses 192.0.2.1 -> none"


def test_leftovers_of_every_other_plane_go_and_a_failure_stops_none():
    journal = []
    made = {name: FakePlane(name, journal) for name in planes.FACTORIES}
    for plane in made.values():
        plane.kernel["row"] = 1
    made["ebpf"].leftover_error = ExceptionGroup(
        "x", [KernelError(1, "unpin", "map"), KernelError(2, "detach")]
    )
    gone, failed = planes.leftovers(["nftables"], made.__getitem__)
    assert gone == ["ipvs: row"]
    assert failed == ["ebpf: unpin map: EPERM", "ebpf: detach: ENOENT"]
    assert made["nftables"].kernel


def test_a_data_plane_that_cannot_be_made_closes_those_made_before():
    first, second = FakePlane("ebpf", []), FakePlane("nftables", [])

    def fail(_facts):
        raise KernelError(1, "make table")

    second.make = fail
    with pytest.raises(KernelError):
        planes.make(
            ["ebpf", "nftables"], NodeFacts(name="n"), {"ebpf": first, "nftables": second}.__getitem__
        )
    assert first.open == 0


def test_a_plane_that_cannot_be_set_up_gives_way_to_the_next_unless_it_may_come():
    first, second = FakePlane("ebpf", []), FakePlane("nftables", [])
    error = KernelError(22, "load program")

    def fail(_facts):
        raise error

    first.make = fail
    choice = planes.Choice(("ebpf", "nftables"), ("note",))
    found, made = planes.make_chosen(
        choice, NodeFacts(name="n"), {"ebpf": first, "nftables": second}.__getitem__
    )
    assert found == planes.Choice(
        ("nftables",),
        ("note", "ebpf cannot be set up here (load program: EINVAL): nftables serves in its place"),
    )
    assert [plane.name for plane in made] == ["nftables"]
    error = KernelError(16, "attach program")
    with pytest.raises(KernelError, match="EBUSY"):
        planes.make_chosen(choice, NodeFacts(name="n"), {"ebpf": first, "nftables": second}.__getitem__)
    first.make, second.make = FakePlane("ebpf", []).make, fail
    with pytest.raises(KernelError):
        planes.make_chosen(choice, NodeFacts(name="n"), {"ebpf": first, "nftables": second}.__getitem__)


SIGNS = [
    ("nothing", detect.Signs(), []),
    ("our own things", detect.Signs(frozenset({"pycni-ipvs0", "cni0"}), frozenset({"pycni_proxy"}), frozenset({"PYCNI-SERVICES", "KUBE-KUBELET-CANARY"})), []),
    ("kube-proxy, nftables", detect.Signs(tables=frozenset({"kube-proxy"}), processes={"kube-proxy": (7,)}), ["kube-proxy is running (process 7; nftables table kube-proxy)"]),
    ("kube-proxy, iptables, gone", detect.Signs(chains=frozenset({"KUBE-SERVICES"})), ["kube-proxy is not seen running, its rules are here (iptables chain KUBE-SERVICES)"]),
    ("kube-proxy, ipvs, in another pid namespace", detect.Signs(frozenset({"kube-ipvs0"}), answering=frozenset({"kube-proxy"})), ["kube-proxy is running (it answers at port 10256; device kube-ipvs0)"]),
    ("kube-router", detect.Signs(frozenset({"kube-dummy-if"}), chains=frozenset({"KUBE-ROUTER-SERVICES", "KUBE-ROUTER-INPUT"}), processes={"kube-router": (3, 4)}), ["kube-router is running (process 3, 4; device kube-dummy-if; iptables chain KUBE-ROUTER-INPUT)"]),
    ("both", detect.Signs(frozenset({"kube-dummy-if", "kube-ipvs0"})), ["kube-proxy is not seen running, its rules are here (device kube-ipvs0)", "kube-router is not seen running, its rules are here (device kube-dummy-if)"]),
]  # fmt: skip


@pytest.mark.parametrize(("signs", "lines"), [c[1:] for c in SIGNS], ids=[c[0] for c in SIGNS])
def test_another_proxy_is_named_by_what_was_seen(signs, lines):
    assert detect.judge(signs) == lines
