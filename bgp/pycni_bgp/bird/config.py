"""A plan as the configuration of BIRD 2 (its user's guide, chapters 3 to 6). Pure: same plan, same text.

Life: ``config`` is called for every new plan; the engine writes the text, asks BIRD to reconfigure, and BIRD restarts
those sessions only whose block changed. What is announced stands in static protocols of its own kind and family
(``pods4``, ``services6``); filters go by those names. Only what BGP and OSPF learned goes to the kernel, where it stays
when BIRD ends (``persist``); BIRD marks its routes with protocol number 12 (``bird``), which cannot be chosen. What the
kernel knows besides is learned with little preference, for finding the way to next hops.

The text holds passwords: it is for files only their owner can read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from pycni.errors import ConfigError
from pycni.model.family import FAMILIES, Family, show
from pycni_bgp.engine import LEAST_S, Plan
from pycni_bgp.model import BFD_PORT, Bfd, Neighbour, Prefix, Secret, community_numbers
from pycni_bgp.settings import OspfSettings

MAX_PATHS = 64
KNOWN = 160
"""Preference of connected networks: less than of what is announced (200), more than of what is learned (100, 150)."""
METRICS = {Family.V4: 32, Family.V6: 2048}
"""In the kernel; less wanted than routes without one, which have 0 and 1024."""
LOG_BYTES = 1_000_000
CONNECT_S, ERROR_MAX_S = 1, 60
"""Before the first try to connect; after an error, growing to the second."""
RECOVERY_S = 15
"""So long a BIRD that was started again waits for all neighbours before it says anything new. They wait longer."""
METRIC = 20
"""Of what is announced by OSPF: the usual one of external routes."""
SCAN_S = 20
"""How often BIRD compares the kernel's routes with its own."""
HOLDER = "recovery"
"""Makes the recovery of a BIRD that was started again last ``LEAST_S`` at least."""


TO_KERNEL = (
    "filter to_kernel {",
    # OSPF tells of networks this node is connected to itself, too.
    "  if gw = :: then reject;",
    # A neighbour that tells of its own address is next door all the same; IPv6 finds no gateway behind a gateway.
    "  if net.ip = gw then reject;",
    "  if source = RTS_BGP || source ~ [ RTS_OSPF, RTS_OSPF_IA, RTS_OSPF_EXT1, RTS_OSPF_EXT2 ] then accept;",
    "  reject;",
    "}",
)


def config(plan: Plan, log: str) -> str:
    """The whole configuration; BIRD writes its log to the file ``log``, and keeps one old one.

    Raises ConfigError for what BIRD cannot be told.
    """
    lines = [
        f'log "{log}" {LOG_BYTES} "{log}.1" {{ info, remote, warning, error, auth, fatal, bug }};',
        f"router id {show(plan.router_id)};",
        f"graceful restart wait {min(RECOVERY_S, plan.settings.restart_s)};",
        "protocol device { }",
        f"protocol direct {{ ipv4 {{ preference {KNOWN}; }}; ipv6 {{ preference {KNOWN}; }}; }}",
        *_bfd_protocol(plan.sessions.values()),
        *_holder(plan),
    ]
    lines += TO_KERNEL
    lines += _statics(plan)
    for family in FAMILIES:
        lines += _kernel(family)
    lines += _filters(plan)
    for neighbour in sorted(plan.sessions.values(), key=lambda item: item.address):
        lines += _session(plan, neighbour)
    if plan.settings.ospf is not None:
        for family in FAMILIES:
            lines += _ospf(plan, plan.settings.ospf, family)
    return "\n".join(lines) + "\n"


def session_name(address: bytes) -> str:
    """The name of a neighbour's protocol."""
    return f"n{address.hex()}"


def address_of(name: str) -> bytes | None:
    """The neighbour of a protocol; None for other protocols."""
    if not name.startswith("n"):
        return None
    try:
        found = bytes.fromhex(name[1:])
    except ValueError:
        return None
    return found if len(found) in {4, 16} else None


def channel(family: Family) -> str:
    """BIRD's name for a family."""
    return family.label


def _number(family: Family) -> int:
    return 4 if family is Family.V4 else 6


def _own(plan: Plan, family: Family) -> bytes:
    """This node's address of a family, the next hop of its routes; empty without."""
    return next((item for item in plan.own.addresses if Family.of_packed(item) is family), b"")


# --- what is announced ---------------------------------------------------------------------------------------


