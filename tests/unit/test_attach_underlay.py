"""What attachments ``macvlan`` and ``ipvlan`` compile to, and what is refused."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network
from typing import Any, NamedTuple

import pytest

from pycni.attach.compile import compile_attachment
from pycni.attach.plan import UnderlayChild
from pycni.attach.tables import elements
from pycni.errors import CniError, ConfigError
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import AddressRange, Bandwidth, IpamConf, PluginConf, Request, RouteConf
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.podnet import PodNetwork
from pycni.policy.inside import signature
from pycni.policy.insides import is_inside, load_key, place_of
from pycni.wire.cniconf import parse_conf
from tests.wire.cni_cases import conf

OWNER = Owner("net", "c1", "eth0")
PODNET = PodNetwork(
    subnets=(ip_network("10.1.2.0/24"),),
    networks=(ip_network("10.1.0.0/16"), ip_network("fd00::/48")),
    mtu=1450,
    exits=("eth1", "flannel.1"),
    own=(ip_interface("192.0.2.1/24"), ip_interface("2001:db8::1/64")),
    services=(ip_network("10.96.0.0/12"), ip_network("fd00:96::/112")),
)


class Given(NamedTuple):
    address: Any
    gateway: Any = None


def ranges(*nets: str) -> IpamConf:
    return IpamConf(
        range_sets=tuple(
            (AddressRange(subnet=net, start=net[10], end=net[20], gateway=net[254]),)
            for net in map(ip_network, nets)
        )
    )


def compiled(*addresses: str, podnet: PodNetwork | None = PODNET, **keys: Any) -> Any:
    kind = keys.pop("attachment", AttachmentKind.MACVLAN)
    settings = PluginConf(
        cni_version="1.1.0",
        name="net",
        attachment=kind,
        **{"ipam": ranges("192.0.2.0/24", "2001:db8::/64"), **keys},
    )
    return compile_attachment(settings, podnet, [Given(ip_interface(item)) for item in addresses], OWNER)


def shown(routes: Any) -> list[str]:
    return [route.text() for route in routes]


def test_the_pod_has_the_subnets_length_and_router():
    plan = compiled("192.0.2.10/24", "2001:db8::a/64")
    assert [item.text() for item in plan.addresses] == ["192.0.2.10/24", "2001:db8::a/64"]
    assert shown(plan.routes) == ["default via 192.0.2.254", "default via 2001:db8::fe"]
    assert (plan.mtu, plan.masquerade, plan.link.master) == (0, False, "eth1")
    assert [str(gateway) for _, gateway in plan.reported_ips] == ["192.0.2.254", "2001:db8::fe"]


def test_the_leg_leads_to_the_node_services_and_pod_networks_elsewhere():
    link = compiled("192.0.2.10/24", "2001:db8::a/64").link
    assert isinstance(link, UnderlayChild)
    assert shown(link.routes) == [
        "192.0.2.1/32 via 169.254.1.1",
        "2001:db8::1/128 via fe80::1",
        "10.96.0.0/12 via 169.254.1.1",
        "fd00:96::/112 via fe80::1",
        "10.1.0.0/16 via 169.254.1.1",
        "fd00::/48 via fe80::1",
    ]
    assert [item.text() for item in link.addresses] == ["192.0.2.10/32", "2001:db8::a/128"]
    assert link.sources == (ip_address("192.0.2.1").packed, ip_address("2001:db8::1").packed)


def test_a_family_the_pod_lacks_has_no_leg():
    link = compiled("192.0.2.10/24").link
    assert shown(link.routes) == [
        "192.0.2.1/32 via 169.254.1.1",
        "10.96.0.0/12 via 169.254.1.1",
        "10.1.0.0/16 via 169.254.1.1",
    ]
    assert len(link.gateways) == len(link.sources) == 1


def test_pod_networks_on_the_underlay_are_reached_without_the_node():
    podnet = PodNetwork(
        subnets=(ip_network("192.0.2.64/28"),),
        networks=(ip_network("192.0.2.64/26"),),
        mtu=1500,
        exits=("eth1",),
        own=(ip_interface("192.0.2.1/24"),),
    )
    routes = (RouteConf(dst=ip_network("0.0.0.0/0"), gw=ip_address("192.0.2.254")),)
    plan = compiled("192.0.2.66/28", podnet=podnet, ipam=IpamConf(routes=routes))
    assert plan.addresses[0].text() == "192.0.2.66/24"
    assert shown(plan.routes) == ["default via 192.0.2.254"]
    assert shown(plan.link.routes) == ["192.0.2.1/32 via 169.254.1.1"]
    assert (plan.link.forwarded, plan.link.families, elements(plan)) == (False, (), ())


def test_what_a_node_forwards_for_a_pod_is_masqueraded_by_its_leg():
    plan = compiled("192.0.2.10/24")
    assert [row.text() for row in elements(plan)] == [f'pycni_pods children {{ "{plan.host}" }}']


def test_without_a_pod_network_the_uplink_is_named():
    assert compiled("192.0.2.10/24", podnet=None, master="eth7").link.master == "eth7"
    with pytest.raises(ConfigError, match="master"):
        compiled("192.0.2.10/24", podnet=None)


REFUSED = {
    "no address": ((), {}, "needs an address"),
    "bandwidth": (("192.0.2.10/24",), {"bandwidth": Bandwidth(ingress_rate=1, ingress_burst=1)}, "bandwidth"),
    "a lease elsewhere": (("10.1.2.5/24",), {"ipam": IpamConf()}, r"192\.0\.2\.0/24.*give ipam.ranges"),
    "no router": (("192.0.2.10/24",), {"ipam": IpamConf()}, "isDefaultGateway"),
    "a MAC for ipvlan": (
        ("192.0.2.10/24",),
        {"mac": "02:00:00:00:00:01", "attachment": AttachmentKind.IPVLAN},
        "MAC of the uplink",
    ),
}


@pytest.mark.parametrize(("addresses", "keys", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_by_name(addresses, keys, words):
    with pytest.raises(ConfigError, match=words):
        compiled(*addresses, **keys)


KEYS = {
    "ipMasq": {"ipMasq": True},
    "macspoofchk": {"macspoofchk": True},
    "hairpinMode": {"hairpinMode": True},
    "vlan": {"vlan": 7},
    "master": {"attachment": "bridge", "master": "eth1"},
    "attachment": {"attachment": "sriov"},
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_make_no_sense_are_refused(key):
    with pytest.raises(CniError, match=f"invalid {key}="):
        parse_conf(Request(command="ADD", stdin=conf(**{"attachment": "macvlan", **KEYS[key]})))


def test_keys_are_read():
    found = parse_conf(Request(command="ADD", stdin=conf(attachment="ipvlan", master="eth1", ipMasq=False)))
    assert (found.attachment, found.master) == (AttachmentKind.IPVLAN, "eth1")


def endpoint(kind: AttachmentKind) -> Endpoint:
    return Endpoint(
        network="net",
        container_id="c1",
        ifname="eth0",
        attachment=kind,
        mac="02:00:00:00:00:07",
        addresses=(ip_interface("192.0.2.10/24"), ip_interface("2001:db8::a/64")),
        pod_namespace="shop",
        pod_name="web",
    )


@pytest.mark.parametrize("kind", AttachmentKind)
def test_policies_are_inside_where_packets_pass_the_node_by(kind):
    assert is_inside(endpoint(kind)) is (kind in {"macvlan", "ipvlan"})


def test_an_ipvlan_child_has_a_link_local_address_of_its_own():
    macvlan, ipvlan = (place_of(endpoint(kind)) for kind in (AttachmentKind.MACVLAN, AttachmentKind.IPVLAN))
    assert str(ip_address(macvlan.link_local)) == "fe80::ff:fe00:7"
    assert ipvlan.link_local != macvlan.link_local
    assert ipvlan.link_local == bytes.fromhex("fe80") + bytes(6) + ipvlan.link_local[8:]
    assert macvlan.pod == "shop/web"


def test_signatures_follow_from_key_and_owner_and_have_no_zero_part():
    key = bytes(range(32))
    found = {signature(key, Owner("net", f"c{number}", "eth0")) for number in range(500)}
    assert len(found) == 500
    assert not any(0 in item for item in found)
    assert signature(bytes(32), OWNER) != signature(key, OWNER) == signature(key, OWNER)


def test_the_nodes_key_is_made_once_for_root_alone(tmp_path):
    key = load_key(str(tmp_path / "state"))
    assert (len(key), load_key(str(tmp_path / "state"))) == (32, key)
    (file,) = (tmp_path / "state").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("inside.key", 0o600)
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes, expected 32"):
        load_key(str(tmp_path / "state"))
