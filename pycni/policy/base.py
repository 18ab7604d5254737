"""What a policy data plane is: a pure compiler from rows of a node's view to rows of the kernel, and a driver. Pure.

Life of a change: ``view/policies`` says which of its rows changed (``RowDiff``); the engine has the compiler turn each
of them, as it was and as it is, into rows; the difference goes to the driver as one transaction. A compiled row of the
view depends on nothing but itself, so that order and history do not matter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pycni.reconcile.ledger import Changes, Tables
from pycni.view.policy_stages import RowDiff

JUDGED_MARK = 0x08000000
"""Bit of a packet's mark: a fast path of this node has judged its connection. Marks do not cross namespaces."""


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


class Hits(NamedTuple):
    """New connections that rules of a policy have decided about, either way, as far as it is counted."""

    policy: str
    direction: str
    connections: int


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

    def check(self, changes: Changes) -> None:
        """Have the kernel try differences as ``apply`` would carry them out, changing nothing. Raises KernelError."""

    def denied(self) -> Sequence[Denied]:
        """What has been denied, by policy and direction. Raises KernelError."""

    def remove(self) -> list[str]:
        """Take everything of ours out of the kernel; says what went."""

    def close(self) -> None:
        """Release sockets; the kernel keeps enforcing."""


class LocalPod(NamedTuple):
    """A pod of this node as its host sees it: whose device, and who may send by it."""

    key: str
    """``namespace/name``; a container id when the runtime did not tell."""
    ifname: str
    """Of the host's end of its veth pair."""
    mac: bytes
    """Of the pod's end."""
    addresses: tuple[bytes, ...]
    routed: bool = False
    """Its host end is on no bridge (attachment ``ptp``)."""


class Drop(NamedTuple):
    """A packet that was not let through, as told by the kernel."""

    time: float
    """Seconds since the epoch."""
    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    """0 where there are none; so is ``port``."""
    port: int
    direction: str
    """ingress or egress."""
    policy: str
    """``NetworkPolicy a/x``, ``ClusterNetworkPolicy x``, or what else refused it (``spoofed source``)."""
    more: int
    """How many further policies deny it too."""
    by: str
    """nftables, ebpf or xdp."""


class DropReader(Protocol):
    """Live denials from one source in the kernel. Made in the node's network namespace; reading never blocks."""

    def fileno(self) -> int:
        """Becomes readable when there is something to read."""

    def read(self) -> Sequence[Drop]:
        """What has come since. Raises KernelError."""

    @property
    def lost(self) -> int:
        """How many the kernel could not tell of for want of room."""

    def close(self) -> None:
        """Stop listening."""


class FastPath(Protocol):
    """Programs that judge connections before the data plane below would, and only those they see whole.

    What they are not certain of, and everything while they stand aside, goes on to the data plane, which has the same
    policies. So they may be missing, stand aside or be taken away at any moment, and nothing gets through.
    Blocking; one thread at a time; made in the node's network namespace.
    """

    name: str

    def update(self, rows: Sequence[RowDiff], *, full: bool) -> None:
        """Take in rows of the view that changed. ``full``: they are all there are, compared with nothing."""

    def aside(self) -> None:
        """Leave new connections to the data plane, before that changes. Raises KernelError."""

    def apply(self) -> int:
        """Bring the kernel to what was taken in, then judge again; says how many operations. Raises KernelError."""

    def pods(self, pods: Sequence[LocalPod]) -> None:
        """Serve these pods and no others. Raises KernelError after having served all it could."""

    def decide(self, packet: Packet) -> Decision | None:
        """What the compiled maps say of a packet; must agree with oracle, data plane and kernel.

        None: it is left to the data plane below, for want of room.
        """

    def read_back(self, packet: Packet) -> Decision | None:
        """The same by the maps in the kernel, looked up there: ``explain`` compares. Raises KernelError."""

    def sweep(self) -> None:
        """Forget connections that have ended, as needs doing every few seconds. Raises KernelError."""

    def denied(self) -> Sequence[Denied]:
        """What has been denied, by policy and direction. Raises KernelError."""

    def hits(self) -> Sequence[Hits]:
        """What it has decided itself, by policy and direction. Raises KernelError."""

    def drops(self) -> DropReader:
        """Live denials. Raises KernelError."""

    def figures(self) -> Mapping[str, float]:
        """For metrics: entries of maps (``flows``), their limits (``flows limit``) and the like. Raises KernelError."""

    def sides(self) -> tuple[Sequence[str], Sequence[str]]:
        """What maps and hooks are to hold, and what they hold, line by line (``pycnictl dump``). Raises KernelError."""

    def problems(self) -> Sequence[str]:
        """What keeps it from judging all it could, in words."""

    def remove(self) -> list[str]:
        """Take everything of ours out of the kernel; says what went."""

    def close(self) -> None:
        """Release descriptors; the kernel keeps the programs."""


class Dataplane(NamedTuple):
    """One implementation, made for one node."""

    name: str
    compiler: Compiler
    driver: Driver
