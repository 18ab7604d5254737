"""What the encoders say is what ip(8) shows, and what ip(8) made is what the decoders read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import attr, attr_u32

MAC, PEER_MAC = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


@pytest.fixture
def sock(netns: str) -> Iterator[NetlinkSocket]:
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        with namespaces.socket_in(fd) as opened:
            opened.request(rtlink.set_link(1, up=True))
            yield opened
    finally:
        os.close(fd)


@pytest.fixture
def ip(netns: str) -> Callable[..., Any]:
    def command(line: str, namespace: str = netns) -> Any:
        words = ["ip", "-n", namespace, "-j", "-d", *line.split()]
        out = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return json.loads(out) if out.strip() else []

    return command


def links(sock: NetlinkSocket) -> dict[str, rtlink.Link]:
    found = (rtlink.parse_link(msg) for msg in sock.dump(rtlink.dump_links()))
    return {link.name: link for link in found}


def test_a_veth_pair_is_made_across_namespaces_in_one_message(
    sock: NetlinkSocket, ip: Callable[..., Any], netns_factory: Callable[[], str]
) -> None:
    pod = netns_factory()
    sock.request(rtlink.new_link("b0", "bridge", up=True))
    fd = namespaces.open_netns(namespaces.path(pod))
    try:
        host = [attr(rtlink.IFLA_ADDRESS, MAC), attr_u32(rtlink.IFLA_MTU, 1400)]
        host += [attr_u32(rtlink.IFLA_MASTER, links(sock)["b0"].ifindex), attr_u32(rtlink.IFLA_GROUP, 77)]
        far = attr(rtlink.IFLA_ADDRESS, PEER_MAC) + attr_u32(rtlink.IFLA_MTU, 1400)
        sock.request(
            rtlink.new_veth("v0", *host, peer_name="eth0", peer_netns_fd=fd, peer_attrs=far), "create", "v0"
        )
    finally:
        os.close(fd)
    [near] = ip("link show v0")
    assert (near["address"], near["mtu"], near["master"], near["group"]) == (MAC.hex(":"), 1400, "b0", "77")
    [peer] = ip("link show eth0", pod)
    assert (peer["address"], peer["mtu"], peer["linkinfo"]["info_kind"]) == (PEER_MAC.hex(":"), 1400, "veth")
    link = links(sock)["v0"]
    assert (link.kind, link.mac, link.mtu, link.group, link.up) == ("veth", MAC, 1400, 77, False)
    assert link.master == links(sock)["b0"].ifindex
    sock.request(rtlink.del_link(group=77))
    assert set(links(sock)) == {"lo", "b0"}


def test_ports_alias_and_state_made_by_ip_are_read(sock: NetlinkSocket, ip: Callable[..., Any]) -> None:
    ip("link add b0 type bridge")
    ip("link add v0 type veth peer name v1")
    ip("link set v0 master b0 up alias pycni:net:abc:eth0")
    ip("link set v1 up")
    ip("link set v0 type bridge_slave hairpin on isolated on")
    link = links(sock)["v0"]
    assert (link.hairpin, link.isolated, link.alias, link.up) == (True, True, "pycni:net:abc:eth0", True)
    assert link.parent == links(sock)["v1"].ifindex
    assert not links(sock)["v1"].hairpin
    assert [m.kind for m in sock.dump(rtlink.dump_links(kind="veth"))] == [rtlink.RTM_NEWLINK] * 2
    assert len(sock.dump(rtlink.dump_links(master=links(sock)["b0"].ifindex))) == 1


def test_addresses_carry_their_flags(sock: NetlinkSocket, ip: Callable[..., Any]) -> None:
    flags = rtnl.IFA_F_NODAD | rtnl.IFA_F_NOPREFIXROUTE
    sock.request(rtnl.new_address(1, packed("fd00::7"), 64, flags=flags))
    sock.request(rtnl.new_address(1, packed("10.9.0.1"), 24, flags=rtnl.IFA_F_NOPREFIXROUTE))
    shown = {info["local"]: info for info in ip("addr show lo")[0]["addr_info"]}
    assert (shown["fd00::7"]["nodad"], shown["fd00::7"]["noprefixroute"]) == (True, True)
    assert (shown["10.9.0.1"]["prefixlen"], shown["10.9.0.1"]["noprefixroute"]) == (24, True)
    read = {i.address: i for i in map(rtnl.parse_address, sock.dump(rtnl.dump_addresses(1)))}
    assert read[packed("fd00::7")].flags & flags == flags
    assert read[packed("10.9.0.1")].prefix_len == 24
    with pytest.raises(KernelError, match="EEXIST"):
        sock.request(rtnl.new_address(1, packed("10.9.0.1"), 24, replace=False))
    sock.request(rtnl.del_address(1, packed("10.9.0.1"), 24))
    assert "10.9.0.1" not in {info["local"] for info in ip("addr show lo")[0]["addr_info"]}


ROUTES = {
    "ipv4 default": ("0.0.0.0", 0, {"gateway": packed("10.9.0.2")}),
    "ipv6 default": ("::", 0, {"gateway": packed("fd00::2")}),
    "ipv4 all": ("10.7.0.0", 16, {"gateway": packed("10.9.0.2"), "metric": 9, "mtu": 1400, "advmss": 1360}),
    "ipv6 all": ("fd07::", 32, {"gateway": packed("fd00::2"), "metric": 9, "mtu": 1400, "advmss": 1340}),
    "ipv4 onlink": ("10.7.0.0", 16, {"gateway": packed("172.16.0.1"), "onlink": True}),
    "ipv6 onlink": ("fd07::", 32, {"gateway": packed("fd99::1"), "onlink": True}),
    "ipv4 source": ("10.7.0.0", 16, {"source": packed("10.9.0.1")}),
    "big table": ("10.7.0.0", 16, {"table": 100_000}),
    "host scope": ("10.7.0.7", 32, {"scope": rtnl.RT_SCOPE_HOST}),
}


@pytest.mark.parametrize(("destination", "length", "values"), ROUTES.values(), ids=ROUTES)
def test_routes_are_shown_read_and_removed(
    sock: NetlinkSocket, ip: Callable[..., Any], destination: str, length: int, values: dict[str, Any]
) -> None:
    ip("link add v0 type veth peer name v1")
    for line in (
        "link set v1 up",
        "link set v0 up",
        "addr add 10.9.0.1/24 dev v0",
        "addr add fd00::1/64 dev v0 nodad",
    ):
        ip(line)
    oif = links(sock)["v0"].ifindex
    family, table = (10 if ":" in destination else 2), values.get("table", 254)
    sock.request(rtnl.new_route(packed(destination), length, oif=oif, protocol=112, **values), "add route")
    [shown] = ip(f"-{6 if family == 10 else 4} route show proto 112 table {table}")
    wanted = f"{destination}/{length}".replace("10.7.0.7/32", "10.7.0.7") if length else "default"
    assert (shown["dst"], shown["dev"]) == (wanted, "v0")
    if "mtu" in values:
        assert shown["metrics"] == [{"mtu": values["mtu"], "advmss": values["advmss"]}]
    assert shown.get("scope") == ({254: "host"}.get(values.get("scope", 0)) or shown.get("scope"))
    assert ("onlink" in shown.get("flags", [])) == values.get("onlink", False)
    [info] = [rtnl.parse_route(m) for m in sock.dump(rtnl.dump_routes(family, protocol=112))]
    assert (info.destination, info.prefix_len, info.oif, info.table) == (
        packed(destination),
        length,
        oif,
        table,
    )
    assert (info.gateway, info.source) == (values.get("gateway", b""), values.get("source", b""))
    assert (info.mtu, bool(info.flags & rtnl.RTNH_F_ONLINK)) == (
        values.get("mtu", 0),
        values.get("onlink", False),
    )
    assert info.metric == values.get("metric", 1024 if family == 10 else 0)
    sock.request(rtnl.del_route(packed(destination), length, oif=oif, protocol=112, table=table), "remove")
    assert sock.dump(rtnl.dump_routes(family, protocol=112)) == []


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_a_multipath_route_is_told_apart(sock: NetlinkSocket, ip: Callable[..., Any], family: int) -> None:
    ip("link add v0 type veth peer name v1")
    for line in (
        "link set v1 up",
        "link set v0 up",
        "addr add 10.9.0.1/24 dev v0",
        "addr add fd00::1/64 dev v0 nodad",
    ):
        ip(line)
    net, first, second = (
        ("10.7.0.0/16", "10.9.0.2", "10.9.0.3") if family == 4 else ("fd07::/32", "fd00::2", "fd00::3")
    )
    ip(f"-{family} route add {net} proto 112 nexthop via {first} nexthop via {second}")
    [info] = [rtnl.parse_route(m) for m in sock.dump(rtnl.dump_routes({4: 2, 6: 10}[family], protocol=112))]
    assert (info.multipath, info.oif, info.gateway) == (True, 0, b"")


def test_the_kernel_tells_which_way_a_packet_goes(sock: NetlinkSocket) -> None:
    [reply] = sock.request(rtnl.get_route(packed("127.0.0.1")))
    assert rtnl.parse_route(reply).oif == 1
