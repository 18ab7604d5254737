"""A real agent that serves Services on the node of a topology, from a folder of manifests of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pycni.kernel import netns
from pycni_proxy.cli_services import AgentError, fetch
from tests.proxy.topology import NODE, Topology
from tests.waiting import wait_for

ROOT = Path(__file__).parents[2]
HEALTH = 10256


def service(name: str, ip: str, port: int = 80, protocol: str = "TCP", **spec: Any) -> dict[str, Any]:
    """A manifest; ``spec`` adds to spec, ``node_port`` to its port."""
    entry = {"port": port, "protocol": protocol, "targetPort": port}
    if "node_port" in spec:
        entry["nodePort"] = spec.pop("node_port")
        spec.setdefault("type", "NodePort")
    family = "IPv6" if ":" in ip else "IPv4"
    body = {"clusterIP": ip, "clusterIPs": [ip], "ipFamilies": [family], "ports": [entry], **spec}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": body,
    }


def piece(
    name: str, *addresses: str, port: int = 80, protocol: str = "TCP", node: str = "node"
) -> dict[str, Any]:
    """The EndpointSlice of a service, all endpoints ready."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv6" if addresses and ":" in addresses[0] else "IPv4",
        "ports": [{"port": port, "protocol": protocol}],
        "endpoints": [
            {"addresses": [address], "nodeName": node, "conditions": {"ready": True}} for address in addresses
        ],
    }


class Agent:
    """The agent's process, restarted at will; its folder of manifests."""

    def __init__(self, spaces: Topology, folder: Path) -> None:
        self.space = spaces.names["node"]
        self.folder = folder
        self.manifests = folder / "manifests"
        self.manifests.mkdir(parents=True)
        # The kernel allows 107 bytes for a socket's path, test folders are long.
        self.run = Path("/run") / f"pyt{os.getpid()}-{self.space[-12:]}"
        self.run.mkdir()
        self.socket = str(self.run / "agent.sock")
        self.log = folder / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.objects: dict[str, dict[str, Any]] = {}
        meta = {"name": "node"}
        status = {"addresses": [{"type": "InternalIP", "address": address} for address in NODE]}
        self.put({"apiVersion": "v1", "kind": "Node", "metadata": meta, "status": status})

    def put(self, *manifests: dict[str, Any]) -> None:
        """Write manifests, each file whole or not at all."""
        for item in manifests:
            name = f"{item['kind']}-{item['metadata']['name']}"
            draft = self.manifests / f".{name}"
            draft.write_text(yaml.safe_dump(item))
            draft.rename(self.manifests / f"{name}.yaml")

    def drop(self, kind: str, name: str) -> None:
        """Remove one."""
        (self.manifests / f"{kind}-{name}.yaml").unlink()

    def start(self, mode: str = "nftables", *flags: str, ready: bool = True) -> None:
        """Start it; returns when services are programmed."""
        words = [
            sys.executable,
            "-P",
            "-m",
            "pycni.agent.main",
            "run",
            "--components=proxy",
            "--node-name=node",
        ]
        words += [f"--manifest-dir={self.manifests}", f"--state-dir={self.run}/state", f"--proxy-mode={mode}"]
        words += [f"--cni-socket={self.run}/cni.sock", "--iface=eth0", "--healthz-ip=127.0.0.1"]
        words += ["--cluster-cidr=10.244.0.0/16,fd00:244::/32", "--log-level=debug", *flags]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proxy'}"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*netns.exec_prefix(self.space), *words], stdout=log, stderr=log, env=environment
            )
        if ready:
            wait_for(self.is_ready, f"services\n{self.said()}", 60.0)

    def is_ready(self) -> bool:
        """Whether /readyz is 200."""
        assert self.process is not None
        assert self.process.poll() is None, f"the agent ended\n{self.said()}"
        try:
            fetch(self.socket, "/readyz")
        except AgentError:
            return False
        return True

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def services(self, query: str = "") -> dict[str, Any]:
        """What the control socket says."""
        found: dict[str, Any] = json.loads(fetch(self.socket, f"/services{query}"))
        return found

    def programmed(self, name: str, *addresses: str) -> None:
        """Wait until a service's first frontend has exactly these endpoints."""

        def there() -> bool:
            found = self.services(f"?name={name}")["services"]
            ends = [end["address"] for end in found[0]["frontends"][0]["endpoints"]] if found else None
            return ends == sorted(addresses)

        wait_for(there, f"{name} at {addresses}")

    def said(self) -> str:
        """Its log."""
        return self.log.read_text() if self.log.exists() else ""

    def ctl(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run pycnictl on the node."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proxy'}"}
        return subprocess.run(
            [*netns.exec_prefix(self.space), sys.executable, "-P", "-m", "pycni.cli", *words],
            capture_output=True,
            text=True,
            env=environment,
            timeout=60,
            check=False,
        )

    def close(self) -> None:
        """End it and remove what it leaves outside its namespace."""
        self.stop(signal.SIGKILL)
        self.ctl("cleanup", "--socket", self.socket)
        for path in sorted(self.run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        self.run.rmdir()


@contextlib.contextmanager
def agent(spaces: Topology, folder: Path) -> Iterator[Agent]:
    """An agent that is not started yet; everything of it is gone afterwards."""
    made = Agent(spaces, folder)
    try:
        yield made
    finally:
        made.close()
