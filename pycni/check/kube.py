"""A check in a cluster: pods by the Kubernetes API, the check's program in them as containers, no exec.

Life: ``bring`` makes the namespace, the Services and a pod per place, pinned to its node; for nodes' own networks there
are pods with hostNetwork. ``ask`` adds an ephemeral container to each pod that has something to try: it is in the pod's
network and under its labels, gets its tasks on its command line, and tells the outcome by its termination message,
which kubelet puts into the pod's status. So nothing but the API has to be reached, and a broken network does not keep
a check from telling so. ``clear`` deletes the namespace.

Rights: see docs/check.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pycni.check import objects, peer
from pycni.check.model import (
    HOST_PORT,
    NAMESPACE,
    NODE,
    POD,
    PORT,
    Answer,
    Case,
    Host,
    Result,
    Scene,
    Site,
)
from pycni.errors import PycniError
from pycni.model import kube
from pycni.model.family import Family
from pycni.model.policy import NETWORK_POLICY
from pycni.sources.kube_auth import Access
from pycni.sources.kube_client import KubeClient, Selection, object_path
from pycni.sources.kube_config import KubeConfig
from pycni.sources.kube_http import KubeError
from pycni.trace.model import Trace
from pycni.wire import typed

START_S = 180.0
"""Until all pods run: an image may have to be fetched."""
ASK_S = 120.0
GONE_S = 90.0
LOOK_S = 0.3
HOST = "host-"
"""Name of a pod in its node's network: this and the node's name."""
ASKER = "ask-"
MESSAGE = "/dev/termination-log"
PATIENCE_S = 15.0
"""Until a policy or a Service that was stored is in force on all nodes."""

T = TypeVar("T")
Tracer = Callable[[str, str, str], Trace | None]


class CheckError(PycniError):
    """The check's own pods cannot be had."""


