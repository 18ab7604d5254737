from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cni.node import AgentNode, agent_node
from tests.cni.remains import OPTIONS


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder with a short path: socket paths and mounts live below it."""
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def node() -> Iterator[AgentNode]:
    """A dual-stack node with its agent, one for a module's tests."""
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    try:
        with agent_node(f"pyt{os.getpid()}n", folder, None, "--ip-masq") as made:
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def quick() -> Iterator[AgentNode]:
    """A dual-stack node whose agent's collector is in a hurry (``quick_agent``)."""
    folder = Path(tempfile.mkdtemp(prefix="pyt"))
    (folder / "results").mkdir()
    patch = pytest.MonkeyPatch()
    patch.setattr(AgentNode, "program", "tests.cni.quick_agent")
    patch.setenv("PYT_CACHE_DIR", str(folder / "results"))
    try:
        with agent_node(f"pyt{os.getpid()}k", folder, None, *OPTIONS) as made:
            yield made
    finally:
        patch.undo()
        shutil.rmtree(folder, ignore_errors=True)
