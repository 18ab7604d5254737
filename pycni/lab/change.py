"""``lab backend``: another backend for a running lab, node by node, with traffic that shows what it costs.

Life: the net-conf names the new backend, and every agent makes itself ready for it; then one agent after the other is
restarted, by which its node changes (``follow-backend`` is off in labs, see docs/backends.md). Meanwhile a pod of each
node pings a pod of every other one, and has a TCP connection to it; each step is measured for itself. With a lab whose
agents follow the net-conf at once there is one step for all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from pycni.lab import inside, processes
from pycni.lab.apply_tables import table
from pycni.lab.driver import Stream
from pycni.lab.leases import leases
from pycni.lab.modes import CLUSTER
from pycni.lab.report import Progress, writable
from pycni.lab.run import Lab
from pycni.lab.state import PodRecord
from pycni.lab.stream import StreamReport
from pycni.lab.topology import LabError
from pycni.lab.traffic import TrafficReport
from pycni.model.lease import LeaseAttrs
from pycni.wire import typed

PING_S = 0.01
CALM_S = 0.2
"""Traffic before and after each step, which has to be undisturbed."""
STEP_S = 90.0
"""Patience with one step."""
POLL_S = 0.05
BRIDGE = "cni0"
NET_CONF, ALL, OVER = "net-conf", "all nodes", "old one gone"
"""Steps that are no node's."""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """What one pair saw in one step."""

    source: str
    target: str
    address: str
    ping: TrafficReport
    tcp: StreamReport | None = None
    """Between this pair and in this family, where there is such a connection."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a change."""

    name: str
    seconds: float
    flows: tuple[Flow, ...]

    @property
    def sent(self) -> int:
        """Pings."""
        return sum(flow.ping.sent for flow in self.flows)

    @property
    def lost(self) -> int:
        """Pings without an answer."""
        return sum(flow.ping.lost for flow in self.flows)

    @property
    def longest_gap(self) -> float:
        """Longest time any pair was without an answered ping, in seconds."""
        return max((flow.ping.longest_gap for flow in self.flows), default=0.0)

    @property
    def longest_stall(self) -> float:
        """Longest time any TCP connection stood still, in seconds."""
        return max((flow.tcp.longest_gap_s for flow in self.flows if flow.tcp), default=0.0)

    @property
    def broken(self) -> list[str]:
        """Connections that did not survive."""
        return [
            f"TCP {flow.source} -> {flow.target} ({flow.address}): {flow.tcp.error}"
            for flow in self.flows
            if flow.tcp is not None and flow.tcp.error
        ]

    def json(self) -> dict[str, Any]:
        """Of the object ``lab backend --json`` prints."""
        return {
            "step": self.name,
            "seconds": round(self.seconds, 3),
            "sent": self.sent,
            "lost": self.lost,
            "longest_gap_ms": round(self.longest_gap * 1000, 1),
            "longest_stall_ms": round(self.longest_stall * 1000, 1),
            "broken": self.broken,
        }


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it."""

    before: str
    after: str
    steps: tuple[Step, ...]
    mtus: tuple[int, int]
    """Of pods, before and after."""

    @property
    def ok(self) -> bool:
        """Whether every connection survived."""
        return not any(step.broken for step in self.steps)

    @property
    def lost(self) -> int:
        """Pings without an answer."""
        return sum(step.lost for step in self.steps)

    def json(self) -> dict[str, Any]:
        """The object ``lab backend --json`` prints."""
        return {
            "from": self.before,
            "to": self.after,
            "ok": self.ok,
            "lost": self.lost,
            "mtu": list(self.mtus),
            "steps": [step.json() for step in self.steps],
        }


def change(
    lab: Lab,
    kind: str,
    node: str | None = None,
    keys: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Change:
    """Change the backend of all nodes, or of one. Raises LabError when a step does not come to its end.

    ``keys`` are more of the net-conf's ``Backend`` object. With ``node`` the others are only made ready.
    """
    progress = progress or Progress(quiet=True)
    before, mtu = lab.spec.backend, _mtu(lab)
    nodes = [lab.node(node).name] if node is not None else [item.name for item in lab.nodes()]
    steps: list[Step] = []

    def step(name: str, job: Callable[[], None], done: Callable[[], str]) -> None:
        text = {NET_CONF: f"net-conf: {kind}, every node ready for it"}.get(name, f"{name}: {kind}")
        with progress.step(text):
            steps.append(_measured(lab, name, tcp, job, done))

    everywhere = [item.name for item in lab.nodes()]
    with _connections(lab) as tcp:
        if before != kind or keys:
            step(
                ALL if lab.spec.follow_backend else NET_CONF,
                partial(lab.set_backend, kind, keys or {}),
                partial(_reached_by, lab, kind, nodes)
                if lab.spec.follow_backend
                else partial(_ready_for, lab, kind),
            )
        for name in [] if lab.spec.follow_backend else nodes:
            step(name, partial(_restart, lab, name), partial(_reached_by, lab, kind, [name]))
        if not _reached_by(lab, kind, everywhere):
            step(OVER, lambda: None, partial(_alone, lab, kind))
    return Change(before=before, after=kind, steps=tuple(steps), mtus=(mtu, _mtu(lab)))


def backend(args: argparse.Namespace) -> int:
    """The command."""
    lab = Lab.open(args.name)
    found = change(lab, args.type, args.node, args.backend_conf, Progress(quiet=args.json))
    if args.json:
        json.dump({"name": args.name, **found.json()}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        print(writable(f"\n{tell(found)}", sys.stdout))
    return 0 if found.ok else 1


def tell(found: Change) -> str:
    """For people: a line per step, and what it comes to."""
    rows: list[Sequence[str]] = [("STEP", "SECONDS", "PINGS", "LOST", "LONGEST GAP", "TCP STOOD STILL")]
    rows += [
        (
            step.name,
            f"{step.seconds:.1f}",
            str(step.sent),
            str(step.lost),
            f"{step.longest_gap * 1000:.0f} ms",
            f"{step.longest_stall * 1000:.0f} ms" if not step.broken else "BROKEN",
        )
        for step in found.steps
    ]
    lines = [table(rows).rstrip(), *(broken for step in found.steps for broken in step.broken)]
    if found.mtus[0] != found.mtus[1]:
        lines.append("MTU of pods, running ones too: {} in place of {}".format(*reversed(found.mtus)))
    if not found.steps:
        lines.append(f"the backend is {found.after} already")
    return "\n".join(lines)


# traffic


def _pairs(lab: Lab) -> list[tuple[PodRecord, PodRecord]]:
    """A pod of each node with one of every other node, once. Raises LabError when a node has none."""
    first: dict[str, PodRecord] = {}
    for pod in _members(lab):
        first.setdefault(pod.node, pod)
    bare = [node.name for node in lab.nodes() if node.name not in first]
    if bare:
        raise LabError(
            f"{', '.join(bare)} without a pod: nothing to measure with; add one with pod add --node"
        )
    return list(itertools.combinations((first[node.name] for node in lab.nodes()), 2))


def _members(lab: Lab) -> list[PodRecord]:
    """Pods of the cluster's network."""
    return [pod for pod in lab.pods() if pod.ips and pod.network == CLUSTER]


