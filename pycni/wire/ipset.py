"""ipset sets and their members as nfnetlink messages, encoded and decoded. Pure.

    nlmsghdr type: u8 message | u8 subsystem (6)     nfgenmsg: u8 family | u8 version | be16 resource id
                                                        (include/uapi/linux/netfilter/ipset/ip_set.h)

Every number and address inside is in network order and says so by NLA_F_NET_BYTEORDER; without the flag the kernel
answers IPSET_ERR_PROTOCOL. Many members travel in one message (an IPSET_ATTR_ADT list): a hundred times the rate of
one message each. Without NLM_F_EXCL adding what is there and deleting what is not are success, and adding replaces
the packet mark a member carries.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycni.model.family import Family, show
from pycni.model.kube import PROTOCOL_NAMES
from pycni.wire.netlink import (
    NLA_TYPE_MASK,
    NLM_F_CREATE,
    MalformedError,
    Message,
    attr,
    attr_str,
    attr_u8,
    message,
    nested,
    parse_attrs,
    text,
)

NFNL_SUBSYS_IPSET = 6
PROTOCOL = 6
CMD_PROTOCOL, CMD_CREATE, CMD_DESTROY, CMD_FLUSH, CMD_RENAME, CMD_SWAP, CMD_LIST = 1, 2, 3, 4, 5, 6, 7
CMD_ADD, CMD_DEL, CMD_HEADER, CMD_TYPE = 9, 10, 12, 13

ATTR_PROTOCOL, ATTR_SETNAME, ATTR_TYPENAME, ATTR_REVISION, ATTR_FAMILY = 1, 2, 3, 4, 5
ATTR_FLAGS, ATTR_DATA, ATTR_ADT, ATTR_LINENO = 6, 7, 8, 9
IP, IP_TO, CIDR, PORT, PORT_TO, TIMEOUT, PROTO, CADT_FLAGS = 1, 2, 3, 4, 5, 6, 7, 8
HASHSIZE, MAXELEM, REFERENCES = 18, 19, 25
IP2, CIDR2, SKBMARK = 20, 21, 27
IPADDR_V4, IPADDR_V6 = 1, 2
NET_BYTEORDER = 0x4000
FLAG_WITH_SKBINFO = 1 << 6
FLAG_LIST_SETNAME, FLAG_LIST_HEADER = 1 << 1, 1 << 2
MAX_MEMBERS = 400
"""Members per message: an attribute holds at most 64 KiB and one of hash:ip,port,net with IPv6 takes 104 bytes."""
NAME_BYTES = 31

HASH_IP, HASH_IP_PORT = "hash:ip", "hash:ip,port"
HASH_IP_PORT_IP, HASH_IP_PORT_NET, HASH_NET_PORT = "hash:ip,port,ip", "hash:ip,port,net", "hash:net,port"
BITMAP_PORT = "bitmap:port"
TYPES = (HASH_IP, HASH_IP_PORT, HASH_IP_PORT_IP, HASH_IP_PORT_NET, HASH_NET_PORT, BITMAP_PORT)

ERRORS = {
    4097: "set exists, or is in use",
    4098: "the kernel lacks this set type",
    4099: "set is full",
    4100: "the set type lacks this feature",
    4102: "in use by the kernel",
    4103: "exists",
}


class SetSpec(NamedTuple):
    """What kind of set one is."""

    type: str
    family: Family
    marks: bool = False
    """Whether members carry a packet mark (skbinfo)."""


class Member(NamedTuple):
    """One element. Parts its set's type does not have are empty."""

    address: bytes = b""
    """Of hash:net,port the network."""
    protocol: int = 0
    port: int = 0
    second: bytes = b""
    """Address or network in third place."""
    prefix: int = 0
    """Length of the network; 0 where there is none."""


class SetInfo(NamedTuple):
    """A set as the kernel lists it."""

    name: str
    spec: SetSpec
    references: int
    members: dict[Member, int]
    """With packet mark, 0 without."""


