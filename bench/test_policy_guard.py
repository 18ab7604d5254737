"""What does a packet pay for the check that pods send by their own addresses?

A datagram there and back between two pods of a node, and one stream; unchecked, with 2 and with 500 pods checked, in turns.
One thread sends and receives, so the figure is the kernel's way through veth, bridge and hooks and nothing of scheduling.
"""

from __future__ import annotations

import random
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bench.rows import row
from bench.size import sized
from pycni.policy.base import LocalPod
from pycni.policy.spoof import Guard
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Env, Pod, node

ROUNDS, TRIPS = sized(40, 8), 2000
MANY = 500
STREAM_BYTES = 64 << 20


@pytest.fixture
def env() -> Iterator[Env]:
    with fresh_spaces() as make, node(make) as found:
        yield found


def local(pod: Pod) -> LocalPod:
    assert pod.plan is not None
    return LocalPod(pod.name, pod.plan.host, pod.plan.mac, tuple(item.address for item in pod.plan.addresses))


def others(count: int) -> list[LocalPod]:
    """Pods that are checked and send nothing."""
    return [
        LocalPod(
            f"x/{number}",
            f"vethx{number}",
            b"\x02\1\0\0" + number.to_bytes(2, "big"),
            (b"\x0a\x09" + number.to_bytes(2, "big"),),
        )
        for number in range(count)
    ]


def bound(family: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0" if family == 4 else "::", 7000))
    sock.settimeout(5)
    return sock


def trip(one: socket.socket, two: socket.socket, there: str, back: str) -> float:
    """Microseconds for a datagram there and back."""
    began = time.perf_counter_ns()
    for _ in range(TRIPS):
        one.sendto(b"x", (there, 7000))
        two.recv(8)
        two.sendto(b"x", (back, 7000))
        one.recv(8)
    return (time.perf_counter_ns() - began) / TRIPS / 1e3


def stream(client: socket.socket, server: socket.socket) -> float:
    """Gbit/s of one TCP stream, sent and received by one thread."""
    data, sent = bytes(1 << 18), 0
    buffer = bytearray(1 << 20)
    began = time.perf_counter()
    while sent < STREAM_BYTES:
        count = client.send(data)
        sent += count
        while count > 0:
            count -= server.recv_into(buffer)
    return sent * 8 / (time.perf_counter() - began) / 1e9


class Figures:
    """What was measured with so many pods checked; 0 is without the guard."""

    def __init__(self, *, more_is_better: bool = False) -> None:
        self.found: dict[int, list[float]] = {}
        self._more = more_is_better

    def fill(self, guard: Guard, pods: dict[int, list[LocalPod]], measure: Callable[[], float]) -> None:
        """All rounds; the order is another one each time."""
        for _ in range(ROUNDS):
            for count in random.sample(list(pods), len(pods)):
                if pods[count]:
                    guard.apply(pods[count])
                else:
                    guard.remove()
                self.found.setdefault(count, []).append(measure())

    def tell(self, question: str, one: int, other: int, unit: str, target: str = "") -> None:
        """How many times as slow with ``one`` pods checked as with ``other``: a row."""
        pairs = zip(self.found[one], self.found[other], strict=True)
        ratios = [theirs / mine if self._more else mine / theirs for mine, theirs in pairs]
        mine, theirs = (statistics.median(self.found[count]) for count in (one, other))
        peer = f"{f'{other} pods' if other else 'unchecked'}: {theirs:.3g}"
        ratio = statistics.median(ratios)
        row(question, f"{mine:.3g} {unit}", peer, ratio, target, better="less", ratios=ratios)


def datagrams(one: Pod, two: Pod, family: int, guard: Guard, pods: dict[int, list[LocalPod]]) -> Figures:
    """Microseconds of a datagram there and back."""
    found = Figures()
    addresses = (one.v4(), two.v4()) if family == 4 else (one.v6(), two.v6())
    with one.inside(lambda: bound(family)) as first, two.inside(lambda: bound(family)) as second:
        found.fill(guard, pods, lambda: trip(first, second, addresses[1], addresses[0]))
    return found


def streams(one: Pod, two: Pod, guard: Guard, pods: dict[int, list[LocalPod]]) -> Figures:
    """Gbit/s of one stream."""
    found = Figures(more_is_better=True)
    with two.inside(lambda: socket.create_server(("0.0.0.0", 7001))) as listener:
        client = one.inside(lambda: socket.create_connection((two.v4(), 7001)))
        server = listener.accept()[0]
        with client, server:
            found.fill(guard, pods, lambda: stream(client, server))
    return found


@pytest.mark.timeout(300)
def test_cost_of_the_guard(benchmark: Any, env: Env) -> None:
    one, two = (env.attach((4, 6), is_default_gateway=True) for _ in range(2))
    mine = [local(one), local(two)]
    pods = {0: [], 2: mine, MANY: [*mine, *others(MANY - 2)]}
    guard = Guard()

    def everything() -> dict[str, Figures]:
        found = {
            f"IPv{family}: a datagram there and back": datagrams(one, two, family, guard, pods)
            for family in (4, 6)
        }
        return found | {"IPv4: one stream": streams(one, two, guard, pods)}

    try:
        measured = benchmark.pedantic(everything, rounds=1)
    finally:
        guard.close()
    for what, found in measured.items():
        unit = "Gbit/s" if "stream" in what else "us"
        found.tell(f"{what}, {MANY} pods checked against none", MANY, 0, unit)
        found.tell(f"{what}, {MANY} pods checked against 2", MANY, 2, unit, "<= 1.05")
