"""The namespaces of the rig: a node with pods, a second node, and the world outside.

    a, b, c --- cni0 [node] eth0 --- br0 [out: 192.0.2.9, 192.0.2.10, routes virtual addresses to the node]
                                      |
                                  [far: pods x and y, and every address outside services may name]

Everything has both families. ``far`` answers for the outer addresses as "elsewhere": what the node's data plane leaves
alone ends there, which is evidence where a timeout would be none. What comes from ``out`` to a virtual address passes
the node, as behind a router that was told so.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
from collections.abc import Iterator, Mapping

from pycni.kernel import netns
from pycni.model.kube import TCP, UDP
from tests.proxy.traffic import Listen

Pair = tuple[str, str]
"""An address of each family."""

NODE: Pair = ("192.168.0.1", "fd00:a::1")
SECOND: Pair = ("192.168.1.1", "fd00:b::1")
"""Another address of the node under test."""
BRIDGE: Pair = ("10.244.1.1", "fd00:244:1::1")
FAR: Pair = ("192.168.0.2", "fd00:a::2")
PODS: Mapping[str, Pair] = {
    "a": ("10.244.1.11", "fd00:244:1::11"),
    "b": ("10.244.1.12", "fd00:244:1::12"),
    "c": ("10.244.1.13", "fd00:244:1::13"),
}
REMOTE: Mapping[str, Pair] = {"x": ("10.244.2.11", "fd00:244:2::11"), "y": ("10.244.2.12", "fd00:244:2::12")}
OUTSIDE: Mapping[str, Pair] = {
    "out": ("192.0.2.9", "2001:db8:9::9"),
    "out2": ("192.0.2.10", "2001:db8:9::10"),
}
OUTER: Mapping[str, Pair] = {
    "lb": ("198.51.100.1", "fd00:51::1"),
    "lb2": ("198.51.100.2", "fd00:51::2"),
    "ext": ("203.0.113.1", "2001:db8::1"),
    "ext2": ("203.0.113.2", "2001:db8::2"),
    "stray": ("203.0.114.1", "2001:db8:0:1::1"),
}
"""Addresses services ask for from outside; ``stray`` is in no allowed range."""
SERVICE_PORTS = (80, 8080, 9090)
_OUT_BRIDGE: Pair = ("192.168.0.254", "fd00:a::fe")
_VIRTUAL = (
    ("10.96.0.0/16", "fd00:96::/112"), ("198.51.100.0/24", "fd00:51::/64"),
    ("203.0.112.0/20", "2001:db8::/63"), ("192.168.1.0/24", "fd00:b::/64"), ("10.244.1.0/24", "fd00:244:1::/64"),
)  # fmt: skip
_NUMBERS = itertools.count()


class Topology:
    """The namespaces, by role: node, far, out, a, b, c."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def path(self, role: str) -> str:
        """File of a namespace."""
        return netns.path(self.names[role])

    def netns_of(self, client: str) -> str:
        """File of the namespace a client is in."""
        if client in PODS or client == "node":
            return self.path(client)
        return self.path("out" if client in OUTSIDE else "far")

    def listeners(self, protocols: tuple[int, ...] = (TCP, UDP)) -> list[Listen]:
        """The servers of all hosts."""
        hosts = [(self.path(name), name, pair, SERVICE_PORTS) for name, pair in PODS.items() if name != "c"]
        hosts += [(self.path("far"), name, pair, SERVICE_PORTS) for name, pair in REMOTE.items()]
        hosts += [(self.path("far"), "elsewhere", pair, (80,)) for pair in OUTER.values()]
        hosts.append((self.path("node"), "host", NODE, (9090,)))
        return [
            Listen(path, name, address, port, protocol)
            for path, name, pair, ports in hosts
            for address in pair
            for port in ports
            for protocol in protocols
        ]


def source_of(client: str) -> Pair:
    """A client's own addresses; the node's when it is the node."""
    for table in (PODS, REMOTE, OUTSIDE, {"node": NODE, "far": FAR}):
        if client in table:
            return table[client]
    raise KeyError(client)


