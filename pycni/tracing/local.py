"""Nodes whose namespaces are on this machine: watched by packet sockets, probes sent by sockets of their own.

Life: ``watch`` opens one packet socket per namespace of the node; ``send`` opens a socket bound to the probe's source,
sends one packet and closes it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from types import TracebackType
from typing import Self

from pycni.kernel.capture import Capture, Enter
from pycni.trace.frames import probe, socket_filter
from pycni.trace.model import UDP, Flow
from pycni.tracing.eyes import Launched, Order, Report


class LocalNode:
    """See ``eyes.NodeEyes``."""

    def __init__(self, name: str, spaces: Mapping[str, Enter]) -> None:
        """``spaces``: how to run something in each of its namespaces."""
        self.name = name
        self._spaces = spaces

    def watch(self, order: Order) -> LocalWatching:
        """See ``eyes.NodeEyes``."""
        spaces = {(self.name, space): enter for space, enter in self._spaces.items()}
        return LocalWatching(Capture(spaces, socket_filter(order.token)))

    def send(self, space: str, flow: Flow, token: int) -> Launched:
        """See ``eyes.NodeEyes``."""
        with self._spaces[space](lambda: _socket(flow)) as sock:
            data = probe(flow, token)
            if flow.protocol == UDP:
                data = data[8:]  # the socket makes the header
            to = flow.destination_port if flow.protocol == UDP else 0
            try:
                sock.sendto(data, (str(ip_address(flow.destination)), to))
            except OSError as error:  # there is no way, or rules of the sender's own namespace
                return Launched(flow=flow, refused=f"the kernel does not let it out: {error.strerror}")
        return Launched(flow=flow)


class LocalWatching:
    """See ``eyes.Watching``."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def filenos(self) -> Sequence[int]:
        """See ``eyes.Watching``."""
        return self._capture.filenos()

    def drain(self) -> Report:
        """See ``eyes.Watching``."""
        return Report(tuple(self._capture.drain()))

    def close(self) -> None:
        """See ``eyes.Watching``."""
        self._capture.close()


def _socket(flow: Flow) -> socket.socket:
    """A socket the probe leaves by, bound to its source."""
    family = socket.AF_INET if len(flow.source) == 4 else socket.AF_INET6
    own = str(ip_address(flow.source))
    if flow.protocol == UDP:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    else:
        sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, flow.protocol)
    try:
        sock.bind((own, flow.source_port if flow.protocol == UDP else 0))
    except BaseException:
        sock.close()
        raise
    return sock
