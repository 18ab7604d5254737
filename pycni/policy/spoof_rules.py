"""The nftables table that holds pods to their own addresses: sets, chains, rows of a pod, rules as instructions. Pure.

    table bridge pycni_guard:
      pods                set  device                         host ends of pods; others' frames are left alone
      macs                set  device . MAC
      own4, own6          set  device . address               the addresses of a pod
      link6               set  device . address               its link-local address (EUI-64 of its MAC)
      source4, source6    set  device . MAC and EtherType . address    all three at once, for the common case

    chains
      prerouting          hook: what comes by a pod's device; one lookup when its source is the pod's own
      forward             hook: from one pod's device to another's; one lookup when it is to that pod's address

A pod is some elements, named by its device: they can be there before the device is, and cost does not grow with pods.
Frames that leave by a pod's device without having come from a pod (the way back through the node) pass no rule.

Besides packets with another's source these are refused, because policies cannot judge them or another pod could pass as
somebody else by them:

- frames that are neither IPv4, IPv6 nor ARP, tagged ones too (a tag of VLAN 0 hides a packet from the IP hooks, and its
  receiver takes it off);
- ARP with another's sender address, neighbour solicitations and advertisements about another's address or MAC, router
  advertisements and redirects of a pod;
- ICMP errors about packets that were not sent to the pod (connection tracking takes them for part of a connection);
- from pod to pod what is not to the receiver's own address: broadcast, multicast, link-local; but ARP, neighbour
  discovery, MLD and IGMP pass. Towards the node and other ports of the bridge it passes.

What has no address yet passes: DHCP requests, IGMP, probes (ARP, duplicate address detection of the own address), MLD.

A rule in words: conditions joined by " and ", then what becomes of it. ``ll+6/8`` are 8 bytes of the link header from
byte 6 on, ``nh`` and ``th`` network and transport header; ``a,b in SET`` joins keys; ``iif`` and ``oif`` are devices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from pycni.model.family import show, show_mac
from pycni.policy.base import LocalPod
from pycni.policy.nft.layout import LOG_BURST, LOG_GROUP, LOG_RATE
from pycni.wire import nftexpr as x
from pycni.wire.nftmsg import Hook
from pycni.wire.nftset import IPV4, IPV6, Field, SetSpec
from pycni.wire.nfttable import Schema, fixed_messages

TABLE = "pycni_guard"
LAYOUT = "1"
TABLE_ROW, CHAINS = "table", "chains"
IFNAME, ETHER = Field(41, 16), Field(9, 6)
_PRE_ROUTING, _FORWARD = 0, 2
"""Hooks of the bridge family (include/uapi/linux/netfilter_bridge.h); both come before bridged IP hooks (0)."""
_PRIORITY = -290
HOOKS = {
    "prerouting": Hook("filter", _PRE_ROUTING, _PRIORITY),
    "forward": Hook("filter", _FORWARD, _PRIORITY),
}
SETS: Mapping[str, SetSpec] = {
    name: SetSpec(name, (IFNAME, *fields))
    for name, fields in {
        "pods": (),
        "macs": (ETHER,),
        "own4": (IPV4,),
        "own6": (IPV6,),
        "link6": (IPV6,),
        "source4": (ETHER, IPV4),
        "source6": (ETHER, IPV6),
    }.items()
}
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}

Row = tuple[str, bytes]
"""Set and key."""

SOURCE = "spoofed source"
REFUSALS = {
    "source": SOURCE,
    "mac": "spoofed source MAC",
    "arp": "spoofed ARP sender",
    "neighbour": "spoofed neighbour",
    "router": "pod as router",
    "error": "forged ICMP error",
    "frame": "frame without policy",
    "between": "destination without policy",
}
"""Chain -> what is told and counted, in the place of a policy's name."""
_REFUSE = {name: f"goto refuse-{name}" for name in REFUSALS}


def device_key(ifname: str) -> bytes:
    """A device as it begins every key."""
    return ifname.encode().ljust(16, b"\0")


def device_of(key: bytes) -> str:
    """The device of a key."""
    return key[:16].rstrip(b"\0").decode(errors="replace")


def rows(pod: LocalPod) -> frozenset[Row]:
    """The rows of one pod."""
    device, mac = device_key(pod.ifname), pod.mac
    found: set[Row] = {("pods", device), ("macs", device + mac + bytes(2))}
    for address in pod.addresses:
        version = 4 if len(address) == 4 else 6
        found.add((f"own{version}", device + address))
        found.add((f"source{version}", device + mac + _ETHERTYPE[version] + address))
    found.add(("link6", device + link_local(mac)))
    return frozenset(found)


