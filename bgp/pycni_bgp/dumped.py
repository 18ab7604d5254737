"""BGP as it is wanted and as it is, line by line, for ``pycnictl dump``. The component asks engine and kernel.

sessions      neighbour 172.20.0.2 as 64512 Established
announced     172.20.0.2: 10.244.1.0/24                    what a neighbour is to be told, and was
routes        10.244.2.0/24 via 172.20.0.2 proto 113       what was learned, for the kernel, and what that has
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pycni.agent.status_dump import section
from pycni.agent.status_model import Section
from pycni.model.family import show
from pycni_bgp.engine import Plan, Session
from pycni_bgp.model import Prefix
from pycni_bgp.rib import Rib

UP = "Established"
Hops = Mapping[Prefix, tuple[bytes, ...]]


class There(NamedTuple):
    """What the engine and the kernel say."""

    sessions: Sequence[Session]
    told: Mapping[bytes, Iterable[str]] | None
    """Prefixes by neighbour; None: the engine does not tell."""
    learned: Hops
    """What is to be in the kernel, with gateways next to this node."""
    kernel: Hops
    protocol: str
    """Of these routes, as ip-route(8) shows it."""


def sections(plan: Plan, there: There, notes: Iterable[str]) -> list[Section]:
    """All there are. ``notes``: the engine's troubles."""
    peers = sorted(plan.sessions.values(), key=lambda item: (len(item.address), item.address))
    states = {item.address: item.state for item in there.sessions}
    found = [
        section(
            "bgp",
            "sessions",
            [_session(peer.address, peer.asn, UP) for peer in peers],
            [
                *(
                    _session(peer.address, peer.asn, states[peer.address])
                    for peer in peers
                    if peer.address in states
                ),
                *(_session(address, 0, states[address]) for address in states.keys() - plan.sessions.keys()),
            ],
            notes,
        )
    ]
    if there.told is not None:
        rib = Rib(plan.settings, plan.own, plan.router_id, plan.sessions, draining=plan.draining)
        wanted = [
            f"{show(peer.address)}: {prefix}"
            for peer in peers
            for prefix, item in sorted(plan.local.items())
            if not rib.withheld(peer, prefix, item)
        ]
        own = {str(prefix) for prefix in plan.local}
        told = sorted(
            f"{show(address)}: {text}"
            for address, texts in there.told.items()
            for text in texts
            # A reflector passes on what it learned, too.
            if text in own or not plan.own.reflector
        )
        found.append(section("bgp", "announced", sorted(wanted), told))
    protocol = there.protocol
    found.append(section("bgp", "routes", _routes(there.learned, protocol), _routes(there.kernel, protocol)))
    return found


def _session(address: bytes, asn: int, state: str) -> str:
    return f"neighbour {show(address)}{f' as {asn}' if asn else ''} {state}"


def _routes(hops: Hops, protocol: str) -> list[str]:
    found = []
    for prefix, gateways in sorted(hops.items()):
        via = "".join(f" nexthop via {show(item)}" for item in gateways)
        via = via.removeprefix(" nexthop") if len(gateways) == 1 else via
        found.append(f"{prefix}{' ' * bool(via)}{via.strip()} proto {protocol}")
    return found
