"""Makes the cases of tests: who knocks where in which family, and what is expected. Pure.

Life: one ``Cases`` for a whole check; the numbers of its tasks go on from test to test.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from pycni.check import objects
from pycni.check.model import (
    HOST_PORT,
    POD,
    PORT,
    SILENCE_S,
    Case,
    Expect,
    Host,
    Scene,
    Task,
)
from pycni.model.family import Family

MESH = 6
"""Nodes up to which each is tried with each."""
SERVERS = ("tcp", "udp")


class Door(NamedTuple):
    """What is knocked at."""

    target: str
    """For people."""
    family: Family
    host: str
    port: int = 0


class Cases:
    """Makes cases with numbers of their own."""

    def __init__(self, scene: Scene) -> None:
        self.scene, self.site = scene, scene.site
        self._numbers = itertools.count(1)
        pods = scene.pods
        self.a, self.b, self.c = (pods[name] for name in objects.FIRST)
        self.far = [pods[name] for name in objects.far(scene.site)]
        self.first = scene.site.nodes[0]

    def each(
        self,
        pairs: Iterable[tuple[Host, Host]],
        kinds: Sequence[str],
        expect: Expect | None = None,
    ) -> Iterator[Case]:
        """Every pair in every family by every kind."""
        for source, target in pairs:
            port = PORT if target.kind == POD else HOST_PORT
            names = (target.name,) if target.kind == POD else ()
            want = expect or Expect(who=names)
            for family in self.site.families:
                if family in source.addresses and family in target.addresses:
                    for kind in kinds:
                        at = target.addresses[family]
                        asked = want if kind in SERVERS else msgspec.structs.replace(want, who=(), seen=())
                        yield self.case(source, Door(target.name, family, at, port), kind, asked)

    def case(self, source: Host, door: Door, kind: str, expect: Expect, *, count: int = 1) -> Case:
        """One."""
        target, family, host, port = door
        task = Task(
            number=next(self._numbers),
            kind=kind,
            host=host,
            port=port if kind in {*SERVERS, "bulk", "reach"} else 0,
            family=int(family) if kind == "name" else 0,
            count=count,
            wait_s=SILENCE_S if expect.denied else self.site.answer_s,
            patience_s=self.site.patience_s,
            silence=expect.denied,
        )
        return Case(source=source, target=target, family=family, task=task, expect=expect)

    # --- who with whom

    def between_nodes(self) -> list[tuple[Host, Host]]:
        """Pods of different nodes, both ways."""
        hosts = [self.a, *self.far]
        if len(hosts) <= MESH:
            return list(itertools.permutations(hosts, 2))
        ring = list(zip(hosts, [*hosts[1:], hosts[0]], strict=True))
        return [*ring, *((two, one) for one, two in ring)]

    def own_node(self) -> list[tuple[Host, Host]]:
        """Each node's pod with its node."""
        return list(zip([self.a, *self.far], self.site.nodes, strict=True))

    def next_node(self) -> list[tuple[Host, Host]]:
        """Each node's pod with the node after it."""
        nodes = self.site.nodes
        return list(zip([self.a, *self.far], [*nodes[1:], nodes[0]], strict=True)) if self.far else []

    # --- Services

    def addresses(self, name: str) -> dict[Family, str]:
        """A Service's cluster addresses."""
        found = self.scene.services.get(name, {}).get("clusterIPs") or ()
        return {Family.V6 if ":" in ip else Family.V4: ip for ip in found if ip != "None"}

    def served(
        self,
        name: str,
        sources: Iterable[Host],
        expect: Expect,
        kinds: Sequence[str] = SERVERS,
        count: int = 1,
    ) -> Iterator[Case]:
        """A Service by its cluster addresses."""
        for source, (family, address) in itertools.product(sources, self.addresses(name).items()):
            if family in source.addresses:
                for kind in kinds:
                    door = Door(f"Service {name}", family, address, 80)
                    yield self.case(source, door, kind, expect, count=count)

    def node_ports(self, sources: Iterable[Host], nodes: Iterable[Host], expect: Expect) -> Iterator[Case]:
        """Service ``all`` by the nodes' addresses."""
        ports = {
            item["protocol"].lower(): item.get("nodePort", 0)
            for item in self.scene.services.get(objects.ALL, {}).get("ports", ())
        }
        families = self.addresses(objects.ALL)
        for source, node in itertools.product(sources, nodes):
            for family in families:
                if family in node.addresses and family in source.addresses:
                    for kind in SERVERS:
                        at = Door(
                            f"Service all at {node.name}", family, node.addresses[family], ports.get(kind, 0)
                        )
                        yield self.case(source, at, kind, expect)

    @property
    def servers(self) -> tuple[str, ...]:
        """Everybody behind Service ``all``."""
        return tuple(self.scene.pods)
