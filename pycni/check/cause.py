"""Why a case failed, by what a trace of the same packet says. Pure."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pycni.check.model import NAMESPACE, OUTSIDE, Case, Failure
from pycni.trace.model import Fault, Trace

DNS = "kube-system/kube-dns:53"
SIZES = frozenset({"mtu", "bulk"})
"""Kinds of tasks that small packets tell nothing of."""
_ABOUT_SIZE = ("mtu-too-small", "checksum")


class Question(NamedTuple):
    """What to trace."""

    source: str
    target: str
    protocol: str


def question(case: Case) -> Question | None:
    """The packet that stands for a case; None when a trace cannot begin where it did."""
    if case.source.kind == OUTSIDE:
        return None
    task = case.task
    if task.kind == "name" or (task.kind == "tcp" and task.host.endswith(f".{NAMESPACE}")):
        return Question(case.source.trace_name, DNS, "udp")
    host = f"[{task.host}]" if ":" in task.host and task.port else task.host
    target = f"{host}:{task.port}" if task.port else task.host
    return Question(
        case.source.trace_name, target, {"udp": "udp"}.get(task.kind, "tcp" if task.port else "icmp")
    )


def explained(case: Case, reason: str, trace: Trace | None) -> Failure:
    """The failure with its likeliest cause."""
    failure = Failure(case=case.words, reason=reason)
    if trace is None:
        return failure
    found = _likeliest(case, trace)
    if case.expect.denied:
        return msgspec.structs.replace(failure, cause=_not_enforced(trace), kind="policy-not-enforced",
                                       node=found.node if found else "", command="pycnictl status")  # fmt: skip
    if found is None:
        return msgspec.structs.replace(failure, cause=_passes(case), command=_remembered(case))
    return msgspec.structs.replace(
        failure, kind=found.kind, node=found.node, cause=found.cause, command=found.command
    )


def _passes(case: Case) -> str:
    """What is left where a trace finds nothing wrong."""
    if case.task.kind in SIZES:
        return "a small packet gets through: a smaller path MTU may be remembered, for up to ten minutes"
    if case.target.startswith("Service"):
        return "a single packet gets through, by one of the Service's endpoints"
    return "a single packet gets through and comes back"


def _remembered(case: Case) -> str:
    return f"ip route get {case.task.host}" if case.task.kind in SIZES else ""


def _likeliest(case: Case, trace: Trace) -> Fault | None:
    """The fault; where small packets pass, what is suspected on the way, sizes first for what is about sizes."""
    if trace.fault is not None:
        return trace.fault
    sizes = [item for item in trace.suspicions if item.kind in _ABOUT_SIZE]
    if case.task.kind in SIZES and sizes:
        return sizes[0]
    return trace.suspicions[0] if trace.suspicions else None


def _not_enforced(trace: Trace) -> str:
    hop = next((hop for hop in trace.hops if hop.component == "policy"), None)
    where = f" at {hop.node}: {hop.detail}" if hop is not None else ""
    dead = [item.cause for item in trace.suspicions if item.kind == "agent-dead"]
    return f"policies deny it{where}, and its kernel does not{'; ' + dead[0] if dead else ''}"
