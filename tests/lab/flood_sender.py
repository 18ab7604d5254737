"""Sends without a pause until its input ends, then says how many left: the program of ``policy_flood.Flood``.

It is started often, so it imports nothing of ours.
"""

import json
import os
import socket
import sys


def flood(device: str, targets: list[str], frames: list[str], data: str, port: int) -> dict[str, int]:
    """Datagrams to all targets and frames by the device, in turn. Errors are tried again."""
    socks = {family: socket.socket(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)}
    raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    for sock in (raw, *socks.values()):
        sock.setblocking(False)
    ways: list[tuple[str, socket.socket, bytes, tuple[str, int]]] = [
        (target, socks[socket.AF_INET6 if ":" in target else socket.AF_INET], data.encode(), (target, port))
        for target in targets
    ]
    ways += [("frames", raw, bytes.fromhex(frame), (device, 0)) for frame in frames]
    sent = dict.fromkeys((name for name, *_ in ways), 0)
    # What is tested gets the processor first.
    os.nice(10)
    os.set_blocking(0, False)
    os.write(1, b"sending\n")
    turns = 0
    while True:
        for name, sock, raw_data, to in ways:
            try:
                sock.sendto(raw_data, to)
                sent[name] += 1
            except OSError:  # there is no device yet, no address, no route; the neighbour is not found
                pass
        turns += 1
        if turns % 64 == 0:
            try:
                if os.read(0, 1) == b"":
                    return sent
            except BlockingIOError:
                pass


if __name__ == "__main__":
    print(json.dumps(flood(**json.loads(sys.argv[1]))))
