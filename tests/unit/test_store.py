"""The store: whole values are compared, snapshots never change, listings are complete."""

import threading

import pytest

from pycni.store import Store


@pytest.fixture
def store():
    return Store()


@pytest.fixture
def pokes(store):
    seen = []
    store.subscribe(lambda: seen.append(store.snapshot().revision))
    return seen


def test_an_equal_value_changes_nothing_and_pokes_nobody(store, pokes):
    assert store.put("lease", "a", (1, 2))
    before = store.snapshot()
    assert not store.put("lease", "a", (1, 2))
    assert store.snapshot() is before
    assert pokes == [1]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda s: s.put("lease", "a", 2), id="another value under a known key"),
        pytest.param(lambda s: s.put("lease", "b", 1), id="new key"),
        pytest.param(lambda s: s.put("node", "a", 1), id="same key of another kind"),
        pytest.param(lambda s: s.delete("lease", "a"), id="deletion"),
        pytest.param(lambda s: s.replace("lease", {}), id="listing without it"),
        pytest.param(lambda s: s.replace("lease", {"a": 1}), id="first listing, same content"),
        pytest.param(lambda s: s.mark_listed("lease"), id="mark listed"),
    ],
)
def test_every_change_raises_the_revision_and_pokes_once(store, pokes, write):
    store.put("lease", "a", 1)
    pokes.clear()
    assert write(store)
    assert pokes == [2]


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda s: s.delete("lease", "b"), id="delete unknown key"),
        pytest.param(lambda s: s.delete("node", "a"), id="delete of unknown kind"),
        pytest.param(lambda s: s.replace("lease", {"a": 1}), id="same listing again"),
        pytest.param(lambda s: s.mark_listed("lease"), id="listed already"),
    ],
)
def test_what_is_no_change_pokes_nobody(store, pokes, write):
    store.replace("lease", {"a": 1})
    pokes.clear()
    assert not write(store)
    assert pokes == []


def test_a_snapshot_never_changes(store):
    store.put("lease", "a", 1)
    before = store.snapshot()
    store.put("lease", "a", 2)
    store.put("lease", "b", 3)
    store.delete("lease", "a")
    store.replace("lease", {"c": 1})
    store.mark_listed("node")
    assert (before.revision, dict(before.of("lease")), before.listed) == (1, {"a": 1}, frozenset())
    assert dict(store.snapshot().of("lease")) == {"c": 1}
    with pytest.raises(TypeError):
        before.objects["lease"]["a"] = 9


def test_a_write_after_a_snapshot_copies_a_kind_once(store):
    store.replace("lease", {str(n): n for n in range(3)})
    store.snapshot()
    store.put("lease", "x", 1)
    own = store._kinds["lease"]
    store.put("lease", "y", 1)
    assert store._kinds["lease"] is own


def test_kinds_without_objects_read_as_empty(store):
    assert dict(store.snapshot().of("lease")) == {}
    store.mark_listed("lease")
    assert store.snapshot().listed == {"lease"}
    assert "lease" not in store.snapshot().objects


def test_a_listing_forgets_what_it_does_not_name_and_keeps_equal_objects(store):
    kept = (1, 2)
    store.put("lease", "kept", kept)
    store.put("lease", "gone", 1)
    store.replace("lease", {"kept": (1, 2), "new": 3})
    objects = store.snapshot().of("lease")
    assert dict(objects) == {"kept": (1, 2), "new": 3}
    assert objects["kept"] is kept
    assert "lease" in store.snapshot().listed


def test_a_listing_does_not_share_the_callers_mapping(store):
    mine = {"a": 1}
    store.replace("lease", mine)
    mine["b"] = 2
    assert dict(store.snapshot().of("lease")) == {"a": 1}


def test_after_unsubscribing_nothing_comes(store):
    seen = []
    end = store.subscribe(lambda: seen.append(1))
    end()
    end()
    store.put("lease", "a", 1)
    assert seen == []


def test_a_subscriber_may_write_and_unsubscribe_from_its_callback(store):
    seen = []

    def once():
        end()
        seen.append(store.put("echo", "a", 1))

    end = store.subscribe(once)
    store.put("lease", "a", 1)
    assert seen == [True]


def test_writers_on_many_threads_lose_nothing(store):
    def write(worker):
        for number in range(200):
            store.put("lease", f"{worker}-{number}", number)
            store.snapshot()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.snapshot().of("lease")) == 800
    assert store.snapshot().revision == 800


def test_a_tracker_names_what_changed_since_it_was_asked_last(store):
    store.put("a", "old", 1)
    tracker = store.track("a", "b")
    assert tracker.take() == {"a": {"old"}}
    store.put("a", "old", 1)
    store.put("a", "new", 1)
    store.put("b", "gone", 1)
    store.delete("b", "gone")
    store.put("c", "not asked for", 1)
    assert tracker.take() == {"a": {"new"}, "b": {"gone"}}
    assert tracker.take() == {}


def test_a_tracker_names_what_a_listing_changed(store):
    store.replace("a", {"same": 1, "other": 1, "gone": 1})
    tracker = store.track("a")
    tracker.take()
    store.replace("a", {"same": 1, "other": 2, "new": 1})
    assert tracker.take() == {"a": {"other", "gone", "new"}}


def test_keys_put_back_are_named_again(store):
    tracker = store.track("a")
    store.put("a", "x", 1)
    taken = tracker.take()
    tracker.put_back(taken)
    assert tracker.take() == taken


def test_the_current_contents_follow_writes_and_cost_no_copy(store):
    store.put("a", "x", 1)
    current = store.current()
    held = current.of("a")
    store.put("a", "y", 2)
    store.replace("b", {"z": 3})
    assert current.of("a") is held == {"x": 1, "y": 2}
    assert current.of("b").get("z") == 3
    assert current.listed == {"b"}
    frozen = current.frozen()
    store.put("a", "x", 9)
    assert (frozen.of("a")["x"], current.of("a")["x"]) == (1, 9)
