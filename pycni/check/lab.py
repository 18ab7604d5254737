"""A check in a lab: pods by the lab's own machinery, the check's program in them by the lab's way to run commands.

Life: ``bring`` applies the manifests as ``lab apply`` does and starts a server in each pod, each node and outside;
``ask`` runs the program once per asker. Servers end with their standard input, so that they do not outlive a check that
is killed; ``clear`` deletes the namespace.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from pycni.check import objects, peer
from pycni.check.model import (
    HOST_PORT,
    NAMESPACE,
    NODE,
    OUTSIDE,
    POD,
    PORT,
    Answer,
    Case,
    Failure,
    Host,
    Result,
    Scene,
    Site,
)
from pycni.errors import PycniError
from pycni.lab import attachments, survey, topology
from pycni.lab.apply import Cluster
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import LabError
from pycni.lab.tracing import LabEyes
from pycni.model.family import Family
from pycni.trace.model import Trace
from pycni.tracing import course
from pycni.wire import typed

START_S = 30.0
"""Patience with a server's start: guests are slow."""
ASK_S = 60.0
PING_S = 0.005
RESTART = "agent-restart"
_PYTHON = [sys.executable, "-I", "-S", peer.__file__]


class LabGround:
    """See ``ground.Ground``."""

    def __init__(self, lab: Lab, *, nodes: Sequence[str] = ()) -> None:
        """``nodes``: only these; none: all."""
        self._lab = lab
        self._nodes = [lab.node(name) for name in nodes] if nodes else lab.nodes()
        self._cluster = Cluster(lab)
        self._servers: list[subprocess.Popen[str]] = []

    def site(self) -> Site:
        """See ``ground.Ground``."""
        spec = self._lab.spec
        nodes = tuple(
            Host(
                name=node.name,
                kind=NODE,
                node=node.name,
                addresses={family: str(item.ip) for family, item in node.addresses.items()},
            )
            for node in self._nodes
        )
        client = None
        if spec.has_client:
            reached = {family: str(topology.client_address(family).ip) for family in spec.families}
            client = Host(name=OUTSIDE, kind=OUTSIDE, addresses=reached)
        return Site(
            name=f"lab {spec.name}",
            nodes=nodes,
            families=spec.families,
            left_out=len(self._lab.record.nodes) - len(nodes),
            services=spec.proxy != "none",
            policies=spec.policy != "none",
            dns=topology.DNS_DOMAIN if spec.proxy != "none" else "",
            outside=client,
            outside_is_ours=client is not None,
            beside_node=attachments.ATTACHMENTS[spec.attach].underlay,
            patience_s=3.0,
            restarts=True,
        )

    def bring(self) -> Scene:
        """See ``ground.Ground``."""
        self._drop()
        site = self.site()
        where = objects.pods(site)
        values = [objects.namespace(), *(objects.services() if site.services else ())]
        values += [objects.pod(name, node, containers=[{"name": "server"}]) for name, node in where.items()]
        self._cluster.apply([("the check", value) for value in values])
        survey.greet(self._lab.spec, self._lab.nodes())
        pods = {name: self._pod(name, node) for name, node in where.items()}
        places = [(name, self._place(host), PORT) for name, host in pods.items()]
        places += [(node.name, node.name, HOST_PORT) for node in site.nodes]
        if site.outside_is_ours:
            places.append((OUTSIDE, topology.CLIENT, HOST_PORT))
        self._serve(places)
        found = self._cluster.objects()
        names = (objects.ALL, objects.OWN, objects.STICKY, objects.HEADLESS) if site.services else ()
        services = {name: found[Key("Service", NAMESPACE, name)]["spec"] for name in names}
        return Scene(site=site, pods=pods, services=services)

    def police(self, policies: Sequence[dict[str, Any]]) -> None:
        """See ``ground.Ground``."""
        self._cluster.apply([("the check", value) for value in policies])

    def ask(self, cases: Sequence[Case]) -> dict[int, Answer]:
        """See ``ground.Ground``."""
        by_source: dict[str, list[Case]] = {}
        for case in cases:
            by_source.setdefault(self._place(case.source), []).append(case)
        running: list[subprocess.Popen[str]] = []
        answers: dict[int, Answer] = {}
        try:
            for place, mine in by_source.items():
                tasks = msgspec.json.encode([case.task for case in mine]).decode()
                words = self._lab.exec_argv(place, [*_PYTHON, "ask", tasks])
                running.append(
                    subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                )
            end = time.monotonic() + ASK_S
            for process in running:
                with contextlib.suppress(subprocess.TimeoutExpired, msgspec.DecodeError):
                    said, _ = process.communicate(timeout=max(end - time.monotonic(), 0.1))
                    answers |= {item.number: item for item in unpacked(said)}
        finally:
            for process in running:
                _end(process)
        return answers

    def trace(self, source: str, target: str, protocol: str) -> Trace | None:
        """See ``ground.Ground``."""
        asked = course.Asked(source, target, protocol)
        return course.trace(LabEyes(self._lab), asked, time.perf_counter())

    def restart(self, scene: Scene) -> Result:
        """See ``ground.Ground``: SIGTERM and a new agent, pings all the while."""
        pods = list(scene.pods.values())
        source, target = pods[0], pods[-1]
        node, address = source.node, next(iter(target.addresses.values()))
        with self._lab.traffic(self._place(source), address, PING_S) as stream:
            stream.wait_answered(10)
            if self._lab.agent(node) is not None:
                self._lab.signal_agent(node, signal.SIGTERM)
            self._lab.start_agent(node)
            stream.wait_answered(10)
        report = stream.report()
        lost = f"{report.sent} pings, {report.lost} lost"
        failures = (
            (Failure(case=f"{source.name} ({node}) -> {target.name}, ping {address}", reason=lost),)
            if report.lost
            else ()
        )
        return Result(
            name=RESTART,
            about=f"restarting the agent of {node} costs no packet",
            status="failed" if failures else "ok",
            tried=1,
            slowest_ms=report.longest_gap * 1000,
            failures=failures,
            note=lost,
        )

    def clear(self) -> list[str]:
        """See ``ground.Ground``."""
        while self._servers:
            _end(self._servers.pop())
        try:
            self._drop()
        except PycniError as error:
            return [f"not everything could be removed: {error}"]
        return []

    def _drop(self) -> None:
        """Delete the namespace with everything in it, where it is."""
        key = Key("Namespace", "", NAMESPACE)
        if key in self._cluster.objects():
            self._cluster.delete([key], 0.0)
        for pod in self._lab.pods():  # of one that was cut off before they were objects
            if topology.pod_key(pod.name)[0] == NAMESPACE:
                self._lab.remove_pod(pod.name, force=True)

    def _pod(self, name: str, node: str) -> Host:
        record = self._lab.pod(topology.pod_name(NAMESPACE, name))
        reached = {Family.V6 if ":" in ip else Family.V4: ip for ip in record.ips}
        return Host(name=name, kind=POD, node=node, addresses=reached)

    def _place(self, host: Host) -> str:
        """What the lab calls it."""
        if host.kind == POD:
            return topology.pod_name(NAMESPACE, host.name)
        return topology.CLIENT if host.kind == OUTSIDE else host.name

    def _serve(self, places: Iterable[tuple[str, str, int]]) -> None:
        """Start servers, (name, the lab's name, port), and wait until all of them listen. Raises LabError."""
        starting = []
        for name, place, port in places:
            words = self._lab.exec_argv(place, [*_PYTHON, "serve", name, str(port), "attached"])
            process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            self._servers.append(process)
            starting.append((place, process))
        for place, process in starting:
            assert process.stdout is not None, "a pipe was asked for"
            assert process.stderr is not None, "a pipe was asked for"
            if process.stdout.readline().strip() != "ready":
                why = process.stderr.read().strip().splitlines()[-1:]
                raise LabError(f"no server in {place}: {' '.join(why)}")


def unpacked(text: str) -> list[Answer]:
    """What ``peer.packed`` has packed. Raises msgspec.DecodeError."""
    return typed.decode(peer.unpacked(text), list[Answer])


def _end(process: subprocess.Popen[str]) -> None:
    """End a process of ours and forget it."""
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
