"""The nftables data plane's hand in the kernel: rows to transactions, counters of denials back.

Life: see ``pycni.kernel.nft_table``, which does the work for any table kept by rows; this module knows which.
"""

from __future__ import annotations

from collections.abc import Sequence

from pycni.errors import KernelError
from pycni.kernel.nft_table import NftTable
from pycni.policy.base import Denied
from pycni.policy.nft.layout import TABLE
from pycni.policy.nft.schema import schema
from pycni.reconcile.ledger import Changes, Tables


class NftDriver:
    """See ``base.Driver``. One thread at a time."""

    def __init__(self) -> None:
        """Open a socket in the calling thread's network namespace. Raises KernelError."""
        self._table = NftTable(schema())

    def read(self) -> Tables:
        """See ``base.Driver``. A table of another generation counts as none: it is replaced."""
        return self._table.read()

    def apply(self, changes: Changes) -> None:
        """See ``base.Driver``: one transaction."""
        self._table.apply(dict(changes))

    def check(self, changes: Changes) -> None:
        """See ``base.Driver``."""
        self._table.apply(dict(changes), check=True)

    def denied(self) -> Sequence[Denied]:
        """See ``base.Driver``. Several policies that isolate a pod all count what none of them allows."""
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for item in self._table.rule_counts():
            _, side, policy = item.comment.split(" ", 2)
            packets, size = sums.get((policy, side), (0, 0))
            sums[policy, side] = (packets + item.packets, size + item.bytes)
        return [Denied(*key, *sums[key]) for key in sorted(sums)]

    def remove(self) -> list[str]:
        """See ``base.Driver``."""
        return [f"table inet {TABLE}"] if self._table.remove() else []

    def close(self) -> None:
        """See ``base.Driver``."""
        self._table.close()


_TRIED = (
    "if 4 egress group 0123456789ab ports 0123456789abcdef then accept",
    "if 6 ingress block 0123456789abcdef proto 17 named dns then accept",
    "count ingress x",
    "log x",
    "jump egress4",
)
"""Rules with every instruction that only policies need."""


def probe() -> str:
    """Why the table cannot be made in this kernel; "" when it can. Changes nothing."""
    try:
        driver = NftDriver()
    except KernelError as error:
        return f"no nf_tables in this kernel: {error}"
    try:
        return driver._table.probe(_TRIED)  # noqa: SLF001
    finally:
        driver.close()
