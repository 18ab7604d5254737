"""The nftables tables of policies inside a pod: for attachments whose packets the node's own tables never see. Pure.

A macvlan or ipvlan child of the uplink hands its packets to the wire past all IP hooks of the node. So what
``nft.layout`` has in the node's namespace is here in the pod's, for that one pod:

    table inet pycni_policy_<interface>       sets and chains as in ``nft.layout``, and
      mine4, mine6           set  address                    the attachment's own addresses
      link6, macs            set                             its link-local address, its MAC
      egress                 hook postrouting                what leaves by the interface
      ingress                hook prerouting                 what comes by it; before the pod's own translation
    table netdev pycni_gate_<interface>
      egress                 hook of the interface           every frame, also those of packet sockets
      macs, own4             set                             the interface's MAC, its IPv4 addresses

Packets by other interfaces (the leg to the node, ``lo``) pass: the node's own table judges what comes by a leg.

Packet sockets (CAP_NET_RAW, which runtimes give to pods unasked) send past the IP hooks. So what ``egress`` has seen is
signed by mark and priority, 64 bits that follow from a key of the node's; the gate lets pass signed packets, ARP of the
own address, and nothing else. A pod that may change nftables (CAP_NET_ADMIN) can undo all of this: docs/underlay.md.

Rules are words of ``nft.rules`` and of ``spoof_rules``, and three of their own:

    in IFNAME else accept    what did not come by the interface
    out IFNAME else accept   what does not leave by it
    sign HEX / signed HEX    write, or look for and take away, the signature
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache

from pycni.policy import spoof_rules
from pycni.policy.nft import layout, rules
from pycni.policy.nft.layout import NEIGHBOURS, SIDES, VERSIONS, denial
from pycni.wire import nftexpr as x
from pycni.wire.nftmsg import NETDEV_EGRESS, POSTROUTING, PREROUTING, Hook
from pycni.wire.nftset import IPV4, IPV6, Field, SetSpec
from pycni.wire.nfttable import Schema, fixed_messages

LAYOUT = "1"
TABLE_ROW, CHAINS = layout.TABLE_ROW, layout.CHAINS
ETHER = Field(9, 6)
SIGNATURE = 8
"""Bytes: mark, then priority."""
SOURCE, OTHER, RAW = "spoofed source", "destination without policy", "packet socket"
CLOSED = "pods without their policies yet"
_HOOKS = {"egress": Hook("filter", POSTROUTING, 90), "ingress": Hook("filter", PREROUTING, -150)}
_REFUSALS = {
    "mac": "spoofed source MAC",
    "arp": "spoofed ARP sender",
    "raw": RAW,
    "frame": "frame without policy",
}
_META_PRIORITY, _META_IIFNAME, _META_OIFNAME = 2, 6, 7
_DESTINATION = {4: "nh+16/4", 6: "nh+24/16"}
_DENIALS = {
    "egress": {
        "closed": CLOSED,
        "source": SOURCE,
        "error": spoof_rules.REFUSALS["error"],
        "neighbour": spoof_rules.REFUSALS["neighbour"],
        "router": spoof_rules.REFUSALS["router"],
    },
    "ingress": {"closed": CLOSED, "other": OTHER},
}
"""Chains by direction, with what is told and counted."""


def policy_table(ifname: str) -> str:
    """Name of the table of policies of an interface."""
    return f"{layout.TABLE}_{ifname}"


def gate_table(ifname: str) -> str:
    """Name of the table of the interface's gate."""
    return f"pycni_gate_{ifname}"


def mine(version: int) -> str:
    """Name of the set of own addresses."""
    return f"mine{version}"


def policy_sets() -> dict[str, SetSpec]:
    """The sets of the table of policies, in dependency order."""
    own = {
        name: SetSpec(name, (kind,))
        for name, kind in (("mine4", IPV4), ("mine6", IPV6), ("link6", IPV6), ("macs", ETHER))
    }
    return {**own, **layout.row_sets()}


def policy_schema(ifname: str, signature: bytes, *, senders: bool) -> Schema:
    """The table of policies of an interface.

    ``signature``: of packets that may leave; empty: there is no gate. ``senders``: the pod is held to its own
    addresses.
    """
    chains = _policy_chains(ifname, signature, senders=senders)
    return _schema(policy_table(ifname), policy_sets(), chains, _HOOKS)


def gate_schema(ifname: str, signature: bytes) -> Schema:
    """The table of an interface's gate. The interface has to be there when it is made."""
    sets = {"macs": SetSpec("macs", (ETHER,)), "own4": SetSpec("own4", (IPV4,))}
    hooks = {"egress": Hook("filter", NETDEV_EGRESS, 0, ifname)}
    return _schema(gate_table(ifname), sets, _gate_chains(signature), hooks)


