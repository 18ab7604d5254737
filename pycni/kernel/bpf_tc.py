"""eBPF programs on network interfaces: what a device receives and sends, through clsact filters.

A filter keeps its program as long as it is there itself, with no agent and no pin; putting another program in its place
is one step. It goes with the device. Priorities tell ours from others'. (Kernels from 6.6 on have tcx links as well,
which ``BpfObject`` attaches like any other link; filters work on all.)
"""

from __future__ import annotations

import errno

from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import tc

INGRESS, EGRESS = tc.INGRESS, tc.EGRESS
_NONE = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})
"""No filter; no hooks at all; no device."""


def attach(sock: NetlinkSocket, ifindex: int, hook: int, program: int, *, priority: int, name: str) -> None:
    """Have a program (its descriptor) judge what passes a hook, in place of the one of this priority.

    Raises KernelError naming ``name``.
    """
    try:
        sock.request(tc.add_clsact(ifindex), "add clsact", f"ifindex {ifindex}")
    except KernelError as error:
        if error.errno != errno.EEXIST:
            raise
    sock.request(tc.put_program(ifindex, hook, priority, program, name), "attach program", name)


def detach(sock: NetlinkSocket, ifindex: int, hook: int, priority: int) -> bool:
    """Take the program of this priority off; False when there is none. Raises KernelError."""
    try:
        sock.request(tc.del_program(ifindex, hook, priority), "detach program", f"ifindex {ifindex}")
    except KernelError as error:
        if error.errno not in _NONE:
            raise
        return False
    return True


def attached(sock: NetlinkSocket, ifindex: int, hook: int) -> dict[int, int]:
    """Ids of the programs on a hook by priority. Raises KernelError."""
    answers = sock.dump(tc.get_programs(ifindex, hook), "list filters", f"ifindex {ifindex}")
    found = (tc.program_of(answer.payload) for answer in answers)
    return dict(item for item in found if item is not None)
