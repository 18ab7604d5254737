"""Which pods of this node are alive, as far as the agent can see: the eyes of the collector.

Cheap things are looked at always: the namespace paths of endpoints (one stat each), the host's links (one
netlink dump), and, for reservations without endpoint, the runtime's records (libcni's cached results). Only when these
leave somebody's life in doubt are all namespaces of the node looked at, through every process's ``/proc/<pid>/ns/net``
and every mounted namespace, with their addresses: some microseconds per process and a file or two per namespace.

``complete`` is claimed only when it is so: the agent is in the first pid namespace (or sees through processes every
namespace it also knows by path), nothing was refused to it, and every namespace found could be read.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from pycni.errors import KernelError
from pycni.ipam.collect import Cached, Held, View, needs_depth, unclaimed
from pycni.kernel import netns
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Address

CACHE_DIRS = ("/var/lib/cni/results", "/var/lib/cni/cache/results")
"""libcni's folder, and the one kubelet's former dockershim and cri-dockerd use."""

INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""PROC_PID_INIT_INO of include/linux/proc_ns.h."""

ROUNDS = 3
"""How often to look again for namespaces that vanished or changed their processes while being read."""

_LOCAL = re.compile(r"\|-- ([0-9.]+)\n(?: +/\d+ [^\n]*\n)*? +/32 host LOCAL")
_MOUNTED = re.compile(r"^\S+ \S+ \S+ net:\[(\d+)\] (\S+) .* - nsfs ", re.MULTILINE)


class Observer:
    """Looks at the node the calling thread is in. Keeps nothing between looks."""

    def __init__(self, cache_dirs: Iterable[str] = CACHE_DIRS) -> None:
        """``cache_dirs``: where runtimes keep libcni's records, first match wins."""
        self._cache_dirs = tuple(cache_dirs)

    def view(
        self, reservations: Collection[Held], endpoints: Collection[Endpoint], *, deep: bool = False
    ) -> View:
        """What there is to see concerning these reservations and endpoints; ``deep`` looks everywhere anyway.

        Raises OSError when the node cannot be looked at at all.
        """
        bare = unclaimed(reservations, endpoints)
        cached, readable = self._records(bare) if bare else ({}, False)
        asked = {endpoint.netns for endpoint in endpoints} | {record.netns for record in cached.values()}
        view = View(
            boot_id=boot_id(),
            paths=namespaces_at(asked),
            links=frozenset(name for _, name in socket.if_nameindex()),
            cached=cached,
            cache_readable=readable,
        )
        if deep or needs_depth(reservations, endpoints, view):
            return _deepened(view, endpoints)
        return view

    def _records(self, bare: Collection[Held]) -> tuple[dict[Owner, Cached], bool]:
        """The runtimes' records that can concern these reservations, and whether there is a folder of any."""
        expected = {"-".join(held.owner): held.owner for held in bare if held.owner.container_id}
        networks = tuple({f"{held.owner.network}-" for held in bare})
        records: dict[Owner, Cached] = {}
        readable = False
        for folder in self._cache_dirs:
            try:
                names = os.listdir(folder)
            except OSError:
                continue
            readable = True
            for name in names:
                if name.startswith(networks):
                    record = _record(os.path.join(folder, name), expected.get(name))
                    if record is not None:
                        records.setdefault(record.owner, record)
        return records, readable


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def namespaces_at(paths: Iterable[str]) -> dict[str, int]:
    """Of some paths, those that lead to a namespace, with its inode. Anything else there is no namespace."""
    device = os.stat("/proc/self/ns/net").st_dev
    found: dict[str, int] = {}
    for path in paths:
        if not path.startswith("/"):
            continue
        try:
            status = os.stat(path)
        except OSError:
            continue
        if status.st_dev == device:
            found[path] = status.st_ino
    return found


def _deepened(view: View, endpoints: Collection[Endpoint]) -> View:
    """The view with every namespace of the node and what addresses they have."""
    own = os.stat("/proc/self/ns/net").st_ino
    read: dict[int, set[Address]] = {own: set()}
    for _ in range(ROUNDS):
        by_process, refused = _process_namespaces()
        mounted = _mounted_namespaces()
        found = by_process.keys() | mounted.keys()
        for inode in found - read.keys():
            held = _addresses(inode, by_process.get(inode, []), mounted.get(inode))
            if held is not None:
                read[inode] = held
        if found <= read.keys():
            break
    return msgspec.structs.replace(
        view,
        inodes=frozenset(found | read.keys()),
        addresses=frozenset(address for held in read.values() for address in held),
        complete=not refused and found <= read.keys() and _sees_all(view, endpoints, by_process.keys()),
    )


