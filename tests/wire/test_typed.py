"""JSON as values of a type: by many threads at once, types with parts in common, each for the first time."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest

from pycni.wire.typed import decode

RACE = """
import sys, threading
import msgspec
from pycni.wire.typed import decode
sys.setswitchinterval(1e-6)
for turn in range(40):
    part = msgspec.defstruct("Part", [(f"f{n}", "int | str | None", None) for n in range(30)])
    kinds = [msgspec.defstruct(f"Kind{n}", [("one", part), ("many", list[part])]) for n in range(4)]
    barrier = threading.Barrier(8)
    def work(number):
        barrier.wait()
        assert decode(b'{"one": {"f1": 3}, "many": []}', kinds[number % 4]).one.f1 == 3
    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print("sound")
"""


def test_threads_may_meet_at_a_type() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RACE], capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "sound\n"), done.stderr


def test_what_is_no_such_value_is_refused_with_its_field() -> None:
    class Pair(msgspec.Struct):
        one: int

    assert decode('{"one": 1}', Pair) == Pair(1)
    with pytest.raises(msgspec.ValidationError, match=r"\$\.one"):
        decode(b'{"one": "x"}', Pair)
    with pytest.raises(msgspec.DecodeError):
        decode(b"{", Pair)
