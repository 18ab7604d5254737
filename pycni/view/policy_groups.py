"""Groups of pods and names of ports that policies in use on a node refer to, with who is in them. Pure.

Life: ``use`` and ``disuse`` count references of policies; a group that comes to life is matched once against every kind
of pods; from then on addresses that change hands are rows by their kind's groups, without any matching.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from pycni.view.policy_index import Having, Wanting
from pycni.view.policy_pods import Census, Kind, Known
from pycni.view.policy_rules import Group, Match, Named
from pycni.view.policy_stages import GROUPS, MEMBERS, NAMES, PORTS

Labels = Callable[[str], Mapping[str, str]]
"""Labels of a namespace by its name."""


class Groups:
    """Live groups and names. ``put(table, key, value)`` and ``drop(table, key)`` keep the rows."""

    def __init__(
        self, census: Census, put: Callable[[str, Any, Any], None], drop: Callable[[str, Any], None]
    ) -> None:
        self._census = census
        self._put = put
        self._drop = drop
        self._users: dict[str, int] = {}
        self._groups: dict[str, Group] = {}
        self._tests: dict[str, _Test] = {}
        """By name of the group."""
        self._home: dict[str, Wanting[str]] = {}
        """Names of groups by the one namespace they are in; those of several under ""."""
        self._kinds: dict[str, set[Kind]] = {}
        """The kinds of each group."""
        self._name_users: dict[Named, int] = {}
        self._bearers: dict[Named, set[tuple[bytes, int]]] = {}
        """Addresses and numbers of the ports of every name in use."""
        self._naming: dict[Named, set[Kind]] = {}
        """Kinds with pods that have, or had, a port of a name, whether it is in use or not."""
        self._seen: dict[str, Having[Kind]] = {}
        """Kinds that have been matched, by namespace."""

    # --- policies ------------------------------------------------------------------------------------------------

    def use(self, matches: Iterable[Match], labels: Labels) -> None:
        """One more policy refers to these."""
        for match in matches:
            for group in match.groups:
                count = self._users[group.name] = self._users.get(group.name, 0) + 1
                if count == 1:
                    self._start(group, labels)
            for named in () if match.ports is None else match.ports.names:
                count = self._name_users[named] = self._name_users.get(named, 0) + 1
                if count == 1:
                    self._put(NAMES, named, None)
                    found = self._bearers[named] = set(self._named(named))
                    for address, port in found:
                        self._put(PORTS, (named, address, port), None)

    def disuse(self, matches: Iterable[Match]) -> None:
        """One policy less refers to these."""
        for match in matches:
            for group in match.groups:
                self._users[group.name] -= 1
                if not self._users[group.name]:
                    self._end(group)
            for named in () if match.ports is None else match.ports.names:
                self._name_users[named] -= 1
                if not self._name_users[named]:
                    del self._name_users[named]
                    self._drop(NAMES, named)
                    for address, port in self._bearers.pop(named):
                        self._drop(PORTS, (named, address, port))

    def members(self, name: str) -> Iterator[bytes]:
        """The addresses in a live group."""
        for kind in self._kinds.get(name, ()):
            yield from kind.addresses

    def bearers(self, named: Named) -> Iterable[tuple[bytes, int]]:
        """Addresses and numbers of the ports of a name in use."""
        return self._bearers.get(named, ())

    def _start(self, group: Group, labels: Labels) -> None:
        self._groups[group.name] = group
        self._tests[group.name] = _Union(group.parts) if group.parts else _One(group)
        self._home.setdefault(group.namespace, Wanting()).add(group.name, group.pods)
        self._kinds[group.name] = set()
        self._put(GROUPS, group.name, group)
        for part in group.parts or (group,):
            for namespace in [part.namespace] if part.namespace else self._seen:
                space = labels(namespace)
                if part.namespaces is None or part.namespaces.matches(space):
                    for kind in self._seen.get(namespace, Having[Kind]()).candidates(part.pods):
                        self._match(kind, group, space)

    def _end(self, group: Group) -> None:
        name, group = group.name, self._groups[group.name]
        del self._users[name], self._groups[name], self._tests[name]
        self._home[group.namespace].remove(name, group.pods)
        for kind in self._kinds.pop(name):
            kind.groups.discard(name)
            for address in kind.addresses:
                self._drop(MEMBERS, (name, address))
        self._drop(GROUPS, name)

    # --- pods ----------------------------------------------------------------------------------------------------

    def hold(self, address: bytes, known: Known, labels: Labels) -> None:
        """A pod has got an address."""
        kind = known.kind
        if not kind.seen:
            self._enter(kind, labels)
        for name in kind.groups:
            self._put(MEMBERS, (name, address), None)
        for named, port in known.ports:
            if named not in kind.names:
                kind.names.add(named)
                self._naming.setdefault(named, set()).add(kind)
            bearers = self._bearers.get(named)
            if bearers is not None:
                bearers.add((address, port))
                self._put(PORTS, (named, address, port), None)

    def release(self, address: bytes, known: Known) -> None:
        """A pod has lost an address."""
        for name in known.kind.groups:
            self._drop(MEMBERS, (name, address))
        for named, port in known.ports:
            bearers = self._bearers.get(named)
            if bearers is not None:
                bearers.discard((address, port))
                self._drop(PORTS, (named, address, port))

    def moved(self, namespace: str, labels: Mapping[str, str]) -> None:
        """Labels of a namespace changed."""
        for kind in self._census.in_namespace(namespace):
            self._match_all("", kind, labels)

    def leave(self, kind: Kind) -> None:
        """A kind without pods."""
        if kind.seen:
            kind.seen = False
            self._seen[kind.namespace].remove(kind, kind.labels)
        for name in kind.groups:
            self._kinds[name].discard(kind)
        kind.groups.clear()
        for named in kind.names:
            kinds = self._naming[named]
            kinds.discard(kind)
            if not kinds:
                del self._naming[named]
        kind.names.clear()

    def _named(self, named: Named) -> Iterator[tuple[bytes, int]]:
        """Addresses and numbers of the ports of a name, found by going through its kinds."""
        of, holders = self._census.of, self._census.holders
        for kind in self._naming.get(named, ()):
            for known in filter(None, map(of, kind.pods)):
                for port in [number for each, number in known.ports if each == named]:
                    yield from ((item, port) for item in known.addresses if holders.get(item) is known)

    def _enter(self, kind: Kind, labels: Labels) -> None:
        kind.seen = True
        self._seen.setdefault(kind.namespace, Having()).add(kind, kind.labels)
        space = labels(kind.namespace)
        for home in (kind.namespace, ""):
            self._match_all(home, kind, space)

    def _match_all(self, home: str, kind: Kind, space: Mapping[str, str]) -> None:
        names = self._home.get(home)
        for name in names.candidates(kind.labels) if names is not None else ():
            self._match(kind, self._groups[name], space)

    def _match(self, kind: Kind, group: Group, space: Mapping[str, str]) -> None:
        inside = self._tests[group.name].has(kind, space)
        if inside is (group.name in kind.groups):
            return
        if inside:
            kind.groups.add(group.name)
            self._kinds[group.name].add(kind)
            for address in kind.addresses:
                self._put(MEMBERS, (group.name, address), None)
        else:
            kind.groups.discard(group.name)
            self._kinds[group.name].discard(kind)
            for address in kind.addresses:
                self._drop(MEMBERS, (group.name, address))


class _One:
    """Whether pods are in a group."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def has(self, kind: Kind, space: Mapping[str, str]) -> bool:
        """``space``: labels of the kind's namespace."""
        group = self._group
        return (
            group.pods.matches(kind.labels)
            and (not group.namespace or group.namespace == kind.namespace)
            and (group.namespaces is None or group.namespaces.matches(space))
        )


class _Union:
    """Whether pods are in one of many groups."""

    def __init__(self, parts: Iterable[Group]) -> None:
        self._parts: Wanting[_One] = Wanting()
        for group in parts:
            self._parts.add(_One(group), group.pods)

    def has(self, kind: Kind, space: Mapping[str, str]) -> bool:
        """See ``_One``."""
        return any(one.has(kind, space) for one in self._parts.candidates(kind.labels))


_Test: TypeAlias = _One | _Union
