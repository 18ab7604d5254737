"""What a check runs on: a lab or a cluster, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from pycni.check.model import Answer, Case, Result, Scene, Site
from pycni.trace.model import Trace


class Ground(Protocol):
    """Brings the check's pods, has them try things, takes them away."""

    def site(self) -> Site:
        """What is there. Raises PycniError when nothing can be checked."""

    def bring(self) -> Scene:
        """Make namespace, pods and Services, and start the servers; what an earlier check left goes first.

        Raises PycniError. ``clear`` takes away what was made also when this was cut off.
        """

    def police(self, policies: Sequence[dict[str, Any]]) -> None:
        """Store policies besides those that are there, and wait until they are in force where that can be known."""

    def ask(self, cases: Sequence[Case]) -> dict[int, Answer]:
        """Have every case's source do its task; by number. Who does not answer is missing."""

    def trace(self, source: str, target: str, protocol: str) -> Trace | None:
        """A trace; None where none can be made. Raises PycniError, OSError."""

    def restart(self, scene: Scene) -> Result:
        """Restart an agent under traffic."""

    def clear(self) -> list[str]:
        """Take everything away; what could not be, in words."""
