"""Commands across the border to a guest's kernel: the frames, and the client that runs a command there.

Life of a command: the client connects to the guest's command server, sends one request, and from then on carries
bytes: its standard input in (a piece at a time, each asked for by a grant), the command's output and error out, signals
and window sizes in; at the end it ends the way the command ended. When the client dies, the server kills the command.

A frame is one byte of kind, four of length (big-endian), and the payload. Requests and values are JSON.

Run as a file, on the standard library alone, because every command of a lab starts it:
``uml_channel.py ADDRESS PORT NETNS -- CMD ...``, NETNS being a path in the guest or "-".
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
from collections import deque

REQUEST, VALUE, FAILURE = b"R", b"v", b"f"
"""What is wanted; an answer to it; why there is none."""
INPUT, GRANT, SIGNAL, WINDOW = b"i", b"g", b"s", b"w"
"""Bytes for standard input (none: its end); more may come; one byte, a signal's number; two words: rows, columns."""
OUTPUT, ERROR, EXIT = b"o", b"e", b"x"
"""Bytes of standard output and error; a signed word: exit code, or a signal's number negated."""

PIECE = 1 << 16
"""Bytes of output in a frame."""
INPUT_PIECE = 1 << 14
"""Bytes of input in a frame: so few that they are taken also while both ends are sending."""
CONNECT_S = 10.0
UNREACHABLE = 255
"""Exit code when the guest does not answer, as ssh(1) has it."""
_HEAD = struct.Struct("!cI")
_STATUS = struct.Struct("!i")
_SIZE = struct.Struct("!HH")
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

Frame = tuple[bytes, bytes]


class Channel:
    """Frames over a stream socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = bytearray()
        self._frames: deque[Frame] = deque()

    def fileno(self) -> int:
        """For select and poll; see ``feed``."""
        return self.sock.fileno()

    def send(self, kind: bytes, payload: bytes = b"") -> None:
        """Send a frame. Raises OSError."""
        self.sock.sendall(_HEAD.pack(kind, len(payload)) + payload)

    def feed(self) -> list[Frame] | None:
        """What one read brings: complete frames, maybe none; None at the end. Raises OSError."""
        data = self.sock.recv(1 << 18)
        if not data:
            return None
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= _HEAD.size:
            kind, length = _HEAD.unpack_from(self._buffer)
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[_HEAD.size : end])))
            del self._buffer[:end]
        return frames

    def receive(self) -> Frame | None:
        """The next frame; None at the end. Raises OSError."""
        while not self._frames:
            more = self.feed()
            if more is None:
                return None
            self._frames.extend(more)
        return self._frames.popleft()

    def queued(self) -> list[Frame]:
        """Frames that came along with one that was received; select does not tell of them."""
        frames = list(self._frames)
        self._frames.clear()
        return frames

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()


def watchful(sock: socket.socket) -> socket.socket:
    """The socket, made to notice a peer that is gone without a word, and to send small frames at once."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 10)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000)
    return sock


def pack_status(status: int) -> bytes:
    """Payload of EXIT."""
    return _STATUS.pack(status)


def unpack_size(payload: bytes) -> tuple[int, int]:
    """Rows and columns of a WINDOW frame."""
    rows, columns = _SIZE.unpack(payload)
    return rows, columns


class _Client:
    """One command, between our streams and the channel."""

    def __init__(self, channel: Channel, *, terminal: bool) -> None:
        self._channel = channel
        self._terminal = terminal
        self._granted = True
        self._wake, waker = os.pipe()
        for fd in (self._wake, waker):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (*_FORWARDED, *((signal.SIGWINCH,) if terminal else ())):
            signal.signal(number, _noted)

    def run(self, request: dict[str, object]) -> int:
        """Carry bytes until the command has ended; its exit status as in EXIT."""
        self._channel.send(REQUEST, json.dumps(request).encode())
        while True:
            reading: list[Channel | int] = [self._channel, self._wake, *((0,) if self._granted else ())]
            ready = select.select(reading, (), ())[0]
            if self._wake in ready:
                self._signals(os.read(self._wake, 64))
            if 0 in ready:
                self._granted = False
                self._channel.send(INPUT, _read(0))
            if self._channel in ready:
                frames = self._channel.feed()
                if frames is None:
                    raise ConnectionError("the connection ended before the command did")
                for kind, payload in frames:
                    if kind == EXIT:
                        return int(_STATUS.unpack(payload)[0])
                    self._take(kind, payload)

    def _take(self, kind: bytes, payload: bytes) -> None:
        if kind == OUTPUT:
            _write(1, payload)
        elif kind == ERROR:
            _write(2, payload)
        elif kind == GRANT:
            self._granted = True
        elif kind == FAILURE:
            raise ConnectionError(json.loads(payload)["text"])

    def _signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGWINCH:
                self._channel.send(WINDOW, _SIZE.pack(*window()))
            else:
                self._channel.send(SIGNAL, bytes([number]))


def window() -> tuple[int, int]:
    """Rows and columns of the terminal."""
    size = os.get_terminal_size(1)
    return size.lines, size.columns


def _noted(_number: int, _frame: object) -> None:
    """The wake-up descriptor tells; this only keeps the signal from ending us."""


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, INPUT_PIECE)
    except OSError:  # a terminal that went away
        return b""


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def main(argv: list[str]) -> int:
    """Run a command in a guest; see the module's text."""
    address, port, netns, _dashes, *words = argv
    terminal = os.isatty(0) and os.isatty(1)
    request: dict[str, object] = {
        "op": "exec",
        "argv": words,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "netns": "" if netns == "-" else netns,
        "window": window() if terminal else None,
        "client": os.getpid(),
    }
    try:
        with watchful(socket.create_connection((address, int(port)), CONNECT_S)) as sock:
            sock.settimeout(None)
            status = _in_raw_mode(_Client(Channel(sock), terminal=terminal), request, raw=terminal)
    except BrokenPipeError:
        return 1
    except OSError as exc:
        print(f"the guest at {address} does not answer: {exc.strerror or exc}", file=sys.stderr)
        return UNREACHABLE
    return status


def _in_raw_mode(client: _Client, request: dict[str, object], *, raw: bool) -> int:
    """Run with the terminal handing on every key, which is what the far terminal wants."""
    if not raw:
        return client.run(request)
    import termios  # noqa: PLC0415  # only people at a terminal pay for these
    import tty  # noqa: PLC0415

    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead stays
    try:
        return client.run(request)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _end(status: int) -> None:
    """End as the command ended: with its code, or by its signal (without a core dump of our own)."""
    if status < 0:
        import resource  # noqa: PLC0415  # rare

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -status not in {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
        status = 128 - status
    os._exit(status)


if __name__ == "__main__":
    _end(main(sys.argv[1:]))
