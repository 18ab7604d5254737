"""What exabgp says (one JSON object per line) and what is said to it (one command per line): its API, version 5. Pure.

Only standard modules are imported: the relay is a process of its own, and a small one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

FAMILIES = ("ipv4 unicast", "ipv6 unicast")
AT_ONCE = 400
"""Prefixes in one command: exabgp reads lines of limited length."""


class Changed(NamedTuple):
    """A session came up or went down."""

    peer: str
    state: str
    """connected, up or down."""
    reason: str = ""


class Opened(NamedTuple):
    """What a neighbour said of itself when the session began."""

    peer: str
    router_id: str
    restart_s: int
    """How long it wants its routes kept while it restarts; 0: it did not ask for it."""


class Said(NamedTuple):
    """Routes a neighbour announces and withdraws."""

    peer: str
    announce: tuple[tuple[str, str], ...]
    """Prefix and next hop."""
    withdraw: tuple[str, ...]
    attributes: Mapping[str, Any]


class Finished(NamedTuple):
    """A neighbour has told all of a family (end of RIB, RFC 4724)."""

    peer: str
    family: str


Event = Changed | Opened | Said | Finished


def decode(line: str) -> list[Event]:
    """The events of a line; none for what is of no interest. Raises ValueError for what is not exabgp's."""
    try:
        found = json.loads(line)
        kind, neighbour = found["type"], found["neighbor"]
        peer = neighbour["address"]["peer"]
        if kind == "state":
            return [Changed(peer, neighbour["state"], neighbour.get("reason", ""))]
        if kind == "open" and neighbour.get("direction") == "receive":
            return [_opened(peer, neighbour["open"])]
        if kind == "update" and neighbour.get("direction") == "receive":
            return list(_updates(peer, neighbour["message"]))
        if kind == "notification" and neighbour.get("direction") == "receive":
            return []
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"exabgp says {line[:200]!r}: {error!r}") from error
    return []


def _opened(peer: str, said: Mapping[str, Any]) -> Opened:
    restart = 0
    for capability in said.get("capabilities", {}).values():
        if isinstance(capability, Mapping) and capability.get("name") == "graceful restart":
            # Without families it only helps others, whatever time stands there (RFC 4724, 3).
            restart = int(capability.get("time", 0)) if capability.get("address-family-flags", True) else 0
    return Opened(peer, said["router_id"], restart)


def _updates(peer: str, message: Mapping[str, Any]) -> Iterator[Event]:
    if "eor" in message:
        yield Finished(peer, f"{message['eor']['afi']} {message['eor']['safi']}")
        return
    update = message["update"]
    announce = tuple(
        (nlri["nlri"], hop)
        for family in FAMILIES
        for hop, nlris in update.get("announce", {}).get(family, {}).items()
        for nlri in nlris
    )
    withdraw = tuple(
        nlri["nlri"] for family in FAMILIES for nlri in update.get("withdraw", {}).get(family, ())
    )
    if announce or withdraw:
        yield Said(peer, announce, withdraw, update.get("attribute", {}))


# --- to it ---------------------------------------------------------------------------------------------------


def commands(peer: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """What makes the announcements to a neighbour (prefix -> attributes as words) what they are to be."""
    gone: dict[str, list[str]] = {}
    for prefix, words in before.items():
        if prefix not in after:
            gone.setdefault(words, []).append(prefix)
    new: dict[str, list[str]] = {}
    for prefix, words in after.items():
        if before.get(prefix) != words:
            new.setdefault(words, []).append(prefix)
    for action, groups in (("withdraw", gone), ("announce", new)):
        for words, prefixes in groups.items():
            for some in _portions(prefixes):
                yield f"neighbor {peer} {action} attributes {words} nlri {' '.join(some)}"


def finished(peer: str) -> Iterator[str]:
    """That all has been said."""
    for family in FAMILIES:
        yield f"neighbor {peer} announce eor {family}"


def _portions(prefixes: list[str]) -> Iterator[Iterable[str]]:
    for start in range(0, len(prefixes), AT_ONCE):
        yield prefixes[start : start + AT_ONCE]
