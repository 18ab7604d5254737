"""What a check consists of: who is there, what is tried, what came of it. Pure.

Life: a ground (``lab``, ``kube``) tells its ``Site``, ``objects`` makes manifests of it, and once their pods are there
``plan`` makes ``Test`` values out of ``Scene``; each ``Case`` has one ``Task`` for the program in a pod (``peer``),
whose ``Answer`` ``judge`` holds against what the case expects. ``Result`` is a line of the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pycni.model.family import Family

NAMESPACE = "pycni-check"
PORT = 8080
"""Of the servers in pods, TCP and UDP."""
HOST_PORT = 28473
"""Of the servers in nodes' own networks: below node ports and the ports kernels give out."""
FAR = "far-"
"""Name of the pod of a further node: this and the node's name."""
ANSWER_S = 4.0
"""How long an answer may take."""
SILENCE_S = 1.0
"""After which somebody who must not get through has not."""
OPEN, DENY, ALLOW = 0, 1, 2
"""Phases: without policies of ours, with those that deny, with those that allow besides."""
POD, NODE, OUTSIDE = "pod", "node", "outside"


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """An end of what is tried."""

    name: str
    """A pod's (in the check's namespace), a node's, ``outside``."""
    kind: str
    node: str = ""
    addresses: Mapping[Family, str] = {}

    @property
    def trace_name(self) -> str:
        """What a trace calls it; "" when none can begin there."""
        return {POD: f"{NAMESPACE}/{self.name}", NODE: f"node/{self.name}"}.get(self.kind, "")


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """What is there before the check brings anything."""

    name: str
    """For people: the lab, the API server."""
    nodes: tuple[Host, ...]
    families: tuple[Family, ...]
    left_out: int = 0
    """Nodes that are not tried."""
    services: bool = True
    policies: bool = True
    dns: str = "cluster.local"
    """Domain of the cluster; "": names are not resolved."""
    outside: Host | None = None
    outside_port: int = HOST_PORT
    outside_is_ours: bool = False
    """Whether a program of the check answers there, which tells as whom it sees a pod."""
    beside_node: bool = False
    """Pods are on the underlay themselves: they do not reach their own node, nor Services past it."""
    answer_s: float = ANSWER_S
    patience_s: float = 0.0
    """How long it may take until Services and policies that were stored are in force."""
    restarts: bool = False
    """Whether an agent can be restarted."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """What is there once the check's pods run."""

    site: Site
    pods: Mapping[str, Host]
    services: Mapping[str, Mapping[str, Any]] = {}
    """``spec`` of the check's Services by name, as they are stored."""


class Task(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing for the program in a pod to do."""

    number: int
    kind: str
    """tcp, udp, ping, mtu (a full-size packet that may not be fragmented), bulk (megabytes by TCP) or name."""
    host: str
    """Address; of kind ``name`` and for ``tcp`` also a name to be resolved."""
    port: int = 0
    family: int = 0
    """Of kind ``name``: whose addresses are wanted."""
    count: int = 1
    """How often, each time from a fresh port."""
    wait_s: float = ANSWER_S
    patience_s: float = 0.0
    """How long it is tried again while the outcome is not the wanted one."""
    silence: bool = False
    """Nobody answering is the wanted outcome."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the program in the pod says of a task."""

    number: int
    why: str = ""
    """Why it did not get through; "" when it did."""
    who: tuple[str, ...] = ()
    """The names of the servers that answered; of kind ``name``: addresses."""
    seen: tuple[str, ...] = ()
    """As whom they saw the asker."""
    ms: float = 0.0
    """The longest round trip, in milliseconds."""


class Expect(msgspec.Struct, frozen=True, kw_only=True):
    """What is right."""

    denied: bool = False
    who: tuple[str, ...] = ()
    """Who may answer; empty: anybody."""
    same: bool = False
    """Always the same one."""
    seen: tuple[str, ...] = ()
    """As whom the asker may be seen; empty: as anybody."""
    addresses: tuple[str, ...] = ()
    """What a name stands for."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One try of a test."""

    source: Host
    target: str
    """For people."""
    family: Family
    task: Task
    expect: Expect = Expect()

    @property
    def words(self) -> str:
        """``a (node1) -> far-node2, tcp 10.244.1.3:8080``."""
        where = f" ({self.source.node})" if self.source.kind == POD else ""
        host = f"[{self.task.host}]" if ":" in self.task.host else self.task.host
        at = f"{host}:{self.task.port}" if self.task.port else self.task.host
        return f"{self.source.name}{where} -> {self.target}, {self.task.kind} {at}"


class Test(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table."""

    __test__ = False

    name: str
    about: str
    phase: int = OPEN
    cases: tuple[Case, ...] = ()
    skipped: str = ""
    """Why it is not tried."""


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A case that went wrong."""

    case: str
    reason: str
    kind: str = ""
    """Of the fault a trace found: ``fdb-missing`` ...; "" when none was made or found any."""
    node: str = ""
    cause: str = ""
    command: str = ""
    """To look further."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a test."""

    name: str
    about: str
    status: str
    """ok, failed or skipped."""
    tried: int = 0
    slowest_ms: float = 0.0
    failures: tuple[Failure, ...] = ()
    note: str = ""
    """Why it was skipped; of a measured one: figures."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The whole check."""

    site: str
    results: tuple[Result, ...]
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    """What could not be done besides: removing, tracing."""

    @property
    def ok(self) -> bool:
        """Whether something was tried and nothing failed."""
        tried = [item for item in self.results if item.status != "skipped"]
        return bool(tried) and all(item.status == "ok" for item in tried)
