"""Values of our model as JSON and back, where msgspec alone cannot: networks of either family. Pure.

Life: agents tell each other what a trace goes by. ``encode`` writes structs, named tuples, enumerations, bytes (base64)
and networks (text); ``decode`` makes them again by their type, checking as it goes. msgspec's own decoder refuses
types like ``IPv4Network | IPv6Network``, which the model is full of; where a type has none of these, msgspec is faster.
"""

from __future__ import annotations

import base64
import enum
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Any, TypeVar

import msgspec

from pycni.errors import ConfigError

T = TypeVar("T")
DEEPEST = 32
_TEXTS: Mapping[Any, Any] = {
    IPv4Network: ip_network,
    IPv6Network: ip_network,
    IPv4Address: ip_address,
    IPv6Address: ip_address,
    IPv4Interface: ip_interface,
    IPv6Interface: ip_interface,
}


def encode(value: Any) -> bytes:
    """JSON of a value."""
    return msgspec.json.encode(value, enc_hook=str)


def decode(raw: bytes | str, kind: type[T]) -> T:
    """The value. Raises ConfigError naming the field that is not as its type says."""
    try:
        return revive(msgspec.json.decode(raw), kind)
    except msgspec.DecodeError as exc:
        raise ConfigError("answer", "", "", f"no JSON: {exc}") from exc


def revive(value: Any, kind: type[T], where: str = "") -> T:
    """A value of ``kind`` from what JSON has. Raises ConfigError."""
    found: T = _revive(value, kind, where, 0)
    return found


def _revive(value: Any, kind: Any, where: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise ConfigError("answer", where, "...", "nested too deeply")
    if kind is Any:
        return value
    origin = typing.get_origin(kind)
    try:
        if origin in {typing.Union, types.UnionType}:
            return _either(value, typing.get_args(kind), where, depth)
        if origin is not None:
            return _many(value, origin, typing.get_args(kind), where, depth)
        if kind in _TEXTS:
            made = _TEXTS[kind](value)
            return made if isinstance(made, kind) else _refuse(value, kind, where)
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return kind(value)
        if isinstance(kind, type) and (issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields")):
            return _record(value, kind, where, depth)
        if kind is bytes:
            return base64.b64decode(value, validate=True)
        if kind is float and type(value) is int:
            return float(value)
    except (ValueError, TypeError) as exc:
        raise ConfigError("answer", where, _short(value), str(exc)) from exc
    return value if type(value) is kind else _refuse(value, kind, where)


def _either(value: Any, kinds: Sequence[Any], where: str, depth: int) -> Any:
    """The first alternative that fits."""
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return _revive(value, kind, where, depth + 1)
        except ConfigError as exc:
            last = exc
    raise last


def _many(value: Any, origin: Any, inner: Sequence[Any], where: str, depth: int) -> Any:
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            return _refuse(value, origin, where)
        return {key: _revive(item, inner[1], f"{where}.{key}", depth + 1) for key, item in value.items()}
    if not isinstance(value, list):
        return _refuse(value, origin, where)
    if origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis):
        if len(inner) != len(value):
            return _refuse(value, f"{len(inner)} values", where)
        pairs = zip(value, inner, strict=True)
        return tuple(_revive(item, kind, f"{where}[{n}]", depth + 1) for n, (item, kind) in enumerate(pairs))
    made = (_revive(item, inner[0], f"{where}[{n}]", depth + 1) for n, item in enumerate(value))
    if origin is frozenset:
        return frozenset(made)
    return tuple(made) if origin in {tuple, Sequence} else list(made)


def _record(value: Any, kind: Any, where: str, depth: int) -> Any:
    """A struct from an object, a named tuple from a list."""
    hints = _hints(kind)
    if isinstance(value, list) and issubclass(kind, tuple):
        value = dict(zip(hints, value, strict=False))
    if not isinstance(value, dict):
        return _refuse(value, kind, where)
    fields = {
        name: _revive(value[name], hint, f"{where}.{name}".lstrip("."), depth + 1)
        for name, hint in hints.items()
        if name in value
    }
    return kind(**fields)


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    found = typing.get_type_hints(kind)
    names: Sequence[str] = getattr(kind, "__struct_fields__", getattr(kind, "_fields", ()))
    return {name: found[name] for name in names}


def _refuse(value: Any, kind: Any, where: str) -> typing.NoReturn:
    raise ConfigError("answer", where, _short(value), f"expected {getattr(kind, '__name__', kind)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
