"""Expressions of nf_tables rules as netlink attributes: the instructions a rule consists of. Pure.

A rule is a small program over sixteen registers of four bytes; each instruction here is one NFTA_LIST_ELEM with name
and data, to be joined and given to ``nftmsg.add_rule``. Registers are numbered 0..15; ``VERDICT`` is the one verdicts
go to. An instruction that finds nothing (``lookup``) or does not match (``cmp``) ends the rule, not the chain.

                                             (include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nft_*.c)
"""

from __future__ import annotations

import struct

from pycni.wire.netlink import attr, attr_str, nested
from pycni.wire.nftmsg import attr_be32, attr_be64
from pycni.wire.nftset import verdict

VERDICT = -8
"""Register number of the verdict (NFT_REG_VERDICT is 0, NFT_REG32_00 is 8)."""
_REG32_00 = 8

NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
META_MARK, META_IIF, META_NFPROTO, META_L4PROTO = 3, 4, 15, 16
CT_STATE, CT_STATUS, CT_STATUS_DNAT = 0, 2, 1 << 5
STATE_ESTABLISHED, STATE_RELATED = 1 << 1, 1 << 2
"""Bits of the connection's state as ``ct_state`` loads it (NF_CT_STATE_BIT)."""
EQ, NEQ = 0, 1
_FIB_ADDRTYPE, _FIB_SADDR, _FIB_DADDR = 3, 1, 2
RTN_LOCAL = 2
_DYNSET_UPDATE, _DYNSET_DELETE = 1, 2
_RANDOM_FULLY = 1 << 4
_NFPROTO = {4: 2, 6: 10}
_NFT_JUMP = -3


def meta(key: int, register: int) -> bytes:
    """Load packet metadata (``META_*``)."""
    return _expr("meta", attr_be32(2, key), _reg(1, register))


def set_mark(register: int) -> bytes:
    """Write a register into the packet's mark."""
    return set_meta(META_MARK, register)


def set_meta(key: int, register: int) -> bytes:
    """Write a register into packet metadata that can be written."""
    return _expr("meta", attr_be32(2, key), _reg(3, register))


def payload(base: int, offset: int, size: int, register: int) -> bytes:
    """Load bytes of a header (``NETWORK_HEADER``, ``TRANSPORT_HEADER``)."""
    return _expr("payload", _reg(1, register), attr_be32(2, base), attr_be32(3, offset), attr_be32(4, size))


def immediate(register: int, data: bytes) -> bytes:
    """Put data into registers."""
    return _expr("immediate", _reg(1, register), nested(2, attr(1, data)))


def ct_status(register: int) -> bytes:
    """Load the connection's status bits (host order)."""
    return _expr("ct", attr_be32(2, CT_STATUS), _reg(1, register))


def ct_state(register: int) -> bytes:
    """Load the connection's state as one bit (``STATE_*``, host order)."""
    return _expr("ct", _reg(1, register), attr_be32(2, CT_STATE))


def fib_type(register: int, *, source: bool) -> bytes:
    """Load the type of the route to the source or destination address (``RTN_LOCAL``: one of this node's own)."""
    which = _FIB_SADDR if source else _FIB_DADDR
    return _expr("fib", _reg(1, register), attr_be32(2, _FIB_ADDRTYPE), attr_be32(3, which))


def cmp(register: int, data: bytes, operation: int = EQ) -> bytes:
    """Go on when the register equals the data (or differs, with ``NEQ``)."""
    return _expr("cmp", _reg(1, register), attr_be32(2, operation), nested(3, attr(1, data)))


def within(register: int, first: bytes, last: bytes) -> bytes:
    """Go on when the register is in a range, ends included."""
    return _expr(
        "range", _reg(1, register), attr_be32(2, EQ), nested(3, attr(1, first)), nested(4, attr(1, last))
    )


def bitwise(register: int, mask: bytes, xor: bytes) -> bytes:
    """Register = (register & mask) ^ xor."""
    return _expr(
        "bitwise",
        _reg(1, register),
        _reg(2, register),
        attr_be32(3, len(mask)),
        nested(4, attr(1, mask)),
        nested(5, attr(1, xor)),
        attr_be32(6, 0),
    )


