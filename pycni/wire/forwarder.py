"""What an agent and the forwarder of a udp device say to each other, as lines of JSON. Pure.

    agent       one request a line: get, configure, put, remove, quit
    forwarder   one answer a line: its state, or what was wrong

``put`` and ``remove`` carry many networks at once. Pre-shared keys are in these bytes; nothing here is for a log.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from pycni.model.wireguard import Secret

VERSION = 1
"""Of this protocol; a forwarder of another one is replaced."""
LINE_BYTES = 1 << 26
"""A request is no longer: half a million networks."""


class MalformedError(ValueError):
    """A line that is no request or no answer."""


class Entry(NamedTuple):
    """A network, and the forwarder it is behind. Addresses are packed."""

    network: bytes
    prefix_len: int
    endpoint: bytes = b""
    port: int = 0


class Get(msgspec.Struct, frozen=True, tag="get"):
    """Ask for the state."""


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Set everything that is no peer. Peers and their sessions stay unless the key or our addresses change."""

    port: int
    local: tuple[bytes, ...]
    """Addresses to send from, one per family at most."""
    public: tuple[bytes, ...]
    """The same as peers know them."""
    psk: bytes | None = None
    mtu: int = 0
    """The device's packets are not longer; 0: unknown."""

    def __repr__(self) -> str:
        return f"Configure({self.port}, {self.local}, {self.public}, ...)"


class Put(msgspec.Struct, frozen=True, tag="put"):
    """Make or change networks."""

    entries: tuple[Entry, ...]


class Remove(msgspec.Struct, frozen=True, tag="remove"):
    """Remove networks; missing ones are removed already."""

    entries: tuple[Entry, ...]


class Quit(msgspec.Struct, frozen=True, tag="quit"):
    """End. The device stays."""


Request = Get | Configure | Put | Remove | Quit


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to every request. Empty but for ``error`` when something was wrong; ``entries`` come after get."""

    error: str = ""
    errno: int = 0
    version: int = VERSION
    pid: int = 0
    port: int = 0
    local: tuple[bytes, ...] = ()
    public: tuple[bytes, ...] = ()
    psk: str = ""
    """Fingerprint of the key."""
    entries: tuple[Entry, ...] = ()
    counters: dict[str, int] = {}
    """Packets and bytes since the start, and drops by reason."""
    sessions: dict[str, str] = {}
    """Peer's address -> state of its encrypted session, in words."""


_requests = msgspec.json.Decoder(Request)
_states = msgspec.json.Decoder(State)


def encode(message: Request | State) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def decode_request(line: bytes) -> Request:
    """Raises MalformedError, which never shows a key."""
    try:
        found: Request = _requests.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(str(error)[:200]) from None
    if isinstance(found, Configure):
        _check_configure(found)
    elif isinstance(found, Put | Remove):
        for entry in found.entries:
            _check_entry(entry, whole=isinstance(found, Put))
    return found


def decode_state(line: bytes) -> State:
    """Raises MalformedError."""
    try:
        return _states.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(str(error)[:200]) from None


def fingerprint(psk: bytes | None) -> str:
    """Of a key as ``State`` has it."""
    return Secret(psk).fingerprint if psk is not None else ""


def _check_configure(found: Configure) -> None:
    if not 0 < found.port < 65536:
        raise MalformedError(f"port {found.port}")
    if found.psk is not None and len(found.psk) != 32:
        raise MalformedError("a key has 32 bytes")
    sizes = [len(address) for address in found.local]
    if sizes != [len(address) for address in found.public] or not {*sizes} <= {4, 16}:
        raise MalformedError("local and public are one address each per family")
    if len({*sizes}) != len(sizes):
        raise MalformedError("two addresses of one family")


def _check_entry(entry: Entry, *, whole: bool) -> None:
    size = len(entry.network)
    if size not in {4, 16} or not 0 <= entry.prefix_len <= size * 8:
        raise MalformedError(f"network {entry.network.hex()}/{entry.prefix_len}")
    if int.from_bytes(entry.network, "big") & ((1 << (size * 8 - entry.prefix_len)) - 1):
        raise MalformedError(f"network {entry.network.hex()}/{entry.prefix_len} has bits of a host")
    if whole and (len(entry.endpoint) not in {4, 16} or not 0 < entry.port < 65536):
        raise MalformedError(f"endpoint {entry.endpoint.hex()} port {entry.port}")
