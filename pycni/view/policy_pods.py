"""Pods as policies see them: who has which address, and kinds of pods that no selector can tell apart. Pure.

Life: ``Census`` is told of changed pods and says which addresses changed hands. Pods of one namespace with equal labels
are one ``Kind``: selectors are matched once per kind, so that a pod that comes or goes matches none at all.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias

import msgspec

from pycni.model.kube import ContainerPort, Pod
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
        self.names: set[Named] = set()
        """Of ports its pods have had."""
        self.seen = False
        """Whether it has been matched with the groups there are."""
        self.stages: dict[Direction, Stages] = {}


class Known(msgspec.Struct, frozen=True, gc=False):
    """What matters of a pod."""

    key: str
    kind: Kind
    local: bool
    addresses: tuple[bytes, ...]
    ports: tuple[tuple[Named, int], ...]
    deleting: bool
    created: int

    @property
    def rank(self) -> tuple[bool, int, str]:
        """Of several pods with one address the smallest has it."""
        return self.deleting, -self.created, self.key


_Claims: TypeAlias = Known | dict[str, Known]
"""The pods that have an address: nearly always one."""


class Census:
    """All running pods outside the nodes' own networks."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._pods: dict[str, Known] = {}
        self._claims: dict[bytes, _Claims] = {}
        self.holders: dict[bytes, Known] = {}
        """By address."""
        self.kinds: dict[KindKey, Kind] = {}
        self.by_namespace: dict[str, set[KindKey]] = {}
        self._here: dict[str, set[Kind]] = {}
        """Kinds with pods of this node, by namespace."""
        self.host: dict[str, tuple[bytes, ...]] = {}
        """Addresses of pods on this node's network."""

    def of(self, key: str) -> Known | None:
        """A pod by its key."""
        return self._pods.get(key)

    def in_namespace(self, namespace: str) -> Iterable[Kind]:
        """The kinds of a namespace."""
        return (self.kinds[key] for key in self.by_namespace.get(namespace, ()))

    def here(self, namespace: str) -> Iterable[Kind]:
        """Those of them that have pods of this node."""
        return self._here.get(namespace, ())

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
                self._here.setdefault(new.kind.namespace, set()).add(new.kind)
            for address in new.addresses:
                self._claim(address, new)
        return {address for known in (old, new) if known is not None for address in known.addresses}

    def claimant(self, address: bytes) -> Known | None:
        """Who should hold an address."""
        claims = self._claims.get(address)
        return min(claims.values(), key=lambda known: known.rank) if isinstance(claims, dict) else claims

    def claimants(self, address: bytes) -> tuple[str, ...]:
        """Keys of the pods that have an address, whoever holds it."""
        claims = self._claims.get(address)
        if claims is None:
            return ()
        return tuple(claims) if isinstance(claims, dict) else (claims.key,)

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
        meta, local = pod.meta, pod.node == self._node
        return Known(key, kind, local, packed(pod.ips), _named(pod.ports), meta.deleting, meta.created)

    def _claim(self, address: bytes, known: Known) -> None:
        claims = self._claims.get(address)
        if claims is None:
            self._claims[address] = known
        elif isinstance(claims, dict):
            claims[known.key] = known
        else:
            self._claims[address] = {claims.key: claims, known.key: known}

    def _drop(self, known: Known) -> None:
        del self._pods[known.key]
        known.kind.pods.discard(known.key)
        if known.local:
            self._leave(known)
        for address in known.addresses:
            claims = self._claims[address]
            if not isinstance(claims, dict):
                del self._claims[address]
                continue
            del claims[known.key]
            if len(claims) == 1:
                (self._claims[address],) = claims.values()

    def _leave(self, known: Known) -> None:
        """A pod of this node is gone."""
        kind = known.kind
        kind.local.discard(known.key)
        if not kind.local:
            here = self._here[kind.namespace]
            here.discard(kind)
            if not here:
                del self._here[kind.namespace]


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


def _packed_v6(text: str) -> bytes:
    """Half as long as ipaddress takes, for text that has been checked."""
    if "." in text:
        return ipaddress.ip_address(text).packed
    head, _, tail = text.partition("::")
    left, right = (head.split(":") if head else []), (tail.split(":") if tail else [])
    pieces = left + ["0"] * (8 - len(left) - len(right)) + right
    return bytes.fromhex("".join([piece.zfill(4) for piece in pieces]))


@lru_cache(maxsize=1024)
def _named(ports: tuple[ContainerPort, ...]) -> tuple[tuple[Named, int], ...]:
    """Names, protocols and numbers; pods of a workload have the same."""
    return tuple(sorted({((port.protocol, port.name), port.port) for port in ports if port.name}))
