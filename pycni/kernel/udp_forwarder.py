"""The forwarder of the udp backend: started, spoken to by its control socket (``pycni/forwarder`` is the program).

Life: ``start`` runs the program in the namespace the caller is in; it takes or makes the TUN device, opens its control
socket ``<folder>/<device>.sock``, puts itself into the background and outlives this agent, so that an agent's restart
loses no packet. It ends when its device or its socket is deleted. The device outlives the forwarder: routes and
addresses stay while a new one takes its place.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from pycni.errors import KernelError
from pycni.wire import forwarder as wire

MODULE = "pycni.forwarder"
TIMEOUT_S = 15.0
NOBODY = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE})
"""What talking to a forwarder that is not there gives."""


def last_words(folder: str, name: str) -> str:
    """What an earlier forwarder failed with, told once; "" when it did not."""
    path = os.path.join(folder, f"{name}.sock.crash")
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 16).strip().splitlines()
        os.unlink(path)
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""


def start(folder: str, name: str) -> None:
    """Have the device served. Raises KernelError with the program's own words."""
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-P", "-m", MODULE, folder, name],
            stdin=subprocess.DEVNULL,
            # Passwords of ours may be in the environment: it outlives us, and needs none of them.
            env={
                key: value for key, value in os.environ.items() if key == "PATH" or key.startswith("PYTHON")
            },
            capture_output=True,
            check=False,
            start_new_session=True,  # a signal to our terminal is not for it
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise KernelError(errno.ETIMEDOUT, "start forwarder", name) from None
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "start forwarder", name, exc.filename or "") from exc
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise KernelError(errno.EIO, "start forwarder", name, words[-1][:300] if words else "")


def read(folder: str, name: str) -> wire.State:
    """State of the forwarder. Raises KernelError; one of ``NOBODY`` when nobody serves the device."""
    [state] = send(folder, name, [wire.Get()])
    return state


def send(folder: str, name: str, requests: Sequence[wire.Request]) -> list[wire.State]:
    """Requests in one connection; one answer each. Raises KernelError; what was refused is in the answers."""
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(TIMEOUT_S)
                # A state folder may be longer than the 108 bytes of sun_path.
                sock.connect(f"/proc/self/fd/{fd}/{name}.sock")
                with sock.makefile("rb") as lines:
                    return [_ask(sock, lines.readline, request) for request in requests]
        finally:
            os.close(fd)
    except TimeoutError:
        raise KernelError(errno.ETIMEDOUT, "ask forwarder", name, "it does not answer") from None
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, "ask forwarder", name) from exc
    except wire.MalformedError as exc:
        raise KernelError(errno.EPROTO, "ask forwarder", name, str(exc)) from None


def _ask(sock: socket.socket, read_line: Callable[[], bytes], request: wire.Request) -> wire.State:
    sock.sendall(wire.encode(request))
    line = read_line()
    if not line.endswith(b"\n"):
        raise ConnectionResetError(errno.ECONNRESET, "the forwarder hung up")
    return wire.decode_state(line)
