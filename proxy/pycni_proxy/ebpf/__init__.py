"""The eBPF service data plane: translation in the socket layer, with nftables behind it for what is no socket of ours.

``missing``, ``make`` and ``leftovers`` are the functions of ``base.Factory``. The plane is a partial one: sockets of
this node's pods and of the node itself are led straight to an endpoint when they connect or send, and their packets
never meet a rule; TCP from outside is translated on the uplink; the rest from outside, raw packets and everything the
compiler refuses goes through the nftables plane, which the engine gives the same frontends.

    compile, layout, maglev   pure: frontends -> rows as bytes
    balance.c, sock.c         the programs: what all of them share, those of sockets
    uplink.c, uplink          those for TCP from outside, and its connections
    driver                    rows into pinned maps, programs attached to the control group tree
    namespaces                whose sockets are served
    stale                     connected UDP sockets to endpoints that are gone
"""

from __future__ import annotations

import logging
import os

import msgspec

from pycni.kernel import bpf_build, bpf_places
from pycni.model.service import NodeFacts
from pycni_proxy.base import Dataplane
from pycni_proxy.ebpf import driver as _driver
from pycni_proxy.ebpf import uplink
from pycni_proxy.ebpf.compile import SockCompiler
from pycni_proxy.ebpf.driver import PART, PROGRAMS, Places, SockDriver

log = logging.getLogger("pycni.proxy.ebpf")

NAME = "ebpf"
OLDEST = (5, 18)
"""First kernel with all that the programs use; the newest is bpf_set_retval."""


def missing(places: Places = Places()) -> str:  # noqa: B008 - immutable
    """What this machine lacks for it, in one line; "" when it can run here."""
    if os.geteuid():
        return "eBPF programs need root"
    with open("/proc/filesystems", encoding="utf-8") as file:
        known = {line.split()[-1] for line in file}
    lacking = [name for name in ("bpf", "cgroup2") if name not in known]
    if lacking:
        return f"the kernel has no {' and no '.join(lacking)} file system"
    source = _driver.source(places.cache)
    functions = [spec.function for spec in PROGRAMS]
    return bpf_build.lacking(OLDEST, source.text, functions, source.flags, places.cache)


def make(facts: NodeFacts, places: Places = Places()) -> Dataplane:  # noqa: B008
    """The data plane of the node whose network namespace this thread is in. Raises KernelError, BuildError."""
    if facts.uplink:
        lacks = uplink.missing(places.cache)
        if lacks:
            log.info("TCP from outside is left to nftables: %s", lacks)
            facts = msgspec.structs.replace(facts, uplink="")
    if not facts.uplink:
        _remove(uplink.PART, places)
    return Dataplane(NAME, SockCompiler(facts), SockDriver(facts, places), partial=True)


def leftovers(places: Places = Places()) -> list[str]:  # noqa: B008
    """Detach and remove what an earlier life left for the node this thread is in; says what went."""
    return [name for part in (uplink.PART, PART) for name in _remove(part, places)]


def _remove(part: str, places: Places) -> list[str]:
    return [
        f"{os.path.basename(os.path.dirname(folder))}: {name}"
        for folder in bpf_places.existing(part, places.bpffs)
        for name in bpf_places.remove_tree(folder)
    ]
