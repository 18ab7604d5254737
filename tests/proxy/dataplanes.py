"""Ways to make the data planes of a rig, and what they need of their own on a machine that others share."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator, Sequence

from pycni.kernel import bpf_places
from pycni.model.service import NodeFacts
from pycni_proxy import ebpf, planes
from pycni_proxy.base import Dataplane
from pycni_proxy.ebpf.driver import Places
from tests.proxy.rig import Rig, rig


@contextlib.contextmanager
def plain(*names: str, protocols: tuple[int, ...] = ()) -> Iterator[Rig]:
    """A rig with data planes as the agent makes them. Fails with the reason when the machine cannot run one."""

    def make(facts: NodeFacts) -> Sequence[Dataplane]:
        for name in names:
            reason = planes.missing(name)
            assert not reason, f"{name} cannot run here: {reason}"
        return planes.make(names, facts)

    with rig(make, protocols) as made:
        yield made


@contextlib.contextmanager
def sockets() -> Iterator[Rig]:
    """A rig with eBPF before nftables. Only its own clients and servers pass the programs, pins are its own."""
    prefix = f"pyt{os.getpid()}-semantics"
    folder = f"/run/{prefix}-bpf"
    cgroup = os.path.join(bpf_places.cgroup2(), prefix)
    places = Places(bpffs=folder, cgroup=cgroup, settle_s=0.0)

    def make(facts: NodeFacts) -> Sequence[Dataplane]:
        reason = ebpf.missing(places) or planes.missing("nftables")
        assert not reason, f"eBPF before nftables cannot run here: {reason}"
        first = ebpf.make(facts, places)
        try:
            return (first, *planes.make(["nftables"], facts))
        except BaseException:
            first.driver.close()
            raise

    with contextlib.ExitStack() as stack:
        stack.callback(_unmount, folder)
        os.mkdir(cgroup)
        stack.callback(os.rmdir, cgroup)
        yield stack.enter_context(rig(make, cgroup=cgroup))


def _unmount(folder: str) -> None:
    mnt_detach = 2
    ctypes.CDLL(None).umount2(folder.encode(), mnt_detach)
    shutil.rmtree(folder, ignore_errors=True)
