from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

from pycni.kernel import monitor
from pycni.kernel import netns as namespaces
from pycni.wire import rtlink, rtnl


def watch(netns: str, doing: Callable[[], None], until: Callable[[list[Any]], bool]) -> list[Any]:
    """Run ``doing`` while a monitor listens inside the namespace; the events once ``until`` holds."""

    async def main() -> list[Any]:
        events: list[Any] = []
        fd = namespaces.open_netns(namespaces.path(netns))
        try:
            listening = namespaces.run_in(fd, lambda: monitor.Monitor(events.extend))
        finally:
            os.close(fd)
        try:
            await asyncio.to_thread(doing)
            async with asyncio.timeout(5):
                while not until(events):
                    await asyncio.sleep(0.01)
        finally:
            listening.close()
        return events

    return asyncio.run(main())


def ip(netns: str, *lines: str) -> None:
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input="\n".join(lines), text=True, check=True)


def test_links_addresses_routes_and_neighbours_are_announced(netns: str) -> None:
    def change() -> None:
        ip(
            netns,
            "link add b0 type bridge",
            "link set b0 up",
            "addr add 10.0.0.1/24 dev b0",
            "route add 10.1.0.0/16 via 10.0.0.2 proto 112",
            "neigh add 10.0.0.2 lladdr 02:00:00:00:00:02 dev b0 nud permanent",
            "route del 10.1.0.0/16",
            "link del b0",
        )

    events = watch(
        netns, change, lambda seen: any(e.removed and isinstance(e.info, rtlink.Link) for e in seen)
    )
    routes = [
        (e.removed, e.info.destination)
        for e in events
        if isinstance(e.info, rtnl.RouteInfo) and e.info.protocol == 112
    ]
    assert routes == [(False, b"\x0a\x01\0\0"), (True, b"\x0a\x01\0\0")]
    assert any(isinstance(e.info, rtnl.AddressInfo) and e.info.address == b"\x0a\0\0\x01" for e in events)
    assert any(isinstance(e.info, rtnl.NeighbourInfo) and e.info.mac == b"\x02\0\0\0\0\x02" for e in events)


def test_dropped_events_are_reported_as_lost(netns: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(monitor, "BUFFER_BYTES", 4096)

    def flood() -> None:
        lines = [f"route add 10.{n >> 8}.{n & 255}.0/24 dev lo" for n in range(2000)]
        ip(netns, "link set lo up", *lines)

    async def main() -> list[Any]:
        events: list[Any] = []
        fd = namespaces.open_netns(namespaces.path(netns))
        listening = namespaces.run_in(fd, lambda: monitor.Monitor(events.extend))
        os.close(fd)
        flood()  # on the loop's own thread: nothing is read meanwhile
        await asyncio.sleep(0.1)
        listening.close()
        return events

    assert monitor.LOST in asyncio.run(main())


def test_messages_of_other_kinds_are_passed_over() -> None:
    assert monitor.decode(b"\x10\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0") == []


def test_a_broken_datagram_counts_as_loss_not_as_nothing() -> None:
    good = rtnl.new_neighbour(1, b"\x0a\0\0\x01", b"\x02\0\0\0\0\x01")
    cut = good[:-4]
    assert [type(event) for event in monitor.decode(good + cut)] == [monitor.Event, monitor.Lost]
    assert monitor.decode(b"\x14\0\0\0\x18\0\0\0" + bytes(12)) == [monitor.LOST]


def test_decoding_the_announcements_of_a_thousand_leases_is_cheap() -> None:
    """3,000 events of our own making; the loop must not be held up by them."""
    subnet, mac = b"\x0a\0\0\0", b"\x02\0\0\0\0\x01"
    datagrams = [
        rtnl.new_route(subnet, 24, oif=1, gateway=subnet, protocol=112, onlink=True),
        rtnl.new_neighbour(1, subnet, mac),
        rtnl.new_fdb(1, mac, subnet),
    ] * 1000
    started = time.process_time()
    for datagram in datagrams:
        monitor.decode(datagram)
    assert time.process_time() - started < 1.0


def test_pod_legs_and_the_kernels_own_routes_are_not_announced_all_others_are(netns: str) -> None:
    def change() -> None:
        ip(
            netns,
            "link add veth0123456789a type veth peer name veth1",
            "link add vethernet type bridge",
            "link set vethernet up",
            "addr add 10.0.0.1/24 dev vethernet",
            "route add 10.1.0.0/16 via 10.0.0.2",
            "link del veth1",
            "route del 10.1.0.0/16",
            "link del vethernet",
        )

    events = watch(
        netns,
        change,
        lambda seen: any(
            e.removed and isinstance(e.info, rtlink.Link) and e.info.name == "vethernet" for e in seen
        ),
    )
    assert {e.info.name for e in events if isinstance(e.info, rtlink.Link)} == {"veth1", "vethernet"}
    routes = [(e.removed, e.info.protocol) for e in events if isinstance(e.info, rtnl.RouteInfo)]
    assert routes == [(False, 3), (True, 3)]
