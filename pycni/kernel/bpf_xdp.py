"""XDP programs on network interfaces: where packets arrive, before the kernel makes anything of them.

An interface has one XDP program, so it is asked first whose there is, and nobody's is ever put in the place of
another's: a link of ours is made where there is none, which the kernel refuses elsewhere. While our link holds an
interface, nobody displaces it either. Programs run in the driver (native) or, where that has no place for them, on
packets the kernel has taken in already (generic, slower). Programs behind a link are swapped without a packet missed.
"""

from __future__ import annotations

import errno
import sys
from typing import NamedTuple

from pycni.errors import KernelError
from pycni.kernel import bpf
from pycni.kernel.bpf_object import Attachment
from pycni.kernel.links import look_up
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import rtlink
from pycni.wire.netlink import parse_attrs

GENERIC, NATIVE = "generic", "native"
HAS_FRAGS = 1 << 5
"""BPF_F_XDP_HAS_FRAGS: the program can do with packets in pieces; drivers refuse others at large MTUs (Linux 5.18)."""
REFUSED = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ERANGE, errno.E2BIG, 524})
"""What drivers answer that have no place for programs, or not at this MTU, or not with so many queues."""
_FLAGS = {GENERIC: 1 << 1, NATIVE: 1 << 2}
_MODES = {1: NATIVE, 2: GENERIC, 3: "offloaded", 4: "several"}
_IFLA_XDP, _ATTACHED = 43, 2
_IDS = {4: "", 5: NATIVE, 6: GENERIC, 7: "offloaded"}
"""IFLA_XDP_PROG_ID and those of each mode (include/uapi/linux/if_link.h)."""
_ETHERNET = 6


class Device(NamedTuple):
    """An interface as far as programs on it are concerned."""

    name: str
    ifindex: int
    mac: bytes
    """Empty where packets have no Ethernet header."""
    mode: str
    """native, generic, offloaded, several; "" without a program."""
    programs: frozenset[int]
    """Ids."""


def device(sock: NetlinkSocket, name: str) -> Device | None:
    """What is there; None without such an interface. Raises KernelError."""
    reply = look_up(sock, name)
    if reply is None:
        return None
    link = rtlink.parse_link(reply)
    xdp = parse_attrs(parse_attrs(reply.payload, 16).get(_IFLA_XDP, b""))
    mode = _MODES.get(xdp.get(_ATTACHED, b"\0")[0], "")
    ids = (int.from_bytes(xdp[kind], sys.byteorder) for kind in _IDS if kind in xdp)
    return Device(
        link.name,
        link.ifindex,
        link.mac if len(link.mac) == _ETHERNET and any(link.mac) else b"",
        mode,
        frozenset(number for number in ids if number),
    )


def attachment(function: str, ifindex: int, mode: str) -> Attachment:
    """For ``BpfObject.commit``: the program on this interface in this mode. A link that is there keeps its mode."""
    # bpffs takes no dots in names, interfaces may have them.
    return Attachment(f"if{ifindex}", function, ifindex, ifindex, _FLAGS[mode])


def link_program(path: str) -> tuple[int, int]:
    """Program id and ifindex of a pinned link; (0, 0) without. The ifindex is 0 when the interface is gone."""
    try:
        fd = bpf.get(path)
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        return 0, 0
    try:
        info = bpf.link_info(fd)
        return info.program, info.target
    finally:
        bpf.close_all([fd])
