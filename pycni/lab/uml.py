"""Nodes that are User-Mode Linux guests: each with a kernel of its own, on the machine's files read-only.

Life of a guest: ``begin_node`` plugs two taps into the fabric's namespace (one into the bridge, one for the command
server alone) and starts ``linux.uml`` there; ``uml_guest`` is its process 1; once it takes requests, it makes a file in
the node's folder, which both sides share, and ``finish_nodes`` goes on. Commands go by ``uml_channel``'s client,
functions and probes over a channel of this process. A guest ends with its processes, which all are in the fabric's
namespace and, per node, in one session.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import socket
import struct
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from pycni.errors import KernelError
from pycni.kernel import netns as kernel_netns
from pycni.lab import netns, processes, topology, uml_channel, uml_server
from pycni.lab.processes import ProcessId
from pycni.lab.state import LabState
from pycni.lab.stations import Host
from pycni.lab.topology import LabError, LabSpec
from pycni.lab.uml_calls import Call, GuestConfig, Observe, Probe, Request, raise_failure
from pycni.lab.uml_channel import FAILURE, REQUEST, Channel, watchful
from pycni.lab.uml_far import FarProbes, FarTraffic
from pycni.wire import rtlink, typed
from pycni.wire.netlink import attr_u32

PROGRAM = "linux.uml"
MEMORY = "256M"
"""Per guest, taken from the machine as it is touched; a node with its agent and some pods needs about 150."""
MODULES = Path("/usr/lib/uml/modules")
CONTROL_PORT = 7007
CONNECT_S = 5.0
CALL_S = 90.0
BOOT_S = 60.0
POLL_S = 0.01
LOG_LINES = 12
HOME = "/run/pycni-node"

_SHM = "/dev/shm"  # noqa: S108  # linux.uml keeps a guest's memory in an unlinked file there
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_NO_RAID_BENCHMARK = "initcall_blacklist=raid6_select_algo"
"""Btrfs's choice of a checksum routine takes two thirds of the time to boot."""

P = ParamSpec("P")
T = TypeVar("T")


