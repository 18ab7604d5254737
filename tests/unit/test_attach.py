"""The plan of an attachment: what follows from configuration, allocation and the node's subnets."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.attach.bandwidth import BURST_LIMIT, Bucket, bucket, shaping
from pycni.attach.compile import compile_attachment
from pycni.attach.masq import Spared, collapse, spared
from pycni.attach.names import alias, host_ifname, names, owner_of, shaper_of
from pycni.attach.plan import AttachPlan
from pycni.attach.portmap import host_ports
from pycni.attach.result import AttachedLinks, result
from pycni.attach.tables import (
    add_text,
    clash,
    delete_text,
    elements,
    host_port_element,
    mapped_port,
    parse_elements,
)
from pycni.errors import ConfigError
from pycni.model.cni import (
    Bandwidth,
    CniResult,
    Dns,
    InterfaceResult,
    IpamConf,
    IpResult,
    PluginConf,
    PortMapping,
    RouteConf,
)
from pycni.model.endpoint import Owner
from pycni.model.family import Family
from pycni.model.podnet import PodNetwork

OWNER = Owner("cbr0", "c0ffee" * 10, "eth0")
PODNET = PodNetwork(
    subnets=(ip_network("10.1.2.0/24"), ip_network("fd00:1:2::/64")),
    networks=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")),
    mtu=1450,
)
V4, V6 = "10.1.2.9/24", "fd00:1:2::9/64"


class Allocation(NamedTuple):
    address: Any
    gateway: Any = None


def plan_of(
    *addresses: str, podnet: PodNetwork | None = PODNET, routes: Any = None, **conf: Any
) -> AttachPlan:
    allocated = [Allocation(ip_interface(address)) for address in addresses]
    settings = PluginConf(cni_version="1.1.0", name="cbr0", **conf)
    return compile_attachment(settings, podnet, allocated, OWNER, routes)


# ---------------------------------------------------------------- names


@given(st.tuples(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1)))
def test_names_fit_the_kernel_and_follow_from_the_owner(parts):
    owner = Owner(*parts)
    made = names(owner)
    assert made == names(Owner(*parts))
    assert len(made.host) == 15
    assert made.host.startswith("veth")
    assert len(made.shaper) == 15
    assert made.shaper == shaper_of(made.host)
    assert len(made.alias.encode()) <= 255
    for mac in (made.mac, made.host_mac):
        assert len(mac) == 6
        assert mac[0] & 3 == 2, "locally administered, unicast"
    assert made.mac != made.host_mac


def test_parts_of_an_owner_do_not_run_into_each_other():
    assert host_ifname(Owner("a", "bc", "d")) != host_ifname(Owner("ab", "c", "d"))


def test_an_alias_tells_its_owner_unless_it_was_cut():
    assert owner_of(alias(OWNER)) == OWNER
    long = Owner("n" * 200, "c" * 64, "eth0")
    assert len(alias(long)) == 255
    assert owner_of(alias(long)) is None
    assert owner_of("pycni") is None
    assert owner_of("other:a:b:c") is None


# ---------------------------------------------------------------- addresses, gateways, routes

ROUTES = {
    "default by the first host address": ((V4,), {}, ["default via 10.1.2.1"]),
    "default in both families": ((V4, V6), {}, ["default via 10.1.2.1", "default via fd00:1:2::1"]),
    "cluster networks when not default": (
        (V4, V6),
        {"is_default_gateway": False},
        ["10.1.0.0/16 via 10.1.2.1", "fd00:1::/32 via fd00:1:2::1"],
    ),
    "none without a gateway": ((V4,), {"is_default_gateway": False, "is_gateway": False}, []),
    "ipam's routes go by the gateway and come first": (
        (V4,),
        {"ipam": IpamConf(routes=(RouteConf(dst=ip_network("192.0.2.0/24"), mtu=1300),))},
        ["192.0.2.0/24 via 10.1.2.1 mtu 1300", "default via 10.1.2.1"],
    ),
    "ipam's default replaces ours": (
        (V4,),
        {"ipam": IpamConf(routes=(RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.1.2.254")),))},
        ["default via 10.1.2.254"],
    ),
    "a default in another table does not": (
        (V4,),
        {
            "ipam": IpamConf(
                routes=(RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.1.2.254"), table=9),)
            )
        },
        ["default via 10.1.2.254 table 9", "default via 10.1.2.1"],
    ),
    "a cluster network ipam names itself is not doubled": (
        (V4,),
        {
            "is_default_gateway": False,
            "ipam": IpamConf(routes=(RouteConf(dst=ip_network("10.1.0.0/16"), priority=5),)),
        },
        ["10.1.0.0/16 via 10.1.2.1 metric 5"],
    ),
    "a family the pod has no address in stays on the link": (
        (V4,),
        {"ipam": IpamConf(routes=(RouteConf(dst=ip_network("2001:db8::/32")),))},
        ["2001:db8::/32", "default via 10.1.2.1"],
    ),
    "pure layer 2": ((), {"is_default_gateway": False, "is_gateway": False, "layer2_only": True}, []),
}


@pytest.mark.parametrize(("addresses", "conf", "expected"), ROUTES.values(), ids=ROUTES)
def test_routes(addresses, conf, expected):
    assert [route.text() for route in plan_of(*addresses, **conf).routes] == expected


def test_no_cluster_routes_before_the_node_has_a_lease():
    plan = plan_of("192.0.2.5/24", podnet=None, is_default_gateway=False)
    assert plan.routes == ()
    assert plan.mtu == 0
    assert [gateway.text() for gateway in plan.link.bridge.gateways] == ["192.0.2.1/24"]


def test_a_gateway_outside_the_subnet_is_reached_on_link():
    route = RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address("169.254.1.1"))
    inside = RouteConf(dst=ip_network("198.51.100.0/24"), gw=ip_address("10.1.2.7"))
    plan = plan_of(V4, routes=[route, inside])
    assert [route.onlink for route in plan.routes] == [True, False]


def test_routes_of_a_delegate_replace_the_configuration():
    conf = {"ipam": IpamConf(routes=(RouteConf(dst=ip_network("192.0.2.0/24")),))}
    plan = plan_of(V4, routes=[RouteConf(dst=ip_network("198.51.100.0/24"))], **conf)
    assert [route.text() for route in plan.routes] == ["198.51.100.0/24 via 10.1.2.1", "default via 10.1.2.1"]


def test_the_gateway_ipam_names_is_used():
    allocated = [Allocation(ip_interface(V4), ip_address("10.1.2.254"))]
    plan = compile_attachment(PluginConf(cni_version="1.1.0", name="n"), PODNET, allocated, OWNER)
    assert [gateway.text() for gateway in plan.link.bridge.gateways] == ["10.1.2.254/24"]
    assert plan.routes[0].text() == "default via 10.1.2.254"


def test_a_default_gateway_needs_room():
    with pytest.raises(ConfigError, match=r"network cbr0: ipam='10.1.2.9/32'"):
        plan_of("10.1.2.9/32")


@pytest.mark.parametrize("conf", [{"is_gateway": False, "is_default_gateway": False}, {}], ids=["off", "on"])
def test_the_bridge_carries_gateways_only_when_it_is_one(conf):
    plan = plan_of(V4, V6, **conf)
    expected = [] if conf else ["10.1.2.1/24", "fd00:1:2::1/64"]
    assert [gateway.text() for gateway in plan.link.bridge.gateways] == expected


# ---------------------------------------------------------------- link settings


def test_settings_of_the_link():
    plan = plan_of(
        V4,
        bridge="br7",
        mtu=1400,
        vlan=5,
        hairpin_mode=True,
        port_isolation=True,
        enable_dad=True,
        force_address=True,
        mac="02:11:22:33:44:55",
    )
    assert plan.mac == bytes.fromhex("021122334455")
    assert (plan.mtu, plan.link.bridge.mtu, plan.link.bridge.name, plan.link.bridge.gateway_device) == (
        1400,
        1400,
        "br7",
        "br7.5",
    )
    assert (plan.link.hairpin, plan.link.isolated, plan.enable_dad, plan.link.bridge.force_address) == (
        True,
        True,
        True,
        True,
    )
    assert plan_of(V4).mtu == 1450
    assert plan_of(V4).mac == names(OWNER).mac


def test_the_bridges_mac_follows_from_its_gateway():
    mac = plan_of(V4).link.bridge.mac
    assert mac == plan_of("10.1.2.77/24").link.bridge.mac
    assert mac != plan_of("10.1.3.77/24").link.bridge.mac
    assert plan_of(is_gateway=False, is_default_gateway=False).link.bridge.mac is None


@pytest.mark.parametrize(
    ("conf", "field"),
    [
        ({"promisc_mode": True, "hairpin_mode": True}, "promiscMode"),
        ({"bridge": "bridge-of-pods", "vlan": 100}, "bridge"),
    ],
    ids=["promisc and hairpin", "name too long with vlan"],
)
def test_contradictions_are_refused(conf, field):
    with pytest.raises(ConfigError) as caught:
        plan_of(V4, **conf)
    assert caught.value.field == field


def test_pods_of_one_network_share_their_bridge_plan():
    assert plan_of(V4).link.bridge is plan_of("10.1.2.10/24").link.bridge


# ---------------------------------------------------------------- port mappings


def mapping(
    port: int = 8080, target: int = 80, protocol: Any = "tcp", host: str | None = None
) -> PortMapping:
    address = None if host is None else ip_address(host)
    return PortMapping(host_port=port, container_port=target, protocol=protocol, host_ip=address)


PORTS = {
    "both families": (mapping(), ["tcp 0.0.0.0:8080 -> 10.1.2.9:80", "tcp [::]:8080 -> [fd00:1:2::9]:80"]),
    "v4 wildcard": (mapping(host="0.0.0.0"), ["tcp 0.0.0.0:8080 -> 10.1.2.9:80"]),
    "v6 wildcard": (mapping(host="::"), ["tcp [::]:8080 -> [fd00:1:2::9]:80"]),
    "one address": (mapping(53, 5353, "udp", "192.0.2.1"), ["udp 192.0.2.1:53 -> 10.1.2.9:5353"]),
    "v6 loopback": (mapping(protocol="sctp", host="::1"), ["sctp [::1]:8080 -> [fd00:1:2::9]:80"]),
}


@pytest.mark.parametrize(("entry", "expected"), PORTS.values(), ids=PORTS)
def test_port_mappings(entry, expected):
    plan = plan_of(V4, V6, "10.1.2.10/24", port_mappings=(entry, entry))
    assert [port.text() for port in plan.host_ports] == expected
    assert plan.link.hairpin


def test_a_mapping_for_a_family_the_pod_lacks_yields_nothing():
    assert plan_of(V4, port_mappings=(mapping(host="::"), mapping(host="2001:db8::1"))).host_ports == ()


def test_promiscuous_bridges_do_without_hairpin():
    assert not plan_of(V4, port_mappings=(mapping(),), promisc_mode=True).link.hairpin


def test_replies_need_the_node_where_the_pod_has_no_default_route():
    ports = (mapping(),)
    assert plan_of(V4, V6, port_mappings=ports).reply_by_node == frozenset()
    assert plan_of(V4, V6, port_mappings=ports, is_default_gateway=False).reply_by_node == {
        Family.V4,
        Family.V6,
    }
    v4_default = (RouteConf(dst=ip_network("0.0.0.0/0")),)
    half = plan_of(V4, V6, port_mappings=ports, is_default_gateway=False, ipam=IpamConf(routes=v4_default))
    assert half.reply_by_node == {Family.V6}


CLASHES = {
    "same": (mapping(), mapping(), True),
    "wildcard and one": (mapping(), mapping(host="192.0.2.1"), True),
    "two addresses": (mapping(host="192.0.2.2"), mapping(host="192.0.2.1"), False),
    "two protocols": (mapping(), mapping(protocol="udp"), False),
    "two ports": (mapping(), mapping(port=8081), False),
    "two families": (mapping(host="0.0.0.0"), mapping(host="::"), False),
}


@pytest.mark.parametrize(("one", "other", "expected"), CLASHES.values(), ids=CLASHES)
def test_clashes(one, other, expected):
    left, right = (
        [
            host_port_element(entry)
            for entry in host_ports([one_of], [(Family.V4, bytes(4)), (Family.V6, bytes(16))])
        ]
        for one_of in (one, other)
    )
    found = any(mapped_port(a) == mapped_port(b) and clash(a, b) for a in left for b in right)
    assert found is expected


# ---------------------------------------------------------------- masquerading


def test_spared_destinations_are_the_own_subnet_and_the_cluster():
    assert [pair.text() for pair in plan_of(V4, ip_masq=True).spared] == [
        "10.1.2.0/24 . 10.1.2.0/24",
        "10.1.2.0/24 . 10.1.0.0/16",
    ]


def nets(text: str) -> Spared:
    source, target = (ip_network(part) for part in text.split(" . "))
    family = Family.of(source)
    return Spared(
        family,
        source.network_address.packed,
        source.prefixlen,
        target.network_address.packed,
        target.prefixlen,
    )


COLLAPSES = {
    "covered": (["10.1.2.0/24 . 10.1.2.0/24", "10.1.2.0/24 . 10.1.0.0/16"], ["10.1.2.0/24 . 10.1.0.0/16"]),
    "apart": (
        ["10.1.2.0/24 . 10.1.0.0/16", "10.2.2.0/24 . 10.1.0.0/16"],
        ["10.1.2.0/24 . 10.1.0.0/16", "10.2.2.0/24 . 10.1.0.0/16"],
    ),
    "crossing": (["10.1.0.0/16 . 10.1.2.0/24", "10.1.2.0/24 . 10.1.0.0/16"], ["10.1.0.0/16 . 10.1.0.0/16"]),
    "families": (
        ["10.0.0.0/8 . 10.0.0.0/8", "a00::/8 . a00::/8"],
        ["10.0.0.0/8 . 10.0.0.0/8", "a00::/8 . a00::/8"],
    ),
}


@pytest.mark.parametrize(("given_", "expected"), COLLAPSES.values(), ids=COLLAPSES)
def test_pairs_are_collapsed_until_none_overlap(given_, expected):
    assert sorted(pair.text() for pair in collapse(map(nets, given_))) == sorted(expected)


@given(
    st.lists(st.tuples(st.integers(0, 255), st.integers(24, 32), st.integers(0, 255), st.integers(24, 32)))
)
def test_collapsed_pairs_spare_at_least_what_was_given_and_do_not_meet(raw):
    def net(value: int, length: int) -> Any:
        return ip_network((value, length), strict=False)

    pairs = [pair for a, b, c, d in raw for pair in spared([net(a, b)], [net(c, d)])[1:]]
    collapsed = sorted(collapse(pairs))
    assert not any(one.meets(other) for i, one in enumerate(collapsed) for other in collapsed[:i])
    for pair in pairs:
        assert any(wide.join(pair) == wide for wide in collapsed if wide.meets(pair))


# ---------------------------------------------------------------- bandwidth


def test_buckets_are_in_bytes():
    made = shaping(Bandwidth(ingress_rate=8_000_000, ingress_burst=800_000, egress_rate=16_000))
    assert made.ingress == Bucket(1_000_000, 100_000, 125_000)
    assert made.egress == Bucket(2_000, 16 * 1024, 16 * 1024 + 50)
    assert shaping(None) == shaping(Bandwidth()) == (None, None)


@given(st.integers(0, 2**63), st.integers(0, 2**63))
def test_buckets_fit_the_kernels_fields(rate, burst):
    made = bucket(rate, burst)
    if rate == 0:
        assert made is None
    else:
        assert made is not None
        assert 1 <= made.rate < 2**64
        assert 1 <= made.burst <= made.limit <= BURST_LIMIT


# ---------------------------------------------------------------- nft rows


def test_rows_of_a_pod_read_back_from_nfts_listing():
    plan = plan_of(
        V4,
        V6,
        ip_masq=True,
        mac_spoof_check=True,
        is_default_gateway=False,
        port_mappings=(mapping(), mapping(53, 53, "udp", "192.0.2.1")),
        mac="02:00:00:00:00:01",
    )
    host = plan.host
    rows = elements(plan)
    assert [row.text() for row in rows] == [
        "pycni_pods masq_v4 { 10.1.2.9 }",
        "pycni_pods masq_v6 { fd00:1:2::9 }",
        "pycni_pods ports_v4 { tcp . 8080 : 10.1.2.9 . 80 }",
        "pycni_pods reply_v4 { tcp . 8080 }",
        "pycni_pods ports_v6 { tcp . 8080 : fd00:1:2::9 . 80 }",
        "pycni_pods reply_v6 { tcp . 8080 }",
        "pycni_pods host_ports_v4 { 192.0.2.1 . udp . 53 : 10.1.2.9 . 53 }",
        "pycni_pods reply_v4 { udp . 53 }",
        f'pycni_spoof ports {{ "{host}" }}',
        f'pycni_spoof macs {{ "{host}" . 02:00:00:00:00:01 }}',
    ]
    assert add_text(rows[2:3], host) == (
        f'add element inet pycni_pods ports_v4 {{ tcp . 8080 comment "{host}" : 10.1.2.9 . 80 }}'
    )
    assert delete_text(rows[2:3]) == "delete element inet pycni_pods ports_v4 { tcp . 8080 }"
    listing = (
        "table inet pycni_pods {\n\tset near_v4 {\n\t\ttype ipv4_addr\n\t\telements = { 127.0.0.0/8 }\n\t}\n"
        "\tset empty {\n\t\ttype ipv4_addr\n\t}\n"
        "\tmap ports_v4 {\n\t\ttype inet_proto . inet_service : ipv4_addr . inet_service\n"
        f'\t\telements = {{ tcp . 8080 comment "{host}" : 10.1.2.9 . 80,\n'
        f'\t\t\t     17 . 53 comment "other" : 10.1.2.8 . 53 }}\n\t}}\n}}\n'
    )
    found = parse_elements(rows[2].table, listing)
    assert {row.text(): comment for row, comment in found.items()} == {
        rows[2].text(): host,
        "pycni_pods ports_v4 { udp . 53 : 10.1.2.8 . 53 }": "other",
    }


# ---------------------------------------------------------------- result

LINKS = AttachedLinks("vethx", 7, b"\2\0\0\0\0\2", 2, b"\2\0\0\0\0\3", 1450, b"\2\0\0\0\0\1")


def test_the_result_names_bridge_host_and_pod_in_this_order():
    conf = PluginConf(cni_version="1.1.0", name="cbr0", dns=Dns(nameservers=("10.0.0.10",)))
    made = result(plan_of(V4, V6), LINKS, conf, "/run/netns/x")
    assert made.interfaces == (
        InterfaceResult(name="cni0", mac="02:00:00:00:00:01"),
        InterfaceResult(name="vethx", mac="02:00:00:00:00:02"),
        InterfaceResult(name="eth0", mac="02:00:00:00:00:03", mtu=1450, sandbox="/run/netns/x"),
    )
    assert made.ips == (
        IpResult(address=ip_interface(V4), gateway=ip_address("10.1.2.1"), interface=2),
        IpResult(address=ip_interface(V6), gateway=ip_address("fd00:1:2::1"), interface=2),
    )
    assert made.routes == (
        RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address("10.1.2.1")),
        RouteConf(dst=ip_network("::/0"), gw=ip_address("fd00:1:2::1")),
    )
    assert made.dns.nameservers == ("10.0.0.10",)


def test_the_result_keeps_what_earlier_plugins_reported():
    before = CniResult(
        interfaces=(InterfaceResult(name="lo"),),
        ips=(IpResult(address=ip_interface("127.0.0.1/8"), interface=0),),
        routes=(RouteConf(dst=ip_network("192.0.2.0/24")),),
        dns=Dns(domain="example.org"),
    )
    conf = PluginConf(cni_version="1.1.0", name="cbr0", prev_result=before)
    made = result(plan_of(V4), LINKS, conf, "/run/netns/x")
    assert [interface.name for interface in made.interfaces] == ["lo", "cni0", "vethx", "eth0"]
    assert [ip.interface for ip in made.ips] == [0, 3]
    assert len(made.routes) == 2
    assert made.dns.domain == "example.org"


def test_check_expects_what_later_plugins_made_of_the_interface():
    changed = CniResult(
        interfaces=(
            InterfaceResult(name="eth0", mac="02:ff:00:00:00:01"),
            InterfaceResult(name="eth0", mac="02:AA:00:00:00:01", mtu=1300, sandbox="/run/netns/x"),
        )
    )
    plan = plan_of(V4).with_result(changed)
    assert (plan.mac, plan.mtu) == (bytes.fromhex("02aa00000001"), 1300)
    assert plan_of(V4).with_result(CniResult()) == plan_of(V4)
