"""What packets are known by in the kernel, one by one: a few bytes at a place. Pure.

Packet sockets, the listener for drops and nftables' rules all look for a trace's packets by the same list.
"""

from __future__ import annotations

from typing import NamedTuple


class Spot(NamedTuple):
    """Bytes a packet may be known by. Any one of several is enough."""

    version: int
    """4 or 6: of the outermost IP header."""
    protocol: int
    """The outermost one's."""
    offset: int
    """From the outermost network header on; even."""
    value: bytes
    """An even number of them, up to 16."""
