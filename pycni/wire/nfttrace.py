"""nftables' rule traces: the table that asks for them, and the messages that tell of them. Pure.

Life: ``table`` makes one short-lived table whose rules set ``meta nftrace`` for packets that have certain bytes at
certain places; the table is owned by its socket (NFT_TABLE_F_OWNER, Linux 5.12), so the kernel removes it when that is
closed, however that comes about. From then on the kernel announces every rule such a packet matches to the multicast
group NFNLGRP_NFTRACE; ``decode`` takes the announcements apart.

Packets are sorted by their outermost protocol first, so that others meet a handful of comparisons.

    NFTA_TRACE_*: table 1, chain 2, rule handle 3, type 4 (policy 1, return 2, rule 3), verdict 5 (code 1, chain 2),
    id 6, link, network, transport header 7, 8, 9, incoming, outgoing interface 10, 12, family 15, policy 16
                        (include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nf_tables_trace.c)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycni.model.spot import Spot
from pycni.wire.netlink import MalformedError, attr_str, parse_attrs, split, text
from pycni.wire.nftexpr import NETWORK_HEADER, cmp, goto, immediate, meta, payload, set_meta
from pycni.wire.nftmsg import (
    GETRULE,
    NEWTABLE,
    NFNL_SUBSYS_NFTABLES,
    NFPROTO_BRIDGE,
    OUTPUT,
    PREROUTING,
    Hook,
    add_chain,
    add_rule,
    attr_be32,
    attr_be64,
    nft_message,
)

GROUP = 9
"""NFNLGRP_NFTRACE."""
FIRST = -2000
"""Priority: before everybody, connection tracking's defragmentation (-400) too."""
_TRACE = 17
_OWNER = 2
_CREATE = 0x400
_META_PROTOCOL, _META_NFTRACE, _META_L4PROTO = 1, 12, 16
_ETHERTYPE = {4: b"\x08\x00", 6: b"\x86\xdd"}
_POLICY, _RETURN, _RULE = 1, 2, 3
_CODES = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    4: "repeat",
    -1: "continue",
    -2: "break",
    -5: "return",
}
_LEADING = {-3: "jump", -4: "goto"}
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_BE32, _BE32S, _BE64 = struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">Q")


class Met(NamedTuple):
    """A rule that a packet matched, or the end of a chain it came to."""

    family: str
    table: str
    chain: str
    handle: int
    """Of the rule; 0: a chain's policy or end."""
    kind: str
    """rule, policy or return (the end of a chain was reached)."""
    verdict: str
    """drop, accept, continue, return, ``jump x``, ``goto x`` ..."""
    packet: int
    """The same number: the same packet in the same namespace."""
    network: bytes
    """The packet's network header; with the first message of each chain only."""
    transport: bytes
    iif: int
    """Index of the interface it came by; 0: none. So is ``oif``."""
    oif: int


def table(name: str, spots: Sequence[Spot], family: int) -> list[bytes]:
    """Messages of the transaction that makes the table. ``family``: NFPROTO_INET or NFPROTO_BRIDGE."""
    groups: dict[tuple[int, int], list[Spot]] = {}
    for spot in spots:
        groups.setdefault((spot.version, spot.protocol), []).append(spot)
    found = [nft_message(NEWTABLE, _CREATE, attr_str(1, name), attr_be32(2, _OWNER))]
    # Bridged packets that a node sends itself have met the other family's rules before.
    hooks = {"prerouting": PREROUTING} | ({"output": OUTPUT} if family != NFPROTO_BRIDGE else {})
    for chain, number in hooks.items():
        found.append(add_chain(name, chain, Hook("filter", number, FIRST)))
    found += [add_chain(name, _group(*key)) for key in groups]
    for key, members in groups.items():
        for spot in members:
            found.append(add_rule(name, _group(*key), _mark(spot)))
    for chain in hooks:
        for version, protocol in groups:
            found.append(add_rule(name, chain, _sort(version, protocol)))
    return found


def rule(name: str, chain: str, handle: int) -> bytes:
    """A message that asks for one rule (no dump)."""
    return nft_message(GETRULE, 0, attr_str(1, name), attr_str(2, chain), attr_be64(3, handle))


def decode(datagram: bytes) -> Iterator[Met]:
    """What a datagram of the group tells; other messages are passed over. Raises MalformedError."""
    for msg in split(datagram):
        if msg.kind == NFNL_SUBSYS_NFTABLES << 8 | _TRACE:
            try:
                yield _met(msg.payload)
            except struct.error as exc:
                raise MalformedError(f"rule trace: {exc}") from exc


def _met(data: bytes) -> Met:
    attrs = parse_attrs(data, 4)
    kind = _number(attrs, 4)
    verdict = parse_attrs(attrs.get(5, b""))
    code = _BE32S.unpack(verdict[1])[0] if 1 in verdict else 0
    words = _CODES.get(code, str(code))
    if code in _LEADING:
        words = f"{_LEADING[code]} {text(verdict.get(2, b''))}"
    if kind == _POLICY:
        words = _CODES.get(_number(attrs, 16), "?")
    return Met(
        _FAMILIES.get(data[0], str(data[0])),
        text(attrs.get(1, b"")),
        text(attrs.get(2, b"")),
        int(_BE64.unpack(attrs[3])[0]) if 3 in attrs else 0,
        {_POLICY: "policy", _RETURN: "return", _RULE: "rule"}.get(kind, str(kind)),
        words,
        _number(attrs, 6),
        attrs.get(8, b""),
        attrs.get(9, b""),
        _number(attrs, 10),
        _number(attrs, 12),
    )


def _number(attrs: dict[int, bytes], kind: int) -> int:
    return int(_BE32.unpack(attrs[kind])[0]) if kind in attrs else 0


def _group(version: int, protocol: int) -> str:
    return f"ip{version}-{protocol}"


def _sort(version: int, protocol: int) -> bytes:
    return b"".join(
        (
            meta(_META_L4PROTO, 0),
            cmp(0, bytes((protocol,))),
            meta(_META_PROTOCOL, 0),
            cmp(0, _ETHERTYPE[version]),
            goto(_group(version, protocol)),
        )
    )


def _mark(spot: Spot) -> bytes:
    return b"".join(
        (
            payload(NETWORK_HEADER, spot.offset, len(spot.value), 0),
            cmp(0, spot.value),
            immediate(0, b"\1"),
            set_meta(_META_NFTRACE, 0),
        )
    )
