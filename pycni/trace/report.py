"""A trace for people and for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pycni.model.family import show
from pycni.trace.model import NAMES, Fault, Flow, Hop, Note, Series, Trace
from pycni.trace.said import decisive, words

_SIGNS = {
    "delivered": "●",
    "dropped": "✗",
    "refused": "✗",
    "translated": "⇄",
    "encapsulated": "▷",
    "decapsulated": "◁",
}
_PLAIN = "│"
SHOWN = 8
"""Notes of one hop, beside those that decide; JSON has all."""
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
        "notes": [_note(item) for item in trace.notes],
        "limits": list(trace.limits),
        "series": _series(trace.series) if trace.series is not None else None,
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
        "notes": [_note(note) for note in hop.notes],
    }
    if hop.sight is not None:
        found["seen"] = {
            "time_ns": hop.sight.time_ns,
            "after_us": round(hop.sight.after_us, 1),
            "length": hop.sight.length,
            "said": "; ".join([*([hop.sight.said] if hop.sight.said else []), *map(words, hop.notes)]),
        }
    return found


def _note(note: Note) -> dict[str, Any]:
    return {
        "kind": note.kind,
        "node": note.node,
        "space": note.space,
        "time_ns": note.time_ns,
        "place": note.place,
        "interface": note.interface,
        "detail": note.detail,
        "verdict": note.verdict,
        "packet": _flow(note.flow) if note.flow is not None else None,
    }


def _series(found: Series) -> dict[str, Any]:
    trips = dict(zip(("min", "median", "max"), found.round_trip_us or (), strict=False))
    return {
        "sent": found.sent,
        "answered": found.answered,
        "shown": found.shown,
        "round_trip_us": trips or None,
        "hops_us": list(found.hops_us),
        "endpoints": dict(found.endpoints),
        "ways": dict(found.ways),
    }


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
    medians = trace.series.hops_us if trace.series is not None else ()
    lines += _way(_Part("there", trace.hops, 0, medians), trace.fault, colour=colour)
    if trace.back:
        split = len(trace.hops)
        part = _Part("back", trace.back, split, medians[split:])
        lines += ["", *_way(part, trace.fault, colour=colour)]
    if trace.notes:
        lines += [
            "",
            *(_dim(f"      elsewhere, on {_at(note)}: {words(note)}", colour) for note in trace.notes),
        ]
    if trace.series is not None:
        lines += ["", *_table(trace.series)]
    lines += ["", *_verdict(trace, colour=colour)]
    return "\n".join(lines)


class _Part(NamedTuple):
    """One direction."""

    name: str
    hops: Sequence[Hop]
    start: int
    medians: Sequence[float | None]


def _way(part: _Part, fault: Fault | None, *, colour: bool) -> Iterator[str]:
    place, flow, name = ("", ""), None, part.name
    for index, hop in enumerate(part.hops, part.start):
        if (hop.node, hop.space) != place:
            place = hop.node, hop.space
            where = f"{hop.node}  {'pod ' + hop.space if hop.space else ''}".rstrip()
            yield f"{name + ' ' if flow is None else '      '}{where}" if flow is None else f"{where}"
        if hop.flow != flow:
            flow = hop.flow
            yield _dim(f"    {_PLAIN}  {flow.text()}", colour)
        here = index - part.start
        middle = part.medians[here] if here < len(part.medians) else None
        line = f"  {index:>2} {_SIGNS.get(hop.action, _PLAIN)}  {_words(hop, middle)}"
        yield _red(line, colour) if fault is not None and fault.hop == index else line
        for note in _shown(hop):
            told = f"    {_PLAIN}      {words(note)}"
            yield _red(told, colour) if decisive(note) else _dim(told, colour)


def _shown(hop: Hop) -> Iterator[Note]:
    """What people want to know: rules of ours only where they decide, all others, and what is no rule."""
    left = SHOWN
    for note in hop.notes:
        ours = note.kind == "rule" and note.place.partition(" ")[2].startswith("pycni")
        if (ours and not decisive(note)) or (note.kind == "rule" and not note.detail):
            continue
        if decisive(note) or left > 0:
            left -= 1
            yield note


def _at(note: Note) -> str:
    return f"{note.node} {note.space}".strip()


def _table(found: Series) -> Iterator[str]:
    """Many probes in some lines."""
    lost = found.sent - found.answered
    yield f"{found.sent} sent, {found.answered} answered, {lost} not ({100 * lost / found.sent:.0f} %)"
    if found.round_trip_us is not None:
        shortest, middle, longest = found.round_trip_us
        yield f"round trip  min {shortest:.0f} us  median {middle:.0f} us  max {longest:.0f} us"
    for title, rows in (("endpoint", found.endpoints), ("way", found.ways)):
        for name, count in rows:
            yield f"{title:<10}  {count:>5}  {name}"
    if lost:
        yield f"The hops are those of number {found.shown + 1}, the first that was not answered."


def _words(hop: Hop, middle: float | None = None) -> str:
    parts = [f"{hop.component:<10}", hop.interface, hop.action, hop.detail]
    size = f"mtu {hop.mtu}" if hop.mtu else ""
    size += f" (+{hop.overhead})" if hop.overhead else ""
    seen = f"seen +{hop.sight.after_us:.0f} us" if hop.sight is not None else ""
    if middle is not None:
        seen += f" (median {middle:.0f})"
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
        yield _green(f"OK    {_success(trace)}", colour)
    for item in trace.suspicions:
        yield f"      beside that, on {item.node}: {item.cause}"
    for limit in trace.limits:
        yield _dim(f"      on {limit}", colour)
    yield _dim(f"      predicted in {trace.predicted_ms:.0f} ms, all in {trace.took_ms:.0f} ms", colour)


def _success(trace: Trace) -> str:
    if trace.round_trip_us is not None:
        return f"it arrives and its answer comes back, round trip {trace.round_trip_us:.0f} us"
    if any(hop.sight is not None for hop in trace.hops):
        return "it arrives; nothing was answered, which nothing here demands"
    return "it arrives and its answer comes back"


def _red(text: str, on: bool) -> str:
    return f"{_RED}{text}{_OFF}" if on else text


def _green(text: str, on: bool) -> str:
    return f"{_GREEN}{text}{_OFF}" if on else text


def _dim(text: str, on: bool) -> str:
    return f"{_DIM}{text}{_OFF}" if on else text
