"""Lease records: byte for byte flannel's, and one clear error for everything else."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.lease import Lease, LeaseAttrs, Offer, lease_key
from pycni.wire.lease import (
    HeldLease,
    decode_attrs,
    decode_held,
    decode_key,
    decode_lease,
    encode_attrs,
    encode_held,
)

NET, NET6 = IPv4Network("10.5.34.0/24"), IPv6Network("fd00:1:0:5::/64")
PUBLIC, PUBLIC6 = IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")
DATA = b'{"VNI":1,"VtepMAC":"0e:2a:00:00:00:01"}'
VALUE = b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":' + DATA + b"}"


@pytest.mark.parametrize(
    ("name", "subnets"),
    [
        ("10.5.34.0-24", (NET, None)),
        ("10.5.34.0-24&fd00:1:0:5::-64", (NET, NET6)),
        ("0.0.0.0-0&fd00:1:0:5::-64", (None, NET6)),
        ("10.5.4.0-30", (IPv4Network("10.5.4.0/30"), None)),
        ("10.5.34.0-24&fd00::4-126", (NET, IPv6Network("fd00::4/126"))),
    ],
)
def test_keys_both_ways(name, subnets):
    assert decode_key(name) == subnets
    assert lease_key(*subnets) == name


# What flannel's encoder writes (field order, omitted fields, null) for these attributes.
VALUES = [
    pytest.param(VALUE, LeaseAttrs(public_ip=PUBLIC, backend_type="vxlan", backend_data=DATA), id="vxlan IPv4"),
    pytest.param(
        b'{"PublicIP":"192.0.2.1","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendData":'
        + DATA + b',"BackendV6Data":' + DATA + b"}",
        LeaseAttrs(public_ip=PUBLIC, public_ipv6=PUBLIC6, backend_type="vxlan",
                   backend_data=DATA, backend_v6_data=DATA),
        id="vxlan dual",
    ),
    pytest.param(
        b'{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"vxlan","BackendV6Data":' + DATA + b"}",
        LeaseAttrs(public_ipv6=PUBLIC6, backend_type="vxlan", backend_v6_data=DATA),
        id="vxlan IPv6 only",
    ),
    pytest.param(
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw"}',
        LeaseAttrs(public_ip=PUBLIC, backend_type="host-gw"),
        id="host-gw",
    ),
    pytest.param(b'{"PublicIP":"192.0.2.1","PublicIPv6":null}', LeaseAttrs(public_ip=PUBLIC), id="no backend"),
    pytest.param(
        b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"host-gw","Backends":[{"BackendType":"ipip"},'
        b'{"BackendType":"vxlan","BackendData":' + DATA + b',"BackendV6Data":' + DATA + b"}]}",
        LeaseAttrs(public_ip=PUBLIC, backend_type="host-gw",
                   offers=(Offer(backend_type="ipip"),
                           Offer(backend_type="vxlan", backend_data=DATA, backend_v6_data=DATA))),
        id="between two backends",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("raw", "attrs"), VALUES)
def test_values_both_ways_byte_by_byte(raw, attrs):
    assert encode_attrs(attrs) == raw
    assert decode_attrs("10.5.34.0-24", raw) == attrs


@pytest.mark.parametrize(
    ("raw", "attrs"),
    [
        (b'{"PublicIP":"192.0.2.1"}', LeaseAttrs(public_ip=PUBLIC)),
        (b'{"publicip":"192.0.2.1","backendtype":"udp"}', LeaseAttrs(public_ip=PUBLIC, backend_type="udp")),
        (b'{"PublicIP":"192.0.2.1","BackendType":null,"BackendData":null}', LeaseAttrs(public_ip=PUBLIC)),
        (
            b'{"PublicIP":"192.0.2.1","BackendType":"extension","BackendData":"a b"}',
            LeaseAttrs(public_ip=PUBLIC, backend_type="extension", backend_data=b'"a b"'),
        ),
        (b'{"PublicIP":"192.0.2.1","Future":[1]}', LeaseAttrs(public_ip=PUBLIC)),
        (
            b'{ "BackendData": {"VtepMAC":"0e:2a:00:00:00:01", "VNI":1}, "PublicIP":"192.0.2.1" }',
            LeaseAttrs(public_ip=PUBLIC, backend_data=DATA),
        ),
    ],
    ids=[
        "a reservation made by hand",
        "other case",
        "nulls",
        "a string, of backend extension",
        "unknown keys",
        "other order and spaces",
    ],
)
def test_values_as_others_write_them(raw, attrs):
    assert decode_attrs("x", raw) == attrs


BAD_KEYS = [
    ("empty", ""),
    ("a word", "config"),
    ("no length", "10.5.34.0"),
    ("a slash for the length", "10.5.34.0/24"),
    ("host bits set", "10.5.34.1-24"),
    ("host bits set in IPv6", "10.5.34.0-24&fd00::1-64"),
    ("length 0", "0.0.0.0-0"),
    ("length 32", "10.5.34.0-32"),
    ("length 33", "10.5.34.0-33"),
    ("length 99", "10.5.34.0-99"),
    ("length with a leading zero", "10.5.34.0-024"),
    ("IPv6 length 128", "10.5.34.0-24&fd00::-128"),
    ("IPv6 length 0", "10.5.34.0-24&::-0"),
    ("octet 256", "10.5.256.0-24"),
    ("octet with a leading zero", "10.5.034.0-24"),
    ("three octets", "10.5.34-24"),
    ("IPv6 alone", "fd00:1::-64"),
    ("two IPv4", "10.5.34.0-24&10.5.35.0-24"),
    ("IPv6 not compressed", "10.5.34.0-24&fd00:1:0:5:0:0:0:0-64"),
    ("IPv6 in capitals", "10.5.34.0-24&FD00:1::-64"),
    ("IPv6 with a zone", "10.5.34.0-24&fe80::%1-64"),
    ("nothing behind the ampersand", "10.5.34.0-24&"),
    ("something behind it", "10.5.34.0-24x"),
    ("a newline behind it", "10.5.34.0-24\n"),
    ("a folder below it", "10.5.34.0-24/x"),
    ("digits of another script", "10.5.34.0-2\u0664"),
    ("negative length", "10.5.34.0--4"),
    ("very long", "1" * 5000),
]
BAD_VALUES = [
    ("backends that are no array", VALUE[:-1] + b',"Backends":{}}'),
    ("too many backends", VALUE[:-1] + b',"Backends":[' + b",".join([b"{}"] * 17) + b"]}"),
    ("a backend that is no object", VALUE[:-1] + b',"Backends":["vxlan"]}'),
    ("a backend without a type", VALUE[:-1] + b',"Backends":[{}]}'),
    ("a backend whose type is no name", VALUE[:-1] + b',"Backends":[{"BackendType":7}]}'),
    ("empty", b""),
    ("not JSON", b"192.0.2.1"),
    ("cut short", VALUE[:-1]),
    ("behind the end", VALUE + b"}"),
    ("an array", b"[]"),
    ("null", b"null"),
    ("not UTF-8", b'{"PublicIP":"\xff\xfe"}'),
    ("no address at all", b"{}"),
    ("PublicIP empty", b'{"PublicIP":""}'),
    ("PublicIP unspecified", b'{"PublicIP":"0.0.0.0"}'),
    ("PublicIP no address", b'{"PublicIP":"node-1"}'),
    ("PublicIP with a length", b'{"PublicIP":"192.0.2.1/24"}'),
    ("PublicIP a number", b'{"PublicIP":3221225985}'),
    ("PublicIP of the other family", b'{"PublicIP":"2001:db8::1"}'),
    ("PublicIP multicast", b'{"PublicIP":"224.0.0.1"}'),
    ("PublicIP loopback", b'{"PublicIP":"127.0.0.1"}'),
    ("PublicIP broadcast", b'{"PublicIP":"255.255.255.255"}'),
    ("PublicIPv6 of the other family", b'{"PublicIP":"192.0.2.1","PublicIPv6":"192.0.2.1"}'),
    ("PublicIPv6 multicast", b'{"PublicIPv6":"ff02::1"}'),
    ("PublicIPv6 loopback", b'{"PublicIPv6":"::1"}'),
    ("PublicIPv6 with a zone", b'{"PublicIPv6":"fe80::1%eth0"}'),
    ("PublicIPv6 an object", b'{"PublicIP":"192.0.2.1","PublicIPv6":{}}'),
    ("BackendType a number", b'{"PublicIP":"192.0.2.1","BackendType":1}'),
    ("BackendData a number", b'{"PublicIP":"192.0.2.1","BackendData":7}'),
    ("BackendData an array", b'{"PublicIP":"192.0.2.1","BackendData":[]}'),
    ("BackendV6Data a number", b'{"PublicIP":"192.0.2.1","BackendV6Data":1}'),
    ("nested too deep", b'{"PublicIP":"192.0.2.1","BackendData":' + b'{"a":' * 5000),
    ("huge", b'{"PublicIP":"' + b"9" * 100_000 + b'"}'),
]
BAD = [pytest.param(key, VALUE, id=f"key: {what}") for what, key in BAD_KEYS]
BAD += [pytest.param("10.5.34.0-24", value, id=f"value: {what}") for what, value in BAD_VALUES]


@pytest.mark.parametrize(("name", "raw"), BAD)
def test_a_malformed_record_is_one_error_that_names_it(name, raw):
    with pytest.raises(ConfigError) as caught:
        decode_lease(name, raw)
    assert caught.value.obj == f"lease {name[:100]!r}"
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40) | st.text("0123456789abcdef.:-&/", max_size=40))
def test_any_name_decodes_to_its_own_key_or_is_a_config_error(name):
    try:
        subnets = decode_key(name)
    except ConfigError:
        return
    assert lease_key(*subnets) == name


anything = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
fields = st.sampled_from("PublicIP PublicIPv6 BackendType BackendData BackendV6Data publicip".split())
addresses = st.sampled_from(["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "::", "0.0.0.0", "ff02::1"])
objects = st.dictionaries(st.text(max_size=5), anything | st.lists(anything, max_size=3), max_size=3)


@given(st.dictionaries(fields, anything | addresses | objects, max_size=5))
def test_any_object_decodes_stably_or_is_a_config_error(value):
    try:
        attrs = decode_attrs("x", json.dumps(value).encode())
    except ConfigError:
        return
    assert decode_attrs("x", encode_attrs(attrs)) == attrs


@given(st.binary(max_size=60))
def test_any_bytes_decode_or_are_a_config_error(raw):
    with pytest.raises(ConfigError):
        decode_lease("10.5.34.0-24", raw)


@pytest.mark.parametrize("expires", [None, 1795235926.5])
def test_a_held_lease_survives_a_restart(expires):
    attrs = LeaseAttrs(public_ip=PUBLIC, backend_type="vxlan", backend_data=DATA)
    held = HeldLease(lease=Lease(subnet=NET, subnet6=NET6, attrs=attrs), expires=expires)
    assert decode_held(encode_held(held)) == held
    assert held.permanent == (expires is None)


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b'{"Key":"10.5.34.0-24"}', b'{"Key":"x","Value":{"PublicIP":"192.0.2.1"}}',
     b'{"Key":"10.5.34.0-24","Value":{"PublicIP":"192.0.2.1"},"Expires":"soon"}',
     b'{"Key":"10.5.34.0-24","Value":[],"Expires":1}'],
)  # fmt: skip
def test_a_bad_memory_of_a_held_lease_is_a_config_error(raw):
    with pytest.raises(ConfigError):
        decode_held(raw)
