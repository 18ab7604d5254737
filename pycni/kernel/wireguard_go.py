"""wireguard-go: WireGuard in user space, for kernels without it. Started, spoken to by its socket.

Life: ``start`` runs the program in the namespace the caller is in; it makes a TUN device and a socket, puts itself
into the background and outlives this agent, so that an agent's restart loses no packet. It ends when its device or its
socket is deleted. Its socket has a fixed place (/var/run/wireguard/NAME.sock), the same for all namespaces of
a host; in a mount namespace of its own that place is our ``folder``, so that several nodes can be on one host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Sequence

from pycni.errors import KernelError
from pycni.wire import wireguard as wire
from pycni.wire.netlink import MalformedError

PROGRAM = "wireguard-go"
PLACE = "/var/run/wireguard"
TIMEOUT_S = 10.0
_ANSWER_BYTES = 1 << 16
_SCRIPT = f'mount --bind "$1" {PLACE} && exec {PROGRAM} "$2"'


def start(folder: str, name: str) -> None:
    """Make a device. Raises KernelError: EOPNOTSUPP when there is no program."""
    if shutil.which(PROGRAM) is None:
        reason = f"this kernel has no WireGuard and there is no program {PROGRAM}"
        raise KernelError(errno.EOPNOTSUPP, "create link", name, reason)
    try:
        os.makedirs(PLACE, mode=0o755, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, f"{name}.sock"))  # of one that was killed
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", folder, name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            start_new_session=True,  # a signal to our terminal is not for it
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise KernelError(errno.ETIMEDOUT, f"start {PROGRAM}", name) from None
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, f"start {PROGRAM}", name, exc.filename or "") from exc
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise KernelError(errno.EIO, f"start {PROGRAM}", name, words[-1][:200] if words else "")


def read(folder: str, name: str) -> wire.DeviceInfo:
    """The device with its peers. Raises KernelError; ENOENT or ECONNREFUSED when nobody serves it."""
    [(code, pairs)] = _ask(folder, name, [wire.GET_TEXT], "read WireGuard device")
    if code:
        raise KernelError(code, "read WireGuard device", name)
    try:
        return wire.parse_device_text(pairs)
    except MalformedError as exc:
        raise KernelError(errno.EPROTO, "read WireGuard device", name, str(exc)) from None


def send(folder: str, name: str, requests: Sequence[bytes]) -> list[KernelError | None]:
    """Requests in one connection; one result each. Raises KernelError when nobody serves the device."""
    answers = _ask(folder, name, requests, "set WireGuard device")
    return [KernelError(code, "set WireGuard device", name) if code else None for code, _ in answers]


def _ask(
    folder: str, name: str, requests: Sequence[bytes], operation: str
) -> list[tuple[int, list[tuple[str, str]]]]:
    answers = []
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(TIMEOUT_S)
                # A state folder may be longer than the 108 bytes of sun_path.
                sock.connect(f"/proc/self/fd/{fd}/{name}.sock")
                for request in requests:
                    sock.sendall(request)
                    answers.append(wire.parse_answer(_answer(sock)))
        finally:
            os.close(fd)
    except TimeoutError:
        raise KernelError(errno.ETIMEDOUT, operation, name, f"{PROGRAM} does not answer") from None
    except OSError as exc:
        raise KernelError(exc.errno or errno.EIO, operation, name, PROGRAM) from exc
    except MalformedError as exc:
        raise KernelError(errno.EPROTO, operation, name, str(exc)) from None
    return answers


def _answer(sock: socket.socket) -> bytes:
    """One answer: up to an empty line."""
    answer = b""
    while not answer.endswith(b"\n\n"):
        part = sock.recv(_ANSWER_BYTES)
        if not part:
            raise MalformedError(f"{PROGRAM} hung up")
        answer += part
    return answer
