"""WireGuard's peers as the fourth hot table, and secrets that cannot slip into a log.

A peer is found by device and public key; the rest is the value. The pre-shared key itself is in no table: a
fingerprint tells whether the right one is set.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from typing import NamedTuple

import msgspec

from pycni.model.family import show

KEY_BYTES = 32
"""A Curve25519 key, also a pre-shared key (WG_KEY_LEN)."""


class Secret(msgspec.Struct, frozen=True):
    """Bytes that are shown to nobody: ``repr`` hides them."""

    value: bytes

    def __repr__(self) -> str:
        return "Secret(...)"

    @property
    def fingerprint(self) -> str:
        """Tells two secrets apart without giving one away: 32 bits of a keyed hash."""
        return hashlib.blake2b(self.value, digest_size=4, key=b"pycni wireguard").hexdigest()


class WireguardKey(NamedTuple):
    """A peer is found by device and public key."""

    device: str
    public_key: bytes


class WireguardPeer(NamedTuple):
    """Where a peer is, and which addresses are its."""

    endpoint: bytes
    """Underlay address, packed; empty when none is known."""
    port: int
    allowed: tuple[tuple[bytes, int], ...]
    """Networks of the peer as (packed, prefix length), sorted: to it, and accepted from it."""
    keepalive_s: int = 0
    psk: str = ""
    """Fingerprint of the pre-shared key, "" without one."""


class WireguardSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver needs besides the tables. Never in a state, never in a log."""

    public_key: bytes
    private_key: Secret
    psk: Secret | None
    folder: str
    """Where wireguard-go's socket may be, for kernels without WireGuard."""


def key_text(key: bytes) -> str:
    """A key in the notation of wg(8)."""
    return base64.b64encode(key).decode()


def parse_key(text: str) -> bytes | None:
    """A key in the notation of wg(8); None for anything else, and for the key of zeros, which is none."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return key if len(key) == KEY_BYTES and any(key) else None


def wireguard_text(key: WireguardKey, peer: WireguardPeer) -> str:
    """One peer in the words of wg(8), without secrets."""
    host = f"[{show(peer.endpoint)}]" if len(peer.endpoint) == 16 else show(peer.endpoint or bytes(4))
    words = ["peer", key_text(key.public_key), "dev", key.device, "endpoint", f"{host}:{peer.port}"]
    words += ["allowed-ips", ",".join(f"{show(net)}/{length}" for net, length in peer.allowed)]
    if peer.keepalive_s:
        words += ["persistent-keepalive", str(peer.keepalive_s)]
    return " ".join([*words, "psk"] if peer.psk else words)
