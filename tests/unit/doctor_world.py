"""Nodes for the doctor: a sound one, and ways to damage it."""

from __future__ import annotations

from typing import Any

import msgspec

from pycni.doctor import features
from pycni.doctor.model import ConfFile, Facts
from pycni.model.space import AddressState, FdbState, LinkState, RouteState, SpaceState

SYSCTLS = {
    "net.ipv4.ip_forward": "1",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.conf.all.disable_ipv6": "0",
    "net.ipv4.conf.all.rp_filter": "0",
    "net/ipv4/conf/eth0/rp_filter": "2",
    "net/ipv4/conf/flannel.1/rp_filter": "0",
    "net/ipv6/conf/eth0/accept_ra": "1",
    "net.ipv4.conf.all.arp_ignore": "0",
    "net.ipv4.conf.all.arp_announce": "0",
    "net.ipv4.conf.all.route_localnet": "0",
    "net.ipv4.ip_local_port_range": "32768\t60999",
    "net.ipv4.ip_local_reserved_ports": "",
    "net.ipv4.tcp_congestion_control": "cubic",
    "net.ipv4.tcp_available_congestion_control": "reno cubic bbr",
    "net.core.somaxconn": "4096",
    "net.core.bpf_jit_enable": "1",
    "net.netfilter.nf_conntrack_max": "262144",
    "net.netfilter.nf_conntrack_buckets": "262144",
    "net.netfilter.nf_conntrack_count": "17",
    "net.netfilter.nf_conntrack_tcp_timeout_established": "86400",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "3600",
    "net.netfilter.nf_conntrack_tcp_be_liberal": "1",
    "net.ipv6.route.max_size": "2147483647",
    "net.bridge.bridge-nf-call-iptables": "1",
    "net.bridge.bridge-nf-call-ip6tables": "1",
    "fs.inotify.max_user_instances": "8192",
    "fs.inotify.max_user_watches": "1048576",
    **{
        f"net.{ip}.neigh.default.gc_thresh{at}": value
        for ip in ("ipv4", "ipv6")
        for at, value in ((1, "1024"), (2, "28672"), (3, "32768"))
    },
}
LINKS = (
    LinkState(name="lo", mtu=65536, index=1),
    LinkState(name="eth0", mtu=1500, index=2),
    LinkState(name="flannel.1", kind="vxlan", mtu=1450, index=3, local=bytes((192, 0, 2, 1)), checksum=True),
    LinkState(name="cni0", kind="bridge", mtu=1450, index=4),
    LinkState(name="veth1", kind="veth", mtu=1450, index=5, master="cni0", peer_index=2),
)


def space(*more: LinkState, without: str = "", **changed: Any) -> SpaceState:
    links = {link.name: link for link in (*LINKS, *more) if link.name != without}
    sound = SpaceState(
        links=links,
        addresses=(
            AddressState("eth0", bytes((192, 0, 2, 1)), 24),
            AddressState("cni0", bytes((10, 244, 1, 1)), 24),
        ),
        routes=(
            RouteState(table=254, destination=b"\0\0\0\0", prefix_len=0, device="eth0", gateway=bytes((192, 0, 2, 254))),
            RouteState(
                table=254, destination=bytes((10, 244, 2, 0)), prefix_len=24, device="flannel.1",
                gateway=bytes((10, 244, 2, 0)), protocol=112,
            ),
        ),
        fdb=(FdbState("flannel.1", b"\2\0\0\0\0\2", remote=bytes((192, 0, 2, 2))),),
    )  # fmt: skip
    return msgspec.structs.replace(sound, **changed)


def node(name: str = "", *, sysctls: dict[str, str | None] | None = None, **changed: Any) -> Facts:
    """A sound node on which everything is used, but for what is changed; a switch that is None is not there."""
    values = {key: value for key, value in {**SYSCTLS, **(sysctls or {})}.items() if value is not None}
    sound = Facts(
        node=name,
        space=space(),
        first=True,
        release="6.1.0-56-cloud-amd64",
        cores=4,
        uses=("bridge", "vxlan", "proxy-nftables", "policy-nftables", "ipv4", "ipv6"),
        kernel=dict.fromkeys(features.OPTIONS, "y"),
        sysctls=values,
        writable=frozenset(values),
        offloads={
            "eth0": {
                "rx-gro": True, "rx-lro": False, "tx-generic-segmentation": True, "tx-tcp-segmentation": True
            }
        },
        drivers={"eth0": "virtio_net"},
        conf_folder="/etc/cni/net.d",
        conf_files=(ConfFile(name="10-pycni.conflist", network="pycni", plugins=("pycni",)),),
    )  # fmt: skip
    return msgspec.structs.replace(sound, **changed)