def lookup(name: str, register: int, result: int | None = None, *, absent: bool = False) -> bytes:
    """Go on when the register's key is in a set (``absent``: is not); for a map, put its value into ``result``."""
    into = b"" if result is None else _reg(3, result)
    flags = attr_be32(5, 1) if absent else b""
    return _expr("lookup", attr_str(1, name), _reg(2, register), into, flags)


def remember(name: str, key: int, value: int, timeout_ms: int) -> bytes:
    """Write key -> value into a dynamic map; a key that is there keeps its value and gets the whole timeout again."""
    return _expr(
        "dynset",
        attr_str(1, name),
        attr_be32(3, _DYNSET_UPDATE),
        _reg(4, key),
        _reg(5, value),
        attr_be64(6, timeout_ms),
    )


def forget(name: str, key: int, value: int) -> bytes:
    """Delete a key of a dynamic map. The kernel wants a register for the value too, and does not look at it."""
    return _expr("dynset", attr_str(1, name), attr_be32(3, _DYNSET_DELETE), _reg(4, key), _reg(5, value))


def numgen(register: int, modulus: int, *, random: bool, offset: int = 0) -> bytes:
    """A random number below ``modulus``, or the next one in turn; ``offset`` is added."""
    return _expr(
        "numgen", _reg(1, register), attr_be32(2, modulus), attr_be32(3, int(random)), attr_be32(4, offset)
    )


def jhash(source: int, size: int, register: int, modulus: int, *, seed: int, offset: int = 0) -> bytes:
    """Hash of ``size`` bytes from a register on, scaled below ``modulus``; ``offset`` is added."""
    return _expr(
        "hash",
        _reg(1, source),
        _reg(2, register),
        attr_be32(3, size),
        attr_be32(4, modulus),
        attr_be32(5, seed),
        attr_be32(6, offset),
        attr_be32(7, 0),
    )


def dnat(version: int, address: int, port: int) -> bytes:
    """Translate the destination to address and port in registers; ends the chain. ``version`` is 4 or 6."""
    return _expr(
        "nat",
        attr_be32(1, 1),
        attr_be32(2, _NFPROTO[version]),
        _reg(3, address),
        _reg(5, port),
    )


def masquerade() -> bytes:
    """Translate the source to the outgoing interface's address, source port at random."""
    return _expr("masq", attr_be32(1, _RANDOM_FULLY))


def reject_tcp() -> bytes:
    """Answer with a TCP reset and drop."""
    return _expr("reject", attr_be32(1, 1), attr(2, b"\0"))


def reject_port() -> bytes:
    """Answer with ICMP or ICMPv6 port unreachable and drop."""
    return _expr("reject", attr_be32(1, 2), attr(2, b"\1"))


def counter() -> bytes:
    """Count packets and bytes."""
    return _expr("counter")


def limit(rate: int, burst: int) -> bytes:
    """Go on for ``rate`` packets in a second, and ``burst`` at once."""
    return _expr("limit", attr_be64(1, rate), attr_be64(2, 1), attr_be32(3, burst), attr_be32(4, 0))


def log(group: int, prefix: str) -> bytes:
    """Send the packet to a group of nfnetlink_log, with up to 127 bytes of text."""
    return _expr("log", attr(1, struct.pack(">H", group)), attr_str(2, prefix))


def jump(chain: str) -> bytes:
    """Go to a chain and come back when it has decided nothing."""
    data = attr_be32(1, _NFT_JUMP & 0xFFFFFFFF) + attr_str(2, chain)
    return _expr("immediate", _reg(1, VERDICT), nested(2, nested(2, data)))


def goto(chain: str) -> bytes:
    """Go to a chain, or ``drop`` or ``accept``."""
    return _expr("immediate", _reg(1, VERDICT), nested(2, verdict(chain)))


def _reg(kind: int, number: int) -> bytes:
    return attr_be32(kind, number + _REG32_00)


def _expr(name: str, *attrs: bytes) -> bytes:
    data = b"".join(attrs)
    return nested(1, attr(1, name.encode() + b"\0"), nested(2, data))


def host32(number: int) -> bytes:
    """32 bits as marks and status bits lie in registers."""
    return struct.pack("=I", number)
