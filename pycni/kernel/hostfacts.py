"""All the doctor goes by on one node, read in one go: nothing is changed and nothing kept.

Life: ``read`` works in the network namespace its thread is in (``netns.run_in``). What belongs to the machine (options
of its kernel, modules, files below /etc) is the same from everywhere; machine-wide switches are not seen from inside a
namespace, so a caller that stands in the machine's first one reads them there (``machine``) and adds them.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import gzip
import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from pycni.doctor import conflicts, features, offloads, switches
from pycni.doctor.model import ConfFile, Facts, PathTry
from pycni.doctor.mtu import overlays, underlay
from pycni.errors import KernelError
from pycni.kernel import ethtool, nft_names, pathmtu, spacestate, sysctl
from pycni.model.space import SpaceState
from pycni.model.tables import ROUTE_PROTOCOL

NET_DIR = "/etc/cni/net.d"
FIRST_ONLY = "net.core.netdev_max_backlog"
"""A switch the kernel has in its first namespace only (net/core/sysctl_net_core.c)."""
PEERS = 64
"""The most peers that are sent pings."""
_CONFIGS = (
    "/proc/config.gz",
    "/boot/config-{0}",
    "/lib/modules/{0}/config",
    "/lib/modules/{0}/build/.config",
)
_LEGACY = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
_TIMEOUT_S = 10.0
_NETWORKD = tuple(f"{folder}/systemd/networkd.conf" for folder in ("/usr/lib", "/run", "/etc"))
_NM = tuple(f"{folder}/NetworkManager" for folder in ("/usr/lib", "/run", "/etc"))


def read(
    node: str = "",
    *,
    uses: Sequence[str] | None = None,
    device: str = "",
    peers: Sequence[bytes] | None = None,
    conf_folder: str = NET_DIR,
) -> Facts:
    """The facts of the calling thread's namespace. Raises KernelError.

    ``uses``, ``device``: see ``Facts``. ``peers``: underlay addresses that are sent two pings each; None: those the
    overlays and routes lead to; (): nobody.
    """
    space, release = spacestate.read(), os.uname().release
    tables, legacy = tuple(nft_names.tables()), tuple(_legacy())
    facts = Facts(
        node=node,
        space=space,
        first=_get(FIRST_ONLY) is not None,
        release=release,
        cores=os.cpu_count() or 1,
        uses=tuple(uses) if uses is not None else None,
        underlay=device,
        kernel=kernel_options(release),
        modules=_modules(release),
        loadable=_loadable(release),
        programs=frozenset(name for name in features.PROGRAMS if shutil.which(name)),
        tables=tables,
        chains=(*_chains(), *_legacy_chains(legacy)),
        legacy=tuple(" ".join(item) for item in legacy),
        processes=frozenset(_processes(conflicts.PROGRAMS)),
        networkd=networkd(_NETWORKD),
        unmanaged=tuple(unmanaged(_NM)),
        conf_folder=conf_folder,
        conf_files=tuple(conf_files(conf_folder)),
    )
    return _with_devices(facts, peers)


def _chains() -> Iterator[tuple[str, str, str]]:
    for item in nft_names.chains():
        if not item.table.startswith(conflicts.OURS):
            yield item.family, item.table, item.name


def _with_devices(facts: Facts, peers: Sequence[bytes] | None) -> Facts:
    """What depends on which devices lead to the other nodes."""
    device = underlay(facts)
    ways = {link.name for link in overlays(facts)} | ({device} if device else set())
    names = [*switches.SWITCHES, *switches.MACHINE]
    names += [name.format(way) for way in sorted(ways) for name in switches.PER_DEVICE]
    found = {name: value for name in names if (value := _get(name)) is not None}
    writable = frozenset(name for name in found if os.access(sysctl.path(name), os.W_OK))
    if not facts.first:  # outside of /proc/sys/net nothing is a namespace's own, whoever may write it
        writable = frozenset(name for name in writable if name not in switches.MACHINE)
    link = facts.space.links.get(device)
    asked = (_peers(facts.space) if peers is None else peers)[:PEERS] if link is not None else ()
    return msgspec.structs.replace(
        facts,
        underlay=device,
        sysctls=found,
        writable=writable,
        offloads={device: ethtool.features(device, offloads.FEATURES)} if link is not None else {},
        drivers={device: ethtool.driver(device)} if link is not None else {},
        paths=_paths(asked, link.mtu) if link is not None and asked else (),
    )


def machine() -> dict[str, str]:
    """Machine-wide switches, where the calling thread's namespace shows them."""
    return {name: value for name in switches.MACHINE if (value := _get(name)) is not None}


def kernel_options(release: str, places: Sequence[str] = _CONFIGS) -> dict[str, str]:
    """y, m or n by option, of those we know; {} when no configuration of this kernel can be read."""
    for place in places:
        file = place.format(release)
        with (
            contextlib.suppress(OSError),
            gzip.open(file) if file.endswith(".gz") else open(file, "rb") as lines,
        ):
            found = dict.fromkeys(features.OPTIONS, "n")
            for line in lines:
                name, _, value = line.decode(errors="replace").strip().partition("=")
                name = name.removeprefix("CONFIG_")
                if name in found:
                    found[name] = value
            return found
    return {}