class KubeGround:
    """See ``ground.Ground``. Close it by ``close``."""

    def __init__(
        self,
        config: KubeConfig,
        *,
        image: str,
        nodes: Sequence[str] = (),
        most: int = 10,
        outside: Host | None = None,
        outside_port: int = 0,
        domain: str = "cluster.local",
        tracer: Tracer | None = None,
    ) -> None:
        """``nodes``: only these; none: up to ``most`` that are ready. ``tracer``: makes traces, where that can be."""
        self._runner = asyncio.Runner()
        self._client = KubeClient(Access(config))
        self._image, self._names, self._most = image, tuple(nodes), most
        self._outside, self._outside_port, self._domain = outside, outside_port, domain
        self._tracer = tracer
        self._rounds = itertools.count(1)

    def close(self) -> None:
        """Close the connections."""
        self._runner.run(self._client.close())
        self._runner.close()

    def site(self) -> Site:
        """See ``ground.Ground``. Raises KubeError, CheckError."""
        return self._run(self._site())

    def bring(self) -> Scene:
        """See ``ground.Ground``."""
        return self._run(self._bring())

    def police(self, policies: Sequence[dict[str, Any]]) -> None:
        """See ``ground.Ground``. Nobody tells when they are in force: tasks have patience."""
        self._run(self._create(NETWORK_POLICY, policies))

    def ask(self, cases: Sequence[Case]) -> dict[int, Answer]:
        """See ``ground.Ground``."""
        by_pod: dict[str, list[Case]] = {}
        for case in cases:
            name = HOST + case.source.name if case.source.kind == NODE else case.source.name
            by_pod.setdefault(name, []).append(case)
        return self._run(self._ask(by_pod))

    def trace(self, source: str, target: str, protocol: str) -> Trace | None:
        """See ``ground.Ground``."""
        return self._tracer(source, target, protocol) if self._tracer is not None else None

    def restart(self, scene: Scene) -> Result:
        """Nobody restarts agents of a cluster from here."""
        raise CheckError(f"{scene.site.name}: agents are not restarted in clusters")

    def clear(self) -> list[str]:
        """See ``ground.Ground``."""
        try:
            self._run(self._drop())
        except PycniError as error:
            return [f"not everything could be removed, delete namespace {NAMESPACE} by hand: {error}"]
        return []

    # --- in the event loop

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    async def _site(self) -> Site:
        found = await self._list(kube.NODE)
        ready = [item for item in found if _ready(item)]
        if self._names:
            missing = sorted(set(self._names) - {item["metadata"]["name"] for item in ready})
            if missing:
                raise CheckError(f"--nodes: {', '.join(missing)} not there or not ready")
            ready = [item for item in ready if item["metadata"]["name"] in self._names]
        if not ready:
            raise CheckError(f"{self._client.server}: no node is ready")
        chosen = ready if self._names else ready[: self._most]
        nodes = tuple(_node(item) for item in chosen)
        return Site(
            name=self._client.server,
            nodes=nodes,
            families=tuple(family for family in Family if all(family in node.addresses for node in nodes)),
            left_out=len(ready) - len(nodes),
            dns=self._domain,
            outside=self._outside,
            outside_port=self._outside_port,
            patience_s=PATIENCE_S,
        )

    async def _bring(self) -> Scene:
        await self._drop()
        site = await self._site()
        where = objects.pods(site)
        values = [self._pod(name, node, PORT) for name, node in where.items()]
        values += [self._host_pod(node.name) for node in site.nodes]
        await self._create(kube.NAMESPACE, [objects.namespace()])
        await self._create(kube.SERVICE, objects.services())
        await self._create(kube.POD, values)
        names = {value["metadata"]["name"] for value in values}
        running = await self._await_pods(names, _not_running, START_S)
        pods = {
            name: Host(name=name, kind=POD, node=node, addresses=_addresses(running[name]))
            for name, node in where.items()
        }
        # Nodes may have addresses of a family that pods have not.
        families = tuple(
            family for family in site.families if all(family in pod.addresses for pod in pods.values())
        )
        services = await self._list(kube.SERVICE, NAMESPACE)
        return Scene(
            site=msgspec.structs.replace(site, families=families),
            pods=pods,
            services={item["metadata"]["name"]: item["spec"] for item in services},
        )

    async def _ask(self, by_pod: Mapping[str, Sequence[Case]]) -> dict[int, Answer]:
        asker = f"{ASKER}{next(self._rounds)}"
        for name, cases in by_pod.items():
            tasks = msgspec.json.encode([case.task for case in cases]).decode()
            key = f"{NAMESPACE}/{name}"
            pod = msgspec.json.decode(await self._client.get(kube.POD, key) or b"{}")
            there = (pod.get("spec") or {}).get("ephemeralContainers") or []
            patch = {"spec": {"ephemeralContainers": [*there, self._container(asker, "ask", tasks, MESSAGE)]}}
            await self._client.patch(kube.POD, key, patch, "ephemeralcontainers")
        answers: dict[int, Answer] = {}
        found = await self._await_pods(set(by_pod), lambda pod: _not_told(pod, asker), ASK_S, strict=False)
        for pod in found.values():
            with contextlib.suppress(msgspec.DecodeError):
                said = peer.unpacked(_message(pod, asker))
                answers |= {item.number: item for item in typed.decode(said, list[Answer])}
        return answers

    async def _await_pods(
        self,
        names: set[str],
        lacks: Callable[[Mapping[str, Any]], str],
        patience_s: float,
        *,
        strict: bool = True,
    ) -> dict[str, dict[str, Any]]:
        """The pods once nothing is lacking. Raises CheckError with what is; unless ``strict`` those that are ready."""
        deadline = time.monotonic() + patience_s
        while True:
            found = {item["metadata"]["name"]: item for item in await self._list(kube.POD, NAMESPACE)}
            reasons = {name: lacks(found[name]) if name in found else "is gone" for name in names}
            waiting = {name: reason for name, reason in reasons.items() if reason}
            if not waiting or (time.monotonic() > deadline and not strict):
                return {name: found[name] for name in names - set(waiting)}
            if time.monotonic() > deadline:
                told = "; ".join(f"pod {name} {reason}" for name, reason in sorted(waiting.items()))
                raise CheckError(f"not all pods run after {patience_s:g} s: {told}")
            await asyncio.sleep(LOOK_S)

    async def _list(self, kind: str, space: str = "") -> list[dict[str, Any]]:
        page = await self._client.list_page(Selection(kind, namespace=space))
        return typed.decode(page, _List).items or []

    async def _create(self, kind: str, values: Iterable[Mapping[str, Any]]) -> None:
        for value in values:
            meta = value["metadata"]
            space = meta.get("namespace", "")
            key = f"{space}/{meta['name']}" if space else meta["name"]
            try:
                await self._client.create(kind, key, value)
            except KubeError as error:
                if error.reason != "AlreadyExists":
                    raise

    async def _drop(self) -> None:
        """Delete the namespace, if it is a check's, and wait until it is gone. Raises CheckError, KubeError."""
        raw = await self._client.get(kube.NAMESPACE, NAMESPACE)
        if raw is None:
            return
        labels = msgspec.json.decode(raw)["metadata"].get("labels") or {}
        wrong = [name for name, value in objects.LABELS.items() if labels.get(name) != value]
        if wrong:
            raise CheckError(f"namespace {NAMESPACE} is somebody else's: label {wrong[0]} is missing")
        await self._client.request("DELETE", object_path(kube.NAMESPACE, NAMESPACE))
        deadline = time.monotonic() + GONE_S
        while await self._client.get(kube.NAMESPACE, NAMESPACE) is not None:
            if time.monotonic() > deadline:
                raise CheckError(f"namespace {NAMESPACE} is not gone after {GONE_S:g} s")
            await asyncio.sleep(LOOK_S)

    # --- pods

    def _pod(self, name: str, node: str, port: int) -> dict[str, Any]:
        return objects.pod(
            name, node, **_SPEC, containers=[self._container("server", "serve", name, str(port))]
        )

    def _host_pod(self, node: str) -> dict[str, Any]:
        """In its node's network, called as the node by its server. It is behind no Service."""
        server = self._container("server", "serve", node, str(HOST_PORT))
        made = objects.pod(HOST + node, node, **_SPEC, hostNetwork=True, containers=[server])
        return {**made, "metadata": {**made["metadata"], "labels": {"role": "host-network"}}}

    def _container(self, name: str, *words: str) -> dict[str, Any]:
        return {
            "name": name,
            "image": self._image,
            "command": ["python3", "-I", "-c", Path(peer.__file__).read_text(), *words],
            "terminationMessagePath": MESSAGE,
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]},
            },
        }


