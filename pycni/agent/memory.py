"""What the network component leaves on disk: its lease for its own next start, subnet.env for CNI plugins.

Life: written when the lease or the network changes, and again when somebody took the files away; read once at the
start. ``<state-dir>/lease.json`` holds the lease with its end and the net-conf it was taken under, so that an agent
started while etcd is away can attach pods. Files appear whole or not at all. All functions block.
"""

from __future__ import annotations

import contextlib
import logging
import os
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

import msgspec

from pycni.errors import ConfigError
from pycni.model.network import BackendConf, NetConf
from pycni.model.podnet import PodNetwork
from pycni.wire import typed
from pycni.wire.lease import HeldLease, decode_held, encode_held
from pycni.wire.netconf import decode_netconf, encode_netconf
from pycni.wire.subnetenv import encode_subnet_env, previous_subnets

log = logging.getLogger("pycni.network")

LEASE_FILE = "lease.json"


class Memory(NamedTuple):
    """What an earlier life of this agent knew."""

    held: HeldLease
    conf: NetConf
    others: tuple[BackendConf, ...] = ()
    """Backends the node had besides that of the net-conf (see backends.change)."""


class _File(msgspec.Struct):
    lease: msgspec.Raw = msgspec.field(name="Lease")
    conf: msgspec.Raw = msgspec.field(name="NetConf")
    others: list[msgspec.Raw] = msgspec.field(name="Others", default_factory=list)
    """The same net-conf with each other backend."""


def load(state_dir: str) -> Memory | None:
    """The lease of an earlier life; None when there is none that can be read (said in the log)."""
    path = os.path.join(state_dir, LEASE_FILE)
    raw = _read(path)
    if raw is None:
        return None
    try:
        file = typed.decode(raw, _File)
        others = tuple(decode_netconf(bytes(other)).backend for other in file.others)
        return Memory(decode_held(bytes(file.lease)), decode_netconf(bytes(file.conf)), others)
    except (msgspec.DecodeError, UnicodeDecodeError, ConfigError) as error:
        log.warning("%s: not readable, going on without: %s", path, error)
        return None


def save(state_dir: str, memory: Memory) -> None:
    """Remember the lease. Raises OSError."""
    others = (msgspec.structs.replace(memory.conf, backend=other) for other in memory.others)
    file = _File(
        lease=msgspec.Raw(encode_held(memory.held)),
        conf=msgspec.Raw(encode_netconf(memory.conf)),
        others=[msgspec.Raw(encode_netconf(other)) for other in others],
    )
    _put(os.path.join(state_dir, LEASE_FILE), msgspec.json.encode(file) + b"\n", 0o600)


def forget(state_dir: str) -> None:
    """The lease is lost: the next life must not use it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(state_dir, LEASE_FILE))


def save_subnet_env(path: str, pods: PodNetwork) -> None:
    """Have subnet.env say this. Raises OSError."""
    _put(path, encode_subnet_env(pods).encode(), 0o644)


def load_previous(path: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """The subnets subnet.env names, (None, None) without a readable file."""
    raw = _read(path)
    if raw is None:
        return None, None
    try:
        return previous_subnets(raw.decode("utf-8", "replace"))
    except ConfigError as error:
        log.warning("%s: not readable, going on without: %s", path, error)
        return None, None


def _read(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 20)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("%s: %s", path, error.strerror)
        return None


def _put(path: str, content: bytes, mode: int) -> None:
    """Write a file unless it says so already; a reader sees the old or the new content, never a part."""
    if _read(path) == content:
        return
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", mode=0o755, exist_ok=True)
    part = os.path.join(folder, f".{name}.part")  # one name, so that a killed agent leaves one file at most
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        try:
            os.fchmod(fd, mode)
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise
