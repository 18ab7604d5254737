"""Probing peers through the overlay, and finding a checksum offload that breaks packets inside VXLAN.

The fault is real: the two nodes are joined by a relay that copies frames and forgets what the kernel noted beside
them ("this checksum is still to be filled in"), which is what a network card with the fault does to inner packets.
"""

import asyncio
import os
import select
import socket
import struct
import threading
import time
from ipaddress import ip_address

import pytest

from pycni.agent.vtep_probe import Vtep, VtepProber
from pycni.agent.vtep_probe_end import ANSWER, ASK, Answers
from pycni.kernel import ethtool
from pycni.kernel import netns as namespaces
from pycni.model.family import Family
from tests.netns.fabric_nodes import FabricWorld, run, until

PACKET_IGNORE_OUTGOING, SOL_PACKET, ETH_P_ALL = 23, 263, 3


def sum16(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def with_outer_checksum(frame):
    """Fill in the checksum of the outer UDP header, as a card does that gets that one right."""
    if frame[12:14] == b"\x86\xdd" and frame[20] == 17:
        start, addresses = 54, frame[22:54]
    elif frame[12:14] == b"\x08\x00" and frame[23] == 17:
        start, addresses = 34, frame[26:34]
    else:
        return frame
    udp = frame[start : start + 6] + b"\0\0" + frame[start + 8 :]
    checksum = ~sum16(addresses + struct.pack(">IxxxB", len(udp), 17) + udp) & 0xFFFF or 0xFFFF
    return frame[: start + 6] + struct.pack(">H", checksum) + frame[start + 8 :]


class FaultyWire(FabricWorld):
    """A world of two nodes joined by the relay instead of the switch."""

    def __init__(self, families):
        super().__init__(families)
        self._stop = threading.Event()
        self._sockets = []
        self._thread = threading.Thread(target=self._relay)
        self.drop = lambda frame: False

    def plug(self, node, port=""):
        port = f"p{node.number}"
        run(self.switch, f"ip link add {port} type veth peer name eth0 netns /run/netns/{node.name}")
        run(self.switch, f"ip link set {port} up promisc on")
        self.address(node, node.number)
        node("ip link set eth0 up")
        fd = namespaces.open_netns(namespaces.path(self.switch))
        try:
            made = namespaces.run_in(
                fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            )
            made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            namespaces.run_in(fd, lambda: made.bind((port, ETH_P_ALL)))
        finally:
            os.close(fd)
        self._sockets.append(made)
        if len(self._sockets) == 2:
            self._thread.start()

    def _relay(self):
        one, two = self._sockets
        other = {one: two, two: one}
        while not self._stop.is_set():
            for ready in select.select([one, two], [], [], 0.1)[0]:
                frame = ready.recv(65536)
                if not self.drop(frame):
                    other[ready].send(with_outer_checksum(frame))

    def close(self):
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for made in self._sockets:
            made.close()
        super().close()


def fast(component):
    probes = component.probes
    probes._timeout_s, probes._first_s, probes._interval_s = 0.15, 0.05, 0.1


def offload(node, device):
    fd = namespaces.open_netns(namespaces.path(node.name))
    try:
        return namespaces.run_in(fd, lambda: ethtool.tx_checksum(device))
    finally:
        os.close(fd)


def pair(world):
    nodes = [world.node(1), world.node(2)]
    agents = [node.start(flags={"vtep_probe_port": "8473"}, tune=fast) for node in nodes]
    until(lambda: all(agent.well() for agent in agents))
    return nodes, agents


def state(agent, number=2, families="4"):
    """Results for the other node: {family digit: reachable}."""
    return {
        "4" if family is Family.V4 else "6": probe.reachable
        for (name, family), probe in agent.component.probes.peers.items()
        if name.startswith((f"10.5.{number}.0", "0.0.0.0-0"))
    }


@pytest.mark.parametrize("families", ["4", "46"])
def test_a_healthy_offload_is_left_on_and_peers_are_known_to_be_reachable(families):
    world = FabricWorld(families)
    try:
        (one, _), (agent, _) = pair(world)
        until(lambda: state(agent) == dict.fromkeys(families, True))
        probes = agent.component.probes
        assert all(probe.rtt_s > 0 for probe in probes.peers.values())
        assert probes.faults == 0
        assert offload(one, "flannel.1")
        world.cluster.delete(f"10.5.2.0-24{'&fd00:5:0:2::-64' if '6' in families else ''}")
        until(lambda: not probes.peers)
    finally:
        world.close()


@pytest.mark.parametrize(("families", "device"), [("4", "flannel.1"), ("6", "flannel-v6.1")])
def test_an_offload_that_breaks_inner_checksums_is_proven_and_switched_off_for_good(families, device, caplog):
    world = FaultyWire(families)
    try:
        (one, two), agents = pair(world)
        until(lambda: all(agent.component.probes.faulty == {device} for agent in agents), seconds=15)
        assert not offload(one, device)
        assert not offload(two, device)
        assert (
            f"{device}: the network below computes checksums of packets inside VXLAN wrongly" in caplog.text
        )
        assert "pycni_checksum_faults_total 1" in agents[0].metrics.expose()
        target = "10.5.2.0" if families == "4" else "fd00:5:0:2::"
        with (
            two.socket(target, 4000) as receiver,
            one.socket("0.0.0.0" if families == "4" else "::") as sender,
        ):
            sender.sendto(b"with checksum", (target, 4000))
            assert receiver.recv(100) == b"with checksum"
        for agent in agents:
            agent.component.probes._interval_s = 1000  # from now on it is remembered, not found again
        time.sleep(0.8)
        one(f"ip link del {device}")
        until(lambda: device in one.tables() and not offload(one, device))
    finally:
        world.close()


def test_packets_without_checksum_lost_on_the_way_do_not_count_as_a_fault():
    """Both kinds lost: the peer is unreachable, the offload is not to blame."""
    world = FabricWorld("4")
    try:
        (one, two), (agent, other) = pair(world)
        until(lambda: state(agent) == {"4": True})
        two("ip link set eth0 down")
        until(lambda: state(agent) == {"4": False})
        assert agent.component.probes.faults == 0
        assert offload(one, "flannel.1")
        assert 'pycni_fabric_probed_peers{state="unreachable"} 1' in agent.metrics.expose()
        two("ip link set eth0 up")
        until(lambda: state(agent) == {"4": True})
        other.stop()
        until(lambda: state(agent) == {"4": False})
    finally:
        world.close()


def test_a_peer_that_does_not_answer_from_the_start_is_silent_not_unreachable():
    world = FabricWorld("4")
    try:
        one, two = world.node(1), world.node(2)
        agent = one.start(flags={"vtep_probe_port": "8473"}, tune=fast)
        two.start()
        until(lambda: state(agent) == {"4": None})
        assert agent.component.probes.faults == 0
    finally:
        world.close()


def test_an_offload_whose_switching_off_does_not_help_is_switched_on_again():
    """Somebody drops every datagram that has a checksum: it looks like the fault and is none."""
    world = FabricWorld("4")
    try:
        (one, two), (agent, _) = pair(world)
        until(lambda: state(agent) == {"4": True})
        two(
            "nft add table inet picky { chain c { type filter hook input priority 0 ; udp dport 8473 udp checksum != 0 drop ; } ; }"
        )
        until(lambda: agent.component.probes._innocent == {"flannel.1"}, seconds=10)
        assert offload(one, "flannel.1")
        assert agent.component.probes.faults == 0
        assert state(agent) == {"4": True}
    finally:
        world.close()


class Scripted:
    """A peer that answers as a function of (offload on, number of the round) says."""

    def __init__(self, rule):
        self.rule = rule
        self.on = True
        self.asked = 0
        self.switched = []

    async def ask(self, _address, _timeout_s):
        self.asked += 1
        checked, unchecked = self.rule(self.on, self.asked)
        return Answers(0.001 if checked else None, 0.001 if unchecked else None)

    async def switch(self, _device, on):
        self.switched.append(on)
        changed, self.on = self.on != on, on
        return changed


SCRIPTS = [
    pytest.param(lambda on, asked: (not on, True), [False, True, False], {"flannel.1"}, True, id="the fault"),
    pytest.param(lambda on, asked: (True, True), [], set(), True, id="all well"),
    pytest.param(lambda on, asked: (False, False), [], set(), True, id="unreachable"),
    pytest.param(lambda on, asked: (asked > 1, True), [], set(), True, id="one datagram lost"),
    pytest.param(
        lambda on, asked: (asked > 4, True), [False, True], set(), True, id="a coincidence while trying"
    ),
    pytest.param(lambda on, asked: (False, True), [False, True], set(), True, id="not the offload's fault"),
    pytest.param(lambda on, asked: (False, asked < 3), [], set(), True, id="the other one lost too"),
    pytest.param(lambda on, asked: (False, True), [False], set(), False, id="the offload was off already"),
]


@pytest.mark.parametrize(("rule", "switched", "faulty", "on"), SCRIPTS)
def test_only_a_loss_that_follows_the_offload_both_ways_is_its_fault(rule, switched, faulty, on):
    async def main():
        script = Scripted(rule)
        script.on = on
        prober = VtepProber(8473, script.switch)
        key = ("10.5.2.0-24", Family.V4)
        prober.update({Family.V4: Vtep("flannel.1", ip_address("10.5.1.0"))}, {key: ip_address("10.5.2.0")})
        prober._ends[Family.V4] = script
        await prober.probe(key)
        await prober.probe(key)
        return script, prober

    script, prober = asyncio.run(main())
    assert prober.faulty == faulty
    assert script.switched[: len(switched)] == switched
    assert script.on is (on and not faulty)


class Lonely:
    """A prober on loopback addresses of a namespace."""

    def __init__(self, netns, **options):
        run(netns, "ip link set lo up")
        self.switched = []
        self.answer = True

        async def switch(device, on):
            self.switched.append((device, on))
            return self.answer

        self.prober = VtepProber(8473, switch, timeout_s=0.1, first_s=0.01, interval_s=0.01, **options)


def in_namespace(netns, main):
    """Run a coroutine function on a loop whose thread is in the namespace; its result."""
    found = []

    def work():
        fd = namespaces.open_netns(namespaces.path(netns))
        try:
            namespaces.setns(fd)
        finally:
            os.close(fd)
        found.append(asyncio.run(main()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found[0]


def test_answers_go_to_vtep_addresses_of_peers_only_and_are_no_longer_than_the_question(netns):
    lonely = Lonely(netns)

    async def main():
        loop = asyncio.get_running_loop()
        peer = ("x", Family.V4)
        lonely.prober.update(
            {Family.V4: Vtep("flannel.1", ip_address("127.0.0.1"))}, {peer: ip_address("127.0.0.2")}
        )
        task = asyncio.create_task(lonely.prober.run())
        await asyncio.sleep(0.1)
        got = {}
        for source in ("127.0.0.2", "127.0.0.3"):
            for question in (ASK + b"12345678", ASK + b"too long 12345678", b"hello", b""):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
                    asking.setblocking(False)
                    asking.bind((source, 0))
                    asking.sendto(question, ("127.0.0.1", 8473))
                    try:
                        async with asyncio.timeout(0.1):
                            got[source, question] = await loop.sock_recv(asking, 100)
                    except TimeoutError:
                        pass
        task.cancel()
        return got

    got = in_namespace(netns, main)
    assert got == {("127.0.0.2", ASK + b"12345678"): ANSWER + b"12345678"}


def test_peers_are_asked_in_turn_new_ones_first(netns):
    lonely = Lonely(netns, first_peers=0, at_once=1)
    peers = {(f"p{number}", Family.V4): ip_address(f"127.0.0.{number}") for number in range(2, 5)}
    asked = []

    async def main():
        prober = lonely.prober
        prober.update({Family.V4: Vtep("flannel.1", ip_address("127.0.0.1"))}, peers)

        async def note(key):
            asked.append(key[0])
            if len(asked) == 4:
                prober.update(prober._own, {**peers, ("new", Family.V4): ip_address("127.0.0.9")})

        prober.probe = note
        task = asyncio.create_task(prober.run())
        while len(asked) < 8:
            await asyncio.sleep(0.01)
        task.cancel()

    in_namespace(netns, main)
    assert asked[:8] == ["p2", "p3", "p4", "p2", "new", "p3", "p4", "p2"]
