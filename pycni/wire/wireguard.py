"""WireGuard devices and peers as generic netlink messages and as wireguard-go's text, both ways. Pure.

    kernel:        commands and attributes of include/uapi/linux/wireguard.h, family "wireguard"
    wireguard-go:  the cross-platform userspace protocol (wireguard.com/xplatform): lines ``key=value``, keys in hex

One message changes one peer: each failure has its peer, and no other peer is touched. Private and pre-shared keys are
in these bytes; nothing here is for a log.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from typing import NamedTuple

from pycni.model.family import show
from pycni.model.wireguard import KEY_BYTES, Secret
from pycni.wire.genl import genl_message
from pycni.wire.netlink import (
    MalformedError,
    Message,
    attr,
    attr_str,
    attr_u8,
    attr_u16,
    attr_u32,
    nested,
    parse_attrs,
)

FAMILY_NAME, VERSION = "wireguard", 1
GET_DEVICE, SET_DEVICE = 0, 1

A_IFNAME, A_PRIVATE_KEY, A_PUBLIC_KEY, A_LISTEN_PORT, A_PEERS = 2, 3, 4, 6, 8
P_PUBLIC_KEY, P_PRESHARED_KEY, P_FLAGS, P_ENDPOINT, P_KEEPALIVE, P_LAST_HANDSHAKE = 1, 2, 3, 4, 5, 6
P_ALLOWED = 9
I_FAMILY, I_ADDRESS, I_LENGTH = 1, 2, 3
F_REMOVE_ME, F_REPLACE_ALLOWED = 1, 2
AF_INET, AF_INET6 = 2, 10

_ATTR = struct.Struct("=HH")
_NO_PSK = bytes(KEY_BYTES)


class PeerInfo(NamedTuple):
    """One peer as the device has it, or is to have it."""

    public_key: bytes
    psk: Secret | None
    endpoint: bytes
    """Packed; empty when none is known."""
    port: int
    keepalive_s: int
    allowed: tuple[tuple[bytes, int], ...]
    handshake: bool = False
    """Whether it was heard of since it was made."""


class DeviceInfo(NamedTuple):
    """A device with its peers."""

    private_key: Secret | None
    port: int
    peers: tuple[PeerInfo, ...]


# the kernel


def get_device(family: int, name: str) -> bytes:
    """Ask for a device with its peers; a dump."""
    return genl_message(family, GET_DEVICE, VERSION, attr_str(A_IFNAME, name))


def set_device(family: int, name: str, private_key: Secret, port: int) -> bytes:
    """Give a device its key and port; its peers stay."""
    return _set(family, name, attr(A_PRIVATE_KEY, private_key.value), attr_u16(A_LISTEN_PORT, port))


def set_peer(family: int, name: str, peer: PeerInfo, *, replace: bool) -> bytes:
    """Make or change one peer. ``replace``: it has no other networks than these from now on."""
    flags = attr_u32(P_FLAGS, F_REPLACE_ALLOWED) if replace else b""
    body = attr(P_PUBLIC_KEY, peer.public_key) + flags
    body += attr(P_PRESHARED_KEY, peer.psk.value if peer.psk is not None else _NO_PSK)
    if peer.endpoint:
        body += attr(P_ENDPOINT, _sockaddr(peer.endpoint, peer.port))
    body += attr_u16(P_KEEPALIVE, peer.keepalive_s)
    nets = (
        nested(0, attr_u16(I_FAMILY, _family(net)), attr(I_ADDRESS, net), attr_u8(I_LENGTH, length))
        for net, length in peer.allowed
    )
    return _set(family, name, nested(A_PEERS, nested(0, body + nested(P_ALLOWED, *nets))))


def remove_peer(family: int, name: str, public_key: bytes) -> bytes:
    """Remove one peer; one that is not there is success."""
    body = attr(P_PUBLIC_KEY, public_key) + attr_u32(P_FLAGS, F_REMOVE_ME)
    return _set(family, name, nested(A_PEERS, nested(0, body)))


def parse_device(messages: Iterable[Message]) -> DeviceInfo:
    """A device from its dump. A peer with many networks goes on in the next message under its key.

    Raises MalformedError or struct.error on foreign bytes.
    """
    private: Secret | None = None
    port = 0
    peers: dict[bytes, PeerInfo] = {}
    for msg in messages:
        attrs = parse_attrs(msg.payload, 4)
        if any(attrs.get(A_PRIVATE_KEY, b"")):
            private = Secret(attrs[A_PRIVATE_KEY])
        if A_LISTEN_PORT in attrs:
            port = _u16(attrs[A_LISTEN_PORT])
        for item in _items(attrs.get(A_PEERS, b"")):
            peer = _parse_peer(item)
            earlier = peers.get(peer.public_key)
            if earlier is not None:
                peer = earlier._replace(allowed=tuple(sorted({*earlier.allowed, *peer.allowed})))
            peers[peer.public_key] = peer
    return DeviceInfo(private, port, tuple(peers.values()))


def _set(family: int, name: str, *attrs: bytes) -> bytes:
    return genl_message(family, SET_DEVICE, VERSION, attr_str(A_IFNAME, name), *attrs)


def _parse_peer(data: bytes) -> PeerInfo:
    attrs = parse_attrs(data)
    psk = attrs.get(P_PRESHARED_KEY, b"")
    endpoint, port = _parse_sockaddr(attrs.get(P_ENDPOINT, b""))
    allowed = []
    for item in _items(attrs.get(P_ALLOWED, b"")):
        net = parse_attrs(item)
        allowed.append((net[I_ADDRESS], net[I_LENGTH][0]))
    return PeerInfo(
        public_key=attrs[P_PUBLIC_KEY],
        psk=Secret(psk) if any(psk) else None,
        endpoint=endpoint,
        port=port,
        keepalive_s=_u16(attrs.get(P_KEEPALIVE, b"\0\0")),
        allowed=tuple(sorted(allowed)),
        handshake=any(attrs.get(P_LAST_HANDSHAKE, b"")),
    )


def _items(data: bytes) -> Iterable[bytes]:
    """The attributes of a list, whose types mean nothing."""
    at = 0
    while at + 4 <= len(data):
        size, _ = _ATTR.unpack_from(data, at)
        if size < 4 or at + size > len(data):
            raise MalformedError(f"list item at {at}: length {size} in {len(data)} bytes")
        yield data[at + 4 : at + size]
        at += (size + 3) & ~3


def _family(address: bytes) -> int:
    return AF_INET if len(address) == 4 else AF_INET6


def _sockaddr(address: bytes, port: int) -> bytes:
    """A struct sockaddr_in or sockaddr_in6."""
    head = struct.pack("=H", _family(address)) + struct.pack(">H", port)
    return head + address + bytes(8) if len(address) == 4 else head + bytes(4) + address + bytes(4)


def _parse_sockaddr(data: bytes) -> tuple[bytes, int]:
    if len(data) < 16:
        return b"", 0
    family, port = _u16(data[:2]), int.from_bytes(data[2:4], "big")
    return (data[4:8] if family == AF_INET else data[8:24]), port


def _u16(payload: bytes) -> int:
    return int(struct.unpack("=H", payload)[0])


# wireguard-go

GET_TEXT = b"get=1\n\n"


def set_device_text(private_key: Secret, port: int) -> bytes:
    """Give a device its key and port; its peers stay."""
    return f"set=1\nprivate_key={private_key.value.hex()}\nlisten_port={port}\n\n".encode()


def set_peer_text(peer: PeerInfo, *, replace: bool) -> bytes:
    """Make or change one peer, as ``set_peer``."""
    psk = peer.psk.value if peer.psk is not None else _NO_PSK
    lines = ["set=1", f"public_key={peer.public_key.hex()}", f"preshared_key={psk.hex()}"]
    if peer.endpoint:
        host = f"[{show(peer.endpoint)}]" if len(peer.endpoint) == 16 else show(peer.endpoint)
        lines.append(f"endpoint={host}:{peer.port}")
    lines.append(f"persistent_keepalive_interval={peer.keepalive_s}")
    lines += ["replace_allowed_ips=true"] if replace else []
    lines += [f"allowed_ip={show(net)}/{length}" for net, length in peer.allowed]
    return "\n".join([*lines, "", ""]).encode()


def remove_peer_text(public_key: bytes) -> bytes:
    """Remove one peer; one that is not there is success."""
    return f"set=1\npublic_key={public_key.hex()}\nremove=true\n\n".encode()


def parse_answer(raw: bytes) -> tuple[int, list[tuple[str, str]]]:
    """Errno (positive) and pairs of an answer, which ends with an empty line. Raises MalformedError."""
    pairs = []
    for line in raw.decode("ascii", "replace").splitlines():
        name, equals, value = line.partition("=")
        if line and not equals:
            raise MalformedError(f"wireguard-go answered a line of {len(line)} characters without =")
        if line:
            pairs.append((name, value))
    if not pairs or pairs[-1][0] != "errno":
        raise MalformedError("wireguard-go's answer has no errno")
    return abs(_integer(pairs[-1][1])), pairs[:-1]


def parse_device_text(pairs: Iterable[tuple[str, str]]) -> DeviceInfo:
    """A device from the pairs of its answer. Raises MalformedError."""
    private: Secret | None = None
    port = 0
    peers: list[PeerInfo] = []
    for name, value in pairs:
        if name == "private_key":
            private = Secret(_hex(value))
        elif name == "listen_port":
            port = _integer(value)
        elif name == "public_key":
            peers.append(PeerInfo(_hex(value), None, b"", 0, 0, ()))
        elif peers:
            peers[-1] = _with(peers[-1], name, value)
    return DeviceInfo(
        private, port, tuple(peer._replace(allowed=tuple(sorted(peer.allowed))) for peer in peers)
    )


def _with(peer: PeerInfo, name: str, value: str) -> PeerInfo:
    """A peer with one more pair of its lines; what we do not set is passed over."""
    if name == "preshared_key":
        return peer._replace(psk=Secret(_hex(value)) if value.strip("0") else None)
    if name == "endpoint":
        host, _, port = value.rpartition(":")
        return peer._replace(endpoint=_address(host.strip("[]")), port=_integer(port))
    if name == "persistent_keepalive_interval":
        return peer._replace(keepalive_s=_integer(value))
    if name == "allowed_ip":
        net, _, length = value.partition("/")
        return peer._replace(allowed=(*peer.allowed, (_address(net), _integer(length))))
    if name == "last_handshake_time_sec":
        return peer._replace(handshake=value != "0")
    return peer


def _hex(value: str) -> bytes:
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise MalformedError(f"wireguard-go answered a key of {len(value)} characters") from None


def _address(value: str) -> bytes:
    try:
        return ipaddress.ip_address(value.partition("%")[0]).packed
    except ValueError:
        raise MalformedError(f"wireguard-go answered the address {value[:60]!r}") from None


def _integer(value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise MalformedError(f"wireguard-go answered the number {value[:20]!r}") from None
