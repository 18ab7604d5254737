"""A hash set that the kernel makes larger while it is read: one element comes twice, another not at all."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pytest

from pycni.errors import KernelError
from pycni.kernel import nft_table
from pycni.kernel.nft_table import NftTable
from pycni.wire.netlink import Message, attr, nested
from pycni.wire.nftset import IPV4, Count, SetSpec, Value
from pycni.wire.nfttable import Schema

SPEC = SetSpec("s", (IPV4,))
SCHEMA = Schema("t", "1", "table", "chains", {"s": SPEC}, (), (), {}, lambda _words: b"")
WHOLE: tuple[Sequence[bytes], ...] = ((b"aaaa", b"bbbb"), (b"cccc",))
TORN: tuple[Sequence[bytes], ...] = ((b"aaaa", b"bbbb"), (b"aaaa",))


def element(key: bytes) -> bytes:
    counter = nested(
        7, attr(1, b"counter\0"), nested(2, attr(1, bytes(7) + b"\5"), attr(2, bytes(7) + b"\3"))
    )
    return nested(1, nested(1, attr(1, key)), counter)


class Scripted:
    """A socket that answers dumps in turn, the last one for ever."""

    def __init__(self, *answers: tuple[Sequence[bytes], ...]) -> None:
        self._answers = list(answers)
        self.asked = 0

    def dump(self, _msg: bytes, _operation: str, _obj: str) -> list[Message]:
        self.asked += 1
        parts = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [Message(0, 0, 0, bytes(4) + nested(3, *map(element, part))) for part in parts]


def table(monkeypatch: pytest.MonkeyPatch, sock: Scripted) -> NftTable:
    monkeypatch.setattr(nft_table, "NftSocket", lambda _family: sock)
    return NftTable(SCHEMA)


def test_a_torn_dump_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = Scripted(TORN, TORN, WHOLE)
    rows: dict[bytes, Value] = {b"aaaa": None, b"bbbb": None, b"cccc": None}
    assert table(monkeypatch, sock).elements(SPEC) == rows
    assert sock.asked == 3


def test_torn_counters_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sock = Scripted(TORN, WHOLE)
    assert table(monkeypatch, sock).counts(SPEC) == dict.fromkeys((b"aaaa", b"bbbb", b"cccc"), Count(3, 5))
    assert sock.asked == 2


def test_a_set_that_never_comes_whole_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelError, match="keep coming twice") as caught:
        table(monkeypatch, Scripted(TORN)).elements(SPEC)
    assert caught.value.errno == errno.EINTR
