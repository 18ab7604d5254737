"""What stands in the chains that frontends lead to: which rules choose, remember, mark and translate. Pure.

Life: ``Chains.entry`` turns what matters of a frontend for its chains (its ``Shape``) into the verdict of its row in
``services`` and the chains it needs. A chain's name tells its contents, so that all services of one shape share one:
ten thousand ClusterIPs with five endpoints each need one chain for each map of targets. Services that ask to be served
in exact turn have chains of their own, because the kernel counts per rule.

    <kind><N><S>-<vip|port>-<how>-<count>[-<offset>][-<affinity>s]   kind cluster, others or plain (by masquerading)
    local<N>-...      externalTrafficPolicy Local: by source to the cluster-wide pool, or to the local one
    ranges<N>-...     loadBalancerSourceRanges in front of one of those
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from pycni.model.family import Family, Network
from pycni.model.service import NodeFacts, Verdict
from pycni_proxy.nft.layout import REFUSE, SHARDS, VERSIONS

INSIDE = 1024
"""Where the indexes of a frontend's cluster-wide pool start, beside the local one's."""
LOST = "drop"
"""Ends chains that translate, for a packet that met a row as it changed: sent again, it is translated, whereas one that
went on would be remembered by connection tracking as nobody's."""
EMPTY = {Verdict.REJECT: REFUSE, Verdict.DROP: "drop"}
"""Where frontends without targets lead."""


class Choice(NamedTuple):
    """How one of the targets of a pool is chosen."""

    how: str
    """See ``rules``."""
    size: int
    """Indexes; 0: no targets."""
    empty: str = REFUSE
    """Where it leads then."""


class Shape(NamedTuple):
    """All of a frontend that its chains depend on."""

    version: int
    """4 or 6."""
    shard: int
    """See ``layout.shard_of``."""
    cluster_ip: bool
    node_port: bool
    pool: Choice
    inside: Choice | None
    local_only: bool
    ranges: tuple[Network, ...] | None
    affinity_s: int
    own: str
    """Part of the names of chains that are not shared; "" for shared ones."""


class Entry(NamedTuple):
    """Where a frontend's row leads to."""

    verdict: str
    """``drop`` or a chain."""
    chains: dict[str, tuple[str, ...]]
    """Chains it needs besides the fixed ones: name -> rules."""


class Chains:
    """Chains by shape, made once each."""

    def __init__(self, facts: NodeFacts) -> None:
        self._facts = facts
        self._known: dict[Shape, Entry] = {}
        self._outside = {
            VERSIONS[family]: self._masquerade_rule(VERSIONS[family]) for family in facts.families
        }

    def entry(self, shape: Shape) -> Entry:
        """Verdict and chains of a shape."""
        found = self._known.get(shape)
        if found is None:
            chains: dict[str, tuple[str, ...]] = {}
            found = Entry(self._ranges(shape, self._balance(shape, chains), chains), chains)
            if not shape.own:
                self._known[shape] = found
        return found

    def _masquerade_rule(self, version: int) -> tuple[str, ...]:
        """What marks connections to a ClusterIP."""
        if self._facts.masquerade_all:
            return ("mark",)
        if self._outside_known(version):
            return (f"outside {version} mark",)
        return ()

    def _balance(self, shape: Shape, chains: dict[str, tuple[str, ...]]) -> str:
        if shape.cluster_ip:
            return self._pool("cluster", shape, shape.pool, 0, chains)
        if not shape.local_only:
            return self._pool("others", shape, shape.pool, 0, chains)
        inside = shape.pool if shape.inside is None else shape.inside
        offset = 0 if shape.inside is None else INSIDE
        near = self._pool("plain", shape, inside, offset, chains)
        here = self._pool("plain", shape, shape.pool, 0, chains)
        version = shape.version
        rules = [f"node mark goto {near}"] if near not in EMPTY.values() else [f"node {_go(near)}"]
        if shape.inside is not None and self._outside_known(shape.version):
            rules.append(f"cluster {version} {_go(near)}")
        name = f"local{version}-{_digest(near, here)}{shape.own and '-' + shape.own}"
        chains[name] = (*rules, _go(here))
        return name

    def _outside_known(self, version: int) -> bool:
        return any(net.version == version for net in self._facts.cluster_networks)

    def _pool(
        self, kind: str, shape: Shape, choice: Choice, offset: int, chains: dict[str, tuple[str, ...]]
    ) -> str:
        """The chain that translates to one of a pool's targets, or the verdict when it has none."""
        if not choice.size:
            return choice.empty
        version = shape.version
        where = "port" if shape.node_port else "vip"
        shard = SHARDS[shape.shard]
        name = f"{kind}{version}{shard}-{where}-{choice.how}-{choice.size}"
        name += f"-{offset}" if offset else ""
        name += f"-{shape.affinity_s}s" if shape.affinity_s else ""
        name += f"-{shape.own}" if shape.own else ""
        mark = {"cluster": self._outside[version], "others": ("mark",), "plain": ()}[kind]
        to = f"{version} {shard} {where}"
        how = f"{choice.how} {choice.size} {offset}"
        if not shape.affinity_s:
            chains[name] = (*mark, f"dnat {to} {how}", LOST)
        else:
            chains[name] = (
                *mark,
                f"recall {to} {shape.affinity_s}",
                f"forget {to}",
                f"learn {to} {how} {shape.affinity_s}",
                f"pick {to} {how}",
                LOST,
            )
        return name

    def _ranges(self, shape: Shape, then: str, chains: dict[str, tuple[str, ...]]) -> str:
        """Source ranges in front of a verdict."""
        if shape.ranges is None:
            return then
        mine = [net for net in shape.ranges if net.version == shape.version]
        rules = [f"from {net} {_go(then)}" for net in mine]
        addresses = [
            packed for packed in self._facts.addresses if VERSIONS[Family.of_packed(packed)] == shape.version
        ]
        if any(_holds(net, packed) for net in mine for packed in addresses):
            rules.insert(0, f"node {_go(then)}")
        name = f"ranges{shape.version}-{_digest(*rules)}{shape.own and '-' + shape.own}"
        chains[name] = (*rules, "drop")
        return name


def _go(verdict: str) -> str:
    """A verdict as the end of a rule."""
    return "goto " + verdict


def _holds(net: Network, packed: bytes) -> bool:
    return int.from_bytes(packed, "big") >> (net.max_prefixlen - net.prefixlen) == int(
        net.network_address
    ) >> (net.max_prefixlen - net.prefixlen)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