def lines(table: str, generation: str | None, found: Iterable[Row]) -> list[str]:
    """The table (``table bridge pycni_guard``) in the notation of nft(8), an element a line; none when it is not there.

    Its rules never change: ``generation`` names them.
    """
    if generation is None:
        return []
    name = table.removeprefix("table ")
    texts = sorted(f"element {name} {each} {{ {_key_text(each, key)} }}" for each, key in found)
    return [f'{table} comment "{generation}"', *texts]


def _key_text(name: str, key: bytes) -> str:
    device, rest = f'"{device_of(key)}"', key[16:]
    if name == "macs":
        return f"{device} . {show_mac(rest[:6])}"
    if name.startswith("source"):
        return f"{device} . {show_mac(rest[:6])} . {show(rest[8:])}"
    return f"{device} . {show(rest)}" if rest else device


def link_local(mac: bytes) -> bytes:
    """The link-local address of a MAC (RFC 4291 appendix A): what an ADD gives a pod."""
    return b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]


_SOURCE = {4: "nh+12/4", 6: "nh+8/16"}
_DESTINATION = {4: "nh+16/4", 6: "nh+24/16"}
_TARGET = "th+8/16"
"""Of a neighbour solicitation or advertisement (RFC 4861 sections 4.3, 4.4)."""
_EMBEDDED = {4: "th+24/4", 6: "th+32/16"}
"""Destination of the packet an ICMP error is about: behind 8 bytes of ICMP (RFC 792, RFC 4443)."""
_NO_ADDRESS = bytes(16).hex()


def fixed_chains() -> dict[str, tuple[str, ...]]:
    """All chains with their rules."""
    refusals = {f"refuse-{name}": _refusal(text) for name, text in REFUSALS.items()}
    return _hooked_chains() | _own_source_chains() | _other_source_chains() | refusals


def _hooked_chains() -> dict[str, tuple[str, ...]]:
    """Where frames come in, and what passes from pod to pod."""
    return {
        "prerouting": (
            *(
                f"proto{version} and iif,ll+6/8,{_SOURCE[version]} in source{version} then goto from{version}"
                for version in (4, 6)
            ),
            "iif in pods then goto other",
        ),
        "forward": (
            f"proto4 and oif,{_DESTINATION[4]} in own4 then accept",
            "proto6 and nh+8=fe80..febf and iif in pods and oif in pods then goto between",
            f"proto6 and oif,{_DESTINATION[6]} in own6 then accept",
            "iif in pods and oif in pods then goto between",
        ),
        "between": (
            "ll+12=0806 then accept",
            "l4=3a and th+0=82..89 then accept",
            "l4=3a and th+0=8f then accept",
            "proto4 and l4=02 then accept",
            f"then {_REFUSE['between']}",
        ),
    }


def _own_source_chains() -> dict[str, tuple[str, ...]]:
    """Packets whose source is the pod's own: what ICMP in them may say."""
    return {
        "from4": ("l4=01 then goto icmp", "then accept"),
        "icmp": (*(f"th+0={kind} then goto error4" for kind in ("03..05", "0b..0c")), "then accept"),
        "error4": (f"iif,{_EMBEDDED[4]} in own4 then accept", f"then {_REFUSE['error']}"),
        "from6": ("l4=3a then goto icmpv6", "then accept"),
        "icmpv6": (
            "th+0=80..81 then accept",
            "th+0=01..7f then goto error6",
            f"th+0=86 then {_REFUSE['router']}",
            f"th+0=89 then {_REFUSE['router']}",
            "th+0=87..88 then goto neighbour",
            "then accept",
        ),
        "error6": (
            f"iif,{_EMBEDDED[6]} in own6 then accept",
            f"iif,{_EMBEDDED[6]} in link6 then accept",
            f"then {_REFUSE['error']}",
        ),
        "neighbour": (
            f"nh+6!3a then {_REFUSE['neighbour']}",
            "th+0=87 then goto option",
            f"iif,{_TARGET} in own6 then goto option",
            f"iif,{_TARGET} in link6 then goto option",
            f"then {_REFUSE['neighbour']}",
        ),
        "option": (
            "nh+4=0018 then accept",
            f"nh+4!0020 then {_REFUSE['neighbour']}",
            "th+24=0e01 then accept",
            "th+24=0101..0201 and iif,th+26/6 in macs then accept",
            f"then {_REFUSE['neighbour']}",
        ),
    }


