"""The nftables data plane: the default where the kernel has no IPVS, and what other data planes fall back on.

``layout`` says what the table looks like, ``compile`` makes its rows, ``driver`` puts them into the kernel.
"""

from __future__ import annotations

import errno
import logging

from pycni.errors import KernelError
from pycni.kernel import sysctl
from pycni.model.service import NodeFacts
from pycni_proxy.base import Dataplane
from pycni_proxy.nft.compile import NftCompiler
from pycni_proxy.nft.driver import NftDriver, probe

log = logging.getLogger("pycni.proxy")

NAME = "nftables"
_BRIDGED = "net.bridge.bridge-nf-call-{}tables"


def missing() -> str:
    """See ``base.Factory``: the table's instructions are tried in a transaction that the kernel checks and drops."""
    return probe()


def make(facts: NodeFacts) -> Dataplane:
    """See ``base.Factory``. Bridged packets pass the IP hooks from then on.

    Pods of one node answer each other over the bridge; without the hooks, a pod that reached its neighbour by a
    virtual address would see the answer come from an address it never asked.
    """
    driver = NftDriver(facts)
    try:
        for kind in ("ip", "ip6"):
            _switch_on(_BRIDGED.format(kind))
    except BaseException:
        driver.close()
        raise
    return Dataplane(NAME, NftCompiler(facts), driver)


def leftovers() -> list[str]:
    """See ``base.Factory``."""
    driver = NftDriver(NodeFacts(name=""))
    try:
        return driver.remove()
    finally:
        driver.close()


def _switch_on(name: str) -> None:
    try:
        sysctl.put(name, 1)
    except KernelError as exc:
        if exc.errno != errno.ENOENT:
            raise
        log.warning("%s is missing: pods of one node cannot reach each other by a service's address", name)