def _policy_chains(ifname: str, signature: bytes, *, senders: bool) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for side, reasons in _DENIALS.items():
        for name, reason in reasons.items():
            found[f"deny-{side}-{name}"] = denial(side, [reason])
    found["option"] = _OPTION
    found["neighbour"] = _NEIGHBOUR
    neighbours = tuple(f"neighbours {first} {last} accept" for first, last in NEIGHBOURS)
    for version in VERSIONS:
        discovery = neighbours if version == 6 else ()
        found[f"egress{version}"] = (
            *(_SENDERS[version] if senders else discovery),
            "established accept",
            f"own {version} destination accept",
            f"judge {version} egress",
            f"closed {version} egress goto deny-egress-closed",
        )
        found[f"ingress{version}"] = (
            *discovery,
            "established accept",
            f"{_DESTINATION[version]} notin {mine(version)} then goto deny-ingress-other",
            f"judge {version} ingress",
            f"closed {version} ingress goto deny-ingress-closed",
        )
    enter = {
        side: [f"family {version} goto {side}{version}" for version in VERSIONS] for side in SIDES.values()
    }
    sign = (f"sign {signature.hex()}",) if signature else ()
    found["egress"] = (f"out {ifname} else accept", *sign, *enter["egress"])
    found["ingress"] = (f"in {ifname} else accept", *enter["ingress"])
    return found


_REFUSE = "goto deny-egress-"
_SENDERS = {
    4: (
        f"nh+12/4 notin mine4 then {_REFUSE}source",
        f"l4=01 and th+0=03..05 and th+24/4 notin mine4 then {_REFUSE}error",
        f"l4=01 and th+0=0b..0c and th+24/4 notin mine4 then {_REFUSE}error",
    ),
    6: (
        f"l4=3a and th+0=86 then {_REFUSE}router",
        f"l4=3a and th+0=89 then {_REFUSE}router",
        "l4=3a and th+0=87..88 then goto neighbour",
        *(f"l4=3a and th+0={kinds} then accept" for kinds in ("82..85", "8f")),
        f"nh+8/16 notin mine6 then {_REFUSE}source",
        f"l4=3a and th+0=01..7f and th+32/16 notin mine6 then {_REFUSE}error",
    ),
}
"""What a pod says of itself and of others: raw sockets can say anything. As ``spoof_rules`` has it for bridges."""
_NEIGHBOUR = (
    f"nh+6!3a then {_REFUSE}neighbour",
    "th+0=87 and nh+8/16 in mine6 then goto option",
    "th+0=87 and nh+8/16 in link6 then goto option",
    f"th+0=87 and nh+8={bytes(16).hex()} then goto option",
    "th+0=88 and th+8/16 in mine6 then goto option",
    "th+0=88 and th+8/16 in link6 then goto option",
    f"then {_REFUSE}neighbour",
)
_OPTION = (
    "nh+4=0018 then accept",
    f"nh+4!0020 then {_REFUSE}neighbour",
    "th+24=0e01 then accept",
    "th+24=0101..0201 and th+26/6 in macs then accept",
    f"then {_REFUSE}neighbour",
)


def _gate_chains(signature: bytes) -> dict[str, tuple[str, ...]]:
    found = {
        "egress": (
            "ll+6/6 notin macs then goto refuse-mac",
            f"signed {signature.hex()} then accept",
            "ll+12=0806 then goto arp",
            "ll+12=0800 then goto refuse-raw",
            "ll+12=86dd then goto refuse-raw",
            "then goto refuse-frame",
        ),
        "arp": (
            "ll+14!000108000604 then goto refuse-arp",
            "ll+22/6 notin macs then goto refuse-arp",
            "ll+28/4 in own4 then accept",
            "ll+20!0001 then goto refuse-arp",
            "ll+28=00000000 then accept",
            "then goto refuse-arp",
        ),
    }
    return found | {f"refuse-{name}": denial("egress", [text]) for name, text in _REFUSALS.items()}


def _schema(
    table: str, sets: Mapping[str, SetSpec], chains: Mapping[str, tuple[str, ...]], hooks: Mapping[str, Hook]
) -> Schema:
    raw = repr((LAYOUT, layout.LAYOUT, table, sorted(chains.items()), sorted(hooks.items())))
    generation = f"pycni {LAYOUT} {hashlib.sha256(raw.encode()).hexdigest()[:16]}"
    return Schema(
        table=table,
        generation=generation,
        table_row=TABLE_ROW,
        chains=CHAINS,
        sets=sets,
        kept=(),
        fixed=tuple(fixed_messages(table, sets.values(), chains, hooks, instructions)),
        fixed_chains=chains,
        instructions=instructions,
    )


@lru_cache(maxsize=4096)
def instructions(rule: str) -> bytes:
    """A rule as expressions for ``nftmsg.add_rule``."""
    words = rule.split()
    match words[0]:
        case "in" | "out":
            key = _META_IIFNAME if words[0] == "in" else _META_OIFNAME
            return x.meta(key, 0) + x.cmp(0, words[1].encode().ljust(16, b"\0"), x.NEQ) + x.goto("accept")
        case "sign":
            mark, priority = _signature(words[1])
            return (
                x.immediate(0, mark)
                + x.set_mark(0)
                + x.immediate(0, priority)
                + x.set_meta(_META_PRIORITY, 0)
            )
        case "signed":
            mark, priority = _signature(words[1])
            seen = x.meta(x.META_MARK, 0) + x.cmp(0, mark) + x.meta(_META_PRIORITY, 0) + x.cmp(0, priority)
            nothing = x.immediate(0, bytes(4)) + x.set_mark(0) + x.set_meta(_META_PRIORITY, 0)
            return seen + nothing + x.goto("accept")
    if "then" in words and words[0] != "if":
        return spoof_rules.instructions(rule)
    return rules.instructions(rule)


def _signature(text: str) -> tuple[bytes, bytes]:
    raw = bytes.fromhex(text)
    return raw[:4], raw[4:]
