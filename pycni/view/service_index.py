"""Which EndpointSlices belong to which Service, kept up to date at the cost of what changed. Pure.

Life: made empty by the engine; ``update`` takes a snapshot with the keys a ``Tracker`` collected and tells which
services have to be resolved anew; ``slices_of`` then gives a service's slices as of that snapshot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pycni.model.kube import ENDPOINT_SLICE, SERVICE, EndpointSlice


class Objects(Protocol):
    """The part of ``store.Snapshot`` that is needed here."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by key."""


class ServiceIndex:
    """EndpointSlices by service key (``namespace/name``). One thread at a time."""

    def __init__(self) -> None:
        self._service: dict[str, str] = {}
        """Slice key -> key of its service; slices without one are left out."""
        self._slices: dict[str, tuple[EndpointSlice, ...]] = {}
        """Service key -> its slices, sorted by their keys."""

    def update(self, snapshot: Objects, changed: Mapping[str, set[str]] | None) -> set[str]:
        """Take in a snapshot. ``changed``: keys by kind that differ from the last one taken in; None: any may.

        Returns the keys of services that changed themselves or in their slices; with None all there are or were. A
        key may be of a service that does not exist (any more).
        """
        services: Mapping[str, object] = snapshot.of(SERVICE)
        slices: Mapping[str, EndpointSlice] = snapshot.of(ENDPOINT_SLICE)
        if changed is None:
            touched = {*services, *self._slices}
            self._service.clear()
            self._slices.clear()
            self._place(slices, slices)
            touched.update(self._slices)
            return touched
        touched = set(changed.get(SERVICE, ()))
        keys = changed.get(ENDPOINT_SLICE, ())
        gone: dict[str, set[str]] = {}
        for key in keys:
            owner = self._service.pop(key, "")
            if owner:
                gone.setdefault(owner, set()).add(key)
        for owner, members in gone.items():
            rest = tuple(item for item in self._slices[owner] if item.meta.key not in members)
            if rest:
                self._slices[owner] = rest
            else:
                del self._slices[owner]
        touched.update(gone)
        touched |= self._place(slices, keys)
        return touched

    def slices_of(self, service_key: str) -> tuple[EndpointSlice, ...]:
        """A service's slices, sorted by key; empty without any."""
        return self._slices.get(service_key, ())

    def _place(self, slices: Mapping[str, EndpointSlice], keys: Iterable[str]) -> set[str]:
        """Enter slices that are not in the index. Returns their services."""
        touched: set[str] = set()
        several: dict[str, list[EndpointSlice]] = {}
        for key in keys:
            piece = slices.get(key)
            if piece is None or not piece.service:
                continue
            owner = self._service[key] = piece.service
            touched.add(owner)
            if owner in self._slices:
                several.setdefault(owner, []).append(piece)
            else:
                self._slices[owner] = (piece,)
        for owner, pieces in several.items():
            merged = [*self._slices[owner], *pieces]
            merged.sort(key=lambda item: item.meta.key)
            self._slices[owner] = tuple(merged)
        return touched
