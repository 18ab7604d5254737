"""net-conf: flannel's keys, rules and defaults; one clear error per bad value."""

import base64
import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.extension import Commands
from pycni.model.network import BackendConf, NetConf
from pycni.model.wireguard import Secret
from pycni.wire.netconf import decode_netconf, encode_netconf, show_netconf, unknown_keys

PSK = base64.b64encode(bytes(range(32))).decode()
V4 = {"Network": "10.5.0.0/16"}
V6 = {"EnableIPv6": True, "IPv6Network": "fd00:1::/48"}


def decode(conf):
    return decode_netconf(conf if isinstance(conf, bytes) else json.dumps(conf).encode())


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("10.5.0.0/16", 24, "10.5.1.0", "10.5.255.0"),
        ("10.0.0.0/8", 24, "10.0.1.0", "10.255.255.0"),
        ("10.5.4.0/22", 24, "10.5.5.0", "10.5.7.0"),
        ("10.5.4.0/23", 25, "10.5.4.128", "10.5.5.128"),
        ("10.5.4.0/28", 30, "10.5.4.4", "10.5.4.12"),
        ("10.5.77.1/16", 24, "10.5.1.0", "10.5.255.0"),
    ],
)
def test_defaults_of_ipv4_follow_from_the_networks_length(network, length, first, last):
    conf = decode({"Network": network})
    assert (conf.subnet_len, conf.subnet_min, conf.subnet_max) == (
        length,
        IPv4Address(first),
        IPv4Address(last),
    )
    assert conf.network == IPv4Network(network, strict=False)
    assert conf.network6 is None


@pytest.mark.parametrize(
    ("network", "length", "first", "last"),
    [
        ("fd00:1::/48", 64, "fd00:1:0:1::", "fd00:1:0:ffff::"),
        ("fd00:1::/62", 64, "fd00:1:0:1::", "fd00:1:0:3::"),
        ("fd00:1::/63", 65, "fd00:1:0:0:8000::", "fd00:1:0:1:8000::"),
        ("fd00:1::/124", 126, "fd00:1::4", "fd00:1::c"),
    ],
)
def test_defaults_of_ipv6_follow_from_the_networks_length(network, length, first, last):
    conf = decode({"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": network})
    assert (conf.subnet6_len, conf.subnet6_min, conf.subnet6_max) == (
        length,
        IPv6Address(first),
        IPv6Address(last),
    )
    assert conf.network6 == IPv6Network(network)
    assert conf.network is None


