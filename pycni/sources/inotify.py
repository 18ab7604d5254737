"""One folder's inotify: which of its entries were written, finished, or came and went (inotify(7)).

Life: ``Watch`` is made for a folder, its descriptor waited on by an event loop, ``read`` then gives what happened. Some
file systems (network file systems, a host's folders seen by a guest) never report what others do; ``reports`` tells
which those are, so that the owner looks by itself.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

MODIFY = 0x2
CLOSE_WRITE = 0x8
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
_ONLYDIR = 0x01000000
GONE = DELETE_SELF | MOVE_SELF | IGNORED
"""The folder itself is not there any more."""
_MASK = MODIFY | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF | _ONLYDIR
_HEAD = struct.Struct("=iIII")  # struct inotify_event
_LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"}
)

_libc = ctypes.CDLL(None, use_errno=True)


class Note(NamedTuple):
    """One event."""

    mask: int
    name: str
    """Entry of the folder; "" for the folder itself."""


class Watch:
    """Watches one folder; to be closed."""

    def __init__(self, folder: str) -> None:
        """Raises OSError (ENOENT, ENOTDIR; EMFILE or ENOSPC when the system's watches are used up)."""
        self.fd: int = _checked(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), folder)
        try:
            _checked(_libc.inotify_add_watch(self.fd, os.fsencode(folder), _MASK), folder)
        except OSError:
            os.close(self.fd)
            raise

    def read(self) -> list[Note]:
        """Everything that happened since the last call; does not wait."""
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return []
        notes, at = [], 0
        while at < len(data):
            _watch, mask, _cookie, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            notes.append(Note(mask, os.fsdecode(data[at : at + length].rstrip(b"\0"))))
            at += length
        return notes

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)


def reports(folder: str) -> bool:
    """Whether inotify is told of everybody's changes there: true for file systems of this machine alone."""
    return file_system(os.path.realpath(folder)) in _LOCAL


def file_system(path: str) -> str:
    """Type of the file system a path is on; "" when unknown."""
    found, depth = "", -1
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                before, _dash, after = line.partition(" - ")
                point = before.split()[4].encode().decode("unicode_escape")
                below = path == point or path.startswith(point.rstrip("/") + "/")
                # Of several mounts on one point the last one is seen.
                if below and len(point) >= depth:
                    found, depth = after.split()[0], len(point)
    except (OSError, IndexError):
        return ""
    return found


def _checked(result: int, folder: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), folder)
    return result
