"""The full-screen view, driven by keys: what is on the screen, not how it got there."""

from __future__ import annotations

import asyncio
import threading

from pycni.cli_top_app import SHOWN, TopApp
from pycni.errors import PycniError
from pycni.traffic.model import (
    Counted,
    PodCount,
    Policies,
    PolicyCount,
    Sample,
    ServiceCount,
    Services,
    Tally,
    Tracked,
)

S = 1_000_000_000
SIZE = (124, 24)


class Nodes:
    """Two nodes whose clock goes one second a round; nobody waits for a real one."""

    def __init__(self, pods=()):
        self.rounds = 0
        self.trouble = ""
        self.more = tuple(pods)
        self.asked = threading.Event()

    def __call__(self):
        self.asked.set()
        self.rounds += 1
        if self.trouble:
            raise PycniError(self.trouble)
        at = self.rounds
        return {"node1": self.one("node1", at, 1), "node2": self.one("node2", at, 3)}

    def one(self, node, at, share):
        ns = at * S
        pods = {f"shop/web-{share}": share * 2000, f"shop/api-{share}": share * 500_000}
        return Sample(
            node=node,
            time=float(at),
            counted=Counted(
                node=node,
                at_ns=ns,
                pods=tuple(
                    PodCount(name, "eth0", at * size, at * 10, at * 100, at * 4, at * (share == 3))
                    for name, size in {**pods, **dict.fromkeys(self.more, 1)}.items()
                ),
                services=Services(at_ns=ns, planes=("nftables",), rows=(ServiceCount("shop/web", at * share),)),
                policies=Policies(
                    at_ns=ns,
                    rows=(
                        PolicyCount("NetworkPolicy shop/closed", "ingress", at * 2 * share, at * 100),
                        PolicyCount("spoofed source", "egress", 0, 0),
                    ),
                ),
            ),
            tracked=Tracked(
                at_ns=ns,
                entries=5,
                limit=1000,
                accounting=True,
                read_s=0.001,
                pods={f"shop/web-{share}": Tally(7, at * 3, 0, 0, 0, 0)},
                services={"shop/web": Tally(share, at, at * 50, at, at * 70, at)},
            ),
        )  # fmt: skip


def screen(app):
    """What is on the terminal, as lines."""
    strips = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip).rstrip() for strip in strips]


def table(app):
    """The rows of the table, first word of each."""
    lines = screen(app)
    head = next(index for index, line in enumerate(lines) if "NODE" in line)
    return [line.split()[0] for line in lines[head + 1 :] if line.strip() and " pods  " not in line]


def drive(story, nodes=None, **options):
    nodes = nodes or Nodes()

    async def run():
        app = TopApp(nodes, interval=3600, title="lab", **options)
        async with app.run_test(size=SIZE) as pilot:

            async def tick():
                app._tick()
                await app.workers.wait_for_complete()
                await pilot.pause()

            await tick()
            await tick()
            await story(app, pilot, tick)

    asyncio.run(run())
    return nodes


SNAPSHOT = """\
 lab 2 nodes   pods 4   in 2.01MB/s 40 pkt/s   out 400B/s 16 pkt/s   new 6/s   active 14   drops 2/s   denied 8/s   tracked
 10 of 2000
 pods  services  policies  nodes
╸━━━━╺━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━
 sorted by what is busiest  ·  all nodes  ·  every 3600 s  ·  4 rows
 POD         NODE   IN B/s  OUT B/s  IN pkt/s  OUT pkt/s  NEW/s  ACTIVE  DROPS/s
 shop/api-3  node2    1.5M      100        10          4      0       0        1
 shop/api-1  node1    500k      100        10          4      0       0        0
 shop/web-3  node2      6k      100        10          4      3       7        1
 shop/web-1  node1      2k      100        10          4      3       7        0
"""

