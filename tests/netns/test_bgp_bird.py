"""BIRD as our engine, with real sessions between namespaces."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pycni.errors import ConfigError
from pycni_bgp.annotations import NodeSettings
from pycni_bgp.bird import show
from pycni_bgp.bird.config import config
from pycni_bgp.engine import BgpError, Plan, Session
from pycni_bgp.model import Bfd, Neighbour, Secret
from pycni_bgp.settings import BgpSettings
from tests.netns import bgp_agent
from tests.netns.bgp_nodes import Node, Router, Switch, execute, packed, router, running_nodes, until

PASSWORD = "not to be seen"
SETTINGS = BgpSettings()


async def _up(node: Node, count: int) -> list[Session]:
    async def look() -> list[Session]:
        with contextlib.suppress(BgpError):
            found = list(await node.engine.sessions())
            if len(found) == count and all(item.up for item in found):
                return found
        return []

    return await until(look, f"{count} sessions of node {node.number}")


@pytest.fixture
def switch(netns_factory: Callable[[], str]) -> Switch:
    """A switch."""
    return Switch(netns_factory)


def _same_time(one: str, two: str) -> bool:
    """BIRD computes them anew each time it is asked, and may differ by a millisecond."""
    values = [
        sum(float(part) * 60**place for place, part in enumerate(reversed(text.split(":"))))
        for text in (one, two)
    ]
    return abs(values[0] - values[1]) < 0.1


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_nodes_learn_each_others_pod_cidrs_and_keep_them(switch: Switch, tmp_path: Path, engine: str) -> None:
    """Through a kill of the engine, and a node that joins; other sessions stay as they are."""

    async def story() -> None:
        one, two, three = (Node(switch, number, tmp_path, engine) for number in (1, 2, 3))
        expected = {"10.1.2.0/24": ("192.0.2.2",), "2001:db8:2::/64": ("2001:db8::2",)}
        async with running_nodes(one, two):
            await until(lambda: one.routes() == expected, f"routes of node 1: {one.routes()}")
            # The engine is killed: routes stay on both sides, and it comes back.
            os.kill(int(Path(one.engine.pid_file).read_text()), 9)
            for _ in range(20):
                assert one.routes() == expected
                assert "10.1.1.0/24" in two.routes()
                await asyncio.sleep(0.05)
            await until(lambda: one.engine.starts == 2, "it was started again")
            await _up(one, 1)
            assert one.routes() == expected
            # A third node: nothing happens to the session of the other two.
            since = (await _up(two, 1))[0].since
            async with running_nodes(three):
                for node in (one, two, three):
                    await node.engine.put(node.plan((one, two, three), SETTINGS))
                await until(lambda: len(one.routes()) == 4, "node 3's routes")
                kept = [item for item in await _up(two, 2) if item.address == packed("192.0.2.1")]
                assert _same_time(kept[0].since, since)
            await until(
                lambda: one.routes() == expected or len(one.routes()) == 4,
                "routes of a node that restarts stay",
            )

    asyncio.run(story())


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_a_new_agent_takes_over_a_running_engine(switch: Switch, tmp_path: Path, engine: str) -> None:
    async def story() -> None:
        one, two = (Node(switch, number, tmp_path, engine) for number in (1, 2))
        async with running_nodes(two, everybody=(one, two)):
            agent = await asyncio.to_thread(bgp_agent.start, one, one.plan((one, two), SETTINGS))
            since = (await _up(two, 1))[0].since
            agent.kill()
            agent.communicate()
            one.serve("198.51.100.7/32")
            async with running_nodes(one, everybody=(one, two)):
                assert (await _up(one, 1))[0].up
                assert _same_time((await _up(two, 1))[0].since, since)
                assert one.engine.starts == 0

    asyncio.run(story())


def test_routers_outside_get_what_they_are_to_get(switch: Switch, tmp_path: Path) -> None:
    """Two of them: ECMP to what both announce, communities and path on what they are told, MD5, withdrawal."""

    async def story() -> None:
        peers = (
            router(11, 65011, password=Secret(PASSWORD)),
            router(12, 65012),
        )
        one = Node(switch, 1, tmp_path, peers=peers, communities=("64512:7", "no-export"), prepend=(64999, 2))
        one.serve("198.51.100.7/32")
        there = "192.0.2.1 as 64512"
        routers = [
            Router(switch, 11, 65011, tmp_path, there, extra=f'password "{PASSWORD}";'),
            Router(switch, 12, 65012, tmp_path, there),
        ]
        try:
            async with running_nodes(one):
                hops = ("192.0.2.11", "192.0.2.12")
                await until(lambda: one.routes() == {"203.0.113.0/24": hops}, "a route with two next hops")
                for item in routers:
                    text = await until(lambda item=item: item.has("198.51.100.7/32"), "the service's address")
                    told = next(path for path in _paths(text) if path[0] == "198.51.100.7/32")
                    assert told == (
                        "198.51.100.7/32",
                        "64512 64999 64999",
                        {(64512, 7), (65535, 65281)},
                        "192.0.2.1",
                    )
                    assert "10.1.1.0/24" in text
                    assert "2001:db8:1::/64" in text
                _nobody_sees(one)
                learned = await one.engine.learned()
                assert {(item.neighbour, str(item.prefix), item.attributes.as_path) for item in learned} == {
                    (packed(f"192.0.2.{number}"), "203.0.113.0/24", (65000 + number,)) for number in (11, 12)
                }
                # Without the service its address is withdrawn; of a router that was killed routes stay for a while.
                one.services.clear()
                await one.engine.put(one.plan((one,), SETTINGS))
                await until(lambda: routers[0].lacks("198.51.100.7/32"), "withdrawal")
                routers[1].end()
                await until(lambda: one.routes() == {"203.0.113.0/24": hops}, "a killed router's routes stay")
        finally:
            for item in routers:
                item.end()

    asyncio.run(story())


def _paths(text: str) -> list[tuple[str, str, set[tuple[int, ...]], str]]:
    """Routes as a router lists them: prefix, AS path, communities, next hop."""
    return [
        (
            str(item.prefix),
            " ".join(map(str, item.attributes.as_path)),
            {tuple(map(int, community.split(":"))) for community in item.attributes.communities},
            ".".join(map(str, item.attributes.next_hop)) if len(item.attributes.next_hop) == 4 else "",
        )
        for item in show.routes(text.replace("[ours ", "[nc0000201 "))
    ]


def _nobody_sees(node: Node) -> None:
    """The password is in one file only root can read, and in no process's arguments."""
    files = [path for path in node.folder.iterdir() if path.is_file()]
    holding = [path for path in files if PASSWORD in path.read_text(errors="replace")]
    assert [path.name for path in holding] == ["bird.conf"]
    assert stat.S_IMODE(holding[0].stat().st_mode) == 0o600
    pid = int(Path(node.engine.pid_file).read_text())
    arguments = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
    assert str(node.folder) in arguments
    assert PASSWORD not in arguments
    assert base64.b64encode(PASSWORD.encode()).decode() not in arguments


