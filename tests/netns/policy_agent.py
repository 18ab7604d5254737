"""The policy component at work in the node of a topology: a thread of its own in that namespace, manifests as files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pycni.agent.health import Health
from pycni.agent.settings_file import load
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import bpf_places, netns, nft_names
from pycni.model.endpoint import Endpoint
from pycni.policy import cleanup, nft
from pycni.policy.base import Dataplane
from pycni.policy.component import PolicyComponent
from pycni.policy.component_fast import PARTS
from pycni.reconcile.backoff import Backoff
from pycni.sources.manifests import ManifestSource
from pycni.store import Store
from tests.proxy.topology import NODE, PODS, Topology

LABELS = {"a": ("shop", "web"), "b": ("shop", "db"), "c": ("lone", "web")}
API = {"NetworkPolicy": "networking.k8s.io/v1", "ClusterNetworkPolicy": "policy.networking.k8s.io/v1alpha2"}


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 10.0) -> Any:
    """What the condition gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)
    return found


class Folder:
    """Manifests, one object a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        status = {"addresses": [{"type": "InternalIP", "address": address} for address in NODE]}
        self.put("Node", "n1", status=status, spec={"podCIDRs": ["10.244.1.0/24", "fd00:244:1::/64"]})
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

    def pod(self, name: str, *, ips: bool = True, **labels: str) -> None:
        """A pod of the topology; without addresses as the API has it before its ADD has returned."""
        namespace, app = LABELS[name]
        addresses = [{"ip": address} for address in PODS[name]] if ips else []
        status = {"phase": "Running" if ips else "Pending", "podIPs": addresses}
        self.put(
            "Pod", name, namespace, {"app": app, **labels},
            spec={"nodeName": "n1", "containers": []}, status=status,
        )  # fmt: skip

    def policy(self, name: str, namespace: str = "shop", **spec: Any) -> None:
        self.put("NetworkPolicy", name, namespace, spec={"podSelector": {}, **spec})


def endpoint(name: str, state: str = "pending", mac: str = "02:00:00:00:00:01") -> Endpoint:
    """The record of a pod of the topology."""
    lengths = (24, 64)
    return Endpoint(
        network="net",
        container_id=name * 8,
        ifname="eth0",
        state=state,  # type: ignore[arg-type]
        host_ifname=f"p{name}",
        mac=mac,
        addresses=tuple(
            ip_interface(f"{address}/{size}") for address, size in zip(PODS[name], lengths, strict=True)
        ),
        pod_namespace=LABELS[name][0],
        pod_name=name,
    )


class PolicyAgent:
    """The component with its source of manifests; ``start`` and ``stop`` at will."""

    def __init__(self, spaces: Topology, folder: Folder, state: Path) -> None:
        self._spaces = spaces
        self.space = spaces.names["node"]
        self.folder = folder
        self.wrap: Callable[[Dataplane], Dataplane] = lambda plane: plane
        self.flags: list[str] = []
        self.checks = "false"
        """Whether senders are checked."""
        self.records = EndpointStore(str(state))
        self.health = Health()
        self.component: PolicyComponent
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None]
        self._calls: ThreadPoolExecutor
        self.error: BaseException | None = None

    def start(self, *, ready: bool = True, listed: bool = True) -> None:
        """``listed``: the manifests are read at once; else by ``read``."""
        begun = threading.Event()
        self.health = Health()
        settings = load(
            ["--components=policy", "--node-name=n1", f"--policy-spoof-check={self.checks}", *self.flags],
            {},
            "n1",
        ).settings

        async def main() -> None:
            store = Store()
            self._source = ManifestSource(self.folder.path)
            self.component = PolicyComponent(
                settings,
                store,
                health=self.health,
                recorded=True,
                exits=lambda: ("eth0",),
                malformed=self._source.malformed,
                make=lambda: self.wrap(nft.make()),
                backoff=Backoff(0.05, 0.2),
            )
            self.component.follow_pods(self.records)
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()  # type: ignore[assignment]
            self._reading = asyncio.Event()
            if listed:
                self._reading.set()

            async def read() -> None:
                await self._reading.wait()
                await self._source.run(store)

            begun.set()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.component.run())
                tasks.create_task(read())

        def life() -> None:
            fd = netns.open_netns(netns.path(self.space))
            try:
                with contextlib.suppress(asyncio.CancelledError):
                    netns.run_in(fd, lambda: asyncio.run(main()))
            except BaseException as exc:
                self.error = exc
                begun.set()
            finally:
                os.close(fd)

        self._thread = threading.Thread(target=life)
        self._thread.start()
        assert begun.wait(10)
        if ready:
            wait_for(lambda: self.red == "", "policies to be programmed")

    def read(self) -> None:
        """Let the manifests be read."""
        self._loop.call_soon_threadsafe(self._reading.set)

    def stop(self) -> None:
        if self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(20)
            assert not self._thread.is_alive()
            self._thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self.records.close()

    @property
    def red(self) -> str:
        """Why health is red; "" when it is not."""
        return self.health.red().get("policy", "")

    def add(self, name: str) -> float:
        """What an ADD does; seconds the gate took."""
        return self._inside(lambda: self._add(name))

    def _add(self, name: str) -> float:
        pending = endpoint(name, mac=self._mac(name))
        self.records.put(pending)
        began = time.monotonic()
        self.component.gate.admit(pending)
        took = time.monotonic() - began
        self.component.gate.attached(pending)
        self.records.put(endpoint(name, "ready", self._mac(name)))
        return took

    def _mac(self, name: str) -> str:
        words = ["ip", "-j", "-n", self._spaces.names[name], "link", "show", "eth0"]
        found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        return str(found[0]["address"])

    def delete(self, name: str) -> None:
        """What a DEL does."""
        self.records.put(endpoint(name, "dying"))
        self._inside(lambda: self.component.gate.gone(endpoint(name)))
        self.records.remove(endpoint(name).owner)

    @property
    def flows(self) -> float | None:
        """Connections the fast path carries; None while it does not judge."""
        engine = self.component.gate.engine
        if engine is None or engine.fast is None or engine.aside:
            return None
        served = engine.fast.figures()
        return served["flows"] if served["pods"] == 3 else None

    def pins(self) -> list[str]:
        """Folders of programs there are for the node."""
        return [folder for part in PARTS for folder in self._inside(partial(bpf_places.existing, part))]

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No pass begins meanwhile: the event loop stands still."""
        asleep, awake = threading.Event(), threading.Event()

        def sleep() -> None:
            asleep.set()
            assert awake.wait(20)

        self._loop.call_soon_threadsafe(sleep)
        assert asleep.wait(5)
        try:
            yield
        finally:
            awake.set()

    def tables_now(self) -> set[str]:
        """Names of the nftables tables there are."""
        return {name for _, name in self._inside(nft_names.tables)}

    def _inside(self, call: Callable[[], Any]) -> Any:
        """On a thread in the node's namespace, as CNI calls are."""
        found: list[Any] = []

        def run() -> None:
            fd = netns.open_netns(netns.path(self.space))
            try:
                found.append(netns.run_in(fd, call))
            finally:
                os.close(fd)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join(30)
        assert found, "the call failed"
        return found[0]


@contextlib.contextmanager
def policy_agent(spaces: Topology, folder: Path) -> Iterator[PolicyAgent]:
    """Not started; nothing is left afterwards, in the kernel neither."""
    agent = PolicyAgent(spaces, Folder(folder / "manifests"), folder / "state")
    try:
        yield agent
    finally:
        try:
            agent.close()
        finally:
            fd = netns.open_netns(netns.path(agent.space))
            try:
                _, failed = netns.run_in(fd, cleanup.leftovers)
            finally:
                os.close(fd)
        assert not failed
