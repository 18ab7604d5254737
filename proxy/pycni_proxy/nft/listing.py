"""The table as nft prints it: for logs, ``pycnictl dump``, tests, and the equal ruleset that benchmarks load. Pure.

``nft -f`` loads it, unless a service has session affinity: nft 1.0.6 has no words for a map read inside a key, though
it lists such rules; they are printed with the inner map in parentheses. The step from a frontend by a name to its
verdict (see ``layout``) is left out: ``services<N>`` is printed as a verdict map.
"""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pycni.model.family import show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.model.service import NodeFacts
from pycni_proxy.nft.layout import (
    CHAINS,
    HOOKS,
    TABLE,
    VERDICTS,
    VERSIONS,
    affinity_map,
    fixed_chains,
    frontend_key,
    generation,
    id_place,
    named_by,
    networks,
    range_set,
    target_parts,
)
from pycni_proxy.nft.rules import nft_text
from pycni_proxy.nft.schema import sets_in_order

_HOOK_NAMES = {"prerouting": "dstnat", "output": "-100", "postrouting": "srcnat"}


def table_text(facts: NodeFacts, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """All of the table. Rows are sorted."""
    lines = [f"table inet {TABLE} {{", f'\tcomment "{generation(facts)}"']
    for family in facts.families:
        lines += _set_lines(facts, VERSIONS[family], tables)
    for name, rules in {**fixed_chains(facts), **dict(sorted(tables.get(CHAINS, {}).items()))}.items():
        lines.append(f"\tchain {name} {{")
        hook = HOOKS.get(name)
        if hook is not None:
            priority = _HOOK_NAMES[name]
            lines.append(f"\t\ttype {hook.kind} hook {name} priority {priority}; policy accept;")
        lines += [f"\t\t{nft_text(rule, facts.masquerade_mark)}" for rule in rules]
        lines.append("\t}")
    return [*lines, "}"]


def _set_lines(facts: NodeFacts, version: int, tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    ip = "ip" if version == 4 else "ip6"
    where = f"{ip} daddr . meta l4proto . th dport"
    kinds = {
        "targets": ("map", f"typeof numgen random mod 2 . {where} : {ip} daddr . th dport"),
        "ids": ("map", f"typeof numgen random mod 2 . {where} : meta mark . meta mark . meta mark"),
        "hairpin": ("set", f"typeof {ip} saddr . {ip} daddr"),
        "cluster_ips": ("set", f"typeof {ip} daddr"),
        "services": ("map", f"type ipv{version}_addr . inet_proto . inet_service : verdict"),
    }
    lines = []
    for name, ranges in networks(facts, version).items():
        lines += _block("set", range_set(name, version).name, f"type ipv{version}_addr", "flags interval")
        lines[-1:] = [*_elements(_range(*item) for item in ranges), "\t}"]
    memory = affinity_map(version)
    kind = f"typeof {where} . {ip} saddr : meta mark . meta mark"
    lines += _block("map", memory.name, kind, f"size {memory.dynamic}", "flags dynamic,timeout")
    for spec in sets_in_order(version):
        name = spec.name.partition(str(version))[0]
        lines += _block(kinds[name][0], spec.name, kinds[name][1], *(["counter"] if spec.counted else []))
        rows = tables.get(spec.name, {})
        if name == "services":
            rows = {key: tables[VERDICTS][named_by(value)] for key, value in rows.items()}
        lines[-1:] = [*_elements(_row(name, key, rows[key]) for key in sorted(rows)), "\t}"]
    return lines


def _block(kind: str, name: str, *body: str) -> list[str]:
    return [f"\t{kind} {name} {{", *(f"\t\t{line}" for line in body), "\t}"]


def _elements(texts: Iterable[str]) -> list[str]:
    found = ",\n\t\t\t     ".join(texts)
    return [f"\t\telements = {{ {found} }}"] if found else []


def _range(first: bytes, last: bytes) -> str:
    nets = list(ipaddress.summarize_address_range(ipaddress.ip_address(first), ipaddress.ip_address(last)))
    return str(nets[0]) if len(nets) == 1 else f"{show(first)}-{show(last)}"


def _row(name: str, key: bytes, value: Any) -> str:
    if name == "cluster_ips":
        return show(key)
    if name == "hairpin":
        half = len(key) // 2
        return f"{show(key[:half])} . {show(key[half:])}"
    if name == "services":
        return f"{_where(key)} : {value if value == 'drop' else f'goto {value}'}"
    text = f"{_number(key[:4])} . {_where(key[4:])}"
    if name == "ids":
        return f"{text} : 0 . 0 . {_number(id_place(value)):#010x}"
    address, port = target_parts(value)
    return f"{text} : {show(address)} . {port}"


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, sys.byteorder)


def _where(raw: bytes) -> str:
    key = frontend_key(raw)
    address = show(raw[:-8])
    return f"{address} . {PROTOCOL_NAMES[key.protocol].lower()} . {key.port}"
