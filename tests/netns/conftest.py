from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from pycni.kernel import netns as namespaces

_NUMBERS = itertools.count()


@pytest.fixture
def netns_factory() -> Iterator[Callable[[], str]]:
    """Makes fresh named namespaces; all are removed at the end."""
    made: list[str] = []

    def make() -> str:
        name = f"pyt{os.getpid()}-{next(_NUMBERS)}"
        namespaces.create(name)
        made.append(name)
        return name

    yield make
    for name in made:
        namespaces.delete(name)


@pytest.fixture
def netns(netns_factory: Callable[[], str]) -> str:
    """The name of one fresh namespace."""
    return netns_factory()