def networkd(places: Sequence[str]) -> dict[str, str]:
    """Settings of [Network]; files of ``.d`` folders after the file itself, later places count more."""
    found: dict[str, str] = {}
    for place in places:
        for file in (place, *sorted(glob.glob(f"{glob.escape(place)}.d/*.conf"))):
            found |= dict(_settings(file, "Network"))
    return found


def unmanaged(places: Sequence[str]) -> Iterator[str]:
    """Values of NetworkManager's ``unmanaged-devices``, one by one."""
    for place in places:
        for file in (
            f"{place}/NetworkManager.conf",
            *sorted(glob.glob(f"{glob.escape(place)}/conf.d/*.conf")),
        ):
            for name, value in _settings(file, "keyfile"):
                if name.rstrip("+-") == "unmanaged-devices":
                    yield from (item.strip() for item in value.replace(",", ";").split(";") if item.strip())


def conf_files(folder: str) -> Iterator[ConfFile]:
    """Networks of a runtime's folder as libcni finds them: by name, of .conf, .conflist and .json."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        if not name.endswith((".conf", ".conflist", ".json")):
            continue
        try:
            with open(os.path.join(folder, name), "rb") as file:
                value = json.load(file)
            plugins = value.get("plugins", [value])
            yield ConfFile(
                name=name,
                network=str(value.get("name", "")),
                plugins=tuple(str(item["type"]) for item in plugins),
            )
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as exc:
            yield ConfFile(name=name, trouble=f"cannot be read: {type(exc).__name__}: {exc}")


def _settings(file: str, section: str) -> Iterator[tuple[str, str]]:
    """Lines ``name=value`` of a section; nothing of a file that cannot be read."""
    here = False
    with contextlib.suppress(OSError), open(file, encoding="utf-8", errors="replace") as lines:
        for raw in lines:
            line = raw.strip()
            if line.startswith("["):
                here = line == f"[{section}]"
            elif here and "=" in line and not line.startswith(("#", ";")):
                name, _, value = line.partition("=")
                yield name.strip(), value.strip()


def _get(name: str) -> str | None:
    try:
        return sysctl.get(name)
    except KernelError as error:
        if error.errno not in {errno.ENOENT, errno.EINVAL, errno.EACCES, errno.EPERM}:
            raise
        return None


def _modules(release: str) -> frozenset[str]:
    """Loaded ones, and built-in ones as far as they are told of."""
    found = set()
    with contextlib.suppress(OSError):
        found |= set(os.listdir("/sys/module"))
    with (
        contextlib.suppress(OSError),
        open(f"/lib/modules/{release}/modules.builtin", encoding="ascii") as lines,
    ):
        found |= {_module(line.strip()) for line in lines}
    return frozenset(found)


def _loadable(release: str) -> frozenset[str]:
    with contextlib.suppress(OSError), open(f"/lib/modules/{release}/modules.dep", encoding="ascii") as lines:
        return frozenset(_module(line.partition(":")[0]) for line in lines)
    return frozenset()


def _module(path: str) -> str:
    """``kernel/net/bridge/br_netfilter.ko.xz`` is br_netfilter; a dash is an underscore to the kernel."""
    return os.path.basename(path).partition(".")[0].replace("-", "_")


def _legacy() -> Iterator[tuple[str, str]]:
    """Family and name of the tables of iptables' old interface."""
    for family in _LEGACY:
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{family}_tables_names") as lines:
            yield from ((family, line.strip()) for line in lines)


def _legacy_chains(tables: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Chains somebody made in them; a table that cannot be listed has none to tell."""
    for family, table in tables:
        program = shutil.which(_LEGACY[family])
        if program is None:
            continue
        words = [program, "-w", "2", "-t", table, "-S"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=_TIMEOUT_S)
            for line in done.stdout.splitlines():
                if line.startswith("-N "):
                    yield f"{family} legacy", table, line.split()[1]


def _processes(names: Iterable[str]) -> Iterator[str]:
    """Those of these programs that run in the calling thread's network namespace."""
    wanted = {name[:15]: name for name in names}
    own = os.stat("/proc/thread-self/ns/net").st_ino
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/comm", encoding="utf-8") as file:
                name = wanted.get(file.read().strip())
                if name is not None and os.stat(f"/proc/{entry}/ns/net").st_ino == own:
                    yield name


def _peers(space: SpaceState) -> list[bytes]:
    """Underlay addresses that overlays' entries and the fabric's routes lead to."""
    over = {link.name for link in space.links.values() if link.kind == "vxlan"}
    found = [item.remote for item in space.fdb if item.remote and any(item.remote)]
    found += [
        item.gateway
        for item in space.routes
        if item.protocol == ROUTE_PROTOCOL and item.gateway and item.device not in over
    ]
    return list(dict.fromkeys(found))


def _paths(peers: Sequence[bytes], mtu: int) -> tuple[PathTry, ...]:
    answers = {peer: set(sizes) for peer, sizes in pathmtu.answered(peers, (pathmtu.SMALL, mtu)).items()}
    doubtful = [peer for peer, sizes in answers.items() if sizes == {pathmtu.SMALL}]
    if doubtful:  # a loaded node or a lossy way must not look like one that is too small
        for peer, sizes in pathmtu.answered(doubtful, (mtu,)).items():
            answers[peer] |= sizes
    return tuple(
        PathTry(address=peer, size=mtu, small=pathmtu.SMALL in answers[peer], full=mtu in answers[peer])
        for peer in peers
    )