@contextlib.contextmanager
def topology(prefix: str = "") -> Iterator[Topology]:
    """Make everything; all of it is gone afterwards."""
    prefix = prefix or f"pyt{os.getpid()}x{next(_NUMBERS)}"
    names = {role: f"{prefix}{role}" for role in ("node", "far", "out", *PODS)}
    made: list[str] = []
    try:
        for name in names.values():
            netns.create(name)
            made.append(name)
        _wire(names)
        yield Topology(names)
    finally:
        for name in made:
            netns.delete(name)


def _wire(names: Mapping[str, str]) -> None:
    sysctl = (
        "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0"
        " net.ipv6.conf.all.accept_dad=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
        " net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0"
    )
    for name in names.values():
        _run(["nsenter", f"--net={netns.path(name)}", "sysctl", "-qw", *sysctl.split()])
        _batch(name, ["link set lo up"])
    links = [
        "link add cni0 type bridge",
        f"link add eth0 type veth peer name node netns {names['out']}",
    ]
    links += [f"link add p{pod} type veth peer name eth0 netns {names[pod]}" for pod in PODS]
    _batch(names["node"], links)
    _batch(names["far"], [f"link add eth0 type veth peer name far netns {names['out']}"])
    _batch(names["out"], _out())
    # It hands nothing on between others: what the node leaves alone must not come back to it.
    off = ["net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0"]
    _run(["nsenter", f"--net={netns.path(names['out'])}", "sysctl", "-qw", *off])
    _batch(names["node"], _node())
    _batch(names["far"], _far())
    for pod, pair in PODS.items():
        _batch(names[pod], _pod(pair))


def _node() -> list[str]:
    lines = ["link set cni0 up", "link set eth0 up"]
    for pod in PODS:
        lines += [f"link set p{pod} master cni0", f"link set p{pod} type bridge_slave hairpin on"]
        lines += [f"link set p{pod} up"]
    lines += _addresses("cni0", BRIDGE, (24, 64)) + _addresses("eth0", NODE, (24, 64))
    lines += _addresses("lo", SECOND, (32, 128))
    lines += _routes(("default", "default"), _OUT_BRIDGE)
    for pair in (("10.244.2.0/24", "fd00:244:2::/64"), *_VIRTUAL[1:3]):
        lines += _routes(pair, FAR)
    return lines


def _far() -> list[str]:
    lines = ["link set eth0 up", *_addresses("eth0", FAR, (24, 64))]
    for pair in (*REMOTE.values(), *OUTER.values()):
        lines += _addresses("lo", pair, (32, 128))
    lines += _routes(("default", "default"), _OUT_BRIDGE)
    for pair in (_VIRTUAL[0], *_VIRTUAL[3:]):
        lines += _routes(pair, NODE)
    return lines


def _out() -> list[str]:
    lines = ["link add br0 type bridge", "link set br0 up"]
    for port in ("node", "far"):
        lines += [f"link set {port} master br0", f"link set {port} up"]
    lines += _addresses("br0", _OUT_BRIDGE, (24, 64))
    for pair in OUTSIDE.values():
        lines += _addresses("lo", pair, (32, 128))
    lines += _routes(("10.244.2.0/24", "fd00:244:2::/64"), FAR)
    for pair in _VIRTUAL:
        lines += _routes(pair, NODE)
    return lines


def _pod(pair: Pair) -> list[str]:
    return ["link set eth0 up", *_addresses("eth0", pair, (24, 64)), *_routes(("default", "default"), BRIDGE)]


def _addresses(device: str, pair: Pair, lengths: tuple[int, int]) -> list[str]:
    return [
        f"addr add {pair[0]}/{lengths[0]} dev {device}",
        f"-6 addr add {pair[1]}/{lengths[1]} dev {device} nodad",
    ]


def _routes(pair: Pair, via: Pair) -> list[str]:
    return [f"route add {pair[0]} via {via[0]}", f"-6 route add {pair[1]} via {via[1]}"]


def _batch(name: str, lines: list[str]) -> None:
    # A batch has one family for all lines that do not say: IPv6 ones go second.
    for option, chosen in (
        ("-4", [line for line in lines if not line.startswith("-6 ")]),
        ("-6", [line[3:] for line in lines if line.startswith("-6 ")]),
    ):
        if chosen:
            _run(["ip", option, "-n", name, "-batch", "-"], "\n".join(chosen) + "\n")


def _run(words: list[str], text: str = "") -> None:
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}\n{text}")
