"""What goes to which neighbour, and what comes of what neighbours say: routing information base and policy. Pure.

Life: the component keeps what this node announces (its pod CIDRs, addresses of services) and what the engine learned;
``exports`` gives the announcements for one neighbour, ``accepted`` what of the learned is used, ``routes`` the best
paths for the kernel. Every refusal has a reason in words, which ``pycnictl bgp`` shows.

Policy, as kube-router's (``bgp.md``): pod CIDRs go to other nodes and, by flag, to routers outside; addresses of
services go to routers outside only. Learned routes are not passed on, so a cluster is never in transit, but by route
reflectors to other nodes (RFC 4456). The decision among paths is RFC 4271's, 9.1.2.2, up to the point where only the
routers' numbers would tell two apart: those are used together (ECMP), whatever AS they lead through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from pycni.model.family import FAMILIES, Family, show
from pycni_bgp.annotations import NodeSettings
from pycni_bgp.model import ORIGINS, Attributes, Learned, Local, Neighbour, Prefix
from pycni_bgp.settings import BgpSettings

DEFAULT_PREF = 100
MAX_PATHS = 64
"""Next hops of one route in the kernel."""


class Rib:
    """The policy of one node. Values in, values out; holds nothing that was learned."""

    def __init__(
        self,
        settings: BgpSettings,
        own: NodeSettings,
        router_id: bytes,
        sessions: Mapping[bytes, Neighbour],
        *,
        draining: bool = False,
    ) -> None:
        """``draining``: this node is to get no more traffic for services."""
        self._settings = settings
        self._own = own
        self._router_id = router_id
        self._sessions = sessions
        self._draining = draining
        self._asn = own.asn or settings.asn
        self._next_hops = {
            family: next((item for item in own.addresses if Family.of_packed(item) is family), b"")
            for family in FAMILIES
        }
        self._mine = [Prefix.of(network) for network in own.pod_cidrs]
        self._rejected = [
            *((Prefix.of(item), "inside a network of services") for item in settings.service_networks),
            *((Prefix.of(item), "node.bgp.customimportreject") for item in own.reject),
        ]

    # --- out -------------------------------------------------------------------------------------------------

    def exports(
        self, neighbour: Neighbour, local: Mapping[Prefix, Local], best: Mapping[Prefix, Learned]
    ) -> dict[Prefix, Attributes]:
        """Everything one neighbour is told. ``best``: the one best path to each learned prefix (``first``)."""
        found = {}
        for prefix, item in local.items():
            if not self.withheld(neighbour, prefix, item):
                found[prefix] = self._announcement(neighbour, prefix)
        if self._own.reflector and neighbour.node:
            for prefix, path in best.items():
                attributes = self._reflected(neighbour, path) if prefix not in found else None
                if attributes is not None:
                    found[prefix] = attributes
        return found

    def withheld(self, neighbour: Neighbour, prefix: Prefix, item: Local) -> str:
        """Why a neighbour is not told of something of ours; "" when it is."""
        if not self._next_hops[prefix.family]:
            return f"this node has no {prefix.family.label} address to be the next hop"
        if item.kind == "pod CIDR":
            if not neighbour.node and not self._settings.pod_cidrs:
                return "advertise-pod-cidr is off"
            return ""
        if neighbour.node:
            return "addresses of services go to routers outside the cluster only"
        if self._draining:
            return "this node is being drained"
        return ""

    def _announcement(self, neighbour: Neighbour, prefix: Prefix) -> Attributes:
        outside = not neighbour.node
        prepend = self._own.prepend if outside else None
        return Attributes(
            next_hop=self._next_hops[prefix.family],
            # The engine puts our own number in front where the neighbour is another AS.
            as_path=(prepend[0],) * prepend[1] if prepend else (),
            local_pref=DEFAULT_PREF if neighbour.internal else None,
            communities=self._own.communities if outside else (),
        )

    def _reflected(self, neighbour: Neighbour, path: Learned) -> Attributes | None:
        source = self._sessions.get(path.neighbour)
        if source is None or source.address == neighbour.address or not neighbour.internal:
            return None
        attributes = path.attributes
        if not source.internal:
            if self._settings.next_hop_self:
                hop = self._next_hops[path.prefix.family]
                attributes = msgspec.structs.replace(attributes, next_hop=hop) if hop else attributes
            return msgspec.structs.replace(attributes, local_pref=attributes.local_pref or DEFAULT_PREF)
        if not (source.client or neighbour.client):
            return None
        return msgspec.structs.replace(
            attributes,
            originator=attributes.originator or path.router_id,
            clusters=(self._own.reflector, *attributes.clusters),
        )

    # --- in --------------------------------------------------------------------------------------------------

    def refused(self, path: Learned) -> str:
        """Why a learned route is not used; "" when it is."""
        source = self._sessions.get(path.neighbour)
        if source is None:
            return f"{show(path.neighbour)} is no neighbour any more"
        attributes = path.attributes
        if self._asn in attributes.as_path:
            return f"this node's AS{self._asn} is in its path"
        if attributes.originator == self._router_id:
            return "this node is its originator"
        if self._own.reflector and self._own.reflector in attributes.clusters:
            return f"it has passed cluster {show(self._own.reflector)} already"
        if attributes.next_hop in self._own.addresses:
            return "this node is its next hop"
        for mine in self._mine:
            if mine.covers(path.prefix):
                return f"inside this node's pod CIDR {mine}"
        for network, reason in self._rejected:
            if network.covers(path.prefix):
                return f"{reason} ({network})"
        return ""

    def accepted(self, learned: Iterable[Learned]) -> list[Learned]:
        """Those that are used."""
        return [path for path in learned if not self.refused(path)]

    def routes(self, accepted: Iterable[Learned]) -> dict[Prefix, tuple[bytes, ...]]:
        """Sorted next hops for each prefix, for the kernel."""
        found = {}
        for prefix, paths in _by_prefix(accepted).items():
            hops = {path.attributes.next_hop for path in self.equals(paths)}
            found[prefix] = tuple(sorted(hops)[:MAX_PATHS])
        return found

    def first(self, accepted: Iterable[Learned]) -> dict[Prefix, Learned]:
        """The one best path to each prefix: of equal ones that of the lowest router, then neighbour (9.1.2.2 f, g)."""
        return {
            prefix: min(
                self.equals(paths),
                key=lambda path: (
                    path.attributes.originator or path.router_id,
                    len(path.attributes.clusters),
                    path.neighbour,
                ),
            )
            for prefix, paths in _by_prefix(accepted).items()
        }

    def equals(self, paths: Sequence[Learned]) -> list[Learned]:
        """Of several paths to one prefix those no rule tells apart."""
        if len(paths) == 1:
            return list(paths)
        kept = _least(paths, lambda path: -_preference(path.attributes))
        kept = _least(kept, lambda path: len(path.attributes.as_path))
        kept = _least(kept, lambda path: ORIGINS.index(path.attributes.origin))
        kept = _without_worse_med(kept)
        return _least(kept, lambda path: int(self._sessions[path.neighbour].internal))


def _preference(attributes: Attributes) -> int:
    return DEFAULT_PREF if attributes.local_pref is None else attributes.local_pref


def _by_prefix(paths: Iterable[Learned]) -> dict[Prefix, list[Learned]]:
    found: dict[Prefix, list[Learned]] = {}
    for path in paths:
        found.setdefault(path.prefix, []).append(path)
    return found


def _least(paths: Sequence[Learned], key: Callable[[Learned], int]) -> list[Learned]:
    least = min(map(key, paths))
    return [path for path in paths if key(path) == least]


def _without_worse_med(paths: Sequence[Learned]) -> list[Learned]:
    """Discriminators are compared among paths through the same neighbouring AS only (9.1.2.2 c)."""
    least: dict[int, int] = {}
    for path in paths:
        asn, med = _first_as(path), path.attributes.med or 0
        least[asn] = min(med, least.get(asn, med))
    return [path for path in paths if (path.attributes.med or 0) == least[_first_as(path)]]


def _first_as(path: Learned) -> int:
    return path.attributes.as_path[0] if path.attributes.as_path else 0
