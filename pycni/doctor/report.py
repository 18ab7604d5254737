"""Findings as a table for people and as JSON for programs. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pycni.doctor.model import LEVELS, Change, Finding

_COLOURS = {"error": 31, "warning": 33, "info": 36}
_WIDTH = 110
_INDENT = 9


def as_json(found: Sequence[Finding], nodes: Sequence[str]) -> dict[str, Any]:
    """The object ``--json`` prints, but for what was done."""
    return {
        "ok": not any(item.level == "error" for item in found),
        "nodes": list(nodes),
        "counts": counts(found),
        "findings": [
            {
                "check": item.check,
                "level": item.level,
                "nodes": list(item.nodes),
                "subject": item.subject,
                "reason": item.reason,
                "fix": item.fix,
                "source": item.source,
                "fixable": item.fixable,
                "changes": changes_json(item.changes),
            }
            for item in found
        ],
    }


def changes_json(changes: Mapping[str, Iterable[Change]]) -> list[dict[str, str]]:
    """Changes with the node they are of."""
    return [
        {"node": node, "name": change.name, "before": change.before, "after": change.after}
        for node, items in changes.items()
        for change in items
    ]


def counts(found: Iterable[Finding]) -> dict[str, int]:
    """How many of each level."""
    levels = [item.level for item in found]
    return {level: levels.count(level) for level in LEVELS}


def as_text(found: Sequence[Finding], nodes: Sequence[str], *, colour: bool = False) -> str:
    """A table of level, check, nodes and what it is about; under each row why, what to do and who says so."""
    where = [_where(item, nodes) for item in found]
    checks = max([len("CHECK"), *(len(item.check) for item in found)])
    places = max([len("NODES"), *map(len, where)]) if len(nodes) > 1 else 0

    def row(level: str, check: str, place: str, what: str) -> str:
        return f"{level}  {check:<{checks}}  " + (f"{place:<{places}}  " if places else "") + what

    lines = [row("LEVEL  ", "CHECK", "NODES", "WHAT")] if found else []
    for item, place in zip(found, where, strict=True):
        level = f"{item.level:<7}"
        if colour:
            level = f"\033[{_COLOURS[item.level]}m{level}\033[0m"
        lines.append(row(level, item.check, place, item.subject))
        lines += _labelled("why", item.reason)
        lines += _labelled("fix*" if item.fixable else "fix", item.fix)
        lines += _labelled("source", item.source)
    if any(item.fixable for item in found):
        lines.append("* done by pycnictl doctor --fix, and undone by --undo")
    return "\n".join([*lines, summary(found, nodes)])


def _where(item: Finding, nodes: Sequence[str]) -> str:
    """``all``, or up to three names."""
    if set(item.nodes) >= set(nodes):
        return "all"
    return ", ".join(item.nodes[:3]) + (f" and {len(item.nodes) - 3} more" if len(item.nodes) > 3 else "")


def summary(found: Sequence[Finding], nodes: Sequence[str]) -> str:
    """``2 errors, 1 warning, 3 to know; 3 nodes``."""
    by_level = counts(found)
    words = [
        f"{by_level['error']} error{'s' * (by_level['error'] != 1)}",
        f"{by_level['warning']} warning{'s' * (by_level['warning'] != 1)}",
        f"{by_level['info']} to know",
    ]
    return ", ".join(words) + (f"; {len(nodes)} nodes looked at" if len(nodes) > 1 else "")


def sysctl_lines(changes: Mapping[str, Iterable[Change]]) -> list[str]:
    """The values set, as sysctl.d(5) has them: for keeping them over a reboot."""
    lines = {change.name: change.after for items in changes.values() for change in items}
    return [f"{name} = {value}" for name, value in sorted(lines.items())]


def _labelled(label: str, text: str) -> list[str]:
    indent = " " * (_INDENT + 8)
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{'':<{_INDENT}}{label:<8}",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
