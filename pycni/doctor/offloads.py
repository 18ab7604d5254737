"""What devices do themselves: checksums, and joining and cutting packets. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pycni.doctor.model import Facts, Finding
from pycni.doctor.mtu import underlay

FEATURES = (
    "rx-gro", "rx-lro", "tx-generic-segmentation", "tx-tcp-segmentation", "tx-udp_tnl-segmentation",
    "tx-checksum-ip-generic", "tx-checksum-ipv4",
)  # fmt: skip
"""By ethtool's names."""
_SLOW = {
    "rx-gro": "joining received packets",
    "tx-generic-segmentation": "cutting large packets late",
    "tx-tcp-segmentation": "cutting TCP in the device",
}
_BUGGY = {
    "vmxnet3": "VMware's vmxnet3 drops or spoils inner packets of VXLAN on ports other than 4789 and 8472"
}
_UDP_FIXED = (5, 7)


def check(facts: Facts) -> Iterable[Finding]:
    """Of the underlay's device and of overlays."""
    device = underlay(facts)
    link = facts.space.links.get(device)
    if link is not None and not link.kind:  # a virtual device has nothing to spare its node
        yield from _uplink(device, facts.offloads.get(device, {}))
    yield from _overlays(facts, facts.drivers.get(device, ""))


def _uplink(device: str, on: Mapping[str, bool]) -> Iterable[Finding]:
    off = [name for name in _SLOW if on.get(name) is False]
    if off:
        yield Finding(
            check="offload-off",
            level="info",
            subject=f"{device}: {', '.join(off)} off",
            reason=f"no {', '.join(_SLOW[name] for name in off)}: more work per byte, and less throughput",
            fix="; ".join(f"ethtool -K {device} {name} on" for name in off),
            source="kernel.org, networking/segmentation-offloads; ethtool(8)",
        )
    if on.get("rx-lro"):
        yield Finding(
            check="lro-on",
            level="error",
            subject=f"{device}: rx-lro on",
            reason="packets the device has joined cannot be forwarded as they were: dropped as too big, or cut wrongly",
            fix=f"ethtool -K {device} lro off",
            source="kernel.org, networking/segmentation-offloads (LRO and forwarding)",
        )


def _overlays(facts: Facts, driver: str) -> Iterable[Finding]:
    """Outer UDP checksums that are computed wrongly, by old kernels after NAT and by some devices."""
    for link in facts.space.links.values():
        if link.kind != "vxlan" or not link.checksum:
            continue
        if (0, 0) < facts.version < _UDP_FIXED:
            reason = (
                f"kernel {facts.release} spoils the checksum of masqueraded VXLAN packets: they are dropped"
            )
            source = "kubernetes/kubernetes#88986, flannel-io/flannel#1279; fixed in Linux 5.7"
        elif driver in _BUGGY:
            reason, source = _BUGGY[driver], "flannel-io/flannel#1279; VMware KB 2052917"
        else:
            continue
        yield Finding(
            check="vxlan-checksum",
            level="warning",
            subject=f"{link.name}: tx-checksum-ip-generic on",
            reason=reason,
            fix=f"ethtool -K {link.name} tx-checksum-ip-generic off",
            source=source,
        )
