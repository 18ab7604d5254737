"""The policy component at work in the node of a topology: a thread of its own in that namespace, manifests as files."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from pycni.agent.health import Health
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import bpf_places, netns, nft_names
from pycni.model.endpoint import Endpoint
from pycni.policy import cleanup, nft
from pycni.policy.base import Dataplane
from pycni.policy.component import PolicyComponent
from pycni.policy.component_fast import PARTS
from tests.netns.policy_thread import Manifests, PolicyThread
from tests.proxy.topology import NODE, PODS, Topology
from tests.waiting import wait_for

LABELS = {"a": ("shop", "web"), "b": ("shop", "db"), "c": ("lone", "web")}


class Folder(Manifests):
    """Manifests of the topology's node."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, NODE, podCIDRs=["10.244.1.0/24", "fd00:244:1::/64"])

    def pod(self, name: str, *, ips: bool = True, **labels: str) -> None:
        """A pod of the topology; without addresses as the API has it before its ADD has returned."""
        namespace, app = LABELS[name]
        addresses = [{"ip": address} for address in PODS[name]] if ips else []
        status = {"phase": "Running" if ips else "Pending", "podIPs": addresses}
        self.put(
            "Pod", name, namespace, {"app": app, **labels},
            spec={"nodeName": "n1", "containers": []}, status=status,
        )  # fmt: skip


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
        self._thread: PolicyThread | None = None

    def start(self, *, ready: bool = True, listed: bool = True) -> None:
        """``listed``: the manifests are read at once; else by ``read``."""
        self.health = Health()
        self._thread = PolicyThread(
            self.space,
            [f"--policy-spoof-check={self.checks}", *self.flags],
            self.folder.path,
            self.records,
            health=self.health,
            listed=listed,
            exits=lambda: ("eth0",),
            make=lambda: self.wrap(nft.make()),
        )
        if ready:
            wait_for(lambda: self.red == "", "policies to be programmed")

    @property
    def component(self) -> PolicyComponent:
        assert self._thread is not None
        return self._thread.component

    def read(self) -> None:
        """Let the manifests be read."""
        assert self._thread is not None
        self._thread.read()

    def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()

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

        assert self._thread is not None
        self._thread.call(sleep)
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
