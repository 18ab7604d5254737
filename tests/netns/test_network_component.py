"""The network component on the real kernel: joining, drift, restarts, changes of every input, leftovers."""

import contextlib
import logging
import socket
import threading
import time
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest

from pycni.agent.firewall import Firewall
from pycni.errors import KernelError
from pycni.model.network import BackendConf
from pycni.wire.subnetenv import decode_subnet_env
from tests.netns.fabric_nodes import FabricWorld, FakeSource, until
from tests.unit.fabric_world import lease

IP_MTU_DISCOVER, IP_PMTUDISC_DO, IPV6_MTU_DISCOVER = 10, 2, 23


@pytest.fixture
def world(request):
    made = FabricWorld(**getattr(request, "param", {}))
    try:
        yield made
    finally:
        made.close()


def worlds(*params, **more):
    """Parametrise the world: families and backend, e.g. "46 vxlan"."""
    values = []
    for param in params:
        families, kind, *flags = param.split()
        values.append(
            pytest.param({"families": families, "kind": kind, **dict.fromkeys(flags, True), **more}, id=param)
        )
    return pytest.mark.parametrize("world", values, indirect=True)


EVERY = ("4 vxlan", "6 vxlan", "46 vxlan", "46 vxlan direct_routing", "4 host-gw", "46 host-gw")


def pod(node, family):
    """An address of the node's pod subnet, put on its loopback: stands for a pod."""
    address = f"10.5.{node.number}.5" if family == "4" else f"fd00:5:0:{node.number:x}::5"
    node(
        f"ip addr replace {address}/32 dev lo"
        if family == "4"
        else f"ip addr replace {address}/128 dev lo nodad"
    )
    return address


def talk(here, there, family, size=100, *, deadline_s=1.0):
    """Send a datagram of ``size`` bytes (IP header included), unfragmented, pod to pod; whether it arrived."""
    source, target = pod(here, family), pod(there, family)
    payload = bytes(size - 8 - (20 if family == "4" else 40))
    with there.socket(target, 4000) as receiver, here.socket(source) as sender:
        if family == "4":
            sender.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        else:
            sender.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IP_PMTUDISC_DO)
        receiver.settimeout(deadline_s)
        try:
            sender.sendto(payload, (target, 4000))
            return receiver.recvfrom(65536)[0] == payload
        except (TimeoutError, OSError):
            return False


def joined(world, *numbers, **options):
    """Nodes with running agents that know each other."""
    nodes = [world.node(number) for number in numbers]
    agents = [node.start(**options) for node in nodes]
    until(lambda: all(agent.well() for agent in agents), "agents well")
    settled(*nodes)
    return nodes, agents


def settled(*nodes):
    """Every node has entries for every other one."""
    for node in nodes:
        for other in nodes:
            if other is not node:
                family = "10.5" if "4" in node.world.families else "fd00:5:0"
                prefix = (
                    f"{family}.{other.number}.0/24" if family == "10.5" else f"{family}:{other.number:x}::/64"
                )
                until(lambda prefix=prefix, node=node: prefix in node.tables(), f"{prefix} on {node.number}")


