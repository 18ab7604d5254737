"""The semantics suite on IPVS, in a guest with a kernel that has it: started by ``uml_boot``, answers in one line."""

from __future__ import annotations

import contextlib
import socket
import time
import traceback
from typing import Any

from pycni.model.kube import SCTP, TCP, UDP
from tests.proxy.dataplanes import plain
from tests.proxy.hammer import hammer
from tests.proxy.judge import run
from tests.proxy.semantics import rows
from tests.proxy.stories import KEEPS_LONGER, STORIES
from tests.proxy.uml_boot import answer

READ_BACK = 16
"""Every so many cases the kernel's state is read back and compared: iptables-save takes a second here."""


def protocols() -> tuple[int, ...]:
    """What this kernel speaks."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP):
        return TCP, UDP, SCTP
    return TCP, UDP


def suite() -> dict[str, Any]:
    """Disagreements by case, and who served."""
    found: dict[str, Any] = {}
    spoken = protocols()
    started = time.monotonic()
    with plain("ipvs", protocols=spoken) as node:
        for number, case in enumerate(rows()):
            try:
                found[case.name] = run(node, case, read_back=number % READ_BACK == 0)
            except BaseException:
                found[case.name] = [traceback.format_exc()]
        for name, story in STORIES.items():
            if name in KEEPS_LONGER:
                continue
            try:
                found[name] = story(node)
            except BaseException:
                found[name] = [traceback.format_exc()]
        return {
            "cases": found, "planes": node.planes, "served": node.served, "protocols": spoken, "seconds": time.monotonic() - started
        }  # fmt: skip


def pounding() -> dict[str, Any]:
    """A client that never stops, while endpoints are replaced."""
    with plain("ipvs") as node:
        asked, failures = hammer(node)
        return {"planes": node.planes, "asked": asked, "failures": failures}


if __name__ == "__main__":
    answer({"suite": suite, "hammer": pounding})
