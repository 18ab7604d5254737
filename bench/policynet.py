"""Two nodes with pods on bridges, built by hand, under one policy data plane with so many rules.

    a, b -- cni0 (node n1) -- eth0 == eth0 (node n2) -- cni0 -- c         10.244.N.0/24, plain routes between the nodes

Each variant has namespaces of its own, and stays while variants take turns.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from bench.policychains import layout
from bench.policyshapes import ADDRESSES, NODES, cluster
from bench.viptime import CLIENT_CPU, SERVER_CPU
from pycni.kernel import netns
from pycni.policy import nft
from pycni.policy.base import LocalPod
from pycni.policy.engine import PolicyEngine
from tests.cni.node import ROOT
from tests.cni.runtimes import inside

PORT, ECHO_PORT, STREAM_PORT = 5000, 5001, 5002
PLAIN, NFTABLES, EBPF, IPTABLES = PLANES = ("plain", "nftables", "ebpf", "iptables+ipset")
_PORTS = itertools.count(6000)


def pinned(cpu: int) -> list[str]:
    """Words before a command that has a processor of its own, where there are two."""
    return ["taskset", "-c", str(cpu)] if (os.cpu_count() or 1) > 1 else []


def listening(pid: int, port: int) -> bool:
    """Whether anybody listens at that port in the network namespace of a process."""
    for name in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{name}", encoding="ascii") as table:
            for line in table:
                words = line.split()
                if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                    return True
    return False


class Times(NamedTuple):
    """Of one round."""

    us: float
    """Median microseconds."""
    rate: float
    """Per second."""


class PathNet:
    """One variant. Close it."""

    def __init__(self, prefix: str, plane: str, shape: str, count: int, target: str) -> None:
        """``target``: the pod that is measured, from ``a``: ``b`` or ``c``."""
        self.target = target
        self.plane, self.shape, self.count = plane, shape, count
        self._on_path = sorted({NODES["a"], NODES[target]})
        self._prefix = prefix
        self._stack = ExitStack()
        try:
            self._build()
            if plane == IPTABLES:
                self._iptables()
            elif plane != PLAIN:
                for node in self._on_path:
                    self._engine(node, fast=plane == EBPF)
            self._start(target, "serve", PORT)
            self._start(target, "serve", ECHO_PORT, "echo")
            self._timer = self._start("a", "client", ADDRESSES[target], PORT, ECHO_PORT)
            self._stack.enter_context(
                self._server(target, STREAM_PORT, "iperf3", "-s", "-p", str(STREAM_PORT))
            )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take everything away."""
        self._stack.close()

    def space(self, name: str) -> str:
        """The namespace of a node or pod."""
        return f"{self._prefix}{name}"

    # --- what is measured ----------------------------------------------------------------------------------------

    def times(self, what: str, seconds: float) -> Times:
        """``connect`` or ``ping``; see ``pathtime``."""
        assert self._timer.stdin is not None
        assert self._timer.stdout is not None
        self._timer.stdin.write(f"{what} {seconds}\n")
        self._timer.stdin.flush()
        return Times(**json.loads(self._timer.stdout.readline()))

    def round_trip(self) -> float:
        """Microseconds, median of a second of TCP ping-pong. A port of its own each time: it stays in TIME_WAIT."""
        for _ in range(5):
            port = next(_PORTS)
            ends = ["--tcp", "-i", ADDRESSES[self.target], "-p", str(port)]
            with self._server(self.target, port, "sockperf", "server", *ends):
                out = self._client("sockperf", "ping-pong", *ends, "-t", "1", "--full-rtt")
            found = re.search(r"percentile 50.000 =\s+([\d.]+)", out)
            if found:
                return float(found[1])
            # On a processor that others keep busy too few come back for it to judge.
        raise RuntimeError(out)

    def throughput(self) -> float:
        """Gbit/s of one stream of half a GiB."""
        ends = ["-c", ADDRESSES[self.target], "-p", str(STREAM_PORT)]
        out = self._client("iperf3", *ends, "-n", "512M", "-J")
        return float(json.loads(out)["end"]["sum_received"]["bits_per_second"]) / 1e9

    def _client(self, *command: str) -> str:
        done = subprocess.run(
            [*inside(self.space("a")), *pinned(CLIENT_CPU), *command],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(
                f"{self.plane} {self.count} {command}: {done.stdout[-500:]}{done.stderr[-500:]}"
            )
        return done.stdout

    @contextmanager
    def _server(self, pod: str, port: int, *command: str) -> Iterator[None]:
        """Until it is not needed; it listens at that port."""
        quiet = subprocess.DEVNULL
        words = [*inside(self.space(pod)), *pinned(SERVER_CPU), *command]
        with subprocess.Popen(words, stdout=quiet, stderr=quiet) as process:
            try:
                end = time.monotonic() + 10
                while not listening(process.pid, port):
                    if process.poll() is not None or time.monotonic() > end:
                        raise RuntimeError(f"{command} in {pod} does not listen at {port}")
                    time.sleep(0.01)
                yield
            finally:
                process.kill()

    def _start(self, pod: str, *words: str | int) -> subprocess.Popen[str]:
        """A process of ``pathtime``."""
        process = subprocess.Popen(
            [*inside(self.space(pod)), sys.executable, "-m", "bench.pathtime", *map(str, words)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for undo in (process.stdout.close, process.stdin.close, process.wait, process.kill):
            self._stack.callback(undo)
        if words[0] == "serve":
            assert process.stdout.readline() == "ready\n"
        return process

    # --- the network ---------------------------------------------------------------------------------------------

    def _build(self) -> None:
        for name in ("n1", "n2", *ADDRESSES):
            netns.create(self.space(name))
            self._stack.callback(netns.delete, self.space(name))
        self._ip("n1", f"link add eth0 type veth peer name eth0 netns {self.space('n2')}")
        for node, other in ((1, 2), (2, 1)):
            name = f"n{node}"
            self._ip(name, "link set lo up", f"addr add 192.168.90.{node}/24 dev eth0", "link set eth0 up")
            self._ip(
                name, "link add cni0 type bridge", f"addr add 10.244.{node}.1/24 dev cni0", "link set cni0 up"
            )
            self._ip(name, f"route add 10.244.{other}.0/24 via 192.168.90.{other}")
            # Bridged packets pass the IP hooks where a data plane wants it, and not where there is none.
            switches = "net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0"
            self._run(name, f"sysctl -qw {switches}")
        for pod, address in ADDRESSES.items():
            node = NODES[pod]
            self._ip(node, f"link add v{pod} type veth peer name eth0 netns {self.space(pod)}")
            self._ip(node, f"link set v{pod} master cni0 up")
            self._ip(pod, "link set lo up", f"addr add {address}/24 dev eth0", "link set eth0 up")
            self._ip(pod, f"route add default via {address.rpartition('.')[0]}.1")

    def _iptables(self) -> None:
        for node in self._on_path:
            text = layout(cluster(self.shape, self.count), node, "b" if node == NODES["b"] else "c")
            self._run(node, "sysctl -qw net.bridge.bridge-nf-call-iptables=1")
            self._run(node, "ipset restore", text.sets)
            self._run(node, "iptables-restore", text.chains)

    def _engine(self, node: str, *, fast: bool) -> None:
        fd = netns.open_netns(netns.path(self.space(node)))
        self._stack.callback(os.close, fd)
        plane = netns.run_in(fd, nft.make)
        self._stack.callback(plane.driver.close)
        path = None
        if fast:
            from pycni.policy.ebpf import fastpath

            path = netns.run_in(fd, lambda: fastpath.make(node, uplinks=("eth0",)))
            self._stack.callback(path.close)
            self._stack.callback(netns.run_in, fd, path.remove)
        engine = PolicyEngine(node, plane, path)
        netns.run_in(fd, lambda: engine.sync(cluster(self.shape, self.count)))
        if path is not None:
            if engine.aside:
                raise RuntimeError(f"the fast path stands aside: {engine.aside}")
            netns.run_in(fd, lambda: path.pods([self._local(pod) for pod in ADDRESSES if NODES[pod] == node]))

    def _local(self, pod: str) -> LocalPod:
        link = json.loads(self._run(pod, "ip -j link show dev eth0"))[0]
        packed = bytes(map(int, ADDRESSES[pod].split(".")))
        return LocalPod(f"bench/{pod}", f"v{pod}", bytes.fromhex(link["address"].replace(":", "")), (packed,))

    def _ip(self, name: str, *lines: str) -> None:
        for line in lines:
            subprocess.run(["ip", "-n", self.space(name), *line.split()], check=True)

    def _run(self, name: str, words: str, text: str | None = None) -> str:
        done = subprocess.run(
            [*inside(self.space(name)), *words.split()],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{words} in {name}: {done.stderr[-1000:]}")
        return done.stdout
