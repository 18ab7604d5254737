"""Masquerading and the VXLAN guard, seen by the packets themselves."""

import itertools
import os
import struct
import threading
import time
from ipaddress import ip_network

import pytest

from pycni.backends.masq import Masquerade, VxlanGuard, delete_text, peers_text, table_text
from pycni.kernel import netns as namespaces
from pycni.kernel.nft import Nft
from pycni.model.family import Family
from tests.netns.fabric_nodes import FabricNode, FabricWorld, run, until
from tests.unit.fabric_world import lease

OUTSIDE = {"4": "192.0.2.100", "6": "2001:db8::64"}
EXCLUDED = {"4": "198.51.100.100", "6": "2001:db8:e::64"}
_PORTS = itertools.count(5000)


class Pod:
    """A namespace behind a node, addressed like a pod of it."""

    def __init__(self, node, last=9):
        self.name = f"{node.name}p{last}"
        self.addresses = {"4": f"10.5.{node.number}.{last}", "6": f"fd00:5:0:{node.number:x}::{last}"}
        namespaces.create(self.name)
        node(f"ip link add pod{last} type veth peer name eth0 netns /run/netns/{self.name}")
        node(f"ip addr add 169.254.1.1/32 dev pod{last}")
        node(f"ip addr add fe80::1/64 dev pod{last} nodad")
        node(f"ip link set pod{last} up")
        run(self.name, "sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
        run(self.name, "ip link set eth0 up")
        run(self.name, "ip link set lo up")
        run(self.name, f"ip addr add {self.addresses['4']}/32 dev eth0")
        run(self.name, f"ip addr add {self.addresses['6']}/128 dev eth0 nodad")
        run(self.name, "ip route add default via 169.254.1.1 dev eth0 onlink")
        run(self.name, "ip -6 route add default via fe80::1 dev eth0")
        node(f"ip route add {self.addresses['4']}/32 dev pod{last}")
        node(f"ip -6 route add {self.addresses['6']}/128 dev pod{last}")

    socket = FabricNode.socket


class Outside:
    """A host on the underlay that knows nothing of the fabric but a route to it by node 1."""

    def __init__(self, world):
        self.name = f"{world.prefix}out"
        self.number = 100
        namespaces.create(self.name)
        run(self.name, "sysctl -qw net.ipv6.conf.default.accept_dad=0")
        run(self.name, "ip link set lo up")
        world.plug(self, "out")
        run(self.name, f"ip addr add {EXCLUDED['4']}/32 dev lo")
        run(self.name, f"ip -6 addr add {EXCLUDED['6']}/128 dev lo")
        run(self.name, "ip route add 10.5.0.0/16 via 192.0.2.1")
        run(self.name, "ip -6 route add fd00:5::/48 via 2001:db8::1")

    def __call__(self, command):
        return run(self.name, command)

    socket = FabricNode.socket


class Scene:
    def __init__(self, world):
        self.one, self.two = world.node(1), world.node(2)
        self.pod, self.far, self.outside = Pod(self.one), Pod(self.two), Outside(world)
        for node in (self.one, self.two):
            node(f"ip route add {EXCLUDED['4']} via {OUTSIDE['4']}")
            node(f"ip -6 route add {EXCLUDED['6']} via {OUTSIDE['6']}")

    def close(self):
        for place in (self.pod, self.far, self.outside):
            namespaces.delete(place.name)

    def seen(self, sender, target, address, source=""):
        """(address, port kept) by which ``target`` sees a datagram to its ``address``, and that the answer returns."""
        port = next(_PORTS)
        with (
            target.socket(address, port) as receiver,
            sender.socket(source or ("::" if ":" in address else "0.0.0.0"), port) as asking,
        ):
            asking.sendto(b"?", (address, port))
            _, seen = receiver.recvfrom(10)
            receiver.sendto(b"!", seen)
            assert asking.recvfrom(10)[0] == b"!"
            return seen[0], seen[1] == port


def scene(request, **flags):
    world = FabricWorld("46")
    try:
        made = Scene(world)
        agents = [node.start(flags={"ip_masq": "true", **flags}) for node in (made.one, made.two)]
        until(lambda: all(agent.well() for agent in agents))
        for node, other in ((made.one, 2), (made.two, 1)):
            until(lambda node=node, other=other: f"fd00:5:0:{other}::/64" in node.tables())
        yield made
        made.close()
    finally:
        world.close()


@pytest.fixture(scope="module")
def masked(request):
    yield from scene(request, ip_masq_exclude="198.51.100.0/24,2001:db8:e::/48")


NODE = {"4": "192.0.2.1", "6": "2001:db8::1"}
VTEP = {"4": "10.5.1.0", "6": "fd00:5:0:1::"}


@pytest.mark.parametrize("family", ["4", "6"])
class TestMasquerade:
    def test_pods_reach_the_world_by_the_nodes_address(self, masked, family):
        address, _ = masked.seen(masked.pod, masked.outside, OUTSIDE[family])
        assert address == NODE[family]

    def test_source_ports_are_chosen_at_random(self, masked, family):
        kept = [masked.seen(masked.pod, masked.outside, OUTSIDE[family])[1] for _ in range(4)]
        assert not all(kept)

    def test_pods_see_each_others_addresses(self, masked, family):
        address, kept = masked.seen(masked.pod, masked.far, masked.far.addresses[family])
        assert (address, kept) == (masked.pod.addresses[family], True)

    def test_who_comes_in_to_a_local_pod_keeps_its_address(self, masked, family):
        address, kept = masked.seen(masked.outside, masked.pod, masked.pod.addresses[family])
        assert (address, kept) == (OUTSIDE[family], True)

    def test_who_is_sent_on_to_another_node_gets_its_answer_back_here(self, masked, family):
        address, _ = masked.seen(masked.outside, masked.far, masked.far.addresses[family])
        assert address == VTEP[family]

    def test_a_socket_of_the_node_bound_to_its_address_gets_its_answer_through_the_fabric(
        self, masked, family
    ):
        address, _ = masked.seen(masked.one, masked.far, masked.far.addresses[family], NODE[family])
        assert address == VTEP[family]

    def test_excluded_destinations_see_the_pod(self, masked, family):
        address, kept = masked.seen(masked.pod, masked.outside, EXCLUDED[family])
        assert (address, kept) == (masked.pod.addresses[family], True)

    def test_packets_marked_by_kube_proxy_are_left_to_it_whatever_else_is_marked(self, masked, family):
        masked.one("nft add table inet marker")
        masked.one("nft add chain inet marker c { type filter hook forward priority 0 ; }")
        masked.one("nft add rule inet marker c meta mark set 0x4001")
        try:
            address, _ = masked.seen(masked.pod, masked.outside, OUTSIDE[family])
        finally:
            masked.one("nft delete table inet marker")
        assert address == masked.pod.addresses[family]


def test_a_pod_cannot_pass_as_its_node_in_the_fabric(masked):
    """Masqueraded, a pod's VXLAN would come from a known node, with any source inside."""
    mac = next(
        line.split()[4] for line in masked.one.tables().splitlines() if line.startswith("flannel.1 mtu")
    )
    with masked.one.socket("10.5.1.0", 4789) as receiver, masked.far.socket() as sender:
        receiver.settimeout(0.3)
        sender.sendto(encapsulated(mac=mac), ("192.0.2.1", 8472))
        with pytest.raises(TimeoutError):
            receiver.recv(10)
    # Pods among each other may use the port, and so may the node.
    with (
        masked.pod.socket(masked.pod.addresses["4"], 8472) as receiver,
        masked.far.socket() as pod,
        masked.two.socket() as node,
    ):
        for sender in (pod, node):
            sender.sendto(b"?", (masked.pod.addresses["4"], 8472))
            assert receiver.recv(10) == b"?"


@pytest.fixture
def unmasked(request):
    yield from scene(request, ip_masq="false", ip_masq_fully_random_disable="true")


def test_without_ip_masq_nothing_is_masqueraded(unmasked):
    address, kept = unmasked.seen(unmasked.pod, unmasked.outside, OUTSIDE["4"])
    assert (address, kept) == (unmasked.pod.addresses["4"], True)
    assert "masquerade" not in unmasked.one("nft list ruleset")


@pytest.fixture
def world():
    made = FabricWorld()
    try:
        yield made
    finally:
        made.close()


def encapsulated(vni=1, mac="4a:67:ae:06:c5:53"):
    """A VXLAN datagram (RFC 7348 section 5) with a UDP packet to 10.5.1.0:4789 in it, checksums left out."""
    inner_udp = struct.pack(">HHHH", 1234, 4789, 9, 0) + b"x"
    length = 20 + len(inner_udp)
    header = struct.pack(
        ">BBHHHBBH4s4s", 0x45, 0, length, 0, 0, 64, 17, 0, bytes([10, 5, 2, 0]), bytes([10, 5, 1, 0])
    )
    total = sum(struct.unpack(">10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
    ethernet = bytes.fromhex(mac.replace(":", "")) + bytes(6) + b"\x08\x00"
    return struct.pack(">II", 0x08000000, vni << 8) + ethernet + header + inner_udp


def test_vxlan_is_accepted_from_known_nodes_only(world):
    node, foreign = world.node(1), world.node(66)
    agent = node.start()
    until(agent.well)
    mac = next(line.split()[4] for line in node.tables().splitlines() if line.startswith("flannel.1 mtu"))

    def arrives():
        with node.socket("10.5.1.0", 4789) as receiver, foreign.socket() as sender:
            receiver.settimeout(0.3)
            sender.sendto(encapsulated(mac=mac), ("192.0.2.1", 8472))
            try:
                return receiver.recv(10) == b"x"
            except TimeoutError:
                return False

    assert not arrives()
    world.cluster.put(lease(66))
    until(lambda: "10.5.66.0/24" in node.tables())
    assert arrives()
    world.cluster.delete("10.5.66.0-24")
    until(lambda: "10.5.66.0/24" not in node.tables())
    assert not arrives()
    assert "counter packets 2" in node("nft list chain inet pycni_fabric vxlan")


def test_vxlan_of_others_on_the_same_port_is_left_alone(world):
    node, foreign = world.node(1), world.node(66)
    agent = node.start()
    until(agent.well)
    node("ip link add other address 02:00:00:00:00:99 type vxlan id 99 dev eth0 dstport 8472 nolearning")
    node("ip addr add 10.5.1.0/32 dev other")
    node("ip link set other up")
    node("sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.other.rp_filter=0")
    with node.socket("10.5.1.0", 4789) as receiver, foreign.socket() as sender:
        sender.sendto(encapsulated(99, "02:00:00:00:00:99"), ("192.0.2.1", 8472))
        assert receiver.recv(10) == b"x"


def test_the_table_is_replaced_without_a_moment_in_between(netns):
    """Thousands of replacements under packets from a known node: none is dropped."""
    peers = [bytes([127, 0, 0, 1])]
    masq = [Masquerade(cluster=ip_network("10.5.0.0/16"), own=ip_network("10.5.1.0/24"))]
    text = table_text(masq, VxlanGuard(vni=1, port=8472, families=(Family.V4,)), peers)
    run(netns, "ip link set lo up")
    place = type("Place", (), {"name": netns, "socket": FabricNode.socket})()
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        nft = namespaces.run_in(fd, Nft)
    finally:
        os.close(fd)
    stop = threading.Event()
    sent = 0
    with nft, place.socket("127.0.0.1", 8472) as receiver, place.socket("127.0.0.1", 0) as sender:
        nft.run(text)

        def replace():
            while not stop.is_set():
                nft.run(text)

        thread = threading.Thread(target=replace)
        thread.start()
        payload = encapsulated()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            sender.sendto(payload, ("127.0.0.1", 8472))
            sent += 1
            assert receiver.recv(200) == payload
        stop.set()
        thread.join()
        nft.run(delete_text())
        nft.run(delete_text())
    assert sent > 100


def test_peers_are_elements_sorted_by_family():
    four, six = bytes([192, 0, 2, 1]), bytes.fromhex("20010db8" + "0" * 23 + "1")
    assert peers_text("add", [six, four]) == (
        "add element inet pycni_fabric vtep4 { 192.0.2.1 }\nadd element inet pycni_fabric vtep6 { 2001:db8::1 }\n"
    )
    assert peers_text("add", []) == ""
