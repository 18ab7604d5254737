"""The fast path of a node by its settings: made when its interfaces are known, taken away when it is not wanted.

Life: before its first change the component has programs of an earlier agent stand aside (``begin``), so that nftables,
which has the same policies, judges everything new; those that are not wanted go. After the first pass the fast path is
made (``make``), which takes over what is there. What the machine lacks for it is said once, and nftables judges alone;
a kernel that refuses is asked again every minute. Modules with programs are known by dotted name and imported only when
they are wanted, or when pins of an earlier life are there.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from pycni.agent.settings import Settings
from pycni.errors import ConfigError, KernelError, PycniError
from pycni.kernel import bpf, bpf_places
from pycni.kernel.bpf_map import BpfMap, MapSpec
from pycni.policy.base import FastPath
from pycni.policy.component_report import PolicyReport
from pycni.policy.ebpf import layout

log = logging.getLogger("pycni.policy")

PARTS = {"policy": "pycni.policy.ebpf.fastpath", "xdp": "pycni.policy.xdp.xdp"}
"""Pins of programs, and whose they are."""
_FIRST = bytes(4)
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

    def begin(self) -> list[str]:
        """Have nftables judge alone before anything changes; says what went. Raises KernelError, OSError."""
        if not self.wanted:
            return self.leftovers()
        try:
            stand_aside()
        except KernelError as error:
            log.warning("policies: programs of an earlier agent cannot be taken over: %s", error)
            return remove_programs(set(), self._load)
        return self.leftovers()

    def leftovers(self) -> list[str]:
        """Take away programs of an earlier life that are not wanted. Raises KernelError, OSError."""
        settings = self._settings
        keep = set()
        if self.wanted:
            keep = {"policy"} if settings.policy_xdp == "off" else {"policy", "xdp"}
        return remove_programs(keep, self._load)


def stand_aside() -> None:
    """Have programs of an earlier agent leave new connections to nftables. Raises KernelError."""
    spec = next(MapSpec(*row) for row in layout.MAPS if row[0] == layout.CONFIG)
    for folder in bpf_places.existing("policy"):
        path = os.path.join(folder, "maps", layout.CONFIG)
        held = bpf.get(path)
        config = BpfMap(spec, held)
        try:
            if not spec.fits(bpf.map_info(held)):
                raise KernelError(errno.EPROTO, "stand aside", path, "of another version")
            now = config.get(_FIRST)
            if now is not None:
                config.put(_FIRST, layout.Config.unpack(now)._replace(judging=0).pack())
        finally:
            config.close()


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
