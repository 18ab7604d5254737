"""The IPVS data plane's tables as text, in the notation of the tools that would make them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pycni.model.family import Family, show
from pycni.wire.ipset import member_text
from pycni.wire.ipvs import DestKey, dest_line, service_line
from pycni_proxy.ipvs.names import DEVICE


def lines(tables: Mapping[str, Mapping[Any, Any]]) -> list[str]:
    """``ipvsadm -Sn``, ``ipset save``, ``ip``, ``iptables-save`` and ``sysctl`` lines, sorted."""
    return sorted(
        line
        for name, entries in tables.items()
        for key, value in entries.items()
        for line in _lines(name, key, value)
    )


def _lines(table: str, key: Any, value: Any) -> Iterator[str]:
    if table == "services":
        yield service_line(key, value)
    elif table == "dests":
        service, address, port = key
        yield dest_line(service, DestKey(address, port), value)
    elif table in {"members", "addresses"}:
        yield f"add {key[0]} {member_text(key[1], value)}"
    elif table == "vips":
        yield f"ip address add {show(key)}/{len(key) * 8} dev {DEVICE}"
    elif table == "sets":
        marks = " skbinfo" if value.marks else ""
        family = f"family {'inet' if value.family is Family.V4 else 'inet6'}"
        kind = "range 0-65535" if value.type.startswith("bitmap:") else family
        yield f"create {key} {value.type} {kind}{marks}"
    elif table == "rules":
        family, name = key
        tool = "iptables" if family is Family.V4 else "ip6tables"
        yield from (f"{tool} -t {name} {line}" for line in value)
    elif table == "switches":
        yield f"sysctl {key} = {value}"
    elif table == "direct":
        yield from _direct(key)


def _direct(key: tuple[Any, Any]) -> Iterator[str]:
    first, second = key
    if first == "routing":
        yield f"direct server return: {second.label} packets with its mark are delivered here"
    else:
        yield f"direct server return: tunnel into pod {show(first)}, which answers as {show(second)}"
