"""``macspoofchk``: which source MACs a port of the bridge may use.

Per checked pod one element in the set of checked ports and one in the set of (port . MAC); two rules drop what
is not in it, however many pods there are. An added MAC (a bond's, a virtual machine's) would be one more element.
"""

from __future__ import annotations

NAME_BYTES = 16
"""Width of nft's ``ifname`` type: a device name padded with zeros (IFNAMSIZ)."""


def port_key(host: str) -> bytes:
    """Key of the set of checked ports."""
    return host.encode().ljust(NAME_BYTES, b"\0")


def port_mac_key(host: str, mac: bytes) -> bytes:
    """Key of the set ``ifname . ether_addr``: each part padded to a multiple of four bytes."""
    return port_key(host) + mac + b"\0\0"
