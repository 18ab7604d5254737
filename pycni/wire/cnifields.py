"""Reading a foreign JSON object key by key, with errors that name key and value.

Go's encoding/json is the yardstick for what is accepted (runtimes and operators' files were written against it):
null counts as not given, keys match whatever their case (containerd sends ``HostPort``), unknown keys are left
alone, a number with a fraction is no integer, true and "true" are different. A value of the wrong JSON type is
``CniError`` 6 (cannot be decoded); a value of the right type that makes no sense is 7 (invalid network config).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_interface,
)
from typing import Any, NoReturn

from pycni.errors import CniError
from pycni.model.family import Address, Network
from pycni.wire.cni import show

_MAC = re.compile(r"[0-9a-fA-F]{2}([:-][0-9a-fA-F]{2}){5}")
UINT32 = (1 << 32) - 1
UINT64 = (1 << 64) - 1


def refuse(key: str, value: object, reason: str, code: int = CniError.INVALID_NETWORK_CONFIG) -> NoReturn:
    """Raise the error about one key: ``invalid key=value`` with the reason as details."""
    raise CniError(code, f"invalid {key}={show(value)}", reason)


class Fields:
    """One JSON object. ``where`` is its path, "" for the top; every getter treats null as not given."""

    def __init__(self, raw: Mapping[str, Any], where: str = "") -> None:
        self.raw = raw
        self.where = where
        self._folded: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """The value under the key, in its own spelling first; None when not given."""
        if key in self.raw:
            return self.raw[key]
        if self._folded is None:
            self._folded = {name.lower(): value for name, value in self.raw.items()}
        return self._folded.get(key.lower())

    def path(self, key: str) -> str:
        """The key's full name for messages."""
        return f"{self.where}.{key}" if self.where else key

    def given(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.get(key) is not None

    def _typed(self, key: str, kind: type, name: str) -> Any:
        value = self.get(key)
        if value is not None and type(value) is not kind:
            refuse(self.path(key), value, f"expected {name}", CniError.DECODE_FAILURE)
        return value

    def boolean(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self._typed(key, bool, "true or false")
        return default if value is None else value

    def integer(self, key: str, low: int = 0, high: int = UINT32, default: int = 0) -> int:
        """An integer within ``low``..``high``."""
        value = self._typed(key, int, "an integer")
        if value is None:
            return default
        if not low <= value <= high:
            refuse(self.path(key), value, f"expected {low}..{high}")
        return int(value)

    def text(self, key: str) -> str:
        """A string, "" when not given."""
        return self._typed(key, str, "a string") or ""

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of strings."""
        values = self._typed(key, list, "an array of strings") or []
        for index, value in enumerate(values):
            if type(value) is not str:
                refuse(f"{self.path(key)}[{index}]", value, "expected a string", CniError.DECODE_FAILURE)
        return tuple(values)

    def sub(self, key: str) -> Fields:
        """A nested object; empty when not given."""
        return Fields(self._typed(key, dict, "an object") or {}, self.path(key))

    def subs(self, key: str) -> Iterator[Fields]:
        """An array of objects; null elements are skipped."""
        yield from objects(self._typed(key, list, "an array of objects") or [], self.path(key))

    def address(self, key: str) -> Address | None:
        """An IP address; None when not given or empty (as Go's net.IP)."""
        text = self.text(key)
        return to_address(text, self.path(key)) if text else None

    def network(self, key: str) -> Network:
        """A required network in CIDR notation without host bits."""
        text = self.text(key)
        interface = to_interface(text, self.path(key))
        if interface.ip != interface.network.network_address:
            refuse(self.path(key), text, f"has host bits set, the network is {interface.network}")
        return interface.network

    def mac(self, key: str) -> str:
        """A unicast Ethernet address in lower case with colons, "" when not given."""
        text = self.text(key)
        return to_mac(text, self.path(key)) if text else ""


def objects(values: list[Any], path: str) -> Iterator[Fields]:
    """The objects of an array; null elements are skipped, as Go skips nil pointers here."""
    for index, value in enumerate(values):
        where = f"{path}[{index}]"
        if value is None:
            continue
        if type(value) is not dict:
            refuse(where, value, "expected an object", CniError.DECODE_FAILURE)
        yield Fields(value, where)


def to_address(text: str, key: str, code: int = CniError.INVALID_NETWORK_CONFIG) -> Address:
    """An address without zone; IPv4 mapped into IPv6 becomes IPv4 (as Go's To4)."""
    if "%" in text:
        refuse(key, text, "an address with a zone is not possible here", code)
    try:
        address = ip_address(text)
    except ValueError:
        refuse(key, text, "expected an IP address", code)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def to_interface(
    text: str, key: str, code: int = CniError.INVALID_NETWORK_CONFIG
) -> IPv4Interface | IPv6Interface:
    """An address with its prefix length (``10.1.2.3/24``)."""
    if "%" in text or text.count("/") != 1 or not text.rpartition("/")[2].isdecimal():
        refuse(key, text, "expected an address with prefix length (CIDR)", code)
    try:
        return ip_interface(text)
    except ValueError:
        refuse(key, text, "expected an address with prefix length (CIDR)", code)


def to_requested(text: str, key: str, code: int = CniError.INVALID_NETWORK_CONFIG) -> Address:
    """An address with or without a prefix length, the length being ignored (CONVENTIONS.md, "ips")."""
    return (
        to_address(str(to_interface(text, key, code).ip), key, code)
        if "/" in text
        else to_address(text, key, code)
    )


def to_mac(text: str, key: str, code: int = CniError.INVALID_NETWORK_CONFIG) -> str:
    """A unicast, non-zero Ethernet address in lower case with colons."""
    if not _MAC.fullmatch(text):
        refuse(key, text, "expected an Ethernet address like 02:11:22:33:44:55", code)
    mac = text.lower().replace("-", ":")
    if int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        refuse(key, text, "a multicast or zero Ethernet address cannot be an interface's", code)
    return mac


def last_usable(network: Network) -> Address:
    """The last address a pod may get: below the broadcast address for IPv4, the very last for IPv6."""
    last = int(network.broadcast_address)
    return IPv4Address(last - 1) if isinstance(network, IPv4Network) else IPv6Address(last)
