"""Damages that no command makes: a full table of connections, an XDP program that drops, a peer of wireguard-go. Run inside a namespace.

python -m tests.lab.trace_tools fill
python -m tests.lab.trace_tools xdp DEVICE on|off
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path

from pycni.kernel import bpf, wireguard_go
from pycni.kernel.conntrack_new import Connection, _creation
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.wire import rtlink
from pycni.wire.netlink import NLM_F_REQUEST, attr_u32, nested
from pycni.wire.wireguard import set_peer_text

COUNT, LIMIT = (Path(f"/proc/sys/net/netfilter/nf_conntrack_{name}") for name in ("count", "max"))
LONGEST = 4_000_000
"""Entries; a table with more room would take too long to fill."""
AT_ONCE = 400
"""Messages of one send, which has to fit into the socket's buffer."""
DROP = struct.pack("=BBhi", 0xB7, 0, 0, 1) + struct.pack("=BBhi", 0x95, 0, 0, 0)
"""r0 = XDP_DROP; exit."""
IFLA_XDP, IFLA_XDP_FD, IFLA_XDP_FLAGS, GENERIC = 43, 1, 3, 2


def fill() -> None:
    """Make established connections until there is no room: those are not given up for new ones (early_drop)."""
    limit = int(LIMIT.read_text())
    assert limit < LONGEST, f"net.netfilter.nf_conntrack_max is {limit}"
    marks = bytes((198, 18, 0, 1)), bytes((198, 19, 0, 1))
    template = _creation(Connection(marks[0], 1, marks[1], 2, socket.IPPROTO_UDP, 600))
    length = len(template) if len(template) % 4 == 0 else len(template) + 4 - len(template) % 4
    template = template.ljust(length, b"\0")
    (flags,) = struct.unpack_from("=H", template, 6)
    template = template[:6] + struct.pack("=H", flags | NLM_F_REQUEST) + template[8:]
    places = [at for at in range(length) if template[at : at + 4] == marks[0]]
    assert len(places) == 2
    number = 0
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as sock:
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while int(COUNT.read_text()) < limit:
            block = bytearray(template * AT_ONCE)
            for index in range(AT_ONCE):
                number += 1
                address = struct.pack("!I", 0xC6120000 + number)
                for place in places:
                    start = index * length + place
                    block[start : start + 4] = address
            sock.send(block)
            assert number < 2 * limit, "the table does not fill"


def xdp(device: str, *, on: bool) -> None:
    """Put a program that drops everything on a device, or take it off."""
    program = bpf.load_program(bpf.XDP, DROP, name="foe") if on else -1
    number = struct.pack("=i", program)
    value = nested(
        IFLA_XDP,
        attr_u32(IFLA_XDP_FD, int.from_bytes(number, sys.byteorder)),
        attr_u32(IFLA_XDP_FLAGS, GENERIC),
    )
    with NetlinkSocket() as sock:
        index = socket.if_nametoindex(device)
        sock.request(rtlink.set_link(index, value), "attach XDP", device)
    if on:
        os.close(program)


def peer(folder: str, device: str, what: str, value: str) -> None:
    """Give the only peer of wireguard-go's device other allowed IPs, or another endpoint."""
    [there] = wireguard_go.read(folder, device).peers
    if what == "allowed":
        net = ip_network(value)
        there = there._replace(allowed=((net.network_address.packed, net.prefixlen),))
    else:
        there = there._replace(endpoint=ip_address(value).packed)
    assert wireguard_go.send(folder, device, [set_peer_text(there, replace=True)]) == [None]


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        fill()
    elif sys.argv[1] == "peer":
        peer(*sys.argv[2:])
    else:
        xdp(sys.argv[2], on=sys.argv[3] == "on")
