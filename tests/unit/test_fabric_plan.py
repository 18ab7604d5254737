"""What a node has to be: the plan from settings, underlay, net-conf and lease."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import msgspec
import pytest

from pycni.agent.network_plan import NodeOptions, make_plan, misfit, need_fit
from pycni.backends.masq import VxlanGuard, table_text
from pycni.errors import ConfigError
from pycni.model.family import FAMILIES, Family
from tests.unit.fabric_world import conf, lease, node

MACS = {"flannel.1": bytes.fromhex("020000000001"), "flannel-v6.1": bytes.fromhex("020000000601")}


def plan(families="4", kind="vxlan", own=None, **options):
    here = node(families)
    return make_plan(
        NodeOptions(name="n1", **options),
        here.underlay,
        conf(families, kind),
        MACS,
        own or lease(1, families, kind),
    )


def test_pods_get_subnets_networks_and_the_smallest_mtu():
    pods = plan("46", ip_masq=True).pods
    assert pods.subnets == (IPv4Network("10.5.1.0/24"), IPv6Network("fd00:5:0:1::/64"))
    assert pods.networks == (IPv4Network("10.5.0.0/16"), IPv6Network("fd00:5::/48"))
    assert (pods.mtu, pods.ip_masq) == (1430, True)


def test_the_interfaces_address_is_published_unless_another_one_is_set():
    assert plan().attrs.public_ip == IPv4Address("192.0.2.1")
    assert plan(public_ip=IPv4Address("203.0.113.1")).attrs.public_ip == IPv4Address("203.0.113.1")


def test_our_lease_counts_with_what_it_has_to_say_not_with_what_it_says():
    stale = lease(1, public_ip=IPv4Address("192.0.2.99"))
    assert plan(own=stale).site.own.attrs == plan().attrs


def test_without_a_lease_there_is_only_what_to_publish():
    found = make_plan(NodeOptions(name="n1"), node().underlay, conf(), MACS, None)
    assert found.attrs.backend_type == "vxlan"
    assert (found.site, found.pods, found.firewall.empty) == (None, None, True)


FIREWALLS = [
    pytest.param("vxlan", True, True, True, id="vxlan with ip-masq"),
    pytest.param("vxlan", False, False, True, id="vxlan without ip-masq"),
    pytest.param("host-gw", True, True, False, id="host-gw with ip-masq"),
    pytest.param("alloc", True, True, False, id="alloc with ip-masq"),
    pytest.param("host-gw", False, False, False, id="host-gw without ip-masq"),
]


@pytest.mark.parametrize(("kind", "ip_masq", "masquerades", "guards"), FIREWALLS)
def test_the_firewall_holds_what_backend_and_settings_need(kind, ip_masq, masquerades, guards):
    firewall = plan("46", kind, ip_masq=ip_masq).firewall
    assert len(firewall.masquerade) == (2 if masquerades else 0)
    assert firewall.guard == (VxlanGuard(vni=1, port=8472, families=FAMILIES) if guards else None)
    assert firewall.empty == (not masquerades and not guards)


def test_the_firewalls_text_is_one_replacing_transaction():
    firewall = plan(
        ip_masq=True, ip_masq_exclude=(ip_network("172.16.0.0/12"), ip_network("fd99::/16"))
    ).firewall
    assert table_text(firewall.masquerade, firewall.guard, [bytes([192, 0, 2, 2])]) == (
        """table inet pycni_fabric {
}
delete table inet pycni_fabric
table inet pycni_fabric {
	set vtep4 {
		type ipv4_addr
		elements = { 192.0.2.2 }
	}

	chain vxlan {
		type filter hook input priority raw; policy accept;
		udp dport 8472 @th,96,24 0x1 ip saddr != @vtep4 counter drop
	}

	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr 10.5.0.0/16 ip daddr != 10.5.0.0/16 udp dport 8472 counter drop
		meta mark & 0x00004000 == 0x00004000 return
		ip saddr 10.5.1.0/24 ip daddr 10.5.0.0/16 return
		ip daddr 10.5.1.0/24 return
		ip saddr 10.5.0.0/16 ip daddr 224.0.0.0/4 return
		ip saddr 10.5.0.0/16 ip daddr 255.255.255.255 return
		ip saddr 10.5.0.0/16 ip daddr 172.16.0.0/12 return
		ip saddr 10.5.0.0/16 masquerade fully-random
		ip daddr 10.5.0.0/16 masquerade fully-random
	}
}
"""
    )


def test_backend_bgp_without_its_component_is_an_error_that_says_what_to_do():
    with pytest.raises(ConfigError, match=r"Backend.Type='bgp': .* component bgp, which is not on: add it"):
        plan("46", "bgp")
    found = plan("46", "bgp", bgp=True, ip_masq=True)
    assert (found.pods.mtu, found.pods.exits, len(found.firewall.masquerade)) == (1500, ("eth0",), 2)


MISFITS = [
    pytest.param("4", lease(1), "", id="fits"),
    pytest.param("46", lease(1, "46"), "", id="dual-stack fits"),
    pytest.param(
        "46",
        lease(1),
        "lease 10.5.1.0-24 has no ipv6 subnet, the network's is fd00:5::/48",
        id="a family too few",
    ),
    pytest.param(
        "4",
        lease(1, "46"),
        "lease 10.5.1.0-24&fd00:5:0:1::-64 has the ipv6 subnet fd00:5:0:1::/64, the network's is None",
        id="a family too many",
    ),
    pytest.param(
        "4",
        msgspec.structs.replace(lease(1), subnet=IPv4Network("10.6.1.0/24")),
        "lease 10.6.1.0-24: 10.6.1.0/24 is not inside the cluster network 10.5.0.0/16",
        id="outside",
    ),
    pytest.param(
        "4",
        msgspec.structs.replace(lease(1), subnet=IPv4Network("10.0.0.0/8")),
        "lease 10.0.0.0-8: 10.0.0.0/8 is not inside the cluster network 10.5.0.0/16",
        id="elsewhere and larger than the network",
    ),
    pytest.param(
        "6",
        msgspec.structs.replace(lease(1, "6"), subnet6=IPv6Network("fd00:5::/47")),
        "lease 0.0.0.0-0&fd00:5::-47: fd00:5::/47 is not inside the cluster network fd00:5::/48",
        id="around the network",
    ),
]


@pytest.mark.parametrize(("families", "own", "reason"), MISFITS)
def test_a_lease_fits_or_says_why_not(families, own, reason):
    assert misfit(conf(families), own) == reason
    if reason:
        with pytest.raises(ConfigError, match="drain this node and restart pycnid"):
            need_fit(conf(families), own)


def test_a_misfit_lease_gives_no_pods_and_no_site():
    found = make_plan(NodeOptions(name="n1"), node("46").underlay, conf("46"), MACS, lease(1))
    assert (found.site, found.pods) == (None, None)


def test_what_does_not_go_together_is_named():
    with pytest.raises(ConfigError, match="underlay eth0: ipv6 address"):
        make_plan(NodeOptions(name="n1"), node("4").underlay, conf("46"), MACS, None)
    with pytest.raises(ConfigError, match=r"Backend.Type='ipsec'"):
        make_plan(NodeOptions(name="n1"), node("4").underlay, conf("4", "ipsec"), MACS, None)


def test_equal_inputs_give_equal_plans():
    assert plan("46", ip_masq=True) == plan("46", ip_masq=True)
    assert plan("46").site.own.of(Family.V6) == IPv6Network("fd00:5:0:1::/64")
