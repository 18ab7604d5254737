"""Backend udp with real packets: agents in namespaces, each with its forwarder, plain and encrypted."""

from __future__ import annotations

import base64
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pycni.errors import KernelError
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.wireguard import Secret
from pycni.wire import forwarder as wire
from tests.netns.fabric_nodes import Cluster, FabricWorld, FakeSource, routes, start, until
from tests.netns.test_network_component import pod, talk
from tests.netns.udp_tools import (
    PORT,
    BarePeer,
    Stream,
    clean,
    counters,
    forwarder_of,
    frames,
    inhabitants,
    state,
    tell,
    transfer,
    udp_payload,
    wire_socket,
)
from tests.unit.fabric_world import conf

PSK, OTHER = Secret(bytes(range(32))), Secret(bytes(range(1, 33)))
PLAIN = {"kind": "udp", "port": PORT}
SECURE = PLAIN | {"psk": PSK}
KEYS = {"plain": PLAIN, "encrypted": SECURE}


@pytest.fixture
def world(request):
    made = FabricWorld(**getattr(request, "param", SECURE))
    try:
        yield made
    finally:
        clean(made)


def worlds(*names, families="4"):
    values = [pytest.param(KEYS[name] | {"families": families}, id=name) for name in names]
    return pytest.mark.parametrize("world", values, indirect=True)


@pytest.fixture(scope="module", params=KEYS.values(), ids=KEYS)
def pair(request):
    """Two nodes that the tests share: each leaves them as it found them."""
    made = FabricWorld(**request.param | {"families": "46"})
    try:
        nodes, _ = start(made, 1, 2)
        reach(*nodes)
        yield nodes
    finally:
        clean(made)


PLAIN_PAIR = pytest.mark.parametrize("pair", [PLAIN], ids=["plain"], indirect=True, scope="module")
SECURE_PAIR = pytest.mark.parametrize("pair", [SECURE], ids=["encrypted"], indirect=True, scope="module")


def entries(node) -> tuple[wire.Entry, ...]:
    """What the node's forwarder knows; nothing while there is none."""
    try:
        return state(node).entries
    except KernelError:
        return ()


def drops(node) -> dict[str, int]:
    """What is dropped, but for the kernel's own multicast packets, which are for nobody."""
    found = {name: count for name, count in counters(node).items() if name.startswith("drop_")}
    found.pop("drop_no_peer", None)
    return found


def reach(one, two, size=100):
    """Both ways in every family."""
    for family in one.world.families:
        for here, there in ((one, two), (two, one)):
            until(
                lambda h=here, t=there, f=family: talk(h, t, f, size), f"{here.number} to {there.number}", 20
            )


def test_agents_carry_pods_packets_of_full_size(pair):
    one, two = pair
    world = one.world
    secure = world.cluster.conf.backend.psk is not None
    mtu = one.agents[-1].component.podnet().mtu
    assert mtu == (1420 if secure else 1452)
    reach(one, two, mtu)
    with wire_socket(two.name, "eth0") as tap:
        assert all(talk(one, two, family, 999) for family in world.families)
        carried = [udp_payload(frame) for frame in frames(tap)]
    large = sorted(payload for payload in carried if len(payload) > 900)
    if secure:
        assert [len(payload) for payload in large] == [999 + 32] * 2
        assert all(payload[0] == 3 and bytes(16) not in payload for payload in large)
    else:
        assert [(len(payload), payload[0] >> 4) for payload in large] == [(999, 4), (999, 6)]
    before = drops(two)
    assert all(transfer(one, two, family, 8 << 20) for family in world.families)
    assert drops(two) == before


@worlds("plain")
def test_flannels_udp_by_hand_is_a_peer_like_any(world):
    (one,), _ = start(world, 1)
    nine = world.node(9)
    bare = BarePeer(nine, {"10.5.1.0": "192.0.2.1"})
    try:
        attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.9"))
        world.cluster.put(Lease(subnet=IPv4Network("10.5.9.0/24"), subnet6=None, attrs=attrs))
        until(lambda: "10.5.9.0/24 dev flannel0 scope link" in routes(one), "the route")
        reach(one, nine, 1472)
        assert transfer(one, nine, "4", 1 << 20)
        assert transfer(nine, one, "4", 1 << 20)
    finally:
        bare.close()