def _message(command: int, flags: int, *attrs: bytes, family: int = 2) -> bytes:
    kind = NFNL_SUBSYS_IPSET << 8 | command
    head = struct.pack("=BBH", family, 0, 0) + attr_u8(ATTR_PROTOCOL, PROTOCOL)
    return message(kind, flags, head + b"".join(attrs))


def create(name: str, spec: SetSpec, revision: int, *, max_members: int = 1 << 20) -> bytes:
    """Make a set. An equal one that exists is success; another one of the name is EEXIST."""
    flags = _number(CADT_FLAGS, FLAG_WITH_SKBINFO) if spec.marks else b""
    if spec.type == BITMAP_PORT:
        data = _port(PORT, 0) + _port(PORT_TO, 65535) + flags
    else:
        data = _number(HASHSIZE, 1024) + _number(MAXELEM, max_members) + flags
    family = 0 if spec.type == BITMAP_PORT else spec.family
    return _message(
        CMD_CREATE,
        NLM_F_CREATE,
        _name(name),
        attr_str(ATTR_TYPENAME, spec.type),
        attr_u8(ATTR_REVISION, revision),
        attr_u8(ATTR_FAMILY, family),
        nested(ATTR_DATA, data),
        family=spec.family,
    )


def destroy(name: str) -> bytes:
    """Remove a set (EBUSY or 4102 while rules use it, ENOENT when missing)."""
    return _message(CMD_DESTROY, 0, _name(name))


def flush(name: str) -> bytes:
    """Remove all members of a set."""
    return _message(CMD_FLUSH, 0, _name(name))


def swap(one: str, other: str) -> bytes:
    """Exchange the contents of two sets of equal kind, in one step for packets."""
    return _message(CMD_SWAP, 0, _name(one), attr_str(ATTR_TYPENAME, other))


def type_request(type_name: str, family: Family) -> bytes:
    """Ask which revisions of a type the kernel has (loads its module where that is possible)."""
    number = 0 if type_name == BITMAP_PORT else family
    return _message(CMD_TYPE, 0, attr_str(ATTR_TYPENAME, type_name), attr_u8(ATTR_FAMILY, number))


def parse_revision(msg: Message) -> int:
    """The highest revision from a type answer. Raises MalformedError without one."""
    found = parse_attrs(msg.payload, 4).get(ATTR_REVISION)
    if not found:
        raise MalformedError("the answer names no revision")
    return found[0]


def alter(name: str, members: Sequence[tuple[Member, int]], *, add: bool, marks: bool) -> bytes:
    """Add members (with their packet marks) to a set, or delete them: one message for up to MAX_MEMBERS.

    The kernel takes them in order and stops at the first it refuses.
    """
    if not 0 < len(members) <= MAX_MEMBERS:
        raise ValueError(f"{len(members)} members: expected 1..{MAX_MEMBERS}")
    with_mark = marks and add
    data = b"".join(
        nested(ATTR_DATA, encode_member(member) + (_mark(mark) if with_mark else b""))
        for member, mark in members
    )
    return _message(CMD_ADD if add else CMD_DEL, 0, _name(name), _number(ATTR_LINENO, 0), attr(_ADT, data))


def list_request(name: str = "", *, headers: bool = False) -> bytes:
    """Dump one set, or all; only what they are, without members, when ``headers``. ENOENT when missing."""
    attrs = [_name(name)] if name else []
    if headers:
        attrs.append(_number(ATTR_FLAGS, FLAG_LIST_HEADER))
    return _message(CMD_LIST, 0, *attrs)


def encode_member(member: Member) -> bytes:
    """The attributes of one member."""
    parts = []
    if member.address:
        parts.append(_address(IP, member.address))
        if member.prefix and not member.second:
            parts.append(attr_u8(CIDR, member.prefix))
    if member.protocol or member.port:
        parts.append(_port(PORT, member.port))
        if member.protocol:
            parts.append(attr_u8(PROTO, member.protocol))
    if member.second:
        parts.append(_address(IP2, member.second))
        if member.prefix:
            parts.append(attr_u8(CIDR2, member.prefix))
    return b"".join(parts)


