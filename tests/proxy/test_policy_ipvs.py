"""Policies judge what IPVS handles: real connections through its addresses, in a User-Mode Linux guest."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.uml_boot import boot
from tests.proxy.uml_policy import WORLDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
OPEN = {"nobody isolated, local", "nobody isolated, remote", "a server that may only answer"}


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    # Not below /tmp: the guest has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="pyt-uml-", dir="/var/tmp"))
    try:
        found: dict[str, Any] = boot(folder, "tests.proxy.uml_policy", timeout=170)
    finally:
        shutil.rmtree(folder)
    return found


@pytest.fixture(scope="module")
def judged(answers: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = answers["judged"]
    assert "failed" not in found, found["failed"]
    return found


def test_a_kernel_that_cannot_hold_the_tables_is_told_of_in_words(answers: dict[str, Any]) -> None:
    assert "no bridge family in this kernel's nf_tables (CONFIG_NF_TABLES_BRIDGE)" in answers["guard lacks"]
    assert answers["table lacks"]


@pytest.mark.parametrize("world", WORLDS)
def test_what_ipvs_translates_is_judged_by_both_ends(judged: dict[str, Any], world: str) -> None:
    """Through ClusterIP and node port, both families, TCP and UDP, from pods, other nodes' pods, the node, outside."""
    found = judged[world]
    assert judged["planes"] == "ipvs"
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["allowed"] >= 4
    assert (found["denied"] > 0) == (world not in OPEN)
