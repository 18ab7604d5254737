"""Results in all seven shapes, both ways."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import CniError
from pycni.model.cni import VERSIONS, CniResult, Dns, InterfaceResult, IpResult, RouteConf
from pycni.wire.cniresult import decode_result, encode_result, project

FULL = CniResult(
    interfaces=(
        InterfaceResult(name="cni0", mac="00:11:22:33:44:55"),
        InterfaceResult(name="veth1", mac="55:44:33:22:11:11", socket_path="/s", pci_id="0000:00:1f.6"),
        InterfaceResult(name="eth0", mac="99:88:77:66:55:44", mtu=1450, sandbox="/run/netns/blue"),
    ),
    ips=(
        IpResult(address=ip_interface("10.1.0.5/16"), gateway=ip_address("10.1.0.1"), interface=2),
        IpResult(address=ip_interface("fd00::5/64"), gateway=ip_address("fd00::1"), interface=2),
        IpResult(address=ip_interface("10.2.0.5/16"), interface=2),
    ),
    routes=(
        RouteConf(dst=ip_network("::/0"), gw=ip_address("fd00::1"), table=0, scope=253),
        RouteConf(dst=ip_network("0.0.0.0/0"), mtu=1400, advmss=1360, priority=5),
    ),
    dns=Dns(nameservers=("10.1.0.1",), domain="a", search=("b",), options=("ndots:5",)),
)
DNS = {"nameservers": ["10.1.0.1"], "domain": "a", "search": ["b"], "options": ["ndots:5"]}
OLD_INTERFACES = [
    {"name": "cni0", "mac": "00:11:22:33:44:55"},
    {"name": "veth1", "mac": "55:44:33:22:11:11"},
    {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/run/netns/blue"},
]
IPS = [
    {"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2},
    {"address": "fd00::5/64", "gateway": "fd00::1", "interface": 2},
    {"address": "10.2.0.5/16", "interface": 2},
]
OLD_ROUTES = [{"dst": "::/0", "gw": "fd00::1"}, {"dst": "0.0.0.0/0"}]
NEWEST = {
    "interfaces": [
        {"name": "cni0", "mac": "00:11:22:33:44:55"},
        {"name": "veth1", "mac": "55:44:33:22:11:11", "socketPath": "/s", "pciID": "0000:00:1f.6"},
        {"name": "eth0", "mac": "99:88:77:66:55:44", "mtu": 1450, "sandbox": "/run/netns/blue"},
    ],
    "ips": IPS,
    "routes": [
        {"dst": "::/0", "gw": "fd00::1", "table": 0, "scope": 253},
        {"dst": "0.0.0.0/0", "mtu": 1400, "advmss": 1360, "priority": 5},
    ],
    "dns": DNS,
}
V1 = {"interfaces": OLD_INTERFACES, "ips": IPS, "routes": OLD_ROUTES, "dns": DNS}
V03 = V1 | {"ips": [item | {"version": version} for item, version in zip(IPS, "464", strict=True)]}
V02 = {
    "ip4": {"ip": "10.1.0.5/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
    "dns": DNS,
}
SHAPES = {"0.1.0": V02, "0.2.0": V02, "0.3.0": V03, "0.3.1": V03, "0.4.0": V03, "1.0.0": V1, "1.1.0": NEWEST}


@pytest.mark.parametrize("version", VERSIONS)
def test_each_version_has_its_shape(version: str) -> None:
    assert json.loads(encode_result(FULL, version)) == SHAPES[version] | {"cniVersion": version}


@pytest.mark.parametrize("version", VERSIONS)
def test_empty_parts_are_left_out(version: str) -> None:
    least = CniResult(ips=(IpResult(address=ip_interface("10.0.0.1/32")),))
    shape: dict[str, Any] = {"ips": [{"address": "10.0.0.1/32"}]}
    if version < "0.3":
        shape = {"ip4": {"ip": "10.0.0.1/32"}}
    elif version < "1":
        shape = {"ips": [{"version": "4", "address": "10.0.0.1/32"}]}
    assert json.loads(encode_result(least, version)) == shape | {"cniVersion": version}


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_before_0_3_0_a_result_needs_an_address(version: str) -> None:
    with pytest.raises(CniError, match=version) as caught:
        encode_result(CniResult(interfaces=FULL.interfaces), version)
    assert caught.value.code == 7


def test_a_result_is_read_by_its_own_version_and_else_by_the_configurations() -> None:
    assert decode_result(V02 | {"cniVersion": "0.2.0"}, "1.1.0").ips[0].address == ip_interface("10.1.0.5/16")
    assert decode_result(V02, "0.1.0").ips[1].gateway == ip_address("fd00::1")
    assert decode_result(V02 | {"cniVersion": ""}, "0.2.0").dns == FULL.dns
    assert decode_result(NEWEST, "1.1.0") == FULL


def test_what_others_add_or_leave_empty_is_no_reason_to_refuse() -> None:
    odd = {
        "interfaces": [{"name": "x", "extra": 1}, None],
        "ips": [{"version": "4", "address": "10.1.2.3/24", "gateway": "", "interface": None}],
        "routes": [{"dst": "10.1.2.3/8", "gw": None, "mtu": 0}],
        "dns": None,
        "more": [],
    }
    assert decode_result(json.dumps(odd).encode(), "1.0.0") == CniResult(
        interfaces=(InterfaceResult(name="x"),),
        ips=(IpResult(address=ip_interface("10.1.2.3/24")),),
        routes=(RouteConf(dst=ip_network("10.0.0.0/8")),),
    )


NAME = st.text(max_size=8)
V4, V6 = st.ip_addresses(v=4), st.ip_addresses(v=6)
INTERFACES = st.builds(
    InterfaceResult,
    name=NAME,
    mac=NAME,
    mtu=st.integers(0, 65535),
    sandbox=NAME,
    socket_path=NAME,
    pci_id=NAME,
)
ADDRESSES = st.one_of(
    st.builds(lambda ip, n: ip_interface((int(ip), n)), V4, st.integers(0, 32)).filter(
        lambda i: i.version == 4
    ),
    st.builds(lambda ip, n: ip_interface((ip.packed, n)), V6, st.integers(0, 128)),
)
GATEWAYS = st.one_of(st.none(), V4, V6.filter(lambda ip: ip.ipv4_mapped is None))
IP_RESULTS = st.builds(
    IpResult, address=ADDRESSES, gateway=GATEWAYS, interface=st.one_of(st.none(), st.integers(0, 9))
)
COUNT = st.one_of(st.none(), st.integers(1, 2**32 - 1))
ROUTES = st.builds(
    RouteConf,
    dst=ADDRESSES.map(lambda i: i.network),
    gw=GATEWAYS,
    mtu=COUNT,
    advmss=COUNT,
    priority=COUNT,
    table=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    scope=st.one_of(st.none(), st.integers(0, 255)),
)
TEXTS = st.lists(NAME, max_size=3).map(tuple)
RESULTS = st.builds(
    CniResult,
    interfaces=st.lists(INTERFACES, max_size=4).map(tuple),
    ips=st.lists(IP_RESULTS, min_size=1, max_size=4).map(tuple),
    routes=st.lists(ROUTES, max_size=4).map(tuple),
    dns=st.builds(Dns, nameservers=TEXTS, domain=NAME, search=TEXTS, options=TEXTS),
)


@settings(max_examples=200, deadline=None)
@given(result=RESULTS, version=st.sampled_from(VERSIONS))
def test_reading_gives_back_what_a_version_can_say(result: CniResult, version: str) -> None:
    shown = project(result, version)
    if version < "0.3":  # a route without an address of its family has no place there
        families = {item.address.version for item in shown.ips}
        assert all(route.dst.version in families for route in shown.routes)
    assert decode_result(encode_result(result, version), version) == shown
    assert project(shown, version) == shown
    assert encode_result(shown, version) == encode_result(result, version)