@worlds(*EVERY)
def test_nodes_join_and_pods_reach_each_other_with_full_mtu_packets(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    mtu = agent.component.podnet().mtu
    for family in world.families:
        until(lambda family=family: talk(one, two, family, mtu))  # neighbour discovery may lose the first one
        until(lambda family=family: talk(two, one, family, mtu))
    expected = (
        1500 if world.cluster.conf.backend.type == "host-gw" else 1430 if "6" in world.families else 1450
    )
    assert mtu == expected


@worlds("46 vxlan")
def test_a_node_is_ready_for_pods_and_says_so_in_subnet_env(world):
    (one, _), (agent, _) = joined(world, 1, 2)
    found = decode_subnet_env((one.folder / "run/subnet.env").read_text())
    # What only our own attachments need is not in the file: other plugins have no use for it.
    assert found == msgspec.structs.replace(agent.component.podnet(), exits=(), own=(), services=())
    assert [str(net) for net in found.subnets] == ["10.5.1.0/24", "fd00:5:0:1::/64"]
    assert one("sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding").split() == ["1", "1"]
    assert agent.component.not_ready_reason() == ""


@worlds("6 vxlan")
def test_ipv6_forwarding_does_not_stop_listening_to_routers(world):
    node = world.node(1)
    node("sysctl -qw net.ipv6.conf.eth0.accept_ra=1")
    agent = node.start()
    until(agent.well)
    assert node("sysctl -n net.ipv6.conf.eth0.accept_ra").strip() == "2"


DRIFTS = {
    "a route deleted": "ip route del 10.5.2.0/24",
    "a route changed": "ip route replace 10.5.2.0/24 dev flannel.1",
    "an IPv6 route deleted": "ip -6 route del fd00:5:0:2::/64",
    "a route of ours added": "ip route add 10.5.77.0/24 dev eth0 proto 112",
    "a route on our device added": "ip route add 10.5.78.0/24 dev flannel.1",
    "a neighbour deleted": "ip neigh del 10.5.2.0 dev flannel.1",
    "a neighbour changed": "ip neigh replace 10.5.2.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
    "an IPv6 neighbour deleted": "ip neigh del fd00:5:0:2:: dev flannel-v6.1",
    "a neighbour added": "ip neigh add 10.5.77.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
    "an FDB entry added": "bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 192.0.2.77 self permanent",
    "the device deleted": "ip link del flannel.1",
    "the IPv6 device deleted": "ip link del flannel-v6.1",
    "the device taken down": "ip link set flannel.1 down",
    "the device's address removed": "ip addr flush dev flannel.1",
    "an address added to the device": "ip addr add 10.9.9.9/32 dev flannel.1",
    "the device's MAC changed": "ip link set flannel.1 address 02:00:00:00:00:98",
    "the device's MTU changed": "ip link set flannel.1 mtu 1300",
}


@pytest.fixture(scope="module")
def drift_world():
    made = FabricWorld("46")
    try:
        yield made, joined(made, 1, 2)
    finally:
        made.close()


def fdb_drifts(tables):
    """Deleting and changing an FDB entry needs its MAC."""
    mac = next(line.split()[1] for line in tables.splitlines() if "dst 192.0.2.2" in line)
    return {
        "an FDB entry deleted": f"bridge fdb del {mac} dev flannel.1 dst 192.0.2.2 self",
        "an FDB entry changed": f"bridge fdb replace {mac} dev flannel.1 dst 192.0.2.66 self permanent",
    }


def repairs(agent):
    """Entries set right so far."""
    lines = agent.metrics.expose().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("pycni_fabric_repairs_total "))


@pytest.mark.parametrize("what", [*DRIFTS, "an FDB entry deleted", "an FDB entry changed"])
def test_drift_is_repaired_within_a_second(drift_world, what):
    _, ((one, two), (agent, _)) = drift_world
    until(agent.well)
    time.sleep(0.6)  # repairs keep a gap
    before = until(one.tables)
    repaired = repairs(agent)
    one((DRIFTS | fdb_drifts(before))[what])
    until(lambda: repairs(agent) > repaired and one.tables() == before, what, 1.0)
    assert talk(one, two, "4")


def test_a_foreign_route_in_the_way_is_named_left_alone_and_ours_is_back_when_it_goes(world):
    (one, _), (agent, _) = joined(world, 1, 2)
    world.cluster.put(lease(3))
    until(lambda: "10.5.3.0/24" in one.tables())
    time.sleep(0.6)
    one("ip route replace 10.5.2.0/24 via 192.0.2.77 dev eth0 proto static")
    until(lambda: not agent.well(), seconds=1)
    assert "10.5.2.0/24 via 192.0.2.77 dev eth0" in agent.health.reason()
    world.cluster.put(lease(4))
    until(lambda: "10.5.4.0/24" in one.tables())
    one("ip route del 10.5.2.0/24")
    until(lambda: "10.5.2.0/24 via 10.5.2.0 dev flannel.1" in one.tables(), seconds=1)
    until(agent.well)


