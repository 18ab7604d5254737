"""What an agent tells of itself to ``pycnictl status``, ``ipam`` and ``dump``: the shapes of the answers. Pure.

Life: made in the agent for one question, sent as JSON over its control socket, read back by the command. Light, because
a command that asks pays for importing it. Durations are seconds; moments are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class PartStatus(msgspec.Struct, frozen=True):
    """One part of the agent, as ``/readyz`` judges it."""

    name: str
    ok: bool
    reason: str
    for_s: float
    """How long it has been so."""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Another node's subnet of one family."""

    lease: str
    family: str
    """ipv4 or ipv6."""
    subnet: str
    public: str
    """The underlay address it is reached by."""
    backend: str
    reachable: bool | None
    """By the probe through the pod network; None: it was never answered, or there is no way of ours to it."""
    latency_ms: float | None
    asked_s: float | None
    """How long ago it was last asked; None: not yet, or not probed."""
    answered_s: float | None
    refused: str
    """Why it has no entries; "" when it has."""


class LeaseStatus(msgspec.Struct, frozen=True, kw_only=True):
    """This node's own lease."""

    key: str
    subnets: tuple[str, ...]
    public: tuple[str, ...]
    backend: str
    expires_in_s: float | None
    """None: a static reservation."""
    confirmed: bool
    """Whether it was confirmed in this life of the agent; else it is remembered from an earlier one."""


class Complaint(msgspec.Struct, frozen=True):
    """A warning or an error of the log."""

    first: float
    last: float
    count: int
    level: str
    area: str
    text: str


class RepairStatus(msgspec.Struct, frozen=True):
    """Something somebody else had changed, that is set right."""

    at: float
    part: str
    entries: int
    what: str


class NetworkStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The node's part of the pod network."""

    backend: str
    subnets: tuple[str, ...]
    networks: tuple[str, ...]
    underlay: str
    underlay_mtu: int
    mtu: int
    """Of pods; 0: not known yet."""
    lease: LeaseStatus | None
    leases: int
    """Everybody's, ours too."""
    waiting: str
    """What keeps leases from being followed; "" when they are."""
    probed: bool
    """Whether peers are asked over the overlay."""
    peers: tuple[PeerStatus, ...]


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/status``."""

    node: str
    version: str
    kernel: str
    pid: int
    up_s: float
    memory_bytes: int
    ready: bool
    components: tuple[str, ...]
    parts: tuple[PartStatus, ...]
    pods: Mapping[str, int]
    """Attachments by state."""
    network: NetworkStatus | None
    """None: this agent has no network component, or it has not begun."""
    errors: tuple[Complaint, ...]
    repairs: tuple[RepairStatus, ...]
    repaired: Mapping[str, int]
    """Entries set right since the start, by part."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """State of one kind on one node, as lines in the notation of the tool that lists it."""

    part: str
    """fabric, pods, services, policies or bgp."""
    name: str
    """What of it: a data plane, a pod."""
    desired: tuple[str, ...] = ()
    actual: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    """Wanted, and not there."""
    extra: tuple[str, ...] = ()
    """There, and not wanted."""
    notes: tuple[str, ...] = ()
    """What lines do not show."""

    @property
    def same(self) -> bool:
        """Whether the kernel is as wanted."""
        return not (self.missing or self.extra or self.notes)


class Dump(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/dump``."""

    node: str
    sections: tuple[Section, ...]
    troubles: Mapping[str, str] = {}
    """Parts whose state cannot be had, and why."""


class Reserved(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation, or an address that should have one."""

    network: str
    address: str
    container_id: str
    ifname: str
    state: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    data_dir: str = ""
    kind: str = ""
    """What is wrong with it; see ``ipam.audit``."""
    why: str = ""


class IpamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/ipam`` (all reservations) and of ``/ipam/check`` (what is irregular)."""

    node: str
    rows: tuple[Reserved, ...]


class Released(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/ipam/release``."""

    node: str
    address: str
    network: str
    container_id: str
    how: str


def encode(value: Any) -> str:
    """As JSON, one line."""
    return msgspec.json.encode(value).decode() + "\n"
