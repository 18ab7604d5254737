"""What the kernel has otherwise than it should, in a few words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_ABSENT: Any = object()


def differing(
    wanted: Mapping[str, Mapping[Any, Any]], found: Mapping[str, Mapping[Any, Any]]
) -> Iterator[str]:
    """One line per table that is not as it should be; one for everything when nothing of ours is there."""
    if any(wanted.values()) and not any(found.values()):
        yield "the table is missing, or not as this version makes it"
        return
    for name in sorted(wanted.keys() | found.keys()):
        here, there = wanted.get(name, {}), found.get(name, {})
        missing = sum(key not in there for key in here)
        more = sum(key not in here for key in there)
        other = sum(there.get(key, _ABSENT) not in (value, _ABSENT) for key, value in here.items())
        parts = [
            f"{count} {what}"
            for count, what in ((missing, "missing"), (more, "too many"), (other, "changed"))
            if count
        ]
        if parts:
            yield f"rows of {name}: {', '.join(parts)}"
