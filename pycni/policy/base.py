"""What a policy data plane is: a pure compiler from rows of a node's view to rows of the kernel, and a driver. Pure.

Life of a change: ``view/policies`` says which of its rows changed (``RowDiff``); the engine has the compiler turn each
of them, as it was and as it is, into rows; the difference goes to the driver as one transaction. A compiled row of the
view depends on nothing but itself, so that order and history do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pycni.reconcile.ledger import Changes, Tables


class Packet(NamedTuple):
    """The first packet of a connection as a node sees it, after service translation and before masquerading."""

    source: bytes
    destination: bytes
    protocol: int
    port: int
    """Of the destination; 0 where there are none."""
    local: bool = False
    """This node sends it itself, whatever its source address."""


class Decision(NamedTuple):
    """What a node does to a packet."""

    allowed: bool
    denied_by: tuple[str, ...] = ()
    """Policies that deny it: ``NetworkPolicy a/x`` or ``ClusterNetworkPolicy x``."""
    direction: str = ""
    """ingress or egress, when denied."""


class Denied(NamedTuple):
    """Packets a policy has denied, since its chain was programmed."""

    policy: str
    direction: str
    packets: int
    bytes: int


class Compiler(Protocol):
    """The pure half."""

    tables: tuple[str, ...]
    """All tables, in dependency order."""
    shared: frozenset[str]

    def rows(self, table: str, key: Any, value: Any) -> Tables:
        """The rows of one row of the view (a table of ``view/policy_stages``)."""

    def common(self) -> Tables:
        """Rows that are there whatever policies there are."""

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """What the compiled tables do to a packet; must agree with oracle and kernel."""

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """The tables in the domain's notation."""


class Driver(Protocol):
    """The half that speaks to the kernel. Blocking; one thread at a time; made in the node's network namespace."""

    def read(self) -> Tables:
        """What is ours in the kernel now. Raises KernelError."""

    def apply(self, changes: Changes) -> None:
        """Carry out differences as one transaction. Raises KernelError."""

    def denied(self) -> Sequence[Denied]:
        """What has been denied, by policy and direction. Raises KernelError."""

    def remove(self) -> list[str]:
        """Take everything of ours out of the kernel; says what went."""

    def close(self) -> None:
        """Release sockets; the kernel keeps enforcing."""


class Dataplane(NamedTuple):
    """One implementation, made for one node."""

    name: str
    compiler: Compiler
    driver: Driver
