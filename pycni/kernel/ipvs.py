"""The kernel's IPVS table over generic netlink: whole batches in, everything out.

A table belongs to the network namespace its socket was opened in. Messages go to the kernel 256 at a time with one
ACK each time; on this path a guest of User-Mode Linux takes some 40,000 real servers a second. A kernel that just lost
many real servers is slow to take new ones: it keeps them for two minutes and looks through all of them at each
addition (ip_vs_trash_get_dest).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Sequence

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_GENERIC, NetlinkSocket
from pycni.wire import ipvs as wire
from pycni.wire.genl import family_request, parse_family
from pycni.wire.ipvs import DestInfo, DestKey, DestSpec, ServiceInfo, ServiceKey, ServiceSpec, Timeouts

ServicePut = tuple[ServiceKey, ServiceSpec]
DestPut = tuple[ServiceKey, DestKey, DestSpec]
DestName = tuple[ServiceKey, DestKey]


def available() -> bool:
    """Whether this kernel has IPVS (asking may load the module). Raises KernelError for other failures."""
    with NetlinkSocket(NETLINK_GENERIC) as sock:
        try:
            sock.request(family_request(wire.FAMILY_NAME), "find netlink family", wire.FAMILY_NAME)
        except KernelError as exc:
            if exc.errno == errno.ENOENT:
                return False
            raise
    return True


class Ipvs:
    """IPVS in the namespace this was made in. One thread at a time; close it."""

    def __init__(self) -> None:
        """Raises KernelError (ENOENT: the kernel has no IPVS)."""
        self._sock = NetlinkSocket(NETLINK_GENERIC)
        try:
            replies = self._sock.request(
                family_request(wire.FAMILY_NAME), "find netlink family", wire.FAMILY_NAME
            )
            self._family = parse_family(replies[0])
        except BaseException:
            self._sock.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def info(self) -> tuple[str, int]:
        """Version of IPVS and size of its connection table."""
        return wire.parse_info(self._sock.request(wire.get_info(self._family), "read IPVS info")[0])

    def services(self) -> list[ServiceInfo]:
        """All virtual servers. Raises KernelError."""
        return [
            wire.parse_service(msg)
            for msg in self._sock.dump(wire.dump_services(self._family), "list virtual servers")
        ]

    def dests(self, service: ServiceKey, *, stats: bool = False) -> list[DestInfo]:
        """The real servers of one virtual server, with counters when asked; none when it is not there.

        Raises KernelError.
        """
        msg = wire.dump_dests(self._family, service)
        try:
            replies = self._sock.dump(msg, "list real servers", str(service))
        except KernelError as exc:
            if exc.errno in {errno.ESRCH, errno.ENOENT}:
                return []
            raise
        return [wire.parse_dest(reply, stats=stats) for reply in replies]

    def put_services(self, puts: Sequence[ServicePut]) -> list[KernelError]:
        """Make virtual servers, or bring those that are there to what is wanted. Returns what failed."""
        return self._put(
            [wire.put_service(self._family, *put, new=True) for put in puts],
            lambda at: wire.put_service(self._family, *puts[at], new=False),
            errno.EEXIST,
            "put virtual server",
            lambda at: wire.service_line(*puts[at]),
        )

    def put_dests(self, puts: Sequence[DestPut]) -> list[KernelError]:
        """Make real servers, or bring those that are there to what is wanted. Returns what failed."""
        return self._put(
            [wire.put_dest(self._family, *put, new=True) for put in puts],
            lambda at: wire.put_dest(self._family, *puts[at], new=False),
            errno.EEXIST,
            "put real server",
            lambda at: wire.dest_line(*puts[at]),
        )

    def change_dests(self, puts: Sequence[DestPut]) -> list[KernelError]:
        """Change real servers, make those that are not there. Returns what failed."""
        return self._put(
            [wire.put_dest(self._family, *put, new=False) for put in puts],
            lambda at: wire.put_dest(self._family, *puts[at], new=True),
            errno.ENOENT,
            "change real server",
            lambda at: wire.dest_line(*puts[at]),
        )

    def del_services(self, keys: Iterable[ServiceKey]) -> list[KernelError]:
        """Remove virtual servers with their real servers; missing ones are success. Returns what failed."""
        names = list(keys)
        return self._remove(
            [wire.del_service(self._family, key) for key in names],
            "delete virtual server",
            lambda at: str(names[at]),
        )

    def del_dests(self, keys: Iterable[DestName]) -> list[KernelError]:
        """Remove real servers; missing ones are success. Returns what failed."""
        names = list(keys)
        return self._remove(
            [wire.del_dest(self._family, *name) for name in names],
            "delete real server",
            lambda at: f"{names[at][0]} {names[at][1]}",
        )

    def timeouts(self) -> Timeouts:
        """Idle times of connections."""
        return wire.parse_timeouts(self._sock.request(wire.get_timeouts(self._family), "read timeouts")[0])

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Set idle times of connections; 0 leaves one. Raises KernelError."""
        self._sock.request(wire.set_timeouts(self._family, timeouts), "set timeouts", str(tuple(timeouts)))

    def _put(
        self,
        messages: list[bytes],
        otherwise: Callable[[int], bytes],
        code: int,
        operation: str,
        name: Callable[[int], str],
    ) -> list[KernelError]:
        """Send messages; those that fail with ``code`` once more the other way (make instead of change)."""
        results = self._sock.batch(messages, operation)
        again = [at for at, error in enumerate(results) if error is not None and error.errno == code]
        failed = {at: error for at, error in enumerate(results) if error is not None and error.errno != code}
        if again:
            second = self._sock.batch([otherwise(at) for at in again], operation)
            failed |= {at: error for at, error in zip(again, second, strict=True) if error is not None}
        return [_named(error, operation, name(at)) for at, error in failed.items()]

    def _remove(self, messages: list[bytes], operation: str, name: Callable[[int], str]) -> list[KernelError]:
        results = self._sock.batch(messages, operation)
        return [
            _named(error, operation, name(at))
            for at, error in enumerate(results)
            if error is not None and error.errno not in {errno.ENOENT, errno.ESRCH}
        ]


def _named(error: KernelError, operation: str, name: str) -> KernelError:
    """The same error with the object it is about."""
    return KernelError(error.errno, operation, name, error.detail)
