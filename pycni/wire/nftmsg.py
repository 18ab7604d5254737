"""Messages of nf_tables without I/O: tables, chains, rules and the batch that makes a transaction of them.

Life: pure code makes messages (here and in ``wire/nftset``) with sequence number 0; ``batch`` puts the two edges around
them and numbers all; the kernel carries out all of it or nothing. Dumps are asked for by ``get_*`` messages, whose
answers ``decode_*`` take apart.

    nlmsghdr type: u8 message | u8 subsystem (10)     nfgenmsg: u8 family | u8 version | be16 resource id
                                             (include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h)

A rule carries its own notation as a comment (NFTA_RULE_USERDATA), a table its generation: that is how a restarted
agent knows them again without understanding expressions, and what ``nft list`` shows to people.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from pycni.wire.netlink import (
    HEADER,
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    attr,
    attr_str,
    message,
    nested,
    parse_attrs,
    text,
)

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNL_SUBSYS_NFTABLES = 10
NFPROTO_INET, NFPROTO_NETDEV, NFPROTO_BRIDGE = 1, 5, 7
_FAMILY_AT = 16
"""Where ``nfgenmsg`` begins: behind the netlink header."""

NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE, GETRULE, DELRULE = 6, 7, 8
NEWSET, GETSET, DELSET = 9, 10, 11
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = 0, 1, 2, 3, 4
"""Hook numbers of the IP families (enum nf_inet_hooks)."""
NETDEV_INGRESS, NETDEV_EGRESS = 0, 1
"""Those of family netdev (enum nf_dev_hooks; egress from kernel 5.16 on)."""

_TABLE_COMMENT, _RULE_COMMENT = 0, 0
"""libnftnl's types of the user data that holds a comment (libnftnl/udata.h)."""
_NUMBER = struct.Struct("=I")
_NESTED = struct.Struct("=HH")
_RULE_EXPRESSIONS = 4 | NLA_F_NESTED
_NEWRULE = NFNL_SUBSYS_NFTABLES << 8 | NEWRULE
_APPEND = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_APPEND
_BE32 = struct.Struct(">I")
_BE32S = struct.Struct(">i")


class Hook(NamedTuple):
    """Where a base chain hangs. Its policy is to accept."""

    kind: str
    """filter, nat or route."""
    number: int
    priority: int
    device: str = ""
    """Family netdev: the one device, which has to be there; the chain goes with it."""


class RuleComment(NamedTuple):
    """What a dump of rules is read for."""

    chain: str
    comment: str
    """"" for a rule without one."""


class RuleCount(NamedTuple):
    """What a rule has counted."""

    chain: str
    comment: str
    packets: int
    bytes: int


def nfgenmsg(family: int, resource: int = 0) -> bytes:
    """The header behind the netlink header."""
    return struct.pack("=BB", family, 0) + struct.pack(">H", resource)


_INET = nfgenmsg(NFPROTO_INET)


def nft_message(kind: int, flags: int, *attrs: bytes) -> bytes:
    """A message about an object of an ``inet`` table, sequence number 0."""
    return message(NFNL_SUBSYS_NFTABLES << 8 | kind, NLM_F_REQUEST | flags, _INET + b"".join(attrs))


def in_family(msg: bytes, family: int) -> bytes:
    """The same message about an object of a table of another family."""
    return msg if family == NFPROTO_INET else msg[:_FAMILY_AT] + bytes((family,)) + msg[_FAMILY_AT + 1 :]


def attr_be32(kind: int, value: int) -> bytes:
    """An attribute with 32 bits, network order (nearly all numbers of nf_tables)."""
    return attr(kind, _BE32.pack(value))


def attr_be64(kind: int, value: int) -> bytes:
    """An attribute with 64 bits, network order."""
    return attr(kind, struct.pack(">Q", value))


def batch(messages: Sequence[bytes], seq: int, *, check: bool = False) -> bytearray:
    """One transaction. Messages are numbered from ``seq`` on, the edges before and after; the last one asks for an ACK.

    ``messages`` must not be empty. With ``check`` the end is left out: the kernel tries everything and takes it back.
    """
    edge = nfgenmsg(0, NFNL_SUBSYS_NFTABLES)
    parts = [message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, edge), *messages]
    if not check:
        parts.append(message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, edge))
    out = bytearray().join(parts)
    at = 0
    for number, part in enumerate(parts, seq - 1):
        _NUMBER.pack_into(out, at + 8, number)
        if number == seq + len(messages) - 1:
            out[at + 6] |= NLM_F_ACK
        at += len(part)
    return out


