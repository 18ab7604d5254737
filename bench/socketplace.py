"""A control group and a bpf file system of one benchmark's own, for an eBPF data plane that touches nobody else's."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pycni.kernel import bpf_places

_DETACH = 2
"""MNT_DETACH."""


class SocketPlace(NamedTuple):
    """Paths; the driver mounts the file system at the first."""

    bpffs: str
    cgroup: str


@contextmanager
def socket_place(name: str) -> Iterator[SocketPlace]:
    """Both are there until the end, when programs and maps go with them. All members must have ended by then."""
    place = SocketPlace(f"/run/{name}-bpf", os.path.join(bpf_places.cgroup2(), name))
    os.mkdir(place.cgroup)
    try:
        os.mkdir(place.bpffs)
        try:
            yield place
        finally:
            try:  # taking programs away takes its time, in which somebody may press Ctrl-C
                ctypes.CDLL(None).umount2(place.bpffs.encode(), _DETACH)
            finally:
                os.rmdir(place.bpffs)
    finally:
        os.rmdir(place.cgroup)
