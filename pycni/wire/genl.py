"""Generic netlink: who has which family number, and the header of a family's messages. Pure.

genlmsghdr: u8 command | u8 version | u16 reserved                    (include/uapi/linux/genetlink.h)
"""

from __future__ import annotations

import struct

from pycni.wire.netlink import MalformedError, Message, attr_str, message, parse_attrs

_CONTROLLER, _GET_FAMILY = 16, 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_HEAD = struct.Struct("=BBH")


def family_request(name: str) -> bytes:
    """Ask the controller for a family's number (loads its module where that is possible); ENOENT: there is none."""
    return genl_message(_CONTROLLER, _GET_FAMILY, 1, attr_str(_FAMILY_NAME, name))


def parse_family(msg: Message) -> int:
    """Message type from the controller's answer. Raises MalformedError without one."""
    found = parse_attrs(msg.payload, 4).get(_FAMILY_ID, b"")
    if len(found) < 2:
        raise MalformedError("the answer names no family id")
    return int(struct.unpack_from("=H", found)[0])


def genl_message(family: int, command: int, version: int, *attrs: bytes) -> bytes:
    """A message of a family."""
    return message(family, 0, _HEAD.pack(command, version, 0) + b"".join(attrs))