def parse_sets(messages: Sequence[Message]) -> dict[str, SetInfo]:
    """The sets of a dump by name; a large one comes in several messages."""
    found: dict[str, SetInfo] = {}
    for msg in messages:
        attrs = parse_attrs(msg.payload, 4)
        name = text(attrs.get(ATTR_SETNAME, b""))
        if ATTR_TYPENAME in attrs:
            head = parse_attrs(attrs.get(ATTR_DATA, b""))
            family = Family.V6 if attrs.get(ATTR_FAMILY) == b"\x0a" else Family.V4
            marks = bool(_be(head.get(CADT_FLAGS, b"")) & FLAG_WITH_SKBINFO)
            spec = SetSpec(text(attrs[ATTR_TYPENAME]), family, marks)
            found[name] = SetInfo(name, spec, _be(head.get(REFERENCES, b"")), {})
        if ATTR_ADT in attrs:
            info = found.get(name)
            if info is None:
                raise MalformedError(f"members of set {name!r} before its head")
            info.members.update(_members(attrs[ATTR_ADT], info.spec.type))
    return found


def member_text(member: Member, mark: int = 0) -> str:
    """A member in the notation of ``ipset save``."""
    parts = []
    network = member.prefix and not member.second
    if member.address:
        parts.append(show(member.address) + (f"/{member.prefix}" if network else ""))
    if member.protocol:
        parts.append(f"{PROTOCOL_NAMES.get(member.protocol, str(member.protocol)).lower()}:{member.port}")
    elif not member.address:
        parts.append(str(member.port))
    if member.second:
        wide = len(member.second) * 8
        parts.append(show(member.second) + (f"/{member.prefix}" if 0 < member.prefix < wide else ""))
    return ",".join(parts) + (f" skbmark {mark:#010x}" if mark else "")


_ADT = ATTR_ADT | 0x8000


def _members(data: bytes, type_name: str) -> Iterator[tuple[Member, int]]:
    offset, end = 0, len(data)
    while offset + 4 <= end:
        size, kind = struct.unpack_from("=HH", data, offset)
        if size < 4 or offset + size > end:
            raise MalformedError(f"member at {offset}: length {size} in {end} bytes")
        if kind & NLA_TYPE_MASK == ATTR_DATA:
            yield _member(parse_attrs(data[offset + 4 : offset + size]), type_name)
        offset += (size + 3) & ~3


def _member(attrs: dict[int, bytes], type_name: str) -> tuple[Member, int]:
    mark = _be(attrs.get(SKBMARK, b"")) >> 32
    address, second = _packed(attrs.get(IP)), _packed(attrs.get(IP2))
    prefix = 0
    if type_name == HASH_NET_PORT:
        prefix = attrs.get(CIDR, bytes([len(address) * 8]))[0]
    elif type_name == HASH_IP_PORT_NET:
        prefix = attrs.get(CIDR2, bytes([len(second) * 8]))[0]
    protocol = attrs.get(PROTO, b"\0")[0]
    return Member(address, protocol, _be(attrs.get(PORT, b"")), second, prefix), mark


def _packed(payload: bytes | None) -> bytes:
    if not payload:
        return b""
    found = parse_attrs(payload)
    return found.get(IPADDR_V4) or found.get(IPADDR_V6) or b""


def _name(name: str) -> bytes:
    if len(name) > NAME_BYTES:
        raise ValueError(f"set name {name!r}: longer than {NAME_BYTES} characters")
    return attr_str(ATTR_SETNAME, name)


def _address(kind: int, address: bytes) -> bytes:
    inner = IPADDR_V4 if len(address) == 4 else IPADDR_V6
    return nested(kind, attr(inner | NET_BYTEORDER, address))


def _port(kind: int, port: int) -> bytes:
    return attr(kind | NET_BYTEORDER, port.to_bytes(2, "big"))


def _number(kind: int, value: int) -> bytes:
    return attr(kind | NET_BYTEORDER, value.to_bytes(4, "big"))


def _mark(mark: int) -> bytes:
    """Mark and mask; the whole mark is replaced."""
    return attr(SKBMARK | NET_BYTEORDER, struct.pack(">II", mark, 0xFFFFFFFF))


def _be(payload: bytes) -> int:
    return int.from_bytes(payload, "big")
