"""What a namespace is read as for a trace: every kind of thing a packet may meet, against what ip(8) and nft(8) made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from pycni.kernel import netns, spacestate
from pycni.model.family import Family
from pycni.model.space import ForeignHook, SpaceState

MADE = """
link add br0 type bridge
link add v0 type veth peer name v1
link set v0 master br0 up
link set v1 mtu 1400 up
link set br0 up
link add ov type vxlan id 7 dstport 8472 local 192.0.2.1 nolearning
link set ov up
addr add 192.0.2.1/24 dev br0
addr add 2001:db8::1/64 dev br0 nodad
route add 10.5.2.0/24 via 192.0.2.9 proto 112
route add blackhole 10.9.0.0/16
route add 10.8.0.0/24 dev v1 mtu lock 1300 metric 7 table 77
rule add from 10.8.0.0/16 fwmark 0x10/0xff lookup 77 priority 40
neigh add 10.5.2.0 lladdr 02:00:00:00:00:09 nud permanent dev ov
"""


def run(space: str, *words: str, feed: str = "") -> str:
    done = subprocess.run(
        [*netns.exec_prefix(space), *words], input=feed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def look(space: str) -> SpaceState:
    fd = netns.open_netns(netns.path(space))
    try:
        return netns.run_in(fd, spacestate.read)
    finally:
        os.close(fd)


@pytest.fixture(scope="module")
def space() -> Iterator[str]:
    name = f"pyt{os.getpid()}space"
    netns.create(name)
    try:
        run(name, "ip", "-batch", "-", feed=MADE)
        run(name, "bridge", "link", "set", "dev", "v0", "isolated", "on", "hairpin", "on")
        run(name, "bridge", "fdb", "add", "02:00:00:00:00:09", "dev", "ov", "dst", "192.0.2.9", "self")
        run(name, "bridge", "fdb", "add", "02:00:00:00:00:05", "dev", "v0", "master", "static")
        yield name
    finally:
        netns.delete(name)


@pytest.fixture(scope="module")
def seen(space: str) -> SpaceState:
    return look(space)


def test_links_are_read_with_what_decides_over_packets(seen: SpaceState) -> None:
    v0, v1, ov = (seen.links[name] for name in ("v0", "v1", "ov"))
    assert (v0.kind, v0.master, v0.isolated, v0.hairpin, v0.port_state) == (
        "veth",
        "br0",
        True,
        True,
        "forwarding",
    )
    assert (v0.peer_index, v1.peer_index, v1.mtu) == (v1.index, v0.index, 1400)
    assert (ov.kind, ov.vni, ov.port, ov.local) == ("vxlan", 7, 8472, bytes((192, 0, 2, 1)))
    assert v0.up
    assert v0.carrier
    assert not seen.links["lo"].up


def test_addresses_routes_and_rules_are_read(seen: SpaceState) -> None:
    assert (bytes((192, 0, 2, 1)), 24, "") in [item[1:] for item in map(tuple_of, seen.of("br0"))]
    by_target = {(item.table, item.destination, item.prefix_len): item for item in seen.routes}
    fabric = by_target[254, bytes((10, 5, 2, 0)), 24]
    assert (fabric.gateway, fabric.device, fabric.protocol) == (bytes((192, 0, 2, 9)), "br0", 112)
    assert by_target[254, bytes((10, 9, 0, 0)), 16].kind == "blackhole"
    own = by_target[77, bytes((10, 8, 0, 0)), 24]
    assert (own.device, own.metric, own.mtu) == ("v1", 7, 1300)
    assert by_target[255, bytes((192, 0, 2, 1)), 32].kind == "local"
    [rule] = [item for item in seen.rules if item.priority == 40]
    assert (rule.table, rule.source, rule.source_len, rule.mark, rule.mask) == (
        77,
        bytes((10, 8, 0, 0)),
        16,
        16,
        255,
    )
    assert {(item.priority, item.table) for item in seen.rules if item.family is Family.V6} >= {
        (0, 255),
        (32766, 254),
    }


def tuple_of(item: object) -> tuple[object, ...]:
    return tuple(getattr(item, name) for name in ("device", "address", "prefix_len", "trouble"))


def test_neighbours_and_forwarding_entries_are_read(seen: SpaceState) -> None:
    assert ("ov", bytes((10, 5, 2, 0)), b"\2\0\0\0\0\x09", "permanent") in [
        (item.device, item.address, item.mac, item.state) for item in seen.neighbours
    ]
    entries = [(item.device, item.mac, item.port, item.remote) for item in seen.fdb]
    assert ("ov", b"\2\0\0\0\0\x09", "", bytes((192, 0, 2, 9))) in entries
    assert ("br0", b"\2\0\0\0\0\x05", "v0", b"") in entries


def test_switches_are_those_of_the_namespace(space: str) -> None:
    run(
        space,
        "sh",
        "-c",
        "echo 1 >/proc/sys/net/ipv4/ip_forward; echo 2 >/proc/sys/net/ipv4/conf/v1/rp_filter",
    )
    seen = look(space)
    assert seen.sysctls["net.ipv4.ip_forward"] == "1"
    assert seen.sysctls["net/ipv4/conf/v1/rp_filter"] == "2"


def test_rules_of_others_are_told_and_ours_are_not(space: str) -> None:
    rules = (
        "add table inet pycni_x; add chain inet pycni_x c { type filter hook input priority 5; policy drop; };"
        "add table ip foreign; add chain ip foreign f { type filter hook forward priority 10; };"
        "add chain ip foreign other; add rule ip foreign f jump other; add rule ip foreign other udp dport 8472 drop;"
        "add rule ip foreign f tcp dport 1 accept"
    )
    run(space, "nft", rules)
    try:
        assert look(space).hooks == (
            ForeignHook(
                family="ip", table="foreign", chain="f", hook="forward", priority=10,
                verdicts=("udp dport 8472 drop",), rules=("jump other", "tcp dport 1 accept"),
                chains={"other": ("udp dport 8472 drop",)},
            ),
        )  # fmt: skip
    finally:
        run(space, "nft", "delete table ip foreign; delete table inet pycni_x")


def test_sockets_that_take_new_packets_are_known(space: str) -> None:
    serve = (
        "import socket,sys; s=socket.create_server(('192.0.2.1', 8080)); print(flush=True); sys.stdin.read()"
    )
    words = [*netns.exec_prefix(space), "python3", "-c", serve]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        seen = look(space).listening
        process.communicate(b"")
    assert ("tcp", bytes((192, 0, 2, 1)), 8080) in (seen or ())
    assert not [item for item in look(space).listening or () if item[0] == "tcp"]
