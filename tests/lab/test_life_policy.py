"""Whom a policy shuts never gets a byte through: not in its first moment, and not while the agent dies and comes back."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import msgspec
import pytest

from pycni.kernel import netns
from pycni.lab import topology
from pycni.lab.apply import Cluster
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.runtime import Attachment
from pycni.lab.topology import MANIFESTS, LabSpec
from tests.lab.policy_flood import MARK, PORT, Ear, Flood
from tests.netns import frames as f

from .conftest import unique_name
from .small_fabric import sh, until

ROUNDS, AT_ONCE = {"nftables": 7, "ebpf": 2}, 8
_NUMBERS = itertools.count(1)


def space(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def pod(namespace: str, name: str, node: str, **labels: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": {"pycni/listen": "off"},
        },
        "spec": {"nodeName": node, "containers": [{"name": "c"}]},
    }


def policy(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "shut"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], **spec},
    }


FRIENDS = [{"podSelector": {"matchLabels": {"role": "friend"}}}]
ISOLATED = policy("isolated", ingress=[{"from": FRIENDS}], egress=[{"to": FRIENDS}])
NEAR, FAR, HELD, FRIEND = "near.free", "far.free", "held.shut", "friend.shut"


class World:
    """Two nodes. near and far are free, on either node; those of "shut" talk with friends only, which held and friend are."""

    def __init__(self, plane: str) -> None:
        self.plane = plane
        self.lab = Lab.up(LabSpec(name=unique_name(), nodes=2, family="dual", pods=0, policy=plane))
        try:
            self.cluster = Cluster(self.lab)
            pods = [pod("free", "near", "node1"), pod("free", "far", "node2")]
            pods += [
                pod("shut", "held", "node1", role="friend"),
                pod("shut", "friend", "node2", role="friend"),
            ]
            self.apply(space("free"), space("shut"), ISOLATED, *pods)
            records = self.lab.pods()
            self.spaces = {record.name: record.namespace for record in records}
            self.ips = {record.name: record.ips for record in records}
            self.macs = {record.name: self.mac(record.namespace, "eth0") for record in records}
            self.gateway = self.mac(self.lab.node("node1").namespace, "cni0")
            self._log_at = 0
            if plane == "ebpf":
                until(lambda: SAYS[plane] in self.said_since(), self.said_since, 15)
        except BaseException:
            self.lab.down()
            raise

    def apply(self, *values: dict[str, Any]) -> None:
        self.cluster.apply([("the test", value) for value in values])

    @staticmethod
    def mac(namespace: str, device: str) -> bytes:
        fd = netns.open_netns(netns.path(namespace))
        try:
            sock = netns.run_in(fd, lambda: f.wire(device))
        finally:
            os.close(fd)
        with sock:
            return bytes(sock.getsockname()[4])

    def frames(self, source: bytes, target: bytes, ends: Sequence[tuple[str, str]]) -> list[bytes]:
        """Datagrams between addresses, as frames between MACs."""
        return [f.ether(target, source, f.ip(*end, f.UDP, f.udp(PORT, MARK))) for end in ends]

    @contextlib.contextmanager
    def flooded(self) -> Iterator[None]:
        """near and far flood held, and held them, and nothing comes through; what is allowed loses no packet."""
        with contextlib.ExitStack() as exits:
            ears = {name: exits.enter_context(Ear(self.spaces[name])) for name in (HELD, NEAR, FAR)}
            with contextlib.ExitStack() as streaming:
                allowed = [(FRIEND, ip) for ip in self.ips[HELD]] + [(NEAR, ip) for ip in self.ips[FAR]]
                streams = [streaming.enter_context(self.lab.traffic(*way)) for way in allowed]
                with contextlib.ExitStack() as flooding:
                    floods = [Flood(self.spaces[name], self.ips[HELD]) for name in (NEAR, FAR)]
                    floods.append(Flood(self.spaces[HELD], [*self.ips[NEAR], *self.ips[FAR]]))
                    for flood in floods:
                        flooding.enter_context(flood)
                    yield
            assert {name: ear.heard() for name, ear in ears.items()} == dict.fromkeys(ears, 0)
        reports = [stream.report() for stream in streams]
        assert [report.lost for report in reports] == [0] * len(reports), reports
        assert min(report.sent for report in reports) > 50
        sent = [flood.sent for flood in floods]
        assert min(count for counts in sent for count in counts.values()) > 100, sent

    def start_agent(self, plane: str = "") -> None:
        """Start node1's agent without waiting for it, with another data plane if told so."""
        node = self.lab.node("node1")
        node.spec = msgspec.structs.replace(node.spec, policy=plane or self.plane)
        self._log_at = len(node.log.read_text())
        self.lab._remember(node.name, node.start())

    def kill_agent(self) -> None:
        self.lab.signal_agent("node1", signal.SIGKILL)

    def wait_ready(self) -> None:
        node = self.lab.node("node1")
        until(lambda: node.readiness().ready, lambda: node.readiness().reason, 20)

    def said_since(self) -> str:
        """What the agent has said since it was started last."""
        return self.lab.node("node1").log.read_text()[self._log_at :]


