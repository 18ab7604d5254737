"""The nftables table of network policies: its sets, its fixed chains, how rows lie in keys and values. Pure.

    table inet pycni_policy:
    for each family N in 4, 6 and each direction D:
      verdicts_<D>N          map  name -> jump to a chain                     one row per combination of policies
      judged_<D>N            map  address -> 0 . name                      pods of this node that policies judge
      closed_<D>N            set  address                                  who is dropped without a verdict by it
      ownN, selfN            set  address; address . address               the node's; pairs of one pod's addresses
      groupsN                set  address . group                          who is in groups of pods
      blocksN                set  ranges of place . address                what ipBlocks allow
      namedN                 set  address . port . name                    pods' ports of a name
    for all of them:
      ports                  set  ranges of place . protocol . port        what ports rules allow
      classes                map  the same -> 0 . group or place of blocks who may, where that depends on the port

    chains
      egress, ingress        hooks: first packets only, then ``egressN``, ``ingressN``
      pods-<D>N-<hash>       one combination of policies, shared by all pods that have it
      rest-<D>N-<hash>       the part of a combination that Pass rules lead to
      np-<D>N-<policy>       what one NetworkPolicy allows
      deny-<D>-<hash>        counts, logs and drops, by the policies that deny

Both base chains hang in postrouting before masquerading: there every packet to or from a pod passes once with the
addresses of both ends, also what bridges hand on (bridge-nf-call-iptables) and what IPVS has translated, which never
sees forward. What accepts in ``egress`` leads on to ``ingress``: two hooks, two verdicts. What a pod sends to its own
node never comes by, and needs no judging (docs/policy.md, step 1). Packets that bear ``base.JUDGED_MARK`` are let pass:
a fast path of this node, which has the same policies, has judged their connection.

A verdict that is added, in a rule or a map, makes the kernel walk through everything that can be reached, so what
changes often is data. A pod leads to its chain in two steps, by a name of eight bytes. Rules look up groups, blocks and
ports in sets that all of them share, by a name of eight bytes beside what the packet has: a group's is what it says,
that of blocks and ports their place (policy, direction, number of the rule). So a pod that comes or goes is one element
per group it belongs to, other blocks or ports of a policy are other elements, and no set comes or goes: the kernel
finds sets by looking through all of them. As it walks through a map of verdicts once for each rule that looks it up,
every such rule has a map of its own.

A transaction is not one moment for a packet that is on its way through: it goes on by the rules there were when it
came in, but finds the elements there are when it looks. So it can be led to a chain that is new, which has no rules for
it. All chains of pods therefore end with a verdict, are jumped to, and whoever comes back without one is dropped.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache

from pycni.model.policy import Direction
from pycni.view.policy_rules import Named
from pycni.wire.nftmsg import POSTROUTING, Hook
from pycni.wire.nftset import IPV4, IPV6, MARK, PORT, SetSpec, number

TABLE = "pycni_policy"
LAYOUT = "4"
"""Raised when the meaning of a row changes: a table of another layout is replaced."""
LOG_GROUP, LOG_RATE, LOG_BURST = 100, 10, 20
"""nfnetlink_log group; per chain of denials so many packets in a second, and so many at once."""
NEIGHBOURS = ((130, 137), (143, 143))
"""ICMPv6 types that always pass: MLD and neighbour discovery (RFC 2710, 4861), MLDv2 reports (RFC 3810)."""
PREFIX_MAX = 120
"""Bytes of a log prefix; the kernel takes 127."""

TABLE_ROW, CHAINS, PORTS, CLASSES = "table", "chains", "ports", "classes"
VERSIONS = (4, 6)
SIDES = {Direction.EGRESS: "egress", Direction.INGRESS: "ingress"}
HOOKS = {"egress": Hook("filter", POSTROUTING, 90), "ingress": Hook("filter", POSTROUTING, 91)}
_ADDRESS = {4: IPV4, 6: IPV6}
_FILLING = bytes(4)
ID = 8
"""Bytes of names inside keys."""
_PLAIN = re.compile(r"[A-Za-z0-9._/-]+")


def version_of(address: bytes) -> int:
    """4 or 6."""
    return 4 if len(address) == 4 else 6


def row_sets() -> dict[str, SetSpec]:
    """The sets, whose elements are rows, in dependency order."""
    specs = [
        SetSpec(PORTS, (number(ID + 8),), interval=True),
        SetSpec(CLASSES, (number(ID + 8),), (MARK, MARK, MARK), interval=True),
    ]
    for version in VERSIONS:
        address = _ADDRESS[version]
        specs += (SetSpec(f"own{version}", (address,)), SetSpec(f"self{version}", (address, address)))
        specs.append(SetSpec(groups(version), (address, MARK, MARK)))
        specs.append(SetSpec(blocks(version), (number(ID + address.size),), interval=True))
        specs.append(SetSpec(named_ports(version), (address, PORT, MARK, MARK)))
        for side in SIDES.values():
            specs.append(SetSpec(verdicts(side, version), (MARK, MARK), (), returns=True))
            specs.append(SetSpec(f"judged_{side}{version}", (address,), (MARK, MARK, MARK)))
            specs.append(SetSpec(f"closed_{side}{version}", (address,)))
    return {spec.name: spec for spec in specs}


def groups(version: int) -> str:
    """Name of the set of groups' members."""
    return f"groups{version}"


