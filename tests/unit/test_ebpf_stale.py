"""Ending UDP sockets to endpoints that are gone: whose, and what happens where the kernel does not let us."""

from __future__ import annotations

import errno
import logging
from typing import Self

import pytest

from pycni.errors import KernelError
from pycni.kernel import sockdiag
from pycni.kernel.sockdiag import Open
from pycni.model.family import Family
from pycni.model.kube import UDP
from pycni.model.service import Target
from pycni_proxy.ebpf import layout, stale

GONE = layout.pack_target(Target(bytes((10, 244, 1, 1)), 53, local=False))


class Diagnosis:
    """Stands in for a netlink socket."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *about: object) -> None:
        """Nothing to close."""


def opened(address: tuple[int, ...], port: int, cookie: int) -> Open:
    return Open(Family.V4, UDP, bytes(address), port, cookie, b"")


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []
    monkeypatch.setattr(stale, "_diagnosis", lambda path: Diagnosis())
    monkeypatch.setattr(sockdiag, "destroy", lambda sock, item: not found.append(item.cookie))
    return found


def test_only_sockets_to_what_is_gone_and_led_there_are_ended(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    socks = [
        opened((10, 244, 1, 1), 53, 1),
        opened((10, 244, 1, 1), 54, 2),
        opened((10, 244, 1, 2), 53, 3),
        opened((10, 244, 1, 1), 53, 4),
    ]
    monkeypatch.setattr(sockdiag, "connected", lambda sock, protocol: socks)
    assert stale.end_sockets([], {GONE}, lambda cookie, target: cookie == 4) == 1
    assert ended == [1]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOENT], ids=["no destroy", "no diagnosis"])
def test_a_kernel_that_cannot_is_named_and_nothing_fails(
    ended: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    def refuse(sock: object, protocol: int) -> list[Open]:
        raise KernelError(code, "list sockets")

    monkeypatch.setattr(sockdiag, "connected", refuse)
    with caplog.at_level(logging.INFO):
        assert stale.end_sockets(["/run/netns/pod"], {GONE}, lambda cookie, target: False) == 0
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO]
    assert "this node" in caplog.text
    assert "/run/netns/pod" in caplog.text


def test_a_pod_whose_namespace_is_gone_does_not_keep_the_others(
    ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diagnosis(path: str) -> Diagnosis:
        if path == "/gone":
            raise KernelError(errno.ENOENT, "open network namespace", path)
        return Diagnosis()

    monkeypatch.setattr(stale, "_diagnosis", diagnosis)
    monkeypatch.setattr(sockdiag, "connected", lambda sock, protocol: [opened((10, 244, 1, 1), 53, 7)])
    assert stale.end_sockets(["/gone", "/here"], {GONE}, lambda cookie, target: False) == 2
