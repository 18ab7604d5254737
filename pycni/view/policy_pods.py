"""Pods as policies see them: who has which address, and kinds of pods that no selector can tell apart. Pure.

Life: ``Census`` is told of changed pods and says which addresses changed hands. Pods of one namespace with equal labels
are one ``Kind``: selectors are matched once per kind, so that a pod that comes or goes matches none at all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from pycni.model.kube import Pod
from pycni.model.policy import Direction
from pycni.view.policy_rules import Named
from pycni.view.policy_stages import Stages

COMPLETED = frozenset({"Succeeded", "Failed"})
KindKey: TypeAlias = tuple[str, frozenset[tuple[str, str]]]


class Kind:
    """Pods of one namespace with equal labels."""

    def __init__(self, namespace: str, labels: Mapping[str, str]) -> None:
        self.namespace = namespace
        self.labels = labels
        self.pods: set[str] = set()
        self.local: set[str] = set()
        """Those of this node."""
        self.addresses: set[bytes] = set()
        """That its pods hold."""
        self.groups: set[str] = set()
        """Names of the live groups it is in."""
        self.seen = False
        """Whether it has been matched with the groups there are."""
        self.stages: dict[Direction, Stages] = {}


class Known(NamedTuple):
    """What matters of a pod."""

    key: str
    kind: Kind
    local: bool
    addresses: tuple[bytes, ...]
    ports: tuple[tuple[Named, int], ...]
    rank: tuple[bool, int, str]
    """Of several pods with one address the smallest has it."""


class Census:
    """All running pods outside the nodes' own networks."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._pods: dict[str, Known] = {}
        self._claims: dict[bytes, dict[str, Known]] = {}
        self.holders: dict[bytes, Known] = {}
        """By address."""
        self.kinds: dict[KindKey, Kind] = {}
        self.by_namespace: dict[str, set[KindKey]] = {}
        self.host: dict[str, tuple[bytes, ...]] = {}
        """Addresses of pods on this node's network."""

    def of(self, key: str) -> Known | None:
        """A pod by its key."""
        return self._pods.get(key)

    def in_namespace(self, namespace: str) -> Iterable[Kind]:
        """The kinds of a namespace."""
        return (self.kinds[key] for key in self.by_namespace.get(namespace, ()))

    def put(self, key: str, pod: Pod | None) -> set[bytes]:
        """Take in a pod (None: it is gone). Returns addresses whose claims changed."""
        runs = pod is not None and pod.phase not in COMPLETED
        if pod is not None and runs and pod.host_network and pod.node == self._node:
            self.host[key] = packed(pod.ips)
        else:
            self.host.pop(key, None)
        old = self._pods.get(key)
        new = None
        if pod is not None and runs and not pod.host_network:
            new = self._known(key, pod)
            if new == old:
                return set()
        if old is not None:
            self._drop(old)
        if new is not None:
            self._pods[key] = new
            new.kind.pods.add(key)
            if new.local:
                new.kind.local.add(key)
            for address in new.addresses:
                self._claims.setdefault(address, {})[key] = new
        return {address for known in (old, new) if known is not None for address in known.addresses}

    def claimant(self, address: bytes) -> Known | None:
        """Who should hold an address."""
        claims = self._claims.get(address)
        return min(claims.values(), key=lambda known: known.rank) if claims else None

    def claimants(self, address: bytes) -> tuple[str, ...]:
        """Keys of the pods that have an address, whoever holds it."""
        return tuple(self._claims.get(address, ()))

    def forget(self, kind: Kind) -> None:
        """A kind without pods; harmless twice."""
        key = (kind.namespace, frozenset(kind.labels.items()))
        if self.kinds.pop(key, None) is None:
            return
        keys = self.by_namespace[kind.namespace]
        keys.discard(key)
        if not keys:
            del self.by_namespace[kind.namespace]

    def _known(self, key: str, pod: Pod) -> Known:
        kind_key = kind_of(pod)
        kind = self.kinds.get(kind_key)
        if kind is None:
            kind = self.kinds[kind_key] = Kind(pod.meta.namespace, dict(pod.meta.labels))
            self.by_namespace.setdefault(pod.meta.namespace, set()).add(kind_key)
        names = sorted({((port.protocol, port.name), port.port) for port in pod.ports if port.name})
        rank = (pod.meta.deleting, -pod.meta.created, key)
        return Known(key, kind, pod.node == self._node, packed(pod.ips), tuple(names), rank)

    def _drop(self, known: Known) -> None:
        del self._pods[known.key]
        known.kind.pods.discard(known.key)
        known.kind.local.discard(known.key)
        for address in known.addresses:
            claims = self._claims[address]
            del claims[known.key]
            if not claims:
                del self._claims[address]


def kind_of(pod: Pod) -> KindKey:
    """The kind of a pod."""
    return pod.meta.namespace, frozenset(pod.meta.labels.items())


def packed(texts: Iterable[str]) -> tuple[bytes, ...]:
    """Addresses in network byte order, without repetitions."""
    return tuple(dict.fromkeys(_packed(text) for text in texts))


def _packed(text: str) -> bytes:
    parts = text.split(".")
    # Ten times as fast as ipaddress, which a hundred thousand pods feel; wire/kube has checked the text.
    return bytes(map(int, parts)) if len(parts) == 4 and ":" not in text else _packed_v6(text)


@lru_cache(maxsize=65536)
def _packed_v6(text: str) -> bytes:
    return ipaddress.ip_address(text).packed