def _flows(lab: Lab) -> list[tuple[str, str, str]]:
    """(from, to, address) of all pings: every pair in every family."""
    return [(one.name, two.name, address) for one, two in _pairs(lab) for address in two.ips]


def _measured(
    lab: Lab,
    name: str,
    tcp: Mapping[tuple[str, str, str], Connection],
    job: Callable[[], None],
    done: Callable[[], str],
) -> Step:
    """Do something under traffic and wait until it is done. Raises LabError telling what it waits for."""
    with contextlib.ExitStack() as stack:
        streams: dict[tuple[str, str, str], Stream] = {}
        for flow in _flows(lab):
            streams[flow] = stack.enter_context(lab.traffic(flow[0], flow[2], PING_S))
        for (source, target, address), stream in streams.items():
            if not stream.wait_answered(5, STEP_S / 3):
                raise LabError(f"no ping from {source} to {target} ({address}) is answered")
        for connection in tcp.values():
            connection.report()
        time.sleep(CALM_S)
        started = time.monotonic()
        job()
        while reason := done():
            if time.monotonic() > started + STEP_S:
                raise LabError(f"{name}: {reason}, after {STEP_S:g} s")
            time.sleep(POLL_S)
        seconds = time.monotonic() - started
        time.sleep(CALM_S)
        for (source, target, address), stream in streams.items():
            if not stream.wait_answered(5, STEP_S / 3):
                raise LabError(f"{name}: no ping from {source} to {target} ({address}) is answered any more")
        said = {flow: connection.report() for flow, connection in tcp.items()}
    flows = [
        Flow(source=flow[0], target=flow[1], address=flow[2], ping=stream.report(), tcp=said.get(flow))
        for flow, stream in streams.items()
    ]
    return Step(name=name, seconds=seconds, flows=tuple(flows))


