"""A watched folder of Kubernetes manifests as a source: for the lab and for use without Kubernetes.

Life: ``run`` waits for the folder, looks at it (``manifest_folder``) and puts every kind into the store as a full
listing: what is in no file any more is gone. inotify wakes it; a look every second, and every 50 ms where inotify is
not told of changes, finds the rest. When the folder vanishes, what was in it stays until it is back: an unmounted
folder is not a deleted cluster.

Who writes several files as one change says so by a number in the hidden file ``.generation``, put into place last: the
store gets it, as the only object of kind ``Generation``, at the same moment as all that was written before it.

With ``derive_slices`` Services with a selector and without any EndpointSlice in the folder get slices from the folder's
Pods, as Kubernetes' controller would make them (``view/slices``).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NoReturn

import msgspec

from pycni.model.kube import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE, EndpointSlice, Service
from pycni.sources import inotify
from pycni.sources.manifest_folder import NUMBER_FILE, SETTLE_S, Listing, ManifestFolder, Objects
from pycni.store import Store
from pycni.view import slices
from pycni.wire.kube import API_VERSIONS, KubeObject

log = logging.getLogger("pycni.manifests")

KINDS = (
    *(NAMESPACE, NODE),
    *(kind for kind in API_VERSIONS if kind not in {NAMESPACE, NODE, POD, ENDPOINT_SLICE, SERVICE}),
    *(POD, ENDPOINT_SLICE, SERVICE),
)
"""In the order they are put: policies before the pods they are about, what a Service refers to before it."""
GENERATION, MANIFESTS = "Generation", "manifests"
"""Store kind and key of the folder's number."""
LOOK_S = 1.0
"""Between looks where inotify tells of changes."""
BLIND_LOOK_S = 0.05
"""Between looks where it does not."""
WRITING_S = 5.0
"""How long a file somebody keeps writing to is left alone."""


