"""Live denials of the fast path, as its programs write them into a ring buffer (judge.h, ``struct event``).

Life of a denial: a program writes the packet's ends and the number of the rule; ``read`` gives the number its policies'
names. When nobody reads, the buffer stays full and programs count what they could not tell.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from pycni.kernel.bpf_ring import RingReader
from pycni.model.policy import Direction
from pycni.policy.base import Drop
from pycni.policy.ebpf import flows
from pycni.policy.ebpf.classes import RuleName
from pycni.policy.ebpf.compile import Maps
from pycni.policy.ebpf.driver import FastDriver
from pycni.policy.ebpf.layout import unpack_address


class Events:
    """See ``base.DropReader``. There can be one at a time."""

    def __init__(self, driver: FastDriver, compiled: Maps) -> None:
        self._driver = driver
        self._compiled = compiled
        self._fd = os.dup(driver.maps[flows.EVENTS].fd)
        self._before = driver.lost()
        try:
            self._ring = RingReader(self._fd, flows.EVENT_BYTES)
        except BaseException:
            os.close(self._fd)
            raise
        self._epoch = time.time() - time.monotonic()

    def fileno(self) -> int:
        """See ``base.DropReader``."""
        return self._fd

    def read(self) -> Sequence[Drop]:
        """See ``base.DropReader``."""
        names = self._compiled.rule_names()
        return [self._drop(raw, names) for raw in self._ring.read()]

    @property
    def lost(self) -> int:
        """See ``base.DropReader``."""
        return self._driver.lost() - self._before

    def close(self) -> None:
        """See ``base.DropReader``."""
        self._ring.close()
        os.close(self._fd)

    def _drop(self, raw: bytes, names: Mapping[bytes, RuleName]) -> Drop:
        told, rule, source_, destination, source_port, port, protocol, side, reason, by = flows.EVENT.unpack(
            raw
        )
        policies: tuple[str, ...] = (flows.REASONS[reason],)
        if not reason:
            name = names.get(rule)
            policies = ("a policy that is gone",) if name is None else name.policies
        has_ports = protocol in {flows.TCP, flows.UDP, flows.SCTP}
        return Drop(
            self._epoch + told / 1e9,
            unpack_address(source_),
            unpack_address(destination),
            protocol,
            _swapped(source_port) if has_ports else 0,
            _swapped(port) if has_ports else 0,
            Direction(side).name.lower(),
            policies[0],
            len(policies) - 1,
            ("ebpf", "xdp")[by],
        )


def _swapped(port: int) -> int:
    return int.from_bytes(port.to_bytes(2, "little"), "big")
