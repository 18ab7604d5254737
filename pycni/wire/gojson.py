"""Reading JSON objects as Go's encoding/json reads them into structs, with one clear error per bad value.

flannel writes and reads its records that way: keys match whatever their case (the last one wins), ``null`` means
"not given", integers take no fraction and booleans no quotes.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

import msgspec

from pycni.errors import ConfigError

A = TypeVar("A", IPv4Address, IPv6Address)
N = TypeVar("N", IPv4Network, IPv6Network)


class Fields:
    """The members of one JSON object under their names in lower case.

    ``obj`` names the object in errors; ``path`` is put before member names ("Backend.").
    """

    def __init__(self, members: Mapping[str, Any], obj: str, path: str = "") -> None:
        self.obj = obj
        self.path = path
        self.names = {name.lower(): name for name in members}
        self._values = {name.lower(): value for name, value in members.items() if value is not None}

    def unknown(self, known: frozenset[str]) -> tuple[str, ...]:
        """Members that are not among ``known`` (lower case), as written, sorted."""
        return tuple(sorted(self.path + name for low, name in self.names.items() if low not in known))

    def given(self, name: str) -> bool:
        """Whether the member is there and not null."""
        return name.lower() in self._values

    def value(self, name: str) -> Any:
        """The member as decoded, None when not given."""
        return self._values.get(name.lower())

    def error(self, name: str, reason: str) -> ConfigError:
        """The error to raise about a member."""
        return ConfigError(self.obj, self.path + name, self.value(name), reason)

    def text(self, name: str, default: str = "") -> str:
        """A string member."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, "expected a string")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A boolean member."""
        value = self.value(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "expected true or false")
        return value

    def integer(self, name: str, low: int, high: int, default: int = 0) -> int:
        """An integer member in ``low..high``."""
        value = self.value(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "expected an integer")
        if not low <= value <= high:
            raise self.error(name, f"expected {low}..{high}")
        return value

    def address(self, name: str, kind: type[A]) -> A | None:
        """An address member; the unspecified address and "" count as not given, as flannel writes them."""
        text = self.text(name)
        if not text:
            return None
        try:
            if "%" in text:
                raise ValueError(text)
            found = kind(text)
        except ValueError:
            raise self.error(name, f"expected an {_label(kind)} address") from None
        return None if found.is_unspecified else found

    def network(self, name: str, kind: type[N]) -> N | None:
        """A network member in CIDR notation; host bits are dropped, as Go's ParseCIDR does."""
        text = self.text(name)
        if not text:
            return None
        address, slash, length = text.partition("/")
        expected = self.error(name, f"expected an {_label(kind)} network in CIDR notation")
        if not slash or "%" in address or not is_number(length):
            raise expected
        try:
            return kind(f"{address}/{length}", strict=False)
        except ValueError:
            raise expected from None

    def members(self, name: str) -> Fields | None:
        """An object member, None when not given."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.error(name, "expected an object")
        return Fields(value, self.obj, f"{self.path}{name}.")


def read_object(raw: bytes, obj: str) -> Fields:
    """Decode a JSON object. Raises ConfigError for anything else, nothing else ever."""
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise ConfigError(obj, "JSON", shorten(raw), str(exc) or type(exc).__name__) from None
    if not isinstance(value, dict):
        raise ConfigError(obj, "JSON", shorten(raw), "expected an object")
    return Fields(value, obj)


def is_number(text: str) -> bool:
    """Whether the text is a decimal number in its shortest form (ASCII digits, no sign, no leading zero)."""
    return text.isascii() and text.isdigit() and (text == "0" or text[0] != "0")


def shorten(raw: bytes) -> str:
    """Foreign bytes as text fit for an error message."""
    return raw[:200].decode("utf-8", "backslashreplace")


def _label(kind: type[object]) -> str:
    return "IPv4" if kind in (IPv4Address, IPv4Network) else "IPv6"
