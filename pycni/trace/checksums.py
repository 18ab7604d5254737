"""Whether the checksums of a probe as it was captured are right. Pure.

Probes of TCP and ICMP leave their socket complete, so that a wrong checksum further on was made wrong. Those of UDP
come from a socket that leaves the checksum to the device, as all answers do: nothing can be told of them.
"""

from __future__ import annotations

import struct

from pycni.trace.model import ICMP, ICMPV6, TCP

_NAMES = {TCP: "TCP checksum", ICMP: "ICMP checksum", ICMPV6: "ICMPv6 checksum"}
_V4_HEAD, _V6_HEAD = 20, 40


def damage(packet: bytes) -> str:
    """The checksum of an IP packet that is wrong; "" when all are right, or it cannot be told (RFC 1071)."""
    if len(packet) >= _V4_HEAD and packet[0] >> 4 == 4:
        size, length = (packet[0] & 15) * 4, struct.unpack_from("!H", packet, 2)[0]
        if len(packet) < length or length < size or packet[6] & 0x3F or packet[7]:
            return ""  # a part of it
        if _sum(packet[:size]) != 0xFFFF:
            return "IP checksum"
        protocol, source, destination = packet[9], packet[12:16], packet[16:20]
    elif len(packet) >= _V6_HEAD and packet[0] >> 4 == 6:
        size, length = _V6_HEAD, _V6_HEAD + struct.unpack_from("!H", packet, 4)[0]
        protocol, source, destination = packet[6], packet[8:24], packet[24:40]
        if len(packet) < length:
            return ""
    else:
        return ""
    if protocol not in _NAMES:
        return ""
    data = packet[size:length]
    if protocol != ICMP:
        data = source + destination + struct.pack("!II", len(data), protocol) + data
    return "" if _sum(data) == 0xFFFF else _NAMES[protocol]


def _sum(data: bytes) -> int:
    data += bytes(len(data) & 1)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