GOOD = [
    ("missing Backend is vxlan", V4, {"backend": BackendConf()}),
    ("Backend without Type is vxlan", V4 | {"Backend": {"VNI": 7}}, {"backend": BackendConf(vni=7)}),
    ("null means not given", V4 | {"Backend": None, "SubnetLen": None, "SubnetMin": None}, {}),
    ("other backends keep their name", V4 | {"Backend": {"Type": "ipsec", "PSK": "x", "MTU": 9}},
     {"backend": BackendConf(type="ipsec")}),
    ("wireguard", V4 | {"Backend": {"Type": "wireguard"}}, {"backend": BackendConf(type="wireguard")}),
    ("bgp", V4 | {"Backend": {"Type": "bgp"}}, {"backend": BackendConf(type="bgp")}),
    ("every extension key",
     V4 | {"Backend": {"Type": "extension", "PreStartupCommand": "a", "PostStartupCommand": "b", "MTU": 1400,
                       "SubnetAddCommand": "c", "SubnetRemoveCommand": "d", "ShutdownCommand": "e"}},
     {"backend": BackendConf(type="extension", mtu=1400, commands=Commands(
         pre_startup="a", post_startup="b", subnet_add="c", subnet_remove="d", shutdown="e"))}),
    ("every wireguard key",
     V4 | {"Backend": {"Type": "wireguard", "PSK": PSK, "ListenPort": 1, "ListenPortV6": 2, "MTU": 1400,
                       "Mode": "auto", "PersistentKeepaliveInterval": 25}},
     {"backend": BackendConf(type="wireguard", psk=Secret(bytes(range(32))), listen_port=1, listen_port_v6=2,
                             mtu=1400, mode="auto", keepalive_s=25)}),
    ("udp has flannel's port", V4 | {"Backend": {"Type": "udp"}}, {"backend": BackendConf(type="udp", port=8285)}),
    ("every udp key", V4 | {"Backend": {"Type": "udp", "Port": 9, "MTU": 1400, "PSK": PSK}},
     {"backend": BackendConf(type="udp", port=9, mtu=1400, psk=Secret(bytes(range(32))))}),
    ("host-gw", V4 | {"Backend": {"Type": "host-gw"}}, {"backend": BackendConf(type="host-gw")}),
    ("ipip", V4 | {"Backend": {"Type": "ipip", "DirectRouting": True}},
     {"backend": BackendConf(type="ipip", direct_routing=True)}),
    ("Port 0 is the kernel's", V4 | {"Backend": {"Type": "vxlan", "Port": 0}}, {"backend": BackendConf(port=8472)}),
    ("every vxlan key",
     V4 | {"Backend": {"Type": "vxlan", "VNI": 4096, "Port": 4789, "MTU": 1400, "DirectRouting": True,
                       "GBP": True, "Learning": True, "MacPrefix": "0E-2A"}},
     {"backend": BackendConf(vni=4096, port=4789, mtu=1400, direct_routing=True, gbp=True, learning=True)}),
    ("keys match in any case", {"NETWORK": "10.5.0.0/16", "subnetlen": 26, "backend": {"type": "vxlan", "vni": 3}},
     {"subnet_len": 26, "backend": BackendConf(vni=3)}),
    ("of repeated keys the last one wins", b'{"Network":"10.9.0.0/16","network":"10.5.0.0/16"}', {}),
    ("bounds", V4 | {"SubnetMin": "10.5.10.0", "SubnetMax": "10.5.20.0"},
     {"subnet_min": IPv4Address("10.5.10.0"), "subnet_max": IPv4Address("10.5.20.0")}),
    ("one subnet only", V4 | {"SubnetMin": "10.5.10.0", "SubnetMax": "10.5.10.0"}, {}),
    ("the first subnet on request", V4 | {"SubnetMin": "10.5.0.0"}, {"subnet_min": IPv4Address("10.5.0.0")}),
    ("unspecified bounds mean defaults", V4 | {"SubnetMin": "0.0.0.0"}, {"subnet_min": IPv4Address("10.5.1.0")}),
    ("SubnetLen 0 means default", V4 | {"SubnetLen": 0}, {"subnet_len": 24}),
    ("IPv6Network without EnableIPv6 is off", V4 | {"IPv6Network": "fd00:1::/48"}, {"network6": None}),
    ("EnableNFTables is taken", V4 | {"EnableNFTables": True}, {}),
    ("dual-stack", V4 | V6 | {"IPv6SubnetLen": 80}, {"subnet6_len": 80, "network6": IPv6Network("fd00:1::/48")}),
    ("spaces and newlines", b' \n{"Network" : "10.5.0.0/16"}\n', {}),
]  # fmt: skip


@pytest.mark.parametrize(("conf", "expected"), [pytest.param(*case[1:], id=case[0]) for case in GOOD])
def test_valid(conf, expected):
    found = decode(conf)
    assert found.network == IPv4Network("10.5.0.0/16")
    assert {name: getattr(found, name) for name in expected} == expected
    assert decode_netconf(encode_netconf(found)) == found


