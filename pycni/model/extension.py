"""Commands of people's own as a hot table: which peers they were run for, and with what.

A peer is one row however many families it has, as the commands are run once per lease.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Commands(msgspec.Struct, frozen=True, kw_only=True):
    """Shell commands of the net-conf; "" for those there are not. Names and meaning are flannel's."""

    pre_startup: str = ""
    post_startup: str = ""
    subnet_add: str = ""
    subnet_remove: str = ""
    shutdown: str = ""


Environment = tuple[tuple[str, str], ...]
"""Variables a command gets besides the agent's, in a fixed order."""


class ExtensionKey(NamedTuple):
    """A peer is found by its lease."""

    lease: str


class ExtensionPeer(NamedTuple):
    """What is run for a peer. A change of anything is a removal by the old and an addition by the new."""

    add: str
    remove: str
    environment: Environment
    data: str
    """What the peer's PreStartupCommand has written: standard input of both."""


def extension_text(key: ExtensionKey, peer: ExtensionPeer) -> str:
    """One peer in a line, without its data and commands."""
    told = [value for name, value in peer.environment if name.startswith("PUBLIC_IP") and value]
    return " ".join(["lease", key.lease, "at", *told])
