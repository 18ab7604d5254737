"""The loop that follows etcd, with streams made of paper: silence, refusals, ends and what is done about them."""

import asyncio
import contextlib

import pytest

from pycni.errors import StoreError
from pycni.reconcile.backoff import Backoff
from pycni.sources.etcd_config import Endpoint
from pycni.sources.etcd_dial import Connection
from pycni.sources.etcd_follow import Follower
from tests.unit.test_etcd_watch import answer, kv, listing, put

CREATED = answer(1000, created=True)
KNOWN = kv("/p/x", 9, lease=77)
END = object()


class Stream:
    """Gives its answers one by one and is silent then; ``END`` is the server's end of the stream."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.ended = asyncio.Event()

    async def write(self, request):
        self.requests.append(request.WhichOneof("request_union"))

    async def read(self):
        if not self.answers:
            await self.ended.wait()
            raise asyncio.CancelledError
        found = self.answers.pop(0)
        if isinstance(found, BaseException):
            raise found
        import grpc.aio

        return grpc.aio.EOF if found is END else found

    def cancel(self):
        self.ended.set()

    async def code(self):
        await self.ended.wait()


class Client:
    """Ranges and streams in the order in which they are asked for."""

    def __init__(self, ranges, streams):
        self.ranges = list(ranges)
        self.streams = list(streams)
        self.asked = []
        self.dropped = []
        self.tokens_forgotten = 0
        self.connection = Connection(Endpoint("http://one:1", "dns:///one:1", tls=False), None)

    async def range(self, request):
        self.asked.append(request.revision)
        found = self.ranges.pop(0) if self.ranges else listing(10, KNOWN)
        if isinstance(found, BaseException):
            raise found
        return found

    async def open_watch(self):
        return (self.streams.pop(0) if self.streams else Stream(CREATED)), self.connection

    def drop(self, connection):
        self.dropped.append(connection)

    def forget_token(self):
        self.tokens_forgotten += 1

    def heard(self):
        pass


def follow(ranges, streams, seconds=0.3):
    """Run a follower for a while. Returns client, follower, listings, changes."""
    listings, changes = [], []

    async def scene():
        client = Client(ranges, [stream() for stream in streams])
        opened = list(client.streams)
        follower = Follower(
            client, "/p/", b"/p0",
            on_listing=listings.append, on_changes=lambda changed: changes.extend(changed.changes),
            progress_s=0.03, silence_s=0.1, backoff=Backoff(0.001, 0.01),
        )  # fmt: skip
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await follower.run()
        return client, follower, opened

    client, follower, opened = asyncio.run(scene())
    return client, follower, listings, changes, opened


def test_a_silent_stream_is_asked_for_progress_and_then_given_up():
    client, follower, listings, _, opened = follow([], [lambda: Stream(CREATED)], 0.25)
    assert opened[0].requests[0] == "create_request"
    assert opened[0].requests[1:] == ["progress_request"] * len(opened[0].requests[1:])
    assert len(opened[0].requests) >= 3
    assert client.dropped[0] is client.connection
    assert follower.reconnects >= 1
    assert len(listings) == 1


def test_a_stream_that_answers_is_kept():
    chatty = [answer(10, watch_id=-1) for _ in range(1000)]

    class Slow(Stream):
        async def read(self):
            await asyncio.sleep(0.02)
            return await super().read()

    client, follower, _, _, _ = follow([], [lambda: Slow(CREATED, *chatty)], 0.3)
    assert (client.dropped, follower.reconnects) == ([], 0)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(END, id="ended by the server"),
        pytest.param(asyncio.CancelledError(), id="connection given up by another request"),
        pytest.param(answer(10, canceled=True, cancel_reason="no leader"), id="cancelled"),
    ],
)
def test_however_a_stream_ends_another_one_is_opened_behind_the_last_event(end):
    client, follower, listings, changes, _ = follow(
        [listing(10, KNOWN), listing(99, kv("/p/a", 12, b"v"))],
        [lambda: Stream(CREATED, answer(50, put("/p/a", 12)), end), lambda: Stream(CREATED)],
        0.09,
    )
    assert follower.reconnects == 1
    assert len(listings) == 1
    assert [change.revision for change in changes] == [12]
    assert client.asked[:2] == [0, 12]


def test_a_refused_watch_authenticates_again():
    client, *_ = follow(
        [], [lambda: Stream(answer(10, canceled=True, cancel_reason="permission denied"))], 0.05
    )
    assert client.tokens_forgotten == 1


@pytest.mark.parametrize(
    ("check", "replaced"),
    [
        (StoreError("etcd: Range: etcdserver: mvcc: required revision has been compacted"), False),
        (StoreError("etcd: Range: etcdserver: mvcc: required revision is a future revision"), False),
        (listing(99, kv("/p/x", 9, lease=78)), True),
    ],
    ids=["compacted", "in the future", "another record"],
)
def test_when_the_known_record_is_not_found_a_listing_is_made(check, replaced):
    _, follower, listings, _, _ = follow(
        [listing(10, KNOWN), check, listing(99)], [lambda: Stream(CREATED, END)], 0.08
    )
    assert [found.replaced for found in listings] == [False, replaced]
    assert follower.relists == 1


def test_a_failed_check_is_repeated_without_a_listing():
    client, follower, listings, _, _ = follow(
        [listing(10, KNOWN), StoreError("etcd: away"), StoreError("etcd: away")],
        [lambda: Stream(CREATED, END)],
        0.08,
    )
    assert len(listings) == 1
    assert client.asked == [0, 9, 9, 9]
    assert follower.relists == 0


def test_listing_is_tried_for_ever():
    _, follower, listings, _, _ = follow([StoreError("etcd: away")] * 8, [], 0.15)
    assert len(listings) == 1
    assert follower.relists == 0


def test_compaction_leads_to_one_listing():
    compacted = answer(90, canceled=True, compact_revision=80)
    client, follower, listings, _, _ = follow(
        [listing(10, KNOWN), listing(90, KNOWN)], [lambda: Stream(CREATED, compacted)], 0.09
    )
    assert [found.revision for found in listings] == [10, 90]
    assert (follower.relists, client.asked) == (1, [0, 0])


def test_what_a_consumer_raises_ends_the_loop():
    def broken(_changed):
        raise ValueError("bug")

    async def scene():
        client = Client([], [Stream(CREATED, answer(12, put("/p/a", 12)))])
        follower = Follower(client, "/p/", on_listing=lambda _listing: None, on_changes=broken)
        await follower.run()

    with pytest.raises(ValueError, match="bug"):
        asyncio.run(scene())


def test_cancelling_ends_the_stream():
    async def scene():
        stream = Stream(CREATED)
        client = Client([], [stream])
        follower = Follower(client, "/p/", on_listing=lambda _listing: None, on_changes=lambda _changed: None)
        task = asyncio.create_task(follower.run())
        while not follower.connected:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.ended.is_set()
        assert not follower.connected

    asyncio.run(scene())
