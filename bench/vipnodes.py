"""A client, a node and a server in three namespaces, to time connections through a virtual address.

    client 10.128.0.2 -- node (the data plane under test) -- server: every endpoint of service 1, and 10.200.0.2

Everything is made for one variant (a data plane at a number of services) and stays while the variants take turns.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from typing import NamedTuple

from bench.proxyload import ENDPOINTS, TARGET_PORT, endpoint
from pycni.kernel import bpf_places, netns
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

CLIENT = "10.255.0.2"
SERVER = "10.200.0.2"
"""No endpoint of any service: IPVS drops what goes directly to an endpoint from a port that is in use through a VIP."""
_DETACH = 2
"""MNT_DETACH."""


class Times(NamedTuple):
    """Of one round of connections."""

    seconds: list[float]
    """Per connect(2)."""
    rate: float
    """Connections per second, closing included."""


class VipNode:
    """Three namespaces and a server process. Close it."""

    def __init__(self, name: str) -> None:
        self.node, self.client, self.server = f"{name}n", f"{name}c", f"{name}s"
        self.folder = f"/run/{name}-bpf"
        self.cgroup = ""
        self._made: list[str] = []
        self._serving: subprocess.Popen[str] | None = None
        try:
            for space in (self.node, self.client, self.server):
                netns.create(space)
                self._made.append(space)
                self.ip(space, "link set lo up")
            self._link(self.client, "10.255.0.1/24", f"{CLIENT}/24")
            self._link(self.server, "10.200.0.1/24", f"{SERVER}/24")
            for index in range(ENDPOINTS):
                self.ip(self.server, f"addr add {endpoint(1, index)}/32 dev eth0")
                self.ip(self.node, f"route add {endpoint(1, index)} via {SERVER}")
            self.run(self.node, "sysctl -qw net.ipv4.ip_forward=1")
            self._serving = subprocess.Popen(
                [*inside(self.server), sys.executable, "-m", "bench.viptime", "serve", str(TARGET_PORT)],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
            assert self._serving.stdout is not None
            assert self._serving.stdout.readline() == "ready\n"
        except BaseException:
            self.close()
            raise

    def _link(self, space: str, near: str, far: str) -> None:
        leg = f"to-{space[-1]}"
        self.ip(self.node, f"link add {leg} type veth peer name eth0 netns {space}")
        self.ip(self.node, f"addr add {near} dev {leg}")
        self.ip(self.node, f"link set {leg} up")
        self.ip(space, f"addr add {far} dev eth0")
        self.ip(space, "link set eth0 up")
        self.ip(space, f"route add default via {near.partition('/')[0]}")

    def ip(self, space: str, words: str) -> None:
        """An ip(8) command inside a namespace."""
        subprocess.run(["ip", "-n", space, *words.split()], check=True)

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

    def connect(self, through: tuple[str, int], direct: tuple[str, int], count: int) -> tuple[Times, Times]:
        """Time connections from the client through a virtual address and, in turns, to a direct one."""
        words = f"{through[0]} {through[1]} {direct[0]} {direct[1]} {count} {self.cgroup}"
        answer = json.loads(self.run(self.client, f"{sys.executable} -m bench.viptime pair {words}"))
        first, second = (
            Times([ns / 1e9 for ns in answer[way]["ns"]], count / answer[way]["seconds"])
            for way in ("through", "direct")
        )
        return first, second

    def use_sockets(self) -> None:
        """Make what an eBPF data plane of this node's own needs: a control group and a bpf file system."""
        self.cgroup = os.path.join(bpf_places.cgroup2(), self.node)
        os.mkdir(self.cgroup)
        os.mkdir(self.folder)

    def close(self) -> None:
        """Take everything away."""
        if self._serving is not None:
            self._serving.kill()
            self._serving.wait()
            assert self._serving.stdout is not None
            self._serving.stdout.close()
        if self.cgroup:
            ctypes.CDLL(None).umount2(self.folder.encode(), _DETACH)
            os.rmdir(self.folder)
            os.rmdir(self.cgroup)
            self.cgroup = ""
        for space in reversed(self._made):
            netns.delete(space)
        self._made.clear()
