"""Shaping: what gets through in both directions, and what CHECK sees of it."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from pycni.model.cni import Bandwidth
from tests.netns.podenv import Env, Pod, links, pings, run

RATE = 40_000_000
BURST = 800_000


def throughput(sender: Pod, receiver: Pod, megabytes: float, family: int = 4) -> float:
    """Bits per second of one TCP stream."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6

    def listen() -> socket.socket:
        sock = socket.socket(kind, socket.SOCK_STREAM)
        sock.bind(("", 5001))
        sock.listen(1)
        sock.settimeout(10)
        return sock

    size = int(megabytes * 1e6)
    with (
        receiver.inside(listen) as server,
        sender.inside(lambda: socket.socket(kind, socket.SOCK_STREAM)) as client,
    ):
        client.settimeout(10)
        client.connect((receiver.v4() if family == 4 else receiver.v6(), 5001))
        accepted, _ = server.accept()
        with accepted:
            thread = threading.Thread(target=client.sendall, args=(bytes(size),))
            start = time.perf_counter()
            thread.start()
            got = 0
            while got < size:
                got += len(accepted.recv(1 << 20))
            taken = time.perf_counter() - start
            thread.join()
    return got * 8 / taken


DIRECTIONS = {
    "ingress": Bandwidth(ingress_rate=RATE, ingress_burst=BURST),
    "egress": Bandwidth(egress_rate=RATE, egress_burst=BURST),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("family", [4, 6], ids=["v4", "v6"])
def test_the_limited_direction_is_slow_and_the_other_is_not(env: Env, direction, family):
    limited = env.attach((4, 6), bandwidth=DIRECTIONS[direction])
    free = env.attach((4, 6))
    ends = (free, limited) if direction == "ingress" else (limited, free)
    slow = throughput(*ends, 2.5, family)
    assert 0.75 * RATE < slow < 1.3 * RATE
    assert throughput(*reversed(ends), 2.5, family) > 3 * RATE


def test_both_directions_and_check(env: Env):
    both = Bandwidth(ingress_rate=RATE, ingress_burst=BURST, egress_rate=2 * RATE, egress_burst=BURST)
    pod = env.attach(bandwidth=both)
    shaper = pod.plan.names.shaper
    assert links()[shaper]["ifalias"] == pod.plan.names.alias
    assert env.driver.check(pod.plan, pod.fd) == []
    run(f"tc qdisc del dev {pod.plan.host} root")
    assert env.driver.check(pod.plan, pod.fd) == [
        f"ingress shaping of {pod.plan.host} is missing (expected rate 40000000bit burst 100000b limit 225000b)"
    ]
    run(f"tc qdisc change dev {shaper} root handle 1: tbf rate 1mbit burst 10k limit 20k")
    assert f"egress shaping of {pod.plan.host} is rate 1000000bit" in env.driver.check(pod.plan, pod.fd)[1]
    run(f"tc qdisc del dev {pod.plan.host} clsact")
    assert f"what {pod.plan.host} receives is not led through {shaper}" in env.driver.check(pod.plan, pod.fd)
    run(f"ip link del {shaper}")
    assert f"egress shaping device {shaper} is missing" in env.driver.check(pod.plan, pod.fd)


def test_the_shaping_device_goes_with_the_pod(env: Env):
    pod = env.attach(bandwidth=DIRECTIONS["egress"])
    assert pod.plan.names.shaper in links()
    env.detach(pod)
    assert pod.plan.names.shaper not in links()
    env.driver.attach(pod.plan, pod.fd)
    assert pings(pod, "10.1.2.1")


def test_rates_beyond_32_bits_are_kept(env: Env):
    pod = env.attach(bandwidth=Bandwidth(ingress_rate=100_000_000_000, ingress_burst=2**31))
    assert "rate 100Gbit" in run(f"tc qdisc show dev {pod.plan.host}")
    assert env.driver.check(pod.plan, pod.fd) == []


def test_an_unlimited_pod_has_no_queueing_of_ours(env: Env):
    pod = env.attach(bandwidth=Bandwidth())
    assert "noqueue" in run(f"tc qdisc show dev {pod.plan.host}")
    assert pod.plan.names.shaper not in links()
