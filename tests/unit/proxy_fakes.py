"""A data plane in memory: rows are frontends, the kernel is a dictionary that outlives drivers and can fail."""

from __future__ import annotations

import asyncio
import contextlib

from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.settings_file import load as load_settings
from pycni.errors import ConfigError, KernelError
from pycni.model.kube import ENDPOINT_SLICE, NODE, SERVICE, KubeNode, Meta
from pycni.reconcile.backoff import Backoff
from pycni.store import Store
from pycni_proxy.base import Counters, Dataplane, TargetState
from pycni_proxy.component import ProxyComponent


class FakePlane:
    """A module like ``pycni_proxy.nft`` and the kernel it programs."""

    def __init__(self, name, journal, *, lacks="", refuses=lambda frontend: ""):
        self.name = name
        self.journal = journal
        self.lacks = lacks
        self.refuses = refuses
        self.kernel = {}
        self.fail = []
        """Errors the next applies end with."""
        self.made = []
        self.open = 0
        self.polls = 0
        self.leftover_error = None

    # Factory

    def missing(self):
        return self.lacks

    def make(self, facts):
        self.made.append(facts)
        self.open += 1
        return Dataplane(self.name, FakeCompiler(self), FakeDriver(self))

    def leftovers(self):
        if self.leftover_error:
            raise self.leftover_error
        gone = [str(key) for key in sorted(self.kernel)]
        self.kernel.clear()
        if gone:
            self.journal.append(f"{self.name}: removed {len(gone)}")
        return gone


class FakeCompiler:
    tables = ("frontends",)
    shared = frozenset()

    def __init__(self, plane):
        self._plane = plane

    def refusal(self, frontend):
        return self._plane.refuses(frontend)

    def rows(self, frontends):
        return {"frontends": {item.key: item for item in frontends}}

    def common(self):
        return {}


class FakeDriver:
    def __init__(self, plane):
        self._plane = plane

    def read(self):
        self._plane.journal.append(f"{self._plane.name}: read")
        return {"frontends": dict(self._plane.kernel)}

    def apply(self, changes):
        if self._plane.fail:
            raise self._plane.fail.pop(0)
        for _, delta in changes:
            for key in delta.remove:
                del self._plane.kernel[key]
            self._plane.kernel.update(delta.add)
            self._plane.kernel.update(delta.change)
            self._plane.journal.append(f"{self._plane.name}: {delta.size} rows")

    def counters(self):
        return {key: Counters(7, bytes_in=2048, bytes_out=1) for key in self._plane.kernel}

    def targets(self, key):
        found = self._plane.kernel.get(key)
        return [TargetState(target, 1, 3) for target in found.pool.targets] if found else []

    def poll(self):
        self._plane.polls += 1
        return

    def remove(self):
        return self._plane.leftovers()

    def close(self):
        self._plane.open -= 1


def refused(text="no room"):
    return KernelError(28, "add rule", "x", text)


class World:
    """A component among fakes. ``run`` gives it an event loop and a scenario."""

    def __init__(self, *flags, planes=None, podnet=None, backoff=None):
        self.journal = []
        self.planes = {"nftables": FakePlane("nftables", self.journal)}
        self.planes |= {plane.name: plane for plane in planes or ()}
        for plane in self.planes.values():
            plane.journal = self.journal
        self.store = Store()
        self.health = Health()
        self.registry = Registry()
        argv = [
            "--components=proxy",
            "--proxy-healthz-port=0",
            "--cluster-cidr=10.244.0.0/16",
            "--proxy-mode=nftables",
            *flags,
        ]
        self.settings = load_settings(argv, {}, "n1").settings
        self.podnet = podnet
        self.backoff = backoff or Backoff(0.01, 0.02)
        self.underlay = None
        self.component = None

    def load(self, name):
        if name not in self.planes:
            raise ConfigError("settings", "proxy-mode", name, "not installed: x is missing")
        return self.planes[name]

    @property
    def kernel(self):
        return self.planes["nftables"].kernel

    def node(self, **meta):
        self.store.put(NODE, "n1", KubeNode(meta=Meta(name="n1", **meta), internal_ips=("192.0.2.1",)))

    def list_all(self, services=(), slices=()):
        self.store.mark_listed(NODE)
        self.store.replace(ENDPOINT_SLICE, {item.meta.key: item for item in slices})
        self.store.replace(SERVICE, {item.meta.key: item for item in services})

    def put(self, *objects):
        for item in objects:
            kind = SERVICE if hasattr(item, "cluster_ips") else ENDPOINT_SLICE
            self.store.put(kind, item.meta.key, item)

    @property
    def red(self):
        return self.health.red().get("proxy", "")

    def run(self, scenario):
        async def main():
            self.health, self.registry = Health(), Registry()
            self.component = ProxyComponent(
                self.settings,
                self.store,
                health=self.health,
                metrics=self.registry,
                podnet=self.podnet,
                find_underlay=lambda _settings, _families: self.underlay,
                load=self.load,
                backoff=self.backoff,
            )
            task = asyncio.create_task(self.component.run())
            try:
                await scenario(self)
            finally:
                if not task.done():
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

        asyncio.run(main())

    async def until(self, condition, seconds=10.0):
        """Wait for something; what it was is in the traceback."""
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)
