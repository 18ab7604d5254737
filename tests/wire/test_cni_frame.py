"""The frames between shim and agent survive any cutting, and what is no frame is refused at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import CniError
from pycni.wire.cniframe import (
    MAX_ENVIRONMENT,
    MAX_STDIN,
    RequestReader,
    decode_reply,
    encode_reply,
    encode_request,
)


def test_the_bytes_of_a_request() -> None:
    frame = encode_request({"CNI_COMMAND": "ADD", "PATH": "/bin", "CNI_ARGS": "a=b;c=d"}, b'{"x":1}')
    assert frame == b'pycni1 33 7\nCNI_COMMAND=ADD\0CNI_ARGS=a=b;c=d\0{"x":1}'


def test_the_bytes_of_a_reply() -> None:
    assert encode_reply(1, b"no") == b"pycni1 1 2\nno"


VARIABLES = st.dictionaries(
    st.text(st.characters(codec="ascii", exclude_characters="\0="), max_size=5).map("CNI_".__add__),
    st.binary(max_size=30).map(lambda data: data.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(environment=VARIABLES, stdin=st.binary(max_size=200), sizes=st.lists(st.integers(1, 40), max_size=50))
def test_a_request_arrives_whole_however_it_is_cut(
    environment: dict[str, str], stdin: bytes, sizes: list[int]
) -> None:
    frame, reader, done = encode_request(environment, stdin), RequestReader(), False
    for size in [*sizes, len(frame)]:
        piece, frame = frame[:size], frame[size:]
        if piece:
            assert not done
            done = reader.feed(piece)
    assert done
    assert reader.result() == (environment, stdin)


@settings(max_examples=100, deadline=None)
@given(code=st.integers(0, 255), output=st.binary(max_size=100))
def test_a_reply_is_read_back_and_never_half(code: int, output: bytes) -> None:
    frame = encode_reply(code, output)
    assert decode_reply(frame) == (code, output)
    for end in range(len(frame)):
        with pytest.raises(CniError):
            decode_reply(frame[:end])


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\0",
        b"pycni2 1 1\n",
        b"pycni1 1\n",
        b"pycni1 a 1\n",
        b"pycni1 -1 1\n",
        b"pycni1 1 1 1\n",
        b"pycni1 " + b"1" * 64,
        b"pycni1 0 0\nx",
        b"pycni1 \xd9\xa1 1\n",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(CniError) as caught:
        RequestReader().feed(data)
    assert caught.value.code == 5


@pytest.mark.parametrize("sizes", [(MAX_ENVIRONMENT + 1, 0), (0, MAX_STDIN + 1)])
def test_what_is_too_large_is_refused_before_it_is_read(sizes: tuple[int, int]) -> None:
    with pytest.raises(CniError, match="limit") as caught:
        RequestReader().feed(b"pycni1 %d %d\n" % sizes)
    assert caught.value.code == 5


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=100))
def test_any_bytes_are_waited_for_or_refused(data: bytes) -> None:
    reader = RequestReader()
    try:
        done = reader.feed(data)
    except CniError as err:
        code = err.code
    else:
        code = 5
        assert not done or reader.remaining == 0
    assert code == 5
