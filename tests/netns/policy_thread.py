"""The policy component on a thread of its own in a network namespace, and the manifests it reads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pycni.agent.health import Health
from pycni.agent.settings_file import load
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import netns
from pycni.policy.component import PolicyComponent
from pycni.reconcile.backoff import Backoff
from pycni.sources.manifests import ManifestSource
from pycni.store import Store
from tests.waiting import PATIENCE_S

API = {"NetworkPolicy": "networking.k8s.io/v1", "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2"}


class Manifests:
    """A folder of manifests, one object a file; node n1 and the namespaces shop and lone are there."""

    def __init__(self, path: Path, node: Iterable[str], **spec: Any) -> None:
        """``node``: addresses of n1; ``spec``: more about it."""
        self.path = path
        path.mkdir(parents=True)
        status = {"addresses": [{"type": "InternalIP", "address": address} for address in node]}
        self.put("Node", "n1", status=status, spec=spec)
        for name in ("shop", "lone"):
            self.put("Namespace", name)

    def put(self, kind: str, name: str, namespace: str = "", labels: Any = None, **fields: Any) -> None:
        """Write an object; the file is whole or not there."""
        meta = {"name": name, "namespace": namespace, "labels": labels or {}}
        value = {"apiVersion": API.get(kind, "v1"), "kind": kind, "metadata": meta, **fields}
        draft = self.path / f".{kind}-{namespace}-{name}"
        draft.write_text(json.dumps(value))
        draft.rename(self.path / f"{kind}-{namespace}-{name}.json")

    def drop(self, kind: str, name: str, namespace: str = "") -> None:
        (self.path / f"{kind}-{namespace}-{name}.json").unlink()

    def policy(self, name: str, namespace: str = "shop", **spec: Any) -> None:
        self.put("NetworkPolicy", name, namespace, spec={"podSelector": {}, **spec})


class PolicyThread:
    """One life of the component in a namespace: it is there when this is made, until ``stop``."""

    def __init__(
        self,
        space: str,
        flags: Sequence[str],
        manifests: Path,
        records: EndpointStore,
        *,
        health: Health,
        listed: bool,
        **parts: Any,
    ) -> None:
        """``listed``: the manifests are read at once; else by ``read``. ``parts``: of the component."""
        self._space = space
        self._settings = load(["--components=policy", "--node-name=n1", *flags], {}, "n1").settings
        self._manifests, self._records = manifests, records
        self._listed, self._parts = listed, {"health": health, **parts}
        self._begun = threading.Event()
        self._error: BaseException | None = None
        self.component: PolicyComponent
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None]
        self._thread = threading.Thread(target=self._life)
        self._thread.start()
        assert self._begun.wait(PATIENCE_S)
        if not hasattr(self, "component"):
            self.stop()

    async def _main(self) -> None:
        store = Store()
        source = ManifestSource(self._manifests)
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()  # type: ignore[assignment]
        self._reading = asyncio.Event()
        if self._listed:
            self._reading.set()
        self.component = PolicyComponent(
            self._settings,
            store,
            recorded=True,
            malformed=source.malformed,
            backoff=Backoff(0.05, 0.2),
            **self._parts,
        )
        self.component.follow_pods(self._records)

        async def read() -> None:
            await self._reading.wait()
            await source.run(store)

        self._begun.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.component.run())
            tasks.create_task(read())

    def _life(self) -> None:
        fd = netns.open_netns(netns.path(self._space))
        try:
            with contextlib.suppress(asyncio.CancelledError):
                netns.run_in(fd, lambda: asyncio.run(self._main()))
        except BaseException as exc:
            self._error = exc
            self._begun.set()
        finally:
            os.close(fd)

    def call(self, fn: Any) -> None:
        """Have the component's event loop call ``fn``."""
        self._loop.call_soon_threadsafe(fn)

    def read(self) -> None:
        """Let the manifests be read."""
        self.call(self._reading.set)

    def stop(self) -> None:
        """As when the agent ends; what ended it early is raised."""
        with contextlib.suppress(RuntimeError):
            self.call(self._task.cancel)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error
