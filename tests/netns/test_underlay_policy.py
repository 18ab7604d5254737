"""NetworkPolicy for pods on the underlay's own subnet (macvlan), by real packets: enforced inside the pods."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.netns.podenv import connect, pings, serving
from tests.netns.underlay_rig import Ground, World, populated, underlay
from tests.netns.underlay_segment import FAR, PEER
from tests.waiting import wait_for

FAMILIES = (4, 6)
DENY = {"policyTypes": ["Ingress", "Egress"]}


def address(pod: Any, family: int) -> str:
    return pod.v4() if family == 4 else pod.v6()


def reaches(
    source: Any, target: str, server: Any, port: int = 80, *, family: int = 4, wait: float = 0.4
) -> bool:
    """Whether a TCP connection comes about."""
    with serving(server, port, family=family) as listening:
        return connect(source, target, port, listening, wait) != ""


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with underlay() as found:
        yield found


@pytest.fixture
def world(ground: Ground, tmp_path: Path) -> Iterator[World]:
    with populated(ground, tmp_path) as found:
        yield found


def test_policies_hold_between_pods_of_a_node_of_two_nodes_and_the_outside(world):
    files = world.agent.manifests
    files.pod("peer", ips=PEER, node="n2", app="web")
    files.pod("web", app="web")
    files.pod("db", app="db")
    files.pod("lonely", "lone", app="web")
    files.policy(
        "db",
        podSelector={"matchLabels": {"app": "db"}},
        policyTypes=["Ingress"],
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": "http"}]}],
    )
    world.agent.start()
    web, db, lonely = (world.env.pod() for _ in range(3))
    world.agent.add(web, "web")
    world.agent.add(db, "db")
    world.agent.add(lonely, "lone/lonely")
    for family in FAMILIES:
        target = address(db, family)
        assert reaches(web, target, db, family=family, wait=10), "a pod of the node, by a named port"
        assert reaches(world.peer, target, db, family=family, wait=10), "a pod of another node"
        assert reaches(None, target, db, family=family, wait=10), "its node"
        assert not reaches(web, target, db, 81, family=family), "another port"
        assert not reaches(lonely, target, db, family=family), "a pod of another namespace"
        assert not reaches(world.far, target, db, family=family), "the outside"
        assert reaches(db, address(lonely, family), lonely, family=family, wait=10), "egress is not isolated"
        assert pings(db, address(world.far, family))


def packet_socket(pod: Any) -> socket.socket:
    sock: socket.socket = pod.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    sock.bind(("eth0", 0))
    return sock


def hears(host: Any, protocol: int = 0x0003) -> socket.socket:
    """A socket that gets every frame that comes to a machine's eth0."""
    sock: socket.socket = host.inside(
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    )
    sock.bind(("eth0", protocol))
    sock.settimeout(0.05)
    return sock


