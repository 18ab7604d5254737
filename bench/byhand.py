"""The lab's topology built by hand with ip(8) and bridge(8): the floor our network is compared with.

Two nodes on an isolated bridge, a pod bridge on each, pods on veths; VXLAN or plain routes between the nodes; what
leaves the pod network is masqueraded, as on every cluster node (which makes the kernel track connections).
Nothing here uses the project's code, so that it can serve as the yardstick.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


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


def _run(namespace: str, *command: str) -> None:
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{namespace}", "--", *command], check=True, capture_output=True
    )


def _node(prefix: str, index: int, backend: str) -> None:
    node, other = f"{prefix}n{index}", 3 - index
    overlay_mtu = 1450 if backend == "vxlan" else 1500
    subprocess.run(["ip", "netns", "add", node], check=True)
    _ip(
        f"{prefix}net",
        f"link add e{index} type veth peer name eth0 netns {node}",
        f"link set e{index} master underlay up",
    )
    _ip(
        node,
        "link set lo up",
        f"addr add 192.168.77.{index}/24 dev eth0",
        "link set eth0 up",
        "link add cni0 type bridge",
        f"link set cni0 mtu {overlay_mtu} up",
        f"addr add 10.77.{index}.1/24 dev cni0",
    )
    _run(node, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    _run(node, "nft", MASQUERADE)
    if backend == "vxlan":
        _ip(
            node,
            f"link add flannel.1 address 02:00:00:00:00:0{index} type vxlan id 1 local 192.168.77.{index} "
            "dev eth0 dstport 8472 nolearning",
            f"addr add 10.77.{index}.0/32 dev flannel.1",
            f"link set flannel.1 mtu {overlay_mtu} up",
            f"neigh add 10.77.{other}.0 lladdr 02:00:00:00:00:0{other} dev flannel.1 nud permanent",
            f"route add 10.77.{other}.0/24 via 10.77.{other}.0 dev flannel.1 onlink",
        )
        fdb = [
            "bridge",
            "fdb",
            "add",
            f"02:00:00:00:00:0{other}",
            "dev",
            "flannel.1",
            "dst",
            f"192.168.77.{other}",
        ]
        _run(node, *fdb, "self", "permanent")
    else:
        _ip(node, f"route add 10.77.{other}.0/24 via 192.168.77.{other}")


def _pod(prefix: str, node: int, index: int, mtu: int) -> str:
    name, host = f"{prefix}p{node}{index}", f"{prefix}n{node}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    _ip(
        host,
        f"link add v{index} mtu {mtu} type veth peer name eth0 netns {name} mtu {mtu}",
        f"link set v{index} master cni0 up",
    )
    _ip(
        name,
        "link set lo up",
        f"addr add 10.77.{node}.{index + 1}/24 dev eth0",
        "link set eth0 up",
        f"route add default via 10.77.{node}.1",
    )
    return name


@contextmanager
def network(prefix: str, backend: str) -> Iterator[dict[str, tuple[str, str]]]:
    """Build it; yields pods as name -> (namespace, address): ``a`` and ``b`` on node 1, ``c`` on node 2."""
    names = [f"{prefix}{name}" for name in ("p11", "p12", "p21", "n1", "n2", "net")]
    try:
        subprocess.run(["ip", "netns", "add", f"{prefix}net"], check=True)
        _ip(f"{prefix}net", "link add underlay type bridge", "link set underlay up")
        for index in (1, 2):
            _node(prefix, index, backend)
        mtu = 1450 if backend == "vxlan" else 1500
        pods = {
            key: _pod(prefix, node, index, mtu)
            for key, node, index in (("a", 1, 1), ("b", 1, 2), ("c", 2, 1))
        }
        yield {
            "a": (pods["a"], "10.77.1.2"),
            "b": (pods["b"], "10.77.1.3"),
            "c": (pods["c"], "10.77.2.2"),
        }
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
