"""One set of namespaces and one process with clients and servers for the tests with a real agent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxy.agent import Agent, agent
from tests.proxy.topology import Topology, topology
from tests.proxy.traffic import Traffic, serving_all


@pytest.fixture(scope="module")
def spaces() -> Iterator[Topology]:
    """The namespaces."""
    with topology() as made:
        yield made


@pytest.fixture(scope="module")
def traffic(spaces: Topology) -> Iterator[Traffic]:
    """Clients and servers."""
    with serving_all(spaces.listeners()) as made:
        yield made


@pytest.fixture
def node(spaces: Topology, tmp_path: Path) -> Iterator[Agent]:
    """An agent that is not started yet."""
    with agent(spaces, tmp_path) as made:
        yield made
