"""Services mean the same on every data plane, seen by real clients (tables in ``semantics``)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pycni_proxy import planes
from tests.proxy.judge import run
from tests.proxy.rig import Rig, rig
from tests.proxy.semantics import rows

NATIVE = {"nftables": ("nftables",), "ebpf": ("ebpf", "nftables")}


@pytest.fixture(scope="module", params=NATIVE)
def node(request) -> Iterator[Rig]:
    names = NATIVE[request.param]
    with rig(lambda facts: planes.make(names, facts)) as made:
        lacking = {
            name: reason for name in names if (reason := made.inside(lambda name=name: planes.missing(name)))
        }
        if lacking:
            pytest.fail(f"data planes that cannot run here: {lacking}", pytrace=False)
        yield made


@pytest.mark.parametrize("case", rows(), ids=lambda case: case.name)
def test_semantics(node, case):
    disagreements = run(node, case)
    assert not disagreements, f"{node.planes}:\n" + "\n".join(disagreements)
