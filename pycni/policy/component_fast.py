"""The fast path of a node by its settings: made when its interfaces are known, taken away when it is not wanted.

Life: the component asks with each pass (``made``), on its worker. What the machine lacks for it is said once, and
nftables judges alone; a kernel that refuses is asked again with every full pass. Modules with programs are known by
dotted name and imported only when they are wanted, or when pins of an earlier life are there.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

from pycni.agent.settings import Settings
from pycni.errors import ConfigError, PycniError
from pycni.kernel import bpf_places
from pycni.policy.base import FastPath
from pycni.policy.component_report import PolicyReport

log = logging.getLogger("pycni.policy")

PARTS = {"policy": "pycni.policy.ebpf.fastpath", "xdp": "pycni.policy.xdp.xdp"}
"""Pins of programs, and whose they are."""
Exits = Callable[[], Sequence[str] | None]
"""Interfaces by which other nodes and the outside are reached, the external one first; None: not known yet."""


class FastMaker:
    """One per component, on its worker."""

    def __init__(
        self, settings: Settings, report: PolicyReport, exits: Exits, load: Callable[[str], Any] | None = None
    ) -> None:
        self._settings = settings
        self._report = report
        self._exits = exits
        self._load = load or importlib.import_module
        self._made_with: tuple[str, ...] = ()
        self._lacking = False
        """It cannot be had in this life."""

    @property
    def wanted(self) -> bool:
        """Whether settings ask for any program."""
        return not self._lacking and (self._settings.policy == "ebpf" or self._settings.policy_xdp != "off")

    def fits(self) -> bool:
        """Whether what was made last serves the interfaces there are now."""
        exits = self._exits()
        return exits is None or tuple(exits) == self._made_with

    def make(self) -> FastPath | None:
        """The fast path, standing aside; None: there is none for now. Interfaces not known yet are left out."""
        exits = self._exits() or ()
        try:
            found = self._make(exits)
        except ConfigError as error:
            self._lacking = True
            self._report.note("fast path", f"{error}; nftables judges alone")
            return None
        except (PycniError, OSError) as error:
            self._report.note("fast path", f"no fast path for now, nftables judges alone: {error}")
            return None
        self._report.note("fast path", "")
        self._made_with = tuple(exits)
        log.info("policies: %s judges what it can at %s", found.name, ", ".join(exits) or "pods")
        return found

    def _make(self, exits: Sequence[str]) -> FastPath:
        settings, fast = self._settings, None
        if settings.policy == "ebpf":
            fast = self._load(PARTS["policy"]).make(
                settings.node_name, uplinks=tuple(exits), spoof_check=settings.policy_spoof_check
            )
        if settings.policy_xdp == "off":
            return _path(fast)
        try:
            made = self._load(PARTS["xdp"]).make(
                settings.node_name, mode=settings.policy_xdp, devices=tuple(exits[:1]), fast=fast
            )
        except (PycniError, OSError) as error:
            if fast is None:
                raise
            self._report.note("xdp", f"no early drop at the external interface: {error}")
            return _path(fast)
        return _path(made)

    def leftovers(self) -> list[str]:
        """Take away programs of an earlier life that are not wanted. Raises KernelError, OSError."""
        settings = self._settings
        keep = set()
        if self.wanted:
            keep = {"policy"} if settings.policy_xdp == "off" else {"policy", "xdp"}
        return remove_programs(keep, self._load)


def remove_programs(keep: set[str], load: Callable[[str], Any] = importlib.import_module) -> list[str]:
    """Detach and remove programs of this node; says what went. Raises KernelError, OSError."""
    gone: list[str] = []
    for part, module in reversed(PARTS.items()):
        if part not in keep and bpf_places.existing(part):
            gone += load(module).leftovers()
    return gone


def _path(value: Any) -> FastPath:
    found: FastPath = value
    return found
