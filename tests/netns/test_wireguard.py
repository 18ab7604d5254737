"""The wireguard backend with real packets: agents in namespaces, wireguard-go where the kernel has no WireGuard."""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from pycni.kernel import netns as namespaces
from pycni.model.wireguard import Secret
from tests.netns.fabric_nodes import FabricWorld, routes, start, until
from tests.netns.test_network_component import talk

PSK = Secret(bytes(range(32)))


def inhabitants(name: str) -> list[int]:
    """Processes in a namespace."""
    return [
        int(pid)
        for pid in subprocess.run(
            ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
        ).stdout.split()
    ]


@pytest.fixture
def world(request):
    made = FabricWorld(**getattr(request, "param", {"kind": "wireguard"}))
    try:
        yield made
    finally:
        for agent in (agent for node in made.nodes.values() for agent in node.agents):
            agent.stop()
        for node in made.nodes.values():
            for device in ("flannel-wg", "flannel-wg-v6"):
                node(f"ip link del {device}", ok=False)
            with contextlib.suppress(AssertionError):
                until(
                    lambda node=node: not (set(inhabitants(node.name)) - {os.getpid()}), "wireguard-go ends"
                )
            for pid in set(inhabitants(node.name)) - {os.getpid()}:
                os.kill(pid, signal.SIGKILL)
        made.close()


def worlds(*params):
    values = [
        pytest.param({"families": families, "kind": "wireguard", **keys}, id=name)
        for name, families, keys in params
    ]
    return pytest.mark.parametrize("world", values, indirect=True)


def wg(node, what: str, device: str = "flannel-wg", verb: str = "show") -> list[list[str]]:
    """wg show or wg set, by the socket that is in the node's state folder."""
    folder = node.folder / "state/wireguard"
    script = f"mount --bind {folder} /var/run/wireguard && wg {verb} {device} {what}"
    done = subprocess.run(
        ["unshare", "--mount", *namespaces.exec_prefix(node.name), "sh", "-c", script],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split("\t") for line in done.stdout.splitlines()]


def key_of(node) -> str:
    raw = (node.folder / "state/wireguard.key").read_text()
    return subprocess.run(
        ["wg", "pubkey"], input=raw, capture_output=True, text=True, check=True
    ).stdout.strip()


def reach(one, two, size=100):
    """Both ways in every family; the first packets may be lost to address resolution."""
    for family in one.world.families:
        for here, there in ((one, two), (two, one)):
            until(
                lambda h=here, t=there, f=family: talk(h, t, f, size), f"{here.number} to {there.number}", 20
            )


def sniff(node) -> socket.socket:
    def made() -> socket.socket:
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        tap.bind(("eth0", 3))
        tap.settimeout(0.3)
        return tap

    fd = namespaces.open_netns(namespaces.path(node.name))
    try:
        return namespaces.run_in(fd, made)
    finally:
        os.close(fd)


def frames(tap) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(tap.recv(2000))
        except TimeoutError:
            return found


@worlds(
    ("separate", "46", {"psk": PSK, "keepalive_s": 25}),
    ("auto", "46", {"mode": "auto"}),
    ("ipv6", "46", {"mode": "ipv6"}),
)
def test_agents_carry_pods_packets_of_full_size_encrypted(world):
    (one, two), (agent, _) = start(world, 1, 2)
    mtu = agent.component.podnet().mtu
    assert mtu == 1420
    reach(one, two, mtu)
    with sniff(two) as tap:
        assert all(talk(one, two, family, 999) for family in world.families)
        seen = frames(tap)
    assert sum(bytes(900) in frame for frame in seen) == 0, "a pod's packet can be read"
    large = [frame for frame in seen if len(frame) > 900]
    separate = world.cluster.conf.backend.mode == "separate"
    v6 = {"auto": [False, False], "ipv6": [True, True]}.get(world.cluster.conf.backend.mode, [False, True])
    assert sorted(frame[12:14] == b"\x86\xdd" for frame in large) == v6
    devices = ["flannel-wg", "flannel-wg-v6"] if separate else ["flannel-wg"]
    allowed = {
        tuple(sorted(word for peer in wg(one, "allowed-ips", name) for word in peer[1].split()))
        for name in devices
    }
    nets = {("10.5.2.0/24",), ("fd00:5:0:2::/64",)} if separate else {("10.5.2.0/24", "fd00:5:0:2::/64")}
    assert allowed == nets
    [[peer, psk]] = wg(one, "preshared-keys")
    assert (peer, psk) == (key_of(two), base64.b64encode(PSK.value).decode() if separate else "(none)")
    [[_, keepalive]] = wg(one, "persistent-keepalive")
    assert keepalive == ("25" if separate else "off")


