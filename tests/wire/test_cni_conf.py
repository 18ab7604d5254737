"""Good configurations: every key lands where it should, with the reference's defaults and precedences."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from pycni.errors import CniError
from pycni.model.cni import (
    VERSIONS,
    AddressRange,
    Attachment,
    Bandwidth,
    Dns,
    PluginConf,
    PortMapping,
    RouteConf,
)
from pycni.wire.cni import KNOWN_ARGS, decode_object, encode_versions, parse_args, parse_request
from pycni.wire.cniconf import parse_conf, parse_conf_for_removal
from tests.wire.cni_cases import ENVIRONMENT, conf


def read(stdin: bytes, command: str = "ADD", **env: str) -> PluginConf:
    environment = ENVIRONMENT | {"CNI_COMMAND": command} | {f"CNI_{key}": value for key, value in env.items()}
    return parse_conf(parse_request(environment, stdin))


@pytest.mark.parametrize(
    ("keys", "attribute", "value"),
    [
        ({}, "bridge", "cni0"),
        ({"bridge": "br7"}, "bridge", "br7"),
        ({"mtu": 1400}, "mtu", 1400),
        ({"mtu": None}, "mtu", 0),
        ({"mtu": 68}, "mtu", 68),
        ({"hairpinMode": True}, "hairpin_mode", True),
        ({"promiscMode": True}, "promisc_mode", True),
        ({}, "is_gateway", True),
        ({}, "is_default_gateway", True),
        ({"isGateway": False}, "is_gateway", False),
        ({"isGateway": False}, "is_default_gateway", False),
        ({"isGateway": False, "isDefaultGateway": True}, "is_gateway", True),
        ({"isDefaultGateway": False}, "is_gateway", True),
        ({"isDefaultGateway": False}, "is_default_gateway", False),
        ({"forceAddress": True}, "force_address", True),
        ({"ipMasq": True}, "ip_masq", True),
        ({"ipMasqBackend": "iptables"}, "ip_masq", False),
        ({"vlan": 4094}, "vlan", 4094),
        ({"vlanTrunk": []}, "vlan", 0),
        ({"preserveDefaultVlan": True}, "vlan", 0),
        ({"disableContainerInterface": False}, "vlan", 0),
        ({"macspoofchk": True}, "mac_spoof_check", True),
        ({"portIsolation": True}, "port_isolation", True),
        ({"enabledad": True}, "enable_dad", True),
        ({"ipam": {}, "isGateway": False}, "layer2_only", True),
        ({"ipam": None, "isGateway": False}, "layer2_only", True),
        ({"isGateway": False}, "layer2_only", False),
        ({"ipam": {}}, "layer2_only", False),
        ({"dns": {"nameservers": ["1.1.1.1"]}}, "dns", Dns(nameservers=("1.1.1.1",))),
        (
            {"dns": {"domain": "a"}, "runtimeConfig": {"dns": {"servers": ["9.9.9.9"], "searches": ["b"]}}},
            "dns",
            Dns(nameservers=("9.9.9.9",), search=("b",)),
        ),
        ({"dns": {"domain": "a"}, "runtimeConfig": {"dns": {}}}, "dns", Dns(domain="a")),
        ({"runtimeConfig": {"mac": "02-AA-00-00-00-01"}}, "mac", "02:aa:00:00:00:01"),
        ({"args": {"cni": {"labels": [{"key": "app", "value": "x"}]}}}, "labels", {"app": "x"}),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "UDP"}]}},
            "port_mappings",
            (PortMapping(host_port=80, container_port=8080, protocol="udp"),),
        ),
        (
            {"runtimeConfig": {"portMappings": [{"hostPort": 1, "containerPort": 2, "hostIP": "::1"}]}},
            "port_mappings",
            (PortMapping(host_port=1, container_port=2, host_ip=ip_address("::1")),),
        ),
        (
            {"runtimeConfig": {"bandwidth": {"ingressRate": 8, "ingressBurst": 16}}},
            "bandwidth",
            Bandwidth(ingress_rate=8, ingress_burst=16),
        ),
        ({"runtimeConfig": {"bandwidth": {"ingressRate": 0}}}, "bandwidth", None),
        ({"runtimeConfig": {"io.kubernetes.cri.pod-annotations": {"a": "b"}}}, "port_mappings", ()),
    ],
)
def test_a_key_sets_its_attribute(keys: dict[str, Any], attribute: str, value: object) -> None:
    assert getattr(read(conf(**keys)), attribute) == value


def test_unknown_keys_are_kept_untouched() -> None:
    keys = {"keyA": ["some", {"more": 1.5}], "cni.dev/x": None, "ipam": {"type": "x", "odd": [1]}}
    raw = read(conf(**keys)).raw
    assert {key: raw[key] for key in keys} == keys


def test_the_last_of_repeated_keys_wins() -> None:
    assert read(b'{"cniVersion":"1.0.0","name":"a","mtu":1,"mtu":1300,"name":"b"}').mtu == 1300


def test_bytes_that_are_no_utf8_do_not_stop_a_call() -> None:
    assert decode_object(b'{"x":"\xff"}') == {"x": "\ufffd"}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_taken_and_a_missing_one_is_the_first(version: str) -> None:
    assert read(conf(cniVersion=version)).cni_version == version
    assert read(conf(cniVersion=...)).cni_version == "0.1.0"
    assert read(conf(cniVersion="")).cni_version == "0.1.0"


def test_version_is_answered_with_all_versions() -> None:
    assert json.loads(encode_versions("0.4.0")) == {
        "cniVersion": "0.4.0",
        "supportedVersions": list(VERSIONS),
    }


@pytest.mark.parametrize(
    ("keys", "start", "end", "gateway"),
    [
        ({"subnet": "10.1.2.0/24"}, "10.1.2.1", "10.1.2.254", "10.1.2.1"),
        ({"subnet": "10.1.2.0/30"}, "10.1.2.1", "10.1.2.2", "10.1.2.1"),
        ({"subnet": "fd00::/64"}, "fd00::1", "fd00::ffff:ffff:ffff:ffff", "fd00::1"),
        (
            {"subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.9"},
            "10.1.2.9",
            "10.1.2.9",
            "10.1.2.1",
        ),
        ({"subnet": "10.1.2.0/24", "gateway": "10.1.2.254"}, "10.1.2.1", "10.1.2.254", "10.1.2.254"),
        ({"subnet": "10.1.2.0/24", "gateway": "10.9.9.9"}, "10.1.2.1", "10.1.2.254", "10.9.9.9"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "::ffff:10.1.2.4"}, "10.1.2.4", "10.1.2.254", "10.1.2.1"),
        ({"subnet": "10.1.2.0/24", "rangeStart": "", "gateway": None}, "10.1.2.1", "10.1.2.254", "10.1.2.1"),
    ],
)
def test_a_range_gets_host_locals_defaults(keys: dict[str, Any], start: str, end: str, gateway: str) -> None:
    expected = AddressRange(
        subnet=ip_network(keys["subnet"]),
        start=ip_address(start),
        end=ip_address(end),
        gateway=ip_address(gateway),
    )
    assert read(conf(ipam={"ranges": [[keys]]})).ipam.range_sets == ((expected,),)
    assert read(conf(ipam=keys)).ipam.range_sets == ((expected,),)


def test_exclusions_are_networks_or_single_addresses() -> None:
    found = read(
        conf(ipam={"subnet": "10.1.2.0/24", "exclude": ["10.1.2.8/29", "10.1.2.77"]})
    ).ipam.range_sets[0][0]
    assert found.exclude == (ip_network("10.1.2.8/29"), ip_network("10.1.2.77/32"))


def test_range_sets_are_ordered_capability_single_subnet_ranges() -> None:
    found = read(
        conf(
            ipam={"subnet": "10.2.0.0/24", "ranges": [[{"subnet": "10.3.0.0/24"}]]},
            runtimeConfig={"ipRanges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.1.0/24"}]]},
        )
    )
    subnets = [[str(item.subnet) for item in inner] for inner in found.ipam.range_sets]
    assert subnets == [["10.1.0.0/24", "10.1.1.0/24"], ["10.2.0.0/24"], ["10.3.0.0/24"]]


def test_routes_keep_their_numbers() -> None:
    routes = [
        {"dst": "0.0.0.0/0"},
        {"dst": "fd00::/8", "gw": "fe80::1", "mtu": 1400, "advmss": 0, "table": 0, "scope": 0},
    ]
    assert read(conf(ipam={"routes": routes})).ipam.routes == (
        RouteConf(dst=ip_network("0.0.0.0/0")),
        RouteConf(dst=ip_network("fd00::/8"), gw=ip_address("fe80::1"), mtu=1400, table=0, scope=0),
    )


@pytest.mark.parametrize(
    ("kind", "stored"), [("", ""), ("pycni", ""), ("host-local", "host-local"), ("dhcp", "dhcp")]
)
def test_another_ipam_type_is_delegated_and_its_keys_are_its_own(kind: str, stored: str) -> None:
    found = read(conf(ipam={"type": kind, **({"ranges": "whatever"} if stored else {})})).ipam
    assert (found.type, found.range_sets) == (stored, ())


@pytest.mark.parametrize(
    ("env", "args", "runtime", "requested"),
    [
        ("", [], [], []),
        ("IP=10.0.0.5", [], [], ["10.0.0.5"]),
        ("IP=10.0.0.5/24,fd00::5", [], [], ["10.0.0.5", "fd00::5"]),
        ("IP=10.0.0.5", ["10.0.0.6"], [], ["10.0.0.6"]),
        ("IP=10.0.0.5", [], ["fd00::7/64"], ["fd00::7", "10.0.0.5"]),
        ("", ["10.0.0.6"], ["10.0.0.6/8", "fd00::7"], ["10.0.0.6", "fd00::7"]),
    ],
)
def test_requested_addresses(env: str, args: list[str], runtime: list[str], requested: list[str]) -> None:
    found = read(conf(args={"cni": {"ips": args}}, runtimeConfig={"ips": runtime}), ARGS=env)
    assert found.ipam.requested == tuple(map(ip_address, requested))


@pytest.mark.parametrize(
    ("env", "args", "runtime", "mac"),
    [
        ("MAC=02:00:00:00:00:01", "", "", "02:00:00:00:00:01"),
        ("MAC=02:00:00:00:00:01", "02:00:00:00:00:02", "", "02:00:00:00:00:02"),
        ("MAC=bad", "02:00:00:00:00:02", "02:00:00:00:00:03", "02:00:00:00:00:03"),
    ],
)
def test_the_most_specific_mac_wins(env: str, args: str, runtime: str, mac: str) -> None:
    assert read(conf(args={"cni": {"mac": args}}, runtimeConfig={"mac": runtime}), ARGS=env).mac == mac


def test_kubelets_args_are_known_and_others_ignored_on_request() -> None:
    text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=;X=a=b;"
    assert parse_args(text, strict=True)["X"] == "a=b"
    assert parse_args(";".join(f"{key}=1" for key in sorted(KNOWN_ARGS)), strict=True).keys() == KNOWN_ARGS
    assert parse_args("junk;FOO=1", strict=False) == {"FOO": "1"}


@pytest.mark.parametrize("key", ["cni.dev/valid-attachments", "cni.dev/attachments"])
def test_gc_reads_the_list_under_both_keys(key: str) -> None:
    stdin = conf(**{key: [{"containerID": "a", "ifname": "eth0"}, None]})
    assert read(stdin, "GC").valid_attachments == (Attachment(container_id="a", ifname="eth0"),)
    assert read(conf(**{key: None}), "GC").valid_attachments == ()
    assert read(stdin).valid_attachments is None


def test_the_specifications_key_goes_before_the_older_one() -> None:
    stdin = conf(
        **{"cni.dev/valid-attachments": [], "cni.dev/attachments": [{"containerID": "a", "ifname": "b"}]}
    )
    assert read(stdin, "GC").valid_attachments == ()


def test_removal_keeps_what_finds_the_reservation() -> None:
    stdin = conf(mtu="x", bridge="br1", ipam={"type": "pycni", "dataDir": "/d", "ranges": 5})
    found = parse_conf_for_removal(parse_request(ENVIRONMENT | {"CNI_COMMAND": "DEL"}, stdin))
    assert (found.bridge, found.ipam.type, found.ipam.data_dir) == ("br1", "", "/d")


def test_removal_without_readable_parts_falls_back_to_defaults() -> None:
    stdin = conf(bridge=7, ipam=[])
    found = parse_conf_for_removal(parse_request(ENVIRONMENT | {"CNI_COMMAND": "DEL"}, stdin))
    assert (found.name, found.bridge, found.ipam.type) == ("net", "cni0", "")


def test_equal_configurations_are_decoded_once_and_different_calls_apart() -> None:
    stdin = conf(mtu=1401)
    assert read(stdin) is read(stdin, "DEL")
    assert read(stdin, ARGS="IP=10.0.0.5").ipam.requested == (ip_address("10.0.0.5"),)
    assert read(stdin, ARGS="MAC=02:00:00:00:00:01").mac == "02:00:00:00:00:01"
    assert read(stdin).ipam.requested == ()
    old = conf(cniVersion="0.3.1", mtu=1401)
    assert read(old).cni_version == "0.3.1"
    with pytest.raises(CniError, match="CHECK"):
        read(old, "CHECK")
