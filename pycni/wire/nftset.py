"""Elements of nftables sets as netlink messages: the few bytes behind ``add element`` and ``delete element``. Pure.

    nlmsghdr type: u8 message | u8 subsystem (10)     nfgenmsg: u8 family | u8 version | be16 resource id
    batch: NFNL_MSG_BATCH_BEGIN, messages, NFNL_MSG_BATCH_END; the kernel carries out all of it or nothing

Attributes: SET_ELEM_LIST_TABLE 1, _SET 2, _ELEMENTS 3 > LIST_ELEM 1 > SET_ELEM_KEY 1 > DATA_VALUE 1
                                             (include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h)
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pycni.wire.netlink import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REQUEST,
    attr,
    attr_str,
    message,
    nested,
)

NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 16, 17
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 12, 14
NFPROTO_INET = 1
MAX_ELEMENTS = 1000
"""An attribute holds at most 64 KiB."""
_SEQ = struct.Struct("=I")


def element_batch(*, add: bool, table: str, name: str, keys: Sequence[bytes], seq: int) -> bytes:
    """One transaction that adds elements to a set of an ``inet`` table, or deletes them.

    Adding one that is there is success, deleting one that is not there ENOENT for all. The message has sequence
    number ``seq`` and is answered by an ACK or an error; the batch around it has the numbers before and after.
    """
    if not 0 < len(keys) <= MAX_ELEMENTS:
        raise ValueError(f"{len(keys)} elements: expected 1..{MAX_ELEMENTS}")
    kind = NFNL_SUBSYS_NFTABLES << 8 | (NFT_MSG_NEWSETELEM if add else NFT_MSG_DELSETELEM)
    flags = NLM_F_REQUEST | NLM_F_ACK | (NLM_F_CREATE if add else 0)
    elements = (nested(1, nested(1, attr(1, key))) for key in keys)
    body = _nfgenmsg(NFPROTO_INET, 0) + attr_str(1, table) + attr_str(2, name) + nested(3, *elements)
    edge = _nfgenmsg(0, NFNL_SUBSYS_NFTABLES)
    parts = (
        message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, edge),
        message(kind, flags, body),
        message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, edge),
    )
    return b"".join(_numbered(part, number) for number, part in enumerate(parts, seq - 1))


def _nfgenmsg(family: int, resource: int) -> bytes:
    return struct.pack("=BB", family, 0) + struct.pack(">H", resource)


def _numbered(part: bytes, number: int) -> bytes:
    return part[:8] + _SEQ.pack(number) + part[12:]
