"""A trace for people and for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pycni.model.family import show
from pycni.trace.model import NAMES, Fault, Flow, Hop, Trace

_SIGNS = {
    "delivered": "●",
    "dropped": "✗",
    "refused": "✗",
    "translated": "⇄",
    "encapsulated": "▷",
    "decapsulated": "◁",
}
_PLAIN = "│"
_RED, _GREEN, _DIM, _OFF = "\033[31m", "\033[32m", "\033[2m", "\033[0m"


def as_json(trace: Trace) -> dict[str, Any]:
    """``{"ok": ..., "hops": [...], "fault": ...}``: addresses as text, microseconds as numbers."""
    there = [_hop(hop) for hop in trace.hops]
    return {
        "ok": trace.ok,
        "question": trace.question,
        "hops": there,
        "back": [_hop(hop) for hop in trace.back],
        "fault": _fault(trace.fault) if trace.fault is not None else None,
        "suspicions": [_fault(item) for item in trace.suspicions],
        "predicted_ms": round(trace.predicted_ms, 2),
        "took_ms": round(trace.took_ms, 2),
        "round_trip_us": trace.round_trip_us,
    }


def _hop(hop: Hop) -> dict[str, Any]:
    found: dict[str, Any] = {
        "node": hop.node,
        "space": hop.space,
        "component": hop.component,
        "interface": hop.interface,
        "action": hop.action,
        "detail": hop.detail,
        "reason": hop.reason,
        "packet": _flow(hop.flow),
        "mtu": hop.mtu,
        "overhead": hop.overhead,
    }
    if hop.sight is not None:
        found["seen"] = {
            "time_ns": hop.sight.time_ns,
            "after_us": round(hop.sight.after_us, 1),
            "length": hop.sight.length,
            "said": hop.sight.said,
        }
    return found


def _flow(flow: Flow) -> dict[str, Any]:
    return {
        "protocol": NAMES.get(flow.protocol, str(flow.protocol)),
        "source": show(flow.source),
        "source_port": flow.source_port,
        "destination": show(flow.destination),
        "destination_port": flow.destination_port,
    }


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "kind": fault.kind,
        "node": fault.node,
        "space": fault.space,
        "component": fault.component,
        "interface": fault.interface,
        "hop": fault.hop,
        "cause": fault.cause,
        "command": fault.command,
    }


def as_text(trace: Trace, *, colour: bool = False) -> str:
    """A line per hop, the nodes as headings, the verdict below."""
    lines = [trace.question, ""]
    lines += _way("there", trace.hops, 0, trace.fault, colour=colour)
    if trace.back:
        lines += ["", *_way("back", trace.back, len(trace.hops), trace.fault, colour=colour)]
    lines += ["", *_verdict(trace, colour=colour)]
    return "\n".join(lines)


def _way(name: str, hops: Sequence[Hop], start: int, fault: Fault | None, *, colour: bool) -> Iterator[str]:
    place, flow = ("", ""), None
    for index, hop in enumerate(hops, start):
        if (hop.node, hop.space) != place:
            place = hop.node, hop.space
            where = f"{hop.node}  {'pod ' + hop.space if hop.space else ''}".rstrip()
            yield f"{name + ' ' if flow is None else '      '}{where}" if flow is None else f"{where}"
        if hop.flow != flow:
            flow = hop.flow
            yield _dim(f"    {_PLAIN}  {flow.text()}", colour)
        line = f"  {index:>2} {_SIGNS.get(hop.action, _PLAIN)}  {_words(hop)}"
        yield _red(line, colour) if fault is not None and fault.hop == index else line


def _words(hop: Hop) -> str:
    parts = [f"{hop.component:<10}", hop.interface, hop.action, hop.detail]
    size = f"mtu {hop.mtu}" if hop.mtu else ""
    size += f" (+{hop.overhead})" if hop.overhead else ""
    seen = f"seen +{hop.sight.after_us:.0f} us" if hop.sight is not None else ""
    reason = f"-- {hop.reason}" if hop.reason else ""
    return "  ".join(part for part in (*parts, size, seen, reason) if part)


def _verdict(trace: Trace, *, colour: bool) -> Iterator[str]:
    if trace.fault is not None:
        place = f"{trace.fault.node} {trace.fault.space}".strip()
        yield _red(
            f"FAULT {trace.fault.kind} at {place}, {trace.fault.component}: {trace.fault.cause}", colour
        )
        if trace.fault.command:
            yield f"      look further on {trace.fault.node}: {trace.fault.command}"
    elif trace.ok:
        trip = f", round trip {trace.round_trip_us:.0f} us" if trace.round_trip_us is not None else ""
        yield _green(f"OK    it arrives and its answer comes back{trip}", colour)
    for item in trace.suspicions:
        yield f"      beside that, on {item.node}: {item.cause}"
    yield _dim(f"      predicted in {trace.predicted_ms:.0f} ms, all in {trace.took_ms:.0f} ms", colour)


def _red(text: str, on: bool) -> str:
    return f"{_RED}{text}{_OFF}" if on else text


def _green(text: str, on: bool) -> str:
    return f"{_GREEN}{text}{_OFF}" if on else text


def _dim(text: str, on: bool) -> str:
    return f"{_DIM}{text}{_OFF}" if on else text
