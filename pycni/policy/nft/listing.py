"""The table in nft's language, as people would write it: for logs, ``pycnictl dump`` and tests. Pure.

``nft -f`` loads it. Two steps are shown as one: ``judged_*`` as verdict maps, and every group, block, place of ports
and name of a port as a set of its own; what depends on the port by ``classes`` is a rule for each group or block (see
``layout`` for how they lie in the kernel).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.policy.nft.layout import (
    CHAINS,
    CLASSES,
    HOOKS,
    ID,
    PORTS,
    TABLE,
    VERSIONS,
    blocks,
    fixed_chains,
    generation,
    group_id,
    groups,
    named_by,
    named_id,
    named_ports,
    row_sets,
)
from pycni.policy.nft.rules import Condition, condition, nft_text

_ADDRESS = {4: "ipv4_addr", 6: "ipv6_addr"}
_BYTES = {4: 4, 6: 16}


def table_text(tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """All of the table. Rows are sorted."""
    lines = [f"table inet {TABLE} {{", f'\tcomment "{generation()}"']
    chains = {**fixed_chains(), **dict(sorted(tables.get(CHAINS, {}).items()))}
    # nft wants to know of a chain before something leads to it.
    lines += [f"\tchain {name} {{\n\t}}" for name in chains if name not in HOOKS]
    for version in VERSIONS:
        lines += _set(f"own{version}", _ADDRESS[version], map(show, sorted(tables.get(f"own{version}", ()))))
        lines += _own(version, tables)
    chains = {name: tuple(_written_out(rules, tables)) for name, rules in chains.items()}
    lines += _shared(chains.values(), tables)
    for name, rules in chains.items():
        lines += _chain(name, rules)
    return [*lines, "}"]


def _written_out(rules: Iterable[str], tables: Mapping[str, Mapping[Any, Any]]) -> Iterator[str]:
    """Rules with one for each group or block in place of those that look into ``classes``."""
    for rule in rules:
        found = condition(rule) if " group-of " in rule or " block-of " in rule else None
        if found is None:
            yield rule
            continue
        key = bytes.fromhex(found.by_port)
        names = {named_by(value) for row, value in tables.get(CLASSES, {}).items() if row.startswith(key)}
        for name in sorted(names):
            peer = f"group {name[:6].hex()}" if found.group else f"block {name.hex()}"
            ports = f"ports {found.by_port}{name.hex()}"
            yield f"if {found.version} {found.side} {peer} {ports} then {found.verdict}"


def _own(version: int, tables: Mapping[str, Mapping[Any, Any]]) -> Iterator[str]:
    """Sets of one family that are always there, but ``own``."""
    kind, size = _ADDRESS[version], _BYTES[version]
    pairs = sorted(tables.get(f"self{version}", ()))
    yield from _set(
        f"self{version}", f"{kind} . {kind}", (f"{show(key[:size])} . {show(key[size:])}" for key in pairs)
    )
    for name, spec in row_sets().items():
        if spec.key[0].size != size or not name.startswith(("judged", "closed")):
            continue
        rows = tables.get(name, {})
        if name.startswith("closed"):
            yield from _set(name, kind, map(show, sorted(rows)))
            continue
        leads = tables.get(name.replace("judged", "verdicts"), {})
        yield from _set(
            name,
            f"{kind} : verdict",
            (f"{show(key)} : jump {leads[named_by(rows[key])]}" for key in sorted(rows)),
        )


def _shared(chains: Iterable[tuple[str, ...]], tables: Mapping[str, Mapping[Any, Any]]) -> Iterator[str]:
    """What rules look up, as sets of their own."""
    ifs = [condition(rule) for rules in chains for rule in rules if rule.startswith("if ")]
    for version in VERSIONS:
        mine = [found for found in ifs if found.version == version]
        kind, size = _ADDRESS[version], _BYTES[version]
        yield from _split(
            mine,
            lambda found: found.group,
            groups(version),
            kind,
            _by(tables, groups(version), size),
            group_id,
            show,
        )
        yield from _split(
            mine,
            lambda found: found.block,
            blocks(version),
            f"{kind}; flags interval",
            _by(tables, blocks(version), 0),
            bytes.fromhex,
            _block,
        )
        yield from _split(
            mine,
            lambda found: "" if found.named is None else named_id(found.named).hex(),
            named_ports(version),
            f"{kind} . inet_service",
            _by(tables, named_ports(version), size + 4),
            bytes.fromhex,
            lambda key, size=size: f"{show(key[:size])} . {_port(key[size:])}",  # type: ignore[misc]
        )
    kind = "inet_proto . inet_service; flags interval"
    rows = {**_by(tables, PORTS, 0)}
    for row, value in sorted(tables.get(CLASSES, {}).items()):
        rows.setdefault(row[:ID] + named_by(value), []).append(row[ID:])
    yield from _split(ifs, lambda found: found.ports, PORTS, kind, rows, bytes.fromhex, _service)


def _by(tables: Mapping[str, Mapping[Any, Any]], name: str, at: int) -> Mapping[bytes, list[bytes]]:
    """The rows of a set by the name of eight bytes they have at some place, without it."""
    found: dict[bytes, list[bytes]] = {}
    for key in sorted(tables.get(name, ())):
        found.setdefault(key[at : at + ID], []).append(key[:at] + key[at + ID :])
    return found


def _split(  # noqa: PLR0917 - told by its one caller
    ifs: Iterable[Condition],
    used: Callable[[Condition], str],
    name: str,
    kind: str,
    rows: Mapping[bytes, list[bytes]],
    key_of: Callable[[str], bytes],
    member: Callable[[bytes], str],
) -> Iterator[str]:
    for each in sorted({used(found) for found in ifs} - {""}):
        yield from _set(f"{name}-{each}", kind, map(member, rows.get(key_of(each), ())))


def _chain(name: str, rules: Iterable[str]) -> Iterator[str]:
    yield f"\tchain {name} {{"
    hook = HOOKS.get(name)
    if hook is not None:
        yield f"\t\ttype {hook.kind} hook postrouting priority {hook.priority}; policy accept;"
    yield from (f"\t\t{nft_text(rule)}" for rule in rules)
    yield "\t}"


def _set(name: str, kind: str, texts: Iterable[str]) -> Iterator[str]:
    """``kind``: the type, and flags behind a semicolon."""
    typed, _, flags = kind.partition("; ")
    yield f"\t{'map' if typed.endswith('verdict') else 'set'} {name} {{"
    yield f"\t\ttype {typed}"
    if flags:
        yield f"\t\t{flags}"
    found = ",\n\t\t\t     ".join(texts)
    if found:
        yield f"\t\telements = {{ {found} }}"
    yield "\t}"


def _block(row: bytes) -> str:
    """First address, name, last address."""
    half = (len(row) - ID) // 2
    first, last = (ipaddress.ip_address(part) for part in (row[:half], row[half + ID :]))
    nets = list(ipaddress.summarize_address_range(first, last))
    return str(nets[0]) if len(nets) == 1 else f"{first}-{last}"


def _service(row: bytes) -> str:
    first, last = row[:8], row[8 + ID :]
    low, high = _port(first[4:]), _port(last[4:])
    return f"{PROTOCOL_NAMES[first[0]].lower()} . {low}" + (f"-{high}" if high != low else "")


def _port(raw: bytes) -> int:
    return int.from_bytes(raw[:2], "big")
