"""A client, a node and a server in three namespaces, to time connections and datagrams through a virtual address.

    client 10.128.0.2 -- node (the data plane under test) -- server: every endpoint of service 1, and 10.200.0.2

Everything is made for one variant (a data plane at a number of services) and stays while the variants take turns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import NamedTuple

from bench.proxyload import ENDPOINTS, TARGET_PORT, endpoint
from bench.socketplace import SocketPlace, socket_place
from pycni.kernel import netns
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

CLIENT = "10.255.0.2"
SERVER = "10.200.0.2"
"""No endpoint of any service: IPVS drops what goes directly to an endpoint from a port that is in use through a VIP."""


class Times(NamedTuple):
    """Of one round."""

    seconds: list[float]
    """Per connect(2); per datagram, one for each block of them."""
    rate: float
    """Connections per second, closing included; datagrams per second."""


class VipNode:
    """Three namespaces and a server process. Close it."""

    def __init__(self, name: str) -> None:
        self.node, self.client, self.server = f"{name}n", f"{name}c", f"{name}s"
        self._name = name
        self._cgroup = ""
        self._client: subprocess.Popen[str] | None = None
        self._made = ExitStack()
        try:
            for space in (self.node, self.client, self.server):
                netns.create(space)
                self._made.callback(netns.delete, space)
            self._link(self.client, "10.255.0.1/24", f"{CLIENT}/24")
            self._link(self.server, "10.200.0.1/24", f"{SERVER}/24")
            ends = [endpoint(1, index) for index in range(ENDPOINTS)]
            self.ip(self.server, *(f"addr add {end}/32 dev eth0" for end in ends))
            self.ip(self.node, "link set lo up", *(f"route add {end} via {SERVER}" for end in ends))
            self.run(self.node, "sysctl -qw net.ipv4.ip_forward=1")
            serving = self._start(self.server, "serve", str(TARGET_PORT))
            self._made.callback(serving.kill)
            assert serving.stdout is not None
            assert serving.stdout.readline() == "ready\n"
        except BaseException:
            self.close()
            raise

    def _link(self, space: str, near: str, far: str) -> None:
        leg = f"to-{space[-1]}"
        self.ip(
            self.node,
            f"link add {leg} type veth peer name eth0 netns {space}",
            f"addr add {near} dev {leg}",
            f"link set {leg} up",
        )
        self.ip(
            space,
            "link set lo up",
            f"addr add {far} dev eth0",
            "link set eth0 up",
            f"route add default via {near.partition('/')[0]}",
        )

    def _start(self, space: str, *words: str) -> subprocess.Popen[str]:
        """``bench.viptime`` inside a namespace; without site-packages, which take a guest long to look through."""
        command = [sys.executable, "-S", "-m", "bench.viptime", *words]
        return self._made.enter_context(
            subprocess.Popen(
                [*inside(space), *command], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        )

    def ip(self, space: str, *lines: str) -> None:
        """Commands of ip(8) inside a namespace."""
        subprocess.run(["ip", "-n", space, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    def run(self, space: str, words: str, text: str | None = None) -> str:
        """A command inside a namespace; its output."""
        done = subprocess.run(
            [*inside(space), *words.split()],
            input=text,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proxy"},
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(f"{words} in {space}: {done.stderr[-2000:]}")
        return done.stdout

    def time(
        self, what: str, through: tuple[str, int], direct: tuple[str, int], count: int
    ) -> tuple[Times, Times]:
        """Time ``connections`` or ``datagrams`` from the client through a virtual address and, in turns, to a direct one."""
        asking = self._client or self._start(self.client, "client", self._cgroup)
        self._client = asking
        assert asking.stdin is not None
        assert asking.stdout is not None
        print(what, *through, *direct, count, file=asking.stdin, flush=True)
        line = asking.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.client}: {what} to {through} or {direct} failed, see stderr")
        answer = json.loads(line)
        first, second = (
            Times([ns / 1e9 for ns in answer[way]["ns"]], count / answer[way]["seconds"])
            for way in ("through", "direct")
        )
        return first, second

    def use_sockets(self) -> SocketPlace:
        """Make what an eBPF data plane of this node's own needs; clients of virtual addresses are members. Before the first of them."""
        place = self._made.enter_context(socket_place(self._name))
        self._cgroup = place.cgroup
        return place

    def close(self) -> None:
        """Take everything away."""
        self._made.close()
