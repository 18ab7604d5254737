"""Telling the service manager how the agent is doing: sd_notify(3), without libsystemd.

Datagrams of ``KEY=value`` lines to the Unix socket named in NOTIFY_SOCKET (``@`` first: abstract). Without that
variable nothing is sent. A manager that does not listen must not hurt the agent: failures are logged once.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger("pycni.notify")


class Notifier:
    """Sends states to the service manager. Safe from any thread: each state is one datagram."""

    def __init__(self, environment: Mapping[str, str], pid: int | None = None) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._failed = False
        self.watchdog_seconds = _watchdog(environment, os.getpid() if pid is None else pid)
        """How often the manager wants to hear WATCHDOG=1 at least; 0.0: not at all."""

    def send(self, **states: str) -> bool:
        """Send states such as ``READY="1"``; whether they were sent."""
        if not self._address:
            return False
        text = "\n".join(f"{key}={value.replace(chr(10), ' ')}" for key, value in states.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                # A full queue of a hanging manager must not stop the event loop.
                sock.setblocking(False)
                sock.connect(self._address)
                sock.send(text.encode())
        except OSError as exc:
            if not self._failed:
                log.warning("telling the service manager %s at %s failed: %s", text, self._address, exc)
            self._failed = True
            return False
        self._failed = False
        return True

    def ready(self, status: str) -> None:
        """The service is up (unblocks units ordered after it)."""
        self.send(READY="1", STATUS=status)

    def status(self, status: str) -> None:
        """One line for ``systemctl status``."""
        self.send(STATUS=status)

    def stopping(self) -> None:
        """The service has begun to shut down."""
        self.send(STOPPING="1")

    def watchdog(self) -> None:
        """The event loop still turns."""
        self.send(WATCHDOG="1")


def _watchdog(environment: Mapping[str, str], pid: int) -> float:
    """WATCHDOG_USEC in seconds when it is meant for this process (sd_watchdog_enabled(3)), else 0."""
    wanted = environment.get("WATCHDOG_PID", "")
    if wanted and wanted != str(pid):
        return 0.0
    try:
        return max(0, int(environment.get("WATCHDOG_USEC", "0"))) / 1e6
    except ValueError:
        return 0.0
