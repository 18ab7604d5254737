"""The agent's memory of what its sources have told: objects by kind and key.

Life of an object: a source decodes it and calls ``put`` (an event) or ``replace`` (a full listing); equal values
change nothing and wake nobody; a changed one raises the revision and pokes the subscribers, who take a
``snapshot`` when they get round to it. Nothing is ever forgotten because a source is away: only ``delete``, or a
``replace`` that no longer names the object, removes it. Whoever deletes things in the kernel waits until every
kind it depends on is in ``Snapshot.listed``.

Who handles many objects of a kind asks for a ``Tracker``: it collects which keys changed, so that the cost of a change
does not grow with the number of objects. It only says where to look: values come from a snapshot taken afterwards.

Snapshots are immutable and cheap: the mappings are shared and copied by the first write after a snapshot.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

Callback = Callable[[], None]
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Snapshot(NamedTuple):
    """What the store held at one moment."""

    revision: int
    """Raised by every change; equal revisions of one store mean equal contents."""
    objects: Mapping[str, Mapping[str, Any]]
    """Kind -> key -> value. Read-only."""
    listed: frozenset[str]
    """Kinds of which a full listing has been seen once: absence in these means "does not exist"."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind; empty when none was seen yet."""
        return self.objects.get(kind, _NOTHING)

    def frozen(self) -> Snapshot:
        """Itself."""
        return self


class Current:
    """The contents as they are at each look. Made by ``Store.current``; any thread.

    For who looks up a few keys by a ``Tracker``: unlike a snapshot it never costs a copy, and what changes between two
    looks is reported by the tracker. Only single keys may be looked up: ``frozen`` first, to go through all.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind, to look up keys at once."""
        return self._store._kinds.get(kind, _NOTHING)  # noqa: SLF001 - the store's other face

    @property
    def listed(self) -> frozenset[str]:
        """See ``Snapshot.listed``."""
        return self._store._listed  # noqa: SLF001

    def frozen(self) -> Snapshot:
        """A snapshot."""
        return self._store.snapshot()


class Objects(Protocol):
    """A ``Snapshot`` or a ``Current``."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind."""

    def frozen(self) -> Snapshot:
        """The contents at one moment."""


class Tracker:
    """Keys that changed since the last ``take``, by kind. Made by ``Store.track``; any thread."""

    def __init__(self, lock: threading.Lock, kinds: frozenset[str]) -> None:
        self._lock = lock
        self._kinds = kinds
        self._changed: dict[str, set[str]] = {kind: set() for kind in kinds}

    def take(self) -> dict[str, set[str]]:
        """The changed keys by kind, kinds without any left out; starts collecting anew.

        Take first, then read ``Store.snapshot``: what changes in between is seen now and reported once more.
        """
        with self._lock:
            found = {kind: keys for kind, keys in self._changed.items() if keys}
            for kind in found:
                self._changed[kind] = set()
        return found

    def put_back(self, changed: Mapping[str, Iterable[str]]) -> None:
        """Report keys again with the next ``take``: their pass failed."""
        with self._lock:
            for kind, keys in changed.items():
                self._changed[kind].update(keys)

    def _note(self, kind: str, keys: Iterable[str]) -> None:
        """Called by the store with its lock held."""
        if kind in self._kinds:
            self._changed[kind].update(keys)


class Store:
    """Objects of all sources. Every method may be called from any thread.

    Callbacks take no argument, run on the writer's thread after the write is visible and must return at once
    (set an event); an exception they raise reaches the writer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, dict[str, Any]] = {}
        self._listed: frozenset[str] = frozenset()
        self._revision = 0
        self._shared: set[str] = set()
        self._snapshot: Snapshot | None = None
        self._callbacks: dict[object, Callback] = {}
        self._trackers: list[Tracker] = []

    def put(self, kind: str, key: str, value: Any) -> bool:
        """Remember an object; whole values are compared. Returns whether something changed."""
        with self._lock:
            held = self._kinds.get(kind, _NOTHING)
            if key in held and held[key] == value:
                return False
            self._writable(kind)[key] = value
            self._note(kind, (key,))
            self._touch()
        self._poke()
        return True

    def delete(self, kind: str, key: str) -> bool:
        """Forget an object; an unknown one is not an error. Returns whether something changed."""
        with self._lock:
            if key not in self._kinds.get(kind, _NOTHING):
                return False
            del self._writable(kind)[key]
            self._note(kind, (key,))
            self._touch()
        self._poke()
        return True

    def replace(self, kind: str, objects: Mapping[str, Any]) -> bool:
        """Take a full listing of a kind: what it does not name is forgotten, and the kind counts as listed.

        One poke at most. Values equal to the held ones keep their identity.
        """
        with self._lock:
            held = self._kinds.get(kind, _NOTHING)
            if kind in self._listed and held == objects:
                return False
            taken = {
                key: held[key] if key in held and held[key] == value else value
                for key, value in objects.items()
            }
            if self._trackers:
                self._note(kind, [key for key, value in taken.items() if held.get(key) is not value])
                self._note(kind, [key for key in held if key not in taken])
            self._kinds[kind] = taken
            self._shared.discard(kind)
            self._listed |= {kind}
            self._touch()
        self._poke()
        return True

    def mark_listed(self, kind: str) -> bool:
        """Say that everything there is of a kind has been put. Returns whether that was news."""
        with self._lock:
            if kind in self._listed:
                return False
            self._listed |= {kind}
            self._touch()
        self._poke()
        return True

    def snapshot(self) -> Snapshot:
        """The contents now. The same object again until something changes."""
        with self._lock:
            if self._snapshot is None:
                self._shared = set(self._kinds)
                objects = {kind: MappingProxyType(held) for kind, held in self._kinds.items()}
                self._snapshot = Snapshot(self._revision, MappingProxyType(objects), self._listed)
            return self._snapshot

    def track(self, *kinds: str) -> Tracker:
        """Start collecting the keys that change in some kinds; what is there already counts as changed."""
        with self._lock:
            tracker = Tracker(self._lock, frozenset(kinds))
            for kind in kinds:
                tracker._note(kind, self._kinds.get(kind, _NOTHING))  # noqa: SLF001
            self._trackers.append(tracker)
        return tracker

    def current(self) -> Current:
        """A view that follows the contents and costs nothing to take."""
        return Current(self)

    def subscribe(self, callback: Callback) -> Callback:
        """Have ``callback`` called after every change. Returns what ends the subscription (harmless twice)."""
        token = object()
        with self._lock:
            self._callbacks[token] = callback

        def unsubscribe() -> None:
            with self._lock:
                self._callbacks.pop(token, None)

        return unsubscribe

    def _writable(self, kind: str) -> dict[str, Any]:
        """The kind's own mapping, copied first when a snapshot still shows it."""
        held = self._kinds.setdefault(kind, {})
        if kind in self._shared:
            held = self._kinds[kind] = dict(held)
            self._shared.discard(kind)
        return held

    def _note(self, kind: str, keys: Iterable[str]) -> None:
        for tracker in self._trackers:
            tracker._note(kind, keys)  # noqa: SLF001

    def _touch(self) -> None:
        self._revision += 1
        self._snapshot = None

    def _poke(self) -> None:
        with self._lock:
            callbacks = list(self._callbacks.values())
        for callback in callbacks:
            callback()
