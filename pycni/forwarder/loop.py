"""The one thread of the program: device, UDP sockets, control socket and clock on one epoll."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time

from pycni.forwarder.control import Control
from pycni.forwarder.paths import LEAST_READ_BYTES, READ_BYTES, DeviceGoneError, Paths
from pycni.forwarder.sockets import udp_socket
from pycni.forwarder.table import put_all
from pycni.wire import forwarder as wire

TICK_S, HURRY_S = 1.0, 0.05
"""How often the clock is looked at; while hellos are out."""


class Loop:
    """Runs until the device or the control socket is gone, or it is told to end."""

    def __init__(self, tun: int, control: Control) -> None:
        self._tun = tun
        self._control = control
        self._paths = Paths(tun)
        self._conf = wire.Configure(port=0, local=(), public=())
        self._quit = False
        self._poll = select.epoll()
        self._poll.register(tun, select.EPOLLIN)
        self._by_fd: dict[int, socket.socket] = {}
        control.register(self._poll)

    def run(self) -> None:
        """Serve."""
        try:
            with contextlib.suppress(DeviceGoneError):
                self._run()
        finally:
            self._control.close()
            for sock in self._by_fd.values():
                sock.close()
            self._poll.close()

    def _run(self) -> None:
        next_tick = 0.0
        while not self._quit:
            now = time.monotonic()
            if now >= next_tick:
                self._paths.tick(now)
                if self._control.gone:
                    return
                next_tick = now + TICK_S
            if self._paths.hurry:
                next_tick = min(next_tick, now + HURRY_S)
            for fd, events in self._poll.poll(max(next_tick - now, 0.0)):
                if fd == self._tun:
                    if events & select.EPOLLERR:
                        raise DeviceGoneError
                    self._paths.from_device()
                elif fd in self._by_fd:
                    self._paths.from_socket(self._by_fd[fd])
                else:
                    self._control.handle(fd, events, self._poll, self._answer)

    # requests

    def _answer(self, request: wire.Request) -> wire.State:
        try:
            if isinstance(request, wire.Configure):
                self._configure(request)
            elif isinstance(request, wire.Put):
                for left in put_all(self._paths.table, request.entries):
                    self._paths.part(left)
            elif isinstance(request, wire.Remove):
                for entry in request.entries:
                    gone = self._paths.table.remove(entry)
                    if gone is not None:
                        self._paths.part(gone)
            elif isinstance(request, wire.Quit):
                self._quit = True
        except OSError as error:
            return wire.State(error=error.strerror or str(error), errno=error.errno or errno.EIO)
        except ImportError as error:
            return wire.State(
                error=f"a key needs the Python package cryptography: {error}", errno=errno.ENOPKG
            )
        return self._state(whole=isinstance(request, wire.Get))

    def _state(self, *, whole: bool) -> wire.State:
        conf, paths, now = self._conf, self._paths, time.monotonic()
        drops = {f"drop_{reason}": count for reason, count in sorted(paths.drops.items()) if count}
        sessions = {
            peer.address: peer.channel.text(now) for peer in paths.table.peers.values() if peer.channel
        }
        return wire.State(
            pid=os.getpid(),
            port=conf.port,
            local=conf.local,
            public=conf.public,
            psk=wire.fingerprint(conf.psk),
            entries=tuple(paths.table.entries()) if whole else (),
            counters={**paths.counters, **drops} if whole else {},
            sessions=sessions if whole else {},
        )

    def _configure(self, wanted: wire.Configure) -> None:
        """Other sockets, another key. What stays the same is not touched. Raises OSError; nothing changed then."""
        before = self._conf
        self._paths.read_bytes = max(wanted.mtu, LEAST_READ_BYTES) if wanted.mtu else READ_BYTES
        if (wanted.port, wanted.local) != (before.port, before.local):
            self._bind(wanted)
        if (wanted.psk, wanted.public) != (before.psk, before.public) or not before.port:
            self._paths.public = {len(address): address for address in wanted.public}
            self._paths.secure(wanted.psk)
        self._conf = wanted

    def _bind(self, wanted: wire.Configure) -> None:
        """Sockets of every family; those that stay are kept."""
        paths, before = self._paths, self._conf
        kept = {address for address in before.local if wanted.port == before.port and address in wanted.local}
        made: dict[int, socket.socket] = {}
        try:
            for address in wanted.local:
                if address not in kept:
                    made[len(address)] = udp_socket(address, wanted.port)
        except OSError:
            for sock in made.values():
                sock.close()
            raise
        for size, sock in list(paths.sockets.items()):
            if size not in {len(address) for address in kept}:
                self._poll.unregister(sock)
                del self._by_fd[sock.fileno()], paths.sockets[size]
                sock.close()
        for size, sock in made.items():
            paths.sockets[size] = sock
            self._by_fd[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)
