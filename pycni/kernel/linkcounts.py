"""Counters of network interfaces by name, all of a namespace in one read (/proc/net/dev).

Inter-|   Receive                                                |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
                                                                    (net/core/net-procfs.c: dev_seq_printf_stats)
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from pycni.errors import KernelError

_FILE = "/proc/thread-self/net/dev"
_FIELDS = 16


class LinkCount(NamedTuple):
    """Of one interface, as the namespace it is in sees it."""

    bytes_in: int
    packets_in: int
    drops_in: int
    bytes_out: int
    packets_out: int
    drops_out: int


def read() -> dict[str, LinkCount]:
    """Of the calling thread's network namespace. Raises KernelError."""
    try:
        with open(_FILE, "rb", buffering=0) as file:
            text = file.readall()
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "read counters", _FILE) from exc
    return decode(text or b"")


def decode(text: bytes) -> dict[str, LinkCount]:
    """From the file's text. Raises KernelError naming a line that is none."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.rpartition(b":")
        words = rest.split()
        if len(words) != _FIELDS:
            raise KernelError(errno.EBADMSG, "read counters", _FILE, line.decode(errors="replace"))
        found[name.strip().decode(errors="surrogateescape")] = LinkCount(
            int(words[0]), int(words[1]), int(words[3]), int(words[8]), int(words[9]), int(words[11])
        )
    return found
