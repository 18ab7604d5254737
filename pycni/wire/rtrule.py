"""rtnetlink messages about routing rules, decoded. Pure.

fib_rule_hdr: u8 family | u8 dst len | u8 src len | u8 tos | u8 table | u8,u8 reserved | u8 action | u32 flags
                                                                        (include/uapi/linux/fib_rules.h)
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pycni.wire.netlink import Message, message, parse_attrs, text

RTM_NEWRULE, RTM_GETRULE = 32, 34
FRA_DST, FRA_SRC, FRA_IIFNAME, FRA_PRIORITY, FRA_FWMARK, FRA_TABLE = 1, 2, 3, 6, 10, 15
FRA_FWMASK, FRA_OIFNAME = 16, 17
FR_ACT_TO_TBL = 1
FIB_RULE_INVERT = 2
ACTIONS = {1: "lookup", 2: "goto", 3: "nop", 6: "blackhole", 7: "unreachable", 8: "prohibit"}

_HEAD = struct.Struct("=BBBBBxxBI")
_U32 = struct.Struct("=I")


class RuleInfo(NamedTuple):
    """A rule as the kernel lists it. Addresses are packed; empty: any."""

    family: int
    priority: int
    action: int
    table: int
    source: bytes
    source_len: int
    destination: bytes
    destination_len: int
    iif: str
    oif: str
    mark: int
    mask: int
    inverted: bool


def dump_rules(family: int) -> bytes:
    """Dump the rules of a family."""
    return message(RTM_GETRULE, 0, _HEAD.pack(family, 0, 0, 0, 0, 0, 0))


def parse_rule(msg: Message) -> RuleInfo:
    """Decode RTM_NEWRULE. Raises MalformedError or struct.error on foreign bytes."""
    family, destination_len, source_len, _tos, table, action, flags = _HEAD.unpack_from(msg.payload)
    attrs = parse_attrs(msg.payload, _HEAD.size)

    def number(kind: int, default: int = 0) -> int:
        return int(_U32.unpack_from(attrs[kind])[0]) if kind in attrs else default

    return RuleInfo(
        family=family,
        priority=number(FRA_PRIORITY),
        action=action,
        table=number(FRA_TABLE, table),
        source=attrs.get(FRA_SRC, b""),
        source_len=source_len,
        destination=attrs.get(FRA_DST, b""),
        destination_len=destination_len,
        iif=text(attrs.get(FRA_IIFNAME, b"")),
        oif=text(attrs.get(FRA_OIFNAME, b"")),
        mark=number(FRA_FWMARK),
        mask=number(FRA_FWMASK),
        inverted=bool(flags & FIB_RULE_INVERT),
    )
