from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Env, node
from tests.proxy.conftest import spaces, traffic

__all__ = ["spaces", "traffic"]


@pytest.fixture
def netns_factory() -> Iterator[Callable[[], str]]:
    """Makes fresh named namespaces; all are removed at the end."""
    with fresh_spaces() as make:
        yield make


@pytest.fixture
def netns(netns_factory: Callable[[], str]) -> str:
    """The name of one fresh namespace."""
    return netns_factory()


@pytest.fixture
def env(netns_factory: Callable[[], str]) -> Iterator[Env]:
    """A node for pods; the test's thread is in its namespace."""
    with node(netns_factory) as made:
        yield made
