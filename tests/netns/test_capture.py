"""Captures in real namespaces: the probe at every interface it passes, and nothing of busy neighbours."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TypeVar

import pytest

from pycni.kernel import netns
from pycni.kernel.capture import Capture, Frame
from pycni.trace.frames import dissect, probe, socket_filter, spots
from pycni.trace.model import ICMP, Flow
from tests.netns.fresh import fresh_spaces

T = TypeVar("T")
PROBE = Flow(
    protocol=ICMP,
    source=ip_address("10.7.0.1").packed,
    destination=ip_address("10.7.0.2").packed,
    source_port=7,
)


@pytest.fixture
def ends() -> Iterator[tuple[str, str]]:
    with fresh_spaces() as make:
        names = (make(), make())
        pair = f"address 02:00:00:00:00:01 type veth peer name c1 address 02:00:00:00:00:02 netns {names[1]}"
        _ip(names[0], f"link add c0 {pair}\naddr add 10.7.0.1/24 dev c0\nlink set c0 up\nlink set lo up\n")
        _ip(names[1], "addr add 10.7.0.2/24 dev c1\nlink set c1 up\n")
        _ip(names[0], "neigh replace 10.7.0.2 lladdr 02:00:00:00:00:02 dev c0\n")
        _ip(names[1], "neigh replace 10.7.0.1 lladdr 02:00:00:00:00:01 dev c1\n")
        yield names


def _ip(space: str, batch: str) -> None:
    subprocess.run(
        ["ip", "-n", space, "-batch", "-"], input=batch, text=True, check=True, capture_output=True
    )


def inside(name: str, function: Callable[[], T]) -> T:
    fd = netns.open_netns(netns.path(name))
    try:
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


def raw() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMP)


def test_a_probe_and_its_answer_are_seen_at_both_ends_among_others(ends: tuple[str, str]) -> None:
    token = secrets.randbits(32)
    spaces = {("n", name): lambda function, name=name: inside(name, function) for name in ends}
    with Capture(spaces, socket_filter(spots([PROBE], token))) as capture, inside(ends[0], raw) as sock:
        for number in range(300):
            sock.sendto(probe(PROBE, (token + 2 + number) & 0xFFFFFFFF), ("10.7.0.2", 0))
        sock.sendto(probe(PROBE, token), ("10.7.0.2", 0))

        def answers(frames: list[Frame]) -> int:
            return sum(1 for item in mine(frames) if item.space == ends[0] and not item.outgoing)

        def mine(frames: list[Frame]) -> list[Frame]:
            return [item for item in frames if dissect(item.data, token, ethernet=item.ethernet) is not None]

        frames = capture.read(lambda found: answers(list(found)) == 1, 10)
    seen = [(item.space, item.interface, item.outgoing) for item in mine(frames)]
    one, two = ends
    assert seen == [(one, "c0", True), (two, "c1", False), (two, "c1", True), (one, "c0", False)]
    stamps = [item.time_ns for item in mine(frames)]
    assert stamps == sorted(stamps)
    # A few frames may come before the filter is in place; of three hundred others none does.
    assert len(frames) < 10


def test_a_namespace_that_cannot_be_entered_is_named(ends: tuple[str, str]) -> None:
    def refuse(_: Callable[[], socket.socket]) -> socket.socket:
        raise PermissionError(1, "not here")

    spaces = {("n1", ""): lambda function: inside(ends[0], function), ("n2", "a/x"): refuse}
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Exception, match="open packet socket n2 a/x"):
        Capture(spaces, socket_filter(spots([PROBE], 1)))
    assert len(os.listdir("/proc/self/fd")) == before
