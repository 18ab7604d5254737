"""The nftables data plane of network policies.

``layout`` says what the table looks like, ``compile`` makes its rows, ``driver`` puts them into the kernel.
"""

from __future__ import annotations

from errno import ENOENT

from pycni.errors import KernelError
from pycni.kernel import modules, sysctl
from pycni.policy.base import Dataplane
from pycni.policy.nft.compile import NftCompiler
from pycni.policy.nft.driver import NftDriver, probe

NAME = "nftables"
BRIDGED = ("net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")


def missing() -> str:
    """What this kernel lacks, in one line; "" when nothing: all is tried in a transaction that is dropped."""
    return probe()


def make() -> Dataplane:
    """The data plane of the calling thread's network namespace. Raises KernelError.

    Bridged packets pass the IP hooks from then on: pods of one node reach each other over the bridge, and a kernel
    that cannot show them to us cannot isolate pods.
    """
    driver = NftDriver()
    try:
        see_bridged()
    except BaseException:
        driver.close()
        raise
    return Dataplane(NAME, NftCompiler(), driver)


def see_bridged() -> bool:
    """Have bridged packets pass the IP hooks; returns whether that was news. Raises KernelError."""
    try:
        changed = [sysctl.put(name, 1) for name in BRIDGED]
    except KernelError as error:
        if error.errno != ENOENT:
            raise
        modules.load("br_netfilter")
        changed = [sysctl.put(name, 1) for name in BRIDGED]
    return any(changed)


def leftovers() -> list[str]:
    """Remove what an earlier life left in this namespace; says what went."""
    driver = NftDriver()
    try:
        return driver.remove()
    finally:
        driver.close()
