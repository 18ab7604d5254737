"""What a change of the underlay's addresses means while the agent runs.

Life: the network component looks for its external interface by ``SteadyUnderlay``, which compares each finding with
the one before. An address that is gone takes every connection with it that was made from it: ``lost`` is told. And
an interface between two addresses shows its link-local one for a moment: peers must not be told that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pycni.agent.settings import Settings
from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.node import Underlay

Find = Callable[[Settings, Sequence[Family]], Underlay]


class SteadyUnderlay:
    """``find``, with a memory. Called from one thread at a time."""

    def __init__(self, find: Find, lost: Callable[[], None]) -> None:
        self._find = find
        self._lost = lost
        self._before: Underlay | None = None
        self._gone = False

    def __call__(self, settings: Settings, families: Sequence[Family]) -> Underlay:
        """The underlay. Raises ConfigError for one that cannot be used (for the moment), KernelError."""
        before = self._before
        try:
            found = self._find(settings, families)
            if before is not None and Family.V6 in families:
                _need_lasting(before, found)
        except ConfigError:
            self._gone = True  # whatever comes next, connections made before are not to be trusted
            raise
        if before is not None and (self._gone or _lost_one(before, found)):
            self._lost()
        self._before, self._gone = found, False
        return found


def _need_lasting(before: Underlay, found: Underlay) -> None:
    """Raise ConfigError when only a link-local IPv6 address is left of a global one."""
    had, has = before.address6, found.address6
    if had is None or has is None or had.ip.is_link_local or not has.ip.is_link_local:
        return
    reason = f"{had.ip} is gone; {has.ip} does not take its place before pycnid starts anew"
    raise ConfigError(f"interface {found.name}", "ipv6 address", str(has.ip), reason)


def _lost_one(before: Underlay, found: Underlay) -> bool:
    return before.name != found.name or not set(before.on_link) <= set(found.on_link)
