"""Where things stand in a drawing: boxes, lines, and all of them together. Pure.

Made by ``layout``; browsers get ``Laid`` as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import msgspec


class Box(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    w: float
    h: float


class Path(msgspec.Struct, frozen=True):
    """A line: through its points, or with two of four points as a cubic curve's handles."""

    points: tuple[tuple[float, float], ...]
    curve: bool = False


class Laid(msgspec.Struct, frozen=True, kw_only=True):
    """Where everything is."""

    width: float
    height: float
    boxes: Mapping[str, Box]
    """By item; of a closed node also ``pods:NODE``, of too many Services ``svc+``."""
    paths: Mapping[str, Path]
    """By edge; what a closed node hides has none."""
    inside: Mapping[str, str]
    """Hidden items by what stands for them."""
    rails: tuple[tuple[float, float, float], ...]
    """The underlay's bars, one for each row of nodes: from x, to x, y. Their left ends are joined."""
    open: tuple[str, ...]
    """Nodes whose pods are shown."""
    arcs: bool
    """Whether tunnels are drawn all the time."""
    hidden_services: int = 0
