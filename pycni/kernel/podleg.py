"""The node's leg in a VLAN of a bridge: a veth pair, one end an untagged port, the other with the gateway address.

The reference bridge does the same under the same name (``<bridge>.<vlan>``). Made with the first pod of the VLAN,
found again by its name.
"""

from __future__ import annotations

import errno
import hashlib
import os

from pycni.attach.names import local_mac
from pycni.attach.plan import BridgePlan
from pycni.errors import KernelError
from pycni.kernel import netns
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import podlink, rtlink
from pycni.wire.netlink import attr_u32


def port_name(device: str) -> str:
    """Name of the leg's end on the bridge."""
    return "vg" + hashlib.sha256(device.encode()).hexdigest()[:13]


def ensure_leg(sock: NetlinkSocket, plan: BridgePlan, bridge: int) -> rtlink.Link:
    """Make or repair the leg of ``plan.vlan`` on the bridge with this index; returns the gateway's end.

    Raises KernelError: EOPNOTSUPP on a kernel without VLAN filtering, EEXIST when another kind of device has the name.
    """
    device = plan.gateway_device
    port = port_name(device)
    leg = _find(sock, device)
    made = leg is None
    if leg is None:
        _create(sock, plan, port)
        leg = _find(sock, device)
        if leg is None:
            raise KernelError(errno.ENODEV, "create link", device, "it vanished at once")
    if leg.kind != "veth":
        raise KernelError(
            errno.EEXIST, "create link", device, f"the name belongs to a {leg.kind or 'device'}"
        )
    other = _find(sock, port)
    if other is None or other.ifindex != leg.parent:
        raise KernelError(errno.EEXIST, "create link", device, "the name belongs to another veth pair")
    if other.master != bridge or not other.up or not leg.up:
        try:
            _connect(sock, plan, bridge, other.ifindex, leg.ifindex)
        except KernelError:
            if made:
                sock.request(rtlink.del_link(leg.ifindex), "delete link", device)
            raise
    return leg


def _find(sock: NetlinkSocket, name: str) -> rtlink.Link | None:
    try:
        return rtlink.parse_link(sock.request(podlink.get_state(name=name), "read link", name)[0])
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def _create(sock: NetlinkSocket, plan: BridgePlan, port: str) -> None:
    device = plan.gateway_device
    digest = hashlib.sha256(b"leg\0" + device.encode() + (plan.mac or b"")).digest()
    home = netns.current()
    try:
        msg = podlink.create_pair(
            port,
            local_mac(digest),
            0,
            plan.mtu,
            pod=device,
            pod_mac=local_mac(digest[6:]),
            netns_fd=home,
        )
        sock.request(msg, "create link", device)
    finally:
        os.close(home)


def _connect(sock: NetlinkSocket, plan: BridgePlan, bridge: int, port: int, leg: int) -> None:
    msgs = [
        rtlink.set_link(port, attr_u32(rtlink.IFLA_MASTER, bridge)),
        *podlink.port_vlan(port, plan.vlan),
        podlink.set_up(port),
        podlink.set_up(leg),
    ]
    for error in sock.batch(msgs, "connect VLAN to bridge", f"{plan.gateway_device} on {plan.name}"):
        if error is not None:
            raise error
