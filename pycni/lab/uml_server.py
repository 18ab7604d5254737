"""The command server of a guest: runs programs, functions, probes and pings that the lab asks for.

Life of a request: every connection has a thread, which reads one request and serves it until it is done or the
connection ends; a program whose client has gone is killed. So a client on the machine stands for its program in the
guest: it ends with it, in the same way, and takes it along when killed. Threads and not processes, because a fork of
this much costs a guest a tenth of a second.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import traceback
from collections.abc import Callable
from io import FileIO
from typing import Any, NoReturn

import msgspec

from pycni.errors import PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab import inside, processes
from pycni.lab.probe import Prober
from pycni.lab.processes import ProcessId
from pycni.lab.topology import LabError
from pycni.lab.traffic import Traffic
from pycni.lab.uml_calls import Call, Command, Observe, Ping, Probe, Request, Round, Wait, failure
from pycni.lab.uml_channel import (
    ERROR,
    EXIT,
    FAILURE,
    GRANT,
    INPUT,
    OUTPUT,
    PIECE,
    REQUEST,
    SIGNAL,
    VALUE,
    WINDOW,
    Channel,
    Frame,
    pack_status,
    unpack_size,
    watchful,
)
from pycni.wire import typed

CLIENTS = "/run/pycni-guest/clients"
"""A file per client with the identity of its program."""
OWN = ("MODPROBE_OPTIONS",)
"""Variables that programs have from the guest and not from their client."""
NOT_FOUND = 127
"""Exit code when there is no such program, as shells have it."""
_BIRTHS = threading.Lock()
"""Held from before a program is started until it is in ``_programs``."""
_programs: set[int] = set()
"""Children that their threads wait for; all others are orphans that process 1 has to reap."""


_request = msgspec.json.Decoder(Request)
"""Made before there are threads: see ``wire/typed``."""


def serve(listener: socket.socket) -> NoReturn:
    """Take connections for as long as the guest runs; reaps every child, since this is process 1."""
    os.makedirs(CLIENTS, exist_ok=True)
    read, write = os.pipe()
    for fd in (read, write):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    while True:
        waiting: list[socket.socket | int] = [listener, read]
        ready = select.select(waiting, (), ())[0]
        if read in ready:
            os.read(read, 4096)
            _reap()
        if listener in ready:
            sock, _peer = listener.accept()
            threading.Thread(target=_handle, args=(Channel(watchful(sock)),), daemon=True).start()


def _reap() -> None:
    """Reap orphans, as far as no program comes first that has its own thread."""
    with _BIRTHS:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in _programs:
                return
            # Somebody may have come first after all; process 1 must not end of that.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(ended.si_pid, os.WNOHANG)


def _handle(channel: Channel) -> None:
    """One connection, on a thread of its own."""
    try:
        first = channel.receive()
        if first is not None and first[0] == REQUEST:
            _answer(channel, _request.decode(first[1]))
    except ConnectionError:
        pass  # the client has gone: there is nobody to tell
    except Exception:  # noqa: BLE001  # of this request alone
        traceback.print_exc()
    finally:
        channel.close()
        sys.stderr.flush()


def _answer(channel: Channel, request: Request) -> None:
    try:
        match request:
            case Command():
                _run(channel, request)
            case Call():
                calls = CALLS if request.function in CALLS else _of_traces().CALLS
                channel.send(VALUE, msgspec.json.encode(calls[request.function](*request.arguments)))
            case Probe():
                _probe(channel, request)
            case Ping():
                _ping(channel, request)
            case Observe():
                _observe(channel, request)
    except ConnectionError:
        raise
    except (PycniError, OSError, ValueError, subprocess.SubprocessError) as exc:
        if not isinstance(exc, PycniError | OSError):
            traceback.print_exc()
        channel.send(FAILURE, msgspec.json.encode(failure(exc)))


# functions


def signal_for(client: int, number: int) -> bool:
    """Signal the program of a client, known by the client's pid on the machine; whether there is one.

    SIGTERM and SIGKILL wait for its end. Raises LabError.
    """
    try:
        with open(f"{CLIENTS}/{client}", "rb") as file:
            process = typed.decode(file.read(), ProcessId)
    except FileNotFoundError:
        return False
    processes.kill([process], number)
    return True


CALLS: dict[str, Callable[..., Any]] = {**inside.CALLS, signal_for.__name__: signal_for}


# probes and pings


def _probe(channel: Channel, request: Probe) -> None:
    with Prober(request.hosts, request.timeout) as prober:
        channel.send(VALUE, msgspec.json.encode(prober.doors()))
        while True:
            prober.serve(channel.fileno())
            frame = channel.receive()
            if frame is None:
                return
            round_ = typed.decode(frame[1], Round)
            prober.meet(round_.others)
            channel.send(VALUE, msgspec.json.encode(list(prober.run(round_.checks).values())))


def _ping(channel: Channel, request: Ping) -> None:
    traffic = Traffic(request.namespace, request.address, request.interval)
    with traffic:
        channel.send(VALUE, b"true")
        while (frame := channel.receive()) is not None:
            wait = typed.decode(frame[1], Wait)
            if not wait.count:
                break
            channel.send(VALUE, msgspec.json.encode(traffic.wait_answered(wait.count, wait.timeout)))
    channel.send(VALUE, msgspec.json.encode(traffic.report()))


def _observe(channel: Channel, request: Observe) -> None:
    running = _of_traces().watch(request.node, request.order, request.namespaces)
    try:
        while (piece := running.step(channel.fileno())) is not None:
            if piece:
                channel.send(VALUE, piece)
    finally:
        running.close()


def _of_traces() -> Any:
    """Most guests are never traced, and what this imports takes a guest half a second."""
    return importlib.import_module("pycni.lab.inside_trace")


# programs


def _run(channel: Channel, command: Command) -> None:
    try:
        program = _Program(command)
    except OSError as exc:
        text = f"{command.argv[0] if command.argv else 'no command'}: {exc.strerror or exc}"
        channel.send(ERROR, f"{text}\n".encode())
        channel.send(EXIT, pack_status(NOT_FOUND if exc.errno == errno.ENOENT else 126))
        return
    record = f"{CLIENTS}/{command.client}"
    try:
        with open(record, "wb") as file:
            file.write(msgspec.json.encode(program.identity))
        program.carry(channel)
    finally:
        program.close()
        os.unlink(record)


class _Program:
    """A running program and its streams: a terminal, or three pipes."""

    def __init__(self, command: Command) -> None:
        """Start it. Raises OSError, KernelError, LabError."""
        if not command.argv:
            raise LabError("no command")
        fd = kernel_netns.open_netns(command.netns) if command.netns else -1
        side: int | None = None
        if command.window is not None:
            self._main, side = os.openpty()
            _resize(self._main, *command.window)
        streams = subprocess.PIPE if side is None else side
        folder = command.folder if os.path.isdir(command.folder) else "/"
        words = [*(("setsid", "--ctty") if side is not None else ()), *command.argv]

        def start() -> subprocess.Popen[bytes]:
            # With these options Python uses vfork, which spares a guest the copying of page tables.
            return subprocess.Popen(
                words,
                stdin=streams,
                stdout=streams,
                stderr=streams,
                env={**command.environment, **{name: os.environ[name] for name in OWN if name in os.environ}},
                cwd=folder,
                start_new_session=side is None,
            )

        try:
            with _BIRTHS:
                self._child = kernel_netns.run_in(fd, start) if fd >= 0 else start()
                _programs.add(self._child.pid)
        finally:
            for opened in (fd, side if side is not None else -1):
                if opened >= 0:
                    os.close(opened)
        # It may have ended already; a start of 0 is nobody's.
        self.identity = ProcessId(self._child.pid, processes.start_time(self._child.pid) or 0)
        self._pending = b""
        self._outputs: dict[int, bytes] = {}
        if side is not None:
            self._input: int | None = os.dup(self._main)
            self._outputs[self._main] = OUTPUT
        else:
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            assert self._child.stderr is not None
            self._input = self._child.stdin.fileno()
            self._outputs |= {self._child.stdout.fileno(): OUTPUT, self._child.stderr.fileno(): ERROR}
        self._terminal = side is not None
        for stream in (self._input, *self._outputs):
            os.set_blocking(stream, False)

    def carry(self, channel: Channel) -> None:
        """Carry bytes until it has ended or the client has gone."""
        self._take(channel.queued())
        with open(os.pidfd_open(self._child.pid), "rb", buffering=0) as ended:
            while True:
                writing = (self._input,) if self._pending and self._input is not None else ()
                reading: list[Channel | FileIO | int] = [channel, ended, *self._outputs]
                ready, writable, _ = select.select(reading, writing, ())
                for stream in [item for item in self._outputs if item in ready]:
                    self._forward(stream, channel)
                if writable:
                    self._feed(channel)
                if channel in ready:
                    frames = channel.feed()
                    if frames is None:
                        return
                    self._take(frames)
                if ended in ready:
                    break
        for stream in list(self._outputs):
            while stream in self._outputs and self._forward(stream, channel):
                pass
        channel.send(EXIT, pack_status(self._wait()))

    def close(self) -> None:
        """End it, if it has not ended, and close its streams."""
        if self._child.returncode is None:
            self._signal(signal.SIGKILL)
            self._wait()
        _programs.discard(self._child.pid)
        _reap()
        if self._terminal:
            os.close(self._main)
            if self._input is not None:
                os.close(self._input)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                pipe.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # killed and reaped by ``inside.end_processes``
            os.kill(self._child.pid, number)

    def _wait(self) -> int:
        try:
            _pid, status = os.waitpid(self._child.pid, 0)
            self._child.returncode = os.waitstatus_to_exitcode(status)
        except ChildProcessError:  # ``inside.end_processes`` killed and reaped it
            self._child.returncode = -signal.SIGKILL
        return self._child.returncode

    def _forward(self, stream: int, channel: Channel) -> bool:
        """Send on what a stream holds; whether there was anything."""
        try:
            data = os.read(stream, PIECE)
        except BlockingIOError:
            return False
        except OSError:  # a terminal nobody has open any more
            data = b""
        if not data:
            del self._outputs[stream]
            return False
        channel.send(self._kind(stream), data)
        return True

    def _kind(self, stream: int) -> bytes:
        return self._outputs[stream]

    def _feed(self, channel: Channel) -> None:
        """Write to its standard input what it takes."""
        assert self._input is not None, "only an open input is waited for"
        try:
            self._pending = self._pending[os.write(self._input, self._pending) :]
        except BlockingIOError:
            return
        except OSError:  # it does not read any more; what comes is thrown away
            self._pending = b""
        if not self._pending:
            channel.send(GRANT)

    def _take(self, frames: list[Frame]) -> None:
        """What the client sent."""
        for kind, payload in frames:
            if kind == INPUT and payload:
                self._pending = payload
            elif kind == INPUT:
                self._end_input()
            elif kind == SIGNAL:
                self._signal(payload[0])
            elif kind == WINDOW and self._terminal:
                _resize(self._main, *unpack_size(payload))

    def _end_input(self) -> None:
        if self._terminal:
            self._pending = b"\x04"  # what a person types to end the input (VEOF, termios(3))
        elif self._child.stdin is not None:
            self._child.stdin.close()
            self._input = None


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
