"""Work for a process inside a node's namespace: fill etcd with leases, time how soon the kernel follows.

python -m bench.inside fill ENDPOINT COUNT        other nodes' leases, 10.100.0.0/24 onwards
python -m bench.inside latency ENDPOINT COUNT     put one more lease, wait for its route; seconds as JSON
python -m bench.inside wait COUNT [any]           until so many routes of ours (of anybody) are there; time.monotonic() then
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from pycni.kernel.monitor import Event, Lost, Monitor
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.tables import ROUTE_PROTOCOL
from pycni.sources.etcd import EtcdClient
from pycni.sources.etcd_config import EtcdConfig
from pycni.wire import rtnl

PREFIX = "/coreos.com/network/subnets/"


def lease(number: int) -> tuple[str, bytes]:
    """Key and value of a peer's lease as flannel writes them."""
    public = f"192.168.{60 + number // 250}.{1 + number % 250}"
    mac = f"02:00:00:00:{number // 256:02x}:{number % 256:02x}"
    value = {
        "PublicIP": public,
        "PublicIPv6": None,
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": mac},
    }
    return f"{PREFIX}10.{100 + number // 256}.{number % 256}.0-24", json.dumps(value).encode()


async def fill(endpoint: str, count: int) -> None:
    """Put ``count`` leases."""
    async with EtcdClient(EtcdConfig(endpoints=(endpoint,))) as client:
        for start in range(0, count, 50):
            await asyncio.gather(*(client.put(*lease(n)) for n in range(start, min(start + 50, count))))


async def latency(endpoint: str, first: int, count: int) -> list[float]:
    """Seconds from the moment a put is sent until the kernel announces the route, one lease after another."""
    seen: dict[bytes, asyncio.Future[float]] = {}

    def deliver(events: list[Event | Lost]) -> None:
        now = time.perf_counter()
        for event in events:
            if isinstance(event, Event) and isinstance(event.info, rtnl.RouteInfo) and not event.removed:
                waiting = seen.get(event.info.destination)
                if waiting is not None and not waiting.done():
                    waiting.set_result(now)

    monitor = Monitor(deliver)
    took: list[float] = []
    async with EtcdClient(EtcdConfig(endpoints=(endpoint,))) as client:
        await client.get(PREFIX)
        for number in range(first, first + count):
            key, value = lease(number)
            destination = bytes([10, 100 + number // 256, number % 256, 0])
            seen[destination] = asyncio.get_running_loop().create_future()
            started = time.perf_counter()
            await client.put(key, value)
            took.append(await asyncio.wait_for(seen[destination], 10) - started)
            await asyncio.sleep(0.02)
    monitor.close()
    return took


def wait(count: int, protocol: int = ROUTE_PROTOCOL) -> float:
    """Poll the kernel until ``count`` routes of ours, or of anybody's (protocol 0), are there."""
    deadline = time.monotonic() + 60
    with NetlinkSocket() as sock:
        while time.monotonic() < deadline:
            if len(sock.dump(rtnl.dump_routes(2, protocol=protocol))) >= count:
                return time.monotonic()
            time.sleep(0.005)
    raise TimeoutError(f"no {count} routes after a minute")


def main() -> None:
    """Run one command."""
    command, *words = sys.argv[1:]
    if command == "fill":
        asyncio.run(fill(words[0], int(words[1])))
    elif command == "latency":
        print(json.dumps(asyncio.run(latency(words[0], int(words[1]), int(words[2])))))
    else:
        print(wait(int(words[0]), 0 if words[1:] == ["any"] else ROUTE_PROTOCOL))


if __name__ == "__main__":
    main()
