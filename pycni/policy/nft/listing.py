"""The table as nft prints it: for logs, ``pycnictl dump`` and tests. ``nft -f`` loads it. Pure.

The step from a pod to its chain by a name (see ``layout``) is left out: ``judged_*`` are printed as verdict maps.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.policy.nft.layout import (
    CHAINS,
    ELEMENTS,
    HOOKS,
    SETS,
    TABLE,
    fixed_chains,
    generation,
    kinds,
    named_by,
    row_sets,
)
from pycni.policy.nft.rules import nft_text
from pycni.wire.nftset import IPV4, PORT, PROTO, SetSpec


def table_text(tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """All of the table. Rows are sorted."""
    lines = [f"table inet {TABLE} {{", f'\tcomment "{generation()}"']
    chains = {**fixed_chains(), **dict(sorted(tables.get(CHAINS, {}).items()))}
    # nft wants to know of a chain before something leads to it.
    lines += [f"\tchain {name} {{\n\t}}" for name in chains if name not in HOOKS]
    for name, spec in row_sets().items():
        if spec.value != ():
            rows = tables.get(name, {})
            lines += _set(
                spec,
                "map" if spec.value else "set",
                (_row(spec, key, rows[key], tables) for key in sorted(rows)),
            )
    elements: dict[str, list[bytes]] = {}
    for name, key in tables.get(ELEMENTS, {}):
        elements.setdefault(name, []).append(key)
    for name in sorted(tables.get(SETS, {})):
        spec = kinds(name)
        lines += _set(spec, "set", (_member(spec, key) for key in sorted(elements.get(name, ()))))
    for name, rules in chains.items():
        lines += _chain(name, rules)
    return [*lines, "}"]


def _chain(name: str, rules: Iterable[str]) -> Iterator[str]:
    yield f"\tchain {name} {{"
    hook = HOOKS.get(name)
    if hook is not None:
        yield f"\t\ttype {hook.kind} hook postrouting priority {hook.priority}; policy accept;"
    yield from (f"\t\t{nft_text(rule)}" for rule in rules)
    yield "\t}"


def _set(spec: SetSpec, kind: str, texts: Iterable[str]) -> Iterator[str]:
    names = {4: "ipv4_addr", 16: "ipv6_addr", 2: "inet_service", 1: "inet_proto"}
    yield f"\t{kind} {spec.name} {{"
    yield f"\t\ttype {' . '.join(names[field.size] for field in spec.key)}{' : verdict' if kind == 'map' else ''}"
    if spec.interval:
        yield "\t\tflags interval"
    found = ",\n\t\t\t     ".join(texts)
    if found:
        yield f"\t\telements = {{ {found} }}"
    yield "\t}"


def _row(spec: SetSpec, key: bytes, value: Any, tables: Mapping[str, Mapping[Any, Any]]) -> str:
    if spec.value:
        leads = tables[spec.name.replace("judged", "verdicts")][named_by(value)]
        return f"{show(key)} : goto {leads}"
    return _member(spec, key)


def _member(spec: SetSpec, key: bytes) -> str:
    if spec.interval:
        half = spec.key_size
        first, last = (ipaddress.ip_address(part) for part in (key[:half], key[half:]))
        nets = list(ipaddress.summarize_address_range(first, last))
        return str(nets[0]) if len(nets) == 1 else f"{first}-{last}"
    if spec.key[0] == PROTO:
        return f"{PROTOCOL_NAMES[key[0]].lower()} . {int.from_bytes(key[4:6], 'big')}"
    size = 4 if spec.key[0] == IPV4 else 16
    if len(spec.key) == 1:
        return show(key)
    if spec.key[1] == PORT:
        return f"{show(key[:size])} . {int.from_bytes(key[size : size + 2], 'big')}"
    return f"{show(key[:size])} . {show(key[size:])}"
