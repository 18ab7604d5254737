"""Ten thousand routes out and in."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pycni_bgp.exabgp.kernel import PROTOCOL
from pycni_bgp.settings import BgpSettings
from tests.netns.bgp_nodes import Node, Router, Switch, execute, router, running_nodes, until
from tests.netns.bgp_routers import Frr, GoBgp, running

MANY = 10_000
SETTINGS = BgpSettings(graceful=False)
WAIT_S = 90


def _networks(inside: str, length: int) -> list[str]:
    return [
        str(item) for item in itertools.islice(ipaddress.ip_network(inside).subnets(new_prefix=length), MANY)
    ]


def _source(switch: Switch, folder: Path) -> Router:
    """A router with many routes; what it is told does not go to its kernel."""
    routes = "".join(f"route {item} blackhole;\n" for item in _networks("10.128.0.0/9", 24))
    text = f"""
        protocol static {{ ipv4; {routes} }}
        protocol bgp ours {{
          local as 65013; neighbor 192.0.2.1 as 64512; connect delay time 1;
          ipv4 {{ import all; export where source = RTS_STATIC; }};
        }}
        """
    return Router(switch, 13, 65013, folder, "", text=text)


async def _told(source: Router, prefix: str) -> bool:
    return prefix in await source.show(f"route where net = {prefix}")


async def _counted(source: Router) -> bool:
    return f"{MANY + 1} of" in await source.show("route count where bgp_path.len > 0")


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_ten_thousand_routes_go_both_ways(
    netns_factory: Callable[[], str], tmp_path: Path, engine: str
) -> None:
    async def story() -> None:
        switch = Switch(netns_factory)
        protocol = "bird" if engine == "bird" else PROTOCOL
        numbers = (11, 12, 13) if engine == "bird" else (13,)
        one = Node(switch, 1, tmp_path, engine, peers=tuple(router(n, 65000 + n) for n in numbers))

        def in_kernel() -> int:
            found = json.loads(execute(one.where, f"ip -j -4 route show proto {protocol}") or "[]")
            return sum(1 for item in found if item["dst"].startswith("10."))

        def make() -> list[Any]:
            if engine == "exabgp":
                # To three neighbours it would take half a minute.
                return [_source(switch, tmp_path)]
            return [
                Frr(switch, 11, tmp_path, 1, 65011, hold=90),
                GoBgp(switch, 12, tmp_path, 1, 65012),
                _source(switch, tmp_path),
            ]

        with running(make) as (*fabric, source):
            async with running_nodes(one, settings=SETTINGS):
                for item in fabric:
                    await until(item.up, f"session of {item.number}", 40)
                await until(lambda: in_kernel() == MANY, f"routes in the kernel: {in_kernel()}", WAIT_S)
                assert not one.engine.trouble
                for item in _networks("20.0.0.0/8", 32):
                    one.serve(item)
                await one.engine.put(one.plan((one,), SETTINGS))
                for item in fabric:
                    await until(
                        lambda item=item: item.count() == MANY + 1,
                        f"routes at {item.number}: {item.count()}",
                        WAIT_S,
                    )
                await until(lambda: _counted(source), "routes at BIRD", WAIT_S)
                # One more is one update.
                one.serve("198.51.100.7/32")
                await one.engine.put(one.plan((one,), SETTINGS))
                await until(lambda: _told(source, "198.51.100.7/32"), "one more", WAIT_S)
                source.end()
                await until(lambda: not in_kernel(), "a dead router's routes leave the kernel", WAIT_S)
                if engine == "bird":
                    one.services.clear()
                    await one.engine.put(one.plan((one,), SETTINGS))
                    for item in fabric:
                        await until(
                            lambda item=item: item.count() == 1, f"withdrawal at {item.number}", WAIT_S
                        )

    asyncio.run(story())
