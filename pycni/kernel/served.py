"""What serves a hot table that rtnetlink has not: WireGuard's peers, the udp forwarder's networks.

Life: ``kernel/fabric`` holds one driver per such table. In a full read each gets the links that are its; in a pass its
entries are put before the routes that need them and removed after those. A further table is a driver like these, its
field in ``FabricState``, ``PeerEntries``, ``Touched`` and ``fabric.Tables``, and an entry in ``fabric.SERVED``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.tunnel import Lost, PutSysctl
from pycni.model.fabric import Link
from pycni.wire import rtlink


class Served(Protocol):
    """Driver of one table and, if it has any, its devices. One thread at a time."""

    table: str
    """Field of FabricState."""
    label: str
    """The table's entries as a failure names them."""

    def owns(self, link: rtlink.Link) -> bool:
        """Whether a link of ours is this driver's, by its kind and name."""
        ...

    def read(
        self, sock: NetlinkSocket, links: Sequence[rtlink.Link]
    ) -> tuple[Mapping[str, Link], Mapping[Any, Any]]:
        """Devices (the links ``owns`` said yes to) and all entries as they are. Raises KernelError."""
        ...

    def ensure(self, sock: NetlinkSocket, desired: Any, actual: Any, put_sysctl: PutSysctl) -> Lost:
        """Make a device what it should be; returns what has to be replayed on it. Raises KernelError."""
        ...

    def put(self, entries: Mapping[Any, Any]) -> dict[Any, KernelError]:
        """Make or change entries; returns what failed."""
        ...

    def remove(self, keys: Iterable[Any]) -> dict[Any, KernelError]:
        """Remove entries; missing ones, and those of a device that is gone, are success. Returns what failed."""
        ...

    def text(self, key: Any, value: Any) -> str:
        """An entry in words, without secrets."""
        ...

    def close(self) -> None:
        """Close what is open; harmless when it is closed."""
        ...
