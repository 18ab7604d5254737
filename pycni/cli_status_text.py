"""Tables and words for people, as the status commands print them: columns, and colours on a terminal only.

Not rich's: drawing a table with it takes longer than all the rest of ``pycnictl status``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import Self

STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_ANSI_END = "\033[0m"


class Cell(str):
    """A text with its style; "" for none."""

    __slots__ = ("style",)
    style: str

    def __new__(cls, text: object, style: str = "") -> Self:
        """``style``: one of ``STYLES``."""
        made = super().__new__(cls, _printable(str(text)))
        made.style = style
        return made


def _printable(text: str) -> str:
    """What comes from a network must not steer a terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def coloured() -> bool:
    """Whether standard output wants colours (no-color.org says when not)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: object, style: str = "") -> str:
    """A text in a style, where colours are wanted."""
    shown = _printable(str(text))
    return f"\033[{STYLES[style]}m{shown}{_ANSI_END}" if style and shown and coloured() else shown


def table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]], indent: str = "") -> list[str]:
    """Lines of a table whose columns are as wide as their widest cell."""
    cells = [[Cell(name, "bold") for name in head]]
    cells += [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = []
    for row in cells:
        padded = [
            paint(cell, cell.style) + " " * (width - len(cell))
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append((indent + "  ".join(padded)).rstrip())
    return lines


def seconds(value: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.1 d``."""
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if value < limit:
            shown = value / divisor
            return f"{shown:.1f} {unit}" if unit == "h" else f"{shown:.0f} {unit}"
    return f"{value / 86400:.1f} d"


def show(lines: Iterable[str]) -> None:
    """Print them in one go."""
    text = "\n".join(lines)
    if text:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
