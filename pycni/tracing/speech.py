"""What agents and those who trace say to each other: questions as queries and JSON, watches as lines of JSON.

Life: an agent (``pycni.agent.trace_service``) or a lab's guest writes these, ``remote`` reads them. A watch answers
with a first line that says it is ready and what time it is there, then a line per report, then one that says why it
ends. Nothing here opens anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs, urlencode

import msgspec

from pycni.errors import ConfigError
from pycni.kernel.capture import Frame
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NAMESPACE,
    NODE,
    POD,
    SERVICE,
    EndpointSlice,
    KubeNode,
    Namespace,
    Pod,
    Service,
)
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY, ClusterNetworkPolicy, NetworkPolicy
from pycni.model.space import NodePart, SpaceState
from pycni.trace.cluster import NodeTerms
from pycni.trace.model import Flow, Note
from pycni.tracing.eyes import Launched, Order, Report
from pycni.wire import plain, typed

STATE, OBJECTS, COUNTERS, PEERS, WATCH, SEND = (
    f"/trace/{name}" for name in ("state", "objects", "counters", "peers", "watch", "send")
)
PORT = 9475
"""Where agents listen for each other, unless they are told otherwise."""
TYPES: Mapping[str, Any] = {
    SERVICE: Service,
    ENDPOINT_SLICE: EndpointSlice,
    POD: Pod,
    NAMESPACE: Namespace,
    NODE: KubeNode,
    NETWORK_POLICY: NetworkPolicy,
    CLUSTER_NETWORK_POLICY: ClusterNetworkPolicy,
}

Objects = Mapping[str, Mapping[str, Any]]
"""By kind and key."""


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What one node says of itself for a question."""

    part: NodePart
    terms: msgspec.Raw
    """NodeTerms, by ``wire.plain``."""
    objects: msgspec.Raw
    """Those concerned, by kind and key, by ``wire.plain``."""
    unread: int = 0
    """Pods whose namespaces were not looked at: the question is not about them, and there are many."""


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """Begin to watch."""

    order: Order
    ends: tuple[str, ...] = ()
    """What the trace is about: on a node with many pods only those concerned are watched. (): all."""


class Send(msgspec.Struct, frozen=True, kw_only=True):
    """Send one probe."""

    space: str
    flow: Flow
    token: int
    size: int = 0
    """Bytes of the IP packet, not to be fragmented; 0: a small one."""


class Line(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a watch."""

    ready: bool = False
    node: str = ""
    time_ns: int = 0
    """The clock there, when the line was written; of the first line."""
    clock: str = ""
    """Which clock that is; of the first line. Equal ones are the same clock."""
    frames: tuple[Frame, ...] = ()
    notes: tuple[Note, ...] = ()
    end: str = ""
    """Why there are no more."""
    trouble: str = ""
    """It ends by an error."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another node, as an agent knows it."""

    name: str
    """The node's, as long as it does not answer; its address where nothing else is known."""
    addresses: tuple[str, ...]
    subnets: tuple[str, ...] = ()


class Means(msgspec.Struct, frozen=True, kw_only=True):
    """How the agents of a cluster are asked: files, not what is in them."""

    port: int = PORT
    certificate: str = ""
    key: str = ""
    authority: str = ""
    server_name: str = ""
    """In all agents' certificates; "": they have the addresses they are reached at."""
    token_file: str = ""


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent says of the others."""

    node: str
    peers: tuple[Peer, ...] = ()
    means: Means | None = None
    """None: this agent does not listen for others, so it does not know how they would be asked."""


def state_query(ends: Sequence[str], pods: Sequence[str] = ()) -> str:
    """Path and query."""
    pairs = [("end", item) for item in ends] + [("pods", ",".join(pods))] * bool(pods)
    return f"{STATE}?{urlencode(pairs)}" if pairs else STATE


def asked_of(query: str) -> tuple[list[str], list[str]]:
    """Ends and pods of such a query; an unknown name in it is left alone."""
    found = parse_qs(query)
    return found.get("end", []), [name for item in found.get("pods", []) for name in item.split(",") if name]


def told(part: NodePart, terms: NodeTerms, objects: Objects, unread: int) -> bytes:
    """The answer as JSON."""
    rest = (msgspec.Raw(plain.encode(item)) for item in (terms, objects))
    return msgspec.json.encode(Told(part=part, terms=next(rest), objects=next(rest), unread=unread))


def read_told(raw: bytes) -> tuple[NodePart, NodeTerms, dict[str, dict[str, Any]]]:
    """It again. Raises ConfigError naming what is not as it should be."""
    found = read(raw, Told)
    return found.part, plain.decode(bytes(found.terms), NodeTerms), read_objects(bytes(found.objects))


def read_objects(raw: bytes) -> dict[str, dict[str, Any]]:
    """Objects by kind and key; kinds nobody knows here are left out. Raises ConfigError."""
    found = read(raw, dict[str, dict[str, Any]])
    return {
        kind: {key: plain.revive(value, TYPES[kind], f"{kind} {key}") for key, value in objects.items()}
        for kind, objects in found.items()
        if kind in TYPES
    }


def read(raw: bytes, kind: Any) -> Any:
    """A value of a type, from any thread. Raises ConfigError."""
    decoder = _DECODERS.get(kind)
    try:
        return decoder.decode(raw) if decoder is not None else typed.decode(raw, kind)
    except msgspec.DecodeError as exc:
        raise ConfigError("trace", "", raw[:60].decode(errors="replace"), str(exc)) from exc


def moved(note: Note, node: str, ahead_ns: int) -> Note:
    """A note of a node whose clock is ahead of ours."""
    return msgspec.structs.replace(note, node=node, time_ns=note.time_ns - ahead_ns)


def line(report: Report) -> bytes:
    """A report as a line."""
    return msgspec.json.encode(Line(frames=report.frames, notes=report.notes)) + b"\n"


_DECODERS: Mapping[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind)
    for kind in (Told, Watch, Send, Line, Peers, Launched, SpaceState, dict[str, dict[str, Any]])
}
"""Made when this is imported, before any thread needs them: see ``wire.typed``."""
