"""Reverse path checks while packets of a peer come in by another device than packets to it go out.

Between two backends that is so for every pair of nodes of which one has changed and the other has not. A strict check
(``rp_filter`` 1, RFC 3704) drops such packets; it is made a loose one (2) as long as there is more than one backend,
and is what it was after that. The larger value of the interface's and of ``all`` counts
(Documentation/networking/ip-sysctl.rst), so the interface's own is enough. IPv6 has no such switch.

Everything blocks and belongs to one worker thread, in the namespace of the devices.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from pycni.errors import KernelError
from pycni.kernel import sysctl

log = logging.getLogger("pycni.network")
STRICT, LOOSE = "1", "2"


class ReversePath:
    """What was changed in this life. An agent that ends in between leaves it loose."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def loosen(self, devices: Iterable[str]) -> None:
        """Have no strict check on these. Raises KernelError."""
        for name in devices:
            own = _get(name)
            if own is None or STRICT not in {own, _get("all")} or own == LOOSE:
                continue
            sysctl.put(_switch(name), LOOSE)
            self._before[name] = own
            log.info("%s: the reverse path check is loose while there are several backends", name)

    def restore(self) -> None:
        """Everything as it was, unless somebody has changed it since. Raises KernelError."""
        for name, own in [*self._before.items()]:
            if _get(name) == LOOSE:
                sysctl.put(_switch(name), own)
            del self._before[name]


def _switch(name: str) -> str:
    return f"net/ipv4/conf/{name}/rp_filter"


def _get(name: str) -> str | None:
    """The switch of a device; None when there is no such device, or no IPv4."""
    try:
        return sysctl.get(_switch(name))
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return None
