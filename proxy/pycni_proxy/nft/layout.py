"""The nftables table of the service proxy: its sets, its fixed chains, how rows lie in keys and values. Pure.

    table inet pycni_proxy:
      verdicts        map  name -> drop, or goto a chain                            one row per kind of frontend
    for each family N in 4, 6:
      services<N>     map  address . protocol . port -> 0 . name                    one row per frontend
      targets<N><S>   map  index . address . protocol . port -> address . port      one row per target of a frontend
      ids<N>          map  index . address . protocol . port -> 0 . 0 . id          affinity: the id of the index-th
      affinity<N>     map  address . protocol . port . client -> any . id           written by packets, with timeout
      hairpin<N>      set  address . address                                        targets on this node
      cluster_ips<N>  set  address                                                  whose other ports are refused
      cluster<N>, node_ports<N>, service_networks<N>    sets of ranges, by the node's facts

A frontend leads to its chain in two steps, by a name of eight bytes, for the sake of changes: adding an element with a
verdict makes the kernel walk through everything that can be reached, ten thousand such elements each time; a name is
just data. A node port has the address 0: rules clear the destination before they look it up. Chains that frontends lead
to are rows too (``chains``); those of ``fixed_chains`` are there whatever services there are.

Targets lie in sixteen maps each (S: 0 to f, by a checksum of the frontend), for the sake of reading them back: the
kernel starts at the first element again for every 32 KiB of a dump, so that reading a quarter of a million takes ten
seconds from one map and less than one from sixteen.

One ``inet`` table serves both families: chains for reject and masquerade, base chains and the agent's one transaction
are shared, and the kernel looks at the family once per connection. Everything hangs in NAT chains, which see only the
first packet of a connection: the others cost nothing. Rejecting there works since 5.9.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache

from pycni.model.family import Family, Network
from pycni.model.service import FrontendKey, NodeFacts
from pycni.wire.nftmsg import OUTPUT, POSTROUTING, PREROUTING, Hook
from pycni.wire.nftset import IPV4, IPV6, MARK, PORT, PROTO, Field, SetSpec

TABLE = "pycni_proxy"
LAYOUT = "1"
"""Raised when the meaning of a row changes: a table of another layout is replaced."""
AFFINITY_SIZE = 1 << 20
"""Most clients remembered per family. Who comes when it is full is balanced without memory."""
SHARDS = "0123456789abcdef"
TARGETS: Mapping[int, tuple[str, ...]] = {
    version: tuple(f"targets{version}{shard}" for shard in SHARDS) for version in (4, 6)
}
"""The maps of targets by family, in the order of ``SHARDS``."""
CHAINS, VERDICTS, TABLE_ROW = "chains", "verdicts", "table"
VERDICT_MAP = SetSpec(VERDICTS, (MARK, MARK), ())
REFUSE, MASQUERADE = "refuse", "masqueraded"

VERSIONS: Mapping[Family, int] = {Family.V4: 4, Family.V6: 6}
HOOKS: Mapping[str, Hook] = {
    "prerouting": Hook("nat", PREROUTING, -100),
    "output": Hook("nat", OUTPUT, -100),
    "postrouting": Hook("nat", POSTROUTING, 100),
}
_ADDRESS: Mapping[int, Field] = {4: IPV4, 6: IPV6}
_ZERO = {Family.V4: bytes(4), Family.V6: bytes(16)}
_FILLING = bytes(8)
_TAIL = struct.Struct(">BxxxHxx")
_PORT = struct.Struct(">Hxx")
INDEX = tuple(struct.pack("=I", number) for number in range(2048))
"""Indexes as they lie in keys."""


def index(number: int) -> bytes:
    """An index or id as it lies in keys."""
    return INDEX[number] if number < len(INDEX) else struct.pack("=I", number)


def is_index(key: bytes) -> bool:
    """Whether a key of ``targets`` is one of a pool's indexes, not an id: those are hashes."""
    return bool(struct.unpack_from("=I", key)[0] < 1 << 16)


def frontend_bytes(key: FrontendKey) -> bytes:
    """A frontend as it lies in keys."""
    return (key.address or _ZERO[key.family]) + _TAIL.pack(key.protocol, key.port)


def shard_of(raw: bytes) -> int:
    """Which of the maps of targets a frontend (as it lies in keys) has its targets in."""
    return zlib.crc32(raw) & 15


def frontend_key(raw: bytes) -> FrontendKey:
    """The frontend of a row of ``services``."""
    family = Family.V4 if len(raw) == 12 else Family.V6
    protocol, port = _TAIL.unpack(raw[-8:])
    address = raw[:-8]
    return FrontendKey(family, b"" if address == _ZERO[family] else address, protocol, port)


def id_bytes(place: bytes) -> bytes:
    """An id (as ``index`` gives it) as it lies in values of ``ids``."""
    return _FILLING + place


def id_place(raw: bytes) -> bytes:
    """The id of a value of ``ids`` or ``affinity``, as it lies in keys."""
    return raw[-4:]


