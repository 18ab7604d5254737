"""Laws of changing the backend: whatever the order in which nodes hear of each other, nobody sends what is not taken.

Nodes are the agent's own pure parts (course, plan, compiler) around one pretended etcd whose news they hear late and one
by one. After every single event each pair of nodes is checked in both directions, table against table.
"""

from ipaddress import IPv4Interface
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.agent.memory import Memory
from pycni.agent.network_course import CourseKeeper, netconfs
from pycni.agent.network_plan import NodeOptions, make_plan
from pycni.backends.compiler import FabricCompiler
from pycni.model.fabric import FabricState, VxlanLink, WireguardLink
from pycni.model.family import Family
from pycni.model.lease import Lease
from pycni.model.node import Underlay
from pycni.model.tables import FdbKey, NeighbourKey, RouteKey
from pycni.store import Store
from pycni.wire.lease import HeldLease, decode_attrs, encode_attrs
from tests.unit.fabric_world import conf, lease, wg_key

TYPES = ("vxlan", "host-gw", "wireguard", "ipip", "udp")
LINGER_S = 2.0
PATIENCE_S = 30.0


class Etcd:
    """The net-conf and the leases as they are."""

    def __init__(self, kind):
        self.conf = conf("4", kind)
        self.leases = {}


class Model:
    """A node: what it has heard, what is in its kernel, what its lease says."""

    def __init__(self, number, etcd, *, follow=True):
        self.number = number
        self.etcd = etcd
        self.follow = follow
        self.address = IPv4Interface(f"192.0.2.{number}/24")
        self.subnets = lease(number)
        self.kernel = FabricState()
        self.heard = etcd.conf
        self.memory = None
        self.attrs = None
        self.now = 0.0
        self.begin()

    def begin(self):
        """A new life: the kernel and the file stay."""
        self.store = Store()
        self.keeper = CourseKeeper(follow=self.follow, patience_s=PATIENCE_S, linger_s=LINGER_S)
        if self.memory is not None:
            self.keeper.resume(self.memory, self.attrs)
        self.keeper.start_with(self.etcd.conf)
        self.heard = self.etcd.conf

    @property
    def key(self):
        return self.subnets.key

    def hear_conf(self):
        self.heard = self.etcd.conf

    def hear_lease(self, key):
        if "lease" not in self.store.snapshot().listed:
            self.store.replace("lease", dict(self.etcd.leases))
        elif key in self.etcd.leases:
            self.store.put("lease", key, self.etcd.leases[key])

    def run(self):
        """One pass of the network component, and the publishing after it."""
        snapshot = self.store.snapshot()
        own = self.key if self.attrs is not None else ""
        course = self.keeper.step(self.heard, snapshot, own, self.now)
        held = Lease(subnet=self.subnets.subnet, attrs=self.attrs) if self.attrs is not None else None
        self.plan = plan = make_plan(
            NodeOptions(name=f"n{self.number}"),
            Underlay(name="eth0", mtu=1500, address=self.address, on_link=(self.address,)),
            self.heard,
            {"flannel.1": bytes([2, 0, 0, 0, 4, self.number])},
            held,
            wireguard_key=wg_key(self.number),
            course=course,
        )
        assert netconfs(self.heard, course)[0].backend.type == plan.conf.backend.type
        if held is not None and "lease" in snapshot.listed:
            self.memory = Memory(HeldLease(lease=held, expires=None), plan.conf, plan.others)
            compiler = FabricCompiler(plan.backend, plan.site)
            compiler.update(snapshot.of("lease"))
            self.kernel = compiler.state
            self.keeper.carried(plan, snapshot.of("lease"), (), self.now, ())
        self.publish(plan.attrs)

    def publish(self, attrs):
        self.attrs = decode_attrs("lease", encode_attrs(attrs))
        assert self.attrs == attrs
        self.etcd.leases[self.key] = Lease(subnet=self.subnets.subnet, attrs=attrs)


def taken(sender, receiver):
    """Why what the sender's kernel does with a packet for the receiver's pods does not arrive; "" when it does."""
    net = receiver.subnets.subnet
    key = RouteKey(Family.V4, 254, net.network_address.packed, 24, 0)
    route = sender.kernel.routes.get(key)
    if route is None:
        return "no route"
    far, near = receiver.address.ip.packed, sender.address.ip.packed
    if route.device == "eth0":
        return "" if route.gateway == far else "wrong gateway"
    device = receiver.kernel.links.get(route.device)
    if device is None or route.device not in sender.kernel.links:
        return f"{route.device} is not at both ends"
    if isinstance(device, VxlanLink):
        mac = sender.kernel.neighbours[NeighbourKey(route.device, route.gateway)].mac
        right = mac == device.mac and sender.kernel.fdb[FdbKey(route.device, mac)].remote == far
        return "" if right and near in receiver.kernel.vtep_peers else "VXLAN to the wrong one, or refused"
    if isinstance(device, WireguardLink):
        mine = (sender.subnets.subnet.network_address.packed, 24)
        peers = {k.public_key: peer for k, peer in receiver.kernel.wireguard.items()}
        theirs = {k.public_key: peer for k, peer in sender.kernel.wireguard.items()}
        known = wg_key(sender.number) in peers and mine in peers[wg_key(sender.number)].allowed
        right = wg_key(receiver.number) in theirs and theirs[wg_key(receiver.number)].endpoint == far
        return "" if known and right else "the WireGuard peers do not know each other"
    if route.device == "flannel0":
        return (
            ""
            if _endpoint(sender, receiver) == far and _endpoint(receiver, sender) == near
            else "no endpoint"
        )
    return "" if route.gateway == far else "wrong far end"