def test_a_restarted_agent_finds_everything_in_place_and_no_packet_is_lost(pair):
    one, two = pair
    pid, known = forwarder_of(one), state(one).entries
    index = one("ip -o link show flannel0").split(":")[0]
    with Stream(one, two, "4") as there, Stream(two, one, "6") as back:
        one.agents[-1].stop()
        again = one.start()
        until(again.well, "agent well", 20)
    assert (there.missing, back.missing, there.errors, back.errors) == (set(), set(), [], [])
    assert (forwarder_of(one), state(one).entries) == (pid, known)
    assert one("ip -o link show flannel0").split(":")[0] == index


def test_a_killed_forwarder_is_back_and_device_and_routes_were_never_gone(pair):
    one, two = pair
    index, before, pid = one("ip -o link show flannel0").split(":")[0], routes(one), forwarder_of(one)
    with Stream(one, two) as stream:
        os.kill(pid, signal.SIGKILL)
        until(lambda: inhabitants(one) - {pid}, "another forwarder", 20)
        assert routes(one) == before
        at = stream.sent
        until(lambda: max(stream.came) > at, "packets flow again", 20)
    assert stream.errors == []
    assert one("ip -o link show flannel0").split(":")[0] == index
    assert "alias pycni" in one("ip link show flannel0")
    reach(one, two)
    for node in (one, two):
        os.kill(forwarder_of(node), signal.SIGKILL)
    reach(one, two)


BREAKAGES = {
    "device deleted": "ip link del flannel0",
    "device down": "ip link set flannel0 down",
    "its MTU changed": "ip link set flannel0 mtu 1300",
    "its address removed": "ip addr flush dev flannel0",
    "the socket removed": "rm {folder}/state/udp/flannel0.sock",
}


@SECURE_PAIR
def test_what_is_broken_is_put_right(pair):
    one, two = pair
    agent = one.agents[-1]

    def shape():
        link = re.findall(r"mtu \d+|[<,]UP|LOWER_UP|alias \w+", one("ip link show flannel0", ok=False))
        return link, one("ip -4 -o addr show flannel0", ok=False).split("inet")[-1], routes(one)

    before = shape()
    for what, command in BREAKAGES.items():
        ends = what in {"device deleted", "the socket removed"}
        pid = forwarder_of(one)
        one(command.format(folder=one.folder))
        until(lambda e=ends, p=pid: not e or inhabitants(one) - {p}, f"{what}: another forwarder", 20)
        until(lambda: shape() == before and agent.well(), f"{what}: put right", 20)
        reach(one, two)


def test_networks_that_somebody_removed_or_added_are_put_right_by_the_periodic_look(world):
    (one, two), (agent, _) = start(world, 1, 2, resync_s=1.0)
    reach(one, two)
    counted = re.compile(r'pycni_udp_packets_total{direction="(?:in|out)"} [1-9]')
    until(lambda: len(counted.findall(agent.metrics.expose())) == 2, "the metrics have what was counted", 20)
    before = state(one).entries
    stray = wire.Entry(bytes([10, 5, 2, 0]), 25, bytes([192, 0, 2, 77]), PORT)
    for change in (wire.Remove(before), wire.Put((stray,)), wire.Configure(9, (), (), None)):
        tell(one, change)
        until(lambda: (state(one).entries, state(one).port) == (before, PORT), type(change).__name__, 20)
        reach(one, two)


def test_a_node_that_joins_moves_or_leaves_disturbs_no_other(world):
    (one, two), _ = start(world, 1, 2)
    reach(one, two)
    with Stream(one, two) as stream:
        three = world.node(3)
        late = three.start()
        until(late.well, "late agent well", 20)
        reach(one, three)
        three("ip addr del 192.0.2.3/24 dev eth0")
        three("ip addr add 192.0.2.33/24 dev eth0")
        moved = wire.Entry(bytes([10, 5, 3, 0]), 24, bytes([192, 0, 2, 33]), PORT)
        until(lambda: moved in state(one).entries, "the new endpoint", 20)
        reach(one, three)
        late.stop()
        world.cluster.delete("10.5.3.0-24")
        until(lambda: [entry.network[2] for entry in state(one).entries] == [2], "the peer is gone", 20)
    assert stream.missing == set()
    assert routes(one) == ["10.5.2.0/24 dev flannel0 scope link"]


def test_a_node_with_another_key_gets_nothing_through(world):
    (one, two), _ = start(world, 1, 2)
    reach(one, two)
    three, elsewhere = world.node(3), Cluster(conf("4", "udp", port=PORT, psk=OTHER))
    elsewhere.put(world.cluster.leases["10.5.1.0-24"])
    agent = three.start(source=FakeSource(elsewhere, 3))
    until(agent.well, "agent well", 20)
    world.cluster.put(elsewhere.leases["10.5.3.0-24"])
    until(lambda: len(state(one).entries) == 2, "the third node is known", 20)
    assert not talk(three, one, "4")
    assert not talk(one, three, "4")
    for node in (one, three):
        until(lambda node=node: counters(node).get("drop_forged"), "its hello is refused", 20)
    assert counters(three)["udp_packets"] == 0
    for node, other in ((one, "192.0.2.3"), (three, "192.0.2.1")):
        assert "session since" not in state(node).sessions[other]
    assert talk(one, two, "4")


