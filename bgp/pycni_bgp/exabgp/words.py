"""Attributes in exabgp's words, and back from what it says. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from pycni.model.family import show
from pycni_bgp.model import ORIGINS, Attributes, Neighbour, Origin, community_numbers


def words(neighbour: Neighbour, attributes: Attributes) -> str:
    """What stands behind ``announce attributes``; the next hop first. Equal attributes give equal words."""
    return " ".join(_words(neighbour, attributes))


def _words(neighbour: Neighbour, attributes: Attributes) -> Iterator[str]:
    yield f"next-hop {show(attributes.next_hop)}"
    yield f"origin {attributes.origin}"
    path = attributes.as_path
    if not neighbour.internal:
        # A path that is given is taken as it is, so our own number has to be in it.
        path = (neighbour.local_asn, *path)
    if path:
        yield f"as-path [ {' '.join(map(str, path))} ]"
    if neighbour.internal:
        yield f"local-preference {100 if attributes.local_pref is None else attributes.local_pref}"
    if attributes.med is not None:
        yield f"med {attributes.med}"
    for size, name in ((2, "community"), (3, "large-community")):
        found = [
            numbers for text in attributes.communities if len(numbers := community_numbers(text)) == size
        ]
        if found:
            yield f"{name} [ {' '.join(':'.join(map(str, numbers)) for numbers in found)} ]"
    if attributes.originator:
        yield f"originator-id {show(attributes.originator)}"
    if attributes.clusters:
        yield f"cluster-list [ {' '.join(map(show, attributes.clusters))} ]"


def attributes(next_hop: str, said: Mapping[str, Any]) -> Attributes:
    """Of a route as exabgp tells of it. Raises ValueError."""
    origin: Origin = next((name for name in ORIGINS if name == said.get("origin")), "incomplete")
    path = tuple(number for _, part in sorted(said.get("as-path", {}).items()) for number in part["value"])
    return Attributes(
        next_hop=ipaddress.ip_address(next_hop).packed,
        as_path=path,
        origin=origin,
        local_pref=said.get("local-preference"),
        med=said.get("med"),
        communities=tuple(
            ":".join(map(str, numbers))
            for name in ("community", "large-community")
            for numbers in said.get(name, ())
        ),
        originator=_packed(said.get("originator-id")),
        clusters=tuple(_packed(item) for item in said.get("cluster-list", ())),
    )


def _packed(text: str | None) -> bytes:
    return ipaddress.ip_address(text).packed if text else b""
