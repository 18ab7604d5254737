"""What the nftables table denies, live: packets of its nfnetlink_log group as ``base.Drop``.

Life: made while somebody listens to ``/drops``. The prefix says who denies (``policy/nft/layout.denial``), the packet's
first bytes who wanted what of whom. Rules log some packets a second only, so this shows examples; counters count all.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from pycni.kernel.nflog import NflogSocket
from pycni.policy.base import Drop
from pycni.policy.nft.layout import LOG_GROUP
from pycni.wire import iphead, nflog

_PREFIX = re.compile(r"pycni (ingress|egress) (.+?)(?: \+(\d+))?: ?")
BY = "nftables"


class NftDrops:
    """See ``base.DropReader``."""

    def __init__(self, group: int = LOG_GROUP) -> None:
        """Listen in the calling thread's network namespace. Raises KernelError."""
        self._socket = NflogSocket(group)

    def fileno(self) -> int:
        """See ``base.DropReader``."""
        return self._socket.fileno()

    @property
    def lost(self) -> int:
        """See ``base.DropReader``."""
        return self._socket.lost

    def read(self) -> Sequence[Drop]:
        """See ``base.DropReader``. Packets of rules that are none of ours are passed over."""
        now = time.time()
        found = (drop_of(packet, now) for packet in self._socket.read())
        return [drop for drop in found if drop is not None]

    def close(self) -> None:
        """See ``base.DropReader``."""
        self._socket.close()


def drop_of(packet: nflog.Packet, now: float) -> Drop | None:
    """What a logged packet tells; None when it is none of ours. ``now``: for packets without a time of their own."""
    prefix = _PREFIX.fullmatch(packet.prefix)
    head = iphead.arp(packet.payload) if packet.protocol == iphead.ETH_ARP else iphead.decode(packet.payload)
    if prefix is None or head is None:
        return None
    side, policy, more = prefix.groups()
    return Drop(packet.time or now, *head, side, policy, int(more or 0), BY)
