"""What the cluster's objects do to packets, as a walk asks for it; and what a walk gives. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from pycni.trace.model import Flow, Hop


class Turn(NamedTuple):
    """What a service does to a first packet."""

    service: str
    """``namespace/name:port``."""
    target: tuple[bytes, int] | None
    """None: there is nowhere to go."""
    refused: bool = False
    """Without a target: the client is told; else the packet is dropped."""
    masquerade: bool = False
    others: tuple[tuple[bytes, int], ...] = ()
    """Targets it might have gone to as well."""
    how: str = ""
    """Scheduler, kind of address."""


class Judged(NamedTuple):
    """What policies say of one direction."""

    allowed: bool
    words: str


class Ways(Protocol):
    """What the cluster's objects do to packets."""

    def service(self, node: str, flow: Flow, came: str) -> Turn | None:
        """Translation at a node. ``came``: pod, node or outside. None: no service's address."""
        ...

    def policy(self, node: str, flow: Flow) -> Sequence[Judged]:
        """The directions a node judges of a first packet."""
        ...

    def masquerade(self, node: str, flow: Flow) -> bool:
        """Whether what leaves the node by its underlay gets the node's own address."""
        ...


class Nat(NamedTuple):
    """A translation that connection tracking of a node remembers, or a pod's socket."""

    node: str
    before: Flow
    after: Flow
    space: str = ""


class Path(NamedTuple):
    """Where a packet went."""

    hops: tuple[Hop, ...]
    flow: Flow
    """As it arrived, or was lost."""
    node: str
    space: str
    nats: tuple[Nat, ...] = ()

    @property
    def arrived(self) -> bool:
        """Whether somebody got it."""
        return bool(self.hops) and self.hops[-1].action == "delivered"
