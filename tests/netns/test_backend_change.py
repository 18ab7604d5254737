"""Changing the backend of a network of real agents under traffic: no packet is lost, nothing old is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import threading
import time

import pytest

from pycni.model.network import BackendConf
from tests.netns.fabric_nodes import FabricWorld, run, until
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
    """A datagram every 5 ms from every pod to every pod of another node, in every family; counts what is lost."""

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
        while not self._stop.wait(0.005):
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

    def __enter__(self) -> Mesh:
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

    @property
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
    world.cluster.set_conf(_with(world.cluster.conf, BackendConf(type=kind, **keys)))


def _with(network, backend):
    import msgspec

    return msgspec.structs.replace(network, backend=backend)


QUICK = {"linger_s": 0.3}


@worlds(("vxlan", "46"))
def test_a_change_of_backend_loses_no_packet(world):
    nodes, agents = joined(world, 1, 2, 3, **QUICK)
    for one in nodes:
        for two in nodes:
            for family in world.families if one is not two else ():
                until(lambda o=one, t=two, f=family: talk(o, t, f), f"{one.number} to {two.number}")
    with Mesh(nodes) as mesh:
        time.sleep(0.2)
        for kind in ("host-gw", "wireguard", "vxlan"):
            change(world, kind)
            finished(world, kind, *nodes)
            until(lambda: all(agent.well() for agent in agents), f"well with {kind}")
        time.sleep(0.2)
    assert min(mesh.sent.values()) > 50
    assert mesh.lost == {}
