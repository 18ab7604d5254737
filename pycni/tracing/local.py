"""Nodes whose namespaces are on this machine: watched by packet sockets, probes sent by sockets of their own.

Life: ``watch`` opens one packet socket per namespace of the node, and what ``deep`` has; ``send`` opens a socket bound
to the probe's source, sends one packet and closes it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping, Sequence
from ipaddress import ip_address

from pycni.closing import Closing
from pycni.kernel.capture import Capture, Enter, Frame
from pycni.model.space import NODE
from pycni.model.spot import Spot
from pycni.trace.frames import answer_port, dissect, probe, socket_filter, spots
from pycni.trace.live import drop_spots, program
from pycni.trace.model import UDP, Flow
from pycni.tracing.ask import Door
from pycni.tracing.deep import Deep, Place
from pycni.tracing.eyes import Launched, Order, Report

WAITING = 64
"""Sockets that wait for answers nobody reads."""
LIVE_ROOM = 16 << 20
"""Bytes of each packet socket while live traffic is watched: it comes in bigger pieces, and more of it."""

_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE = 10, 23, 3
"""IP_PMTUDISC_PROBE: the path's known MTU is not asked."""


class LocalNode:
    """See ``eyes.NodeEyes``."""

    def __init__(self, name: str, spaces: Mapping[str, Enter], agent: Door | None = None) -> None:
        """``spaces``: how to run something in each of its namespaces; ``agent``: see ``deep.Place``."""
        self.name = name
        self._agent = agent
        self.apart = False
        self._spaces = spaces

    def watch(self, order: Order) -> LocalWatching:
        """See ``eyes.NodeEyes``."""
        marks = [] if order.patterns else spots([order.flow, *order.more], order.token, order.bits)
        dropped = drop_spots([order.flow, *order.more]) if order.patterns else marks
        with contextlib.ExitStack() as stack:
            deep = None
            if order.deep:
                deep = stack.enter_context(
                    contextlib.closing(
                        Deep(Place(self.name, self._spaces, self._agent), order, marks, dropped)
                    )
                )
            capture = stack.enter_context(self._capture(order, marks))
            stack.pop_all()
        return LocalWatching(self.name, order, capture, deep)

    def _capture(self, order: Order, marks: Sequence[Spot]) -> Capture:
        """Spaces that have the same to look for share a ``Capture``."""
        spaces = {(self.name, space): enter for space, enter in self._spaces.items()}
        if not order.patterns:
            return Capture(spaces, socket_filter(marks))
        return Capture(
            spaces,
            lambda place: program([item for item in order.patterns if item.place in {None, place}]),
            room=LIVE_ROOM,
        )

    def send(self, space: str, flow: Flow, token: int, size: int = 0) -> Launched:
        """See ``eyes.NodeEyes``."""
        with contextlib.ExitStack() as stack:
            sock = stack.enter_context(self._spaces[space](lambda: _socket(flow)))
            if size:
                _whole(sock, flow)
            data = probe(flow, token, size)
            if flow.protocol == UDP:
                data = data[8:]  # the socket makes the header
            to = flow.destination_port if flow.protocol == UDP else 0
            try:
                sock.sendto(data, (str(ip_address(flow.destination)), to))
            except OSError as error:  # there is no way, or rules of the sender's own namespace
                return Launched(flow=flow, refused=f"the kernel does not let it out: {error.strerror}")
            if flow.protocol == UDP:
                stack.pop_all()
                _WAITING.keep(flow, sock)
        return Launched(flow=flow)


class _Waiting:
    """Sockets of UDP probes, open until their watch ends: an answer to a closed one would be told to be unwanted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Flow, socket.socket] = {}

    def keep(self, flow: Flow, sock: socket.socket) -> None:
        """Keep it; of too many the oldest goes."""
        with self._lock:
            self._open[flow] = sock
            while len(self._open) > WAITING:
                self._open.pop(next(iter(self._open))).close()

    def close(self, flows: Sequence[Flow]) -> None:
        """Close those of some probes."""
        with self._lock:
            for flow in flows:
                sock = self._open.pop(flow, None)
                if sock is not None:
                    sock.close()


_WAITING = _Waiting()


class LocalWatching(Closing):
    """See ``eyes.Watching``."""

    def __init__(self, name: str, order: Order, capture: Capture, deep: Deep | None) -> None:
        self._name, self._order, self._capture, self._deep = name, order, capture, deep

    def filenos(self) -> Sequence[int]:
        """See ``eyes.Watching``."""
        return (*self._capture.filenos(), *(self._deep.filenos() if self._deep is not None else ()))

    def drain(self) -> Report:
        """See ``eyes.Watching``."""
        frames = self._capture.drain()
        if self._deep is None:
            return Report(tuple(frames))
        notes = self._deep.read()
        return Report(tuple(frames), (*notes, *self._deep.connections(self._flows(frames))))

    def _flows(self, frames: Sequence[Frame]) -> list[tuple[str, Flow]]:
        """What to ask connection tracking about: the flows seen, by space."""
        order = self._order
        if order.patterns:
            return [(NODE, flow) for flow in order.more]
        found: dict[tuple[str, Flow], None] = {}
        for frame in frames:
            what = dissect(
                frame.data,
                order.token,
                ethernet=frame.ethernet,
                bits=order.bits,
                port=answer_port(order.flow),
            )
            if what is not None and what.kind != "error" and not what.overhead:
                found[frame.space, what.flow] = None
        return list(found)

    def close(self) -> None:
        """See ``eyes.Watching``."""
        self._capture.close()
        _WAITING.close((self._order.flow, *self._order.more))
        if self._deep is not None:
            self._deep.close()


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


def _whole(sock: socket.socket, flow: Flow) -> None:
    """What is sent must not be taken apart, by nobody (ip(7), ipv6(7))."""
    if len(flow.source) == 4:
        sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE)
    else:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PROBE)
