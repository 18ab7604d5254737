"""Labs for tests: one that is shared, and a maker of others. All of them are gone after the session, whatever fails."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from pycni.kernel import netns as kernel_netns
from pycni.lab import cleanup, netns
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec, node_name, node_namespace

from .small_fabric import fabric  # noqa: F401  # a fixture

LabMaker = Callable[..., Lab]
_numbers = itertools.count(1)


def unique_name() -> str:
    """A name no other lab has."""
    return f"pyt{os.getpid()}-{next(_numbers)}"


@pytest.fixture(scope="session")
def lab3() -> Iterator[Lab]:
    """Three nodes, vxlan, both families, six pods, everything ready. Tests leave it as they found it."""
    lab = Lab.up(LabSpec(name=unique_name(), nodes=3, family="dual", pods=2))
    yield lab
    lab.down()


@pytest.fixture
def make_lab() -> Iterator[LabMaker]:
    """Makes labs of ``LabSpec``'s fields that only live as long as the test."""
    made: list[Lab] = []
    names: list[str] = []

    def make(**fields: object) -> Lab:
        names.append(str(fields.setdefault("name", unique_name())))
        lab = Lab.up(LabSpec(**fields))  # type: ignore[arg-type]
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.down()
    for name in names:
        cleanup.down(name)


@pytest.fixture
def lab_name() -> Iterator[str]:
    """A name for a lab that a test brings up by other means."""
    name = unique_name()
    yield name
    cleanup.down(name)


@pytest.fixture
def wired() -> Iterator[LabSpec]:
    """Only the namespaces and the underlay of a three-node lab: no etcd, no agents."""
    spec = LabSpec(name=unique_name(), nodes=3, family="dual")
    try:
        netns.make_fabric(spec)
        for index in range(1, spec.nodes + 1):
            netns.make_node(spec, index)
        yield spec
    finally:
        cleanup.down(spec.name)


def node_path(spec: LabSpec, index: int) -> str:
    """Path of a node's namespace."""
    return kernel_netns.path(node_namespace(spec.name, node_name(index)))


@pytest.fixture(scope="session")
def uml_lab() -> Iterator[Lab]:
    """Two nodes of User-Mode Linux, vxlan, both families, four pods. Tests leave it as they found it."""
    lab = Lab.up(LabSpec(name=unique_name(), driver="uml", nodes=2, family="dual", pods=2))
    yield lab
    lab.down()
