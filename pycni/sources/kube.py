"""Kubernetes objects in the store: list, watch, list again after a gap.

Life: ``KubeSource.run`` follows every selection with a task of its own, for ever. A kind is put into the store by
``replace`` once its listing is complete, so nothing is taken for deleted because the API was away, and nothing of a
half-read listing is seen. After that a watch goes on from the listing's version; wherever it breaks, the next one goes
on from the last version heard of (bookmarks move it on where nothing happens). Only when the API has forgotten that
version (410) or says something unreadable is everything listed again.

A kind that a cluster need not have (a CRD) and that the API does not know has no objects: it counts as listed, and is
asked for again every minute. What was listed before is only forgotten after the API has said so several times in a row.

An object that makes no sense is reported once and skipped; one that could be read before keeps its last good value
until it is deleted, a policy that never could has a stand-in that denies (``wire/kube_policy_standin``). Waiting is
capped, jittered and endless; a server that says Retry-After is left alone that long.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn, Protocol

from pycni.errors import ConfigError, StoreError
from pycni.model.kube import NODE, POD
from pycni.reconcile.backoff import Backoff
from pycni.sources.kube_client import RESOURCES, KubeClient, Selection
from pycni.sources.kube_http import KubeError
from pycni.sources.sparing import Sparing
from pycni.store import Store
from pycni.wire.kube import KubeObject, Skipped, decode_event, decode_list

__all__ = ["KindFollower", "KubeSource", "Selection", "Sink", "own_node", "own_pods"]
log = logging.getLogger("pycni.kube")

PAGE = 500
"""Objects per page of a listing: client-go's."""
WATCH_S = (300, 600)
"""How long a watch is asked for: watches of many nodes are to end at different times."""
SILENCE_S = 90.0
"""Longest silence of a watch: the API sends a bookmark every minute. A new watch costs next to nothing."""
RELIST_GAP_S = 10.0
"""Listings closer together are spaced by the back-off, even where the API asks for them."""
STUCK = 5
"""Refused watches in a row after which everything is listed again."""
ABSENT_S = 60.0
"""Between two questions for a kind that the cluster does not have."""
BRIEF_S = 1.0
"""A watch that ends sooner counts as a failure, whatever it said."""
LONGEST_WAIT_S = 300.0
BURST = 200
"""Events after which others get their turn."""


class Sink(Protocol):
    """Who takes what a follower hears. Called on the event loop, in order."""

    def listed(self, objects: dict[str, KubeObject], unreadable: Mapping[str, KubeObject | None]) -> None:
        """Everything there is; ``unreadable``: keys of objects that exist and make no sense, with their stand-ins."""
        ...

    def changed(self, key: str, value: KubeObject | None) -> None:
        """One object as it is now, None when it is gone."""
        ...

    def unreadable(self, key: str, stand_in: KubeObject | None) -> None:
        """One object that makes no sense now."""
        ...


def own_node(name: str) -> Selection:
    """This node's object only."""
    return Selection(NODE, fields=f"metadata.name={name}")


def own_pods(node: str) -> Selection:
    """The pods of one node."""
    return Selection(POD, fields=f"spec.nodeName={node}")


class KubeSource:
    """``kinds``: kinds followed whole, or selections of them; each kind once."""

    def __init__(
        self,
        client: KubeClient,
        kinds: Sequence[str | Selection],
        *,
        page: int = PAGE,
        silence_s: float = SILENCE_S,
        longest_pause_s: float = 30.0,
        absent_s: float = ABSENT_S,
        rng: random.Random | None = None,
    ) -> None:
        selections = [Selection(each) if isinstance(each, str) else each for each in kinds]
        names = [selection.kind for selection in selections]
        if len(set(names)) < len(names):
            raise ConfigError("kube source", "kinds", names, "each kind is followed once")
        self._client = client
        self._sinks = {selection.kind: _StoreSink(selection.kind) for selection in selections}
        self.followers: Mapping[str, KindFollower] = {
            selection.kind: KindFollower(
                client,
                selection,
                self._sinks[selection.kind],
                page=page,
                silence_s=silence_s,
                longest_pause_s=longest_pause_s,
                absent_s=absent_s,
                rng=rng,
            )
            for selection in selections
        }
        """By kind, for metrics and health."""

    @property
    def waiting(self) -> str:
        """What is being waited for, "" when everything is followed."""
        return "; ".join(f"{kind}: {each.waiting}" for kind, each in self.followers.items() if each.waiting)

    @property
    def connected(self) -> bool:
        """Whether every kind is being followed right now."""
        return all(each.connected for each in self.followers.values())

    @property
    def malformed(self) -> dict[str, str]:
        """Objects that make no sense: ``kind key`` -> why."""
        return {
            f"{kind} {key}": why
            for kind, each in self.followers.items()
            for key, why in each.malformed.items()
        }

    def readdressed(self) -> None:
        """This node's address has changed: connections made from the old one are dead."""
        self._client.redial()

    async def run(self, store: Store) -> NoReturn:
        """Follow everything into the store, for ever."""
        for sink in self._sinks.values():
            sink.store = store
        async with asyncio.TaskGroup() as tasks:
            for kind, follower in self.followers.items():
                tasks.create_task(follower.run(), name=f"follow {kind}")
        raise AssertionError("the tasks are eternal")