_SPEC: Mapping[str, Any] = {
    "restartPolicy": "Never",
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
    "tolerations": [{"operator": "Exists"}],
}


class _List(msgspec.Struct):
    items: list[dict[str, Any]] | None = None


def _ready(node: Mapping[str, Any]) -> bool:
    status = node.get("status") or {}
    told = {item["type"]: item["status"] for item in status.get("conditions") or ()}
    return told.get("Ready") == "True"


def _node(value: Mapping[str, Any]) -> Host:
    reached: dict[Family, str] = {}
    for item in (value.get("status") or {}).get("addresses") or ():
        if item["type"] == "InternalIP":
            reached.setdefault(Family.V6 if ":" in item["address"] else Family.V4, item["address"])
    name = value["metadata"]["name"]
    return Host(name=name, kind=NODE, node=name, addresses=reached)


def _addresses(pod: Mapping[str, Any]) -> dict[Family, str]:
    found = [item["ip"] for item in (pod.get("status") or {}).get("podIPs") or ()]
    return {Family.V6 if ":" in ip else Family.V4: ip for ip in found}


def _not_running(pod: Mapping[str, Any]) -> str:
    """What a pod lacks; "" when its server runs and it has addresses."""
    status = pod.get("status") or {}
    for item in status.get("containerStatuses") or ():
        state = item.get("state") or {}
        if "running" in state:
            return "" if status.get("podIPs") else "has no address"
        for kind in ("waiting", "terminated"):
            if kind in state:
                return f"{state[kind].get('reason', kind)} {state[kind].get('message', '')}".strip()
    told = [
        item.get("message", "") for item in status.get("conditions") or () if item.get("status") == "False"
    ]
    return " ".join([f"is {status.get('phase', 'not there')}", *filter(None, told)])


def _state(pod: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    found = (pod.get("status") or {}).get("ephemeralContainerStatuses") or ()
    return next((item.get("state") or {} for item in found if item["name"] == container), {})


def _not_told(pod: Mapping[str, Any], container: str) -> str:
    return "" if "terminated" in _state(pod, container) else "has not answered"


def _message(pod: Mapping[str, Any], container: str) -> str:
    return str(_state(pod, container).get("terminated", {}).get("message", ""))
