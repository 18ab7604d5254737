"""Following keys: no event is lost or repeated whatever the server does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.sources.etcd_pb import rpc_pb2 as rpc
from pycni.sources.etcd_watch import (
    Change,
    Changed,
    Listed,
    Opened,
    Phase,
    Record,
    Refused,
    Relist,
    WatchState,
    prefix_end,
)


def header(revision, cluster=7):
    return rpc.ResponseHeader(revision=revision, cluster_id=cluster)


def kv(key, revision, value=b"v", lease=0):
    return rpc.KeyValue(key=key.encode(), value=value, mod_revision=revision, lease=lease)


def put(key, revision, value=b"v"):
    return rpc.Event(type=rpc.Event.PUT, kv=kv(key, revision, value))


def deleted(key, revision):
    return rpc.Event(type=rpc.Event.DELETE, kv=rpc.KeyValue(key=key.encode(), mod_revision=revision))


def listing(revision, *kvs, cluster=7):
    return rpc.RangeResponse(header=header(revision, cluster), kvs=kvs)


def answer(revision, *events, cluster=7, **more):
    return rpc.WatchResponse(header=header(revision, cluster), events=events, **more)


ANCHOR = kv("/p/x", 9, lease=77)


@pytest.fixture
def state():
    """Listed at revision 10 and watching."""
    state = WatchState("/p/", prefix_end("/p/"))
    state.listed(listing(10, ANCHOR))
    state.create_request()
    assert state.received(answer(10, created=True)) == Opened()
    return state


def resume(state):
    """The stream is lost, the store still the same."""
    state.lost()
    request = state.check_request()
    known = state._anchor
    assert (request.key.decode(), request.revision) == (known.key, known.mod_revision)
    assert state.checked(listing(99, kv(known.key, known.mod_revision, known.value, known.lease)))
    return state.create_request().create_request.start_revision


def test_first_a_listing_then_a_watch_right_behind_it():
    state = WatchState("/p/", prefix_end("/p/"))
    assert state.phase is Phase.LIST
    found = state.listed(listing(10, kv("/p/a", 3, lease=5)))
    assert found == Listed((Record("/p/a", b"v", 3, 5),), 10)
    request = state.create_request().create_request
    assert (request.key, request.range_end, request.start_revision) == (b"/p/", b"/p0", 11)
    assert state.phase is Phase.WATCH


def test_events_come_out_in_order_with_what_they_wrote(state):
    outcome = state.received(answer(30, put("/p/a", 12, b"x"), deleted("/p/b", 13)))
    assert outcome == Changed((Change("/p/a", Record("/p/a", b"x", 12, 0), 12), Change("/p/b", None, 13)))


def test_a_watch_resumes_behind_the_last_event_and_not_at_the_header(state):
    state.received(answer(5000, put("/p/a", 12)))
    assert resume(state) == 13


def test_progress_does_not_move_the_resume_revision(state):
    assert state.received(answer(5000, watch_id=-1)) is None
    assert resume(state) == 11


def test_events_seen_before_are_dropped(state):
    state.received(answer(12, put("/p/a", 12)))
    resume(state)
    state.received(answer(20, created=True))
    assert state.received(answer(20, put("/p/a", 12))) is None
    outcome = state.received(answer(20, put("/p/a", 12), put("/p/b", 14)))
    assert [change.revision for change in outcome.changes] == [14]


def test_all_events_of_one_revision_are_delivered(state):
    outcome = state.received(answer(12, put("/p/a", 12), put("/p/b", 12), deleted("/p/c", 12)))
    assert [change.key for change in outcome.changes] == ["/p/a", "/p/b", "/p/c"]
    assert resume(state) == 13


@pytest.mark.parametrize(
    "response",
    [
        pytest.param(answer(90, canceled=True, compact_revision=50), id="compacted"),
        pytest.param(
            answer(90, created=True, canceled=True, compact_revision=50), id="compacted at creation"
        ),
        pytest.param(answer(9, created=True), id="the store is behind us"),
        pytest.param(answer(10, created=True, cluster=8), id="another cluster"),
        pytest.param(answer(12, put("/p/a", 12), cluster=8), id="another cluster, later"),
    ],
)
def test_what_breaks_continuity_asks_for_a_listing(state, response):
    resume(state)
    assert isinstance(state.received(response), Relist)
    assert state.phase is Phase.LIST


def test_a_cancelled_watch_may_be_opened_again(state):
    assert state.received(answer(90, canceled=True, cancel_reason="permission denied")) == Refused(
        "permission denied"
    )
    assert resume(state) == 11


@pytest.mark.parametrize(
    ("response", "replaced"),
    [
        (listing(10), False),
        (listing(500), False),
        (listing(9), True),
        (listing(500, cluster=8), True),
    ],
    ids=["same revision", "later", "earlier revision", "another cluster"],
)
def test_only_a_listing_says_that_the_store_was_replaced(state, response, replaced):
    state.relist()
    assert state.listed(response).replaced is replaced


@pytest.mark.parametrize(
    "found",
    [
        pytest.param(listing(99), id="gone"),
        pytest.param(listing(99, kv("/p/x", 9, lease=78)), id="another etcd lease"),
        pytest.param(listing(99, kv("/p/x", 9, b"w", lease=77)), id="another value"),
        pytest.param(listing(99, kv("/p/x", 8, lease=77)), id="written at another revision"),
        pytest.param(listing(99, ANCHOR, cluster=8), id="another cluster"),
    ],
)
def test_a_store_that_does_not_know_what_it_said_is_another_one(state, found):
    state.lost()
    assert not state.checked(found)
    assert state.phase is Phase.LIST
    assert state.listed(listing(200)).replaced
    state.relist()
    assert not state.listed(listing(201)).replaced


def test_the_record_written_last_is_the_one_to_recognise_the_store_by(state):
    state.received(answer(14, put("/p/a", 12), put("/p/b", 13), deleted("/p/x", 14)))
    state.lost()
    request = state.check_request()
    assert (request.key, request.revision) == (b"/p/b", 13)


def test_with_no_record_to_recognise_the_store_by_a_listing_is_due():
    state = WatchState("/p/")
    state.listed(listing(10))
    state.create_request()
    state.lost()
    assert state.check_request() is None


def test_the_first_listing_replaces_nothing():
    assert not WatchState("/p/").listed(listing(1)).replaced


@pytest.mark.parametrize(
    "act",
    [lambda s: s.create_request(), lambda s: s.received(answer(1))],
    ids=["watch before listing", "response before watch"],
)
def test_steps_out_of_order_are_refused(act):
    with pytest.raises(AssertionError):
        act(WatchState("/p/"))


@pytest.mark.parametrize(
    ("prefix", "end"), [("/p/", b"/p0"), ("a", b"b"), ("10.5.34.0-24", b"10.5.34.0-25"), ("", b"\0")]
)
def test_the_end_of_a_prefix(prefix, end):
    assert prefix_end(prefix) == end


streams = st.lists(st.lists(st.integers(0, 3), max_size=4), max_size=8)


@given(st.lists(st.integers(0, 3), max_size=15), streams)
def test_whatever_is_cut_when_every_event_is_delivered_exactly_once(sizes, streams):
    """A history of ``sizes`` events per revision; streams of responses covering so many revisions, then cut."""
    last = 10 + len(sizes)
    history = [put(f"/p/{n}", 11 + at) for at, size in enumerate(sizes) for n in range(size)]
    state = WatchState("/p/", prefix_end("/p/"))
    state.listed(listing(10, ANCHOR))
    seen = []
    for stream in [*streams, [len(sizes)]]:
        if state.phase is Phase.CHECK:
            known = state._anchor
            state.checked(listing(last, kv(known.key, known.mod_revision, known.value, known.lease)))
        start = state.create_request().create_request.start_revision
        state.received(answer(last, created=True))
        for span in stream:
            batch = [event for event in history if start <= event.kv.mod_revision < start + span]
            outcome = state.received(answer(last, *batch))
            seen += outcome.changes if isinstance(outcome, Changed) else ()
            start += span
        state.lost()
    assert [(change.key, change.revision) for change in seen] == [
        (event.kv.key.decode(), event.kv.mod_revision) for event in history
    ]
