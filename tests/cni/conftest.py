from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cni.node import AgentNode, agent_node


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
