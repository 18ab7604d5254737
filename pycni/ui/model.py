"""The graph's values: things with places, ways between them. Pure; ``graph`` makes them, browsers read them as JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

UNDERLAY = "underlay"
OK, WARN, BAD = "ok", "warn", "bad"
_NUMBER = re.compile(r"(\d+)")


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A thing with a place of its own."""

    id: str
    kind: str
    """underlay, node, host (a node's own routing), uplink, tunnel, bridge, pod, service, peer."""
    name: str
    label: str = ""
    """A second, shorter line."""
    node: str = ""
    """The node it is on; "" for what is on none."""
    state: str = OK
    """ok, warn or bad."""
    note: str = ""
    """Why it is not ok, for people."""
    facts: tuple[tuple[str, str], ...] = ()
    """What else is known, as name and value."""


class Edge(msgspec.Struct, frozen=True, kw_only=True):
    """A way between two things."""

    id: str
    kind: str
    """cable, inner (inside a node), veth, carry (a tunnel inside its uplink), tunnel, session, backs."""
    a: str
    b: str
    name: str = ""
    counter: str = ""
    """``NODE/DEVICE`` whose counters tell its traffic; "": nobody counts."""
    forward: str = "tx"
    """Which of the device's counters is traffic from ``a`` to ``b``: tx or rx."""
    state: str = OK
    note: str = ""


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    items: tuple[Item, ...] = ()
    edges: tuple[Edge, ...] = ()
    trouble: str = ""
    """Why less is known than should be."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A BGP session with somebody who is no node of the cluster, or somebody outside without one."""

    address: str
    name: str
    sessions: Mapping[str, str] = {}
    """State by node."""
    facts: tuple[tuple[str, str], ...] = ()


def natural(names: Iterable[str]) -> list[str]:
    """Sorted as people count: node2 before node10."""
    return sorted(names, key=natural_key)


def natural_key(text: str) -> list[int | str]:
    """For ``sorted``."""
    return [int(part) if part.isdigit() else part for part in _NUMBER.split(text)]