def blocks(version: int) -> str:
    """Name of the set of blocks."""
    return f"blocks{version}"


def named_ports(version: int) -> str:
    """Name of the set of ports that have names."""
    return f"named{version}"


@lru_cache(maxsize=65536)
def group_id(group: str) -> bytes:
    """A group's name (hexadecimal) as it lies in keys."""
    return bytes.fromhex(group).ljust(ID, b"\0")


@lru_cache(maxsize=65536)
def place(kind: str, policy: str, side: str, index: int) -> str:
    """Name of a rule's place, for its blocks and ports; hexadecimal."""
    return hashlib.blake2b(f"{kind} {side} {index} {policy}".encode(), digest_size=ID).hexdigest()


@lru_cache(maxsize=4096)
def named_id(named: Named) -> bytes:
    """A port's name as it lies in keys."""
    return hashlib.blake2b(f"{named[0]} {plain(named[1])}".encode(), digest_size=ID).digest()


def service_bytes(protocol: int, port: int) -> bytes:
    """Protocol and port as they lie in keys."""
    return bytes((protocol, 0, 0, 0)) + port_bytes(port)


@lru_cache(maxsize=65536)
def port_bytes(port: int) -> bytes:
    """A port as it lies in keys."""
    return port.to_bytes(2, "big") + b"\0\0"


def verdicts(side: str, version: int) -> str:
    """Name of the map of verdicts of a direction and family."""
    return f"verdicts_{side}{version}"


@lru_cache(maxsize=65536)
def verdict_name(chain: str) -> bytes:
    """The name of a chain as it lies in keys of ``verdicts_*``."""
    return hashlib.blake2b(chain.encode(), digest_size=8).digest()


def named_value(name: bytes) -> bytes:
    """A name as it lies in values of ``judged_*`` and ``classes``."""
    return _FILLING + name


def named_by(value: bytes) -> bytes:
    """The name in such a value."""
    return value[len(_FILLING) :]


def policy_chain(version: int, side: str, key: str) -> str:
    """The chain of a NetworkPolicy (``namespace/name``)."""
    return f"np-{side}{version}-{shortened(plain(key), 180)}"


def hashed(kind: str, rules: Sequence[str]) -> str:
    """The name of a chain that is named by what it does."""
    return f"{kind}-{hashlib.blake2b('|'.join(rules).encode(), digest_size=8).hexdigest()}"


def shortened(text: str, most: int) -> str:
    """A text of at most so many bytes; what is cut off is told apart by a checksum."""
    if len(text.encode()) <= most:
        return text
    return f"{text[: most - 10]}..{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def fixed_chains() -> dict[str, tuple[str, ...]]:
    """The chains that are always there, with their rules (in the notation of ``rules``)."""
    found: dict[str, tuple[str, ...]] = {}
    for side in SIDES.values():
        found[f"deny-{side}-closed"] = denial(side, ["pods not known yet"])
        for version in VERSIONS:
            found[f"{side}{version}"] = (
                f"own {version} source accept",
                f"own {version} destination accept",
                f"self {version} accept",
                f"judge {version} {side}",
                f"closed {version} {side} goto deny-{side}-closed",
            )
        enter = tuple(f"family {version} goto {side}{version}" for version in VERSIONS)
        neighbours = (f"neighbours {first} {last} accept" for first, last in NEIGHBOURS)
        found[side] = ("established accept", "judged accept", *neighbours, "local accept", *enter)
    return found


def plain(name: str) -> str:
    """A name as a word; one that no API server would have let in is named by a checksum."""
    if _PLAIN.fullmatch(name):
        return name
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def denial(side: str, policies: Sequence[str]) -> tuple[str, ...]:
    """The rules of a chain that denies in the name of policies (``NetworkPolicy a/x``)."""
    names = [shortened(name, 200) for name in policies]
    more = f" +{len(names) - 1}" if len(names) > 1 else ""
    first = shortened(policies[0], PREFIX_MAX - len("pycni ingress : ") - len(more))
    return (*(f"count {side} {name}" for name in names), f"log pycni {side} {first}{more}: ", "drop")


def generation() -> str:
    """Names everything of the table that is no row: another generation is replaced as a whole."""
    raw = repr(
        (LAYOUT, sorted(fixed_chains().items()), sorted(HOOKS.items()), LOG_GROUP, LOG_RATE, LOG_BURST)
    )
    return f"pycni {LAYOUT} {hashlib.sha256(raw.encode()).hexdigest()[:16]}"
