"""Rules every test lives by: no silent skips for missing root, and nothing of ours is left on the machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

PRIVILEGED = ("tests/netns/", "tests/lab/", "tests/cni/", "tests/proxy/", "bench/")


# How long an example takes is the machine's business.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


def pytest_configure() -> None:
    # A shell's background job ignores SIGINT, and what it starts inherits that: programs under test would not end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(PRIVILEGED):
            item.add_marker(pytest.mark.root)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    # Streams tell each other in UTF-8, and some tests log bytes that are none.
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.fail("needs root: run it by `make test`", pytrace=False)


def _namespaces() -> set[str]:
    folder = Path("/run/netns")
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


@pytest.fixture(scope="session", autouse=True)
def _nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the session when a namespace that was not there before is there after it; ``tools/test.sh`` is told, too."""
    before = _namespaces()
    yield
    # Test names carry the process id, so that another session on the machine is not blamed on this one.
    ours = tuple(f"{start}{os.getpid()}" for start in ("pyt", "pyb", "pycni-pyt"))
    if "PYTEST_XDIST_WORKER" not in os.environ:
        ours += ("cni-", "netns-")  # containerd's and podman's
    left = sorted(name for name in _namespaces() - before if name.startswith(ours))
    if left:
        if request.config.cache is not None:
            request.config.cache.set("pycni/left", left)
        pytest.fail(f"namespaces left behind by tests: {', '.join(left)}", pytrace=False)
