"""From policies, pods, namespaces and nodes to what one node has to enforce, at the cost of what changed. Pure.

Life of a change: ``update`` is told which keys of the store changed; the census of pods says which addresses changed
hands; kinds of pods whose policies may differ get new stages; policies that come into use on this node (or go out of
it) bring their groups and names of ports to life (or let them go); every row touched is compared with what it was.
Only policies that select a pod of this node are kept, and only groups they name have members.

What rows say, and which tables there are, is in ``policy_stages``. Semantics: docs/policy.md.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from pycni.model.kube import NAMESPACE, NODE, POD, KubeNode
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    ClusterNetworkPolicy,
    Direction,
    NetworkPolicy,
    Tier,
)
from pycni.view.policy_apart import apart
from pycni.view.policy_groups import Groups
from pycni.view.policy_index import Wanting
from pycni.view.policy_pods import Census, Kind, Known, packed
from pycni.view.policy_rules import ClusterSection, Match, Named, Section, cluster_section, section
from pycni.view.policy_stages import (
    ABSENT,
    CLOSED,
    OWN,
    SECTIONS,
    SUBJECTS,
    TABLES,
    ClusterPart,
    RowDiff,
    Stages,
    Subject,
)

NAME_LABEL = "kubernetes.io/metadata.name"
KINDS = (NETWORK_POLICY, CLUSTER_NETWORK_POLICY, POD, NAMESPACE, NODE)
"""What ``update`` reads."""
_NO_STAGES = Stages()


class Objects(Protocol):
    """The part of ``store.Snapshot`` and ``store.Current`` that is needed here."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by key."""

    def frozen(self) -> Objects:
        """The contents at one moment."""


class _Live:
    """A policy's rules of one direction, in use on this node."""

    def __init__(self, matches: tuple[Match, ...]) -> None:
        self.matches = matches
        self.users = 0


