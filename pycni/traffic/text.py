"""Flows as lines for people; times in the local zone. Pure."""

from __future__ import annotations

from datetime import datetime

from pycni.traffic.model import ALLOWED, CHANGED, DENIED, ENDED, NEW, PRESENT, Flow, Listening, Lost
from pycni.traffic.views import human

_COLOURS = {ALLOWED: 32, DENIED: 31}
_YELLOW, _DIM = 33, 2
_SIGNS = {NEW: "+", ENDED: "-", PRESENT: "", CHANGED: "~", DENIED: "x"}


def text(item: Flow | Lost | Listening, *, colours: bool = False) -> str:
    """A line."""
    if isinstance(item, Listening):
        return f"{item.node}: listening to {item.what}"
    if isinstance(item, Lost):
        count = f"{item.count} " if item.count >= 0 else ""
        return _coloured(f"{_clock(item.time)} {item.node} LOST {count}{item.what}", _YELLOW, colours)
    flow = item
    verdict = _coloured(f"{flow.verdict:<12}", _COLOURS.get(flow.verdict, _YELLOW), colours)
    ends = f"{_end(flow.source_name, flow.source, flow.source_port)} -> {_target(flow)}"
    words = [
        _clock(flow.time) if flow.event != PRESENT else "",
        flow.node,
        _SIGNS[flow.event],
        f"{verdict} {flow.protocol:<5} {ends}",
        _more(flow),
    ]
    return " ".join(word for word in words if word)


def _target(flow: Flow) -> str:
    found = _end(flow.service or flow.destination_name, flow.destination, flow.port)
    if flow.translated_destination:
        found += f" => {_end(flow.translated_name, flow.translated_destination, flow.translated_port)}"
    if flow.via:
        found += f" via {flow.via}?"
    if flow.translated_source:
        found += f" as {_place(flow.translated_source, flow.translated_source_port)}"
    return found


def _more(flow: Flow) -> str:
    words = []
    if flow.policy:
        words.append(f"{flow.direction} by {flow.policy}{f' and {flow.more} more' if flow.more else ''}")
    if flow.state and flow.event != NEW:
        words.append(flow.state)
    if not flow.answered and flow.event in {ENDED, PRESENT}:
        words.append("unanswered")
    if flow.bytes_out >= 0:
        words.append(f"{human(flow.bytes_out)}B out {human(flow.bytes_back)}B back")
    if flow.duration_s >= 0:
        words.append(f"{flow.duration_s:.3f} s")
    if flow.resynced:
        words.append("(found after a loss)")
    return " ".join(words)


def _end(name: str, address: str, port: int) -> str:
    place = _place(address, port)
    return f"{name} ({place})" if name else place


def _place(address: str, port: int) -> str:
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _clock(time: float) -> str:
    return datetime.fromtimestamp(time).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _coloured(line: str, number: int, colours: bool) -> str:
    return f"\033[{number}m{line}\033[0m" if colours else line
