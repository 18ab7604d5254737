"""Who has an address: pods, nodes and services by what agents tell. Pure.

Life: one ``Book`` per command; ``put`` takes an agent's newest answer in place of its earlier one. Looked up for every
connection, so everything is a dictionary by text as connection tracking's readers write it.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

from pycni.traffic.model import DENIED, UNTRANSLATED, Flow, Names, ServiceName

NODE = "node/"
Where = tuple[str, str, int]
"""Address ("" for a node port), protocol, port."""


class Book:
    """Names of everything, from all agents that were asked."""

    def __init__(self) -> None:
        self._told: dict[str, Names] = {}
        self._pods: dict[str, str] = {}
        self._nodes: dict[str, str] = {}
        self._services: dict[Where, str] = {}
        self._endpoints: dict[Where, str] = {}

    def put(self, names: Names) -> bool:
        """An agent's answer; returns whether anything is new."""
        if not names.fresh:
            return False
        self._told[names.node] = names
        self._pods, self._nodes = {}, {}
        self._services, self._endpoints = {}, {}
        for told in self._told.values():
            self._nodes.update(told.nodes)
        for told in self._told.values():
            self._nodes.update(dict.fromkeys(filter(_tells, told.addresses), told.node))
            self._pods.update(told.pods)
            self._services.update(_by_place(told.services.frontends))
            for where, service in _by_place(told.services.endpoints):
                other = self._endpoints.get(where, service)
                # Of several services with the same endpoint nobody knows which one was meant.
                self._endpoints[where] = service if other == service else f"{other}|{service}"
        for told in self._told.values():
            # Who runs a pod knows best.
            self._pods.update({address: told.pods[address] for address in told.local if address in told.pods})
        return True

    def generation(self, node: str) -> str:
        """Of what a node's agent told last; "" when it has not."""
        told = self._told.get(node)
        return told.generation if told is not None else ""

    def knows(self, address: str) -> bool:
        """Whether an address has a name."""
        return address in self._pods or address in self._nodes

    def pod(self, address: str) -> str:
        """``namespace/name`` of the pod that has an address; "" when none has."""
        return self._pods.get(address, "")

    def name(self, address: str) -> str:
        """A pod's, or ``node/NAME``; "" when nobody is known by that address."""
        found = self._nodes.get(address)
        if found is not None:
            return NODE + found
        return self._pods.get(address, "")

    def service(self, address: str, protocol: str, port: int) -> str:
        """The service met there; node ports at every node's addresses."""
        found = self._services.get((address, protocol, port))
        if found is None and address in self._nodes:
            found = self._services.get(("", protocol, port))
        return found or ""

    def describe(self, flow: Flow) -> Flow:
        """Fill in names, and the verdict that follows from them; the same object."""
        flow.source_name = self.name(flow.source)
        flow.destination_name = self.name(flow.destination)
        flow.service = self.service(flow.destination, flow.protocol, flow.port)
        if flow.translated_destination:
            flow.translated_name = self.name(flow.translated_destination)
        elif flow.service and flow.verdict != DENIED:
            flow.verdict = UNTRANSLATED
        elif not flow.service:
            flow.via = self._endpoints.get((flow.destination, flow.protocol, flow.port), "")
        return flow


def of_pods(flow: Flow) -> bool:
    """Whether a described flow has to do with a pod or a service."""
    names = (flow.source_name, flow.destination_name, flow.translated_name)
    known = any(name and not name.startswith(NODE) for name in names)
    return known or bool(flow.service or flow.via) or flow.verdict == DENIED


def _by_place(some: Iterable[ServiceName]) -> Iterable[tuple[Where, str]]:
    return (((item.address, item.protocol, item.port), item.service) for item in some)


def _tells(address: str) -> bool:
    """Whether an address is one node's only."""
    found = ip_address(address)
    return not (found.is_loopback or found.is_link_local)
