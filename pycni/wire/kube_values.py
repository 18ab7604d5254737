"""Single values of Kubernetes objects: numbers in their range, addresses in canonical text, times.

Life: the converters (``kube_convert``, ``kube_policy``) call these with the object's name and the field's path, which
is what a ConfigError has to say. What the API reads leniently (octets with leading zeros, host bits) is read so here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.kube import PROTOCOLS, TCP

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_CANONICAL_V4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}").fullmatch
"""Most addresses by far: five times as fast as building one to write it out again."""
_PIECE = "[1-9a-f][0-9a-f]{0,3}"
_FEW_PIECES = "(?!(?:[^:]*:){7})"
_CANONICAL_V6 = re.compile(
    rf"{_PIECE}(?::{_PIECE}){{7}}|{_FEW_PIECES}{_PIECE}(?::{_PIECE})*::(?:{_PIECE}(?::{_PIECE})*)?"
).fullmatch
"""Addresses whose only zeros are those left out, in their middle or at their end: pods' are. Fifteen times as fast."""
NOTHING: Mapping[str, str] = {}
"""Shared by everything without labels. Never written to."""


def number(obj: str, path: str, value: int | None, low: int, high: int) -> int:
    """A number in ``low..high``; absent counts as 0. Like all here: raises ConfigError."""
    found = value or 0
    if not low <= found <= high:
        raise ConfigError(obj, path, value, f"expected {low}..{high}")
    return found


def protocol(obj: str, path: str, name: str | None) -> int:
    """A protocol's number; absent is TCP."""
    if not name:
        return TCP
    found = PROTOCOLS.get(name)
    if found is None:
        raise ConfigError(obj, path, name, "expected TCP, UDP or SCTP")
    return found


def address(obj: str, path: str, text: str | None, family: Family | None = None) -> str:
    """Canonical text of an address."""
    if text is not None and (
        (family is not Family.V6 and _CANONICAL_V4(text)) or (family is not Family.V4 and _CANONICAL_V6(text))
    ):
        return text
    found: IPv4Address | IPv6Address
    try:
        found = ip_address(text or "")
    except ValueError:
        found = _sloppy(obj, path, text or "")
    if isinstance(found, IPv6Address):
        if found.scope_id is not None:
            raise ConfigError(obj, path, text, "expected an address without zone")
        # As Go reads it: an IPv4 address.
        found = found.ipv4_mapped or found
    if family is not None and family.bits != found.max_prefixlen:
        raise ConfigError(obj, path, text, f"expected an {family.label} address")
    return str(found)


def _sloppy(obj: str, path: str, text: str) -> IPv4Address:
    """Old objects have octets with leading zeros, which the API reads as decimal numbers."""
    octets = text.split(".")
    if len(octets) == 4 and all(each.isascii() and each.isdigit() and len(each) <= 3 for each in octets):
        try:
            return IPv4Address(".".join(str(int(each)) for each in octets))
        except ValueError:
            pass
    raise ConfigError(obj, path, text, "expected an IP address")


def addresses(obj: str, path: str, texts: Sequence[str] | None) -> tuple[str, ...]:
    """Canonical text of addresses."""
    return tuple(address(obj, path, text) for text in texts) if texts else ()


def networks(obj: str, path: str, texts: Sequence[str] | None) -> tuple[str, ...]:
    """Canonical text of networks; host bits are dropped and blanks around them allowed, as by the API."""
    found = []
    for text in texts or ():
        base, slash, length = text.strip().partition("/")
        if not slash or not (length.isascii() and length.isdigit()):
            raise ConfigError(obj, path, text, "expected a network in CIDR notation")
        try:
            found.append(str(ip_network(f"{address(obj, path, base)}/{length}", strict=False)))
        except ValueError:
            raise ConfigError(obj, path, text, "expected a network in CIDR notation") from None
    return tuple(found)


def seconds(text: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0.0 for what is none."""
    if not text:
        return 0.0
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0


def texts(found: Mapping[str, str | None] | None) -> Mapping[str, str]:
    """Labels and the like: null is the empty text, as Go reads it. Never write to it: equal ones may be one object."""
    return _shared(tuple(found.items())) if found else NOTHING


@lru_cache(maxsize=1024)
def _shared(found: tuple[tuple[str, str | None], ...]) -> Mapping[str, str]:
    """Pods of one workload are listed one after the other, and their labels are a quarter of what they weigh."""
    return {sys.intern(key): value or "" for key, value in found}