VIEWS = [
    ("2", ["SERVICE", "shop/web", "2 nodes", "140"]),
    ("s", ["SERVICE"]),
    ("3", ["POLICY", "NetworkPolicy shop/closed", "ingress"]),
    ("4", ["TRACKED", "node1", "node2"]),
]


def test_the_screen_as_it_is_and_what_keys_make_of_it():
    async def story(app, pilot, tick):
        async def press(*keys):
            await pilot.press(*keys)
            await pilot.pause()
            return "\n".join(screen(app))

        assert "\n".join(screen(app)[:10]) + "\n" == SNAPSHOT

        for key, expected in VIEWS:
            shown = await press(key)
            assert [word for word in expected if word not in shown] == [], key
            assert "shop/api-3" not in shown
            assert "spoofed source" not in shown
            assert "shop/api-3" in await press("p")

        shown = await press("2", "a")
        assert "services by node" in shown
        assert "2 nodes " not in shown.split("SERVICE")[1]
        assert len(table(app)) == 2
        await press("a", "1")

        assert "sorted by pod" in await press(">")
        assert table(app) == ["shop/api-1", "shop/api-3", "shop/web-1", "shop/web-3"]
        await press("r")
        assert table(app)[0] == "shop/web-3"
        assert "sorted by active" in await press("r", "<", "<", "<")
        assert table(app)[:2] == ["shop/web-1", "shop/web-3"]

        assert "lab node1" in await press("n")
        assert table(app) == ["shop/web-1", "shop/api-1"]
        await press("n", "n")
        assert len(table(app)) == 4

    drive(story)


def test_a_filter_a_pause_and_the_cursor():
    async def story(app, pilot, tick):
        await pilot.press("down", "down", ">")
        await pilot.pause()
        found = app.query_one("DataTable")
        assert str(found.get_row_at(found.cursor_row)[0]) == "shop/web-3", "the cursor stays with its row"
        await tick()
        assert str(found.get_row_at(found.cursor_row)[0]) == "shop/web-3"

        await pilot.press("/", *"web node2", "enter")
        await pilot.pause()
        assert table(app) == ["shop/web-3"]
        await tick()
        assert table(app) == ["shop/web-3"]
        await pilot.press("escape")
        await pilot.pause()
        assert len(table(app)) == 4
        await pilot.press("/", *"sq")
        await pilot.pause()
        assert app.is_running, "letters typed into the filter are no keys"
        assert "POD" in "\n".join(screen(app))
        await pilot.press("escape", "space")
        await pilot.pause()
        before = app._sample.rounds
        await tick()
        assert app._sample.rounds == before, "nobody is asked while it is paused"
        assert "PAUSED" in "\n".join(screen(app))
        await pilot.press("space")
        await tick()
        assert app._sample.rounds == before + 1

    drive(story)


def test_no_more_rows_are_drawn_than_anybody_reads_but_all_are_counted():
    many = [f"many/p{number:04}" for number in range(SHOWN)]

    async def story(app, pilot, tick):
        assert app.query_one("DataTable").row_count == SHOWN
        shown = "\n".join(screen(app))
        assert f"{SHOWN} of {SHOWN * 2 + 4} rows" in shown
        assert f"pods {SHOWN * 2 + 4}" in shown

    drive(story, Nodes(many))


def test_it_begins_as_the_command_line_says_and_names_agents_that_do_not_answer():
    nodes = Nodes()

    async def story(app, pilot, tick):
        shown = "\n".join(screen(app))
        assert "sorted by new/s ascending" in shown
        assert "filter 'web'" in shown
        assert "shop/web" in shown
        nodes.trouble = "no agent answers at /run/x"
        await tick()
        shown = "\n".join(screen(app))
        assert "no agent answers at /run/x" in shown
        assert "shop/web" in shown
        nodes.trouble = ""
        await tick()
        assert "no agent answers" not in "\n".join(screen(app))
        await pilot.press("q")
        await pilot.pause()
        assert not app.is_running

    drive(story, nodes, view="services", sort="new", ascending=True, words="web")
