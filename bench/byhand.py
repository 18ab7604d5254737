"""The lab's topology built by hand with ip(8) and bridge(8): the floor our network is compared with.

Two nodes on an isolated bridge, a pod bridge on each, pods on veths; between the nodes plain routes, VXLAN, ipip,
WireGuard (by ``wireguard-go``) or a tunnel over UDP in user space (by ``socat``); what leaves the pod network is
masqueraded, as on every cluster node (which makes the kernel track connections). ``pair`` is nothing but a cable.
Nothing here uses the project's code, so that it can serve as the yardstick.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

MTU = {"host-gw": 1500, "vxlan": 1450, "ipip": 1480, "wireguard": 1420, "udp": 1472}
"""Of pods."""
UNDERLAY = 1500


def _ip(namespace: str, *lines: str) -> None:
    done = subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"],
        input="\n".join(lines),
        text=True,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ip -n {namespace}: {done.stderr}")


MASQUERADE = (
    "add table ip nat; add chain ip nat post { type nat hook postrouting priority srcnat; }; "
    "add rule ip nat post ip saddr 10.77.0.0/16 ip daddr != 10.77.0.0/16 masquerade"
)


def _run(namespace: str, *command: str) -> str:
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} in {namespace}: {done.stderr}")
    return done.stdout


def _node(prefix: str, index: int, backend: str, more: int, *, masquerade: bool) -> None:
    node = f"{prefix}n{index}"
    subprocess.run(["ip", "netns", "add", node], check=True)
    _ip(
        f"{prefix}net",
        f"link add e{index} type veth peer name eth0 netns {node}",
        f"link set e{index} mtu {UNDERLAY + more} master underlay up",
    )
    _ip(
        node,
        f"link set eth0 mtu {UNDERLAY + more}",
        "link set lo up",
        f"addr add 192.168.77.{index}/24 dev eth0",
        "link set eth0 up",
    )
    bridge(node, f"10.77.{index}.1", MTU[backend] + more)
    _run(node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    if masquerade:
        _run(node, "nft", MASQUERADE)


def _host_gw(node: str, index: int, other: int, more: int) -> None:
    _ip(node, f"route add 10.77.{other}.0/24 via 192.168.77.{other}")


def _vxlan(node: str, index: int, other: int, more: int) -> None:
    _ip(
        node,
        f"link add flannel.1 address 02:00:00:00:00:0{index} type vxlan id 1 local 192.168.77.{index} "
        "dev eth0 dstport 8472 nolearning",
        f"addr add 10.77.{index}.0/32 dev flannel.1",
        f"link set flannel.1 mtu {MTU['vxlan'] + more} up",
        f"neigh add 10.77.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent",
        f"route add 10.77.{other}.0/24 via 10.77.{other}.0 dev flannel.1 onlink",
    )
    entry = f"02:00:00:00:00:0{other} dev flannel.1 dst 192.168.77.{other}"
    _run(node, "bridge", "fdb", "add", *entry.split(), "self", "permanent")


def _ipip(node: str, index: int, other: int, more: int) -> None:
    _ip(
        node,
        f"link add ipip0 type ipip local 192.168.77.{index} dev eth0",
        f"link set ipip0 mtu {MTU['ipip'] + more} up",
        f"addr add 10.77.{index}.0/32 dev ipip0",
        f"route add 10.77.{other}.0/24 via 192.168.77.{other} dev ipip0 onlink",
    )


def _udp(node: str, index: int, other: int) -> subprocess.Popen[bytes]:
    tunnel = f"TUN:10.77.{index}.0/32,tun-name=tun0,iff-no-pi,iff-up"
    ends = f"UDP-DATAGRAM:192.168.77.{other}:8285,bind=192.168.77.{index}:8285"
    program = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{node}", "--", "socat", "-b", "65536", tunnel, ends],
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 10
    while "tun0" not in _run(node, "ip", "-br", "link"):
        if time.monotonic() > end or program.poll() is not None:
            program.kill()
            program.wait()
            raise RuntimeError("socat made no device")
        time.sleep(0.02)
    _ip(node, f"link set tun0 mtu {MTU['udp']} up", f"route add 10.77.{other}.0/24 dev tun0")
    return program


def _wireguard(prefix: str, folder: Path) -> None:
    """Both nodes. The place of wireguard-go's sockets is each one's own; it ends when they are deleted."""
    keys = {}
    for index in (1, 2):
        private = subprocess.run(["wg", "genkey"], check=True, capture_output=True).stdout
        (folder / str(index)).write_bytes(private)
        public = subprocess.run(["wg", "pubkey"], input=private, check=True, capture_output=True).stdout
        keys[index] = public.decode().strip()
    os.makedirs("/var/run/wireguard", exist_ok=True)
    for index, other in ((1, 2), (2, 1)):
        place, node = folder / f"s{index}", f"{prefix}n{index}"
        place.mkdir()
        peer = f"peer {keys[other]} endpoint 192.168.77.{other}:51820 allowed-ips 10.77.{other}.0/24"
        script = (
            f"mount --bind {place} /var/run/wireguard && wireguard-go wg0 >/dev/null 2>&1 && "
            f"wg set wg0 listen-port 51820 private-key {folder}/{index} {peer}"
        )
        _run(node, "unshare", "--mount", "sh", "-c", script)
        _ip(node, f"link set wg0 mtu {MTU['wireguard']} up", f"route add 10.77.{other}.0/24 dev wg0")


KERNEL: Mapping[str, Callable[[str, int, int, int], None]] = {
    "host-gw": _host_gw,
    "vxlan": _vxlan,
    "ipip": _ipip,
}


def bridge(node: str, gateway: str, mtu: int) -> None:
    """Of a node's pods."""
    _ip(node, "link add cni0 type bridge", f"link set cni0 mtu {mtu} up", f"addr add {gateway}/24 dev cni0")


