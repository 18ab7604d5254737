"""Kinds of settings: from the words of a flag, variable or file to a checked value.

Every source (command line, environment, file) delivers a setting as a tuple of words; a kind turns them into
the typed value or raises ``ValueError`` whose text is the reason shown to the operator. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from pycni.model.family import Address, Network

Words = tuple[str, ...]

# What Go's strconv.ParseBool takes, because flannel's flags are parsed by it.
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})

UNIX_PATH_MAX = 107
"""Bytes of a Unix socket's path without its terminating NUL (sun_path, include/uapi/linux/un.h)."""


class Kind(NamedTuple):
    """How one sort of setting is written and read. ``many``: may be given repeatedly or as a list."""

    label: str
    parse: Callable[[Words], object]
    many: bool = False
    is_bool: bool = False


def _scalar(label: str, parse: Callable[[str], object], *, is_bool: bool = False) -> Kind:
    # Given twice in one source, the last one counts, as with Go's flag package.
    return Kind(label, lambda words: parse(words[-1]), is_bool=is_bool)


def _boolean(word: str) -> bool:
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("neither true nor false")


def _text(word: str) -> str:
    if not word:
        raise ValueError("empty")
    if any(ord(char) < 32 or ord(char) == 127 for char in word):
        raise ValueError("has control characters")
    return word


def _path(word: str) -> str:
    if not word or "\0" in word:
        raise ValueError("not a path")
    return word


def _absolute_path(word: str) -> str:
    if not _path(word).startswith("/"):
        raise ValueError("not an absolute path")
    return word.rstrip("/") or "/"


def _socket_path(word: str) -> str:
    size = len(_absolute_path(word).encode())
    if size > UNIX_PATH_MAX:
        raise ValueError(f"{size} bytes long, a Unix socket's path has at most {UNIX_PATH_MAX}")
    return word


def _address(word: str) -> Address:
    try:
        return ipaddress.ip_address(word)
    except ValueError:
        raise ValueError("not an IP address") from None


def _reachable(address: Address) -> None:
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise ValueError("not an address other nodes could reach (unspecified, loopback or multicast)")


def _ipv4(word: str) -> IPv4Address:
    try:
        address = IPv4Address(word)
    except ValueError:
        raise ValueError("not an IPv4 address") from None
    _reachable(address)
    return address


def _dotted(word: str) -> IPv4Address:
    try:
        return IPv4Address(word)
    except ValueError:
        raise ValueError("not four numbers with dots") from None


def _ipv6(word: str) -> IPv6Address:
    try:
        address = IPv6Address(word)
    except ValueError:
        raise ValueError("not an IPv6 address") from None
    _reachable(address)
    return address


def _network(word: str) -> Network:
    try:
        return ipaddress.ip_network(word)
    except ValueError as exc:
        raise ValueError(f"not a network in CIDR notation ({exc})") from None


def _regex(word: str) -> str:
    try:
        re.compile(word)
    except re.error as exc:
        raise ValueError(f"not a regular expression ({exc})") from None
    return _text(word)


def _secret(word: str) -> str:
    if not word:
        raise ValueError("empty")
    return word


_ENDPOINT = re.compile(
    r"(?:(?P<scheme>https?)://)?(?P<host>\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?/?"
)


def _endpoint(word: str) -> str:
    """``http[s]://host[:port]``; the scheme may be missing (decided later), the port defaults to 2379."""
    match = _ENDPOINT.fullmatch(word)
    if match is None:
        raise ValueError("not an etcd endpoint like https://10.0.0.1:2379")
    port = int(match["port"] or 2379)
    if not 0 < port < 65536:
        raise ValueError(f"port {port} is not in 1..65535")
    host = match["host"]
    if host.startswith("["):
        _address(host[1:-1])
    scheme = f"{match['scheme']}://" if match["scheme"] else ""
    return f"{scheme}{host}:{port}"


