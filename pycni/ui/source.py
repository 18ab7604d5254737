"""Where the view's data is from: a lab's nodes, or a cluster's through its agents.

Life: one ``Source`` for one ``pycnictl ui``. Each call looks anew, from whatever thread; nothing is kept here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec

from pycni import cli_trace_eyes
from pycni.cli_agent import Agent, AgentError, of_lab
from pycni.kernel import linkcounts
from pycni.kernel.linkcounts import LinkCount
from pycni.lab import netns, topology
from pycni.lab.run import Lab
from pycni.lab.tracing import LabEyes, by_agents
from pycni.tracing import speech
from pycni.tracing.ask import Door, unix
from pycni.tracing.cluster import ClusterEyes, of_agent
from pycni.tracing.eyes import Eyes, Gathered, NodeEyes
from pycni.ui.model import Peer
from pycni.wire import typed

T = TypeVar("T")
AT_ONCE = 16
"""Agents asked side by side."""


class Source(Protocol):
    """A lab or a cluster."""

    @property
    def title(self) -> str:
        """What is looked at, for people."""

    def eyes(self, words: Sequence[str] = ()) -> Eyes:
        """For looking, and for a trace between two ends as they are typed. Raises PycniError."""

    def agents(self) -> Sequence[Agent]:
        """Those that can be asked. Raises PycniError."""

    def counts(self) -> Mapping[str, LinkCount]:
        """Of interfaces, by ``NODE/DEVICE``. Raises PycniError."""

    def outside(self) -> Sequence[Peer]:
        """Who is outside and known without asking agents. Raises PycniError."""


class LabSource:
    """A lab by its name."""

    def __init__(self, name: str) -> None:
        """Raises LabError when there is none."""
        self._name = name
        self.title = f"lab {self._lab().spec.name}"

    def _lab(self) -> Lab:
        """Anew each time: nodes come and go."""
        return Lab.open(self._name)

    def eyes(self, words: Sequence[str] = ()) -> Eyes:  # noqa: ARG002 - a lab is looked at as a whole
        """See ``Source``."""
        return LabEyes(self._lab())

    def agents(self) -> Sequence[Agent]:
        """See ``Source``."""
        lab = self._lab()
        return [of_lab(lab, node) for node in lab.record.nodes]

    def counts(self) -> Mapping[str, LinkCount]:
        """See ``Source``: of namespaces; of nodes with kernels of their own nothing is counted."""
        found = {}
        for node in self._lab().nodes():
            if node.namespace:
                for name, count in netns.inside(node.namespace, linkcounts.read).items():
                    found[f"{node.name}/{name}"] = count
        return found

    def outside(self) -> Sequence[Peer]:
        """See ``Source``: the lab's client."""
        spec = self._lab().spec
        if not spec.has_client:
            return []
        addresses = [str(topology.client_address(family).ip) for family in spec.families]
        facts = (("addresses", ", ".join(addresses)), ("what", "somebody outside the cluster"))
        return [Peer(address=addresses[0], name=topology.CLIENT, facts=facts)]


class AgentsSource:
    """A cluster, or a lab, through its agents; nothing is looked at here."""

    def __init__(
        self, title: str, eyes: Callable[[Sequence[str]], ClusterEyes], agents: Sequence[Agent]
    ) -> None:
        """``eyes``: for a trace between two ends, none: all. ``agents``: whose control sockets can be asked."""
        self.title = title
        self._eyes, self._agents = eyes, agents

    def eyes(self, words: Sequence[str] = ()) -> Eyes:
        """See ``Source``."""
        eyes = self._eyes(words)
        return eyes if words else Whole(eyes)

    def agents(self) -> Sequence[Agent]:
        """See ``Source``: policies, denied packets and BGP are known of these only."""
        return self._agents

    def counts(self) -> Mapping[str, LinkCount]:
        """See ``Source``."""
        return self._eyes(()).counts()

    def outside(self) -> Sequence[Peer]:
        """See ``Source``: nobody is known without asking."""
        return []


class Whole:
    """Eyes for everything, where others see what a question is about."""

    def __init__(self, eyes: ClusterEyes) -> None:
        self._eyes = eyes

    def gather(self) -> Gathered:
        """See ``tracing.eyes.Eyes``."""
        return self._eyes.gather()._replace(objects=self._eyes.everything())

    @property
    def nodes(self) -> Mapping[str, NodeEyes]:
        """See ``tracing.eyes.Eyes``."""
        return self._eyes.nodes


def source(args: argparse.Namespace) -> Source:
    """By the arguments of ``cli_trace_eyes``. Raises PycniError: there is no such lab, or nobody to ask."""
    name = cli_trace_eyes.lab_name(args)
    if not name:
        local = Door("this node's agent", unix(args.socket))
        node: str = speech.read(local.get(speech.PEERS), speech.Peers).node
        return AgentsSource(f"cluster of {node}", partial(of_agent, local), [Agent(node, args.socket)])
    lab = LabSource(name)
    if not args.by_agents:
        return lab
    return AgentsSource(lab.title, lambda words: by_agents(Lab.open(name), words), lab.agents())


def ask(agents: Sequence[Agent], target: str, kind: type[T]) -> tuple[dict[str, T], dict[str, str]]:
    """Answers by node, and why there is none of whom."""
    found: dict[str, T] = {}
    silent: dict[str, str] = {}

    def one(agent: Agent) -> None:
        try:
            found[agent.node] = typed.decode(agent.fetch(target), kind)
        except AgentError as exc:
            silent[agent.node] = exc.reason
        except msgspec.DecodeError as exc:
            silent[agent.node] = f"its answer cannot be read: {exc}"

    with ThreadPoolExecutor(min(max(len(agents), 1), AT_ONCE)) as pool:
        list(pool.map(one, agents))
    return found, silent


def peers(agents: Sequence[Agent], outside: Sequence[Peer], addresses: Mapping[str, str]) -> list[Peer]:
    """Whom agents speak BGP with outside the cluster, and who else is there.

    ``addresses``: of the cluster's own nodes, whose sessions with each other are not drawn, with their names.
    """
    told, _ = ask(agents, "/bgp", dict[str, Any])
    sessions: dict[str, dict[str, str]] = {}
    numbers: dict[str, str] = {}
    for node, status in told.items():
        for peer in status.get("peers", ()):
            address = str(peer.get("address", ""))
            if address and address not in addresses:
                sessions.setdefault(address, {})[node] = str(peer.get("state", ""))
                numbers[address] = str(peer.get("asn", ""))
    known = {peer.address: peer for peer in outside}
    found = []
    for address in sorted(sessions.keys() | known.keys()):
        held = known.get(address)
        facts = held.facts if held is not None else ()
        if address in sessions:
            facts = (*facts, ("AS", numbers[address]))
        name = held.name if held is not None else address
        if address in numbers:
            name = f"{name} · AS{numbers[address]}"
        found.append(Peer(address=address, name=name, sessions=sessions.get(address, {}), facts=facts))
    return found
