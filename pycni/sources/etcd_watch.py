"""Following a range of etcd keys without losing an event: the protocol, without I/O.

Life: ``LIST`` -> the caller reads the range and hands it to ``listed`` -> ``OPEN`` -> the caller sends
``create_request`` on a new stream -> ``WATCH`` -> every response goes through ``received``. A broken stream leads
to ``CHECK`` (``lost``): the caller asks for one known record as of its revision (``checked``) and so back to
``OPEN``. Compaction, and a store that is not the one we knew, lead back to ``LIST``.

What makes it lossless:

* A watch resumes at the revision after the last *delivered event*, never at one from a response header: while a
  watcher catches up, headers (and progress notifications) run ahead of the events still to come.
* Without fragmentation etcd never splits the events of one revision over two responses, so "last delivered + 1"
  leaves no gap. Events below the resume revision are repeats and are dropped.
* Resuming at a compacted revision is answered with ``compact_revision``: only a new listing, compared by value,
  can tell what was missed.
* A store that was emptied or restored may stand at any revision when we are back: watching it "from the future"
  would stay silent, watching it from the middle would miss its beginning. Another cluster id, a lower revision, or
  a known record that is not in its history give it away; a listing then says so (``Listed.replaced``). (A watch
  answered by a member that lags behind only leads to a listing: listings are linearizable.)
"""

from __future__ import annotations

import enum
from typing import NamedTuple, TypeAlias

from pycni.sources.etcd_pb import rpc_pb2 as rpc


class Record(NamedTuple):
    """One key as etcd holds it. ``lease`` is the id of the etcd lease it dies with, 0: none."""

    key: str
    value: bytes
    mod_revision: int
    lease: int


class Change(NamedTuple):
    """A key was written (``record``) or deleted (None) at ``revision``."""

    key: str
    record: Record | None
    revision: int


class Listed(NamedTuple):
    """All keys of the range at ``revision``.

    ``replaced``: this is not the store known before (emptied, restored, another cluster), so what is missing in
    it was not necessarily deleted by anybody.
    """

    records: tuple[Record, ...]
    revision: int
    replaced: bool = False


class Changed(NamedTuple):
    """Events in order."""

    changes: tuple[Change, ...]


class Opened(NamedTuple):
    """The server has accepted the watch."""


class Relist(NamedTuple):
    """The caller has to list again before anything else."""

    reason: str


class Refused(NamedTuple):
    """The server ended the watch; the caller may open another one later (after authenticating again)."""

    reason: str


Outcome: TypeAlias = Changed | Opened | Relist | Refused | None


class Phase(enum.Enum):
    """What the caller has to do next."""

    LIST = "list"
    CHECK = "check"
    OPEN = "open"
    WATCH = "watch"