def test_bfd_tells_of_a_dead_link_within_a_second(switch: Switch, tmp_path: Path) -> None:
    async def story() -> None:
        wish = Bfd(multiplier=3, receive_ms=100, send_ms=100)
        one = Node(switch, 1, tmp_path, peers=(router(11, 65011, bfd=wish),))
        extra = "bfd { min rx interval 100 ms; min tx interval 100 ms; };"
        other = Router(switch, 11, 65011, tmp_path, "192.0.2.1 as 64512", extra=extra + "} protocol bfd {")
        try:
            async with running_nodes(one):
                await until(lambda: bool(one.routes()), "a route")
                # The session itself would hold for 90 s; the switch's port goes down, not the node's.
                execute(switch.where, "ip link set v11 nomaster")
                await until(lambda: not one.routes(), "the route goes", 5)
                error = (await one.engine.sessions())[0]
                assert not error.up
                assert "BFD" in error.error
        finally:
            other.end()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": Secret('a"b')}, "password=***: BIRD takes no quotation marks"),
        ({"bfd": Bfd(port=4784)}, "bfd.port=4784"),
    ],
    ids=["password", "BFD port"],
)
def test_what_bird_cannot_do_is_refused_by_name(change: dict[str, object], words: str) -> None:
    neighbour = Neighbour(address=packed("192.0.2.9"), asn=65001, local_asn=64512, origin="setting")
    neighbour = msgspec.structs.replace(neighbour, **change)
    plan = Plan(
        router_id=packed("192.0.2.1"),
        settings=SETTINGS,
        own=NodeSettings(name="a", addresses=(packed("192.0.2.1"),)),
        sessions={neighbour.address: neighbour},
        local={},
    )
    with pytest.raises(ConfigError, match=r"neighbour 192\.0\.2\.9 AS65001") as caught:
        config(plan, "bird.log")
    assert words in str(caught.value)