def pod(node: str, name: str, address: str, mtu: int) -> None:
    """A namespace on the bridge."""
    subnet, _, host = address.rpartition(".")
    subprocess.run(["ip", "netns", "add", name], check=True)
    _ip(
        node,
        f"link add v{host} mtu {mtu} type veth peer name eth0 netns {name} mtu {mtu}",
        f"link set v{host} master cni0 up",
    )
    _ip(
        name,
        "link set lo up",
        f"addr add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {subnet}.1",
    )


def remove(namespace: str) -> None:
    """A namespace and what still runs in it (wireguard-go), for that would keep it alive."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@contextmanager
def network(
    prefix: str, backend: str, *, masquerade: bool = True, more: int = 0
) -> Iterator[dict[str, tuple[str, str]]]:
    """Build it; yields pods as name -> (namespace, address): ``a`` and ``b`` on node 1, ``c`` on node 2.

    ``more``: bytes that a packet of the underlay may have beyond 1,500; those in user space have no use for them.
    """
    names = [f"{prefix}{name}" for name in ("p11", "p12", "p21", "n1", "n2", "net")]
    folder = mkdtemp(prefix="pyb")
    programs: list[subprocess.Popen[bytes]] = []
    try:
        subprocess.run(["ip", "netns", "add", f"{prefix}net"], check=True)
        _ip(f"{prefix}net", "link add underlay type bridge", "link set underlay up")
        for index in (1, 2):
            _node(prefix, index, backend, more, masquerade=masquerade)
        if backend == "wireguard":
            _wireguard(prefix, Path(folder))
        for index, other in ((1, 2), (2, 1)):
            if backend == "udp":
                programs.append(_udp(f"{prefix}n{index}", index, other))
            elif backend in KERNEL:
                KERNEL[backend](f"{prefix}n{index}", index, other, more)
        pods = {
            "a": (f"{prefix}p11", "10.77.1.2"),
            "b": (f"{prefix}p12", "10.77.1.3"),
            "c": (f"{prefix}p21", "10.77.2.2"),
        }
        for name, address in pods.values():
            pod(f"{prefix}n{address.split('.')[2]}", name, address, MTU[backend] + more)
        yield pods
    finally:
        for program in programs:
            program.kill()
            program.wait()
        for name in names:
            remove(name)
        rmtree(folder)


@contextmanager
def pair(prefix: str) -> Iterator[dict[str, tuple[str, str]]]:
    """Two namespaces and a cable: pods ``a`` and ``c``."""
    names = [f"{prefix}a", f"{prefix}c"]
    try:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
        _ip(names[0], f"link add eth0 type veth peer name eth0 netns {names[1]}")
        for index, name in enumerate(names, 1):
            _ip(name, "link set lo up", f"addr add 10.77.0.{index}/24 dev eth0", "link set eth0 up")
        yield {"a": (names[0], "10.77.0.1"), "c": (names[1], "10.77.0.2")}
    finally:
        for name in names:
            remove(name)