def _sees_all(view: View, endpoints: Collection[Endpoint], seen: Collection[int]) -> bool:
    """Whether every process of the node is visible: by our pid namespace, or by what is known to be there."""
    if os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE:
        return True
    known = [
        endpoint.netns_inode
        for endpoint in endpoints
        if endpoint.state == "ready"
        and endpoint.boot_id == view.boot_id
        and view.paths.get(endpoint.netns) == endpoint.netns_inode
    ]
    return bool(known) and all(inode in seen for inode in known)


def _process_namespaces() -> tuple[dict[int, list[int]], bool]:
    """Network namespaces processes are in, each with its processes, and whether any process was hidden from us.

    The kernel shows a process's namespaces only to callers with all of its capabilities (ptrace_may_access), which
    the agent may lack for init alone; init is in no pod, so that does not count.
    """
    found: dict[int, list[int]] = {}
    refused = False
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        try:
            inode = os.stat(f"/proc/{name}/ns/net").st_ino
        except PermissionError:
            refused = refused or name != "1"
        except (FileNotFoundError, ProcessLookupError):
            continue
        else:
            found.setdefault(inode, []).append(int(name))
    return found, refused


def _mounted_namespaces() -> dict[int, str]:
    """Network namespaces mounted where this process can see them, with one path each."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return {int(inode): _unescaped(path) for inode, path in _MOUNTED.findall(file.read())}


def _unescaped(path: str) -> str:
    """A path of mountinfo, in which blanks and backslashes are octal numbers (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _addresses(inode: int, pids: Iterable[int], mounted: str | None) -> set[Address] | None:
    """Every address configured in a namespace; None when it could not be read."""
    for pid in pids:
        try:
            held = _read_addresses(f"/proc/{pid}/net")
            if os.stat(f"/proc/{pid}/ns/net").st_ino == inode:
                return held
        except OSError:
            continue
    if mounted is None:
        return None
    try:
        fd = netns.open_netns(mounted)
    except KernelError:
        return None
    try:
        if netns.inode(fd) != inode:
            return None
        return netns.run_in(fd, lambda: _read_addresses("/proc/thread-self/net"))
    except (KernelError, OSError):
        return None
    finally:
        os.close(fd)


def _read_addresses(folder: str) -> set[Address]:
    with open(f"{folder}/fib_trie", encoding="ascii") as file:
        held: set[Address] = {ipaddress.IPv4Address(text) for text in _LOCAL.findall(file.read())}
    try:
        with open(f"{folder}/if_inet6", encoding="ascii") as file:
            held.update(ipaddress.IPv6Address(bytes.fromhex(line[:32])) for line in file)
    except FileNotFoundError:  # a kernel without IPv6
        pass
    return held


class _CacheFile(msgspec.Struct, rename="camel"):
    """The keys used of libcni's ``cniCacheV1``. Older records are the bare result and have none of the names."""

    container_id: str = ""
    if_name: str = ""
    network_name: str = ""
    netns: str = ""
    result: dict[str, Any] = {}


_cache_decoder = msgspec.json.Decoder(_CacheFile)


def _record(path: str, expected: Owner | None) -> Cached | None:
    """One runtime record; None when it is no more, or is spoilt and its name is not the ``expected`` owner's.

    A spoilt or old record with the expected name counts, saying nothing: there is one, so DEL has not succeeded.
    """
    try:
        with open(path, "rb") as file:
            found = _cache_decoder.decode(file.read())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        found = _CacheFile()
    if not found.container_id:
        return None if expected is None else Cached(owner=expected)
    return Cached(
        owner=Owner(found.network_name, found.container_id, found.if_name),
        netns=found.netns,
        host_links=tuple(_host_links(found.result)),
        addresses=tuple(_result_addresses(found.result)),
    )


def _host_links(result: Mapping[str, Any]) -> Iterator[str]:
    """Host ends of veth pairs in a result: bridge and ptp call them ``veth...``; other links live without the pod."""
    for interface in _objects(result.get("interfaces")):
        name = interface.get("name")
        if isinstance(name, str) and name.startswith("veth") and not interface.get("sandbox"):
            yield name


def _result_addresses(result: Mapping[str, Any]) -> Iterator[Address]:
    """The addresses of a result of any version of the specification."""
    old = [{"address": ip.get("ip")} for ip in _objects([result.get("ip4"), result.get("ip6")])]
    for ip in [*_objects(result.get("ips")), *old]:
        try:
            yield ipaddress.ip_interface(str(ip.get("address"))).ip
        except ValueError:
            continue


def _objects(value: object) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
