"""Peers of the udp backend as the fifth hot table: which network is behind which forwarder.

The forwarder is a program of ours (``pycni/forwarder``) that carries the packets of one TUN device in UDP. The
pre-shared key is in no table: a fingerprint in ``UdpLink`` tells whether the right one is set.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pycni.model.family import show
from pycni.model.wireguard import Secret


class UdpKey(NamedTuple):
    """A network of pods behind a device."""

    device: str
    network: bytes
    """Packed base address."""
    prefix_len: int


class UdpPeer(NamedTuple):
    """Where the packets of a network go, and come from."""

    endpoint: bytes
    """Underlay address, packed."""
    port: int


class UdpSecrets(msgspec.Struct, frozen=True, kw_only=True):
    """What the driver needs besides the tables. Never in a state, never in a log."""

    folder: str
    """Where the forwarders' control sockets are."""
    psk: Secret | None


def udp_text(key: UdpKey, peer: UdpPeer) -> str:
    """One network with its forwarder, in words."""
    host = f"[{show(peer.endpoint)}]" if len(peer.endpoint) == 16 else show(peer.endpoint)
    return f"forward {show(key.network)}/{key.prefix_len} dev {key.device} to {host}:{peer.port}"