FIREWALL_DRIFTS = {
    "ruleset flushed": "nft flush ruleset",
    "a rule added": "nft add rule inet pycni_fabric postrouting counter",
    "a peer removed": "nft delete element inet pycni_fabric vtep4 { 192.0.2.2 }",
    "a peer added": "nft add element inet pycni_fabric vtep4 { 192.0.2.66 }",
}


@pytest.mark.parametrize("what", FIREWALL_DRIFTS)
def test_a_changed_firewall_table_is_repaired_within_a_second(world, what):
    (one, _), _ = joined(world, 1, 2, flags={"ip_masq": "true"})

    def listed():
        return one("nft -s list ruleset")

    until(lambda: "192.0.2.2" in listed())
    time.sleep(0.4)
    before = listed()
    one(FIREWALL_DRIFTS[what])
    assert listed() != before
    until(lambda: listed() == before, "repair", 1.0)


def test_repairs_do_not_race_with_somebody_who_keeps_undoing_them(world):
    (one, _), (agent, _) = joined(world, 1, 2)
    runner = agent.component._runner
    time.sleep(0.6)
    first, end = runner.passes, time.monotonic() + 1.5
    while time.monotonic() < end:
        one("ip route del 10.5.2.0/24", ok=False)
        time.sleep(0.02)
    assert runner.passes - first < 12


def test_an_idle_agent_does_nothing(world):
    _, (agent, _) = joined(world, 1, 2)
    time.sleep(1.2)
    before = agent.component._runner.passes
    time.sleep(1.0)
    assert agent.component._runner.passes == before


class Stream:
    """Datagrams every 5 ms from one pod to another while the test does things; counts those that did not arrive."""

    def __init__(self, here, there, family="4"):
        self.receiver = there.socket(pod(there, family), 4001)
        self.sender = here.socket(pod(here, family))
        self.target = (pod(there, family), 4001)
        self.sent = 0
        self.got = set()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._send, self._receive)]

    def _send(self):
        while not self._stop.wait(0.005):
            with contextlib.suppress(OSError):  # counts as lost
                self.sender.sendto(self.sent.to_bytes(4, "big"), self.target)
            self.sent += 1

    def _receive(self):
        while True:
            try:
                self.got.add(int.from_bytes(self.receiver.recv(100), "big"))
            except TimeoutError:
                if self._stop.is_set():
                    return

    def __enter__(self):
        self.receiver.settimeout(0.3)
        for thread in self._threads:
            thread.start()
        time.sleep(0.1)
        return self

    def __exit__(self, *_):
        time.sleep(0.1)
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.sender.close()
        self.receiver.close()

    @property
    def lost(self):
        return self.sent - len(self.got)


@worlds("46 vxlan", "4 host-gw")
def test_an_agent_restarts_without_a_lost_packet(world):
    (one, two), (agent, _) = joined(world, 1, 2, flags={"ip_masq": "true"})
    before = one.tables()
    with Stream(one, two) as there, Stream(two, one) as back:
        agent.stop()
        time.sleep(0.2)
        again = one.start(flags={"ip_masq": "true"})
        until(again.well)
        time.sleep(0.4)
    assert there.sent > 100
    assert (there.lost, back.lost) == (0, 0)
    assert one.tables() == before