BAD = [
    ("empty", b"", "JSON"),
    ("not JSON", b"Network=10.0.0.0/8", "JSON"),
    ("cut short", b'{"Network":"10.5.0.0/16"', "JSON"),
    ("an array", b"[]", "JSON"),
    ("a string", b'"10.5.0.0/16"', "JSON"),
    ("null", b"null", "JSON"),
    ("not UTF-8", b'{"Network":"\xff"}', "JSON"),
    ("nested too deep", b'{"a":' * 5000, "JSON"),
    ("a number beyond all bounds", b'{"SubnetLen":1e999999}', "JSON"),
    ("no Network", {}, "Network"),
    ("Network empty", {"Network": ""}, "Network"),
    ("Network without length", {"Network": "10.5.0.0"}, "Network"),
    ("Network with a mask", {"Network": "10.5.0.0/255.255.0.0"}, "Network"),
    ("Network with a long length", {"Network": "10.5.0.0/016"}, "Network"),
    ("Network a number", {"Network": 10}, "Network"),
    ("Network of the other family", {"Network": "fd00::/48"}, "Network"),
    ("Network with a zone", V6 | V4 | {"IPv6Network": "fe80::%eth0/48"}, "IPv6Network"),
    ("Network everything", {"Network": "0.0.0.0/0"}, "Network"),
    ("Network too small", {"Network": "10.5.0.0/29"}, "Network"),
    ("Network too small, SubnetLen given", {"Network": "10.5.0.0/29", "SubnetLen": 30}, "Network"),
    ("SubnetLen too long", V4 | {"SubnetLen": 31}, "SubnetLen"),
    ("SubnetLen too short", V4 | {"SubnetLen": 17}, "SubnetLen"),
    ("SubnetLen negative", V4 | {"SubnetLen": -1}, "SubnetLen"),
    ("SubnetLen a fraction", V4 | {"SubnetLen": 24.0}, "SubnetLen"),
    ("SubnetLen a string", V4 | {"SubnetLen": "24"}, "SubnetLen"),
    ("SubnetLen a boolean", V4 | {"SubnetLen": True}, "SubnetLen"),
    ("SubnetLen huge", b'{"Network":"10.5.0.0/16","SubnetLen":' + b"9" * 60 + b"}", "SubnetLen"),
    ("SubnetMin outside", V4 | {"SubnetMin": "10.6.1.0"}, "SubnetMin"),
    ("SubnetMin not aligned", V4 | {"SubnetMin": "10.5.1.1"}, "SubnetMin"),
    ("SubnetMin no address", V4 | {"SubnetMin": "10.5.1"}, "SubnetMin"),
    ("SubnetMin of the other family", V4 | {"SubnetMin": "fd00::"}, "SubnetMin"),
    ("SubnetMax outside", V4 | {"SubnetMax": "10.6.1.0"}, "SubnetMax"),
    ("SubnetMax not aligned", V4 | {"SubnetMax": "10.5.1.128"}, "SubnetMax"),
    ("SubnetMin above SubnetMax", V4 | {"SubnetMin": "10.5.9.0", "SubnetMax": "10.5.8.0"}, "SubnetMin"),
    ("both families off", {"EnableIPv4": False}, "EnableIPv4"),
    ("EnableIPv4 a string", V4 | {"EnableIPv4": "yes"}, "EnableIPv4"),
    ("EnableIPv6 a number", V4 | {"EnableIPv6": 1}, "EnableIPv6"),
    ("no IPv6Network", V4 | {"EnableIPv6": True}, "IPv6Network"),
    ("IPv6Network too small", V4 | V6 | {"IPv6Network": "fd00::/125"}, "IPv6Network"),
    ("IPv6SubnetLen too long", V4 | V6 | {"IPv6SubnetLen": 127}, "IPv6SubnetLen"),
    ("IPv6SubnetLen too short", V4 | V6 | {"IPv6SubnetLen": 49}, "IPv6SubnetLen"),
    ("IPv6SubnetMin outside", V4 | V6 | {"IPv6SubnetMin": "fd00:2::"}, "IPv6SubnetMin"),
    ("IPv6SubnetMin not aligned", V4 | V6 | {"IPv6SubnetMin": "fd00:1::1"}, "IPv6SubnetMin"),
    ("IPv6SubnetMax not aligned", V4 | V6 | {"IPv6SubnetMax": "fd00:1::1"}, "IPv6SubnetMax"),
    ("Backend a string", V4 | {"Backend": "vxlan"}, "Backend"),
    ("Backend Type empty", V4 | {"Backend": {"Type": ""}}, "Backend.Type"),
    ("Backend Type a number", V4 | {"Backend": {"Type": 1}}, "Backend.Type"),
    ("VNI too large", V4 | {"Backend": {"VNI": 1 << 24}}, "Backend.VNI"),
    ("VNI negative", V4 | {"Backend": {"VNI": -1}}, "Backend.VNI"),
    ("VNI a string", V4 | {"Backend": {"VNI": "1"}}, "Backend.VNI"),
    ("Port too large", V4 | {"Backend": {"Port": 65536}}, "Backend.Port"),
    ("MTU too small", V4 | {"Backend": {"MTU": 500}}, "Backend.MTU"),
    ("MTU too small for IPv6", V4 | V6 | {"Backend": {"MTU": 1279}}, "Backend.MTU"),
    ("MTU too large", V4 | {"Backend": {"MTU": 65536}}, "Backend.MTU"),
    ("DirectRouting a string", V4 | {"Backend": {"DirectRouting": "true"}}, "Backend.DirectRouting"),
    ("Learning a number", V4 | {"Backend": {"Learning": 0}}, "Backend.Learning"),
    ("VNI means nothing to ipip", V4 | {"Backend": {"Type": "ipip", "VNI": 1}}, "Backend.VNI"),
    ("DirectRouting a number on ipip", V4 | {"Backend": {"Type": "ipip", "DirectRouting": 1}}, "Backend.DirectRouting"),
    ("wireguard Mode", V4 | {"Backend": {"Type": "wireguard", "Mode": "both"}}, "Backend.Mode"),
    ("wireguard ListenPort", V4 | {"Backend": {"Type": "wireguard", "ListenPort": 0}}, "Backend.ListenPort"),
    ("wireguard, two devices on one port",
     V4 | {"Backend": {"Type": "wireguard", "ListenPort": 9, "ListenPortV6": 9}}, "Backend.ListenPortV6"),
    ("wireguard keepalive", V4 | {"Backend": {"Type": "wireguard", "PersistentKeepaliveInterval": -1}},
     "Backend.PersistentKeepaliveInterval"),
    ("wireguard MTU", V4 | V6 | {"Backend": {"Type": "wireguard", "MTU": 1279}}, "Backend.MTU"),
    ("a command of extension", V4 | {"Backend": {"Type": "extension", "SubnetAddCommand": ["ip"]}},
     "Backend.SubnetAddCommand"),
    ("Port means nothing to extension", V4 | {"Backend": {"Type": "extension", "Port": 1}}, "Backend.Port"),
    ("VNI means nothing to wireguard", V4 | {"Backend": {"Type": "wireguard", "VNI": 1}}, "Backend.VNI"),
    ("udp Port", V4 | {"Backend": {"Type": "udp", "Port": -1}}, "Backend.Port"),
    ("udp MTU", V4 | V6 | {"Backend": {"Type": "udp", "MTU": 1279}}, "Backend.MTU"),
    ("VNI means nothing to udp", V4 | {"Backend": {"Type": "udp", "VNI": 1}}, "Backend.VNI"),
    ("VNI means nothing to host-gw", V4 | {"Backend": {"Type": "host-gw", "VNI": 1}}, "Backend.VNI"),
]  # fmt: skip