def _other_source_chains() -> dict[str, tuple[str, ...]]:
    """Frames that are no packets with the pod's own source: what goes without an address, or with a link-local one."""
    return {
        "other": (
            f"iif,ll+6/6 notin macs then {_REFUSE['mac']}",
            "ll+12=0806 then goto arp",
            "ll+12=0800 then goto other4",
            "ll+12=86dd then goto other6",
            f"then {_REFUSE['frame']}",
        ),
        "arp": (
            f"nh+0!000108000604 then {_REFUSE['arp']}",
            f"iif,nh+8/6 notin macs then {_REFUSE['arp']}",
            "iif,nh+14/4 in own4 then accept",
            f"nh+6!0001 then {_REFUSE['arp']}",
            "nh+14=00000000 then accept",
            f"then {_REFUSE['arp']}",
        ),
        "other4": (
            f"nh+12!00000000 then {_REFUSE['source']}",
            "l4=02 then accept",
            "l4=11 and nh+16=ffffffff and th+0=00440043 then accept",
            f"then {_REFUSE['source']}",
        ),
        "other6": (
            f"iif,{_SOURCE[6]} in link6 then goto from6",
            f"nh+8!{_NO_ADDRESS} then {_REFUSE['source']}",
            f"l4!3a then {_REFUSE['source']}",
            *(f"th+0={kind} then accept" for kind in ("82..85", "8f")),
            f"th+0!87 then {_REFUSE['source']}",
            f"nh+6!3a then {_REFUSE['neighbour']}",
            f"iif,{_TARGET} in own6 then goto option",
            f"iif,{_TARGET} in link6 then goto option",
            f"then {_REFUSE['neighbour']}",
        ),
    }


def _refusal(text: str) -> tuple[str, ...]:
    return (f"count egress {text}", f"log pycni egress {text}: ", "drop")


class Layout(NamedTuple):
    """A table of these sets."""

    table: str
    hooks: Mapping[str, Hook]
    chains: Mapping[str, tuple[str, ...]]

    def generation(self) -> str:
        """Names everything of the table that is no row."""
        raw = repr(
            (LAYOUT, sorted(self.chains.items()), sorted(self.hooks.items()), LOG_GROUP, LOG_RATE, LOG_BURST)
        )
        return f"pycni {LAYOUT} {hashlib.sha256(raw.encode()).hexdigest()[:16]}"

    def schema(self) -> Schema:
        """The table as it is kept."""
        return Schema(
            table=self.table,
            generation=self.generation(),
            table_row=TABLE_ROW,
            chains=CHAINS,
            sets=SETS,
            kept=(),
            fixed=tuple(fixed_messages(self.table, SETS.values(), self.chains, self.hooks, instructions)),
            fixed_chains=self.chains,
            instructions=instructions,
        )


def on_bridges() -> Layout:
    """The table for pods on bridges."""
    return Layout(TABLE, HOOKS, fixed_chains())


# Instructions.

_BASES = {"ll": 0, "nh": x.NETWORK_HEADER, "th": x.TRANSPORT_HEADER}
_META_PROTOCOL, _META_IIFNAME, _META_OIFNAME = 1, 6, 7


@lru_cache(maxsize=256)
def instructions(rule: str) -> bytes:
    """A rule as expressions for ``nftmsg.add_rule``."""
    word, _, rest = rule.partition(" ")
    if word == "count":
        return x.counter()
    if word == "log":
        return x.limit(LOG_RATE, LOG_BURST) + x.log(LOG_GROUP, rest)
    head, found, verdict = rule.rpartition("then ")
    if not found:
        return x.goto(rule)
    conditions = [part for part in head.strip().split(" and ") if part]
    return b"".join(map(_condition, conditions)) + x.goto(verdict.removeprefix("goto "))


def _condition(text: str) -> bytes:
    if text.startswith("proto"):
        return x.meta(_META_PROTOCOL, 0) + x.cmp(0, _ETHERTYPE[int(text[5:])])
    keys, _, rest = text.partition(" ")
    if rest:
        word, name = rest.split()
        return _loads(keys.split(",")) + x.lookup(name, 0, absent=word == "notin")
    for sign, operation in (("=", x.EQ), ("!", x.NEQ)):
        place, found, value = text.partition(sign)
        if found:
            first, _, last = value.partition("..")
            load = _load_value(place, len(first) // 2)
            if last:
                return load + x.within(0, bytes.fromhex(first), bytes.fromhex(last))
            return load + x.cmp(0, bytes.fromhex(first), operation)
    raise ValueError(f"rule of the guard: {text!r}: no condition")


def _load_value(place: str, size: int) -> bytes:
    if place == "l4":
        return x.meta(x.META_L4PROTO, 0)
    base, _, offset = place.partition("+")
    return x.payload(_BASES[base], int(offset), size, 0)


def _loads(places: Iterable[str]) -> bytes:
    """Load what makes up a key, one behind the other."""
    out, register = b"", 0
    for place in places:
        if place in {"iif", "oif"}:
            out += x.meta(_META_IIFNAME if place == "iif" else _META_OIFNAME, register)
            size = IFNAME.size
        else:
            base, _, rest = place.partition("+")
            offset, size = map(int, rest.split("/"))
            out += x.payload(_BASES[base], offset, size, register)
        register += (size + 3) // 4
    return out