def test_nothing_is_removed_before_the_leases_were_listed(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    agent.stop()
    before = one.tables()
    source = FakeSource(world.cluster, 1)
    source.listing = False
    again = one.start(source=source)
    until(lambda: again.component.podnet() is not None)
    time.sleep(0.5)
    assert one.tables() == before
    assert talk(one, two, "4")
    assert "not listed" in again.health.reason()
    world.cluster.delete("10.5.2.0-24")
    source.listing = True
    source.wake()
    until(lambda: "10.5.2.0/24" not in one.tables())


def test_a_restarted_agent_serves_pods_while_etcd_is_away_and_the_lease_lasts(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    pods = agent.component.podnet()
    agent.stop()
    (one.folder / "run/subnet.env").unlink()
    source = FakeSource(world.cluster, 1)
    source.online = False
    again = one.start(source=source)
    until(lambda: again.component.podnet() == pods)
    assert (one.folder / "run/subnet.env").exists()
    assert again.component.not_ready_reason() == ""
    assert talk(one, two, "4")
    source.online = True
    until(again.well)
    assert source.acquired[0][1][0] == IPv4Network("10.5.1.0/24")
    assert source.acquired[0][2].lease.key == "10.5.1.0-24"


def test_a_lease_that_ended_is_not_used(world):
    (one,), (agent,) = joined(world, 1)
    agent.stop()
    source = FakeSource(world.cluster, 1)
    source.online = False
    again = one.start(source=source, clock=lambda: time.time() + 90000)
    time.sleep(0.4)
    assert again.component.podnet() is None
    assert again.component.not_ready_reason() == "the network is not ready: etcd does not answer"


def test_a_lease_that_ends_while_the_agent_runs_is_not_used_for_new_pods(world):
    now = [time.time()]
    node = world.node(1)
    agent = node.start(clock=lambda: now[0])
    until(agent.well)
    now[0] += 90000
    assert agent.component.podnet() is None
    assert agent.component.not_ready_reason().startswith("this node's lease has ended")


def test_a_lost_lease_ends_the_agent_and_is_forgotten(world):
    (one,), (agent,) = joined(world, 1)
    agent.source.lost = True
    agent.source.wake()
    until(lambda: agent.error is not None)
    assert "lease 10.5.1.0-24: taken by 192.0.2.99" in repr(agent.error)
    assert agent.component.podnet() is None
    assert not (one.folder / "state/lease.json").exists()


@worlds("46 vxlan", "4 host-gw")
def test_nodes_leave_come_back_with_another_subnet_and_change_their_address(world):
    (one, _), (_, agent) = joined(world, 1, 2)
    gone = agent.source.lease
    world.cluster.delete(gone.key)
    until(lambda: ".2.0/24" not in one.tables())
    kind = world.cluster.conf.backend.type
    other = lease(7, world.families, kind)
    world.cluster.put(other)
    until(lambda: "10.5.7.0/24" in one.tables())
    moved = msgspec.structs.replace(
        other, attrs=msgspec.structs.replace(other.attrs, public_ip=IPv4Address("192.0.2.88"))
    )
    world.cluster.put(moved)
    until(lambda: "192.0.2.88" in one.tables())
    assert "192.0.2.7\n" not in one.tables()


def test_vxlan_peers_that_change_their_mac_are_followed(world):
    (one,), _ = joined(world, 1)
    world.cluster.put(lease(7))
    until(lambda: "02:00:00:00:04:07" in one.tables())
    world.cluster.put(lease(7, backend_data=b'{"VNI":1,"VtepMAC":"02:00:00:00:04:aa"}'))
    until(lambda: "02:00:00:00:04:07" not in one.tables())
    assert one.tables().count("02:00:00:00:04:aa") == 2


@worlds("4 vxlan", "4 host-gw")
def test_the_nodes_own_address_changes(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    one("ip addr del 192.0.2.1/24 dev eth0")
    one("ip addr add 192.0.2.201/24 dev eth0")
    until(lambda: agent.source.lease.attrs.public_ip == IPv4Address("192.0.2.201"))
    until(lambda: "192.0.2.201" in two.tables() and talk(one, two, "4", deadline_s=0.1), seconds=8)
    assert talk(two, one, "4")
    assert agent.source.lease.key == "10.5.1.0-24"


def test_the_underlays_mtu_changes(world):
    (one, _), (agent, _) = joined(world, 1, 2)
    one("ip link set eth0 mtu 1400")
    until(lambda: "flannel.1 mtu 1350" in one.tables())
    until(lambda: agent.component.podnet().mtu == 1350)
    until(lambda: "FLANNEL_MTU=1350" in (one.folder / "run/subnet.env").read_text())
    one("ip link set eth0 mtu 1500")
    until(lambda: "flannel.1 mtu 1450" in one.tables())


@worlds("4 vxlan", "4 host-gw")
def test_the_underlay_interface_is_made_anew(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    before = one.tables()
    one("ip link del eth0")
    until(lambda: not agent.well())
    assert "eth0" in agent.health.reason()
    one.plug()
    until(lambda: one.tables() == before and agent.well(), seconds=8)
    until(lambda: talk(one, two, "4", deadline_s=0.1))


def test_what_an_earlier_configuration_left_is_swept_and_nothing_else(world):
    (one, _), (agent, _) = joined(world, 1, 2)
    one("ip link add other.1 type vxlan id 77 dev eth0 dstport 4789 local 192.0.2.1 nolearning")
    one("ip link set other.1 up")
    one("ip route add 10.77.0.0/16 dev other.1")
    one("ip route add 10.5.200.0/24 via 192.0.2.9")
    agent.stop()
    world.cluster.conf = msgspec.structs.replace(world.cluster.conf, backend=BackendConf(vni=5))
    again = one.start()
    until(again.well)
    until(lambda: "flannel.1" not in one("ip -o link"))
    assert "flannel.5" in one("ip -o link")
    assert "other.1" in one("ip -o link")
    assert "10.77.0.0/16 dev other.1" in one("ip route")
    assert "10.5.200.0/24 via 192.0.2.9" in one("ip route")


def test_the_backend_changes_from_vxlan_to_host_gw_and_back_while_running(world):
    (one, two), _ = joined(world, 1, 2)
    world.cluster.set_conf(msgspec.structs.replace(world.cluster.conf, backend=BackendConf(type="host-gw")))
    until(lambda: "10.5.2.0/24 via 192.0.2.2 dev eth0" in one.tables())
    until(lambda: "flannel" not in one("ip -o link") + two("ip -o link"))
    assert talk(one, two, "4", 1500)
    assert "vtep4" not in one("nft list ruleset")
    world.cluster.set_conf(msgspec.structs.replace(world.cluster.conf, backend=BackendConf()))
    until(lambda: "10.5.2.0/24 via 10.5.2.0 dev flannel.1" in one.tables())
    until(lambda: "10.5.1.0/24 via 10.5.1.0 dev flannel.1" in two.tables())
    assert talk(one, two, "4", 1450)


def test_the_own_subnet_changes_over_a_restart(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    agent.stop()
    world.cluster.delete("10.5.1.0-24")
    (one.folder / "state/lease.json").unlink()
    (one.folder / "run/subnet.env").unlink()
    source = FakeSource(world.cluster, 1)
    source.number = 50
    until(one.start(source=source).well)
    until(lambda: "flannel.1 10.5.50.0/32" in one.tables())
    assert "10.5.1.0" not in one.tables()
    until(lambda: "10.5.50.0/24" in two.tables())


def test_a_net_conf_that_moves_the_network_is_refused_until_a_restart(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    before = one.tables()
    world.cluster.set_conf(msgspec.structs.replace(world.cluster.conf, network=IPv4Network("10.6.0.0/16")))
    until(lambda: not agent.well())
    assert (
        "10.5.1.0/24 is not inside the cluster network 10.6.0.0/16; drain this node" in agent.health.reason()
    )
    assert one.tables() == before
    assert talk(one, two, "4")
    world.cluster.set_conf(msgspec.structs.replace(world.cluster.conf, network=IPv4Network("10.5.0.0/16")))
    until(agent.well)


def test_a_wrong_backend_type_is_named_and_the_fabric_stays(world):
    (one, _), (agent, _) = joined(world, 1, 2)
    before = one.tables()
    world.cluster.set_conf(msgspec.structs.replace(world.cluster.conf, backend=BackendConf(type="ipsec")))
    until(lambda: "Backend.Type='ipsec': expected one of vxlan, host-gw" in agent.health.reason())
    assert one.tables() == before


@worlds("4 host-gw")
def test_host_gw_names_a_peer_that_is_not_on_link_and_serves_the_others(world, caplog):
    caplog.set_level(logging.WARNING, "pycni.network")
    (one, _), (agent, _) = joined(world, 1, 2)
    world.cluster.put(lease(9, kind="host-gw", public_ip=IPv4Address("198.51.100.9")))
    until(lambda: not agent.well())
    assert agent.health.reason() == (
        "fabric: peer 10.5.9.0-24: 198.51.100.9 is not on a network of eth0: host-gw needs all nodes on one link"
    )
    world.cluster.put(lease(8, kind="host-gw"))
    until(lambda: "10.5.8.0/24 via 192.0.2.8" in one.tables())
    world.cluster.delete("10.5.9.0-24")
    until(agent.well)
    assert caplog.text.count("peer 10.5.9.0-24 (ipv4) is skipped") == 2  # once on each node


def test_a_public_ip_given_by_the_settings_is_published(world):
    node = world.node(1)
    agent = node.start(flags={"public_ip": "203.0.113.5"})
    until(agent.well)
    assert agent.source.lease.attrs.public_ip == IPv4Address("203.0.113.5")


def test_flannels_device_and_routes_are_taken_over_with_its_mac(world):
    node = world.node(1)
    node(
        "ip link add flannel.1 address 0e:2a:11:22:33:44 type vxlan id 1 dev eth0 local 192.0.2.1 dstport 8472 nolearning"
    )
    node("ip addr add 10.5.1.0/32 dev flannel.1")
    node("ip link set flannel.1 mtu 1450 up")
    node("ip neigh add 10.5.2.0 lladdr 02:00:00:00:04:02 dev flannel.1 nud permanent")
    node("bridge fdb add 02:00:00:00:04:02 dev flannel.1 dst 192.0.2.2 self permanent")
    node("ip route add 10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink")
    node("ip route add 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink")
    before = node("ip -o link show dev flannel.1").split(":")[0]
    world.cluster.put(lease(2))
    agent = node.start()
    until(agent.well)
    until(lambda: "10.5.2.0/24 via 10.5.2.0 dev flannel.1 onlink" in node.tables())
    assert "0e:2a:11:22:33:44" in agent.source.lease.attrs.backend_data.decode()
    assert node("ip -o link show dev flannel.1").split(":")[0] == before
    until(lambda: "10.5.3.0/24" not in node("ip route"))
    assert "alias pycni" in node("ip link show dev flannel.1")


def test_pods_are_masqueraded_before_any_peer_is_known_and_nobodys_vxlan_is_refused_yet(world):
    node = world.node(1)
    source = FakeSource(world.cluster, 1)
    source.listing = False
    agent = node.start(source=source, flags={"ip_masq": "true"})
    until(lambda: agent.component.podnet() is not None)
    assert "masquerade" in node("nft list ruleset")
    assert "vtep4" not in node("nft list ruleset")
    source.listing = True
    source.wake()
    until(lambda: "vtep4" in node("nft list ruleset"))


def test_masquerading_switched_off_is_taken_away_at_the_next_start(world):
    (one,), (agent,) = joined(world, 1, flags={"ip_masq": "true"})
    until(lambda: "masquerade" in one("nft list ruleset"))
    agent.stop()
    until(one.start().well)
    until(lambda: "masquerade" not in one("nft list ruleset"))


def test_files_that_cannot_be_written_turn_health_red_and_stop_nothing(world):
    node = world.node(1)
    (node.folder / "run").write_text("a file where a folder should be")
    agent = node.start()
    until(lambda: agent.component.podnet() is not None)
    until(lambda: "cannot be written" in agent.health.reason())
    world.cluster.put(lease(2))
    until(lambda: "10.5.2.0/24" in node.tables())


def test_a_firewall_that_cannot_be_set_up_keeps_no_peers_apart(world, monkeypatch):
    def refuse(*_):
        raise KernelError(1, "nft transaction", "inet pycni_fabric")

    monkeypatch.setattr(Firewall, "put", refuse)
    node = world.node(1)
    world.cluster.put(lease(2))
    agent = node.start()
    until(lambda: "10.5.2.0/24" in node.tables())
    until(lambda: "nft transaction inet pycni_fabric: EPERM" in agent.health.reason())
    monkeypatch.undo()
    until(agent.well)
    assert "vtep4" in node("nft list ruleset")
