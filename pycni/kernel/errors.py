"""What an errno means for an operation: one table, so that no call site decides for itself.

Sources: net/ipv4/fib_frontend.c, net/ipv6/route.c, net/core/neighbour.c, net/core/rtnetlink.c, drivers/net/vxlan.
"""

from __future__ import annotations

import enum
import errno

from pycni.errors import TRANSIENT_ERRNOS


class Verdict(enum.Enum):
    """What a caller does with an error."""

    DONE = "done"
    """The aim is reached already."""
    EXISTS = "exists"
    """Something with the same key is there: compare and replace if it is ours."""
    TRANSIENT = "transient"
    """The same request can succeed later."""
    PERMANENT = "permanent"
    """It will fail again until something else changes; say so and turn health red."""


_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


def judge(action: str, code: int) -> Verdict:
    """Verdict for ``action`` ("add", "change" or "remove") failing with a positive errno."""
    if action == "remove" and code in _GONE:
        return Verdict.DONE
    if action == "add" and code == errno.EEXIST:
        return Verdict.EXISTS
    if code in TRANSIENT_ERRNOS:
        return Verdict.TRANSIENT
    return Verdict.PERMANENT
