"""What nodes tell of traffic: counters as they stand, names of addresses, connections. The shapes alone; pure.

Life: the agent answers ``/rates`` (``Counted``) and ``/names`` (``Names``); the reader beside it (``cli_traffic``) adds
what it sees of connection tracking (``Tracked``, ``Flow``), which costs the agent nothing. Counters are raw, with the
monotonic time they were read at: ``rates`` takes two samples apart. -1 everywhere: that is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

NOT_COUNTED = -1

EARLY = ("ebpf",)
"""Data planes of services that translate before connection tracking looks."""

ALLOWED, DENIED, UNTRANSLATED = "allowed", "denied", "untranslated"
VERDICTS = (ALLOWED, DENIED, UNTRANSLATED)
NEW, CHANGED, ENDED, PRESENT = "new", "changed", "ended", "present"
"""``Flow.event``; ``denied`` for packets that policies told of."""


class PodCount(msgspec.Struct, frozen=True, array_like=True):
    """A pod's interface since it was made; directions are the pod's view."""

    pod: str
    """``namespace/name``; the container's id when the runtime did not tell."""
    interface: str
    """The pod's own name of it."""
    bytes_in: int
    packets_in: int
    bytes_out: int
    packets_out: int
    drops: int
    """Packets the interface lost, either way."""


class ServiceCount(msgspec.Struct, frozen=True, array_like=True):
    """A service on this node, since it was programmed."""

    service: str
    connections: int
    bytes_in: int = NOT_COUNTED
    """From clients."""
    packets_in: int = NOT_COUNTED
    bytes_out: int = NOT_COUNTED
    packets_out: int = NOT_COUNTED


class PolicyCount(msgspec.Struct, frozen=True, array_like=True):
    """Packets a policy has denied on this node."""

    policy: str
    direction: str
    packets: int
    bytes: int


class Services(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/rates/services``."""

    at_ns: int = 0
    """Monotonic."""
    planes: tuple[str, ...] = ()
    rows: tuple[ServiceCount, ...] = ()


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/rates/policies``."""

    at_ns: int = 0
    rows: tuple[PolicyCount, ...] = ()


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/rates``. Parts that cannot be had are empty, with a line in ``troubles``."""

    node: str
    at_ns: int
    """Monotonic, of ``pods``."""
    pods: tuple[PodCount, ...] = ()
    services: Services = Services()
    policies: Policies = Policies()
    troubles: Mapping[str, str] = {}


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """Connections of a pod or to a service, from the node's connection tracking."""

    active: int
    """Now; TCP connections that were not answered, or are closed and only remembered, do not count."""
    new: int
    """Since the reader began."""
    bytes_out: int = NOT_COUNTED
    """From the openers of connections, since the reader began."""
    packets_out: int = NOT_COUNTED
    bytes_back: int = NOT_COUNTED
    packets_back: int = NOT_COUNTED


class Tracked(msgspec.Struct, frozen=True, kw_only=True):
    """What connection tracking says, as of the last time it was read."""

    at_ns: int
    entries: int
    limit: int
    """nf_conntrack_max; 0: not known."""
    accounting: bool
    """nf_conntrack_acct."""
    read_s: float
    """What reading the table took; the next reading waits so that it is a tenth of the time at most."""
    pods: Mapping[str, Tally] = {}
    services: Mapping[str, Tally] = {}


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One node at one moment."""

    node: str
    time: float
    """Seconds since the epoch."""
    counted: Counted | None = None
    tracked: Tracked | None = None
    troubles: Mapping[str, str] = {}


class ServiceName(msgspec.Struct, frozen=True, array_like=True):
    """Where a service is met."""

    address: str
    """"" for a node port."""
    protocol: str
    port: int
    service: str


class ServiceNames(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/names/services``."""

    generation: str = ""
    planes: tuple[str, ...] = ()
    frontends: tuple[ServiceName, ...] = ()
    endpoints: tuple[ServiceName, ...] = ()
    """Where a data plane translates before connection tracking looks (ebpf)."""


class Names(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``/names``."""

    node: str
    generation: str
    """Equal ones name equal things."""
    fresh: bool = True
    """False: as of the generation asked with, nothing has changed, and nothing else is here."""
    addresses: tuple[str, ...] = ()
    """The node's own."""
    pods: Mapping[str, str] = {}
    """``namespace/name`` by address."""
    local: tuple[str, ...] = ()
    """Addresses of pods of this node."""
    nodes: Mapping[str, str] = {}
    """Names of all known nodes by address."""
    services: ServiceNames = ServiceNames()


class Flow(msgspec.Struct, kw_only=True, omit_defaults=True, tag="flow"):
    """A connection, or a packet that was denied, as one node saw it."""

    time: float
    """Seconds since the epoch."""
    node: str
    event: str
    verdict: str
    protocol: str
    source: str
    source_port: int = 0
    source_name: str = ""
    destination: str
    """As the opener sent it."""
    port: int = 0
    destination_name: str = ""
    service: str = ""
    via: str = ""
    """The service this may have been meant for, where translation comes before connection tracking."""
    translated_source: str = ""
    """As the far end sees it; "" when it was not translated. So are the other three."""
    translated_source_port: int = 0
    translated_destination: str = ""
    translated_port: int = 0
    translated_name: str = ""
    policy: str = ""
    direction: str = ""
    by: str = ""
    """What denied it: nftables, ebpf, xdp."""
    more: int = 0
    """How many further policies deny it too."""
    state: str = ""
    answered: bool = False
    bytes_out: int = NOT_COUNTED
    packets_out: int = NOT_COUNTED
    bytes_back: int = NOT_COUNTED
    packets_back: int = NOT_COUNTED
    duration_s: float = -1.0
    """Of a connection that ended, or so far; -1.0: its beginning was not seen."""
    resynced: bool = False
    """Found in the table after events were lost."""
    ident: int = 0


class Lost(msgspec.Struct, kw_only=True, omit_defaults=True, tag="lost"):
    """Something that could not be told, told."""

    time: float
    node: str
    what: str
    count: int = NOT_COUNTED
    """How many, where that is known."""


class Listening(msgspec.Struct, kw_only=True, tag="listening"):
    """From now on everything is heard."""

    time: float
    node: str
    what: str
    """connections or denials."""
