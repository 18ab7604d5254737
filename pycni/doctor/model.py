"""What the doctor goes by and what it says, as values. Pure.

Life: ``kernel/hostfacts`` reads the ``Facts`` of one node in one go; those of a lab's nodes travel as JSON where a node
has a kernel of its own. ``judge`` makes ``Finding``s of all nodes' facts; ``report`` prints them. A finding that can be
mended without harm carries ``Change``s, which ``kernel/switchset`` applies and takes back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from pycni.model.space import LinkState, SpaceState

Level = Literal["error", "warning", "info"]
"""``error``: packets are lost; ``warning``: they are under load, after a restart, in some setups; ``info``: to know."""
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


class Change(msgspec.Struct, frozen=True):
    """A switch below /proc/sys and its values now and afterwards."""

    name: str
    before: str
    after: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to know."""

    check: str
    """The rule, in a word: ``forwarding-off``."""
    level: Level
    subject: str
    """What it is about, with the value found: ``net.ipv4.ip_forward = 0``."""
    reason: str
    """What it leads to."""
    fix: str
    """What to do, as a command where there is one."""
    source: str
    """Who says so: kernel documentation, RFC, project."""
    nodes: tuple[str, ...] = ()
    """Where; () for a single node without a name."""
    changes: Mapping[str, tuple[Change, ...]] = {}
    """By node: what ``--fix`` does; nothing where that is left to people."""

    @property
    def fixable(self) -> bool:
        """Whether ``--fix`` mends it on every node that has it."""
        return bool(self.changes) and len(self.changes) == max(len(self.nodes), 1)


class ConfFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a container runtime's folder of networks."""

    name: str
    network: str = ""
    plugins: tuple[str, ...] = ()
    trouble: str = ""
    """Why it cannot be read; "" when it can."""


class PathTry(msgspec.Struct, frozen=True, kw_only=True):
    """Two pings to a peer's underlay address, that must not be fragmented: a small and a full-sized one."""

    address: bytes
    size: int
    """Bytes of the full-sized IP packet: the MTU of the way out."""
    small: bool
    full: bool


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """One node."""

    node: str = ""
    space: SpaceState = SpaceState()
    first: bool = False
    """Whether this is the machine's first network namespace, where machine-wide switches are."""
    release: str = ""
    """Of the kernel: ``6.1.0-56-cloud-amd64``."""
    cores: int = 1
    uses: tuple[str, ...] | None = None
    """What this node is to do (``features.USES``); None: what is seen of it counts."""
    underlay: str = ""
    """Device to the other nodes; "": found by the routes."""
    kernel: Mapping[str, str] = {}
    """Options it was built with, without ``CONFIG_``: y, m, n; {}: nobody knows."""
    modules: frozenset[str] = frozenset()
    """Loaded ones and built-in ones."""
    loadable: frozenset[str] = frozenset()
    """Those that lie on the disk for this kernel."""
    programs: frozenset[str] = frozenset()
    """Of those that stand in for parts of kernels, the ones installed."""
    sysctls: Mapping[str, str] = {}
    """Of this namespace."""
    writable: frozenset[str] = frozenset()
    """Of these, the ones the kernel lets this namespace set."""
    machine: Mapping[str, str] = {}
    """Switches of the whole machine, where they were read elsewhere than in this namespace."""
    offloads: Mapping[str, Mapping[str, bool]] = {}
    """By device of the underlay: features by ethtool's names."""
    drivers: Mapping[str, str] = {}
    tables: tuple[tuple[str, str], ...] = ()
    """Family and name of all nftables tables, ours too."""
    chains: tuple[tuple[str, str, str], ...] = ()
    """Family, table and name of chains that are not ours."""
    legacy: tuple[str, ...] = ()
    """Tables of iptables' old interface: ``ip filter``."""
    processes: frozenset[str] = frozenset()
    """Programs of others that run in this namespace, of those in ``conflicts.PROGRAMS``."""
    networkd: Mapping[str, str] = {}
    """Settings of networkd.conf's section [Network]."""
    unmanaged: tuple[str, ...] = ()
    """Devices NetworkManager leaves alone, as its configuration names them."""
    conf_folder: str = ""
    conf_files: tuple[ConfFile, ...] = ()
    """Of the runtime's networks, in the runtime's order."""
    paths: tuple[PathTry, ...] = ()
    pods: Mapping[str, tuple[LinkState, ...]] = {}
    """Devices inside pods, by pod."""

    def value(self, name: str) -> str | None:
        """A switch; None when there is none or nobody could read it."""
        return self.sysctls.get(name, self.machine.get(name))

    def number(self, name: str) -> int | None:
        """The same of one that is a number."""
        text = self.value(name)
        return int(text) if text is not None and text.lstrip("-").isdigit() else None

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor of the kernel; (0, 0): not known."""
        words = self.release.split("-")[0].split(".")
        if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()):
            return 0, 0
        return int(words[0]), int(words[1])
