"""``python3 -m pycni.forwarder FOLDER DEVICE``: serve a device. ``--show`` before them: what one that runs is doing.

Everything that can fail is done before the program goes into the background: what is wrong is one line and exit code 1,
and exit code 0 means that the control socket ``FOLDER/DEVICE.sock`` is answered.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
import traceback
from collections.abc import Callable

from pycni.forwarder.control import Control
from pycni.forwarder.loop import Loop
from pycni.wire import forwarder as wire

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TUN, IFF_NO_PI = 0x1, 0x1000
SIOCSIFTXQLEN = 0x8943
QUEUE_PACKETS = 2000
"""What waits for us in the device: the usual 500 overflow under one TCP stream."""
USAGE = "usage: python3 -m pycni.forwarder [--show] FOLDER DEVICE"


def open_device(name: str) -> int:
    """The TUN device of this name, made when there is none; it stays when we end. Raises OSError (EBUSY: served)."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, SIOCSIFTXQLEN, struct.pack("16si20x", name.encode(), QUEUE_PACKETS))
    except BaseException:
        os.close(fd)
        raise
    return fd


def serve(folder: str, name: str) -> int:
    """Go into the background and serve; returns in the process that was started, with its exit code."""
    path = os.path.join(os.path.abspath(folder), f"{name}.sock")
    try:
        tun = open_device(name)
        control = Control(path)
    except OSError as error:
        print(f"{error.filename or name}: {error.strerror or error}", file=sys.stderr)
        return 1
    if os.fork():
        return 0
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)
    leaving_word(path, Loop(tun, control).run)
    return 0


def leaving_word(path: str, run: Callable[[], None]) -> None:
    """Run; what it fails with goes into a file, which the agent tells of when it starts the next one.

    Nobody reads our standard error any more.
    """
    try:
        run()
    except Exception:
        with open(os.open(f"{path}.crash", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            traceback.print_exc(file=file)
        raise


def show(folder: str, name: str) -> int:
    """Print the state of a running forwarder."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            os.chdir(folder)  # sun_path has 108 bytes
            sock.connect(f"{name}.sock")
        except OSError as error:
            print(f"{folder}/{name}.sock: {error.strerror}", file=sys.stderr)
            return 1
        sock.sendall(wire.encode(wire.Get()))
        with sock.makefile("rb") as lines:
            state = wire.decode_state(lines.readline())
    for key, value in state.counters.items():
        print(f"{key} {value}")
    for peer, words in sorted(state.sessions.items()):
        print(f"peer {peer}: {words}")
    return 0


def main(arguments: list[str]) -> int:
    """Exit code."""
    showing = arguments[:1] == ["--show"]
    places = arguments[1:] if showing else arguments
    if len(places) != 2 or not 0 < len(places[1]) < 16 or "/" in places[1]:
        print(USAGE, file=sys.stderr)
        return 2
    return (show if showing else serve)(*places)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