@pytest.fixture(scope="module", params=ROUNDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    made = World(request.param)
    yield made
    made.lab.down()


class Newcomer:
    """A pod to be on node1: its namespace, MAC and addresses are there before its ADD. A context manager."""

    def __init__(self, world: World, namespace: str, *, known: bool = True, ips: Sequence[str] = ()) -> None:
        """``known``: its object is there before it."""
        self._world = world
        number = next(_NUMBERS)
        self._name = f"new{number}"
        self._pod = topology.pod_name(namespace, self._name)
        self.space = topology.pod_namespace(world.lab.spec.name, self._pod)
        self.mac = b"\x02\xaa\0\0" + number.to_bytes(2, "big")
        four, six = world.ips[NEAR]
        self.ips = tuple(ips) or (
            f"{four.rpartition('.')[0]}.{100 + number}",
            f"{six.rpartition(':')[0]}:{0x100 + number:x}",
        )
        if known:
            world.cluster.announce(pod(namespace, self._name, "node1"), "node1")
        self._known = known
        args = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": namespace, "K8S_POD_NAME": self._name}
        self._attachment = Attachment(
            f"{world.lab.spec.name}-{self._name}",
            netns.create(self.space),
            cni_args=args,
            capability_args={"ips": list(self.ips), "mac": self.mac.hex(":")},
        )
        self.ear = Ear(self.space)
        frames = []
        for target, mac in ((NEAR, world.macs[NEAR]), (FAR, world.gateway)):
            frames += world.frames(self.mac, mac, list(zip(self.ips, world.ips[target], strict=True)))
        self.flood = Flood(self.space, [*world.ips[NEAR], *world.ips[FAR]], frames)

    def __enter__(self) -> Self:
        """It floods near and far as soon as it can, with datagrams and with frames of its own."""
        self.flood.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.flood.__exit__(None, None, None)
        self.ear.__exit__()
        self._world.lab.node("node1").runtime().delete(self._attachment)
        netns.delete(self.space)
        if self._known:
            self._world.cluster.leaving(self._pod)

    def add(self) -> None:
        self._world.lab.node("node1").runtime().add(self._attachment)


def test_a_pod_is_shut_from_its_first_moment_on(world: World) -> None:
    """Programs that flood from before ADD, at both ends: not one packet passes in 56 ADDs (16 with eBPF)."""
    with contextlib.ExitStack() as exits:
        ears = {name: exits.enter_context(Ear(world.spaces[name])) for name in (NEAR, FAR)}
        pool = exits.enter_context(ThreadPoolExecutor(AT_ONCE))
        for turn in range(ROUNDS[world.plane]):
            some = [Newcomer(world, "shut", known=(turn + item) % 2 == 0) for item in range(AT_ONCE)]
            frames = [
                frame
                for new in some
                for frame in world.frames(
                    world.macs[NEAR], new.mac, list(zip(world.ips[NEAR], new.ips, strict=True))
                )
            ]
            ips = [ip for new in some for ip in new.ips]
            floods = [Flood(world.spaces[NEAR], ips, frames), Flood(world.spaces[FAR], ips)]
            try:
                for one in (*some, *floods):
                    one.__enter__()
                list(pool.map(Newcomer.add, some))
                time.sleep(0.05)
                heard = [new.ear.heard() for new in some]
            finally:
                for flood in (*floods, *(new.flood for new in some)):
                    flood.stop()
                list(pool.map(lambda one: one.__exit__(None, None, None), (*floods, *some)))
            about = f"of {(turn + 1) * AT_ONCE} pods"
            assert heard == [0] * AT_ONCE, about
            assert {name: ear.heard() for name, ear in ears.items()} == {NEAR: 0, FAR: 0}, about
            assert all(new.flood.sent["frames"] > 4 for new in some), [new.flood.sent for new in some]


def test_a_pod_that_is_free_is_heard_in_the_same_way(world: World) -> None:
    """So the silence above is the policies' doing."""
    with Ear(world.spaces[NEAR]) as near, Ear(world.spaces[FAR]) as far:
        new = Newcomer(world, "free")
        with Flood(world.spaces[NEAR], new.ips), Flood(world.spaces[FAR], new.ips), new:
            new.add()
            assert new.ear.hears()
            assert near.hears()
            assert far.hears()


def test_killed_and_started_the_agent_lets_nothing_through_and_breaks_nothing(world: World) -> None:
    with world.flooded():
        for pause in (0.0, 0.15, 0.4):
            world.kill_agent()
            time.sleep(0.05)
            world.start_agent()
            time.sleep(pause)
            world.kill_agent()
            world.start_agent()
            world.wait_ready()


def test_policies_are_replaced_without_a_moment_in_between(world: World) -> None:
    """Also when all that isolates a pod gets another name, and while others come and go."""
    friends = {"ingress": [{"from": FRIENDS}], "egress": [{"to": FRIENDS}]}
    with world.flooded():
        for turn in range(4):
            world.apply(
                policy(f"more{turn}", ingress=[{"from": FRIENDS, "ports": [{"port": turn + 1}]}], egress=[])
            )
            world.apply(policy(f"again{turn}", **friends))
            world.cluster.delete([Key("NetworkPolicy", "shut", "isolated")])
            world.apply(
                policy("isolated", ingress=[{"from": FRIENDS}] * (turn % 2 + 1), egress=[{"to": FRIENDS}])
            )
            world.cluster.delete(
                [Key("NetworkPolicy", "shut", f"{name}{turn}") for name in ("more", "again")]
            )
    world.apply(ISOLATED)


def test_a_switch_that_hides_bridged_packets_is_put_back(world: World) -> None:
    """Somebody loads other sysctls: pods of one node would reach each other whatever policies say."""
    name = world.lab.node("node1").namespace
    switches = [f"net.bridge.bridge-nf-call-{kind}" for kind in ("iptables", "ip6tables")]
    for switch in switches:
        sh(name, f"sysctl -qw {switch}=0")
    until(lambda: sh(name, f"sysctl -n {' '.join(switches)}").split() == ["1", "1"], seconds=15)


def test_what_checks_senders_is_put_back(world: World) -> None:
    name = world.lab.node("node1").namespace
    before = sh(name, "nft list table bridge pycni_guard | grep -c veth")
    sh(name, "nft delete table bridge pycni_guard")
    until(
        lambda: sh(name, "nft list table bridge pycni_guard 2>&1 | grep -c veth", ok=False) == before,
        seconds=10,
    )


SAYS = {"ebpf": "policies: ebpf judges", "nftables": "of an earlier fast path"}


def test_another_data_plane_takes_over_without_a_moment_in_between(world: World) -> None:
    with world.flooded():
        for plane in {"nftables": ("ebpf", "nftables"), "ebpf": ("nftables", "ebpf")}[world.plane]:
            world.kill_agent()
            world.start_agent(plane)
            world.wait_ready()
            until(lambda plane=plane: SAYS[plane] in world.said_since(), world.said_since, 15)


def test_a_start_without_objects_keeps_the_last_state(world: World) -> None:
    """As after a node's restart with the API away: pods on record stay as they were, a new one starts shut."""
    manifests = world.lab.state.folder / MANIFESTS
    away = manifests.with_name("away")
    with world.flooded():
        world.kill_agent()
        manifests.rename(away)
        try:
            world.start_agent()
            until(lambda: "CNI calls are served" in world.said_since())
            assert "no listing of" in world.lab.node("node1").readiness().reason
            new = Newcomer(world, "shut", known=False)
            with Flood(world.spaces[NEAR], new.ips), new:
                new.add()
                time.sleep(0.2)
                assert new.ear.heard() == 0
        finally:
            away.rename(manifests)
        world.wait_ready()


@pytest.mark.parametrize("family", [4, 6])
def test_who_gets_a_gone_pods_address_inherits_nothing(world: World, family: int) -> None:
    """near talked with a free pod; a shut one gets its address, and near goes on sending from the same socket."""
    fd = netns.open_netns(netns.path(world.spaces[NEAR]))
    try:
        client = netns.run_in(fd, lambda: datagrams(family, 7800))
    finally:
        os.close(fd)
    with client:
        old = Newcomer(world, "free")
        target = (old.ips[family == 6], 7801)
        with old:
            old.add()
            fd = netns.open_netns(netns.path(old.space))
            try:
                server = netns.run_in(fd, lambda: datagrams(family, 7801))
            finally:
                os.close(fd)
            with server:
                for _ in range(3):
                    client.sendto(b"?", target)
                    server.sendto(b"!", server.recvfrom(10)[1])
                    assert client.recv(10) == b"!"
        new = Newcomer(world, "shut", ips=old.ips)
        with new:
            new.add()
            for _ in range(20):
                client.sendto(MARK, target)
                time.sleep(0.005)
            assert new.ear.heard() == 0


def datagrams(family: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0" if family == 4 else "::", port))
    sock.settimeout(5)
    return sock
