"""Following keys on real servers of both versions: killed, frozen, compacted, emptied, cut in the middle."""

import asyncio
import contextlib
import itertools
import shutil
import signal

import pytest

from pycni.reconcile.backoff import Backoff
from pycni.sources.etcd_follow import Follower
from pycni.sources.etcd_watch import prefix_end
from tests.lab.etcd_tools import Relay, client, running, until

pytest_plugins = ["tests.lab.etcd_fixtures"]


class Seen:
    """What a follower said: the picture it gives, and every event."""

    def __init__(self, etcd_client, prefix, **more):
        values = {"progress_s": 0.3, "silence_s": 1.0, "backoff": Backoff(0.02, 0.2)} | more
        self.prefix = f"{prefix}/"
        self.picture = {}
        self.events = []
        self.revisions = []
        self.listings = []
        self.follower = Follower(
            etcd_client, self.prefix, prefix_end(self.prefix),
            on_listing=self._listed, on_changes=self._changed, **values,
        )  # fmt: skip

    def _listed(self, listing):
        self.listings.append(listing)
        self.picture = {record.key.removeprefix(self.prefix): record.value for record in listing.records}

    def _changed(self, changed):
        for change in changed.changes:
            name = change.key.removeprefix(self.prefix)
            self.events.append((name, change.record and change.record.value))
            self.revisions.append(change.revision)
            if change.record is None:
                self.picture.pop(name, None)
            else:
                self.picture[name] = change.record.value

    def run(self):
        return self.follower.run()


async def fill(c, prefix, numbers):
    """Put keys 00000, 00001, ... with their numbers as values, a revision each."""
    for start in range(0, len(numbers), 200):
        part = numbers[start : start + 200]
        await asyncio.gather(*(c.put(f"{prefix}/{n:05}", str(n).encode()) for n in part))


@contextlib.asynccontextmanager
async def relayed(server):
    """A relay before the server, a client that goes around it and one that goes through it."""
    async with (
        Relay(server.options.client_port) as relay,
        client(server.endpoint) as direct,
        client(relay.endpoint) as through,
    ):
        yield relay, direct, through


def test_what_is_there_comes_as_a_listing_and_what_happens_as_events(etcd, prefix):
    async def scene():
        async with client(etcd.endpoint) as c:
            await c.put(f"{prefix}/a", b"1")
            seen = Seen(c, prefix)
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                assert seen.picture == {"a": b"1"}
                await c.put(f"{prefix}/b", b"2")
                await c.delete(f"{prefix}/a")
                await until(lambda: len(seen.events) == 2)
                assert seen.events == [("b", b"2"), ("a", None)]
                await c.put(f"{prefix}-not-ours", b"3")
                seen.follower.relist()
                await until(lambda: len(seen.listings) == 2)
                assert seen.picture == {"b": b"2"}
                assert (seen.follower.relists, seen.follower.events) == (1, 2)

    asyncio.run(scene())


def test_a_quiet_watch_stays_connected_without_events(etcd, prefix):
    async def scene():
        async with client(etcd.endpoint) as c:
            seen = Seen(c, prefix, progress_s=0.1, silence_s=0.5)
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                await asyncio.sleep(1.2)
                assert (seen.follower.connected, seen.follower.reconnects, c.dials) == (True, 0, 1)

    asyncio.run(scene())


def test_a_server_killed_and_restarted_loses_no_event(servers):
    async def scene():
        server = servers.start()
        async with client(server.endpoint) as c:
            await c.put("/p/first", b"x")
            seen = Seen(c, "/p")
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                for number in range(2):
                    await c.put(f"/p/{number}", b"before")
                    server.kill()
                    await until(lambda: not seen.follower.connected)
                    server = servers.restart(server.options)
                    async with client(server.endpoint) as other:
                        await other.put(f"/p/{number}", b"after")
                    await until(lambda n=number: seen.picture.get(str(n)) == b"after")
            assert seen.events == [(str(n), v) for n in range(2) for v in (b"before", b"after")]
            assert (seen.follower.relists, seen.follower.reconnects >= 2) == (0, True)

    asyncio.run(scene())


def test_after_compaction_while_away_the_picture_is_right(etcd, prefix):
    async def scene():
        async with relayed(etcd) as (relay, direct, c):
            seen = Seen(c, prefix)
            await fill(direct, prefix, range(10))
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                relay.closed = True
                relay.cut()
                await until(lambda: not seen.follower.connected)
                await direct.delete(f"{prefix}/00003")
                await direct.put(f"{prefix}/00004", b"changed")
                await direct.compact(await direct.put(f"{prefix}/new", b"1"))
                relay.closed = False
                await until(lambda: seen.follower.relists == 1 and seen.follower.connected)
            expected = {f"{n:05}": str(n).encode() for n in range(10)} | {
                "00004": b"changed",
                "new": b"1",
            }
            del expected["00003"]
            assert seen.picture == expected
            assert not seen.listings[-1].replaced

    asyncio.run(scene())


def test_an_emptied_etcd_is_recognised_as_another_one(servers):
    server = servers.start()

    async def scene():
        async with client(server.endpoint) as c:
            seen = Seen(c, "/p")
            await fill(c, "/p", range(10))
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                server.kill()
                shutil.rmtree(server.options.data_dir)
                servers.restart(server.options)
                await until(lambda: len(seen.listings) == 2)
                assert seen.listings[-1].replaced
                await c.put("/p/new", b"1")
                await until(lambda: seen.picture == {"new": b"1"})

    asyncio.run(scene())