class WatchState:
    """State of following ``key`` .. ``range_end`` (exclusive; empty: that one key)."""

    def __init__(self, key: str, range_end: bytes = b"") -> None:
        self.key = key.encode()
        self.range_end = range_end
        self.phase = Phase.LIST
        self.next_revision = 0
        """Where a watch has to start; 0 before the first listing."""
        self._cluster_id = 0
        self._known_revision = 0
        """The highest revision of the store that was seen at work: only a replaced one lists a lower one."""
        self._anchor: Record | None = None
        """The record written last, as far as we know. Its etcd lease is an id that no other store has."""
        self._suspect = False

    def list_request(self) -> rpc.RangeRequest:
        """The listing to ask for (linearizable)."""
        return rpc.RangeRequest(key=self.key, range_end=self.range_end)

    def listed(self, response: rpc.RangeResponse) -> Listed:
        """Take the answer to ``list_request``."""
        header = response.header
        replaced = self._suspect or (
            self._cluster_id != 0
            and (header.cluster_id != self._cluster_id or header.revision < self._known_revision)
        )
        records = tuple(to_record(kv) for kv in response.kvs)
        self._suspect = False
        self._cluster_id = header.cluster_id
        self._known_revision = header.revision
        self._anchor = max(records, key=lambda record: record.mod_revision, default=None)
        self.next_revision = header.revision + 1
        self.phase = Phase.OPEN
        return Listed(records, header.revision, replaced)

    def check_request(self) -> rpc.RangeRequest | None:
        """What to ask before resuming; None when nothing is known by which to recognise the store: list again."""
        self._expect(Phase.CHECK)
        if self._anchor is None:
            return None
        return rpc.RangeRequest(key=self._anchor.key.encode(), revision=self._anchor.mod_revision)

    def checked(self, response: rpc.RangeResponse) -> bool:
        """Take the answer to ``check_request``. Returns whether this is the store we know; if not, list again."""
        self._expect(Phase.CHECK)
        found = to_record(response.kvs[0]) if response.kvs else None
        same = response.header.cluster_id == self._cluster_id and found == self._anchor
        self._suspect = not same
        self.phase = Phase.OPEN if same else Phase.LIST
        return same

    def create_request(self) -> rpc.WatchRequest:
        """The first request of a new stream."""
        self._expect(Phase.OPEN)
        self.phase = Phase.WATCH
        return rpc.WatchRequest(
            create_request=rpc.WatchCreateRequest(
                key=self.key, range_end=self.range_end, start_revision=self.next_revision
            )
        )

    def received(self, response: rpc.WatchResponse) -> Outcome:
        """Take one response of the stream."""
        self._expect(Phase.WATCH)
        header = response.header
        if response.compact_revision:
            return self._relist(
                f"revision {self.next_revision} is compacted (up to {response.compact_revision})"
            )
        if response.canceled:
            self.phase = Phase.CHECK
            return Refused(response.cancel_reason or "watch canceled by the server")
        if header.cluster_id != self._cluster_id:
            return self._relist(f"cluster id changed from {self._cluster_id:x} to {header.cluster_id:x}")
        if response.created:
            if header.revision < self.next_revision - 1:
                return self._relist(
                    f"store is at revision {header.revision}, before {self.next_revision - 1}"
                )
            return Opened()
        return self._events(response)

    def lost(self) -> None:
        """The stream is gone."""
        if self.phase is Phase.WATCH:
            self.phase = Phase.CHECK

    def relist(self) -> None:
        """List again at the next occasion."""
        self.phase = Phase.LIST

    def _events(self, response: rpc.WatchResponse) -> Changed | None:
        changes = []
        for event in response.events:
            kv = event.kv
            if kv.mod_revision < self.next_revision:
                continue
            record = None if event.type == rpc.Event.DELETE else to_record(kv)
            changes.append(Change(_text(kv.key), record, kv.mod_revision))
        if not changes:
            return None  # progress, or repeats
        self.next_revision = changes[-1].revision + 1
        self._known_revision = max(self._known_revision, changes[-1].revision)
        self._anchor = next((change.record for change in reversed(changes) if change.record), self._anchor)
        return Changed(tuple(changes))

    def _relist(self, reason: str) -> Relist:
        self.phase = Phase.LIST
        return Relist(reason)

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise AssertionError(f"watch of {self.key!r}: in phase {self.phase.value}, not {phase.value}")


def to_record(kv: rpc.KeyValue) -> Record:
    """A key of a response."""
    return Record(_text(kv.key), kv.value, kv.mod_revision, kv.lease)


def prefix_end(prefix: str) -> bytes:
    """``range_end`` of all keys that begin with ``prefix`` (etcd API guide, "Key ranges")."""
    data = prefix.encode().rstrip(b"\xff")
    return data[:-1] + bytes([data[-1] + 1]) if data else b"\x00"


def _text(key: bytes) -> str:
    """Keys are text; what is not UTF-8 is shown escaped and will match nothing of ours."""
    return key.decode("utf-8", "backslashreplace")