@pytest.mark.parametrize(("conf", "field"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
def test_a_bad_value_is_one_error_naming_field_and_value(conf, field):
    with pytest.raises(ConfigError) as caught:
        decode(conf)
    assert (caught.value.obj, caught.value.field) == ("net-conf", field)
    assert str(caught.value).startswith(f"net-conf: {field}=")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "psk", ["aaaa", PSK[:-2], 7, "A" * 43 + "="], ids=["short", "cut", "number", "zeros"]
)
@pytest.mark.parametrize("kind", ["wireguard", "udp"])
def test_a_bad_pre_shared_key_is_an_error_that_does_not_show_it(kind, psk):
    with pytest.raises(ConfigError, match=r"^net-conf: Backend.PSK='\(hidden\)': expected 32 bytes"):
        decode(V4 | {"Backend": {"Type": kind, "PSK": psk}})


def test_a_pre_shared_key_is_not_in_the_net_confs_repr():
    shown = repr(decode(V4 | {"Backend": {"Type": "wireguard", "PSK": PSK}}))
    assert "Secret(...)" in shown
    assert PSK[:8] not in shown
    assert "\\x01\\x02" not in shown


def test_unknown_keys_are_named_and_tolerated():
    raw = json.dumps(V4 | {"Foo": 1, "EnableNFTables": True, "Backend": {"Type": "vxlan", "Bar": 2}}).encode()
    assert unknown_keys(raw) == ("Foo", "Backend.Bar")
    decode_netconf(raw)


def test_keys_of_a_backend_that_is_not_ours_are_not_judged():
    raw = json.dumps(V4 | {"Backend": {"Type": "ipsec", "PSK": "x"}}).encode()
    assert unknown_keys(raw) == ()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
    | st.sampled_from(["10.5.0.0/16", "10.5.1.0", "fd00::/48", "vxlan", "host-gw", "0.0.0.0/0", "::/0"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
names = st.sampled_from(
    "Network IPv6Network EnableIPv4 EnableIPv6 EnableNFTables SubnetLen SubnetMin SubnetMax IPv6SubnetLen"
    " IPv6SubnetMin IPv6SubnetMax Backend".split()
)
backends = st.dictionaries(
    st.sampled_from("Type VNI Port MTU DirectRouting GBP Learning".split()), json_values, max_size=4
)


@given(st.dictionaries(names, json_values | backends, max_size=7))
def test_any_object_decodes_or_is_a_config_error(conf):
    raw = json.dumps(conf).encode()
    try:
        found = decode_netconf(raw)
    except ConfigError:
        return
    assert isinstance(found, NetConf)
    assert decode_netconf(encode_netconf(found)) == found
    for family in found.families:
        low, high = found.bounds(family)
        assert all(bound in found.of(family) for bound in (low, high))
        assert int(low) <= int(high)
    unknown_keys(raw)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_any_bytes_decode_or_are_a_config_error(raw):
    with pytest.raises(ConfigError):
        decode_netconf(raw)


SHOWN = {
    "as usual": json.dumps(V4 | {"Backend": {"Type": "udp", "PSK": PSK}}),
    "in small letters": json.dumps(V4 | {"Backend": {"psk": PSK, "Type": "udp"}}, indent=2),
    "spread": f'{{"Backend":{{"PSK" :\n"{PSK}","Type":"udp"}}}}',
    "cut": f'{{"Backend":{{"PSK":"{PSK}',
    "without quotes": f'{{"Backend":{{"PSK":{PSK}}}}}',
    "behind a quote": f'{{"Backend":{{"PSK":"\\"{PSK}"}}',
    "escaped": f'{{"Backend":{{"\\u0050SK":"{PSK}"}}',
}


@pytest.mark.parametrize("raw", SHOWN.values(), ids=SHOWN)
def test_a_net_conf_in_a_log_has_no_pre_shared_key(raw):
    shown = show_netconf(raw.encode())
    assert "hidden" in shown
    assert PSK[:8] not in shown


@pytest.mark.parametrize("what", ["cut", "without quotes", "behind a quote", "escaped"])
def test_nor_has_the_error_about_one_that_is_no_json(what):
    with pytest.raises(ConfigError, match="JSON") as caught:
        decode_netconf(SHOWN[what].encode())
    assert PSK[:8] not in str(caught.value)


def test_the_rest_of_a_net_conf_is_shown_as_it_is():
    raw = json.dumps(V4 | {"Backend": {"Type": "vxlan", "VNI": 7}})
    assert show_netconf(raw.encode()) == raw
