"""flannel's node annotations both ways."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.kube import KubeNode, Meta
from pycni.model.lease import Lease, LeaseAttrs, Offer
from pycni.wire.kube_flannel import annotation_names, decode_node_lease, node_subnets, wanted_annotations

BOTH = (Family.V4, Family.V6)
NAMES = annotation_names()
DATA = b'{"VNI":1,"VtepMAC":"0a:0b:0c:0d:0e:0f"}'
ATTRS = LeaseAttrs(
    public_ip=IPv4Address("192.0.2.1"),
    public_ipv6=IPv6Address("2001:db8::1"),
    backend_type="vxlan",
    backend_data=DATA,
    backend_v6_data=DATA,
)


def kube_node(*cidrs, **told):
    annotations = {f"flannel.alpha.coreos.com/{key.replace('_', '-')}": value for key, value in told.items()}
    return KubeNode(meta=Meta(name="n1", annotations=annotations), pod_cidrs=cidrs)


def test_what_flannel_writes_is_read():
    told = {
        "kube_subnet_manager": "true",
        "backend_type": "vxlan",
        "backend_data": '{"VtepMAC":"0a:0b:0c:0d:0e:0f","VNI":1}',
        "backend_v6_data": '{"VNI":1,"VtepMAC":"0a:0b:0c:0d:0e:0f"}',
        "public_ip": "192.0.2.1",
        "public_ipv6": "2001:db8::1",
    }
    expected = Lease(subnet=IPv4Network("10.244.1.0/24"), subnet6=IPv6Network("fd00:1::/64"), attrs=ATTRS)
    assert decode_node_lease(kube_node("10.244.1.0/24", "fd00:1::/64", **told), NAMES, BOTH) == expected


@pytest.mark.parametrize(
    "attrs",
    [
        ATTRS,
        LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="host-gw"),
        LeaseAttrs(public_ipv6=IPv6Address("2001:db8::1"), backend_type="vxlan", backend_v6_data=DATA),
        LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="extension", backend_data=b'"a \\"b\\""'),
        msgspec.structs.replace(
            ATTRS,
            offers=(Offer(backend_type="host-gw"), Offer(backend_type="wireguard", backend_data=b'{"a":1}')),
        ),
    ],
    ids=["dual", "host-gw", "IPv6", "extension", "between backends"],
)
def test_what_we_write_is_read_as_it_was_meant(attrs):
    annotations = wanted_annotations(attrs, {}, NAMES)
    node = KubeNode(meta=Meta(name="n", annotations=annotations), pod_cidrs=("10.244.1.0/24", "fd00:1::/64"))
    assert decode_node_lease(node, NAMES, BOTH).attrs == attrs


def test_what_was_offered_is_taken_back_once():
    offering = msgspec.structs.replace(ATTRS, offers=(Offer(backend_type="host-gw"),))
    told = wanted_annotations(offering, {}, NAMES)
    assert told[NAMES.offers] == '[{"BackendType":"host-gw"}]'
    told |= wanted_annotations(ATTRS, told, NAMES)
    assert told[NAMES.offers] == ""
    assert NAMES.offers not in wanted_annotations(ATTRS, told, NAMES)
    assert decode_node_lease(kube_node("10.244.1.0/24", "fd00:1::/64"), NAMES, BOTH) is None
    node = KubeNode(meta=Meta(name="n", annotations=told), pod_cidrs=("10.244.1.0/24", "fd00:1::/64"))
    assert decode_node_lease(node, NAMES, BOTH).attrs == ATTRS


def test_absent_backend_data_is_written_as_go_writes_it():
    wanted = wanted_annotations(
        LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="host-gw"), {}, NAMES
    )
    assert wanted == {
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/backend-type": "host-gw",
        "flannel.alpha.coreos.com/public-ip": "192.0.2.1",
        "flannel.alpha.coreos.com/backend-data": "null",
    }


def test_an_overwritten_address_counts_for_others():
    told = {NAMES.overwrite: "203.0.113.9", NAMES.overwrite6: "2001:db8::9"}
    wanted = wanted_annotations(ATTRS, told, NAMES)
    assert (wanted[NAMES.public_ip], wanted[NAMES.public_ip6]) == ("203.0.113.9", "2001:db8::9")


def test_a_family_that_is_off_or_incomplete_is_left_out():
    told = {"kube_subnet_manager": "true", "backend_type": "vxlan", "public_ip": "192.0.2.1"}
    node = kube_node("10.244.1.0/24", "fd00:1::/64", **told)
    assert decode_node_lease(node, NAMES, BOTH).subnet6 is None
    assert decode_node_lease(node, NAMES, (Family.V4,)).subnet == IPv4Network("10.244.1.0/24")


@pytest.mark.parametrize("value", [None, "false", "True", ""])
def test_a_node_that_is_not_managed_has_no_lease(value):
    told = {} if value is None else {"kube_subnet_manager": value}
    assert decode_node_lease(kube_node("10.244.1.0/24", public_ip="192.0.2.1", **told), NAMES, BOTH) is None


WRONG = [
    ("no subnet", (), {"public_ip": "192.0.2.1"}, "spec.podCIDRs"),
    ("two subnets of a family", ("10.244.1.0/24", "10.244.2.0/24"), {"public_ip": "192.0.2.1"}, "spec.podCIDRs"),
    ("no address", ("10.244.1.0/24",), {}, "flannel.alpha.coreos.com/public-ip"),
    ("the empty address", ("10.244.1.0/24",), {"public_ip": "0.0.0.0"}, "flannel.alpha.coreos.com/public-ip"),
    ("an address of the other family", ("10.244.1.0/24",), {"public_ip": "fd00::1"}, "flannel.alpha.coreos.com/public-ip"),
    ("a loopback address", ("10.244.1.0/24",), {"public_ip": "127.0.0.1"}, "flannel.alpha.coreos.com/public-ip"),
    ("an address with a zone", ("fd00:1::/64",), {"public_ipv6": "fe80::1%eth0"}, "flannel.alpha.coreos.com/public-ipv6"),
    ("data that is no object", ("10.244.1.0/24",), {"public_ip": "192.0.2.1", "backend_data": "[1]"}, "JSON"),
    ("data that is no JSON", ("10.244.1.0/24",), {"public_ip": "192.0.2.1", "backend_data": "{"}, "JSON"),
    ("half a string", ("10.244.1.0/24",), {"public_ip": "192.0.2.1", "backend_data": '"a'}, "flannel.alpha.coreos.com/backend-data"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cidrs", "told", "field"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG]
)
def test_annotations_that_make_no_sense_name_node_field_and_value(cidrs, told, field):
    with pytest.raises(ConfigError) as caught:
        decode_node_lease(kube_node(*cidrs, kube_subnet_manager="true", **told), NAMES, BOTH)
    assert caught.value.obj.startswith("Node n1")
    assert caught.value.field == field


PREFIXES = [
    ("flannel.alpha.coreos.com", "flannel.alpha.coreos.com/public-ip"),
    ("net.example/team-a", "net.example/team-a-public-ip"),
    ("net.example/team-", "net.example/team-public-ip"),
    ("net.example/", "net.example/public-ip"),
]


@pytest.mark.parametrize(("prefix", "name"), PREFIXES)
def test_the_prefix_is_joined_as_flannel_joins_it(prefix, name):
    assert annotation_names(prefix).public_ip == name


@pytest.mark.parametrize("prefix", ["", "/x", "a/b/c", "Ä", "a b"])
def test_a_prefix_no_annotation_can_have_is_refused(prefix):
    with pytest.raises(ConfigError, match="kube-annotation-prefix"):
        annotation_names(prefix)


def test_node_subnets_are_those_of_the_families_in_use():
    node = kube_node("fd00:1::/64", "10.244.1.0/24")
    assert node_subnets(node, BOTH) == (IPv4Network("10.244.1.0/24"), IPv6Network("fd00:1::/64"))
    assert node_subnets(node, (Family.V6,)) == (None, IPv6Network("fd00:1::/64"))


VALUES = st.sampled_from(["true", "192.0.2.1", "2001:db8::1", "null", "{}", '{"a":[1]}', "vxlan"]) | st.text(
    max_size=10
)


@settings(deadline=None)
@given(
    st.dictionaries(st.sampled_from(NAMES), VALUES),
    st.lists(st.sampled_from(["10.1.0.0/24", "fd00::/64"]), max_size=3),
)
def test_whatever_annotations_come_there_is_a_lease_or_one_configerror(told, cidrs):
    node = KubeNode(meta=Meta(name="n", annotations={**told, NAMES.managed: "true"}), pod_cidrs=tuple(cidrs))
    try:
        found = decode_node_lease(node, NAMES, BOTH)
    except ConfigError:
        return
    assert found.subnet is not None or found.subnet6 is not None
