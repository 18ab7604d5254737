"""Builders for fabrics in tests: net-confs, nodes and leases from few words."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface

import msgspec

from pycni.backends.base import Site
from pycni.backends.table import backend
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import BackendConf, NetConf
from pycni.model.node import Node, Underlay
from pycni.model.wireguard import key_text

OWN_MAC = bytes.fromhex("02aa00000001")
OWN_KEY = bytes(range(1, 33))
OWN_MAC6 = bytes.fromhex("02aa00000601")


def conf(families="4", kind="vxlan", **backend_keys):
    return NetConf(
        network=IPv4Network("10.5.0.0/16") if "4" in families else None,
        network6=IPv6Network("fd00:5::/48") if "6" in families else None,
        subnet_min=IPv4Address("10.5.1.0") if "4" in families else None,
        subnet_max=IPv4Address("10.5.255.0") if "4" in families else None,
        subnet6_min=IPv6Address("fd00:5:0:1::") if "6" in families else None,
        subnet6_max=IPv6Address("fd00:5:0:ffff::") if "6" in families else None,
        backend=BackendConf(type=kind, **backend_keys),
    )


def node(families="4", mtu=1500, vni=1, **changes):
    addresses = {"4": "192.0.2.1/24", "6": "2001:db8::1/64"}
    have = {family: ip_interface(addresses[family]) for family in families}
    return Node(
        name="n1",
        underlay=Underlay(
            name="eth0",
            mtu=mtu,
            address=have.get("4"),
            address6=have.get("6"),
            on_link=tuple(have.values()),
        ),
        public_ip=changes.get("public_ip", have["4"].ip if "4" in have else None),
        public_ipv6=have["6"].ip if "6" in have else None,
        wireguard_key=OWN_KEY,
        macs={f"flannel.{vni}": OWN_MAC, f"flannel-v6.{vni}": OWN_MAC6},
    )


def site(families="4", kind="vxlan", mtu=1500, own=1, **backend_keys):
    here, net = node(families, mtu, backend_keys.get("vni", 1)), conf(families, kind, **backend_keys)
    attrs = backend(kind).published(here, net)
    return Site(node=here, conf=net, own=lease(own, families, attrs=attrs))


def mac(number, family="4"):
    return f"02:00:00:00:0{family}:{number:02x}"


def wg_key(number):
    return bytes([number]) * 32


def lease(number, families="4", kind="vxlan", attrs=None, **changes):
    """The lease of node ``number``: subnets and addresses carry its number; ``changes`` replace attributes."""
    if attrs is None:
        data = {f: {"VNI": 1, "VtepMAC": mac(number, f)} for f in families} if kind == "vxlan" else {}
        if kind == "wireguard":
            data = {f: {"PublicKey": key_text(wg_key(number))} for f in families}
        fields = {
            "public_ip": IPv4Address(f"192.0.2.{number}") if "4" in families else None,
            "public_ipv6": IPv6Address(f"2001:db8::{number:x}") if "6" in families else None,
            "backend_type": kind,
            "backend_data": msgspec.json.encode(data["4"]) if "4" in data else None,
            "backend_v6_data": msgspec.json.encode(data["6"]) if "6" in data else None,
        }
        attrs = LeaseAttrs(**(fields | changes))
    return Lease(
        subnet=IPv4Network(f"10.5.{number}.0/24") if "4" in families else None,
        subnet6=IPv6Network(f"fd00:5:0:{number:x}::/64") if "6" in families else None,
        attrs=attrs,
    )


def by_key(*leases):
    return {item.key: item for item in leases}
