"""Floods for tests of policies: a process that sends without a pause, and ears that hear anything at all.

Life: a ``Flood`` is started before the pod it is about has a device; from the moment there is one it sends datagrams, by
ordinary sockets and as ready-made frames, until it is stopped, and says how many left. An ``Ear`` sits in a namespace,
also one without devices yet, and counts what comes in with the mark of a flood.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pycni.kernel import netns
from tests.netns import frames as f

MARK = b"flood of the policy tests"
PORT = 7777
ETH_P_ALL = 3
SENDER = Path(__file__).with_name("flood_sender.py")


class Flood:
    """One process in one namespace. A context manager: what it left behind is ``sent`` afterwards."""

    def __init__(
        self, space: str, targets: Iterable[str], frames: Sequence[bytes] = (), *, device: str = "eth0"
    ) -> None:
        """``space``: name of the namespace. ``targets``: addresses datagrams go to; ``frames`` go out by ``device``."""
        self.sent: dict[str, int] = {}
        """By target, and of frames under "frames"."""
        spec = {
            "device": device,
            "targets": list(targets),
            "frames": [frame.hex() for frame in frames],
            "data": MARK.decode(),
            "port": PORT,
        }
        self._process = subprocess.Popen(
            [*netns.exec_prefix(space), sys.executable, "-IS", str(SENDER), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        """It sends from here on."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"sending\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.sent:
            self.stop()
            assert self._process.stdout is not None
            with self._process.stdout as out:
                self.sent = json.loads(out.read() or b"{}")
            self._process.wait(20)

    def stop(self) -> None:
        """Let it end, without waiting for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()


class Ear:
    """Hears everything that comes into a namespace, whatever address it is for."""

    def __init__(self, space: str) -> None:
        fd = netns.open_netns(netns.path(space))
        try:
            self._sock = netns.run_in(fd, self._open)
        finally:
            os.close(fd)

    @staticmethod
    def _open() -> socket.socket:
        # Bound to no device: devices that come later are heard too.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        sock.setsockopt(socket.SOL_SOCKET, 33, 4 << 20)  # SO_RCVBUFFORCE
        sock.setblocking(False)
        return sock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def heard(self) -> int:
        """How many packets of floods have come in since this was asked last. What the namespace sends is not heard."""
        count = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, _, kind, *_rest) = self._sock.recvfrom(2048)
                # An error about a packet of its own, from the node, has it in it.
                error = data[9] == f.ICMP if data[0] >> 4 == 4 else data[6] == f.ICMPV6
                count += kind != socket.PACKET_OUTGOING and MARK in data and not error
        return count

    def hears(self, seconds: float = 5.0) -> bool:
        """Whether anything comes within that time."""
        deadline = time.monotonic() + seconds
        while not self.heard():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        return True
