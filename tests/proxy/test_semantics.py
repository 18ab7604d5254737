"""Services mean the same on every data plane, seen by real clients (tables in ``semantics``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.proxy.dataplanes import plain, sockets
from tests.proxy.judge import run
from tests.proxy.rig import Rig
from tests.proxy.semantics import rows
from tests.proxy.stories import STORIES

NATIVE = {"nftables": lambda: plain("nftables"), "ebpf": sockets}


@pytest.fixture(scope="module", params=NATIVE)
def node(request) -> Iterator[Rig]:
    with NATIVE[request.param]() as made:
        yield made


@pytest.mark.parametrize("case", rows(), ids=lambda case: case.name)
def test_semantics(node, case):
    disagreements = run(node, case)
    assert not disagreements, f"{node.planes}:\n" + "\n".join(disagreements)


@pytest.mark.parametrize("name", STORIES)
def test_over_time(node, name):
    disagreements = STORIES[name](node)
    assert not disagreements, f"{node.planes}:\n" + "\n".join(disagreements)


def test_every_frontend_was_served_and_by_whom(node):
    """Runs last. What a data plane refuses goes to the next one, which the assertion names."""
    shares = ", ".join(f"{count} by {name or 'nobody'}" for name, count in sorted(node.served.items()))
    print(f"frontends served: {shares}")
    assert set(node.served) == set(node.planes.split("+")), shares
