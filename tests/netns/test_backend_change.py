"""Changing the backend of a network of real agents under traffic: no packet is lost, nothing old is left.

wireguard-go is a program that has to get its turn: what a queue in front of it had to drop on a busy machine is counted
by the kernel, and may be missing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import signal
import socket
import struct
import threading
import time
from typing import Self

import msgspec
import pytest

from pycni.model.network import BackendConf
from tests.netns.fabric_nodes import FabricWorld, until
from tests.netns.test_network_component import joined, pod, talk
from tests.netns.test_wireguard import inhabitants
from tests.unit.fabric_world import lease

DEVICES = {
    "vxlan": {"4": "flannel.1", "6": "flannel-v6.1"},
    "wireguard": {"4": "flannel-wg", "6": "flannel-wg-v6"},
    "host-gw": {},
    "udp": {"4": "flannel0", "6": "flannel0"},
}
EVERY = {name for devices in DEVICES.values() for name in devices.values()}
PORT = 4002


class Mesh:
    """A datagram every 20 ms from every pod to every pod of another node, in every family; counts what is lost."""

    def __init__(self, nodes) -> None:
        self._ends = [
            (node, family, node.socket(pod(node, family), PORT))
            for node in nodes
            for family in node.world.families
        ]
        self._targets = {
            one: [(two, pod(node, family)) for two, (node, family, _) in enumerate(self._ends)
                  if node is not self._ends[one][0] and family == self._ends[one][1]]
            for one in range(len(self._ends))
        }  # fmt: skip
        self.sent: dict[tuple[int, int], int] = {}
        self.got: dict[tuple[int, int], set[int]] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=target) for target in (self._send, self._receive)]

    def _send(self) -> None:
        number = 0
        while not self._stop.wait(0.02):
            for one, (_, _, sock) in enumerate(self._ends):
                for two, address in self._targets[one]:
                    with contextlib.suppress(OSError):  # counts as lost
                        sock.sendto(struct.pack("!III", one, two, number), (address, PORT))
                    self.sent[one, two] = number + 1
            number += 1

    def _receive(self) -> None:
        poll = select.epoll()
        by_fd = {sock.fileno(): sock for _, _, sock in self._ends}
        for fd in by_fd:
            poll.register(fd, select.EPOLLIN)
        with poll:
            while True:
                ready = poll.poll(0.3)
                if not ready and self._stop.is_set():
                    return
                for fd, _ in ready:
                    one, two, number = struct.unpack("!III", by_fd[fd].recv(100))
                    self.got.setdefault((one, two), set()).add(number)

    def __enter__(self) -> Self:
        for _, _, sock in self._ends:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for _, _, sock in self._ends:
            sock.close()

    def lost(self) -> dict[str, list[int]]:
        """Numbers that did not arrive, by pair."""
        found = {}
        for (one, two), sent in self.sent.items():
            missing = sorted(set(range(sent)) - self.got.get((one, two), set()))
            if missing:
                (here, family, _), (there, _, _) = self._ends[one], self._ends[two]
                found[f"{here.number} -> {there.number} ipv{family}"] = missing
        return found


@pytest.fixture
def world(request):
    made = FabricWorld(**getattr(request, "param", {}))
    try:
        yield made
    finally:
        for agent in (agent for node in made.nodes.values() for agent in node.agents):
            agent.stop()
        for node in made.nodes.values():
            for device in EVERY:
                node(f"ip link del {device}", ok=False)
            with contextlib.suppress(AssertionError):
                until(lambda node=node: not set(inhabitants(node.name)) - {os.getpid()}, "programs end")
            for pid in set(inhabitants(node.name)) - {os.getpid()}:
                os.kill(pid, signal.SIGKILL)
        made.close()


def worlds(*params):
    return pytest.mark.parametrize(
        "world",
        [pytest.param({"families": f, "kind": kind}, id=f"{kind} {f}") for kind, f in params],
        indirect=True,
    )


def acquainted(world, *numbers, strict=False, **options):
    """Nodes with agents, whose neighbours have been asked for."""
    if strict:
        plug = world.plug

        def plug_strictly(node, port="") -> None:
            plug(node, port)
            for name in ("all", "eth0", "default"):
                node(f"sysctl -qw net.ipv4.conf.{name}.rp_filter=1")

        world.plug = plug_strictly
    nodes, agents = joined(world, *numbers, **options)
    for one in nodes:
        for two in nodes:
            for family in world.families if one is not two else ():
                until(lambda o=one, t=two, f=family: talk(o, t, f), f"{one.number} to {two.number}", 20)
    return nodes, agents


def ways(world) -> list[str]:
    return [item.attrs.way for _, item in sorted(world.cluster.leases.items())]


def reached_by(world, kind) -> bool:
    return set(ways(world)) == {kind}


def devices(node) -> set[str]:
    return {line.split(":")[1].strip() for line in node("ip -o link show").splitlines()} & EVERY


def expected(world, kind) -> set[str]:
    return {DEVICES[kind][family] for family in world.families if DEVICES[kind]}


def finished(world, kind, *nodes) -> None:
    """Every node is reached by ``kind`` alone and has nothing else any more."""
    leases = world.cluster.leases
    until(
        lambda: all(item.attrs.types == (kind,) for item in leases.values()),
        lambda: f"{kind}: {[item.attrs.types for item in leases.values()]}",
        30,
    )
    for node in nodes:
        until(lambda node=node: devices(node) == expected(world, kind), f"devices of node {node.number}", 20)


def change(world, kind, **keys) -> None:
    backend = BackendConf(type=kind, **keys)
    world.cluster.set_conf(msgspec.structs.replace(world.cluster.conf, backend=backend))


def full_queues(node) -> int:
    """Packets the kernel had to drop in front of a program that was late, so far."""
    found = 0
    lines = [line.split() for line in node("cat /proc/net/snmp").splitlines()]
    for names, values in itertools.pairwise(lines):
        if names[0] == values[0] == "Udp:" and "RcvbufErrors" in names:
            found += int(values[names.index("RcvbufErrors")])
    six = dict(line.split() for line in node("cat /proc/net/snmp6").splitlines())
    found += int(six["Udp6RcvbufErrors"])
    for device in json.loads(node("ip -s -j link show")):
        if device["ifname"] in {"flannel-wg", "flannel-wg-v6", "flannel0"}:
            found += device["stats64"]["tx"]["dropped"]
    return found


QUICK = {"linger_s": 0.3}


@pytest.mark.parametrize("strict", [False, True], ids=["", "strict reverse paths"])
@worlds(("vxlan", "46"))
def test_a_change_of_backend_loses_no_packet(world, strict):
    nodes, agents = acquainted(world, 1, 2, 3, strict=strict, **QUICK)
    dropped = 0
    with Mesh(nodes) as mesh:
        time.sleep(0.2)
        for kind in ("host-gw", "wireguard", "vxlan"):
            change(world, kind)
            until(lambda kind=kind: reached_by(world, kind), f"{kind} in every lease", 30)
            dropped = max(dropped, sum(map(full_queues, nodes)))
            finished(world, kind, *nodes)
            until(lambda: all(agent.well() for agent in agents), f"well with {kind}")
        time.sleep(0.2)
    assert min(mesh.sent.values()) > 50
    lost = mesh.lost()
    assert sum(map(len, lost.values())) <= dropped, lost
    if strict:
        assert {node("sysctl -n net.ipv4.conf.eth0.rp_filter").strip() for node in nodes} == {"1"}


@pytest.mark.parametrize("kind", ["vxlan", "wireguard"])
@worlds(("host-gw", "4"))
def test_a_rolling_restart_changes_node_by_node_and_loses_no_packet(world, kind):
    nodes, agents = acquainted(world, 1, 2, flags={"follow_backend": "false"}, **QUICK)
    leases = world.cluster.leases
    with Mesh(nodes) as mesh:
        change(world, kind)
        until(lambda: all(item.attrs.types == ("host-gw", kind) for item in leases.values()), "readiness", 20)
        time.sleep(0.3)
        assert all(item.attrs.way == "host-gw" for item in leases.values())
        for number, (node, agent) in enumerate(zip(nodes, agents, strict=True), 1):
            agent.stop()
            again = node.start(flags={"follow_backend": "false"}, **QUICK)
            until(again.well, "well", 20)
            until(lambda n=number: ways(world) == [kind] * n + ["host-gw"] * (2 - n), f"{number} changed", 20)
        dropped = sum(map(full_queues, nodes))
        finished(world, kind, *nodes)
        time.sleep(0.1)
    lost = mesh.lost()
    assert sum(map(len, lost.values())) <= dropped, lost


@worlds(("vxlan", "4"))
def test_an_agent_that_is_down_is_waited_for_and_reached_the_old_way(world):
    (one, two), (agent, other) = acquainted(world, 1, 2, patience_s=0.5, **QUICK)
    other.stop()
    with Mesh([one, two]) as mesh:
        change(world, "host-gw")
        until(lambda: ways(world) == ["host-gw", "vxlan"], "patience", 20)
        until(lambda: "10.5.2.0/24 via 10.5.2.0 dev flannel.1" in one.tables(), "the old way to the other")
        again = two.start(patience_s=0.5, **QUICK)
        until(again.well, "well", 20)
        finished(world, "host-gw", one, two)
    assert agent.well()
    assert mesh.lost() == {}


@worlds(("vxlan", "4"))
def test_an_agent_killed_in_the_middle_goes_on_where_it_was(world):
    (one, two), (agent, _) = acquainted(world, 1, 2, patience_s=60, **QUICK)
    # A peer that never gets ready holds everybody in the middle.
    silent = lease(9)
    world.cluster.put(silent)
    with Mesh([one, two]) as mesh:
        change(world, "host-gw")
        until(
            lambda: all(
                i.attrs.types == ("vxlan", "host-gw")
                for k, i in world.cluster.leases.items()
                if k != silent.key
            ),
            "readiness",
            20,
        )
        agent.stop()
        again = one.start(patience_s=60, **QUICK)
        until(again.well, "well", 20)
        world.cluster.delete(silent.key)
        finished(world, "host-gw", one, two)
    assert mesh.lost() == {}


@worlds(("vxlan", "46"))
def test_a_backend_this_node_cannot_have_is_named_and_nothing_changes(world):
    (one, two), (agent, _) = acquainted(world, 1, 2, **QUICK)
    before = one.tables()
    change(world, "ipip")
    until(lambda: not agent.well(), "health")
    assert "Backend.Type='ipip': carries IPv4 only" in agent.health.reason()
    assert one.tables() == before
    assert ways(world) == ["vxlan", "vxlan"]
    change(world, "vxlan")
    until(agent.well, "well again")
    assert talk(one, two, "4")
    assert talk(two, one, "6")
