"""flannel's node annotations: what its Kubernetes subnet manager tells other nodes about a node's lease, both ways.

A node's subnets are ``spec.podCIDRs``; where it is reached and its backend's data stand in annotations under one
prefix (``flannel.alpha.coreos.com/public-ip`` ...). A node without ``kube-subnet-manager`` = "true" has no lease.
Values are byte for byte what flannel's Go code writes: it compares them as text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

import msgspec

from pycni.errors import ConfigError
from pycni.model.family import Address, Family
from pycni.model.kube import KubeNode
from pycni.model.lease import Lease, LeaseAttrs, Offer
from pycni.wire import typed
from pycni.wire.gojson import Fields, read_object
from pycni.wire.lease import canonical_json, encode_offers, read_offers

DEFAULT_PREFIX = "flannel.alpha.coreos.com"
NAMES = (
    "kube-subnet-manager",
    "backend-type",
    "backend-data",
    "backend-v6-data",
    "public-ip",
    "public-ipv6",
    "public-ip-overwrite",
    "public-ipv6-overwrite",
    "pycni-backends",
)
"""The annotations without their prefix."""
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(/([A-Za-z0-9]([A-Za-z0-9_.-]*)?)?)?")


class Names(NamedTuple):
    """Full names of the annotations under one prefix."""

    managed: str
    backend_type: str
    data: str
    data6: str
    public_ip: str
    public_ip6: str
    overwrite: str
    overwrite6: str
    offers: str
    """Ours: only there while the network changes its backend."""


def annotation_names(prefix: str = DEFAULT_PREFIX) -> Names:
    """The names: ``prefix/name``, or ``domain/prefix-name`` for a prefix with a slash. Raises ConfigError."""
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            "kube settings", "kube-annotation-prefix", prefix, "expected a domain, or a domain/prefix"
        )
    start = prefix if "/" in prefix else f"{prefix}/"
    if not start.endswith(("/", "-")):
        start += "-"
    return Names(*(start + name for name in NAMES))


def node_subnets(node: KubeNode, families: Sequence[Family]) -> tuple[IPv4Network | None, IPv6Network | None]:
    """A node's pod networks of the families in use. Raises ConfigError for several of one family."""
    found: dict[Family, IPv4Network | IPv6Network] = {}
    for text in node.pod_cidrs:
        family = Family.V6 if ":" in text else Family.V4
        if family in found:
            raise ConfigError(
                f"Node {node.meta.name}",
                "spec.podCIDRs",
                node.pod_cidrs,
                f"expected one {family.label} network",
            )
        found[family] = IPv6Network(text) if family is Family.V6 else IPv4Network(text)
    subnet, subnet6 = (found.get(family) if family in families else None for family in Family)
    assert subnet is None or isinstance(subnet, IPv4Network)
    assert subnet6 is None or isinstance(subnet6, IPv6Network)
    return subnet, subnet6


def decode_node_lease(node: KubeNode, names: Names, families: Sequence[Family]) -> Lease | None:
    """The lease a node's annotations stand for; None for a node that is not managed. Raises ConfigError.

    A family of which the subnet or the address is missing is left out; a lease without any is an error.
    """
    told = node.meta.annotations
    if told.get(names.managed) != "true":
        return None
    obj = f"Node {node.meta.name}"
    subnet, subnet6 = node_subnets(node, families)
    public = _address(obj, names.public_ip, told, Family.V4) if subnet is not None else None
    public6 = _address(obj, names.public_ip6, told, Family.V6) if subnet6 is not None else None
    assert public is None or isinstance(public, IPv4Address)
    assert public6 is None or isinstance(public6, IPv6Address)
    if public is None and public6 is None:
        if subnet is None and subnet6 is None:
            raise ConfigError(obj, "spec.podCIDRs", node.pod_cidrs, "expected a network of a family in use")
        name = names.public_ip if subnet is not None else names.public_ip6
        raise ConfigError(obj, name, told.get(name), "expected the node's address")
    return Lease(
        subnet=subnet if public is not None else None,
        subnet6=subnet6 if public6 is not None else None,
        attrs=LeaseAttrs(
            public_ip=public,
            public_ipv6=public6,
            backend_type=told.get(names.backend_type, ""),
            backend_data=_data(obj, names.data, told) if public is not None else None,
            backend_v6_data=_data(obj, names.data6, told) if public6 is not None else None,
            offers=_offers(obj, names.offers, told),
        ),
    )


def wanted_annotations(attrs: LeaseAttrs, told: Mapping[str, str], names: Names) -> dict[str, str]:
    """The annotations our own node is to have, beside those it has (``told``): an overwrite counts for our address."""
    wanted = {names.managed: "true", names.backend_type: attrs.backend_type}
    for address, data, public, overwrite, key in (
        (attrs.public_ip, attrs.backend_data, names.public_ip, names.overwrite, names.data),
        (attrs.public_ipv6, attrs.backend_v6_data, names.public_ip6, names.overwrite6, names.data6),
    ):
        if address is not None:
            wanted[public] = told.get(overwrite) or str(address)
            wanted[key] = "null" if data is None else data.decode()
    if attrs.offers or told.get(names.offers):
        wanted[names.offers] = encode_offers(attrs.offers).decode() if attrs.offers else ""
    return wanted


def _address(obj: str, name: str, told: Mapping[str, str], family: Family) -> Address | None:
    text = told.get(name, "")
    if not text:
        return None
    try:
        address: Address = IPv4Address(text) if family is Family.V4 else IPv6Address(text)
    except AddressValueError:
        raise ConfigError(obj, name, text, f"expected an {family.label} address") from None
    if address.is_unspecified:
        return None
    scoped = isinstance(address, IPv6Address) and address.scope_id is not None
    if address.is_multicast or address.is_loopback or scoped or address == IPv4Address("255.255.255.255"):
        raise ConfigError(obj, name, text, "expected a unicast address other hosts can reach")
    return address


def _offers(obj: str, name: str, told: Mapping[str, str]) -> tuple[Offer, ...]:
    """The backends a node is equipped for besides its own."""
    text = told.get(name, "")
    if not text:
        return ()
    raw = text.encode("utf-8", "surrogatepass")
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise ConfigError(obj, name, text[:200], str(exc) or type(exc).__name__) from None
    return read_offers(Fields({name: value}, obj), name)


def _data(obj: str, name: str, told: Mapping[str, str]) -> bytes | None:
    """Backend data in canonical form; flannel writes "null" where there is none."""
    text = told.get(name, "")
    if text in ("", "null"):
        return None
    try:
        if text.lstrip().startswith('"'):  # of the backend extension
            return canonical_json(typed.decode(text, str))
        found = read_object(text.encode("utf-8", "surrogatepass"), f"{obj}, annotation {name}")
        return canonical_json({found.names[low]: found.value(low) for low in found.names})
    except (msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise ConfigError(obj, name, text, str(exc) or "too deeply nested") from None
