"""Switches set on somebody's behalf, with a record of what was before, so that all of it can be taken back.

Life: ``apply`` writes into the record what it is about to do, does it, and writes what came of it; ``undo`` puts back
what still is as ``apply`` left it and removes the record. A second ``apply`` adds to the record and keeps the oldest
values. Forwarding is special: the kernel sets the switches of all devices along with it (inet_forward_change,
addrconf_fixup_forwarding), so these are recorded too. Records lie below /run: a reboot forgets
switches and records alike.

Both work in the calling thread's namespace. One record is used by one process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import socket
from collections.abc import Iterable, Iterator

import msgspec

from pycni.doctor.model import Change
from pycni.errors import ConfigError, KernelError
from pycni.kernel import sysctl
from pycni.wire import typed

FOLDER = "/run/pycni"
_SO_NETNS_COOKIE = 71
_ALONG = {
    "net.ipv4.ip_forward": ("net/ipv4/conf/*/forwarding", "net/ipv4/conf/all/accept_redirects"),
    "net.ipv6.conf.all.forwarding": ("net/ipv6/conf/*/forwarding",),
}
"""What the kernel sets along with a switch."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The file."""

    changes: tuple[Change, ...] = ()
    """In the order they were made."""
    along: tuple[Change, ...] = ()
    """What the kernel sets along with them, as it was and became, changed or not: taking back sets it too."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it."""

    done: tuple[Change, ...] = ()
    kept: tuple[Change, ...] = ()
    """Of an undo: somebody has set another value since (``before``: what it is; ``after``: what it would be)."""
    trouble: tuple[str, ...] = ()


def place() -> str:
    """Record of the calling thread's namespace; its number is never given to another one. Raises KernelError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            cookie = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError as exc:
            if exc.errno != errno.ENOPROTOOPT:  # before Linux 5.14
                raise KernelError(exc.errno or 0, "read cookie of the network namespace") from exc
            inode = os.stat("/proc/thread-self/ns/net").st_ino
            return f"{FOLDER}/doctor-inode{inode}.json"
    return f"{FOLDER}/doctor-{int.from_bytes(cookie, 'little')}.json"


def apply(changes: Iterable[Change], file: str) -> Outcome:
    """Set switches; one that cannot be set is told and stops no other. Raises ConfigError, KernelError, OSError."""
    done, trouble = [], []
    with _locked(file):
        record = _load(file)
        for change in changes:
            try:
                before = sysctl.get(change.name)
                if before == change.after:
                    continue
                along = _values(_ALONG.get(change.name, ()))
                _save(file, _with(record, Change(change.name, before, change.after), ()))
                sysctl.put(change.name, change.after)
                # Read back: the kernel rounds some values.
                made = Change(change.name, before, sysctl.get(change.name))
                if made.after == before:
                    raise KernelError(
                        errno.EIO, f"set sysctl to {change.after}", change.name, f"it stays {before}"
                    )
            except KernelError as error:
                trouble.append(str(error))
                _save(file, record)
                continue
            now = _values(_ALONG.get(change.name, ()))
            record = _with(
                record,
                made,
                [Change(name, was, now[name]) for name, was in along.items() if name in now],
            )
            _save(file, record)
            done.append(made)
    return Outcome(done=tuple(done), trouble=tuple(trouble))


def undo(file: str) -> Outcome:
    """Put back what is as ``apply`` left it. Raises ConfigError (the record), KernelError, OSError."""
    done, kept, trouble, left = [], [], [], []
    with _locked(file):
        record = _load(file)
        now = {item.name: _try(item.name) for item in (*record.changes, *record.along)}
        for item in reversed(record.changes):
            current = now[item.name]
            if current is None or current == item.before:
                continue  # gone with its device, or put back already
            if current != item.after:
                kept.append(Change(item.name, current, item.before))
                continue
            try:
                sysctl.put(item.name, item.before)
                if (now_is := sysctl.get(item.name)) != item.before:
                    raise KernelError(errno.EIO, f"set sysctl to {item.before}", item.name, f"it is {now_is}")
            except KernelError as error:
                trouble.append(str(error))
                left.append(item)
                continue
            done.append(Change(item.name, current, item.before))
        for item in record.along:
            current = now[item.name]
            wanted = item.before if current == item.after else current
            with contextlib.suppress(KernelError):  # the device went
                if wanted is not None:
                    sysctl.put(item.name, wanted)
        if left:
            _save(file, Record(changes=tuple(reversed(left))))
        else:
            _save(file, Record())
    return Outcome(done=tuple(done), kept=tuple(kept), trouble=tuple(trouble))


def _with(record: Record, change: Change, along: Iterable[Change]) -> Record:
    """With another change: of a switch that was changed before, the oldest value stays."""

    def merged(items: Iterable[Change], more: Iterable[Change]) -> tuple[Change, ...]:
        found = {item.name: item for item in items}
        for item in more:
            old = found.pop(item.name, item)
            found[item.name] = Change(item.name, old.before, item.after)
        return tuple(found.values())

    return Record(changes=merged(record.changes, [change]), along=merged(record.along, along))


def _values(patterns: Iterable[str]) -> dict[str, str]:
    files = [file for pattern in patterns for file in glob.glob(sysctl.ROOT + pattern)]
    names = [file.removeprefix(sysctl.ROOT) for file in files]
    return {name: value for name in names if (value := _try(name)) is not None}


def _try(name: str) -> str | None:
    try:
        return sysctl.get(name)
    except KernelError as error:
        if error.errno not in {errno.ENOENT, errno.EINVAL}:
            raise
        return None


@contextlib.contextmanager
def _locked(file: str) -> Iterator[None]:
    """The record to oneself."""
    folder = os.path.dirname(file)
    os.makedirs(folder, mode=0o755, exist_ok=True)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _load(file: str) -> Record:
    try:
        with open(file, "rb") as source:
            return typed.decode(source.read(), Record)
    except FileNotFoundError:
        return Record()
    except msgspec.DecodeError as exc:
        raise ConfigError("record of the doctor", "file", file, f"cannot be read ({exc}); remove it") from exc


def _save(file: str, record: Record) -> None:
    """As a whole or not at all; an empty record is no file."""
    if record == Record():
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
        return
    beside = f"{file}.new"
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as target:
        target.write(msgspec.json.encode(record))
    os.rename(beside, file)
