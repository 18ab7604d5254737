"""A plan as the configuration of exabgp 5 (its documentation, "Configuration"). Pure: same plan, same text.

Only sessions are in it; what is announced goes by the relay. The text holds passwords: it is for files only their owner
can read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pycni.errors import ConfigError
from pycni.model.family import Family, show
from pycni_bgp.engine import Plan
from pycni_bgp.model import Neighbour

TTL_MAX = 255


def config(plan: Plan, relay: Sequence[str]) -> str:
    """The whole configuration; ``relay``: the words of the program that carries announcements.

    Raises ConfigError for what exabgp cannot do.
    """
    if plan.settings.ospf is not None:
        raise ConfigError("settings", "ospf", True, "exabgp has no OSPF; bgp-engine bird has")
    if any(set(word) & set("\"';{} \n") for word in relay):
        raise ConfigError("settings", "bgp-dir", " ".join(relay), "exabgp takes no blanks and quotes in it")
    lines = ["process relay {", f"  run {' '.join(relay)};", "  encoder json;", "}"]
    for neighbour in sorted(plan.sessions.values(), key=lambda item: item.address):
        lines += _session(plan, neighbour)
    return "\n".join(lines) + "\n"


def own_address(plan: Plan, neighbour: Neighbour) -> bytes:
    """Where this node's end of a session is. Raises ConfigError without an address of the family."""
    if local := plan.local_address(neighbour):
        return local
    for address in plan.own.addresses:
        if Family.of_packed(address) is neighbour.family:
            return address
    reason = f"this node has no {neighbour.family.label} address"
    raise ConfigError(f"neighbour {neighbour}", "localip", "", reason)


def _session(plan: Plan, neighbour: Neighbour) -> Iterator[str]:
    if neighbour.bfd is not None:
        raise ConfigError(f"neighbour {neighbour}", "bfd", True, "exabgp has no BFD; bgp-engine bird has")
    yield f"neighbor {show(neighbour.address)} {{"
    yield f"  router-id {show(plan.router_id)};"
    yield f"  local-address {show(own_address(plan, neighbour))};"
    yield f"  local-as {neighbour.local_asn};"
    yield f"  peer-as {neighbour.asn};"
    yield f"  hold-time {plan.settings.hold_s};"
    yield f"  connect {neighbour.port};"
    if neighbour.node and neighbour.address > own_address(plan, neighbour):
        # Two that connect at once to each other hang up on each other for a while: one of two nodes waits.
        yield "  passive true;"
    # Neighbours learn by it that all has been said; before that they keep what they had.
    yield "  manual-eor true;"
    if not neighbour.internal:
        yield f"  outgoing-ttl {TTL_MAX if neighbour.ttl_security else neighbour.hops};"
    if neighbour.ttl_security:
        yield f"  incoming-ttl {TTL_MAX + 1 - neighbour.hops};"
    if neighbour.password is not None:
        yield f"  md5-password {_quoted(neighbour)};"
        yield "  md5-base64 false;"
    yield "  capability {"
    if plan.settings.graceful:
        yield f"    graceful-restart {plan.settings.restart_s};"
    yield "    route-refresh enable;"
    yield "    asn4 enable;"
    yield "  }"
    yield "  family { ipv4 unicast; ipv6 unicast; }"
    yield "  api {"
    yield "    processes [ relay ];"
    yield "    neighbor-changes;"
    yield "    receive { parsed; update; open; notification; }"
    yield "  }"
    yield "}"


def _quoted(neighbour: Neighbour) -> str:
    assert neighbour.password is not None, "asked for one that has a password"
    text = neighbour.password.reveal()
    if set(text) & set("\"'{};\\#") or not text.isprintable():
        reason = "exabgp takes no quotation marks, braces, semicolons, backslashes and # in passwords"
        raise ConfigError(f"neighbour {neighbour}", "password", neighbour.password, reason)
    return f'"{text}"'