def _node_name(word: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", word) is None:
        raise ValueError("not a node name (letters, digits, '.', '-', '_', at most 253)")
    return word


def _url(word: str) -> str:
    match = re.fullmatch(r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[\w./-]*)?", word)
    if match is None or int((match[2] or ":1")[1:]) not in range(1, 65536):
        raise ValueError("not a URL like https://10.0.0.1:6443")
    if match[1].startswith("["):
        _address(match[1][1:-1])
    return word.rstrip("/")


def _port_range(word: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})[-:]([0-9]{1,5})", word)
    if match is None:
        raise ValueError("not a range of ports like 30000-32767")
    first, last = int(match[1]), int(match[2])
    if not 0 < first <= last < 65536:
        raise ValueError("not a range within 1-65535")
    return first, last


def _listen(word: str) -> str:
    """``address:port`` with the address in its canonical form."""
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[0-9.]+):([0-9]{1,5})", word)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError("not an address and a port like 192.0.2.1:9475 or [::]:9475")
    address = _address(match[1].strip("[]"))
    return f"[{address}]:{int(match[2])}" if address.version == 6 else f"{address}:{int(match[2])}"


def integer(low: int, high: int) -> Kind:
    """Whole number in ``low..high``."""

    def parse(word: str) -> int:
        if re.fullmatch(r"[+-]?[0-9]{1,18}", word) is None:
            raise ValueError("not a whole number")
        if not low <= int(word) <= high:
            raise ValueError(f"not in {low}..{high}")
        return int(word)

    return _scalar(f"integer {low}..{high}", parse)


def choice(*names: str) -> Kind:
    """One of a few words."""

    def parse(word: str) -> str:
        if word not in names:
            raise ValueError(f"not one of {', '.join(names)}")
        return word

    return _scalar(" \\| ".join(names) if len(names) < 6 else "choice", parse)


def listing(label: str, item: Callable[[str], object], *, split: bool = True) -> Kind:
    """Repeatable setting; ``split``: one word may hold several items between commas."""

    def parse(words: Words) -> tuple[object, ...]:
        items = [part.strip() for word in words for part in (word.split(",") if split else [word])]
        items = [part for part in items if part]
        if not items:
            raise ValueError("empty")
        values = []
        for part in items:
            try:
                values.append(item(part))
            except ValueError as exc:
                raise ValueError(f"{part!r} is {exc}" if len(items) > 1 else str(exc)) from None
        return tuple(values)

    return Kind(label, parse, many=True)


def subset(*names: str) -> Kind:
    """List of some of the given words, each once."""

    def one(word: str) -> str:
        if word not in names:
            raise ValueError(f"not one of {', '.join(names)}")
        return word

    kind = listing(f"list of {', '.join(names)}", one)

    def parse(words: Words) -> object:
        values = kind.parse(words)
        assert isinstance(values, tuple)
        return tuple(dict.fromkeys(values))

    return kind._replace(parse=parse)


BOOLEAN = _scalar("boolean", _boolean, is_bool=True)
TEXT = _scalar("text", _text)
PATH = _scalar("path", _path)
ABSOLUTE_PATH = _scalar("absolute path", _absolute_path)
SOCKET_PATH = _scalar("absolute path", _socket_path)
ADDRESS = _scalar("IP address", _address)
IPV4 = _scalar("IPv4 address", _ipv4)
IPV6 = _scalar("IPv6 address", _ipv6)
DOTTED = _scalar("dotted number", _dotted)
URL = _scalar("URL", _url)
LISTEN = _scalar("address and port", _listen)
PORT_RANGE = _scalar("range of ports", _port_range)
NODE_NAME = _scalar("name", _node_name)
SECRET = _scalar("text", _secret)
ENDPOINTS = listing("list of URLs", _endpoint)
NETWORKS = listing("list of networks", _network)
NAMES = listing("list of names or addresses", _text)
REGEXES = listing("list of regular expressions", _regex, split=False)
