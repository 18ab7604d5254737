"""The fast path as lines, for ``pycnictl dump``: maps as bpftool(8) lists them, pods, and where programs run."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping

from pycni.model.family import show, show_mac
from pycni.policy.ebpf.devices import Place
from pycni.policy.ebpf.layout import RULES, unpack_address

PodAt = tuple[bytes, int]
"""An address as the maps have it, and the number of its interface."""


def lines(
    tables: Mapping[str, Mapping[bytes, bytes]], pods: Mapping[PodAt, bytes], places: Iterable[Place]
) -> list[str]:
    """``pods``: with their MACs. Interfaces that are gone are shown by number."""
    found = [f"program {place.function} dev {_ifname(place.ifindex)}" for place in places]
    found += [
        f"pod {show(unpack_address(address))} dev {_ifname(ifindex)} address {show_mac(mac)}"
        for (address, ifindex), mac in pods.items()
    ]
    for name, rows in tables.items():
        for key, value in rows.items():
            # How often a rule was met is counted there: only that it is there is compared.
            shown = f" value {value.hex(' ')}" if name != RULES else ""
            found.append(f"map {name} key {key.hex(' ')}{shown}")
    return sorted(found)


def _ifname(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"if{ifindex}"
