"""What a drained node costs those outside: run on the router, with nothing but Python's own library.

``converge.py ADDRESS SECONDS`` opens a connection to the Service's external address every 20 ms and tells how many
were not answered, the longest time without an answer. Somebody drains a node meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections import Counter
from pathlib import Path

REPORT = Path("/var/lib/pycni-hosts/converge.json")
EVERY_S, PATIENCE_S = 0.02, 1.0


def main(address: str, seconds: float) -> None:
    """Ask for so long."""
    answers: Counter[str] = Counter()
    failed, longest = 0, 0.0
    begun = last = time.monotonic()
    while (now := time.monotonic()) - begun < seconds:
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
        "by": answers,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