def _endpoint(here, there):
    """Where a node's forwarder has the other one's pods; whom it accepts follows from the same table."""
    found = [
        peer.endpoint
        for key, peer in here.kernel.udp.items()
        if key.network == there.subnets.subnet.network_address.packed
    ]
    return found[0] if found else None


class World:
    """Nodes that know each other and use ``kind``."""

    def __init__(self, kind, count=3, *, follow=True):
        self.etcd = Etcd(kind)
        self.nodes = [Model(number, self.etcd, follow=follow) for number in range(1, count + 1)]
        self.settle()

    def settle(self, rounds=12):
        """Let everybody hear everything until nothing changes any more."""
        for _ in range(rounds):
            for node in self.nodes:
                node.now += LINGER_S
                node.hear_conf()
                for other in self.nodes:
                    node.hear_lease(other.key)
                node.run()

    def check(self, what):
        for sender in self.nodes:
            for receiver in self.nodes:
                if sender is not receiver:
                    why = taken(sender, receiver)
                    assert not why, f"after {what}: {sender.number} -> {receiver.number}: {why}"

    def finished(self, kind):
        for node in self.nodes:
            assert node.attrs.types == (kind,), node.number
            assert set(node.kernel.links) == set(World._links(kind))
            assert (node.plan.conf.backend.type, node.plan.others) == (kind, ())

    @staticmethod
    def _links(kind):
        return {
            "vxlan": ["flannel.1"],
            "wireguard": ["flannel-wg"],
            "ipip": ["flannel.ipip"],
            "udp": ["flannel0"],
        }.get(kind, [])

    def do(self, action, a, b):
        node, other = self.nodes[a % len(self.nodes)], self.nodes[b % len(self.nodes)]
        if action == "conf":
            node.hear_conf()
        elif action == "lease":
            node.hear_lease(other.key)
        elif action == "pass":
            node.run()
        elif action == "time":
            node.now += 1.5
        elif action == "restart":
            node.begin()
        return f"{action} {node.number} {other.number}"


ACTIONS = ["conf", *["lease"] * 6, *["pass"] * 5, *["time"] * 2]
SEEDS = st.integers(0, 1 << 32)


def events(seed, count, *, restarts):
    """So many things that happen, by chance."""
    random = Random(seed)
    actions = [*ACTIONS, *["restart"] * restarts]
    for _ in range(count):
        yield random.choice(actions), random.randrange(3), random.randrange(3)


@settings(max_examples=60, deadline=None)
@given(before=st.sampled_from(TYPES), after=st.sampled_from(TYPES), seed=SEEDS, restarts=st.integers(0, 2))
def test_nobody_sends_what_is_not_taken_in_whatever_order_news_arrive(before, after, seed, restarts):
    world = World(before)
    world.check("joining")
    world.etcd.conf = conf("4", after)
    for event in events(seed, 150, restarts=restarts):
        world.check(world.do(*event))
    world.settle()
    world.check("settling")
    world.finished(after)


@settings(max_examples=25, deadline=None)
@given(before=st.sampled_from(TYPES), tried=st.sampled_from(TYPES), after=st.sampled_from(TYPES), seed=SEEDS)
def test_a_change_of_mind_in_the_middle_loses_nobody_once_all_have_heard(before, tried, after, seed):
    world = World(before)
    for kind in (tried, after):
        world.etcd.conf = conf("4", kind)
        for event in events(seed, 80, restarts=1):
            world.do(*event)
    world.settle()
    world.check("settling")
    world.finished(after)


@pytest.mark.parametrize("before", TYPES)
@pytest.mark.parametrize("after", TYPES)
def test_a_rolling_restart_changes_node_by_node(before, after):
    world = World(before, follow=False)
    world.etcd.conf = conf("4", after)
    world.settle()
    world.check("the net-conf")
    assert {node.attrs.backend_type for node in world.nodes} == {before}
    for number, node in enumerate(world.nodes, 1):
        node.begin()
        world.settle()
        world.check(f"restart of {number}")
        assert [each.attrs.backend_type for each in world.nodes] == [after] * number + [before] * (3 - number)
    world.finished(after)


def test_a_silent_peer_is_waited_for_so_long_only_and_reached_as_before():
    world = World("vxlan")
    silent = lease(9)
    world.etcd.leases[silent.key] = silent
    for node in world.nodes:
        node.hear_lease(silent.key)
    world.etcd.conf = conf("4", "wireguard")
    world.settle(6)
    assert {node.attrs.types for node in world.nodes} == {("vxlan", "wireguard")}
    for node in world.nodes:
        node.now += PATIENCE_S
    world.settle()
    world.check("patience")
    assert {node.attrs.types for node in world.nodes} == {("wireguard", "vxlan")}
    for node in world.nodes:
        assert node.kernel.routes[RouteKey(Family.V4, 254, bytes([10, 5, 9, 0]), 24, 0)].device == "flannel.1"
    del world.etcd.leases[silent.key]
    for node in world.nodes:
        node.store.replace("lease", dict(world.etcd.leases))
    world.settle()
    world.finished("wireguard")


def test_a_node_that_joins_in_the_middle_begins_with_the_new_backend():
    world = World("vxlan")
    world.etcd.conf = conf("4", "wireguard")
    world.nodes[0].begin()
    joining = Model(4, world.etcd)
    world.nodes.append(joining)
    world.settle()
    world.check("joining")
    world.finished("wireguard")
