"""Programs and filters of others on the devices of one namespace: XDP, traffic control, tcx.

Life: read for a trace; nothing is kept. What they do to a packet only their makers know, except filters whose action
is to drop: those are told apart. Ours are known by the names of their programs.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import sys
from collections.abc import Iterable, Sequence

from pycni.errors import KernelError
from pycni.kernel import bpf
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.space import ForeignProgram
from pycni.wire import rtlink, tc
from pycni.wire.netlink import Message, parse_attrs

OURS = re.compile(r"(pod_in|pod_out|uplink_i|uplink_o|pycni_xd)_[0-9a-f]{6}")
"""Names of our programs in the kernel (``BpfObject``): the function, cut, and a digest."""
_GET_FD_BY_ID = 13
"""BPF_PROG_GET_FD_BY_ID."""
_IFLA_XDP = 43
_XDP_IDS = {4: "xdp", 5: "xdp (native)", 6: "xdpgeneric", 7: "xdpoffload"}
"""IFLA_XDP_PROG_ID and those of each mode (include/uapi/linux/if_link.h)."""
_HOOKS = {tc.INGRESS: "ingress", tc.EGRESS: "egress"}
_TCX = {bpf.TCX_INGRESS: "ingress", bpf.TCX_EGRESS: "egress"}
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS})


def foreign_programs(sock: NetlinkSocket, links: Sequence[Message]) -> Iterable[ForeignProgram]:
    """``links``: answers of the namespace's link dump. Raises KernelError."""
    names = {}
    for msg in links:
        link = rtlink.parse_link(msg)
        names[link.ifindex] = link.name
        yield from _xdp(link.name, msg)
    for index in _with_filters(sock):
        if index in names:
            yield from _filters(sock, names[index], index)
    for index, name in names.items():
        yield from _tcx(name, index)


def _xdp(device: str, msg: Message) -> Iterable[ForeignProgram]:
    attrs = parse_attrs(parse_attrs(msg.payload, 16).get(_IFLA_XDP, b""))
    found = {int.from_bytes(attrs[kind], sys.byteorder): kind for kind in _XDP_IDS if kind in attrs}
    for number, kind in found.items():
        name = _name(number) if number else ""
        if number and not OURS.fullmatch(name):
            words = f"{_XDP_IDS[kind]} prog id {number} {name}".rstrip()
            yield ForeignProgram(device=device, where="xdp", words=words)


def _with_filters(sock: NetlinkSocket) -> list[int]:
    """Indexes of devices that have hooks for filters."""
    kinds = (tc.device_qdisc(msg.payload) for msg in sock.dump(tc.dump_qdiscs()))
    return sorted({index for index, kind in kinds if kind in {"clsact", "ingress"}})


def _filters(sock: NetlinkSocket, device: str, index: int) -> Iterable[ForeignProgram]:
    for hook, where in _HOOKS.items():
        try:
            answers = sock.dump(tc.get_programs(index, hook), "list filters", device)
        except KernelError as error:
            if error.errno not in _UNKNOWN:
                raise
            continue
        for msg in answers:
            found = tc.filter_of(msg.payload)
            if found is None or found.action == "mirred":
                continue  # what shapes pods leads on, and drops nothing
            name = _name(found.program) if found.program else ""
            if OURS.fullmatch(name):
                continue
            words = f"tc filter {found.kind} pref {found.priority} {found.action} {name}".rstrip()
            yield ForeignProgram(
                device=device, where=where, words=" ".join(words.split()), drops=found.action == "drop"
            )


def _tcx(device: str, index: int) -> Iterable[ForeignProgram]:
    for hook, where in _TCX.items():
        try:
            numbers = bpf.attached(index, hook, device)
        except KernelError as error:
            if error.errno not in _UNKNOWN:
                raise
            return
        for number in numbers:
            name = _name(number)
            if not OURS.fullmatch(name):
                yield ForeignProgram(
                    device=device, where=where, words=f"tcx prog id {number} {name}".rstrip()
                )


def _name(number: int) -> str:
    """Of a loaded program; "" when it has none, or nobody may ask."""
    try:
        fd = bpf.call(_GET_FD_BY_ID, struct.pack("=3I", number, 0, 0), "open program", str(number))
    except KernelError as error:
        if error.errno not in _UNKNOWN:
            raise
        return ""
    try:
        return bpf.program_info(fd).name
    finally:
        os.close(fd)