def add_table(table: str, comment: str = "") -> bytes:
    """Create a table; one that is there stays as it is (its comment too)."""
    data = attr(6, _comment(_TABLE_COMMENT, comment)) if comment else b""
    return nft_message(NEWTABLE, NLM_F_CREATE, attr_str(1, table), attr_be32(2, 0), data)


def delete_table(table: str) -> bytes:
    """Delete a table with everything in it; ENOENT when there is none."""
    return nft_message(DELTABLE, 0, attr_str(1, table))


def add_chain(table: str, name: str, hook: Hook | None = None) -> bytes:
    """Create a chain; one that is there stays."""
    attrs = [attr_str(1, table), attr_str(3, name)]
    if hook is not None:
        attrs.append(attr_str(7, hook.kind))
        attrs.append(attr_be32(5, 1))
        device = attr_str(3, hook.device) if hook.device else b""
        attrs.append(nested(4, attr_be32(1, hook.number), attr(2, _BE32S.pack(hook.priority)), device))
    return nft_message(NEWCHAIN, NLM_F_CREATE, *attrs)


def delete_chain(table: str, name: str) -> bytes:
    """Delete a chain without rules: ENOENT when there is none, EBUSY when something leads to it."""
    return nft_message(DELCHAIN, 0, attr_str(1, table), attr_str(3, name))


def add_rule(table: str, chain: str, expressions: bytes, comment: str = "") -> bytes:
    """Append a rule. ``expressions`` are those of ``wire/nftexpr``, joined; the comment has up to 250 bytes."""
    # There are many rules: everything is joined at once.
    place = _place(table, chain)
    data = attr(7, _comment(_RULE_COMMENT, comment)) if comment else b""
    size = len(expressions)
    edge = HEADER.pack(24 + len(place) + size + len(data), _NEWRULE, _APPEND, 0, 0)
    return b"".join((edge, _INET, place, _NESTED.pack(4 + size, _RULE_EXPRESSIONS), expressions, data))


@lru_cache(maxsize=64)
def _place(table: str, chain: str) -> bytes:
    return attr_str(1, table) + attr_str(2, chain)


def flush_chain(table: str, chain: str) -> bytes:
    """Delete all rules of a chain; ENOENT when there is no such chain."""
    return nft_message(DELRULE, 0, attr_str(1, table), attr_str(2, chain))


def get_table(table: str) -> bytes:
    """Ask for one table (no dump)."""
    return nft_message(GETTABLE, 0, attr_str(1, table))


def get_chains() -> bytes:
    """Ask for the chains of all ``inet`` tables (a dump; the kernel does not filter by table)."""
    return nft_message(GETCHAIN, 0)


def get_rules(table: str, chain: str = "") -> bytes:
    """Ask for the rules of one table or one chain (a dump)."""
    return nft_message(GETRULE, 0, attr_str(1, table), attr_str(2, chain) if chain else b"")


def decode_table_comment(payload: bytes) -> str:
    """The comment of a NEWTABLE message."""
    return _comment_of(parse_attrs(payload, 4).get(6, b""))


def decode_chain(payload: bytes) -> tuple[str, str]:
    """Table and name of a NEWCHAIN message."""
    attrs = parse_attrs(payload, 4)
    return text(attrs.get(1, b"")), text(attrs.get(3, b""))


def decode_rule(payload: bytes) -> RuleComment:
    """Chain and comment of a NEWRULE message."""
    attrs = parse_attrs(payload, 4)
    return RuleComment(text(attrs.get(2, b"")), _comment_of(attrs.get(7, b"")))


def decode_rule_count(payload: bytes) -> RuleCount | None:
    """The counter of a NEWRULE message; None for a rule without one."""
    attrs = parse_attrs(payload, 4)
    expressions = attrs.get(4, b"")
    at = 0
    while at + 4 <= len(expressions):
        size = int.from_bytes(expressions[at : at + 2], sys.byteorder)
        if size < 4:
            break
        body = parse_attrs(expressions[at + 4 : at + size])
        if text(body.get(1, b"")) == "counter":
            data = parse_attrs(body.get(2, b""))
            counted = (int.from_bytes(data.get(kind, b""), "big") for kind in (2, 1))
            return RuleCount(text(attrs.get(2, b"")), _comment_of(attrs.get(7, b"")), *counted)
        at += (size + 3) & ~3
    return None


def _comment(kind: int, comment: str) -> bytes:
    """User data as libnftnl keeps it: type, length, zero-terminated text."""
    raw = comment.encode() + b"\0"
    return bytes((kind, len(raw))) + raw


def _comment_of(data: bytes) -> str:
    at = 0
    while at + 2 <= len(data):
        kind, size = data[at], data[at + 1]
        if kind == _RULE_COMMENT:
            return text(data[at + 2 : at + 2 + size])
        at += 2 + size
    return ""
