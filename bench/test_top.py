"""What does watching cost: a sample of 1,000 pods and 10,000 services, a table of connections, counting their bytes?"""

from __future__ import annotations

import asyncio
import os
import socket
import statistics
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.proxyload import facts, filled
from bench.proxysync import Spaces
from bench.rows import row
from bench.size import sized
from pycni.agent.traffic import TrafficRoutes
from pycni.kernel import netns, sysctl
from pycni.kernel.conntrack_new import Connection, remember
from pycni.kernel.ctevents import CtEvents, CtTable
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.model.endpoint import Endpoint
from pycni.store import Store
from pycni.traffic.follow import Follower
from pycni.traffic.model import Counted, PodCount, Sample, ServiceCount, Services
from pycni.traffic.rates import Rates
from pycni.traffic.tally import Tallier, finder
from pycni.traffic.views import ordered, rows_of
from pycni_proxy import planes
from pycni_proxy.engine import Engine
from pycni_proxy.traffic import ServiceTraffic

PODS = sized(1000, 100)
SERVICES = sized(10_000, 1000)
CONNECTIONS = sized(50_000, 5000)
ROUNDS = sized(11, 5)
BLOCKS = sized(8, 4)


@pytest.fixture
def space() -> Iterator[None]:
    """A namespace of its own for this thread."""
    with Spaces() as spaces:
        spaces.fresh()
        yield


def turns(ours: Callable[[], object], floor: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Both, in turns; seconds."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for job, times in zip((ours, floor), found, strict=True):
            started = time.perf_counter()
            job()
            times.append(time.perf_counter() - started)
    return found


def compared(question: str, ours: list[float], floor: list[float], peer: str, target: str = "") -> None:
    ratios = [mine / theirs for mine, theirs in zip(ours, floor, strict=True)]
    row(
        question,
        f"{statistics.median(ours) * 1e3:.2f} ms",
        f"{statistics.median(floor) * 1e3:.2f} ms {peer}",
        statistics.median(ratios),
        target,
        ratios=ratios,
    )


class Records:
    """What the agent has of its pods."""

    def __init__(self) -> None:
        self._all = tuple(
            Endpoint(
                network="n",
                container_id=f"c{number}",
                ifname="eth0",
                state="ready",
                host_ifname=f"d{number}",
                pod_namespace="bench",
                pod_name=f"p{number}",
            )
            for number in range(PODS)
        )

    def all(self) -> tuple[Endpoint, ...]:
        return self._all

    def subscribe(self, _callback: object) -> None:
        return


def test_a_sample_of_many_pods(space: None) -> None:
    batch = "".join(f"link add d{number} type veth peer name d{number + 1}\n" for number in range(0, PODS, 2))
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True)
    routes = TrafficRoutes("n1", Store(), {})
    routes.follow_pods(Records())  # type: ignore[arg-type]

    def ours() -> None:
        at_ns, pods = routes._pods()
        assert len(pods) == PODS
        msgspec.json.encode(Counted(node="n1", at_ns=at_ns, pods=pods))

    ours_s, floor_s = turns(ours, lambda: Path("/proc/thread-self/net/dev").read_bytes())
    compared(f"/rates: counters of {PODS} pods", ours_s, floor_s, "reading /proc/net/dev as it is", "<= 6")


@pytest.mark.timeout(600)
def test_a_sample_of_many_services(space: None) -> None:
    store = filled(SERVICES)
    engine = Engine(facts(), [planes.load("nftables").make(facts())])
    engine.sync(store.snapshot())

    async def here(job: Callable[[], Any]) -> Any:
        return job()

    traffic = ServiceTraffic(lambda: engine, here)
    listing = ["nft", "list", "map", "inet", "pycni_proxy", "services4"]

    def ours() -> None:
        found = traffic._count()
        assert len(found.rows) == SERVICES
        msgspec.json.encode(found)

    def theirs() -> None:
        subprocess.run(listing, stdout=subprocess.DEVNULL, check=True)

    ours_s, floor_s = turns(ours, theirs)
    compared(f"/rates: counters of {SERVICES} services (nftables)", ours_s, floor_s, "nft list map", "<= 1")

    def names() -> None:
        answer = asyncio.run(traffic._names(""))
        assert answer.status == 200

    names_s, _ = turns(names, lambda: None)
    row(f"/names: {SERVICES} services", f"{statistics.median(names_s) * 1e3:.1f} ms")
    engine.planes[0].driver.close()


def connections(count: int) -> list[Connection]:
    target = ip_address("10.96.0.1").packed
    return [
        Connection(struct.pack(">I", 0x0A000000 + number), 4000, target, 80, 6, 600)
        for number in range(count)
    ]


