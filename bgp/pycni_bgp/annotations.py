"""What a node's annotations say of BGP: kube-router's keys (its documentation ``bgp.md``), decoded. Pure.

Life: ``node_settings`` is called for every Node when it changed. A value nobody can use is a problem line that names
the node, the annotation and the value; the rest of the node's wishes hold. Passwords are base64, as kube-router has
them, and are never part of a problem line.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import yaml

from pycni.model.family import Network
from pycni.model.kube import KubeNode
from pycni_bgp.model import BFD_PORT, MAX_ASN, PORT, WELL_KNOWN, Bfd, Secret

PREFIX = "kube-router.io/"
SHOWN = 80
"""Characters of a value shown in a problem line."""
T = TypeVar("T")


class UnusableError(ValueError):
    """A value nobody can use, and why."""


class PeerWish(msgspec.Struct, frozen=True, kw_only=True):
    """A router outside the cluster a node is to speak with."""

    address: bytes
    asn: int
    port: int = PORT
    local_address: bytes = b""
    password: Secret | None = None
    bfd: Bfd | None = None


class NodeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One node's wishes."""

    name: str
    addresses: tuple[bytes, ...] = ()
    """Its internal addresses."""
    pod_cidrs: tuple[Network, ...] = ()
    asn: int | None = None
    peers: tuple[PeerWish, ...] = ()
    communities: tuple[str, ...] = ()
    """Put on everything it announces to routers outside."""
    prepend: tuple[int, int] | None = None
    """This AS number, so many times, in front of the path."""
    reject: tuple[Network, ...] = ()
    """Routes inside are not accepted."""
    reflector: bytes = b""
    """Cluster id of the route reflector it is, four bytes; empty: it is none."""
    client: bytes = b""
    """Cluster id of the reflectors it is a client of."""
    listen: tuple[bytes, ...] = ()
    """Where its ends of sessions are, the first of each family; empty: on ``addresses``."""


def node_settings(node: KubeNode, problems: list[str]) -> NodeSettings:
    """Decode one node; what cannot be used is added to ``problems``."""
    reader = _Reader(node, problems)
    return NodeSettings(
        name=node.meta.name,
        addresses=tuple(ipaddress.ip_address(text).packed for text in node.internal_ips),
        pod_cidrs=_pod_cidrs(node, reader),
        asn=reader.one("node.asn", _asn),
        peers=_peers(reader),
        communities=reader.many("node.bgp.communities", community),
        prepend=_prepend(reader),
        reject=reader.many("node.bgp.customimportreject", _network),
        reflector=reader.one("rr.server", _cluster_id) or b"",
        client=reader.one("rr.client", _cluster_id) or b"",
        listen=reader.many("bgp-local-addresses", _address),
    )