class PolicyView:
    """One node's view of the cluster's policies. One thread at a time."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._reset()
        self.waiting: dict[bytes, str] = {}
        """Addresses that have been given to pods, with their namespaces; closed while nobody has told of the pod.

        May be changed, or replaced, before ``update``."""

    def _reset(self) -> None:
        self.tables: dict[str, dict[Any, Any]] = {name: {} for name in TABLES}
        self._before: dict[tuple[str, Any], Any] = {}
        self._census = Census(self._node)
        self._groups = Groups(self._census, self._put, self._drop)
        self._spaces: dict[str, Mapping[str, str]] = {}
        self._policies: dict[str, NetworkPolicy] = {}
        self._sections: dict[tuple[str, Direction], Section] = {}
        self._at_home: dict[str, Wanting[str]] = {}
        """Policies by namespace."""
        self._cluster: dict[str, ClusterNetworkPolicy] = {}
        self._order: list[ClusterNetworkPolicy] = []
        self._parts: dict[tuple[str, Direction], ClusterPart] = {}
        self._live: dict[tuple[str, str, Direction], _Live] = {}
        self._own: set[bytes] = set()
        """Addresses of this node, whoever claims them."""

    # --- passes --------------------------------------------------------------------------------------------------

    def update(self, objects: Objects, changed: Mapping[str, set[str]] | None = None) -> list[RowDiff]:
        """Take in what changed (``Tracker.take``; None: anything may have) and return the rows that differ."""
        if changed is not None:
            self._take(objects, changed)
            return self._differences()
        held = self.tables
        objects = objects.frozen()
        self._reset()
        self._take(objects, {kind: set(objects.of(kind)) for kind in KINDS})
        self._before = {
            (name, key): held[name].get(key, ABSENT)
            for name in TABLES
            for key in held[name].keys() | self.tables[name].keys()
        }
        return self._differences()

    def admit(self, namespace: str, addresses: Iterable[bytes]) -> list[RowDiff]:
        """Close addresses of a pod nobody has told of yet as far as policies of its namespace may isolate it.

        They open when an ``update`` brings a pod of this node that has them, or by ``gone``.
        """
        self.waiting.update(dict.fromkeys(addresses, namespace))
        self._guard()
        return self._differences()

    def gone(self, addresses: Iterable[bytes]) -> list[RowDiff]:
        """Take ``admit`` back."""
        for address in addresses:
            self.waiting.pop(address, None)
        self._guard()
        return self._differences()

    def holder(self, address: bytes) -> str | None:
        """The pod that has an address, by its key."""
        known = self._census.holders.get(address)
        return None if known is None else known.key

    def addresses(self, key: str) -> tuple[bytes, ...]:
        """The addresses a pod has."""
        known = self._census.of(key)
        some = () if known is None else known.addresses
        return tuple(item for item in some if self._census.holders.get(item) is known)

    def members(self, group: str) -> Iterator[bytes]:
        """The addresses in a group that policies here refer to."""
        return self._groups.members(group)

    def bearers(self, named: Named) -> Iterable[tuple[bytes, int]]:
        """Addresses and numbers of the ports of a name that policies here refer to."""
        return self._groups.bearers(named)

    def claimants(self, address: bytes) -> Iterable[str]:
        """Keys of the pods whose objects have an address."""
        return self._census.claimants(address)

    def _take(self, objects: Objects, changed: Mapping[str, set[str]]) -> None:
        kinds: set[Kind] = set()
        """Whose stages may differ."""
        for name in changed.get(NAMESPACE, ()):
            found = objects.of(NAMESPACE).get(name)
            self._spaces[name] = {**(found.meta.labels if found is not None else {}), NAME_LABEL: name}
            self._groups.moved(name, self._spaces[name])
            kinds.update(self._census.in_namespace(name))
        pods, touched = self._take_pods(objects, changed.get(POD, ()))
        kinds.update(pods)
        for key in changed.get(NETWORK_POLICY, ()):
            policy = objects.of(NETWORK_POLICY).get(key)
            self._add_selected(kinds, key, policy)
            self._take_policy(key, policy)
        if changed.get(CLUSTER_NETWORK_POLICY):
            self._take_cluster(objects, changed[CLUSTER_NETWORK_POLICY])
            kinds.update(self._census.kinds.values())
        for kind in kinds:
            if self._restage(kind):
                touched |= kind.local
        for kind in pods:
            if not kind.pods:
                self._groups.leave(kind)
                self._census.forget(kind)
        for key in touched:
            self._judge(key)
        if self._node in changed.get(NODE, ()):
            self._own = _addresses(objects.of(NODE).get(self._node))
        self._keep_own()
        self._guard()

    def _differences(self) -> list[RowDiff]:
        before, self._before = self._before, {}
        found = []
        for (name, key), was in before.items():
            now = self.tables[name].get(key, ABSENT)
            if now is not was and now != was:
                found.append(RowDiff(name, key, was, now))
        return found

    def _put(self, name: str, key: Any, value: Any = None) -> None:
        table = self.tables[name]
        self._before.setdefault((name, key), table.get(key, ABSENT))
        table[key] = value

    def _drop(self, name: str, key: Any) -> None:
        table = self.tables[name]
        if key in table:
            self._before.setdefault((name, key), table[key])
            del table[key]

    # --- pods ----------------------------------------------------------------------------------------------------

    def _take_pods(self, objects: Objects, keys: Iterable[str]) -> tuple[set[Kind], set[str]]:
        """Kinds that got or lost a pod, and pods of this node whose own rows may differ."""
        pods = objects.of(POD)
        census, dirty, touched, kinds = self._census, set[bytes](), set[str](), set[Kind]()
        for key in keys:
            old = census.of(key)
            dirty |= census.put(key, pods.get(key))
            new = census.of(key)
            if old is new:
                continue
            for known in (old, new):
                if known is not None:
                    kinds.add(known.kind)
        for address in dirty:
            was, now = census.holders.get(address), census.claimant(address)
            if was is now:
                continue
            for known, act in ((was, self._release), (now, self._hold)):
                if known is not None:
                    act(address, known)
                    if known.local:
                        touched.add(known.key)
        return kinds, touched

    def _hold(self, address: bytes, known: Known) -> None:
        self._census.holders[address] = known
        known.kind.addresses.add(address)
        self._groups.hold(address, known, self._space)

    def _release(self, address: bytes, known: Known) -> None:
        del self._census.holders[address]
        known.kind.addresses.discard(address)
        self._groups.release(address, known)
        for direction in Direction:
            self._drop(SUBJECTS, (address, direction))

    def _judge(self, key: str) -> None:
        """The rows of a pod of this node."""
        known = self._census.of(key)
        if known is None or not known.local:
            return
        mine = [item for item in known.addresses if self._census.holders.get(item) is known]
        for direction in Direction:
            stages = known.kind.stages.get(direction, _NO_STAGES)
            for address in mine:
                if stages == _NO_STAGES:
                    self._drop(SUBJECTS, (address, direction))
                    continue
                siblings = tuple(sorted(item for item in mine if len(item) == len(address)))
                self._put(SUBJECTS, (address, direction), Subject(stages, siblings))

    def _space(self, name: str) -> Mapping[str, str]:
        return self._spaces.get(name) or {NAME_LABEL: name}

    # --- policies ------------------------------------------------------------------------------------------------

    def _take_policy(self, key: str, policy: NetworkPolicy | None) -> None:
        namespace = key.partition("/")[0]
        at_home = self._at_home.setdefault(namespace, Wanting())
        old = self._policies.pop(key, None)
        if old is not None:
            at_home.remove(key, old.pods)
        if policy is not None:
            at_home.add(key, policy.pods)
            self._policies[key] = policy
        for direction in Direction:
            rules = None if policy is None else _rules(policy, direction)
            if rules is None:
                self._sections.pop((key, direction), None)
                continue
            found = self._sections[key, direction] = apart(section(namespace, rules))
            live = self._live.get((NETWORK_POLICY, key, direction))
            if live is not None:
                self._swap(live, found)
                self._put(SECTIONS, (key, direction), found)

    def _add_selected(self, kinds: set[Kind], key: str, policy: NetworkPolicy | None) -> None:
        """Kinds of pods of this node that a policy selects, or has selected until now."""
        selectors = [item.pods for item in (self._policies.get(key), policy) if item is not None]
        for kind in self._census.here(key.partition("/")[0]):
            if kind not in kinds and any(selector.matches(kind.labels) for selector in selectors):
                kinds.add(kind)

    def _take_cluster(self, objects: Objects, names: Iterable[str]) -> None:
        for name in names:
            policy = objects.of(CLUSTER_NETWORK_POLICY).get(name)
            self._cluster.pop(name, None)
            for direction in Direction:
                self._parts.pop((name, direction), None)
                if policy is None:
                    continue
                rules = policy.egress if direction is Direction.EGRESS else policy.ingress
                part = ClusterPart(name, cluster_section(rules))
                if part.rules:
                    self._parts[name, direction] = part
                    live = self._live.get((CLUSTER_NETWORK_POLICY, name, direction))
                    if live is not None:
                        self._swap(live, _matches(part.rules))
            if policy is not None:
                self._cluster[name] = policy
        self._order = sorted(self._cluster.values(), key=lambda item: (item.priority, item.meta.name))

    def _restage(self, kind: Kind) -> bool:
        """Find the stages of a kind anew. Returns whether they changed."""
        found = {}
        if kind.local:
            for direction in Direction:
                stages = self._stages(kind, direction)
                if stages != _NO_STAGES:
                    found[direction] = stages
        old, kind.stages = kind.stages, found
        for use in _uses(found):
            self._use(use)
        for use in _uses(old):
            self._leave(use)
        return found != old

    def _stages(self, kind: Kind, direction: Direction) -> Stages:
        at_home = self._at_home.get(kind.namespace)
        isolating = sorted(
            key
            for key in (at_home.candidates(kind.labels) if at_home is not None else ())
            if (key, direction) in self._sections and self._policies[key].pods.matches(kind.labels)
        )
        parts: dict[Tier, list[ClusterPart]] = {tier: [] for tier in Tier}
        for policy in self._order:
            part = self._parts.get((policy.meta.name, direction))
            if part is None or not policy.namespaces.matches(self._space(kind.namespace)):
                continue
            if policy.pods is None or policy.pods.matches(kind.labels):
                parts[policy.tier].append(part)
        return Stages(tuple(parts[Tier.ADMIN]), tuple(isolating) or None, tuple(parts[Tier.BASELINE]))

    def _use(self, use: tuple[str, str, Direction]) -> None:
        live = self._live.get(use)
        if live is None:
            kind, key, direction = use
            if kind == NETWORK_POLICY:
                matches = self._sections[key, direction]
                self._put(SECTIONS, (key, direction), matches)
            else:
                matches = _matches(self._parts[key, direction].rules)
            live = self._live[use] = _Live(matches)
            self._groups.use(matches, self._space)
        live.users += 1

    def _leave(self, use: tuple[str, str, Direction]) -> None:
        live = self._live[use]
        live.users -= 1
        if not live.users:
            del self._live[use]
            if use[0] == NETWORK_POLICY:
                self._drop(SECTIONS, use[1:])
            self._groups.disuse(live.matches)

    def _swap(self, live: _Live, matches: tuple[Match, ...]) -> None:
        self._groups.use(matches, self._space)
        self._groups.disuse(live.matches)
        live.matches = matches

    # --- the node ------------------------------------------------------------------------------------------------

    def _keep_own(self) -> None:
        census = self._census
        found = self._own.union(*census.host.values()) if census.host else self._own
        wanted = {address for address in found if address not in census.holders}
        for address in [item for item in self.tables[OWN] if item not in wanted]:
            self._drop(OWN, address)
        for address in wanted:
            if address not in self.tables[OWN]:
                self._put(OWN, address)

    def _guard(self) -> None:
        wanted: set[tuple[bytes, Direction]] = set()
        for address, namespace in self.waiting.items():
            holder = self._census.holders.get(address)
            if holder is None or not holder.local:
                wanted.update((address, direction) for direction in self._isolating(namespace))
        for key in [item for item in self.tables[CLOSED] if item not in wanted]:
            self._drop(CLOSED, key)
        for key in wanted:
            if key not in self.tables[CLOSED]:
                self._put(CLOSED, key)

    def _isolating(self, namespace: str) -> Iterator[Direction]:
        """Directions in which some policy may judge pods of a namespace, whatever their labels."""
        space = self._space(namespace)
        for direction in Direction:
            if any((key, direction) in self._sections for key in self._at_home.get(namespace, ())) or any(
                (policy.meta.name, direction) in self._parts and policy.namespaces.matches(space)
                for policy in self._order
            ):
                yield direction


def _rules(policy: NetworkPolicy, direction: Direction) -> Any:
    return policy.egress if direction is Direction.EGRESS else policy.ingress


def _matches(rules: ClusterSection) -> tuple[Match, ...]:
    return tuple(rule.match for rule in rules)


def _uses(stages: Mapping[Direction, Stages]) -> Iterator[tuple[str, str, Direction]]:
    for direction, item in stages.items():
        for key in item.policies or ():
            yield NETWORK_POLICY, key, direction
        for part in (*item.admin, *item.baseline):
            yield CLUSTER_NETWORK_POLICY, part.name, direction


def _addresses(node: KubeNode | None) -> set[bytes]:
    """A node's own: of its object, of its overlay device and its bridge (the first two of each podCIDR)."""
    if node is None:
        return set()
    found = set(packed((*node.internal_ips, *node.external_ips)))
    for text in node.pod_cidrs:
        network = ipaddress.ip_network(text)
        first = int(network.network_address)
        size = len(network.network_address.packed)
        last = min(first + 1, int(network.broadcast_address))
        found.update(number.to_bytes(size, "big") for number in range(first, last + 1))
    return found