@lru_cache(maxsize=65536)
def verdict_name(verdict: str) -> bytes:
    """The name of a verdict (``drop`` or a chain) as it lies in the keys of ``verdicts``."""
    return hashlib.blake2b(verdict.encode(), digest_size=8).digest()


@lru_cache(maxsize=65536)
def verdict_value(verdict: str) -> bytes:
    """The same as it lies in the values of ``services``."""
    return bytes(4) + verdict_name(verdict)


def named_by(raw: bytes) -> bytes:
    """The verdict's name in a value of ``services``."""
    return raw[4:]


@lru_cache(maxsize=4096)
def port_bytes(port: int) -> bytes:
    """A port as it lies behind an address in values of ``targets``."""
    return _PORT.pack(port)


def target_parts(raw: bytes) -> tuple[bytes, int]:
    """Address and port of a value of ``targets``."""
    return raw[:-4], _PORT.unpack(raw[-4:])[0]


def row_sets(version: int) -> dict[str, SetSpec]:
    """The sets whose elements are rows, in dependency order."""
    address = _ADDRESS[version]
    where = (address, PROTO, PORT)
    specs = (
        *(SetSpec(name, (MARK, *where), (address, PORT)) for name in TARGETS[version]),
        SetSpec(f"ids{version}", (MARK, *where), (MARK, MARK, MARK)),
        SetSpec(f"hairpin{version}", (address, address)),
        SetSpec(f"cluster_ips{version}", (address,)),
        SetSpec(f"services{version}", where, (MARK, MARK, MARK), counted=True),
    )
    return {spec.name: spec for spec in specs}


def affinity_map(version: int) -> SetSpec:
    """The map that packets write to."""
    address = _ADDRESS[version]
    return SetSpec(f"affinity{version}", (address, PROTO, PORT, address), (MARK, MARK), dynamic=AFFINITY_SIZE)


def range_set(name: str, version: int) -> SetSpec:
    """A set of networks."""
    return SetSpec(f"{name}{version}", (_ADDRESS[version],), interval=True)


def networks(facts: NodeFacts, version: int) -> dict[str, list[tuple[bytes, bytes]]]:
    """What the sets of ranges hold: name -> disjoint, sorted ranges (first, last address)."""
    node_ports: Iterable[Network] = facts.node_port_ranges or (
        ipaddress.ip_network(packed) for packed in facts.addresses
    )
    return {
        "cluster": _ranges(facts.cluster_networks, version),
        "node_ports": _ranges(node_ports, version),
        "service_networks": _ranges(facts.service_networks, version),
    }


def fixed_chains(facts: NodeFacts) -> dict[str, tuple[str, ...]]:
    """The chains that are always there, with their rules (in the notation of ``rules``)."""
    versions = [VERSIONS[family] for family in facts.families]
    chains: dict[str, tuple[str, ...]] = {
        REFUSE: ("reset", "unreachable"),
        MASQUERADE: ("unmark", "masquerade"),
        **{f"services{version}": _entry(facts, version) for version in versions},
    }
    enter = tuple(f"family {version} goto services{version}" for version in versions)
    chains["prerouting"] = chains["output"] = enter
    hairpin = tuple(f"hairpin {version} goto {MASQUERADE}" for version in versions)
    chains["postrouting"] = (*hairpin, f"marked goto {MASQUERADE}")
    return chains


def generation(facts: NodeFacts) -> str:
    """Names everything of the table that is no row: another generation is replaced as a whole."""
    fixed = repr((LAYOUT, sorted(fixed_chains(facts).items()), facts.masquerade_mark))
    parts = [fixed, *(repr(sorted(networks(facts, VERSIONS[family]).items())) for family in facts.families)]
    return f"pycni {LAYOUT} {hashlib.sha256(''.join(parts).encode()).hexdigest()[:16]}"


def _entry(facts: NodeFacts, version: int) -> tuple[str, ...]:
    """What a new connection meets: a frontend, a node port, then what is said of other service addresses."""
    family = next(family for family, number in VERSIONS.items() if number == version)
    rules = [f"serve {version} vip"]
    filled = networks(facts, version)
    if filled["node_ports"]:
        rules.append(f"serve {version} {'local' if facts.node_port_ranges else 'port'}")
    rules.append(f"unknown {version} goto {REFUSE}")
    if filled["service_networks"]:
        rules.append(f"unallocated {version} drop")
    assert family in facts.families
    return tuple(rules)


def _ranges(nets: Iterable[Network], version: int) -> list[tuple[bytes, bytes]]:
    """Networks of one family as ranges that do not touch."""
    found: list[tuple[bytes, bytes]] = []
    some = [net for net in nets if net.version == version]
    for net in sorted(ipaddress.collapse_addresses(some)):  # type: ignore[type-var]
        first, last = net.network_address, net.broadcast_address
        if found and int.from_bytes(found[-1][1], "big") + 1 == int(first):
            found[-1] = (found[-1][0], last.packed)
        else:
            found.append((first.packed, last.packed))
    return found
