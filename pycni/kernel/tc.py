"""Shaping of one pod's traffic by token buckets on the node's side, where the pod cannot undo it.

What the pod receives leaves by its veth's host end, whose root is a token bucket. What it sends comes in there, is
led through a device of its own (ifb) and shaped by that one's root. The ifb carries the pod's alias and goes with the
veth: both are put into one group when the pod is cut off.
"""

from __future__ import annotations

import errno

from pycni.attach.bandwidth import Bucket
from pycni.attach.plan import AttachPlan
from pycni.errors import KernelError
from pycni.kernel.netlink import NetlinkSocket
from pycni.wire import podlink, rtlink, tc
from pycni.wire.netlink import attr_u32

_ONE_QUEUE = attr_u32(podlink.IFLA_NUM_TX_QUEUES, 1) + attr_u32(podlink.IFLA_NUM_RX_QUEUES, 1)


def shape(sock: NetlinkSocket, plan: AttachPlan, host: int) -> None:
    """Shape a pod's traffic as planned; ``host`` is the index of its veth's host end. Raises KernelError."""
    ingress, egress = plan.shaping
    if ingress is not None:
        msg = tc.add_tbf(host, *ingress)
        sock.request(msg, "shape ingress", f"dev {plan.host} {ingress.text()}")
    if egress is None:
        return
    shaper = _make_shaper(sock, plan)
    about = f"dev {plan.names.shaper} {egress.text()}"
    msgs = [
        rtlink.set_link(shaper, rtlink.link_alias(plan.names.alias), up=True),
        tc.add_tbf(shaper, *egress),
        tc.add_clsact(host),
        tc.add_redirect(host, shaper),
    ]
    for msg, error in zip(msgs, sock.batch(msgs, "shape egress", about), strict=True):
        if error is not None and not (msg is msgs[2] and error.errno == errno.EEXIST):
            raise error


def differences(sock: NetlinkSocket, plan: AttachPlan, host: int) -> list[str]:
    """What is not as planned, in words."""
    ingress, egress = plan.shaping
    found = _compare(sock, host, ingress, f"ingress shaping of {plan.host}")
    if egress is None:
        return found
    name = plan.names.shaper
    try:
        answer = sock.request(podlink.get_state(name=name), "read link", name)[0]
    except KernelError as error:
        if error.errno != errno.ENODEV:
            raise
        return [*found, f"egress shaping device {name} is missing"]
    shaper = rtlink.parse_link(answer)
    if not shaper.up:
        found.append(f"egress shaping device {name} is down")
    found += _compare(sock, shaper.ifindex, egress, f"egress shaping of {plan.host}")
    targets = [
        tc.redirect_target(msg.payload) for msg in sock.dump(tc.get_filters(host), "list filters", plan.host)
    ]
    if shaper.ifindex not in targets:
        found.append(f"what {plan.host} receives is not led through {name}")
    return found


def _make_shaper(sock: NetlinkSocket, plan: AttachPlan) -> int:
    name = plan.names.shaper
    mtu = (attr_u32(rtlink.IFLA_MTU, plan.mtu),) if plan.mtu else ()
    sock.request(rtlink.new_link(name, "ifb", _ONE_QUEUE, *mtu), "create shaping device", name)
    answer = sock.request(podlink.get_state(name=name), "read link", name)[0]
    return podlink.pair_indexes(answer.payload)[0]


def _compare(sock: NetlinkSocket, ifindex: int, bucket: Bucket | None, what: str) -> list[str]:
    if bucket is None:
        return []
    answers = sock.request(tc.get_root(ifindex), "read queueing discipline", what)
    found = next((tc.root_bucket(answer.payload, ifindex) for answer in answers), None)
    if found is None:
        return [f"{what} is missing (expected {bucket.text()})"]
    if found != (bucket.rate, bucket.limit):
        return [f"{what} is rate {found.rate * 8}bit limit {found.limit}b, expected {bucket.text()}"]
    return []
