"""What stands in for a cluster's kubelets and controllers around the scripted API server: a lab does their work.

Life: a thread serves the API and looks at what the check has stored. Namespace, Services and policies go into the lab as
they are; a pod becomes a lab pod, and every container of it, ephemeral ones too, its command, run in the pod's network or
in its node's. What follows is written back: addresses, states, termination messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pycni.check.model import NAMESPACE
from pycni.errors import PycniError
from pycni.lab.apply import Cluster
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import pod_name
from tests.k8s.api_server import ApiServer, Request

LOOK_S = 0.03
MESSAGE = "/dev/termination-log"


class StandIn:
    """The stand-in."""

    def __init__(self, lab: Lab, folder: Path, server: ApiServer) -> None:
        self._lab, self._folder, self._server = lab, folder, server
        self._known: set[tuple[str, str]] = set()
        self._running: dict[tuple[str, str], tuple[subprocess.Popen[bytes], Path]] = {}
        self.refuse_images = False
        self.trouble: Exception | None = None
        """Of the last look that failed."""
        for node in lab.nodes():
            addresses = [{"type": "InternalIP", "address": str(item.ip)} for item in node.addresses.values()]
            status = {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]}
            server.world.put("nodes", {"metadata": {"name": node.name}, "status": status})

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    @property
    def url(self) -> str:
        return self._server.url

    def own_namespace(self) -> None:
        """Somebody else has one of this name."""
        self._server.world.objects["namespaces"]["", NAMESPACE] = {"metadata": {"name": NAMESPACE}}
        self._known.add(("namespaces", NAMESPACE))

    def disown_namespace(self) -> None:
        """He takes it away."""
        del self._server.world.objects["namespaces"]["", NAMESPACE]
        self._known.clear()

    async def follow(self) -> None:
        while True:
            try:
                await self._look()
            except (
                PycniError,
                KeyError,
            ) as error:  # objects went while they were looked at: so the next look finds
                self.trouble = error
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        objects = self._server.world.objects
        if ("", NAMESPACE) not in objects["namespaces"]:
            await self._forget()
            return
        new = {
            (plural, key[1]): value
            for plural in ("namespaces", "services", "networkpolicies", "pods")
            for key, value in list(objects[plural].items())
            if NAMESPACE in key and (plural, key[1]) not in self._known
        }
        if new:
            await self._apply(new)
        for (_, name), pod in list(objects["pods"].items()):
            await self._pod(name, pod)

    async def _apply(self, new: dict[tuple[str, str], dict[str, Any]]) -> None:
        values = [value for value in new.values() if not (value.get("spec") or {}).get("hostNetwork")]
        await asyncio.to_thread(Cluster(self._lab).apply, [("the API", value) for value in values])
        self._known.update(new)
        found = Cluster(self._lab).objects()
        for (plural, name), value in new.items():
            if plural == "services":
                stored = found[Key("Service", NAMESPACE, name)]["spec"]
                self._server.world.put(plural, {**value, "spec": stored})

    async def _pod(self, name: str, pod: dict[str, Any]) -> None:
        spec, host = pod["spec"], bool(pod["spec"].get("hostNetwork"))
        place = spec["nodeName"] if host else pod_name(NAMESPACE, name)
        ephemeral = spec.get("ephemeralContainers") or []
        for container in [*spec["containers"], *ephemeral]:
            if (name, container["name"]) not in self._running and not self.refuse_images:
                self._start(place, name, container)
        ips = (
            [str(item.ip) for item in self._lab.node(place).addresses.values()]
            if host
            else self._lab.pod(place).ips
        )
        status = {
            "phase": "Running",
            "podIPs": [{"ip": ip} for ip in ips],
            "containerStatuses": [self._state(name, item["name"]) for item in spec["containers"]],
            "ephemeralContainerStatuses": [self._state(name, item["name"]) for item in ephemeral],
        }
        if pod.get("status") != status:
            self._server.world.put("pods", {**pod, "status": status})

    def _start(self, place: str, pod: str, container: dict[str, Any]) -> None:
        assert container["command"][0] == "python3"
        file = self._folder / f"{pod}.{container['name']}"
        words = [sys.executable, *container["command"][1:]]
        words = [str(file) if word == MESSAGE else word for word in words]
        argv = self._lab.exec_argv(place, words)
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(argv, stdin=nothing, stdout=nothing, stderr=nothing)
        self._running[pod, container["name"]] = (process, file)

    def _state(self, pod: str, container: str) -> dict[str, Any]:
        if (pod, container) not in self._running:
            waiting = {"reason": "ErrImagePull", "message": "no such image"}
            return {"name": container, "state": {"waiting": waiting}}
        process, file = self._running[pod, container]
        if process.poll() is None:
            return {"name": container, "state": {"running": {}}}
        message = file.read_text() if file.exists() else ""
        ended = {"exitCode": process.returncode, "message": message[:4096]}
        return {"name": container, "state": {"terminated": ended}}

    async def _forget(self) -> None:
        """The namespace is gone: everything in it goes."""
        self.end()
        key = Key("Namespace", "", NAMESPACE)
        if self._known and key in Cluster(self._lab).objects():
            await asyncio.to_thread(Cluster(self._lab).delete, [key], 0.0)
        self._known.clear()
        for plural in ("pods", "services", "networkpolicies"):
            for space, name in [key for key in self._server.world.objects[plural] if key[0] == NAMESPACE]:
                self._server.world.remove(plural, name, space)

    def end(self) -> None:
        for process, _ in self._running.values():
            process.kill()
            process.wait()
        self._running.clear()


@contextlib.contextmanager
def cluster_of(lab: Lab, folder: Path) -> Iterator[StandIn]:
    """An API server whose cluster is the lab."""
    made: list[StandIn] = []
    ready, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with ApiServer() as server:
            made.append(StandIn(lab, folder, server))
            following = asyncio.ensure_future(made[0].follow())
            ready.set()
            await stop.wait()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="cluster")
    thread.start()
    try:
        assert ready.wait(20)
        yield made[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
        made[0].end()