@pytest.mark.timeout(600)
def test_a_reading_of_the_table_of_connections(space: None) -> None:
    subprocess.run(["nft", "-f", "-"], input=TRACKING, text=True, check=True)
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        remember(sock, connections(CONNECTIONS))
    tallier = Tallier()
    pods = {struct.pack(">I", 0x0A000000 + number): f"bench/p{number}" for number in range(PODS)}
    frontends = {
        (struct.pack(">I", 0x0A600000 + number), 6, 80): f"bench/s{number}" for number in range(SERVICES)
    }
    find = finder(frontends, frozenset())

    def ours() -> None:
        with CtTable() as table:
            assert tallier.read(table.entries(), pods, find, accounting=True) == CONNECTIONS

    def theirs() -> None:
        subprocess.run(["conntrack", "-L"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)

    ours_s, floor_s = turns(ours, theirs)
    compared(
        f"connections by pod and service: a table of {CONNECTIONS}", ours_s, floor_s, "conntrack -L", "<= 8"
    )


def test_hearing_of_connections(space: None) -> None:
    subprocess.run(["nft", "-f", "-"], input=TRACKING, text=True, check=True)
    events, follower = CtEvents(buffer=1 << 28), Follower("n1")
    count = min(CONNECTIONS, 20_000)
    try:
        with NetlinkSocket(NETLINK_NETFILTER) as sock:
            remember(sock, connections(count))
        told, encoder = 0, msgspec.json.Encoder()
        started = time.process_time()
        while found := events.read():
            flows = [flow for event in found if (flow := follower.flow(event)) is not None]
            told += len(flows)
            encoder.encode_lines(flows)
        took = time.process_time() - started
        assert (told, events.overruns) == (count, 0)
    finally:
        events.close()
    row(
        "flows -f: processor time of one event, in the reader",
        f"{took / count * 1e6:.0f} us",
        "",
        took / count * 1e6,
        "<= 100 us",
    )


def test_rates_of_many_nodes() -> None:
    nodes = sized(5, 2)

    def samples(at: int) -> dict[str, Sample]:
        pods = tuple(
            PodCount(f"bench/p{number}", "eth0", at * number, at, at, at, 0) for number in range(PODS)
        )
        services = tuple(ServiceCount(f"bench/s{number}", at * number) for number in range(SERVICES))
        return {
            f"n{node}": Sample(
                node=f"n{node}",
                time=float(at),
                counted=Counted(
                    node=f"n{node}", at_ns=at * 10**9, pods=pods, services=Services(at_ns=at * 10**9, rows=services)
                ),
            )
            for node in range(nodes)
        }  # fmt: skip

    rates, times = Rates(), []
    rounds = [samples(number + 1) for number in range(6)]
    for item in rounds:
        started = time.perf_counter()
        frame = rates.feed(item)
        if frame is not None:
            ordered(rows_of(frame, "services"), "services")
            ordered(rows_of(frame, "pods"), "pods")
            times.append(time.perf_counter() - started)
    row(
        f"top: rates and order of {nodes} nodes with {PODS} pods and {SERVICES} services each",
        f"{statistics.median(times) * 1e3:.0f} ms",
    )


TRACKING = "table inet t { chain c { type filter hook forward priority 0; ct state new accept; }; }"


class Way:
    """client - router - server, for what a packet pays in the router."""

    def __init__(self) -> None:
        self.names = [f"pyb{os.getpid()}w{number}" for number in range(3)]
        for name in self.names:
            netns.create(name)
        client, router, server = self.names
        lines = [
            f"ip -n {client} link add e0 type veth peer name e0 netns {router}",
            f"ip -n {server} link add e0 type veth peer name e1 netns {router}",
            f"ip -n {client} addr add 10.9.1.2/24 dev e0",
            f"ip -n {router} addr add 10.9.1.1/24 dev e0",
            f"ip -n {server} addr add 10.9.2.2/24 dev e0",
            f"ip -n {router} addr add 10.9.2.1/24 dev e1",
            *(f"ip -n {name} link set {device} up" for name, device in zip((client, router, router, server), ("e0", "e0", "e1", "e0"), strict=True)),
            f"ip -n {client} route add default via 10.9.1.1",
            f"ip -n {server} route add default via 10.9.2.1",
        ]  # fmt: skip
        for line in lines:
            subprocess.run(line.split(), check=True)
        self.inside(router, lambda: subprocess.run(["nft", "-f", "-"], input=TRACKING, text=True, check=True))
        self.inside(router, lambda: sysctl.put("net.ipv4.ip_forward", 1))
        self.server = self.inside(server, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.server.bind(("10.9.2.2", 7))
        self.server.settimeout(5)

    @staticmethod
    def inside(name: str, job: Callable[[], Any]) -> Any:
        fd = netns.open_netns(netns.path(name))
        try:
            return netns.run_in(fd, job)
        finally:
            os.close(fd)

    def send(self, accounting: int, packets: int) -> float:
        """Seconds a packet of a connection of its own takes from socket to socket; the router's work is in it."""
        self.inside(self.names[1], lambda: sysctl.put("net.netfilter.nf_conntrack_acct", accounting))
        with self.inside(self.names[0], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.connect(("10.9.2.2", 7))
            sock.send(b"x")
            self.server.recv(100)
            started = time.perf_counter()
            for _ in range(packets // 20):
                for _ in range(20):
                    sock.send(b"x" * 64)
                for _ in range(20):
                    self.server.recv(100)
            return (time.perf_counter() - started) / packets

    def close(self) -> None:
        self.server.close()
        for name in self.names:
            netns.delete(name)


def test_what_counting_bytes_costs_a_packet() -> None:
    way = Way()
    try:
        blocks = [quickest(way, sized(50, 15)) for _ in range(BLOCKS)]
    finally:
        way.close()
    off, on = (min(times) for times in zip(*blocks, strict=True))
    row(
        "conntrack-accounting: a 64-byte packet through a router, the quickest of many rounds",
        f"{on * 1e6:.2f} us",
        f"{off * 1e6:.2f} us without",
        on / off,
        "<= 1.02",
        ratios=[one / two for two, one in blocks],
    )


def quickest(way: Way, rounds: int) -> tuple[float, float]:
    """Seconds of a packet without and with accounting, in turns; the machine's moods only ever add to them."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds * 2):
        accounting = (number + number // 2) % 2
        found[accounting].append(way.send(accounting, 600))
    return min(found[0]), min(found[1])
