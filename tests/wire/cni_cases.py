"""Malformed CNI calls with the answer each must get; used against the codecs and through shim and server alike.

A case is (id, operation, environment changes, stdin, code, words the message must contain).
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

ENVIRONMENT = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/nonexistent/netns",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/nonexistent/bin",
}
CONF: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": "pycni"}
RANGE = {"subnet": "10.1.2.0/24"}
V = "cni.dev/valid-attachments"


class Case(NamedTuple):
    label: str
    command: str
    environment: dict[str, str]
    stdin: bytes
    code: int
    words: tuple[str, ...] = ()


def conf(**keys: Any) -> bytes:
    """A good configuration with some keys changed; a key set to ``...`` is left out."""
    merged = CONF | {key.replace("__", "/"): value for key, value in keys.items()}
    return json.dumps({key: value for key, value in merged.items() if value is not ...}).encode()


def ipam(**keys: Any) -> bytes:
    return conf(ipam=keys)


def runtime(**keys: Any) -> bytes:
    return conf(runtimeConfig=keys)


def ranges(*inner: Any) -> bytes:
    return ipam(ranges=list(inner))


GOOD = conf()


def env(label: str, command: str, code: int, *words: str, **changes: str) -> Case:
    return Case(label, command, {f"CNI_{key}": value for key, value in changes.items()}, GOOD, code, words)


ENVIRONMENT_CASES = [
    env("unknown command", "FROB", 4, "CNI_COMMAND", "FROB"),
    env("lower-case command", "add", 4, "CNI_COMMAND", "add"),
    env("command with space", "ADD ", 4, "CNI_COMMAND"),
    env("ADD without container", "ADD", 4, "CNI_CONTAINERID", CONTAINERID=""),
    env("ADD without netns", "ADD", 4, "CNI_NETNS", NETNS=""),
    env("ADD without ifname", "ADD", 4, "CNI_IFNAME", IFNAME=""),
    env(
        "ADD with nothing",
        "ADD",
        4,
        "CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME",
        CONTAINERID="",
        NETNS="",
        IFNAME="",
    ),
    env("CHECK without netns", "CHECK", 4, "CNI_NETNS", NETNS=""),
    env("CHECK without container", "CHECK", 4, "CNI_CONTAINERID", CONTAINERID=""),
    env("DEL without container", "DEL", 4, "CNI_CONTAINERID", CONTAINERID=""),
    env("DEL without ifname", "DEL", 4, "CNI_IFNAME", IFNAME=""),
    env("GC without path", "GC", 4, "CNI_PATH", PATH=""),
    env("container with slash", "ADD", 4, "CNI_CONTAINERID", "a/b", CONTAINERID="a/b"),
    env("container starting with dot", "ADD", 4, "CNI_CONTAINERID", CONTAINERID=".a"),
    env("container with traversal", "ADD", 4, "CNI_CONTAINERID", CONTAINERID="../../etc/passwd"),
    env("container with newline", "DEL", 4, "CNI_CONTAINERID", CONTAINERID="abc\n"),
    env("container with umlaut", "ADD", 4, "CNI_CONTAINERID", CONTAINERID="ä"),
    env("container with stray bytes", "ADD", 4, "CNI_CONTAINERID", CONTAINERID="a\udcff"),
    env("ifname too long", "ADD", 4, "CNI_IFNAME", "15", IFNAME="e" * 16),
    env("ifname too long in bytes", "ADD", 4, "CNI_IFNAME", "15", IFNAME="ä" * 8),
    env("ifname dot", "ADD", 4, "CNI_IFNAME", IFNAME="."),
    env("ifname dots", "DEL", 4, "CNI_IFNAME", IFNAME=".."),
    env("ifname with slash", "ADD", 4, "CNI_IFNAME", IFNAME="e/0"),
    env("ifname with colon", "ADD", 4, "CNI_IFNAME", IFNAME="e:0"),
    env("ifname with blank", "ADD", 4, "CNI_IFNAME", IFNAME="e 0"),
    env("ifname with tab", "CHECK", 4, "CNI_IFNAME", IFNAME="e\t0"),
    env("ifname is a template", "ADD", 4, "CNI_IFNAME", IFNAME="eth%d"),
    env("args no pair", "ADD", 4, "CNI_ARGS", "nonsense", ARGS="nonsense"),
    env("args without key", "ADD", 4, "CNI_ARGS", "=x", ARGS="IgnoreUnknown=1;=x"),
    env("args unknown key", "ADD", 4, "CNI_ARGS", "FOO=bar", ARGS="FOO=bar"),
    env("args unknown key not ignored", "ADD", 4, "FOO=bar", ARGS="IgnoreUnknown=false;FOO=bar"),
    env("args IgnoreUnknown no boolean", "ADD", 4, "IgnoreUnknown", "maybe", ARGS="IgnoreUnknown=maybe"),
    env("args bad IP", "ADD", 4, "CNI_ARGS IP", "10.1.2.300", ARGS="IP=10.1.2.300"),
    env("args bad IP prefix", "ADD", 4, "CNI_ARGS IP", "10.1.2.3/33", ARGS="IP=10.1.2.3/33"),
    env("args bad MAC", "ADD", 4, "CNI_ARGS MAC", "zz", ARGS="MAC=zz"),
    env("args multicast MAC", "ADD", 4, "CNI_ARGS MAC", "01:00:5e:00:00:01", ARGS="MAC=01:00:5e:00:00:01"),
]


def raw(label: str, stdin: bytes, code: int, *words: str, command: str = "ADD") -> Case:
    return Case(label, command, {}, stdin, code, words)


GATE_CASES = [
    raw("empty stdin", b"", 6),
    raw("empty stdin on DEL", b"", 6, command="DEL"),
    raw("empty stdin on STATUS", b"", 6, command="STATUS"),
    raw("white space", b" \n\t", 6),
    raw("no JSON", b"hello", 6, "hello"),
    raw("cut off", b'{"name":"net"', 6),
    raw("trailing garbage", b'{"name":"net"}x', 6),
    raw("two objects", b'{"name":"net"}{"name":"net"}', 6),
    raw("array", b"[]", 6, "object"),
    raw("string", b'"net"', 6, "object"),
    raw("number", b"7", 6, "object"),
    raw("null", b"null", 7, "name"),
    raw("NUL bytes", b"\0" * 100, 6),
    raw("byte order mark", b"\xef\xbb\xbf" + GOOD, 6),
    raw("comments", b'{"name":"net"} // x', 6),
    raw("single quotes", b"{'name':'net'}", 6),
    raw("deep nesting", b'{"name":' + b"[" * 100_000, 6),
    raw("deep nesting closed", b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 6),
    raw("number out of range", b'{"name":"net","x":1e999}', 6),
    raw("UTF-16", GOOD.decode().encode("utf-16"), 6),
    raw("control character in a string", b'{"name":"ne\x01t"}', 6),
    raw("name missing", conf(name=...), 7, "name"),
    raw("name null", conf(name=None), 7, "name"),
    raw("name empty", conf(name=""), 7, "name"),
    raw("name missing on DEL", conf(name=...), 7, "name", command="DEL"),
    raw("name a number", conf(name=5), 6, "name", "5"),
    raw("name with slash", conf(name="a/b"), 7, "name", "a/b"),
    raw("name traversal", conf(name="../x"), 7, "name"),
    raw("name with newline", conf(name="net\n"), 7, "name"),
    raw("name not UTF-8", b'{"cniVersion":"1.0.0","name":"n\xff"}', 7, "name"),
    raw("version a number", conf(cniVersion=1), 6, "cniVersion", "1"),
    raw("version a list", conf(cniVersion=["1.0.0"]), 6, "cniVersion"),
    raw("version of the future", conf(cniVersion="1.2.0"), 1, "cniVersion", "1.2.0"),
    raw("version far future", conf(cniVersion="9.9.9"), 1, "9.9.9"),
    raw("version never released", conf(cniVersion="0.3.2"), 1, "0.3.2"),
    raw("version no number", conf(cniVersion="abc"), 1, "cniVersion", "abc"),
    raw("version short", conf(cniVersion="1.0"), 1, "1.0"),
    raw("version no number on CHECK", conf(cniVersion="abc"), 6, "abc", command="CHECK"),
    raw("version with four parts on GC", conf(cniVersion="1.1.0.0"), 6, "1.1.0.0", command="GC"),
    raw("version with many digits", conf(cniVersion="9" * 5000), 6, "999", command="STATUS"),
    raw("version future on DEL", conf(cniVersion="2.0.0"), 1, "2.0.0", command="DEL"),
    raw("version future on STATUS", conf(cniVersion="2.0.0"), 1, "2.0.0", command="STATUS"),
    raw("CHECK too early", conf(cniVersion="0.3.1"), 1, "CHECK", "0.3.1", command="CHECK"),
    raw("CHECK without version", conf(cniVersion=...), 1, "CHECK", command="CHECK"),
    raw("GC too early", conf(cniVersion="1.0.0"), 1, "GC", "1.0.0", command="GC"),
    raw("STATUS too early", conf(cniVersion="0.4.0"), 1, "STATUS", command="STATUS"),
]

KEY_CASES = [
    raw("type a number", conf(type=1), 6, "type"),
    raw("bridge a number", conf(bridge=1), 6, "bridge", "1"),
    raw("bridge too long", conf(bridge="b" * 16), 7, "bridge", "b" * 16),
    raw("bridge with slash", conf(bridge="a/b"), 7, "bridge", "a/b"),
    raw("mtu a string", conf(mtu="1500"), 6, "mtu", '"1500"'),
    raw("mtu a fraction", conf(mtu=1500.0), 6, "mtu", "1500.0"),
    raw("mtu true", conf(mtu=True), 6, "mtu", "true"),
    raw("mtu negative", conf(mtu=-1), 7, "mtu", "-1"),
    raw("mtu too small", conf(mtu=67), 7, "mtu", "67"),
    raw("mtu too large", conf(mtu=65536), 7, "mtu", "65536"),
    raw("mtu huge", conf(mtu=10**30), 7, "mtu"),
    raw("hairpinMode a string", conf(hairpinMode="true"), 6, "hairpinMode", '"true"'),
    raw("hairpinMode a number", conf(hairpinMode=1), 6, "hairpinMode"),
    raw("hairpin and promisc", conf(hairpinMode=True, promiscMode=True), 7, "promiscMode", "hairpinMode"),
    raw("isGateway a string", conf(isGateway="yes"), 6, "isGateway"),
    raw("isDefaultGateway a list", conf(isDefaultGateway=[]), 6, "isDefaultGateway"),
    raw("forceAddress a number", conf(forceAddress=0), 6, "forceAddress", "0"),
    raw("ipMasq a string", conf(ipMasq="no"), 6, "ipMasq"),
    raw("ipMasqBackend unknown", conf(ipMasqBackend="ebtables"), 7, "ipMasqBackend", "ebtables"),
    raw("ipMasqBackend a number", conf(ipMasqBackend=4), 6, "ipMasqBackend"),
    raw("vlan too large", conf(vlan=4095), 7, "vlan", "4095"),
    raw("vlan negative", conf(vlan=-3), 7, "vlan", "-3"),
    raw("vlan a string", conf(vlan="3"), 6, "vlan"),
    raw("vlanTrunk", conf(vlanTrunk=[{"id": 5}]), 2, "vlanTrunk", '"id"'),
    raw("disableContainerInterface", conf(disableContainerInterface=True), 2, "disableContainerInterface"),
    raw("preserveDefaultVlan with vlan", conf(vlan=5, preserveDefaultVlan=True), 2, "preserveDefaultVlan"),
    raw("macspoofchk a string", conf(macspoofchk="x"), 6, "macspoofchk"),
    raw("portIsolation an object", conf(portIsolation={}), 6, "portIsolation"),
    raw("enabledad null-like", conf(enabledad=""), 6, "enabledad"),
    raw("dns a list", conf(dns=[]), 6, "dns"),
    raw("dns nameservers a string", conf(dns={"nameservers": "10.0.0.1"}), 6, "dns.nameservers"),
    raw("dns search with a number", conf(dns={"search": ["a", 1]}), 6, "dns.search[1]"),
    raw("dns domain a list", conf(dns={"domain": []}), 6, "dns.domain"),
    raw("args a string", conf(args="x"), 6, "args"),
    raw("args.cni a list", conf(args={"cni": []}), 6, "args.cni"),
    raw("args.cni.ips a string", conf(args={"cni": {"ips": "10.0.0.1"}}), 6, "args.cni.ips"),
    raw("args.cni.ips no address", conf(args={"cni": {"ips": ["x"]}}), 7, "args.cni.ips[0]", '"x"'),
    raw("args.cni.mac", conf(args={"cni": {"mac": "1:2"}}), 7, "args.cni.mac", "1:2"),
    raw("args.cni.labels", conf(args={"cni": {"labels": [{"key": 1}]}}), 6, "labels[0].key"),
    raw("runtimeConfig a list", conf(runtimeConfig=[1]), 6, "runtimeConfig"),
    raw("mac too short", runtime(mac="02:00:00"), 7, "runtimeConfig.mac", "02:00:00"),
    raw("mac multicast", runtime(mac="ff:ff:ff:ff:ff:ff"), 7, "runtimeConfig.mac"),
    raw("mac zero", runtime(mac="00:00:00:00:00:00"), 7, "runtimeConfig.mac"),
    raw("mac a number", runtime(mac=2), 6, "runtimeConfig.mac"),
    raw("ips no list", runtime(ips={}), 6, "runtimeConfig.ips"),
    raw("ips a number", runtime(ips=[10]), 6, "runtimeConfig.ips[0]"),
    raw("ips bad prefix", runtime(ips=["10.0.0.1/99"]), 7, "runtimeConfig.ips[0]"),
    raw("ips with zone", runtime(ips=["fe80::1%eth0"]), 7, "runtimeConfig.ips[0]", "zone"),
    raw("capability dns", runtime(dns={"servers": [1]}), 6, "runtimeConfig.dns.servers[0]"),
    raw("portMappings an object", runtime(portMappings={}), 6, "portMappings"),
    raw("portMappings of numbers", runtime(portMappings=[80]), 6, "portMappings[0]", "80"),
    raw("host port zero", runtime(portMappings=[{"hostPort": 0, "containerPort": 1}]), 7, "hostPort", "0"),
    raw("host port missing", runtime(portMappings=[{"containerPort": 1}]), 7, "hostPort"),
    raw("host port too large", runtime(portMappings=[{"hostPort": 65536, "containerPort": 1}]), 7, "65536"),
    raw(
        "container port negative",
        runtime(portMappings=[{"hostPort": 1, "containerPort": -1}]),
        7,
        "containerPort",
    ),
    raw(
        "port a string", runtime(portMappings=[{"hostPort": "80", "containerPort": 1}]), 6, "hostPort", '"80"'
    ),
    raw(
        "port protocol",
        runtime(portMappings=[{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]),
        7,
        "protocol",
        "icmp",
    ),
    raw(
        "port host IP",
        runtime(portMappings=[{"hostPort": 1, "containerPort": 1, "hostIP": "x"}]),
        7,
        "hostIP",
    ),
    raw(
        "port twice",
        runtime(portMappings=[{"hostPort": 1, "containerPort": 1}] * 2),
        7,
        "portMappings[1]",
        "twice",
    ),
    raw("bandwidth a number", runtime(bandwidth=5), 6, "bandwidth"),
    raw("burst without rate", runtime(bandwidth={"ingressBurst": 8}), 7, "ingressBurst", "ingressRate"),
    raw("rate without burst", runtime(bandwidth={"egressRate": 8}), 7, "egressRate", "egressBurst"),
    raw(
        "burst too large",
        runtime(bandwidth={"egressRate": 1, "egressBurst": 1 << 35}),
        7,
        "egressBurst",
        "4 GiB",
    ),
    raw("rate negative", runtime(bandwidth={"ingressRate": -1, "ingressBurst": 1}), 7, "ingressRate"),
    raw("rate too large", runtime(bandwidth={"ingressRate": 1 << 64, "ingressBurst": 1}), 7, "ingressRate"),
    raw("rate a fraction", runtime(bandwidth={"ingressRate": 1.5, "ingressBurst": 1}), 6, "ingressRate"),
    raw("prevResult a list", conf(prevResult=[]), 6, "prevResult"),
    raw(
        "prevResult bad address", conf(prevResult={"ips": [{"address": "x"}]}), 7, "prevResult.ips[0].address"
    ),
    raw("prevResult without prefix", conf(prevResult={"ips": [{"address": "10.0.0.1"}]}), 7, "10.0.0.1"),
    raw(
        "prevResult bad gateway",
        conf(prevResult={"ips": [{"address": "10.0.0.1/8", "gateway": "q"}]}),
        7,
        "gateway",
    ),
    raw("prevResult bad route", conf(prevResult={"routes": [{"dst": "10.0.0.0"}]}), 7, "routes[0].dst"),
    raw("prevResult interfaces", conf(prevResult={"interfaces": [{"name": 3}]}), 6, "interfaces[0].name"),
    raw(
        "prevResult index",
        conf(prevResult={"ips": [{"address": "10.0.0.1/8", "interface": -1}]}),
        7,
        "interface",
    ),
    raw("prevResult old shape", conf(cniVersion="0.2.0", prevResult={"ip4": {"ip": "x"}}), 7, "ip4.ip"),
    raw("GC without a list", conf(), 7, V, command="GC"),
    raw("GC list an object", conf(**{V: {"a": 1}}), 6, V, command="GC"),
    raw("GC list of strings", conf(**{V: ["c1"]}), 6, V, "c1", command="GC"),
    raw("GC entry without ifname", conf(**{V: [{"containerID": "c1"}]}), 7, V, "ifname", command="GC"),
    raw("GC entry empty", conf(**{V: [{}]}), 7, V, command="GC"),
]

IPAM_CASES = [
    raw("ipam a string", conf(ipam="host-local"), 6, "ipam", "host-local"),
    raw("ipam type a number", ipam(type=1), 6, "ipam.type"),
    raw("ipam type with slash", ipam(type="../bin/sh"), 7, "ipam.type", "../bin/sh"),
    raw("ipam type dots", ipam(type=".."), 7, "ipam.type"),
    raw("dataDir a number", ipam(dataDir=1), 6, "ipam.dataDir"),
    raw("ranges an object", ipam(ranges={}), 6, "ipam.ranges"),
    raw("ranges one level short", ipam(ranges=[RANGE]), 6, "ipam.ranges[0]"),
    raw("range a string", ranges(["10.0.0.0/24"]), 6, "ipam.ranges[0][0]"),
    raw("range set empty", ranges([]), 7, "ipam.ranges[0]", "empty"),
    raw("range set of null", ranges([None]), 7, "ipam.ranges[0]", "empty"),
    raw("subnet missing", ranges([{"gateway": "10.0.0.1"}]), 7, "ipam.ranges[0][0].subnet"),
    raw("subnet without prefix", ranges([{"subnet": "10.0.0.0"}]), 7, "subnet", "10.0.0.0"),
    raw("subnet with netmask", ranges([{"subnet": "10.0.0.0/255.0.0.0"}]), 7, "subnet"),
    raw("subnet prefix too long", ranges([{"subnet": "10.0.0.0/33"}]), 7, "subnet", "10.0.0.0/33"),
    raw("subnet with host bits", ranges([{"subnet": "10.0.0.1/24"}]), 7, "subnet", "10.0.0.0/24"),
    raw("subnet too small", ranges([{"subnet": "10.0.0.0/31"}]), 7, "subnet", "small"),
    raw("subnet6 too small", ranges([{"subnet": "fd00::/127"}]), 7, "subnet", "small"),
    raw("subnet with leading zero", ranges([{"subnet": "010.0.0.0/24"}]), 7, "subnet"),
    raw("subnet a number", ranges([{"subnet": 10}]), 6, "subnet", "10"),
    raw("subnet with a foreign digit", ranges([{"subnet": "10.0.0.0/2\u0664"}]), 7, "subnet"),
    raw("start outside", ranges([RANGE | {"rangeStart": "10.1.3.1"}]), 7, "rangeStart", "10.1.3.1"),
    raw("end outside", ranges([RANGE | {"rangeEnd": "10.1.1.1"}]), 7, "rangeEnd", "10.1.1.1"),
    raw(
        "start above end",
        ranges([RANGE | {"rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.8"}]),
        7,
        "rangeStart",
    ),
    raw("start of another family", ranges([RANGE | {"rangeStart": "fd00::1"}]), 7, "rangeStart", "fd00::1"),
    raw("start no address", ranges([RANGE | {"rangeStart": "first"}]), 7, "rangeStart", "first"),
    raw("gateway of another family", ranges([RANGE | {"gateway": "fd00::1"}]), 7, "gateway", "fd00::1"),
    raw("gateway no address", ranges([RANGE | {"gateway": "10.1.2.0/24"}]), 7, "gateway"),
    raw("exclude outside", ranges([RANGE | {"exclude": ["10.9.0.0/30"]}]), 7, "exclude[0]", "10.9.0.0/30"),
    raw("exclude no list", ranges([RANGE | {"exclude": "10.1.2.4"}]), 6, "exclude"),
    raw("ranges overlap in a set", ranges([RANGE, RANGE]), 7, "ipam.ranges[0]", "overlap"),
    raw("sets overlap", ranges([RANGE], [{"subnet": "10.1.0.0/16"}]), 7, "overlap"),
    raw("families mixed in a set", ranges([RANGE, {"subnet": "fd00::/64"}]), 7, "ipam.ranges[0]", "families"),
    raw("subnet and ranges overlap", ipam(subnet="10.1.2.0/24", ranges=[[RANGE]]), 7, "overlap"),
    raw(
        "two addresses before 0.3.0",
        conf(cniVersion="0.2.0", ipam={"ranges": [[RANGE], [{"subnet": "10.2.0.0/24"}]]}),
        7,
        "0.2.0",
    ),
    raw(
        "ipRanges overlap",
        conf(ipam={"ranges": [[RANGE]]}, runtimeConfig={"ipRanges": [[RANGE]]}),
        7,
        "overlap",
    ),
    raw("ipRanges an object", runtime(ipRanges={}), 6, "runtimeConfig.ipRanges"),
    raw(
        "ipRanges bad subnet", runtime(ipRanges=[[{"subnet": "x"}]]), 7, "runtimeConfig.ipRanges[0][0].subnet"
    ),
    raw("routes an object", ipam(routes={}), 6, "ipam.routes"),
    raw("route without dst", ipam(routes=[{"gw": "10.0.0.1"}]), 7, "ipam.routes[0].dst"),
    raw("route dst a word", ipam(routes=[{"dst": "default"}]), 7, "dst", "default"),
    raw("route dst with host bits", ipam(routes=[{"dst": "10.0.0.1/8"}]), 7, "dst", "10.0.0.0/8"),
    raw("route gw a word", ipam(routes=[{"dst": "0.0.0.0/0", "gw": "x"}]), 7, "gw"),
    raw(
        "route gw of another family", ipam(routes=[{"dst": "0.0.0.0/0", "gw": "fd00::1"}]), 7, "gw", "fd00::1"
    ),
    raw("route mtu negative", ipam(routes=[{"dst": "0.0.0.0/0", "mtu": -1}]), 7, "mtu"),
    raw("route scope too large", ipam(routes=[{"dst": "0.0.0.0/0", "scope": 256}]), 7, "scope", "256"),
    raw("route table a string", ipam(routes=[{"dst": "0.0.0.0/0", "table": "main"}]), 6, "table"),
]

CASES = ENVIRONMENT_CASES + GATE_CASES + KEY_CASES + IPAM_CASES


def environment_of(case: Case) -> dict[str, str]:
    return {
        key: value
        for key, value in ({"CNI_COMMAND": case.command} | ENVIRONMENT | case.environment).items()
        if value
    }
