"""Agents with policies and without kernels, on control sockets: what ``pycnictl policy`` and ``drops`` are tried on."""

from __future__ import annotations

import contextlib
import socket

from pycni import cli
from pycni.policy.base import Dataplane
from pycni.policy.engine import PolicyEngine
from pycni.policy.nft.compile import NftCompiler
from pycni.policy.report import Routes
from tests.unit.policy_world import cluster, policy

POLICIES = (
    policy("web", "podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 80}, {port: serve-81-tcp}]}]")
    + policy("out", "podSelector: {matchLabels: {pod: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.9.0.0/16]}}]}]")
    + policy("none", "podSelector: {matchLabels: {pod: b}}, ingress: []", space="y")
    + cluster("guard", "ingress: [{action: Deny, name: no-z, from: [{namespaces: {matchLabels: {ns: z}}}]}, {action: Pass, from: [{nodes: {}}]}]", priority=3)
)  # fmt: skip


class FakeDriver:
    """A kernel that has what was compiled, until ``broken``."""

    def __init__(self, names):
        self.tables, self.counts = {name: {} for name in names}, []

    def read(self):
        return {name: dict(rows) for name, rows in self.tables.items()}

    def apply(self, changes):
        for name, delta in changes:
            table = self.tables[name]
            for key in delta.remove:
                table.pop(key, None)
            table.update({**delta.add, **delta.change})

    def denied(self):
        return self.counts


class FakeReader:
    """A source of drops that a test writes into."""

    def __init__(self, drops=()):
        self.ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self.drops, self.lost, self.closed = list(drops), 0, False
        self.ours.send(b"x")

    def fileno(self):
        return self._theirs.fileno()

    def read(self):
        with contextlib.suppress(BlockingIOError):
            self._theirs.recv(100)
        found, self.drops = self.drops, []
        return found

    def close(self):
        self.closed = True
        self.ours.close()
        self._theirs.close()


def engine_of(node, objects):
    compiler = NftCompiler()
    engine = PolicyEngine(node, Dataplane("nftables", compiler, FakeDriver(compiler.tables)))
    engine.sync(Frozen(objects))
    return engine


class Frozen:
    """Objects as the store gives them."""

    def __init__(self, objects):
        self._objects = objects

    def of(self, kind):
        return self._objects.get(kind, {})

    def frozen(self):
        return self


async def at_once(job):
    return job()


def routes_of(node, engine, objects, **more):
    return Routes(node, lambda: engine, lambda: Frozen(objects), at_once, **more)


def pycnictl(capsys, *words):
    try:
        code = cli.main(list(words))
    except SystemExit as exc:
        code = exc.code
    found = capsys.readouterr()
    assert "\033" not in found.out
    assert not any(line.endswith(" ") for line in found.out.split("\n"))
    return code, found.out, found.err