class _StoreSink:
    """Puts what a follower hears into the store."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._stood_in: set[str] = set()
        """Keys of stand-ins: a later one takes an earlier one's place."""
        self.store = Store()

    def listed(self, objects: dict[str, KubeObject], unreadable: Mapping[str, KubeObject | None]) -> None:
        self._stood_in, before = set(), self._stood_in
        if unreadable:
            held = self.store.snapshot().of(self._kind)
            good = {key: held[key] for key in unreadable if key in held and key not in before}
            rest = {key: item for key, item in unreadable.items() if key not in good and item is not None}
            objects |= {**good, **rest}
            self._stood_in = set(rest)
        self.store.replace(self._kind, objects)

    def unreadable(self, key: str, stand_in: KubeObject | None) -> None:
        if stand_in is not None and (key in self._stood_in or key not in self.store.current().of(self._kind)):
            self._stood_in.add(key)
            self.store.put(self._kind, key, stand_in)

    def changed(self, key: str, value: KubeObject | None) -> None:
        self._stood_in.discard(key)
        if value is None:
            self.store.delete(self._kind, key)
        else:
            self.store.put(self._kind, key, value)


class KindFollower:
    """Follows one selection into a sink. The plain attributes are for metrics and health."""

    def __init__(
        self,
        client: KubeClient,
        selection: Selection,
        sink: Sink,
        *,
        page: int = PAGE,
        silence_s: float = SILENCE_S,
        longest_pause_s: float = 30.0,
        absent_s: float = ABSENT_S,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._selection = selection
        self._sink = sink
        self._page = page
        self._silence_s = silence_s
        self._absent_s = absent_s
        self._rng = rng or random.Random()  # noqa: S311  # spreads nodes over time, guards nothing
        self._clock = clock
        self._backoff = Backoff(
            min(0.1, longest_pause_s), longest_pause_s, jitter=0.5, chance=self._rng.random
        )
        self._trouble = Sparing(log)
        self._version = ""
        self._expired = 0
        """Listings in a row that expired between two pages."""
        self._refused = 0
        """Watches in a row that the API refused or ended by an error."""
        self._missed = 0
        """Listings in a row that found an optional kind unknown to the API."""
        self._listed_at = float("-inf")
        self.name = selection.kind
        self.waiting = "the first listing"
        """What is being waited for, "" when nothing is."""
        self.connected = False
        """Whether a watch is open, or there is nothing to watch (``absent``)."""
        self.absent = False
        """Whether the API does not know this kind."""
        self.reconnects = 0
        """Watches opened after the first."""
        self.relists = 0
        """Listings after the first."""
        self.events = 0
        """Objects that came, changed or went."""
        self.malformed: dict[str, str] = {}
        """Key -> why the object makes no sense."""

    async def run(self) -> NoReturn:
        """Follow for ever. Only what the sink raises ends it."""
        listed = opened = False
        while True:
            started = self._clock()
            error: Exception | None = None
            try:
                if not self._version:
                    self.relists += listed and not self.absent
                    await self._list()
                    listed = True
                    if self.absent:
                        await asyncio.sleep(self._absent_s * (1 - 0.2 * self._rng.random()))
                    continue
                self.reconnects += opened
                opened = True
                await self._watch()
            except (StoreError, ConfigError) as exc:
                error = exc
            self.connected = False
            await asyncio.sleep(self._pause(error, self._clock() - started))

    def _pause(self, error: Exception | None, lasted_s: float) -> float:
        """Seconds to wait after a watch has ended, or a listing has failed, this way."""
        if lasted_s >= BRIEF_S:
            self._backoff.reset()
        if error is None:
            return self._backoff.next() if lasted_s < BRIEF_S else 0.0
        if not isinstance(error, KubeError):
            asked_s = 0.0
        elif error.gone and self._clock() - self._listed_at >= RELIST_GAP_S:
            return 0.0
        else:
            asked_s = min(error.retry_after_s, LONGEST_WAIT_S) * (1 + 0.2 * self._rng.random())
        level = logging.WARNING if getattr(error, "transient", False) else logging.ERROR
        self._trouble.warn(f"following {self.name}: {error}; trying again", level)
        self.waiting = str(error)
        return max(self._backoff.next(), asked_s)

    # --- listing ----------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        """A whole listing into the sink."""
        self.waiting = self.waiting or "a new listing"
        objects: dict[str, KubeObject] = {}
        skipped: list[Skipped] = []
        # A listing that expires between two pages twice in a row is too slow for paging: all at once then.
        limit = self._page if self._expired < 2 else 0
        token = ""
        while True:
            try:
                raw = await self._page_of(limit, token)
            except KubeError as exc:
                if not self._is_absent(exc):
                    raise
                self._none()
                return
            page = decode_list(self.name, raw)
            objects.update((found.meta.key, found) for found in page.items)
            skipped += page.skipped
            token = page.continue_token
            if not token:
                break
        if not page.resource_version:
            raise ConfigError(
                f"list of {self.name}", "metadata.resourceVersion", "", "expected the list's version"
            )
        self._expired = self._missed = 0
        self.absent = False
        bad = {each.key: each.stand_in for each in skipped}
        self.malformed = {key: why for key, why in self.malformed.items() if key in bad}
        for each in skipped:
            self._report(each)
        self._version = page.resource_version
        self._listed_at = self._clock()
        bad.pop("", None)
        self._sink.listed(objects, bad)
        self._heard()

    def _is_absent(self, error: KubeError) -> bool:
        """Whether this answer to a listing means that there is no such kind."""
        if error.status != 404 or not RESOURCES[self.name].optional:
            return False
        self._missed += 1
        followed = self._listed_at > float("-inf") and not self.absent
        return not followed or self._missed >= STUCK

    def _none(self) -> None:
        """The kind does not exist, so there are no objects of it."""
        if not self.absent:
            log.info("following %s: the API does not have it, so there are none", self.name)
        self.absent = self.connected = True
        self.malformed = {}
        self._sink.listed({}, {})
        self._heard()

    async def _page_of(self, limit: int, token: str) -> bytes:
        try:
            return await self._client.list_page(self._selection, limit, token)
        except KubeError as exc:
            if exc.gone and token:
                self._expired += 1
            raise

    # --- watching ---------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """One watch from its opening to its end."""
        timeout_s = self._rng.randint(*WATCH_S)
        try:
            async with self._client.watch(
                self._selection, self._version, timeout_s=timeout_s, silence_s=self._silence_s
            ) as lines:
                self.connected = True
                self._heard()
                count = 0
                async for line in lines:
                    self._take(line)
                    count += 1
                    if count % BURST == 0:
                        await asyncio.sleep(0)
                    if not self._version:
                        return
        except ConfigError:
            self._version = ""  # what this line wanted to say is lost
            raise
        except KubeError as exc:
            self._judge(exc)
            raise
        self._refused = 0

    def _judge(self, error: KubeError) -> None:
        """Whether a watch that ended this way can go on from its version."""
        if error.status not in {0, 429, 503}:
            self._refused += 1
        # A time-out of the API itself: a version from the future, as after etcd was restored.
        future = error.status == 504 and error.reason == "Timeout"
        if error.gone or error.status == 400 or future or self._refused >= STUCK:
            self._version = ""
            self._refused = 0

    def _take(self, line: bytes) -> None:
        """One line of a watch. Raises ConfigError, KubeError."""
        event = decode_event(self.name, line)
        if event.status is not None:
            status = event.status
            raise KubeError(
                f"the watch ended: {status.code} {status.reason}: {status.message[:300]}",
                status=status.code or 500,
                reason=status.reason,
                retry_after_s=status.retry_after_s,
            )
        if event.skipped is not None:
            self._report(event.skipped)
            if event.key:
                self._sink.unreadable(event.key, event.skipped.stand_in)
        elif event.key:
            self.events += 1
            self.malformed.pop(event.key, None)
            self._sink.changed(event.key, event.object)
        if event.resource_version:
            self._advance(event.resource_version)

    def _advance(self, version: str) -> None:
        """Versions only grow; where one does not, the API's store was replaced by an older one."""
        held = self._version
        if version.isdecimal() and held.isdecimal() and int(version) < int(held):
            log.warning("following %s: version %s after %s; listing again", self.name, version, held)
            self._version = ""
        else:
            self._version = version

    def _report(self, skipped: Skipped) -> None:
        """Say once what makes no sense."""
        text = str(skipped.error)
        if self.malformed.get(skipped.key) != text:
            self.malformed[skipped.key] = text
            log.warning("ignored: %s", text)

    def _heard(self) -> None:
        self.waiting = ""
        self._trouble.over(f"following {self.name}: the Kubernetes API answers again")
