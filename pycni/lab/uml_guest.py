"""Process 1 of a lab's User-Mode Linux guest.

Life: the kernel runs it with the path of its ``GuestConfig``; it mounts what a node needs over the machine's files,
which it has read-only (file systems of its own where programs write, the lab's folder shared, the kernel's modules),
plugs in the node's ``eth0``, puts the command server's network into a namespace of its own where nothing of the node
sees it, and serves commands until the guest is killed.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
from ipaddress import IPv4Interface
from pathlib import Path

from pycni.errors import KernelError
from pycni.kernel import netns as kernel_netns
from pycni.kernel.netlink import NetlinkSocket
from pycni.lab import netns, topology, uml_server
from pycni.lab.uml_calls import GuestConfig
from pycni.wire import rtlink, typed
from pycni.wire.netlink import attr_str, attr_u32

CONTROL = "pycni-guest"
"""Namespace of the command server's socket."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MODPROBE = "/run/pycni-guest/modprobe"
_OWN = ("/run", "/tmp", "/var/lib", "/var/log", "/dev/shm")  # noqa: S108  # the guest's own, mounted empty
_KERNEL = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devpts", "/dev/pts"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
)
_PRESENT = ("ipv6", "br_netfilter")
"""Modules a node of a cluster has anyway and nothing loads by itself: without the second, what a pod answers to another
one on its bridge passes by the translation of Services."""
_FOR_IPVS = (
    *("dummy", "nf_conntrack_netlink", "ipt_REJECT", "ip6t_REJECT"),
    *(f"{kind}table_{table}" for kind in ("ip", "ip6") for table in ("nat", "filter", "mangle")),
    *("xt_MASQUERADE", "xt_TCPMSS", "xt_connmark", "xt_conntrack", "xt_mark", "xt_set", "xt_tcpudp"),
    *("ip_set_bitmap_port", "ip_set_hash_ip", "ip_set_hash_ipport", "ip_set_hash_ipportip"),
    *("ip_set_hash_ipportnet", "ip_set_hash_netport"),
    *("ip_vs_rr", "ip_vs_wrr", "ip_vs_lc", "ip_vs_wlc", "ip_vs_lblc", "ip_vs_lblcr", "ip_vs_sh"),
    *("ip_vs_dh", "ip_vs_mh", "ip_vs_sed", "ip_vs_nq", "ip_vs_fo", "ip_vs_ovf"),
)
"""What the kernel would ask for one by one when the proxy starts, which takes a guest seconds."""
_LEGACY, _NFT = "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi"
_MS_RDONLY, _MS_BIND = 1, 4096
_libc = ctypes.CDLL(None, use_errno=True)


def main(file: str) -> None:
    """Become a node."""
    config = typed.decode(Path(file).read_bytes(), GuestConfig)
    os.environ.update(PATH=PATH, HOME="/root")
    _file_systems(config)
    _modules(config)
    node = topology.node_name(config.index)
    socket.sethostname(node)
    listener = _network(config)
    Path(config.up).touch()
    print(f"{node} is up", flush=True)
    uml_server.serve(listener)


def _file_systems(config: GuestConfig) -> None:
    for kind, folder in _KERNEL:
        if kind == "devpts":
            os.makedirs(folder, exist_ok=True)
        if os.path.isdir(folder):
            _mount(kind, folder, kind, data="ptmxmode=666" if kind == "devpts" else "")
    for folder in _OWN:
        if folder.startswith("/dev/"):
            os.makedirs(folder, exist_ok=True)
        if os.path.isdir(folder):
            _mount("none", folder, "tmpfs", data="mode=1777" if folder == "/tmp" else "mode=755")  # noqa: S108
    for folder in config.visible:
        if not os.path.exists(folder):
            os.makedirs(folder)
            _mount("none", folder, "hostfs", flags=_MS_RDONLY, data=folder)
    os.makedirs(config.shared)
    _mount("none", config.shared, "hostfs", data=config.shared)
    if os.path.exists(_LEGACY) and os.path.exists(_NFT):
        # This kernel has no nftables families for IP, so iptables has to be the other one.
        _mount(_LEGACY, _NFT, "", flags=_MS_BIND)


def _modules(config: GuestConfig) -> None:
    """Let the kernel find its modules, whose folder is not where modprobe looks by itself."""
    os.makedirs(os.path.dirname(MODPROBE))
    Path(MODPROBE).write_text(f'#!/bin/sh\nexec /sbin/modprobe -d "{config.modules}" "$@"\n')
    os.chmod(MODPROBE, 0o700)
    Path("/proc/sys/kernel/modprobe").write_text(MODPROBE)
    subprocess.run([MODPROBE, "-a", *_PRESENT], check=True)
    os.environ["MODPROBE_OPTIONS"] = f"-d {config.modules}"
    if config.spec.proxy == "ipvs":
        # Beside the rest; reaped like every orphan.
        os.posix_spawn(MODPROBE, [MODPROBE, "-a", *_FOR_IPVS], os.environ)


def _network(config: GuestConfig) -> socket.socket:
    """The node's uplink; then the command server's socket in a namespace of its own."""
    kernel_netns.create(CONTROL)
    fd = kernel_netns.open_netns(kernel_netns.path(CONTROL))
    with NetlinkSocket() as sock:
        uplink, control = (netns.index_of(sock, f"vec{number}") for number in range(2))
        mtu = attr_u32(rtlink.IFLA_MTU, config.spec.mtu)
        name = attr_str(rtlink.IFLA_IFNAME, netns.UPLINK)
        sock.request(rtlink.set_link(uplink, name, mtu), "rename link", netns.UPLINK)
        sock.request(rtlink.set_link(control, attr_u32(rtlink.IFLA_NET_NS_FD, fd)), "move link", "vec1")
    netns.equip_node(config.spec, config.index, "")
    with kernel_netns.socket_in(fd) as sock:
        netns.bring_up(sock, "vec1", IPv4Interface(config.address))
    address = str(IPv4Interface(config.address).ip)
    listener = kernel_netns.run_in(fd, lambda: socket.create_server((address, config.port), backlog=128))
    os.close(fd)
    return listener


def _mount(source: str, target: str, kind: str, *, flags: int = 0, data: str = "") -> None:
    """mount(2). Raises KernelError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, data.encode()):
        raise KernelError(ctypes.get_errno(), "mount", f"{kind or source} on {target}", data)


if __name__ == "__main__":
    main(sys.argv[1])