@SECURE_PAIR
def test_recorded_packets_are_refused_also_by_another_life(pair):
    one, two = pair
    target, source = pod(two, "4"), pod(one, "4")
    forged = drops(two).get("drop_forged", 0)
    with (
        wire_socket(two.name, "eth0") as tap,
        wire_socket(one.world.switch, "p2") as injector,
        two.socket(target, 4300) as receiver,
        one.socket(source) as sender,
    ):
        receiver.settimeout(15)
        for number in range(5):
            sender.sendto(b"packet %d" % number, (target, 4300))
            assert receiver.recv(100) == b"packet %d" % number
        recorded = [frame for frame in frames(tap) if frame[26:30] == bytes([192, 0, 2, 1])]
        assert len(recorded) >= 5

        def replay() -> None:
            for frame in recorded:
                injector.send(
                    frame[:40] + bytes(2) + frame[42:]
                )  # the kernel had left the checksum to the device

        before = drops(two).get("drop_replayed", 0)
        replay()
        until(lambda: drops(two).get("drop_replayed", 0) >= before + 5, "all are counted")
        pid = forwarder_of(two)
        os.kill(pid, signal.SIGKILL)
        until(lambda: inhabitants(two) - {pid} and entries(two), "another forwarder", 20)
        replay()
        until(lambda: drops(two).get("drop_no_session", 0) >= 5, "all are counted")
        # What is sent now comes after anything that could have come of the replay.
        until(lambda: _answered(sender, receiver, target), "an authentic packet", 20)
        assert drops(two).get("drop_forged", 0) in {0, forged}, "authentic packets are old, not forged"


def _answered(sender, receiver, target) -> bool:
    """Whether a new packet comes; nothing else may."""
    receiver.settimeout(1)
    sender.sendto(b"new", (target, 4300))
    try:
        assert receiver.recv(100) == b"new"
    except TimeoutError:
        return False
    return True


def ipv4(source: str, target: str, payload: bytes, total: int | None = None) -> bytes:
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload) if total is None else total, 0, 0, 64, 17, 0,
        socket.inet_aton(source), socket.inet_aton(target),
    )  # fmt: skip
    words = sum(struct.unpack("!10H", head))
    check = ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF
    return head[:10] + struct.pack("!H", check) + head[12:] + payload


@PLAIN_PAIR
def test_strangers_forgers_and_rubbish_get_nothing_through(pair):
    one, two = pair
    five = one.world.node(5)
    target = pod(one, "4")
    udp = struct.pack("!HHHH", 4400, 4400, 8 + 4, 0) + b"evil"
    good = ipv4("10.5.2.5", target, udp)
    bad = {
        "foreign_sender": [ipv4("10.5.3.5", target, udp), ipv4("10.5.1.5", target, udp), ipv4("8.8.8.8", target, udp)],
        "malformed": [
            b"", b"\x45", b"\0" * 40, good[:-1], good + b"\0", ipv4("10.5.2.5", target, udp, total=10),
            b"\x60" + bytes(38), b"\x60" + bytes(3) + b"\xff\xff" + bytes(34), b"\x01" + bytes(71), os.urandom(20)[:-1],
            b"\xff" * 2000,
        ],
    }  # fmt: skip
    forwarder = forwarder_of(two)
    os.kill(forwarder, signal.SIGSTOP)  # its port is not needed: other sockets speak from its address
    try:
        with one.socket(target, 4400) as receiver, five.socket("192.0.2.5", PORT) as stranger:
            before, delivered = drops(one), counters(one)["udp_packets"]

            def more(reason: str) -> int:
                return drops(one).get(f"drop_{reason}", 0) - before.get(f"drop_{reason}", 0)

            stranger.sendto(good, ("192.0.2.1", PORT))
            until(lambda: more("stranger") == 1, "the stranger is counted")
            with two.socket("192.0.2.2", 9999) as peer:
                for reason, packets in bad.items():
                    for packet in packets:
                        peer.sendto(packet, ("192.0.2.1", PORT))
                    until(lambda r=reason, p=packets: more(r) == len(p), f"all {reason}")
                assert counters(one)["udp_packets"] == delivered
                peer.sendto(good, ("192.0.2.1", PORT))
                receiver.settimeout(15)
                assert receiver.recv(100) == b"evil", "the good one comes, and comes first"
    finally:
        os.kill(forwarder, signal.SIGCONT)
    reach(one, two)


