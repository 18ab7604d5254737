"""Sends one probe through a lab and watches it pass every interface on its way.

Life: ``send`` opens packet sockets in all namespaces of the nodes concerned, sends the probe from its source's, waits
until the answer is back or nothing happens any more, and closes everything. One packet is sent, no more.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address
from typing import NamedTuple

import msgspec

from pycni.kernel.capture import Capture, Enter, Frame
from pycni.lab import netns
from pycni.lab.run import Lab
from pycni.lab.trace_world import pod_key
from pycni.model.space import NODE
from pycni.trace.frames import dissect, probe, socket_filter
from pycni.trace.match import Seen
from pycni.trace.model import UDP, Flow

PATIENCE_S = 1.0
"""How long an answer may take."""
QUIET_S = 0.05
"""For frames that are still under way when the answer is there, and for errors about the answer."""
_PORTS = range(33000, 60000)


class Sent(NamedTuple):
    """A probe that was sent, or was to be."""

    flow: Flow
    seen: list[Seen]
    refused: str = ""
    """Why it did not leave its socket."""
    frames: tuple[Frame, ...] = ()
    """Those that were seen, as they were captured."""


def send(lab: Lab, node: str, space: str, flow: Flow) -> Sent:
    """Send a probe and watch it. Raises KernelError, OSError (no socket for it can be had)."""
    token = secrets.randbits(32)
    spaces = _spaces(lab)
    with Capture({place: _enter(name) for place, name in spaces.items()}, socket_filter(token)) as capture:
        name = spaces[node, space]
        with contextlib.ExitStack() as stack:
            sock, sent = netns.inside(name, lambda: _socket(flow))
            stack.callback(sock.close)
            data = probe(sent, token) if sent.protocol != UDP else probe(sent, token)[8:]
            began = time.monotonic()
            to = sent.destination_port if sent.protocol == UDP else 0
            try:
                sock.sendto(data, (str(ip_address(sent.destination)), to))
            except OSError as error:  # there is no way, or rules of the sender's own namespace
                return Sent(sent, [], f"the kernel does not let it out: {error.strerror}")
            frames = capture.read(lambda found: _over(found, node, space, token), PATIENCE_S)
            if time.monotonic() - began < PATIENCE_S:
                frames += capture.read(lambda _: False, QUIET_S)
    mine = [
        (frame, what)
        for frame in sorted(frames, key=lambda frame: frame.time_ns)
        if (what := dissect(frame.data, token, ethernet=frame.ethernet)) is not None
    ]
    seen = [
        Seen(frame.node, frame.space, frame.interface, frame.outgoing, frame.time_ns, len(frame.data), what)
        for frame, what in mine
    ]
    return Sent(sent, seen, frames=tuple(frame for frame, _ in mine))


def _spaces(lab: Lab) -> dict[tuple[str, str], str]:
    """Namespace by node and space."""
    found = {(node.name, NODE): node.namespace for node in lab.nodes()}
    for pod in lab.pods():
        if pod.namespace and pod.network == "cluster":
            found[pod.node, pod_key(pod)] = pod.namespace
    return found


def _enter(name: str) -> Enter:
    return lambda function: netns.inside(name, function)


def _socket(flow: Flow) -> tuple[socket.socket, Flow]:
    """A socket the probe leaves by, bound to its source, and the flow with its fresh port or identifier."""
    family = socket.AF_INET if len(flow.source) == 4 else socket.AF_INET6
    own = str(ip_address(flow.source))
    if flow.protocol == UDP:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        sock.bind((own, 0))
        return sock, msgspec.structs.replace(flow, source_port=sock.getsockname()[1])
    sock = socket.socket(family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, flow.protocol)
    sock.bind((own, 0))
    return sock, msgspec.structs.replace(flow, source_port=secrets.choice(_PORTS))


def _over(found: Sequence[Frame], node: str, space: str, token: int) -> bool:
    """Whether the asker has got something back."""
    for frame in found:
        if (frame.node, frame.space, frame.outgoing) == (node, space, False):
            what = dissect(frame.data, token, ethernet=frame.ethernet)
            if what is not None and what.kind in {"answer", "reset", "error"}:
                return True
    return False
