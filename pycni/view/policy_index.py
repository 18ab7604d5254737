"""Selectors found by labels, and labels by selectors, without trying everything on everything. Pure.

A selector with matchLabels can only select what has all of these labels, so it is filed under one of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Generic, TypeVar

from pycni.model.policy import Selector

_T = TypeVar("_T", bound=Hashable)


class Wanting(Generic[_T]):
    """Things that have a selector."""

    def __init__(self) -> None:
        self._by_label: dict[tuple[str, str], dict[_T, None]] = {}
        self._rest: dict[_T, None] = {}

    def add(self, item: _T, selector: Selector) -> None:
        """File it."""
        if selector.labels:
            self._by_label.setdefault(selector.labels[-1], {})[item] = None
        else:
            self._rest[item] = None

    def remove(self, item: _T, selector: Selector) -> None:
        """Take it away; the selector is that it was filed with."""
        if not selector.labels:
            del self._rest[item]
            return
        label = selector.labels[-1]
        filed = self._by_label[label]
        del filed[item]
        if not filed:
            del self._by_label[label]

    def candidates(self, labels: Mapping[str, str]) -> Iterator[_T]:
        """All that may select something with these labels, and some that do not."""
        yield from self._rest
        for label in labels.items():
            yield from self._by_label.get(label, ())

    def __iter__(self) -> Iterator[_T]:
        yield from self._rest
        for filed in self._by_label.values():
            yield from filed


class Having(Generic[_T]):
    """Things that have labels."""

    def __init__(self) -> None:
        self._by_label: dict[tuple[str, str], dict[_T, None]] = {}
        self._all: dict[_T, None] = {}

    def add(self, item: _T, labels: Mapping[str, str]) -> None:
        """File it."""
        self._all[item] = None
        for label in labels.items():
            self._by_label.setdefault(label, {})[item] = None

    def remove(self, item: _T, labels: Mapping[str, str]) -> None:
        """Take it away; the labels are those it was filed with."""
        del self._all[item]
        for label in labels.items():
            filed = self._by_label[label]
            del filed[item]
            if not filed:
                del self._by_label[label]

    def candidates(self, selector: Selector) -> Iterator[_T]:
        """All that a selector may select, and some that it does not."""
        filed: list[dict[_T, None]] = [self._by_label.get(label, {}) for label in selector.labels]
        fewest = min(filed, key=len) if filed else self._all
        return iter(fewest)
