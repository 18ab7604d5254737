"""What a service data plane is: a pure compiler from frontends to rows, and a driver that puts rows into the kernel.

Life of a change: ``engine`` resolves a changed Service into frontends, has the compiler turn the service's frontends
into rows before and after, takes the difference table by table and gives all of it to the driver as one batch. After a
start or a failure the driver reads back what is ours and the whole difference is applied: nothing is flushed.

A table is a mapping from what the kernel indexes by to the rest, both plain values (tuples, bytes, numbers). Tables a
compiler lists in ``shared`` may get the same row from several services (a chain for pools of five, an address on the
dummy device): such a row goes when its last owner goes. Rows of other tables belong to one service, because the engine
gives every virtual address to one service only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from pycni.model.service import Decision, Frontend, FrontendKey, NodeFacts, Packet, Target
from pycni.reconcile import ledger

Table: TypeAlias = ledger.Table
Tables: TypeAlias = ledger.Tables
Changes: TypeAlias = ledger.Changes


class Counters(NamedTuple):
    """Of one frontend, since it was programmed. -1: this data plane does not count that."""

    connections: int
    packets_in: int = -1
    packets_out: int = -1
    bytes_in: int = -1
    bytes_out: int = -1


class TargetState(NamedTuple):
    """Of one target of one frontend, for ``pycnictl services``."""

    target: Target
    weight: int
    """0: draining."""
    active: int
    """Open connections; -1: not counted."""


class Compiler(Protocol):
    """The pure half. Deterministic; the order of frontends must not matter."""

    tables: tuple[str, ...]
    """All tables, in dependency order: a row may need rows of tables before its own."""
    shared: frozenset[str]

    def refusal(self, frontend: Frontend) -> str:
        """Why this data plane cannot serve a frontend; "" when it can. The component falls back and says so."""

    def rows(self, frontends: Sequence[Frontend]) -> Tables:
        """The rows of one service (of the frontends given, none refused)."""

    def common(self) -> Tables:
        """Rows that are there whatever services there are."""

    def decide(self, tables: Mapping[str, Mapping[Any, Any]], packet: Packet) -> Decision:
        """What the compiled tables do to a packet: the evaluator that must agree with oracle and kernel."""

    def text(self, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
        """The tables in the domain's notation (nft text, ``ipvsadm -Sn`` lines), sorted."""


@runtime_checkable
class Remarking(Protocol):
    """A compiler that serves some frontends otherwise than they wish, rather than refuse them."""

    def remark(self, frontend: Frontend) -> str:
        """Which wish of a frontend served here is not granted, and what holds instead; "" when all are."""


class Driver(Protocol):
    """The half that speaks to the kernel. Blocking; one thread at a time; made in the node's network namespace."""

    def read(self) -> Tables:
        """What is ours in the kernel now. An empty kernel gives empty tables. Raises KernelError."""

    def apply(self, changes: Changes) -> None:
        """Carry out differences, as one transaction where the kernel has one. Raises KernelError or ExceptionGroup.

        After a failure the engine reads back and tries the whole difference again.
        """

    def counters(self) -> Mapping[FrontendKey, Counters]:
        """Counters by frontend."""

    def targets(self, key: FrontendKey) -> Sequence[TargetState]:
        """The kernel's view of one frontend's targets."""

    def poll(self) -> float | None:
        """Periodic work (removing drained real servers); seconds until wanted again, None: not before an apply."""

    def remove(self) -> list[str]:
        """Take everything of ours out of the kernel, whatever made it; says what went. Harmless without any."""

    def close(self) -> None:
        """Release sockets; the kernel keeps working."""


class Dataplane(NamedTuple):
    """One implementation, made for one node."""

    name: str
    """nftables, ipvs or ebpf."""
    compiler: Compiler
    driver: Driver
    partial: bool = False
    """It sees only some of the traffic (sockets of this node): the next data plane gets its frontends too, and whoever
    evaluates asks the compilers in turn until one does not answer ``UNTOUCHED``."""


class Factory(Protocol):
    """The module-level functions of an implementation package (``pycni_proxy.nft``, ``.ipvs``, ``.ebpf``)."""

    def missing(self) -> str:
        """What this kernel or machine lacks for it, in one line; "" when it can run here. Does not change anything."""

    def make(self, facts: NodeFacts) -> Dataplane:
        """A data plane for this node. Raises KernelError, ConfigError."""

    def leftovers(self) -> list[str]:
        """Remove what an earlier life of this data plane left in this namespace; says what went."""