def heard(sock: socket.socket, what: bytes, seconds: float) -> bool:
    """Whether a frame with this in it comes within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if what in sock.recv(4096):
                return True
        except TimeoutError:
            continue
    return False


def udp_frame(source_mac: bytes, source: str, target_mac: bytes, target: str, body: bytes) -> bytes:
    """A UDP datagram to port 9 as a packet socket sends it."""
    datagram = struct.pack("!HHHH", 9999, 9, 8 + len(body), 0) + body
    ends = ip_address(source).packed + ip_address(target).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0) + ends
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + head[12:]
    return target_mac + source_mac + b"\x08\x00" + head + datagram


def mac_of(host: Any) -> bytes:
    return bytes.fromhex(json.loads(host.run("ip -j link show eth0"))[0]["address"].replace(":", ""))


def denied(world: Any) -> dict[str, int]:
    """Packets by what denied them, all pods together."""
    found: dict[str, int] = {}
    for item in world.agent.component.gate.insides.denied():
        found[item.policy] = found.get(item.policy, 0) + item.packets
    return found


def world_holders(gate: Any) -> Any:
    """Attachments on record."""
    return gate._pods.holders().values()


def isolated(world: Any, name: str = "web") -> Any:
    """A running agent and a pod that policies isolate in both directions."""
    world.agent.manifests.pod(name, app=name)
    world.agent.manifests.policy("all", **DENY)
    world.agent.start()
    pod = world.env.pod()
    world.agent.add(pod, name)
    return pod


def test_a_packet_socket_sends_nothing_past_the_policies(world):
    pod = isolated(world)
    mac, far = mac_of(pod), mac_of(world.far)
    with hears(world.far) as wire, packet_socket(pod) as raw:
        for bypass in (0, 1):
            raw.setsockopt(263, 20, bypass)  # SOL_PACKET, PACKET_QDISC_BYPASS
            for mark in (0, 0x12345678):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                with contextlib.suppress(OSError):
                    raw.send(udp_frame(mac, pod.v4(), far, FAR[0], b"leaked"))
        assert not heard(wire, b"leaked", 0.3)
    assert denied(world)["packet socket"] == 4


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(
            lambda mac, own: b"\xff" * 6 + bytes.fromhex("02aabbccddee") + b"\x08\x06" + bytes(28) + b"leaked",
            "spoofed source MAC",
            id="mac",
        ),
        pytest.param(
            lambda mac, own: (
                b"\xff" * 6 + mac + b"\x08\x06" + bytes.fromhex("0001080006040002") + mac
                + ip_address(FAR[0]).packed + b"\xff" * 6 + ip_address(PEER[0]).packed + b"leaked"
            ),
            "spoofed ARP sender",
            id="arp",
        ),
        pytest.param(
            lambda mac, own: b"\xff" * 6 + mac + b"\x81\x00\x00\x01\x08\x00" + b"leaked",
            "frame without policy",
            id="vlan",
        ),
    ],
)  # fmt: skip
def test_a_pod_sends_frames_in_its_own_name_only(world, frame, reason):
    pod = isolated(world)
    with hears(world.far) as wire, packet_socket(pod) as raw:
        with contextlib.suppress(OSError):
            raw.send(frame(mac_of(pod), pod.v4()))
        assert not heard(wire, b"leaked", 0.3)
    assert denied(world)[reason] == 1


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_what_is_allowed_passes_in_fragments_too(world, family):
    files = world.agent.manifests
    blocks = [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "2001:db8::/64"}}]
    files.policy("far", policyTypes=["Egress"], egress=[{"to": blocks}])
    pod = isolated(world)
    v4 = family == socket.AF_INET
    with (
        serving(world.far, 5000, family=4 if v4 else 6, udp=True) as server,
        pod.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as client,
    ):
        client.sendto(b"x" * 9000, (FAR[0] if v4 else FAR[1], 5000))
        data, sender = server.recvfrom(10000)
        assert data == b"x" * 9000
        server.sendto(data, sender)
        client.settimeout(5)
        assert client.recv(10000) == data


def test_a_raw_socket_cannot_send_as_somebody_else(world):
    world.agent.manifests.pod("web", app="web")
    world.agent.start()
    pod = world.env.pod()
    world.agent.add(pod, "web")
    frame = udp_frame(bytes(6), PEER[0], bytes(6), FAR[0], b"leaked")[14:]
    own = udp_frame(bytes(6), pod.v4(), bytes(6), FAR[0], b"honest")[14:]
    raw = pod.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
    with hears(world.far) as wire, raw:
        raw.sendto(own, (FAR[0], 0))
        assert heard(wire, b"honest", 5)
        with contextlib.suppress(OSError):
            raw.sendto(frame, (FAR[0], 0))
        assert not heard(wire, b"leaked", 0.3)
    assert denied(world)["spoofed source"] == 1


def test_a_pod_cannot_claim_anothers_ipv6_address(world):
    world.agent.manifests.pod("web", app="web")
    world.agent.start()
    pod = world.env.pod()
    world.agent.add(pod, "web")

    def advertise(target: str) -> None:
        body = (
            struct.pack("!BBHI", 136, 0, 0, 0x20000000)
            + ip_address(target).packed
            + b"\x02\x01"
            + mac_of(pod)
        )
        with pod.inside(
            lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        ) as raw:
            raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            with contextlib.suppress(OSError):
                raw.sendto(body, ("ff02::1", 0, 0, index))

    index = json.loads(pod.run("ip -j link show eth0"))[0]["ifindex"]
    with hears(world.far) as wire:
        advertise(pod.v6())
        assert heard(wire, b"\x88\x00", 5)
    assert "spoofed neighbour" not in {name for name, count in denied(world).items() if count}
    advertise(PEER[1])
    assert denied(world)["spoofed neighbour"] == 1


def test_what_a_pod_undoes_is_put_back(world):
    pod = isolated(world)
    assert not pings(pod, FAR[0], wait=0.3)
    for command in (
        "nft flush ruleset",
        "nft delete table inet pycni_policy_eth0",
        "nft delete table netdev pycni_gate_eth0",
    ):
        pod.run(command)
        wait_for(lambda: len(pod.run("nft list tables").splitlines()) == 2, f"tables after {command}")
        wait_for(lambda: not pings(pod, FAR[0], wait=0.3), "policies to hold again")
    assert not pings(pod, FAR[0], wait=0.3)
    assert reaches(None, pod.v4(), pod, wait=10), "the node reaches its pods"


def test_policies_changes_reach_the_pods_they_are_about(world):
    files = world.agent.manifests
    files.pod("peer", ips=PEER, node="n2", app="peer")
    pod = isolated(world)
    assert not reaches(world.peer, pod.v4(), pod)
    files.policy(
        "peers",
        policyTypes=["Ingress"],
        ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "peer"}}}]}],
    )
    wait_for(lambda: reaches(world.peer, pod.v4(), pod), "a policy that allows")
    files.pod("peer", ips=PEER, node="n2", app="other")
    wait_for(lambda: not reaches(world.peer, pod.v4(), pod), "a peer that left its group")
    files.pod("peer", ips=PEER, node="n2", app="peer")
    wait_for(lambda: reaches(world.peer, pod.v4(), pod), "a peer that came back")
    files.drop("NetworkPolicy", "peers", "shop")
    wait_for(lambda: not reaches(world.peer, pod.v4(), pod), "a policy that went")
    files.drop("NetworkPolicy", "all", "shop")
    wait_for(lambda: pings(pod, FAR[0]), "no policy at all")


def test_a_pod_is_closed_until_its_policies_are_known(world):
    world.agent.manifests.pod("web", app="web")
    world.agent.start(listed=False, ready=False)
    pod = world.env.pod()
    world.agent.add(pod, "web")
    assert not pings(pod, FAR[0], wait=0.3)
    assert not reaches(world.far, pod.v4(), pod)
    world.agent.read()
    wait_for(lambda: pings(pod, FAR[0]), "the pod to be opened")
    assert reaches(world.far, pod.v4(), pod, wait=10)


def test_a_pass_that_did_not_know_of_a_pod_does_not_open_it(world):
    pod = isolated(world)
    gate = world.agent.component.gate
    engine, later = gate.engine, world.env.pod()
    (known,) = world.agent.records.all()
    addresses = (ip_interface("192.0.2.77/24"), ip_interface("2001:db8::77/64"))
    new = msgspec.structs.replace(known, container_id=later.name, addresses=addresses, pod_name="later")
    gate.insides.admit(new, later.fd)
    try:
        for holders in ({}, {item.ip.packed: next(iter(world_holders(gate))) for item in addresses}):
            gate.insides.bring(engine.view, holders)
            assert not gate.insides.open(new.owner)
        closed = later.run("nft list set inet pycni_policy_eth0 closed_egress4")
        assert "192.0.2.77" in closed
        assert gate.insides.open(known.owner)
        assert not pings(pod, FAR[0], wait=0.3)
    finally:
        gate.insides.gone(new.owner)


def test_a_restarted_agent_takes_over_and_connections_go_on(world):
    files = world.agent.manifests
    pod = isolated(world)
    files.policy("far", policyTypes=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": f"{FAR[0]}/32"}}]}])
    wait_for(lambda: reaches(pod, FAR[0], world.far, 81), "egress to be allowed")
    with serving(world.far, 80) as listening:
        client = pod.inside(lambda: socket.create_connection((FAR[0], 80), timeout=5))
        accepted, _ = listening.accept()
        with client, accepted:
            world.agent.stop()
            assert not pings(pod, PEER[0], wait=0.3), "policies hold without an agent"
            before = pod.run("nft list table inet pycni_policy_eth0")
            world.agent.start()
            wait_for(lambda: not world.agent.component.gate.insides.problems, "the pod to be found again")
            assert pod.run("nft list table inet pycni_policy_eth0") == before
            accepted.sendall(b"still here")
            client.settimeout(5)
            assert client.recv(16) == b"still here"
            files.drop("NetworkPolicy", "far", "shop")
            wait_for(lambda: not reaches(pod, FAR[0], world.far, 81), "a change after the restart")
            accepted.sendall(b"and still")
            assert client.recv(16) == b"and still"


def test_pods_that_may_change_their_network_are_refused_where_that_is_asked_for(world):
    world.agent.flags = ("--policy-net-admin=refuse",)
    files = world.agent.manifests
    files.pod("plain")
    context = {"capabilities": {"add": ["NET_ADMIN"]}}
    spec = {"nodeName": "n1", "containers": [{"name": "c", "securityContext": context}]}
    files.put("Pod", "mighty", "shop", spec=spec, status={"phase": "Pending"})
    world.agent.start()
    plain, mighty, unknown = (world.env.pod() for _ in range(3))
    world.agent.add(plain, "plain")
    code, answer = world.agent.call("ADD", mighty, world.agent.conf(), "mighty")
    assert (code, answer["code"]) == (1, 7)
    assert "shop/mighty" in answer["msg"]
    code, answer = world.agent.call("ADD", unknown, world.agent.conf(), "unknown")
    assert (code, answer["code"]) == (1, 11)
    assert mighty.run("nft list tables") == ""
    assert len(world.agent.records.all()) == 1


def test_pods_that_may_change_their_network_are_named_where_they_are_let_in(world):
    context = {"privileged": True}
    spec = {"nodeName": "n1", "containers": [{"name": "c", "securityContext": context}]}
    world.agent.manifests.put("Pod", "mighty", "shop", spec=spec, status={"phase": "Pending"})
    world.agent.start()
    assert world.agent.component.report.notes == ()
    pod = world.env.pod()
    world.agent.add(pod, "mighty")
    text = "these pods could undo their policies (CAP_NET_ADMIN): shop/mighty"
    wait_for(lambda: world.agent.component.report.notes == (text,), "a note")
    world.agent.call("DEL", pod, world.agent.conf())
    world.agent.settle()
    wait_for(lambda: world.agent.component.report.notes == (), "the note to go")


def test_what_pods_deny_is_counted(world):
    pod = isolated(world)
    assert not pings(pod, FAR[0], wait=0.2)
    assert not pings(world.far, pod.v4(), wait=0.2)
    found = {(item.policy, item.direction): item.packets for item in world.agent.component.gate.denied()}
    assert found["NetworkPolicy shop/all", "egress"] == 1
    assert found["NetworkPolicy shop/all", "ingress"] == 1


def test_nothing_of_ours_is_left_in_a_pod_that_is_detached(world):
    pod = isolated(world)
    code, answer = world.agent.call("DEL", pod, world.agent.conf(), "web")
    assert (code, answer) == (0, None)
    world.agent.settle()
    assert pod.run("nft list tables") == ""
    assert [link["ifname"] for link in json.loads(pod.run("ip -j link"))] == ["lo"]


def leg_of(pod: Any) -> str:
    return next(
        link["ifname"] for link in json.loads(pod.run("ip -j link")) if link["ifname"].startswith("leg")
    )


def test_the_leg_is_no_way_round_policies(world):
    files = world.agent.manifests
    files.pod("db", app="db")
    pod = isolated(world)
    db = world.env.pod()
    world.agent.add(db, "db")
    leg = leg_of(pod)
    for target, server in ((PEER[0], world.peer), (db.v4(), db)):
        pod.run(f"ip route add {target}/32 via 169.254.1.1 dev {leg} onlink")
        assert not reaches(pod, target, server)
    files.policy("out", policyTypes=["Egress"], egress=[{"to": [{"ipBlock": {"cidr": f"{PEER[0]}/32"}}]}])
    wait_for(lambda: reaches(pod, PEER[0], world.peer), "the node to forward what is allowed")
    assert not reaches(pod, db.v4(), db)


def test_a_pod_cannot_send_as_somebody_else_by_its_leg(world):
    world.agent.manifests.pod("web", app="web")
    world.agent.start()
    pod = world.env.pod()
    world.agent.add(pod, "web")
    leg = next(link for link in json.loads(pod.run("ip -j link")) if link["ifname"].startswith("leg"))
    mac = bytes.fromhex(leg["address"].replace(":", ""))
    gateway = next(
        bytes.fromhex(entry["lladdr"].replace(":", ""))
        for entry in json.loads(pod.run("ip -j neigh"))
        if entry["dst"] == "169.254.1.1"
    )
    raw = pod.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW))
    with hears(world.far) as wire, raw:
        raw.bind((leg["ifname"], 0))
        raw.send(udp_frame(mac, pod.v4(), gateway, FAR[0], b"honest"))
        assert heard(wire, b"honest", 5)
        raw.send(udp_frame(mac, PEER[0], gateway, FAR[0], b"leaked"))
        assert not heard(wire, b"leaked", 0.3)


def test_what_is_denied_inside_pods_is_told_live(world):
    pod = isolated(world)
    source = world.agent.component.gate.insides.drops()
    try:
        late = world.env.pod()
        world.agent.manifests.pod("late")
        world.agent.add(late, "late")
        for one in (pod, late):
            assert not pings(world.far, one.v4(), wait=0.2)
            (told,) = wait_for(source.read, "a denial to be told")
            assert (told.policy, told.direction) == ("NetworkPolicy shop/all", "ingress")
            assert (told.source, told.destination) == (ip_address(FAR[0]).packed, ip_address(one.v4()).packed)
        world.agent.call("DEL", late, world.agent.conf())
        assert source.lost == 0
    finally:
        source.close()
