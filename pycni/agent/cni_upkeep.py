"""Keeps what all pods share as recorded: after a start, and when somebody else changed it.

Life: a thread of its own waits until the pod network is known, has the operations take over the attachments on record
(``CniOps.adopt``), and does it again once per interval and when the pod network has changed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from pycni.errors import PycniError
from pycni.model.podnet import PodNetwork

log = logging.getLogger("pycni.cni")

LOOK_S = 0.2
"""How often the pod network is looked at; a comparison of two references."""


class Adopts(Protocol):
    """The part of ``CniOps`` that is needed."""

    def adopt(self) -> list[str]:
        """Take over and repair; what was repaired."""


class Upkeep:
    """The thread. ``start`` and ``stop`` once each."""

    def __init__(
        self, ops: Adopts, podnet: Callable[[], PodNetwork | None], *, interval_s: float = 30.0
    ) -> None:
        self._ops = ops
        self._podnet = podnet
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cni-upkeep", daemon=True)
        self.failures = 0
        """Rounds that raised; each is made up for by the next."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the round under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        known: PodNetwork | None = None
        left_s = 0.0
        while not self._stop.wait(LOOK_S):
            left_s -= LOOK_S
            podnet = self._podnet()
            if podnet is None or (podnet == known and left_s > 0):
                continue
            known, left_s = podnet, self._interval_s
            try:
                repaired = self._ops.adopt()
            except (PycniError, OSError) as exc:
                self.failures += 1
                log.error("CNI: attachments could not be looked after: %s", exc)  # noqa: TRY400
            except Exception:
                self.failures += 1
                log.exception("CNI: attachments could not be looked after")
            else:
                for line in repaired:
                    log.warning("CNI: repaired: %s", line)
