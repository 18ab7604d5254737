r"""Frames between the CNI shim (``cni-bin/pycni``) and the node agent, as bytes without I/O.

Request, followed by an open network namespace as SCM_RIGHTS on its first byte when CNI_NETNS could be opened::

    pycni1 <length of environment> <length of stdin>\n
    CNI_COMMAND=ADD\0CNI_CONTAINERID=...\0   stdin, untouched

Reply, after which the agent closes the connection::

    pycni1 <exit code> <length of output>\n
    output, to be printed on stdout

Lengths are decimal. A reader feeds what arrives into a ``RequestReader``; what is not a frame, or larger than
``MAX_*``, is a ``CniError`` with code 5 (I/O failure), for the shim's caller to see. Variables are decoded with
``surrogateescape``, so that any byte a runtime may put into them reaches a delegate unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

from pycni.errors import CniError

MAGIC = b"pycni1"
MAX_HEADER = 64
MAX_ENVIRONMENT = 1 << 20
MAX_STDIN = 64 << 20


def encode_request(environment: Mapping[str, str], stdin: bytes) -> bytes:
    """A request frame; only CNI_* variables are carried."""
    block = "".join(f"{key}={value}\0" for key, value in environment.items() if key.startswith("CNI_"))
    packed = block.encode("utf-8", "surrogateescape")
    return b"%b %d %d\n" % (MAGIC, len(packed), len(stdin)) + packed + stdin


def encode_reply(exit_code: int, output: bytes) -> bytes:
    """A reply frame."""
    return b"%b %d %d\n" % (MAGIC, exit_code, len(output)) + output


def decode_reply(frame: bytes) -> tuple[int, bytes]:
    """Exit code and output of a whole reply; CniError 5 when it is cut off or none."""
    header, newline, output = frame.partition(b"\n")
    numbers = _numbers(header) if newline else None
    if numbers is None or numbers[1] != len(output):
        raise CniError(CniError.IO_FAILURE, f"reply={frame[:MAX_HEADER]!r}: not a whole reply frame")
    return numbers[0], output


class RequestReader:
    """Collects one request frame from pieces of any size.

    ``remaining`` is how many bytes are still to come, None until the header is whole.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._header = 0
        self._environment = 0
        self._total: int | None = None

    @property
    def remaining(self) -> int | None:
        """Bytes of the frame that have not arrived; None while the header is incomplete."""
        return None if self._total is None else max(0, self._total - len(self._buffer))

    def feed(self, data: bytes) -> bool:
        """Take what arrived; True once the frame is whole. CniError 5 when it is not a frame or too large."""
        self._buffer += data
        if self._total is None:
            end = self._buffer.find(b"\n", 0, MAX_HEADER)
            if end >= 0:
                self._open(bytes(self._buffer[:end]))
            elif len(self._buffer) >= MAX_HEADER or not MAGIC.startswith(self._buffer[: len(MAGIC)]):
                raise _not_a_frame(bytes(self._buffer))
        if self._total is None:
            return False
        if len(self._buffer) > self._total:
            raise CniError(
                CniError.IO_FAILURE, f"request frame: {len(self._buffer) - self._total} bytes too many"
            )
        return len(self._buffer) == self._total

    def result(self) -> tuple[dict[str, str], bytes]:
        """CNI_* variables and stdin of a whole frame."""
        assert self.remaining == 0, "the frame is not whole"
        start = self._header
        block = bytes(self._buffer[start : start + self._environment])
        environment = {}
        for item in block.decode("utf-8", "surrogateescape").split("\0"):
            key, equals, value = item.partition("=")
            if equals:
                environment[key] = value
        return environment, bytes(self._buffer[start + self._environment :])

    def _open(self, header: bytes) -> None:
        numbers = _numbers(header)
        if numbers is None:
            raise _not_a_frame(header)
        environment, stdin = numbers
        for name, size, limit in (("environment", environment, MAX_ENVIRONMENT), ("stdin", stdin, MAX_STDIN)):
            if size > limit:
                raise CniError(
                    CniError.IO_FAILURE, f"{name}: {size} bytes are more than the limit of {limit}"
                )
        self._header, self._environment = len(header) + 1, environment
        self._total = self._header + environment + stdin


def _numbers(header: bytes) -> tuple[int, int] | None:
    """The two numbers of a header line, None when it is not one."""
    words = header.split(b" ")
    if len(words) != 3 or words[0] != MAGIC or not (words[1].isdigit() and words[2].isdigit()):
        return None
    return int(words[1]), int(words[2])


def _not_a_frame(data: bytes) -> CniError:
    return CniError(CniError.IO_FAILURE, f"request={data[:MAX_HEADER]!r}: not a frame of the pycni shim")
