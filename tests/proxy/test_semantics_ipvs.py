"""Services mean the same on IPVS: the semantics suite in a User-Mode Linux guest, whose kernel has it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.proxy.semantics import rows
from tests.proxy.stories import KEEPS_LONGER, STORIES
from tests.proxy.uml_boot import boot

NAMES = [*(case.name for case in rows()), *(name for name in STORIES if name not in KEEPS_LONGER)]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    # Not below /tmp: the guest has a /tmp of its own.
    folder = Path(tempfile.mkdtemp(prefix="pyt-uml-", dir="/var/tmp"))
    try:
        return boot(folder, "tests.proxy.uml_semantics", timeout=240)
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def suite(answers) -> dict[str, Any]:
    found = answers["suite"]
    assert "failed" not in found, found["failed"]
    return found


def test_a_hundred_replacements_fail_no_request(answers):
    found = answers["hammer"]
    assert "failed" not in found, found["failed"]
    print(f"{found['planes']}: {found['asked']} requests, {len(found['failures'])} failed")
    assert found["planes"] == "ipvs"
    assert not found["failures"], "\n".join(found["failures"][:10])
    assert found["asked"] > 300


def test_ipvs_serves_alone(suite):
    assert suite["planes"] == "ipvs"
    assert set(suite["served"]) == {"ipvs"}, suite["served"]
    assert set(suite["cases"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_semantics_on_ipvs(suite, name):
    disagreements = suite["cases"][name]
    assert not disagreements, f"{suite['planes']}:\n" + "\n".join(disagreements)