class UmlDriver:
    """Nodes are guests in the fabric's namespace; their pods are namespaces inside."""

    waiting = "guests booted, each with a kernel of its own"
    poll_s = 0.1

    def __init__(self, spec: LabSpec, state: LabState) -> None:
        self._spec = spec
        self._state = state
        self._fabric = topology.fabric_namespace(spec.name)

    # nodes

    def prepare(self) -> None:
        """Their kernel is known: what it cannot do is refused before."""
        if shutil.which(PROGRAM) is None or not MODULES.is_dir():
            raise LabError("the uml driver needs Debian's package user-mode-linux: run `make setup`")

    def begin_node(self, index: int) -> Mapping[str, ProcessId]:
        """Make the taps and start the guest's kernel."""
        node = topology.node_name(index)
        folder = self._state.node_folder(node)
        self._up_file(node).unlink(missing_ok=True)
        taps = node, f"control{index}"
        with netns.socket_in(self._fabric) as sock:
            bridge = attr_u32(rtlink.IFLA_MASTER, netns.index_of(sock, netns.BRIDGE))
            mtu = attr_u32(rtlink.IFLA_MTU, self._spec.mtu)
            for tap in taps:
                netns.inside(self._fabric, partial(_make_tap, tap))
            sock.request(rtlink.set_link(0, bridge, mtu, name=node), "set link", node)
            netns.bring_up(sock, node)
            netns.bring_up(sock, taps[1], IPv4Interface(f"169.254.{index}.1/30"))
        words = [*kernel_netns.exec_prefix(self._fabric), PROGRAM, *self._kernel_words(index, taps)]
        environment = {"PATH": os.environ.get("PATH", os.defpath), **processes.mark(self._spec.name)}
        environment["TMPDIR"] = _SHM if os.access(_SHM, os.W_OK) else str(folder)
        try:
            return {f"{node} kernel": processes.spawn(words, self._console_file(node), environment)}
        except LabError as exc:
            raise self._not_up(node, "ended") from exc

    def finish_nodes(self, nodes: Sequence[str], known: Mapping[str, ProcessId]) -> None:
        """Wait until their command servers take requests."""
        deadline = time.monotonic() + BOOT_S
        for node in nodes:
            while not self._up_file(node).exists():
                late = time.monotonic() > deadline
                if late or not known[f"{node} kernel"].alive():
                    raise self._not_up(node, f"is not up after {BOOT_S:g} s" if late else "ended")
                time.sleep(POLL_S)

    def remove_node(self, node: str, _pods: Sequence[str], known: Mapping[str, ProcessId]) -> None:
        """Kill the guest, as a power cut would; its pods are inside."""
        kernel, agent = known.get(f"{node} kernel"), known.get(node)
        mine = [item for item in (agent,) if item is not None and item.alive()]
        processes.kill(mine)
        if kernel is not None:
            fabric = netns.inodes([self._fabric])
            processes.end(
                lambda: set(processes.in_session(kernel.pid)) & set(processes.inside(fabric)),
            )
        with netns.socket_in(self._fabric) as sock:
            for tap in (node, f"control{topology.node_index(node)}"):
                sock.request(rtlink.del_link(name=tap), "delete link", tap)

    def space(self, _node: str) -> str:
        """A node has a kernel of its own."""
        return ""

    def home(self, _node: str) -> str:
        """In the guest's own memory."""
        return HOME

    # things done inside

    def prefix(self, node: str, namespace: str) -> list[str]:
        """The client that runs a command there; in the fabric's namespace, from where alone guests are reached.

        Raises LabError when the guest has ended.
        """
        self._require(node)
        client = [sys.executable, "-ISB", uml_channel.__file__, _address(node), str(CONTROL_PORT)]
        where = kernel_netns.path(namespace) if namespace else "-"
        return [*kernel_netns.exec_prefix(self._fabric), *client, where, "--"]

    def call(self, node: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Over a channel, by the function's name."""
        assert not kwargs, "arguments cross by position"
        channel = self._open(node, Call(function=function.__name__, arguments=args))
        try:
            frame = channel.receive()
        except OSError as exc:
            raise LabError(f"the guest of {node} does not answer: {exc.strerror or exc}") from exc
        finally:
            channel.close()
        if frame is None:
            raise LabError(f"the guest of {node} ended the connection; see {self._console_file(node)}")
        if frame[0] == FAILURE:
            raise_failure(frame[1])
        result: T = typed.decode(frame[1], typing.get_type_hints(function)["return"])
        return result

    def signal(self, node: str, process: ProcessId, number: int) -> None:
        """Signal the agent itself; the client here that stands for it ends with it."""
        if not self.call(node, uml_server.signal_for, process.pid, int(number)):
            raise LabError(f"the agent of {node} (client pid {process.pid}) is not known to its guest")
        if number in processes.FATAL:
            processes.wait([process])

    def probes(self, hosts: Sequence[Host], timeout: float) -> FarProbes:
        """A prober per guest."""
        groups: dict[str, list[Host]] = {}
        for host in hosts:
            groups.setdefault(host.node, []).append(host)
        open_probe = {
            node: partial(self._open, node, Probe(hosts=tuple(group), timeout=timeout))
            for node, group in groups.items()
        }
        return FarProbes(groups, open_probe)

    def traffic(self, node: str, namespace: str, address: str, interval: float) -> FarTraffic:
        """From a process in the guest."""
        path = kernel_netns.path(namespace) if namespace else ""
        return FarTraffic(partial(self._open, node), path, address, interval)

    def observe(self, node: str, order: Mapping[str, Any], namespaces: Mapping[str, str]) -> Channel:
        """Watch a guest's namespaces, given by space, for a trace: lines as values. Raises LabError.

        ``order``: ``tracing.eyes.Order`` as JSON has it.
        """
        return self._open(node, Observe(node=node, order=order, namespaces=namespaces))

    def _open(self, node: str, request: Request) -> Channel:
        """A channel with the request sent. Raises LabError."""
        self._require(node)
        try:
            sock = netns.inside(self._fabric, partial(socket.socket, socket.AF_INET, socket.SOCK_STREAM))
        except KernelError as exc:
            raise LabError(f"the guest of {node} does not answer: {exc}") from exc
        try:
            sock.settimeout(CONNECT_S)
            sock.connect((_address(node), CONTROL_PORT))
            sock.settimeout(CALL_S)
            channel = Channel(watchful(sock))
            channel.send(REQUEST, msgspec.json.encode(request))
        except OSError as exc:
            sock.close()
            raise LabError(f"the guest of {node} does not answer: {exc.strerror or exc}") from exc
        return channel

    def _require(self, node: str) -> None:
        """Raise LabError when the guest is known to have ended: nobody has to wait for that."""
        record = self._state.load()
        kernel = record.processes.get(f"{node} kernel") if record is not None else None
        if kernel is not None and not kernel.alive():
            raise LabError(f"the guest of {node} has ended; see {self._console_file(node)}")

    # starting

    def _kernel_words(self, index: int, taps: tuple[str, str]) -> list[str]:
        """Write what the guest is told, and give the words of its kernel's command line."""
        node = topology.node_name(index)
        folder = self._state.node_folder(node)
        modules = self._state.folder / "kernel"
        (modules / "lib").mkdir(parents=True, exist_ok=True)
        if not (modules / "lib/modules").is_symlink():
            (modules / "lib/modules").symlink_to(MODULES)
        config = GuestConfig(
            spec=self._spec,
            index=index,
            shared=str(self._state.folder),
            visible=tuple(dict.fromkeys([*processes.import_roots(), sys.prefix, sys.base_prefix])),
            modules=str(modules),
            address=f"{_address(node)}/30",
            port=CONTROL_PORT,
            up=str(self._up_file(node)),
        )
        file = folder / "guest.json"
        file.write_bytes(msgspec.json.encode(config))
        init = folder / "init"
        environment = processes.environment(self._spec.name)
        variables = [f"{key}={environment[key]}" for key in ("PYTHONPATH",)]
        words = [sys.executable, "-PB", "-m", "pycni.lab.uml_guest", str(file)]
        init.write_text(f"#!/bin/sh\nexec env {shlex.join([*variables, *words])}\n")
        init.chmod(0o755)
        # Without gro a guest drops what comes in segments still to be cut.
        devices = [
            f"vec{number}:transport=hybrid,ifname={tap},mtu={mtu},gro=1,mac=02:70:79:{number:02x}:00:{index:02x}"
            for number, (tap, mtu) in enumerate(zip(taps, (self._spec.mtu, 1500), strict=True))
        ]
        root = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}"]
        console = ["con=null", "con0=null,fd:1", "quiet", _NO_RAID_BENCHMARK]
        return [f"mem={MEMORY}", f"umid={node}", f"uml_dir={folder}", *root, *console, *devices]

    def _up_file(self, node: str) -> Path:
        return self._state.node_folder(node) / "guest.up"

    def _console_file(self, node: str) -> Path:
        return self._state.node_folder(node) / "console.log"

    def _not_up(self, node: str, what: str) -> LabError:
        """The error for a guest that is not there, with the end of what its kernel and process 1 printed."""
        text, _panic, _stack = self._console_file(node).read_text(errors="replace").partition("\nStack:\n")
        lines = text.splitlines()[-LOG_LINES:]
        console = "\n".join(f"  {line}" for line in lines)
        return LabError(f"the guest of {node} {what}; its console ends with:\n{console}")


def _address(node: str) -> str:
    """Of a guest's command server; the machine's end is one less."""
    return f"169.254.{topology.node_index(node)}.2"


def _make_tap(name: str) -> None:
    """A tap that stays when nobody has it open, in the calling thread's namespace. Raises KernelError."""
    try:
        with open("/dev/net/tun", "r+b", buffering=0) as file:
            request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
            fcntl.ioctl(file, _TUNSETIFF, request)
            fcntl.ioctl(file, _TUNSETPERSIST, 1)
    except OSError as exc:
        raise KernelError(exc.errno or 0, "make tap", name) from exc