def _statics(plan: Plan) -> Iterator[str]:
    """In the plan's order, which BIRD does not mind and sorting ten thousand would take longer than all the rest."""
    pods: dict[int, list[Prefix]] = {family.bits // 8: [] for family in FAMILIES}
    services: dict[int, list[Prefix]] = {family.bits // 8: [] for family in FAMILIES}
    for prefix, (kind, _) in plan.local.items():
        (pods if kind == "pod CIDR" else services)[len(prefix[0])].append(prefix)
    for family in FAMILIES:
        for name, prefixes in (("pods", pods), ("services", services)):
            yield f"protocol static {name}{_number(family)} {{"
            yield f"  {channel(family)};"
            if _own(plan, family):
                yield from map(_route, prefixes[family.bits // 8])
            yield "}"


@lru_cache(1 << 16)
def _route(prefix: Prefix) -> str:
    """Remembered, as a change of one announcement among thousands writes all of them again.

    Written ten times faster than by ``show``; IPv6 in full.
    """
    # Blackholes go to no kernel: only what BGP learned does.
    address, length = prefix
    if len(address) == 4:
        one, two, three, four = address
        return f"  route {one}.{two}.{three}.{four}/{length} blackhole;"
    return f"  route {address.hex(':', 2)}/{length} blackhole;"


def _kernel(family: Family) -> Iterator[str]:
    yield f"protocol kernel kernel{_number(family)} {{"
    yield f"  scan time {SCAN_S};"
    yield f"  metric {METRICS[family]};"
    yield "  persist;"
    yield "  learn;"
    # Until neighbours have told everything again, what an earlier run left in the kernel stays.
    yield "  graceful restart;"
    yield f"  merge paths on limit {MAX_PATHS};"
    yield f"  {channel(family)} {{ import all; export filter to_kernel; }};"
    yield "}"


# --- policy --------------------------------------------------------------------------------------------------


def _filters(plan: Plan) -> Iterator[str]:
    for family in FAMILIES:
        number = _number(family)
        yield f"filter in{number} {{"
        for prefix, reason in _refused(plan, family):
            yield f"  if net ~ [ {prefix}+ ] then reject; # {reason}"
        yield "  accept;"
        yield "}"
        yield from _out(plan, family, "nodes")
        yield from _out(plan, family, "routers")


def _refused(plan: Plan, family: Family) -> Iterator[tuple[Prefix, str]]:
    for networks, reason in (
        (plan.own.pod_cidrs, "this node's"),
        (plan.settings.service_networks, "services"),
        (plan.own.reject, "node.bgp.customimportreject"),
    ):
        for network in networks:
            if Family.of(network) is family:
                yield Prefix.of(network), reason


def _out(plan: Plan, family: Family, to: str) -> Iterator[str]:
    """What goes out: for nodes pod CIDRs, and what a reflector reflects; for routers the rest, marked as wished."""
    number = _number(family)
    kinds = ["pods"] if to == "nodes" or plan.settings.pod_cidrs else []
    if to == "routers" and not plan.draining:
        kinds.append("services")
    yield f"filter to_{to}{number} {{"
    for kind in kinds:
        yield f'  if proto = "{kind}{number}" then {{'
        if hop := _own(plan, family):
            yield f"    bgp_next_hop = {show(hop)};"
        if to == "routers":
            yield from _marks(plan)
        yield "    accept;"
        yield "  }"
    if to == "nodes" and plan.own.reflector:
        yield "  if source = RTS_BGP then accept;"
    yield "  reject;"
    yield "}"


def _marks(plan: Plan) -> Iterator[str]:
    for text in plan.own.communities:
        values = community_numbers(text)
        kind = "bgp_large_community" if len(values) == 3 else "bgp_community"
        yield f"    {kind}.add(({','.join(map(str, values))}));"
    if plan.own.prepend:
        asn, times = plan.own.prepend
        yield from [f"    bgp_path.prepend({asn});"] * times


# --- sessions ------------------------------------------------------------------------------------------------


def _bfd_protocol(neighbours: Iterable[Neighbour]) -> Sequence[str]:
    return ["protocol bfd { }"] if any(item.bfd for item in neighbours) else []


def _holder(plan: Plan) -> Iterator[str]:
    """OSPF with nobody: its recovery is over when its time is, and BIRD's own not before."""
    if plan.settings.graceful:
        yield f"protocol ospf v2 {HOLDER} {{"
        yield f"  graceful restart on; graceful restart time {math.ceil(LEAST_S)};"
        yield "  ipv4 { import none; export none; };"
        yield "  area 0 { };"
        yield "}"


def _session(plan: Plan, neighbour: Neighbour) -> Iterator[str]:
    address = plan.local_address(neighbour)
    local = show(address) + " " if address else ""
    yield f"protocol bgp {session_name(neighbour.address)} {{"
    yield f"  local {local}port {plan.port} as {neighbour.local_asn};"
    yield f"  neighbor {show(neighbour.address)} port {neighbour.port} as {neighbour.asn};"
    if plan.own.listen:
        yield "  strict bind on;"
    if not neighbour.internal:
        yield f"  multihop {neighbour.hops};" if neighbour.hops > 1 else "  direct;"
    if neighbour.ttl_security:
        yield "  ttl security on;"
    if neighbour.password is not None:
        yield f"  password {_quoted(f'neighbour {neighbour}', neighbour.password)};"
    if neighbour.client:
        yield "  rr client;"
    if plan.own.reflector and neighbour.internal:
        yield f"  rr cluster id {show(plan.own.reflector)};"
    if neighbour.bfd is not None:
        yield f"  bfd {_bfd(neighbour, neighbour.bfd)};"
    yield f"  hold time {plan.settings.hold_s};"
    yield f"  connect delay time {CONNECT_S};"
    yield f"  error wait time {CONNECT_S}, {ERROR_MAX_S};"
    # With the long-lived kind, which FRR offers unasked, a router silent for the hold time counts as restarting.
    yield "  long lived graceful restart off;"
    if plan.settings.graceful:
        yield "  graceful restart on;"
        yield f"  graceful restart time {plan.settings.restart_s};"
    to = "nodes" if neighbour.node else "routers"
    for family in FAMILIES:
        number = _number(family)
        yield f"  {channel(family)} {{"
        yield f"    import filter in{number};"
        yield f"    export filter to_{to}{number};"
        if neighbour.node and plan.own.reflector and plan.settings.next_hop_self:
            yield "    next hop self ebgp;"
        if family is not neighbour.family and family is Family.V4:
            yield "    extended next hop on;"
        yield "  };"
    yield "}"


def _quoted(owner: str, secret: Secret) -> str:
    text = secret.reveal()
    if '"' in text or not text.isprintable():
        raise ConfigError(owner, "password", secret, 'BIRD takes no quotation marks (") in passwords')
    return f'"{text}"'


def _bfd(neighbour: Neighbour, wish: Bfd) -> str:
    if wish.port != BFD_PORT:
        raise ConfigError(f"neighbour {neighbour}", "bfd.port", wish.port, f"BIRD uses {BFD_PORT} only")
    return (
        f"{{ min rx interval {wish.receive_ms} ms; min tx interval {wish.send_ms} ms;"
        f" multiplier {wish.multiplier}; }}"
    )


# --- OSPF ----------------------------------------------------------------------------------------------------


def _ospf(plan: Plan, wish: OspfSettings, family: Family) -> Iterator[str]:
    """Version 2 for IPv4, 3 for IPv6. What is announced is external to the area, as the pods are no links of it."""
    number = _number(family)
    kinds = ["pods"] if plan.draining else ["pods", "services"]
    yield f"filter to_ospf{number} {{"
    for kind in kinds:
        yield f'  if proto = "{kind}{number}" then {{ ospf_metric2 = {METRIC}; accept; }}'
    yield "  reject;"
    yield "}"
    yield f"protocol ospf v{2 if family is Family.V4 else 3} ospf{number} {{"
    yield "  ecmp on;"
    # BIRD 2.0.12 hangs for ever in a graceful restart of its own when it was the designated router; it helps others.
    yield "  graceful restart aware;"
    yield f"  {channel(family)} {{ import filter in{number}; export filter to_ospf{number}; }};"
    yield f"  area {wish.area} {{"
    for name in wish.interfaces or (plan.uplink,):
        yield f'    interface "{_interface(name)}" {{'
        yield f"      hello {wish.hello_s}; dead {wish.dead_s};"
        if wish.password is not None and family is Family.V4:
            text = _quoted("ospf", wish.password)
            yield f"      authentication cryptographic; password {text} {{ id 1; algorithm keyed md5; }};"
        yield "    };"
    yield "  };"
    yield "}"


def _interface(name: str) -> str:
    if not name or '"' in name or not name.isprintable():
        raise ConfigError("settings", "ospf-interfaces", name, "not the name of an interface")
    return name