def test_a_path_too_narrow_for_bursts_is_passed_in_fragments(pair):
    one, two = pair
    before = drops(one)
    narrow = "-4 route {} 192.0.2.2/32 dev eth0 mtu 1300", "-6 route {} 2001:db8::2/128 dev eth0 mtu 1300"
    try:
        for words in narrow:
            one("ip " + words.format("add"))
        for family in one.world.families:
            assert transfer(one, two, family, 1 << 20)
            assert transfer(two, one, family, 1 << 20)
        assert {name for name in drops(one) if name.startswith("drop_send")} <= before.keys()
    finally:
        for words in narrow:
            one("ip " + words.format("del"), ok=False)


def test_key_and_encryption_change_on_a_living_network(world):
    (one, two), _ = start(world, 1, 2)
    reach(one, two)
    index, pid = one("ip -o link show flannel0").split(":")[0], forwarder_of(one)
    for psk, mtu in ((OTHER, 1440), (None, 1472), (PSK, 1440)):
        world.cluster.set_conf(conf("4", "udp", port=PORT, psk=psk))
        wanted = psk.fingerprint if psk is not None else ""
        until(lambda w=wanted: state(one).psk == state(two).psk == w, "the key is in use", 20)
        until(lambda m=mtu: f"mtu {m} " in one("ip link show flannel0"), "the MTU", 20)
        reach(one, two)
    world.cluster.set_conf(conf("4", "udp", port=9285, psk=PSK))
    until(lambda: state(one).port == state(two).port == 9285, "the port is in use", 20)
    reach(one, two)
    assert (one("ip -o link show flannel0").split(":")[0], forwarder_of(one)) == (index, pid)


@SECURE_PAIR
def test_the_key_is_in_no_list_of_processes_no_file_and_no_log(pair, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("PYCNID_ETCD_PASSWORD", "swordfish")
    one, two = pair
    os.kill(forwarder_of(one), signal.SIGKILL)  # another one is told everything
    reach(one, two)
    folder = one.folder / "state/udp"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [(file.name, file.stat().st_mode & 0o777) for file in folder.iterdir()] == [
        ("flannel0.sock", 0o600)
    ]
    process = Path(f"/proc/{forwarder_of(one)}")
    seen = caplog.text.encode() + b"".join((process / file).read_bytes() for file in ("cmdline", "environ"))
    secret = PSK.value
    for form in (
        b"swordfish",
        base64.b64encode(secret),
        secret.hex().encode(),
        secret,
        repr(secret).encode(),
    ):
        assert form not in seen
    shown = subprocess.run(
        [sys.executable, "-m", "pycni.forwarder", "--show", folder, "flannel0"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "udp_packets" in shown
    assert "peer 192.0.2.2: session since" in shown


def test_a_device_of_somebody_else_under_the_name_is_left_alone_and_told(world):
    one = world.node(1)
    one("ip link add flannel0 type bridge")
    agent = one.start()
    until(lambda: "a bridge has this name" in agent.health.red().get("network", ""), "health says it", 20)
    assert "bridge" in one("ip -d link show flannel0")
    one("ip link del flannel0")
    until(lambda: agent.well() and "tun" in one("ip -d link show flannel0", ok=False), "all well", 30)


def test_leaving_the_backend_takes_device_and_program_away(world):
    (one, two), _ = start(world, 1, 2)
    reach(one, two)
    world.cluster.set_conf(conf("4", "host-gw"))
    until(lambda: "via 192.0.2.2 dev eth0" in " ".join(routes(one)), "host-gw's route", 20)
    until(lambda: "flannel0" not in one("ip -br link"), "the device is gone", 20)
    until(lambda: not inhabitants(one), "the program ends", 20)
    assert list((one.folder / "state/udp").iterdir()) == []
    until(lambda: talk(one, two, "4", 1500), "pods talk", 20)


@SECURE_PAIR
def test_a_second_forwarder_of_a_device_is_refused_and_harms_nobody(pair):
    one, two = pair
    pid, folder = forwarder_of(one), one.folder / "state/udp"
    done = subprocess.run(
        ["ip", "netns", "exec", one.name, sys.executable, "-m", "pycni.forwarder", folder, "flannel0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "busy" in done.stderr
    assert (forwarder_of(one), state(one).pid) == (pid, pid)
    reach(one, two)