class _Reader:
    """One node's annotations and where problems go."""

    def __init__(self, node: KubeNode, problems: list[str]) -> None:
        self._found = {
            key[len(PREFIX) :]: value.strip()
            for key, value in node.meta.annotations.items()
            if key.startswith(PREFIX)
        }
        self._node = node.meta.name
        self._problems = problems

    def text(self, key: str) -> str:
        """The value, "" without."""
        return self._found.get(key, "")

    def refuse(self, key: str, value: str, reason: str) -> None:
        """Note what cannot be used."""
        shown = value if len(value) <= SHOWN else value[:SHOWN] + "..."
        self._problems.append(f"node {self._node}: annotation {PREFIX}{key} {shown!r}: {reason}")

    def one(self, key: str, parse: Callable[[str], T]) -> T | None:
        """One value; None without it or when it cannot be used."""
        text = self.text(key)
        if not text:
            return None
        try:
            return parse(text)
        except ValueError as error:
            self.refuse(key, text, str(error))
            return None

    def many(self, key: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """A list with commas; those that cannot be used are left out."""
        found: dict[T, None] = {}
        for part in filter(None, (item.strip() for item in self.text(key).split(","))):
            try:
                found[parse(part)] = None
            except ValueError as error:
                self.refuse(key, part, str(error))
        return tuple(found)


def _asn(text: str) -> int:
    high, dot, low = text.partition(".")
    try:
        number = (int(high) << 16) + int(low) if dot else int(text)
        in_range = not dot or (int(high) < 1 << 16 and 0 <= int(low) < 1 << 16)
    except ValueError:
        number, in_range = 0, False
    if not in_range or not 0 < number <= MAX_ASN:
        raise UnusableError(f"not an AS number (1 to {MAX_ASN})")
    return number


def _address(text: str) -> bytes:
    try:
        return ipaddress.ip_address(text).packed
    except ValueError:
        raise UnusableError("not an address") from None


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise UnusableError(f"not a network: {error}") from None


def _cluster_id(text: str) -> bytes:
    """A number or dotted, four bytes (RFC 4456, section 7)."""
    try:
        return int(text).to_bytes(4, "big") if text.isdigit() else ipaddress.IPv4Address(text).packed
    except (ValueError, OverflowError):
        raise UnusableError("not a cluster id (a number of 32 bits or dotted)") from None


def community(text: str) -> str:
    """A community in canonical text. ValueError."""
    if text in WELL_KNOWN:
        return text
    parts = text.split(":")
    limits = {1: (1 << 32,), 2: (1 << 16, 1 << 16), 3: (1 << 32,) * 3}.get(len(parts), ())
    if not limits or any(
        not part.isdigit() or int(part) >= most for part, most in zip(parts, limits, strict=True)
    ):
        raise UnusableError("not a community (65001:100, 65001:1:2 or a well-known name)")
    if len(parts) == 1:
        return f"{int(text) >> 16}:{int(text) & 0xFFFF}"
    return ":".join(str(int(part)) for part in parts)


def _pod_cidrs(node: KubeNode, reader: _Reader) -> tuple[Network, ...]:
    """The annotation's before the object's, as kube-router has it; the old key holds one."""
    annotated = reader.many("pod-cidrs", _network) or reader.many("pod-cidr", _network)
    return annotated or tuple(ipaddress.ip_network(text) for text in node.pod_cidrs)


def _prepend(reader: _Reader) -> tuple[int, int] | None:
    asn, text = reader.one("path-prepend.as", _asn), reader.text("path-prepend.repeat-n")
    if asn is None or not text:
        if asn is not None or text:
            reader.refuse("path-prepend.repeat-n", text, "goes together with path-prepend.as")
        return None
    if not text.isdigit() or not 0 < int(text) <= 255:
        reader.refuse("path-prepend.repeat-n", text, "not a number from 1 to 255")
        return None
    return asn, int(text)


# --- peers ---------------------------------------------------------------------------------------------------


def _peers(reader: _Reader) -> tuple[PeerWish, ...]:
    found: dict[bytes, PeerWish] = {}
    for wish in (*_listed(reader), *_old_style(reader)):
        if found.setdefault(wish.address, wish) is not wish:
            reader.refuse(
                "peers", str(ipaddress.ip_address(wish.address)), "given twice, the first one counts"
            )
    return tuple(found.values())


def _listed(reader: _Reader) -> list[PeerWish]:
    """``peers``: a YAML list of mappings."""
    text = reader.text("peers")
    if not text:
        return []
    try:
        entries = yaml.safe_load(text)
    except yaml.YAMLError as error:
        reader.refuse("peers", "...", f"not YAML: {getattr(error, 'problem', None) or 'malformed'}")
        return []
    if not isinstance(entries, list):
        reader.refuse("peers", "...", "not a list")
        return []
    found = []
    for number, entry in enumerate(entries):
        try:
            found.append(_entry(entry))
        except ValueError as error:
            reader.refuse(f"peers[{number}]", _name(entry), str(error))
    return found


def _name(entry: object) -> str:
    """What may be shown of an entry: it can hold a password."""
    return str(entry.get("remoteip", "")) if isinstance(entry, Mapping) else type(entry).__name__


KNOWN = frozenset({"remoteip", "remoteasn", "localip", "password", "port", "bfd"})
BFD_KNOWN = frozenset(
    {"enabled", "port", "detection_multiplier", "required_min_rx_interval", "desired_min_tx_interval"}
)


def _entry(entry: object) -> PeerWish:
    if not isinstance(entry, Mapping):
        raise UnusableError("not a mapping")
    unknown = sorted(str(key) for key in entry if key not in KNOWN)
    if unknown:
        raise UnusableError(f"unknown field {unknown[0]}")
    for key in ("remoteip", "remoteasn"):
        if key not in entry:
            raise UnusableError(f"{key} is missing")
    return PeerWish(
        address=_field(entry, "remoteip", _address),
        asn=_field(entry, "remoteasn", _asn),
        port=_number(entry, "port", PORT, 65535),
        local_address=_field(entry, "localip", _address) if entry.get("localip") else b"",
        password=_field(entry, "password", decoded_password) if entry.get("password") else None,
        bfd=_bfd(entry.get("bfd")),
    )


def _field(entry: Mapping[Any, Any], key: str, parse: Callable[[str], T]) -> T:
    try:
        return parse(str(entry[key]))
    except ValueError as error:
        raise UnusableError(f"{key}: {error}") from None


def _number(entry: Mapping[Any, Any], key: str, default: int, most: int) -> int:
    value = entry.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= most:
        raise UnusableError(f"{key}: not a number from 1 to {most}")
    return value


def _bfd(value: object) -> Bfd | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise UnusableError("bfd: not a mapping")
    unknown = sorted(str(key) for key in value if key not in BFD_KNOWN)
    if unknown:
        raise UnusableError(f"bfd: unknown field {unknown[0]}")
    if value.get("enabled", True) is not True:
        return None
    return Bfd(
        port=_number(value, "port", BFD_PORT, 65535),
        multiplier=_number(value, "detection_multiplier", 3, 255),
        receive_ms=_number(value, "required_min_rx_interval", 1000, 3_600_000),
        send_ms=_number(value, "desired_min_tx_interval", 1000, 3_600_000),
    )


def decoded_password(text: str) -> Secret:
    """A password from base64. Raises UnusableError, which does not say it."""
    try:
        found = base64.b64decode(text, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise UnusableError("not base64 of a text") from None
    if not 0 < len(found.encode()) <= 80 or not found.isprintable():
        raise UnusableError("not 1 to 80 printable characters")
    return Secret(found)


def _old_style(reader: _Reader) -> list[PeerWish]:
    """``peer.ips`` and the lists beside it, one entry per peer."""
    if not reader.text("peer.ips"):
        return []
    columns: dict[str, list[str]] = {
        key: [part.strip() for part in text.split(",")] if (text := reader.text(f"peer.{key}")) else []
        for key in ("ips", "asns", "ports", "passwords", "localips")
    }
    count = len(columns["ips"])
    for key, values in columns.items():
        if (values or key == "asns") and len(values) != count:
            reader.refuse(f"peer.{key}", "...", f"{len(values)} entries for {count} peers")
            return []
    found = []
    for number in range(count):
        row = {key: values[number] for key, values in columns.items() if values and values[number]}
        try:
            found.append(_old_entry(row))
        except ValueError as error:
            reader.refuse("peer.ips", row.get("ips", ""), str(error))
    return found


def _old_entry(row: Mapping[str, str]) -> PeerWish:
    if "ips" not in row or "asns" not in row:
        raise UnusableError("an address without an AS number, or the other way round")
    port = row.get("ports", str(PORT))
    if not port.isdigit() or not 0 < int(port) <= 65535:
        raise UnusableError(f"peer.ports: {port!r} is not a port")
    return PeerWish(
        address=_field(row, "ips", _address),
        asn=_field(row, "asns", _asn),
        port=int(port),
        local_address=_field(row, "localips", _address) if "localips" in row else b"",
        password=_field(row, "passwords", decoded_password) if "passwords" in row else None,
    )
