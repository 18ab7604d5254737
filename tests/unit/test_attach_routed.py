"""The plan of a routed attachment: what follows from configuration, allocation and the node's subnets."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import msgspec
import pytest

from pycni.agent.cni_addresses import Addressing
from pycni.agent.cni_records import compiled, new_endpoint, recorded_plan
from pycni.attach.compile import KINDS, compile_attachment
from pycni.attach.plan import AttachPlan, RoutedLeg
from pycni.attach.result import AttachedLinks, result
from pycni.attach.tables import Constants, constants, elements
from pycni.errors import CniError, ConfigError
from pycni.ipam.allocate import Allocation
from pycni.ipam.endpoints import EndpointStore
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import InterfaceResult, IpamConf, PluginConf, PortMapping, RouteConf
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Family
from pycni.wire.cni import parse_request
from pycni.wire.cniconf import parse_conf
from tests.unit.test_attach import OWNER, PODNET, V4, V6

WEB = PortMapping(host_port=8080, container_port=80)


def plan_of(*addresses: str, podnet: Any = PODNET, routes: Any = None, **conf: Any) -> AttachPlan:
    allocated = [Allocation(ip_interface(address), None) for address in addresses]
    settings = PluginConf(cni_version="1.1.0", name="cbr0", attachment=AttachmentKind.PTP, **conf)
    return compile_attachment(settings, podnet, allocated, OWNER, routes)


def test_every_kind_can_be_compiled():
    assert set(KINDS) == set(AttachmentKind)


def test_the_pod_has_host_prefixes_and_a_gateway_that_is_no_pods_address():
    plan = plan_of(V4, V6)
    assert isinstance(plan.link, RoutedLeg)
    assert [item.text() for item in plan.addresses] == ["10.1.2.9/32", "fd00:1:2::9/128"]
    assert [item.text() for item in plan.link.gateways] == ["169.254.1.1/32", "fe80::1/64"]
    assert [item.text() for item in plan.link.subnets] == ["10.1.2.0/24", "fd00:1:2::/64"]
    assert [(item.text(), item.onlink) for item in plan.routes] == [
        ("default via 169.254.1.1", True),
        ("default via fe80::1", False),
    ]
    assert [item.text() for item in plan.neighbours] == [
        f"169.254.1.1 lladdr {plan.names.host_mac.hex(':')}",
        f"fe80::1 lladdr {plan.names.host_mac.hex(':')}",
    ]
    assert (plan.mtu, plan.way_in, plan.link.families) == (1450, plan.host, (Family.V4, Family.V6))


def test_one_family_alone():
    assert [item.text() for item in plan_of(V6).link.gateways] == ["fe80::1/64"]
    assert [item.text() for item in plan_of(V4).link.gateways] == ["169.254.1.1/32"]


def test_what_pods_of_a_network_share_is_compiled_once():
    assert plan_of(V4).link is plan_of("10.1.2.10/24").link
    assert plan_of(V4).routes is plan_of("10.1.2.10/24").routes


def test_subnets_that_are_not_the_nodes_stay_open():
    """A range of somebody's network: what no pod has of it is not this node's to refuse."""
    assert plan_of("192.0.2.9/24").link.subnets == ()
    assert plan_of(V4, podnet=None, mtu=1400).link.subnets == ()
    assert plan_of(V4, podnet=None, mtu=1400).mtu == 1400


def test_routes_without_a_default_lead_to_the_cluster_and_the_subnet():
    routes = (RouteConf(dst=ip_network("198.51.100.0/24")),)
    plan = plan_of(V4, is_default_gateway=False, ipam=IpamConf(routes=routes), port_mappings=(WEB,))
    assert [item.text() for item in plan.routes] == [
        "198.51.100.0/24 via 169.254.1.1",
        "10.1.0.0/16 via 169.254.1.1",
        "10.1.2.0/24 via 169.254.1.1",
    ]
    assert plan.reply_by_node == {Family.V4}
    assert plan_of(V4, port_mappings=(WEB,)).reply_by_node == frozenset()


GATEWAYS = {"none": None, "the subnet's": "10.1.2.1", "the pod's": "169.254.1.1"}


@pytest.mark.parametrize("gateway", GATEWAYS.values(), ids=GATEWAYS)
def test_a_route_by_the_node_may_name_it_in_any_way(gateway: str | None):
    route = RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address(gateway) if gateway else None)
    plan = plan_of(V4, ipam=IpamConf(routes=(route,)))
    assert [item.text() for item in plan.routes] == ["default via 169.254.1.1"]


def test_a_route_by_anybody_else_is_refused_by_name():
    route = RouteConf(dst=ip_network("192.0.2.0/24"), gw=ip_address("10.1.2.77"))
    with pytest.raises(ConfigError, match=r"network cbr0: ipam route 192.0.2.0/24 gw=.*10.1.2.77"):
        plan_of(V4, ipam=IpamConf(routes=(route,)))
    with pytest.raises(ConfigError, match="without an address nothing can be routed"):
        plan_of()


def test_rows_do_not_touch_the_bridges_sets():
    plan = plan_of(V4, V6, ip_masq=True, mac_spoof_check=True, port_mappings=(WEB,))
    assert {row.set for row in elements(plan)} == {
        *(f"{name}_{version}" for name in ("masq", "ports", "self") for version in ("v4", "v6")),
        "legs",
        "leg_ports",
        "leg_macs",
    }
    assert {row.table for row in elements(plan)} == {("inet", "pycni_pods")}
    assert {pair.text() for pair in plan.spared} == {
        "10.1.2.0/24 . 10.1.0.0/16",
        "10.1.2.0/24 . 10.1.2.0/24",
        "fd00:1:2::/64 . fd00:1::/32",
        "fd00:1:2::/64 . fd00:1:2::/64",
    }
    assert constants(plan) == Constants(frozenset(plan.spared)), "the same for every pod of the network"


def test_the_result_is_that_of_the_reference_ptp():
    links = AttachedLinks("vethx", 7, b"\2\0\0\0\0\2", 2, b"\2\0\0\0\0\3", 1450)
    made = result(plan_of(V4, V6), links, PluginConf(cni_version="1.1.0", name="cbr0"), "/run/netns/x")
    assert made.interfaces == (
        InterfaceResult(name="vethx", mac="02:00:00:00:00:02"),
        InterfaceResult(name="eth0", mac="02:00:00:00:00:03", mtu=1450, sandbox="/run/netns/x"),
    )
    assert [(str(ip.address), str(ip.gateway), ip.interface) for ip in made.ips] == [
        ("10.1.2.9/32", "169.254.1.1", 1),
        ("fd00:1:2::9/128", "fe80::1", 1),
    ]


RANGES = {"ranges": [[{"subnet": "192.0.2.0/25"}]]}
CONFS: dict[str, tuple[dict[str, Any], tuple[str, ...], Any]] = {
    "lease": ({}, (V4, V6), None),
    "delegated without routes": ({"ipam": {"type": "host-local", **RANGES}}, ("192.0.2.9/25",), ()),
    "ours with a range": ({"ipam": RANGES}, ("192.0.2.9/25",), None),
    "delegated": (
        {"ipam": {"type": "static"}},
        ("203.0.113.9/24",),
        (RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address("203.0.113.1")),),
    ),
}


@pytest.mark.parametrize("name", CONFS)
def test_the_record_gives_the_plan_of_add_again(name: str, tmp_path):
    """Recorded are host prefixes; subnets, and so masquerading, have to come out as they were."""
    more, addresses, routes = CONFS[name]
    conf = {
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "pycni",
        "attachment": "ptp",
        "ipMasq": True,
        **more,
    }
    request = parse_request(
        {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": OWNER.container_id,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": "/run/netns/x",
        },
        msgspec.json.encode(conf),
    )
    settings = parse_conf(request)
    given = Addressing(tuple(Allocation(ip_interface(item), None) for item in addresses), routes)
    plan = compiled(settings, PODNET, given.allocations, OWNER, given.routes)
    store = EndpointStore(str(tmp_path))
    store.put(msgspec.structs.replace(new_endpoint(plan, settings, request, given), state="ready"))
    store.close()
    again = EndpointStore(str(tmp_path))
    (endpoint,) = again.all()
    again.close()
    assert endpoint.attachment is AttachmentKind.PTP
    assert all(item.network.num_addresses == 1 for item in endpoint.addresses)
    assert recorded_plan(endpoint, PODNET) == plan


def test_records_of_earlier_agents_are_of_bridges():
    assert Endpoint(network="n", container_id="c", ifname="eth0").attachment is AttachmentKind.BRIDGE
    assert Owner("n", "c", "eth0")


READ = {
    "nothing": ({}, AttachmentKind.BRIDGE),
    "bridge": ({"attachment": "bridge", "vlan": 3, "isGateway": False}, AttachmentKind.BRIDGE),
    "ptp": ({"attachment": "ptp", "bridge": "br9", "vlan": 0, "promiscMode": False}, AttachmentKind.PTP),
    "ptp that may hairpin": ({"attachment": "ptp", "hairpinMode": True}, AttachmentKind.PTP),
}
REFUSED = {
    "unknown": ({"attachment": "vlan"}, 7, 'attachment="vlan"'),
    "capitals": ({"attachment": "PTP"}, 7, 'attachment="PTP"'),
    "no text": ({"attachment": ["ptp"]}, 6, "attachment"),
    **{
        key: ({"attachment": "ptp", key: value}, 7, f"{key}=.*no bridge")
        for key, value in (
            ("vlan", 3),
            ("promiscMode", True),
            ("portIsolation", True),
            ("forceAddress", True),
        )
    },
    "no gateway": ({"attachment": "ptp", "isGateway": False}, 7, "isGateway=false"),
}


def read(keys: dict[str, Any]) -> PluginConf:
    conf = {"cniVersion": "1.1.0", "name": "cbr0", "type": "pycni", **keys}
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/x",
    }
    return parse_conf(parse_request(environment, msgspec.json.encode(conf)))


@pytest.mark.parametrize("name", READ)
def test_the_key_is_read(name: str):
    keys, kind = READ[name]
    assert read(keys).attachment is kind


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused(name: str):
    keys, code, text = REFUSED[name]
    with pytest.raises(CniError, match=text) as caught:
        read(keys)
    assert caught.value.code == code
