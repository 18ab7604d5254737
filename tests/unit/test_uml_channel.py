"""What crosses the border to a guest arrives as it was sent."""

from __future__ import annotations

import json
import socket

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.errors import KernelError
from pycni.lab.checks import Check
from pycni.lab.probe import Doors
from pycni.lab.stations import Door, Host
from pycni.lab.topology import LabError
from pycni.lab.uml_calls import Call, Command, Ping, Probe, Request, Round, failure, raise_failure
from pycni.lab.uml_channel import OUTPUT, REQUEST, Channel, pack_status
from pycni.model.family import Family

FRAMES = st.lists(st.tuples(st.sampled_from([REQUEST, OUTPUT, b"x"]), st.binary(max_size=40)), max_size=8)
HOST = Host("pod1", "/run/netns/x", {Family.V4: "10.0.0.1", Family.V6: "fd00::1"}, 1450, "node1")


class _Pieces:
    """A socket that gives what was written in pieces of chosen sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.written = b""
        self._sizes = sizes

    def sendall(self, data: bytes) -> None:
        self.written += data

    def recv(self, _most: int) -> bytes:
        size = self._sizes.pop(0) if self._sizes else len(self.written)
        piece, self.written = self.written[:size], self.written[size:]
        return piece


@given(FRAMES, st.lists(st.integers(1, 7), max_size=200))
def test_frames_survive_being_cut_anywhere(frames: list[tuple[bytes, bytes]], sizes: list[int]) -> None:
    sock = _Pieces(sizes)
    channel = Channel(sock)  # type: ignore[arg-type]
    for frame in frames:
        channel.send(*frame)
    assert [channel.receive() for _ in frames] == frames
    assert channel.receive() is None
    assert channel.queued() == []


def test_frames_that_came_along_are_not_forgotten() -> None:
    here, there = socket.socketpair()
    with here, there:
        Channel(here).send(REQUEST, b"1")
        Channel(here).send(OUTPUT, b"2")
        channel = Channel(there)
        assert channel.receive() == (REQUEST, b"1")
        assert channel.queued() == [(OUTPUT, b"2")]
        assert channel.queued() == []


@pytest.mark.parametrize(
    "request_",
    [
        Command(argv=["a"], environment={"A": "b"}, folder="/", netns="", window=(24, 80), client=7),
        Call(function="mtu_of", arguments=["", "eth0"]),
        Probe(hosts=(HOST,), timeout=2.0),
        Ping(namespace="/run/netns/x", address="10.0.0.1", interval=0.01),
    ],
    ids=lambda value: type(value).__name__,
)
def test_requests_arrive_whole(request_: Request) -> None:
    assert msgspec.json.decode(msgspec.json.encode(request_), type=Request) == request_


def test_checks_and_doors_arrive_whole() -> None:
    doors = Doors([("pod1", Family.V6, Door("fd00::1", 1430, 1, 2))], [("pod2", Family.V4, "gone")])
    round_ = Round(others=doors, checks=(Check("pod1", "pod2", Family.V4, "udp"),))
    assert msgspec.json.decode(msgspec.json.encode(round_), type=Round) == round_


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(KernelError(17, "create network namespace", "x", "why"), id="kernel"),
        pytest.param(OSError(111, "Connection refused"), id="os"),
        pytest.param(LabError("process 7 does not end"), id="lab"),
    ],
)
def test_errors_come_home_as_they_were(error: Exception) -> None:
    with pytest.raises(type(error)) as caught:
        raise_failure(msgspec.json.encode(failure(error)))
    assert str(caught.value) == str(error)
    assert getattr(caught.value, "errno", None) == getattr(error, "errno", None)


def test_an_unforeseen_error_is_named() -> None:
    with pytest.raises(LabError, match=r"^ZeroDivisionError: by nothing$"):
        raise_failure(msgspec.json.encode(failure(ZeroDivisionError("by nothing"))))
    assert json.loads(msgspec.json.encode(failure(OSError("no number"))))["errno"] == 0


def test_a_signals_number_is_negative() -> None:
    assert pack_status(-9) == b"\xff\xff\xff\xf7"