def test_an_emptied_etcd_is_recognised_also_when_it_has_grown_beyond_the_old_one(modern):
    async def scene():
        server = modern.start()
        async with relayed(server) as (relay, direct, c):
            seen = Seen(c, "/p")
            await fill(direct, "/p", range(10))
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                relay.closed = True
                server.kill()
                shutil.rmtree(server.options.data_dir)
                server = modern.restart(server.options)
                async with client(server.endpoint) as other:
                    await other.put("/p/new", b"1")
                    await fill(other, "/elsewhere", range(30))
                relay.closed = False
                await until(lambda: len(seen.listings) == 2)
                assert seen.listings[-1].replaced
                assert seen.picture == {"new": b"1"}

    asyncio.run(scene())


@pytest.mark.parametrize("how", ["frozen server", "half-open link"])
def test_silence_is_noticed_within_seconds_with_the_usual_settings(modern, how):
    server = modern.start()

    async def scene():
        async with Relay(server.options.client_port) as relay, client(relay.endpoint) as c:
            seen = Seen(c, "/p", progress_s=2.0, silence_s=5.0)
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                if how == "frozen server":
                    server.signal(signal.SIGSTOP)
                else:
                    relay.stall()
                took = await until(lambda: not seen.follower.connected)
                if how == "frozen server":
                    server.signal(signal.SIGCONT)
                else:
                    relay.go_on()
                await until(lambda: seen.follower.connected)
                return took

    assert 0.5 < asyncio.run(scene()) < 8


def test_a_frozen_member_is_left_for_another_one(modern):
    members = modern.cluster()

    async def scene():
        endpoints = [member.endpoint for member in members]
        async with client(*endpoints) as c, client(endpoints[1], endpoints[2]) as others:
            seen = Seen(c, "/p")
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                members[0].signal(signal.SIGSTOP)
                await until(lambda: not seen.follower.connected)
                await until(lambda: seen.follower.connected)
                assert c.endpoint != endpoints[0]
                for _ in range(50):
                    if await tried(others.put("/p/a", b"1")):
                        break
                await until(lambda: seen.picture == {"a": b"1"})

    asyncio.run(scene())


async def tried(awaitable):
    """Whether etcd did it; an election may be under way."""
    try:
        await awaitable
    except Exception:
        await asyncio.sleep(0.1)
        return False
    return True


def test_when_the_leader_of_three_is_killed_no_event_is_lost(servers):
    members = servers.cluster()

    async def scene():
        endpoints = [member.endpoint for member in members]
        leader = None
        for member in members:
            async with client(member.endpoint) as c:
                status = await c.status()
                leader = member if status.leader == status.header.member_id else leader
        rest = [member.endpoint for member in members if member is not leader]
        async with client(leader.endpoint, *rest) as c, client(*rest) as writer:
            seen = Seen(c, "/p")
            await c.put("/p/first", b"x")
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                assert c.endpoint == leader.endpoint
                written = []
                for number in range(40):
                    if number == 10:
                        leader.kill()
                    while not await tried(writer.put(f"/p/{number:05}", b"x")):
                        pass
                    written.append(f"{number:05}")
                await until(lambda: len(seen.picture) == 41)
            assert endpoints
            assert list(dict.fromkeys(name for name, _ in seen.events)) == written

    asyncio.run(scene())


@pytest.mark.parametrize("seed", range(2))
def test_of_3000_events_none_is_lost_when_cut_again_and_again_while_catching_up(etcd, prefix, seed):
    # etcd sends up to 1,000 events in one message, here of some 35 kB: cut before, in and behind the first.
    sizes = (2_000, 20_000, 45_000)

    async def scene():
        async with relayed(etcd) as (relay, direct, c):
            await direct.put(f"{prefix}/before", b"listed")
            seen = Seen(c, prefix)
            async with running(seen.run()):
                await until(lambda: seen.follower.connected)
                relay.closed = True
                relay.cut()
                await until(lambda: not seen.follower.connected)
                await fill(direct, prefix, range(3000))
                relay.budgets = itertools.cycle(sizes[seed:] + sizes[:seed])
                relay.budget = next(relay.budgets)
                relay.closed = False
                await until(lambda: len(seen.events) >= 3000, timeout_s=30)
            assert sorted(seen.events) == [(f"{n:05}", str(n).encode()) for n in range(3000)]
            assert seen.revisions == sorted(seen.revisions)
            assert (seen.follower.relists, relay.cuts > 3) == (0, True)

    asyncio.run(scene())


def test_a_watch_that_is_not_allowed_says_so_and_tries_again(servers, caplog):
    server = servers.start()
    for words in (["user", "add", "root:x"], ["role", "add", "root"], ["user", "grant-role", "root", "root"],
                  ["user", "add", "agent:y"], ["role", "add", "agents"], ["user", "grant-role", "agent", "agents"],
                  ["auth", "enable"]):  # fmt: skip
        servers.ctl(server, *words)

    async def scene():
        async with client(server.endpoint, username="agent", password="y") as c:
            seen = Seen(c, "/p")
            async with running(seen.run()):
                await until(lambda: "permission denied" in caplog.text)
                grant = ["role", "grant-permission", "--prefix", "agents", "read", "/p/"]
                servers.ctl(server, *grant, ETCDCTL_USER="root:x")
                await until(lambda: seen.follower.connected)

    asyncio.run(scene())
    assert len([message for message in caplog.messages if "permission denied" in message]) == 1
