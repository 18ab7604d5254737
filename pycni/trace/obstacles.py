"""What keeps a packet from going on, as far as states tell: switches, ports, sockets. Pure.

Each gives what decided and why, or None when the packet may pass.
"""

from __future__ import annotations

from typing import NamedTuple

from pycni.model.family import show
from pycni.model.space import LinkState, SpaceState
from pycni.trace import lookup
from pycni.trace.lookup import Query
from pycni.trace.model import ICMP, ICMPV6, TCP, Flow

_STRICT = "1"


class Obstacle(NamedTuple):
    """What stops a packet."""

    kind: str
    detail: str
    reason: str


def reverse_path(state: SpaceState, device: str, flow: Flow) -> Obstacle | None:
    """Strict reverse-path filtering (fib_validate_source; IPv4 only)."""
    if len(flow.source) != 4:
        return None
    modes = [state.sysctls.get(f"net/ipv4/conf/{device}/rp_filter", "0")]
    modes.append(state.sysctls.get("net.ipv4.conf.all.rp_filter", "0"))
    if max(modes) != _STRICT:
        return None
    back = lookup.route(state, Query(flow.source, flow.destination))
    if back is not None and back.kind != "local" and back.device == device:
        return None
    way = lookup.route_text(back) if back is not None else "no route"
    reason = f"rp_filter is strict on {device} and answers to {show(flow.source)} would go: {way}"
    return Obstacle("rp-filter", f"rp_filter {device}=1", reason)


def forwarding(state: SpaceState, flow: Flow, device: str) -> Obstacle | None:
    """Whether the namespace routes at all, and what comes in by this device (IN_DEV_FORWARD)."""
    four = len(flow.destination) == 4
    name = "net.ipv4.ip_forward" if four else "net.ipv6.conf.all.forwarding"
    if state.sysctls.get(name, "1") == "0":
        return Obstacle("forwarding-off", f"{name}=0", f"{name} is 0: the node forwards nothing")
    if four and state.sysctls.get(f"net/ipv4/conf/{device}/forwarding", "1") == "0":
        name = f"net.ipv4.conf.{device}.forwarding"
        reason = f"{name} is 0: nothing that comes in by {device} is forwarded"
        return Obstacle("forwarding-off", f"{name}=0", reason)
    return None


def address(state: SpaceState, space: str, flow: Flow) -> Obstacle | None:
    """Whether who is given an address has it."""
    if any(item.address == flow.destination and not item.trouble for item in state.addresses):
        return None
    whose = f"pod {space}" if space else "the node"
    text = show(flow.destination)
    return Obstacle("address-missing", f"no {text}", f"{whose} does not have {text}, which was given to it")


def socket(state: SpaceState, flow: Flow) -> Obstacle | None:
    """Whether anybody listens, where that is known."""
    if flow.protocol in {ICMP, ICMPV6} or state.listening is None:
        return None
    name = "tcp" if flow.protocol == TCP else "udp"
    anywhere = {bytes(4), bytes(16), flow.destination, bytes(10) + b"\xff\xff" + flow.destination}
    wanted = (name, flow.destination_port)
    if any((item[0], item[2]) == wanted and item[1] in anywhere for item in state.listening):
        return None
    return Obstacle("nobody-listens", "no socket", f"nobody listens on {name} port {flow.destination_port}")


def port(one: LinkState, enter: LinkState | None, leave: LinkState | None, bridge: str) -> Obstacle | None:
    """Why a port of a bridge lets nothing through."""
    detail = f"{one.name} of {bridge}"
    if not (one.up and one.carrier):
        return Obstacle("port-down", detail, f"port {one.name} is down")
    if one.port_state != "forwarding":
        return Obstacle("port-blocked", detail, f"port {one.name} is {one.port_state}")
    if enter is None or leave is None or one is not leave:
        return None
    if enter.name == leave.name and not enter.hairpin:
        return Obstacle(
            "hairpin-off", detail, f"port {one.name} does not send back where it came from (hairpin off)"
        )
    if enter.isolated and leave.isolated:
        reason = f"ports {enter.name} and {leave.name} are isolated from each other"
        return Obstacle("port-isolated", detail, reason)
    return None
