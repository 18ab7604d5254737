"""Capability ``bandwidth``: what the runtime asks for, in bits, as the parameters of token bucket filters.

The pod's ingress leaves the node by the host end of its veth, so a filter there shapes it. What the pod sends
enters the node there and is led through a device of its own, whose filter shapes it (kernel/tc).
"""

from __future__ import annotations

from typing import NamedTuple

from pycni.model.cni import Bandwidth

LATENCY_S = 0.025
"""How long a packet may wait in a full bucket's queue; the reference plugin's figure."""
SMALLEST_BURST = 16 * 1024
"""Bytes. A bucket smaller than a GSO segment of common size splits every one of them."""
BURST_LIMIT = 2**32 - 1
"""TCA_TBF_BURST and tc_tbf_qopt.limit are 32 bits wide (include/uapi/linux/pkt_sched.h)."""


class Bucket(NamedTuple):
    """One token bucket filter. ``rate`` in bytes per second, ``burst`` and ``limit`` in bytes."""

    rate: int
    burst: int
    limit: int

    def text(self) -> str:
        """The filter in words."""
        return f"rate {self.rate * 8}bit burst {self.burst}b limit {self.limit}b"


class Shaping(NamedTuple):
    """Limits of one pod; None: unlimited in that direction, seen from the pod."""

    ingress: Bucket | None
    egress: Bucket | None


UNSHAPED = Shaping(None, None)


def shaping(bandwidth: Bandwidth | None) -> Shaping:
    """Buckets for both directions."""
    if bandwidth is None:
        return UNSHAPED
    return Shaping(
        bucket(bandwidth.ingress_rate, bandwidth.ingress_burst),
        bucket(bandwidth.egress_rate, bandwidth.egress_burst),
    )


def bucket(rate_bits: int, burst_bits: int) -> Bucket | None:
    """A bucket for a rate in bits/s and a burst in bits; 0 bits of burst: what passes in 100 ms."""
    if rate_bits <= 0:
        return None
    rate = max(rate_bits // 8, 1)
    burst = burst_bits // 8 if burst_bits > 0 else max(rate // 10, SMALLEST_BURST)
    burst = min(max(burst, 1), BURST_LIMIT)
    return Bucket(rate, burst, min(int(rate * LATENCY_S) + burst, BURST_LIMIT))