class ManifestSource:
    """One folder. ``run`` is its only coroutine; one event loop."""

    def __init__(
        self, folder: Path | str, kinds: Iterable[str] = KINDS, *, derive_slices: bool = False
    ) -> None:
        """``kinds``: the store kinds that are this folder's alone; others in it are left out."""
        self.folder = Path(folder)
        self.kinds = tuple(kind for kind in KINDS if kind in set(kinds))
        self.derive_slices = derive_slices
        self._reader = ManifestFolder(self.folder)
        self._writing: dict[str, float] = {}
        """Files being written: name -> until when (monotonic) they are left alone."""
        self._finished: set[str] = set()
        self._derived: dict[str, tuple[EndpointSlice, ...]] = {}
        """Service key -> the slices of the last look, with the times they last changed."""
        self._broken: Mapping[str, str] = {}
        self._missing = ""
        self._wake = asyncio.Event()
        self._gone = False
        self._listed = False

    def malformed(self) -> dict[str, str]:
        """What makes no sense: ``file name`` -> why."""
        return {f"file {name}": why for name, why in self._broken.items()}

    async def run(self, store: Store) -> NoReturn:
        """Follow the folder for ever. Trouble with it is logged and waited out."""
        while True:
            try:
                watch = inotify.Watch(str(self.folder))
            except OSError:
                # The folder is not there, which a look will say, or the system's watches are used up.
                await self._look(store)
                await asyncio.sleep(BLIND_LOOK_S)
                continue
            with contextlib.closing(watch):
                await self._follow(store, watch)

    async def _follow(self, store: Store, watch: inotify.Watch) -> None:
        """Look after every wake-up; returns when the folder is another one."""
        told = await asyncio.to_thread(inotify.reports, str(self.folder))
        loop = asyncio.get_running_loop()
        self._wake.clear()
        self._gone = False
        loop.add_reader(watch.fd, lambda: self._note(watch.read()))
        try:
            while not self._gone:
                pending = await self._look(store)
                pause = SETTLE_S if pending else LOOK_S if told else BLIND_LOOK_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
                self._wake.clear()
        finally:
            loop.remove_reader(watch.fd)

    def _note(self, notes: Iterable[inotify.Note]) -> None:
        """Remember who writes what, and wake up for what is worth a look."""
        for mask, name in notes:
            if mask & inotify.MODIFY:
                self._writing.setdefault(name, time.monotonic() + WRITING_S)
                self._finished.discard(name)
                continue
            if mask & (inotify.CLOSE_WRITE | inotify.MOVED_TO):
                self._writing.pop(name, None)
                self._finished.add(name)
            self._gone |= bool(mask & inotify.GONE)
            self._wake.set()

    async def _look(self, store: Store) -> bool:
        """Read what changed and hand it over; whether a file is not finished yet."""
        now = time.monotonic()
        self._writing = {name: until for name, until in self._writing.items() if until > now}
        finished, self._finished = self._finished, set()
        try:
            number, listing = await asyncio.to_thread(self._read, finished, set(self._writing))
        except OSError as exc:
            self._say_missing(exc.strerror or str(exc))
            return False
        if self._missing:
            log.info("manifests: %s is there now", self.folder)
            self._missing = ""
        self._broken = listing.broken
        for line in listing.news:
            log.warning("manifests in %s: %s", self.folder, line)
        if listing.pending and not self._listed:
            return True  # a first listing must be whole: what it lacks would be removed from the kernel
        self._listed = True
        objects = self._with_slices(listing.objects) if self.derive_slices else listing.objects
        for kind in self.kinds:
            store.replace(kind, objects.get(kind, {}))
        if number and not listing.pending:
            store.put(GENERATION, MANIFESTS, number)
        return listing.pending

    def _read(self, finished: set[str], writing: set[str]) -> tuple[int, Listing]:
        """What ``.generation`` says (0 without), then the listing, which is at least as new. Raises OSError."""
        try:
            text = (self.folder / NUMBER_FILE).read_text(errors="replace").strip()
        except FileNotFoundError:
            text = ""
        return int(text) if text.isdecimal() else 0, self._reader.look(finished, writing)

    def _say_missing(self, reason: str) -> None:
        if reason != self._missing:
            kept = "; what was in it stays" if self._reader.known else ""
            log.warning("manifests: waiting for %s: %s%s", self.folder, reason, kept)
            self._missing = reason

    def _with_slices(self, objects: Objects) -> Objects:
        given = objects.get(ENDPOINT_SLICE, {})
        derived = derive_missing(objects)
        now = time.time()
        kept = {
            key: _dated(items, self._derived.get(key, ()), now) for key, items in derived.items() if items
        }
        self._derived = kept
        return {
            **objects,
            ENDPOINT_SLICE: {**{item.meta.key: item for items in kept.values() for item in items}, **given},
        }


def derive_missing(
    objects: Mapping[str, Mapping[str, KubeObject]],
) -> dict[str, tuple[EndpointSlice, ...]]:
    """Slices by the key of their Service, for Services with a selector of which there are none. Pure."""
    owners = {item.service for item in objects.get(ENDPOINT_SLICE, {}).values()}  # type: ignore[union-attr]
    pods = list(objects.get(POD, {}).values())
    nodes = objects.get(NODE, {})
    return {
        key: slices.derive(service, pods, nodes)  # type: ignore[arg-type]
        for key, service in objects.get(SERVICE, {}).items()
        if isinstance(service, Service) and service.selector and key not in owners
    }


def _dated(
    items: tuple[EndpointSlice, ...], before: tuple[EndpointSlice, ...], now: float
) -> tuple[EndpointSlice, ...]:
    """The slices with the time of their last change: what is as before keeps its time."""
    held = {item.meta.key: item for item in before}
    return tuple(
        held[item.meta.key]
        if item.meta.key in held and msgspec.structs.replace(held[item.meta.key], changed=0.0) == item
        else msgspec.structs.replace(item, changed=now)
        for item in items
    )