class Connection:
    """A TCP connection between two pods, with a program at each end."""

    def __init__(self, stack: contextlib.ExitStack, lab: Lab, source: str, target: str, address: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(processes.import_roots())}
        self._what = f"{source} -> {target} ({address})"

        def start(pod: str, *words: str) -> subprocess.Popen[bytes]:
            argv = lab.exec_argv(pod, [sys.executable, "-P", "-m", "pycni.lab.stream", *words])
            made = subprocess.Popen(argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.callback(_end, made)
            return made

        port = self._line(start(target, "serve", address)).strip().decode()
        self._sender = start(source, "send", address, port)
        self._line(self._sender)

    def report(self) -> StreamReport:
        """What became of it since the last time. Raises LabError."""
        assert self._sender.stdin is not None, "a pipe was asked for"
        try:
            self._sender.stdin.write(b"\n")
            self._sender.stdin.flush()
        except BrokenPipeError:
            raise LabError(f"the sender of {self._what} has ended") from None
        return typed.decode(self._line(self._sender), StreamReport)

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        assert process.stdout is not None, "a pipe was asked for"
        line = process.stdout.readline()
        if not line:
            raise LabError(f"no TCP connection {self._what}")
        return line


@contextlib.contextmanager
def _connections(lab: Lab) -> Iterator[Mapping[tuple[str, str, str], Connection]]:
    """A connection for each pair, the families in turn."""
    with contextlib.ExitStack() as stack:
        made: dict[tuple[str, str, str], Connection] = {}
        for number, (one, two) in enumerate(_pairs(lab)):
            address = two.ips[number % len(two.ips)]
            made[one.name, two.name, address] = Connection(stack, lab, one.name, two.name, address)
        yield made


def _end(process: subprocess.Popen[bytes]) -> None:
    """End one of our programs and forget it."""
    assert process.stdin is not None, "a pipe was asked for"
    assert process.stdout is not None, "a pipe was asked for"
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


# nodes


def _restart(lab: Lab, node: str) -> None:
    """SIGTERM and a new agent; the kernel carries the packets meanwhile."""
    if lab.agent(node) is not None:
        lab.signal_agent(node, signal.SIGTERM)
    lab.start_agent(node)


def _mtu(lab: Lab) -> int:
    """Of new pods."""
    return min((network.mtu for node in lab.nodes() if (network := node.pod_network())), default=0)


def _ready_for(lab: Lab, kind: str) -> str:
    """Which nodes are not equipped for a backend, "" when all are."""
    return _lacking(lab, "not ready for", kind, lambda attrs: kind in attrs.types)


def _reached_by(lab: Lab, kind: str, nodes: Sequence[str]) -> str:
    """Which of these nodes are reached by another backend, "" when none is."""
    return _lacking(lab, "not reached by", kind, lambda attrs: attrs.way == kind, nodes)


def _alone(lab: Lab, kind: str) -> str:
    """Which nodes still have another backend besides, or pods of another MTU; "" when none has."""
    return _lacking(lab, "not alone with", kind, lambda attrs: attrs.types == (kind,)) or _other_mtu(lab)


def _other_mtu(lab: Lab) -> str:
    """Which pods do not have the MTU their node promises; "" when all have."""
    wrong = []
    for node in lab.nodes():
        network = node.pod_network()
        spaces = [(pod.name, pod.namespace, pod.interface) for pod in _members(lab) if pod.node == node.name]
        for name, space, link in [*spaces, (f"bridge of {node.name}", node.namespace, BRIDGE)]:
            mtu = node.driver.call(node.name, inside.mtu_of, space, link)
            if network is not None and mtu not in {
                0,
                network.mtu,
            }:  # no such link: pods have ones of their own
                wrong.append(name)
    return f"another MTU than the network's: {', '.join(wrong)}" if wrong else ""


def _lacking(
    lab: Lab, what: str, kind: str, right: Callable[[LeaseAttrs], bool], nodes: Sequence[str] | None = None
) -> str:
    told = leases(lab.spec, lab.nodes())
    wanted = nodes if nodes is not None else [node.name for node in lab.nodes()]
    missing = [name for name in wanted if name not in told or not right(told[name])]
    return f"{', '.join(missing)} {what} {kind}" if missing else ""
