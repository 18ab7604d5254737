"""What the nodes of a lab are made of, behind one interface.

Life: every lab command makes the driver its specification names (``of``); a driver holds no state of its own, what it
needs follows from the specification, the lab's folder and its record. The fabric (bridge and etcd) is a namespace of
this machine with either driver; a node is another one, or a User-Mode Linux guest whose pods are namespaces inside.

``node`` is a node's name; ``namespace`` a name below /run/netns on that node's kernel, where "" is the node itself if
it has a kernel of its own (``space`` tells).
"""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar

from pycni.errors import KernelError
from pycni.kernel import bpf_places
from pycni.kernel import netns as kernel_netns
from pycni.lab import attachments, backends, netns, processes, topology
from pycni.lab.checks import Check
from pycni.lab.probe import Prober
from pycni.lab.processes import ProcessId
from pycni.lab.state import LabState
from pycni.lab.stations import Host
from pycni.lab.topology import LabError, LabSpec
from pycni.lab.traffic import Traffic, TrafficReport

P = ParamSpec("P")
T = TypeVar("T")


class Probes(Protocol):
    """Checks between a fixed set of hosts, wherever they are."""

    def run(self, checks: Iterable[Check]) -> dict[Check, str]:
        """Try all checks. The value is "" for success, else why it failed, in words."""


class Stream(Protocol):
    """A steady stream of pings."""

    def wait_answered(self, count: int, timeout: float = 5.0) -> bool:
        """Wait until ``count`` more answers have come; whether they did."""

    def report(self) -> TrafficReport:
        """The outcome; final after the block has been left."""


class Driver(Protocol):
    """Makes nodes and does things inside them."""

    waiting: str
    """What ``finish_nodes`` waits for, to tell people; "" when it does not."""
    poll_s: float
    """Seconds between looks at nodes that something is waited for of: a look takes their time too."""

    def __init__(self, spec: LabSpec, state: LabState) -> None: ...

    def prepare(self) -> None:
        """Look whether its nodes can do what the lab wants, before any is made. Raises LabError, KernelError."""

    def begin_node(self, index: int) -> Mapping[str, ProcessId]:
        """Start making a node; returns the processes it consists of, by name. Raises KernelError, LabError."""

    def finish_nodes(self, nodes: Sequence[str], known: Mapping[str, ProcessId], /) -> None:
        """Wait until begun nodes can be used; ``known`` are the lab's processes. Raises LabError."""

    def remove_node(self, node: str, pods: Sequence[str], known: Mapping[str, ProcessId], /) -> None:
        """Switch a node off at once, with the namespaces of its pods. Raises LabError, KernelError."""

    def space(self, node: str) -> str:
        """Namespace of the node itself, "" when it has a kernel of its own."""

    def home(self, node: str) -> str:
        """Folder for what only the node's own programs read and write."""

    def prefix(self, node: str, namespace: str, /) -> list[str]:
        """Words before a command that run it in a namespace of the node, with our environment and streams."""

    def call(self, node: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """A function of ``inside`` on the node's kernel. Raises what the function raises, LabError."""

    def signal(self, node: str, process: ProcessId, number: int, /) -> None:
        """Signal the node's agent; SIGTERM and SIGKILL wait for its end. Raises LabError."""

    def probes(self, hosts: Sequence[Host], timeout: float) -> AbstractContextManager[Probes]:
        """What tries checks between these hosts."""

    def traffic(
        self, node: str, namespace: str, address: str, interval: float, /
    ) -> AbstractContextManager[Stream]:
        """Pings to an address from a namespace of the node every ``interval`` seconds."""


class NetnsDriver:
    """Nodes are namespaces of this kernel, like their pods."""

    waiting = ""
    poll_s = 0.02

    def __init__(self, spec: LabSpec, state: LabState) -> None:
        self._spec = spec
        self._state = state

    def prepare(self) -> None:
        """The kernel has to have all kinds of devices, or a program that stands in for them."""
        spec = self._spec
        backend, attachment = backends.of(spec.backend), attachments.ATTACHMENTS[spec.attach]
        wanted = [
            ("attach", spec.attach, attachment.link, ""),
            ("backend", spec.backend, backend.link, backend.program),
        ]
        for flag, value, link, program in wanted:
            if not link or (program and shutil.which(program)):
                continue
            if not netns.has_link_kind(topology.fabric_namespace(spec.name), link):
                instead = f", and there is no program {program}" if program else ""
                other = "; take --driver uml" if flag == "backend" and not backend.guests else ""
                text = f"--{flag} {value!r}: this kernel has no {link} devices{instead}{other}"
                raise LabError(text, usage=True)

    def begin_node(self, index: int) -> Mapping[str, ProcessId]:
        """It is complete at once and has no process."""
        netns.make_node(self._spec, index)
        return {}

    def finish_nodes(self, nodes: Sequence[str], _known: Mapping[str, ProcessId]) -> None:
        """They are; when there are many they get to know each other."""
        netns.introduce(self._spec, nodes)

    def remove_node(self, node: str, pods: Sequence[str], known: Mapping[str, ProcessId]) -> None:
        """End what runs in the namespaces and remove them."""
        spaces = [self.space(node), *pods]
        agent = known.get(node)
        processes.end(
            lambda: [
                *processes.inside(netns.inodes(spaces)),
                *([agent] if agent is not None and agent.alive() else ()),
            ]
        )
        # Programs of its agent stay in the kernel without it, and after this nobody could tell whose they are.
        with contextlib.suppress(KernelError):
            bpf_places.remove_node(kernel_netns.path(self.space(node)))
        for space in spaces:
            kernel_netns.delete(space)

    def space(self, node: str) -> str:
        """A namespace of this machine."""
        return topology.node_namespace(self._spec.name, node)

    def home(self, node: str) -> str:
        """The node's folder: all nodes share the machine's files."""
        return str(self._state.node_folder(node))

    def prefix(self, _node: str, namespace: str) -> list[str]:
        """nsenter, which execs."""
        return kernel_netns.exec_prefix(namespace)

    def call(self, _node: str, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Right here."""
        return function(*args, **kwargs)

    def signal(self, _node: str, process: ProcessId, number: int) -> None:
        """The process is on this machine."""
        processes.kill([process], number)

    def probes(self, hosts: Sequence[Host], timeout: float) -> Prober:
        """One process opens its sockets in all namespaces."""
        return Prober(hosts, timeout)

    def traffic(self, _node: str, namespace: str, address: str, interval: float) -> Traffic:
        """From a thread of this process."""
        return Traffic(kernel_netns.path(namespace), address, interval)


_DRIVERS = {"netns": "pycni.lab.driver:NetnsDriver", "uml": "pycni.lab.uml:UmlDriver"}
"""By their names in the specification; imported when asked for."""


def of(spec: LabSpec, state: LabState) -> Driver:
    """The driver of a lab."""
    module, _colon, name = _DRIVERS[spec.driver].partition(":")
    kind: type[Driver] = getattr(importlib.import_module(module), name)
    return kind(spec, state)
