"""What a packet pays for the check that pods send by their own addresses: one process, both ends, guard on and off in turns.

    pytest bench/test_policy_guard.py -s

A datagram there and back between two pods of a node, and one stream; with 2 and with 500 pods checked.
One thread sends and receives, so the figure is the kernel's way through veth, bridge and hooks and nothing of scheduling.
"""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from pycni.kernel import netns as namespaces
from pycni.policy.base import LocalPod
from pycni.policy.spoof import Guard
from tests.netns.podenv import Env, Pod, node

ROUNDS, TRIPS = 40, 2000
STREAM_BYTES = 64 << 20


@pytest.fixture
def env() -> Iterator[Env]:
    made: list[str] = []

    def make() -> str:
        name = f"pyb{os.getpid()}g{len(made)}"
        namespaces.create(name)
        made.append(name)
        return name

    try:
        with node(make) as found:
            yield found
    finally:
        for name in made:
            namespaces.delete(name)


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
    """Nanoseconds for a datagram there and back."""
    began = time.perf_counter_ns()
    for _ in range(TRIPS):
        one.sendto(b"x", (there, 7000))
        two.recv(8)
        two.sendto(b"x", (back, 7000))
        one.recv(8)
    return (time.perf_counter_ns() - began) / TRIPS


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


def compared(
    on: Callable[[], object], off: Callable[[], object], measure: Callable[[], float]
) -> tuple[float, float]:
    """Medians without and with, taken in turns."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS * 2):
        (off, on)[turn % 2]()
        found[turn % 2].append(measure())
    return statistics.median(found[0]), statistics.median(found[1])


def trips(
    one: Pod, two: Pod, family: int, on: Callable[[], object], off: Callable[[], object]
) -> tuple[float, float]:
    """Nanoseconds of a datagram there and back, without and with."""
    addresses = (one.v4(), two.v4()) if family == 4 else (one.v6(), two.v6())
    with one.inside(lambda: bound(family)) as first, two.inside(lambda: bound(family)) as second:
        return compared(on, off, lambda: trip(first, second, addresses[1], addresses[0]))


@pytest.mark.parametrize("count", [2, 500])
def test_cost_of_the_guard(env: Env, count: int) -> None:
    one, two = (env.attach((4, 6), is_default_gateway=True) for _ in range(2))
    guard = Guard()
    pods = [local(one), local(two), *others(count - 2)]
    lines = []
    try:
        for family in (4, 6):
            off, on = trips(one, two, family, lambda: guard.apply(pods), guard.remove)
            lines.append(
                f"IPv{family}, {count} pods: there and back {off / 1e3:.2f} us, checked {on / 1e3:.2f} us ({on / off:.3f})"
            )
        with two.inside(lambda: socket.create_server(("0.0.0.0", 7001))) as listener:
            client = one.inside(lambda: socket.create_connection((two.v4(), 7001)))
            server = listener.accept()[0]
            with client, server:
                off, on = compared(lambda: guard.apply(pods), guard.remove, lambda: stream(client, server))
        lines.append(f"IPv4, {count} pods: one stream {off:.1f} Gbit/s, checked {on:.1f} ({on / off:.3f})")
    finally:
        guard.close()
    print("\n" + "\n".join(lines))
