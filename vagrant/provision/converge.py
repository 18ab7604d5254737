"""What a drained node costs those outside: run on the router, with nothing but Python's own library.

``converge.py ADDRESS FILE`` opens a connection to the Service's external address every 20 ms until it is told to end,
then writes how many were not answered and the longest time without an answer. Somebody drains a node meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sys
import time
from collections import Counter
from pathlib import Path

EVERY_S, PATIENCE_S = 0.02, 1.0
ENDING: list[int] = []


def main(address: str, path: Path) -> None:
    """Ask until SIGTERM."""
    signal.signal(signal.SIGTERM, lambda number, _: ENDING.append(number))
    answers: Counter[str] = Counter()
    failed, longest = 0, 0.0
    begun = last = time.monotonic()
    while not ENDING:
        now = time.monotonic()
        name = ""
        with contextlib.suppress(OSError), socket.create_connection((address, 80), PATIENCE_S) as sock:
            name = sock.recv(4096).decode().partition(" ")[0]
        if name:
            answers[name] += 1
            end = time.monotonic()
            longest, last = max(longest, end - last), end
        else:
            failed += 1
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - now)))
    row = {
        "asked": failed + answers.total(),
        "failed": failed,
        "longest_ms": round(longest * 1000),
        "seconds": round(time.monotonic() - begun, 1),
        "by": answers,
    }
    new = path.with_suffix(".new")
    new.write_text(json.dumps(row) + "\n")
    new.rename(path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