def test_a_node_that_joins_moves_or_leaves_disturbs_no_other(world):
    (one, two), (_agent, _) = start(world, 1, 2)
    reach(one, two)
    before = wg(one, "latest-handshakes")
    three = world.node(3)
    late = three.start()
    until(late.well, "late agent well", 20)
    reach(one, three)
    assert [line for line in wg(one, "latest-handshakes") if line in before] == before
    assert dict(wg(one, "allowed-ips")) == {
        key_of(two): "10.5.2.0/24",
        key_of(three): "10.5.3.0/24",
    }
    three("ip addr del 192.0.2.3/24 dev eth0")
    three("ip addr add 192.0.2.33/24 dev eth0")
    until(lambda: [key_of(three), "192.0.2.33:51820"] in wg(one, "endpoints"), "the new endpoint", 20)
    reach(one, three)
    late.stop()
    world.cluster.delete("10.5.3.0-24")
    until(lambda: [peer for peer, _ in wg(one, "allowed-ips")] == [key_of(two)], "the peer is gone", 20)
    assert routes(one) == ["10.5.2.0/24 dev flannel-wg scope link"]
    assert wg(one, "latest-handshakes") == before
    assert talk(one, two, "4")


def test_a_restarted_agent_finds_everything_in_place_and_loses_no_packet(world):
    (one, two), (agent, _) = start(world, 1, 2)
    reach(one, two)
    index, before = one("ip -o link show flannel-wg").split(":")[0], wg(one, "latest-handshakes")
    agent.stop()
    assert talk(one, two, "4")
    again = one.start()
    until(again.well, "agent well", 20)
    assert one("ip -o link show flannel-wg").split(":")[0] == index
    assert wg(one, "latest-handshakes") == before
    assert talk(one, two, "4")


def test_a_node_that_lost_its_key_makes_a_new_one_and_peers_follow(world):
    (one, two), (agent, _) = start(world, 1, 2)
    reach(one, two)
    before, index = key_of(one), one("ip -o link show flannel-wg").split(":")[0]
    agent.stop()
    (one.folder / "state/wireguard.key").unlink()
    until(one.start().well, "agent well", 20)
    assert key_of(one) != before
    until(lambda: [peer for peer, _ in wg(two, "allowed-ips")] == [key_of(one)], "the new key", 20)
    reach(one, two)
    assert one("ip -o link show flannel-wg").split(":")[0] == index


@pytest.mark.parametrize("how", ["device deleted", "program killed", "device down"])
def test_what_is_broken_is_put_right(world, how):
    (one, two), _ = start(world, 1, 2)
    reach(one, two)
    [pid] = set(inhabitants(one.name)) - {os.getpid()}
    if how == "program killed":
        os.kill(pid, signal.SIGKILL)
    else:
        one("ip link del flannel-wg" if how == "device deleted" else "ip link set flannel-wg down")
    reach(one, two)


def test_peers_that_somebody_removed_or_added_are_put_right_by_the_periodic_look(world):
    (one, two), _ = start(world, 1, 2, resync_s=1.0)
    reach(one, two)
    before = wg(one, "allowed-ips")
    stranger = base64.b64encode(b"\7" * 32).decode()
    for change in (f"peer {key_of(two)} remove", f"peer {stranger} allowed-ips 10.5.2.0/25"):
        wg(one, change, verb="set")
        until(lambda: wg(one, "allowed-ips") == before, change.split()[-1], 20)
    reach(one, two)


def test_the_key_is_ours_alone_made_once_and_never_in_the_log(world, caplog):
    caplog.set_level(logging.DEBUG)
    (one, _two), (agent, _) = start(world, 1, 2)
    file = one.folder / "state/wireguard.key"
    text = file.read_text().strip()
    assert file.stat().st_mode & 0o777 == 0o600
    assert (
        world.cluster.leases["10.5.1.0-24"].attrs.backend_data == b'{"PublicKey":"%s"}' % key_of(one).encode()
    )
    agent.stop()
    until(one.start().well, "agent well", 20)
    assert file.read_text().strip() == text
    secret = base64.b64decode(text)
    for form in (text, secret.hex(), repr(secret)):
        assert form not in caplog.text
    assert key_of(one) in caplog.text
    assert text not in Path(f"/proc/{os.getpid()}/cmdline").read_text()


def test_leaving_the_backend_takes_device_and_program_away(world):
    (one, two), _ = start(world, 1, 2)
    reach(one, two)
    from tests.unit.fabric_world import conf

    world.cluster.set_conf(conf("4", "host-gw"))
    until(lambda: "via 192.0.2.2 dev eth0" in " ".join(routes(one)), "host-gw's route", 20)
    until(lambda: "flannel-wg" not in one("ip -br link"), "the device is gone", 20)
    until(
        lambda: set(inhabitants(one.name)) == set() or set(inhabitants(one.name)) == {os.getpid()},
        "the program ends",
        10,
    )
    until(lambda: talk(one, two, "4", 1500), "pods talk", 20)
