"""Cases of the policy suites and the words they are written in: manifests, and expectations in words.

A case is a sequence of steps, each the whole state to be reached: these policies, these labels. Addresses that are known
only in a lab stand in manifests as ``<x/a v4/24>``: the network of that length which the pod's address is in.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES
from tests.lab.policy_world import Mappings

Address = Callable[[str, Family], str]
"""Of a pod."""
Labels = Mapping[str, str]
_PLACE = re.compile(r"<(\w/\w) v([46])/(\d+)>")


class Step(NamedTuple):
    """A state to be reached."""

    policies: tuple[Mappings, ...] = ()
    expect: tuple[str, ...] | None = None
    """In words, later ones count: ``deny * -> x/a``, ``allow y/* -> x/* 80/TCP v4``. None: what the oracle says."""
    pods: Mapping[str, Labels] = {}
    """Labels of pods, in place of their own."""
    spaces: Mapping[str, Labels] = {}
    """Labels of namespaces, in place of their own."""


class Case(NamedTuple):
    """What one test shows."""

    name: str
    steps: tuple[Step, ...]
    services: bool = False
    """Tried through Services as well."""


def case(name: str, *policies: Mappings, expect: Sequence[str] | None = None, services: bool = False) -> Case:
    return Case(name, (Step(tuple(policies), None if expect is None else tuple(expect)),), services=services)


def step(*policies: Mappings, expect: Sequence[str] | None = None, **labels: Any) -> Step:
    return Step(tuple(policies), None if expect is None else tuple(expect), **labels)


# --- selectors and peers -----------------------------------------------------------------------------------------


def labels(**wanted: str) -> Mappings:
    return {"matchLabels": wanted}


def where(*expressions: tuple[str, ...]) -> Mappings:
    """``("pod", "In", "a", "b")``."""
    return {
        "matchExpressions": [
            {"key": key, "operator": operator, **({"values": list(values)} if values else {})}
            for key, operator, *values in expressions
        ]
    }


NAME = "kubernetes.io/metadata.name"
EVERY: Mappings = {}


def pods(**wanted: str) -> Mappings:
    """A peer of the policy's own namespace."""
    return {"podSelector": labels(**wanted) if wanted else {}}


def space(name: str = "", **more: str) -> Mappings:
    """A peer: pods of a namespace ("": of all) with these labels."""
    found: Mappings = {"namespaceSelector": labels(ns=name) if name else {}}
    return {**found, "podSelector": labels(**more)} if more else found


def block(cidr: str, *excluded: str) -> Mappings:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excluded)} if excluded else {})}}


def blocks(pod: str, *lengths: int, excluded: Sequence[tuple[str, int, int]] = ()) -> list[Mappings]:
    """A block per family around a pod's address; ``excluded``: (pod, length, length)."""
    return [
        block(f"<{pod} v{family}/{length}>", *(f"<{item[0]} v{family}/{item[1 + at]}>" for item in excluded))
        for at, (family, length) in enumerate(zip((4, 6), lengths, strict=True))
    ]


def port(number: int | str | None = None, protocol: str | None = "TCP", end: int | None = None) -> Mappings:
    found = {"port": number, "protocol": protocol, "endPort": end}
    return {key: value for key, value in found.items() if value is not None}


# --- policies ----------------------------------------------------------------------------------------------------


def rule(*peers: Mappings, ports: Sequence[Mappings] | None = None) -> tuple[Sequence[Mappings], Any]:
    return peers, ports


def np(
    key: str,
    target: Mappings | None = None,
    *,
    ingress: Sequence[Any] | None = None,
    egress: Sequence[Any] | None = None,
) -> Mappings:
    """A NetworkPolicy ``namespace/name``. None: not isolated in that direction."""
    namespace, name = key.split("/")
    sections = {"Ingress": ("ingress", "from", ingress), "Egress": ("egress", "to", egress)}
    spec: Mappings = {
        "podSelector": target or {},
        "policyTypes": [kind for kind, (*_names, rules) in sections.items() if rules is not None],
    }
    for name_, word, rules in sections.values():
        if rules is not None:
            spec[name_] = [
                {**({word: list(peers)} if peers else {}), **({"ports": list(ports)} if ports else {})}
                for peers, ports in rules
            ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


def ends(namespaces: Mappings | None = None, of: Mappings | None = None) -> Mappings:
    """A subject or peer of a ClusterNetworkPolicy."""
    if of is None:
        return {"namespaces": namespaces or {}}
    return {"pods": {"namespaceSelector": namespaces or {}, "podSelector": of}}


def networks(*cidrs: str) -> Mappings:
    return {"networks": list(cidrs)}


def crule(action: str, *peers: Mappings, protocols: Sequence[Mappings] = (), name: str = "") -> Mappings:
    """Its peers go to ``from`` or ``to`` by ``cnp``."""
    found: Mappings = {"action": action, "peers": list(peers or (ends(),))}
    if protocols:
        found["protocols"] = list(protocols)
    if name:
        found["name"] = name
    return found


def number(protocol: str, first: int, last: int | None = None) -> Mappings:
    span = {"number": first} if last is None else {"range": {"start": first, "end": last}}
    return {protocol: {"destinationPort": span}}


def named(name: str) -> Mappings:
    return {"destinationNamedPort": name}


def cnp(
    name: str,
    priority: int,
    subject: Mappings | None = None,
    *,
    tier: str = "Admin",
    ingress: Sequence[Mappings] = (),
    egress: Sequence[Mappings] = (),
) -> Mappings:
    spec: Mappings = {"tier": tier, "priority": priority, "subject": subject or ends()}
    for section, word, rules in (("ingress", "from", ingress), ("egress", "to", egress)):
        if rules:
            spec[section] = [
                {**{key: value for key, value in item.items() if key != "peers"}, word: item["peers"]}
                for item in rules
            ]
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    }


# --- what it comes to --------------------------------------------------------------------------------------------


def resolved(value: Any, address: Address) -> Any:
    """A manifest with addresses in the place of ``<x/a v4/24>``."""
    if isinstance(value, dict):
        return {key: resolved(item, address) for key, item in value.items()}
    if isinstance(value, list):
        return [resolved(item, address) for item in value]
    if not isinstance(value, str):
        return value

    def network(found: re.Match[str]) -> str:
        family = Family.V4 if found[2] == "4" else Family.V6
        return str(ipaddress.ip_network((address(found[1], family), int(found[3])), strict=False))

    return _PLACE.sub(network, value)


class Words:
    """Expectations in words, read once."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._rules = [self._read(line) for line in lines]

    def allowed(self, source: str, target: str, protocol: int, number: int, family: Family) -> bool:
        """Of a connection between two pods."""
        facts = (
            source,
            target,
            f"{number}/{PROTOCOL_NAMES[protocol]}",
            f"v{4 if family is Family.V4 else 6}",
        )
        found = True
        for allow, *patterns in self._rules:
            if all(map(fnmatch.fnmatchcase, facts, patterns)):
                found = allow
        return found

    @staticmethod
    def _read(line: str) -> tuple[Any, ...]:
        verb, source, arrow, target, *rest = line.split()
        assert (verb in {"allow", "deny"}, arrow) == (True, "->"), line
        service = next((word for word in rest if "/" in word), "*")
        family = next((word for word in rest if word in {"v4", "v6"}), "*")
        assert len(rest) == (service != "*") + (family != "*"), line
        return (verb == "allow", source, target, service, family)
