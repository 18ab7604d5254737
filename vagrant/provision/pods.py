"""Pods of one host without Kubernetes: namespaces with a network by the CNI plugin, servers in them, their objects.

Life: ``add`` makes what is missing and remembers it in ``pods.json``; ``serve`` (a service of the host) opens the
servers and then writes the host's page of the address book, ``/pycni-hosts/<host>`` in etcd; ``objects`` makes
manifests for this host's agent of all hosts' pages. ``verify.py`` and ``across.py`` read the same book. Settings come
by ``lib.sh``'s variables.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
from measured import Place, serving

from pycni.kernel import netns as kernel_netns
from pycni.lab.probe import Doors, Prober
from pycni.lab.runtime import Attachment, CniRuntime, load_list
from pycni.lab.serve import PodServer, ServedPod
from pycni.lab.stations import Host
from pycni.model.family import Family
from pycni.model.kube import TCP, UDP
from pycni.wire.subnetenv import decode_subnet_env

STATE = Path("/var/lib/pycni-hosts")
PODS = STATE / "pods.json"
SERVING = Path("/run/pycni-hosts/serving")
CONFLIST = "/etc/cni/net.d/10-pycni.conflist"
MANIFESTS = Path("/etc/pycni/manifests")
BOOK = "/pycni-hosts/"
PORT, NODE_PORT = 8080, 30080
OUTSIDE_PORT = 8081
"""Of ``outside.py``, on the router."""
SERVICE = {Family.V4: "10.96.0.80", Family.V6: "fd00:10:96::80"}
EXTERNAL = {Family.V4: "10.99.0.80", Family.V6: "fd00:10:99::80"}
FAMILIES = {"ipv4": (Family.V4,), "ipv6": (Family.V6,), "dual": (Family.V4, Family.V6)}
PATIENCE_S = 300.0


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod of this host."""

    name: str
    id: str
    labels: dict[str, str]
    ips: tuple[str, ...]

    @property
    def closed(self) -> bool:
        """Whether a policy closes it."""
        return self.labels["app"] == "closed"


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """What a host tells the others."""

    node: str
    pods: tuple[Pod, ...]
    mtu: int
    doors: Doors
    """Where the node and its open pods answer checks."""


def setting(name: str) -> str:
    """One of ``lib.sh``'s."""
    return os.environ[name]


def host() -> str:
    """This one's name."""
    return setting("PYCNI_HOST")


def families() -> tuple[Family, ...]:
    """Those pods have."""
    return FAMILIES[setting("PYCNI_FAMILY")]


def underlay() -> dict[str, dict[Family, str]]:
    """Addresses of all hosts by name, in the families pods have."""
    rows = (item.split("=") for item in setting("PYCNI_HOSTS").split())
    return {
        name: {family: v4 if family is Family.V4 else v6 for family in families()} for name, v4, v6 in rows
    }


def nodes() -> list[str]:
    """Names of the nodes."""
    return [name for name in underlay() if name != "router"]


def etcdctl(*words: str, feed: str | None = None) -> str:
    """Run it at the members. Raises CalledProcessError."""
    addresses = [item.split("=") for item in setting("PYCNI_HOSTS").split() if not item.startswith("router=")]
    members = addresses[:3] if len(addresses) >= 3 else addresses[:1]
    command = ["etcdctl", "--endpoints", ",".join(f"http://{v4}:2379" for _, v4, _ in members), *words]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    return subprocess.run(
        command, input=feed, capture_output=True, text=True, check=True, env=environment
    ).stdout


def book() -> dict[str, Page]:
    """The pages of all nodes; waits until they are there."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(subprocess.CalledProcessError):
            answer = json.loads(etcdctl("get", "--prefix", BOOK, "-w", "json"))
            texts = [base64.b64decode(item["value"]) for item in answer.get("kvs", ())]
            pages = {page.node: page for page in (msgspec.json.decode(text, type=Page) for text in texts)}
            if set(nodes()) <= set(pages):
                return {name: pages[name] for name in nodes()}
        if time.monotonic() > deadline:
            raise SystemExit(f"not all of {', '.join(nodes())} have told where their pods are")
        time.sleep(0.5)


def namespace(pod: str) -> str:
    """Name of its network namespace."""
    return f"pod-{pod}"


def load() -> tuple[Pod, ...]:
    """The pods of this host."""
    try:
        return msgspec.json.decode(PODS.read_bytes(), type=tuple[Pod, ...])
    except FileNotFoundError:
        return ()


def runtime() -> CniRuntime:
    """What a container runtime does for the network."""
    return CniRuntime(load_list(CONFLIST), cache_dir=STATE / "cni")


def hosts_here(pods: tuple[Pod, ...], mtu: int) -> list[Host]:
    """The node and its open pods as ends of checks."""
    found = [Host(host(), "", underlay()[host()], mtu, host())]
    for pod in pods:
        if not pod.closed:
            addresses = {Family.V6 if ":" in ip else Family.V4: ip for ip in pod.ips}
            found.append(Host(pod.name, kernel_netns.path(namespace(pod.name)), addresses, mtu, host()))
    return found


def mtu_here() -> int:
    """The pod network's, as the agent promises it."""
    return decode_subnet_env(Path("/run/flannel/subnet.env").read_text()).mtu


# add


def add() -> None:
    """Make the pods that are missing; what a boot took away is given back first."""
    wanted = {f"{host()}-p{i}": {"app": "web", "role": "front" if i == 1 else "back"}
              for i in range(1, int(setting("PYCNI_PODS")) + 1)}  # fmt: skip
    if setting("PYCNI_POLICY") != "none":
        wanted[f"{host()}-closed"] = {"app": "closed", "role": "back"}
    kept = []
    for pod in load():
        if pod.name in wanted and os.path.exists(kernel_netns.path(namespace(pod.name))):
            kept.append(pod)
        else:
            remove(pod)
    kept += [make(name, wanted[name]) for name in wanted.keys() - {pod.name for pod in kept}]
    pods = tuple(sorted(kept, key=lambda pod: pod.name))
    PODS.write_bytes(msgspec.json.encode(pods))
    for pod in pods:
        print(f"   {pod.name}  {' '.join(pod.ips)}")


def make(name: str, labels: dict[str, str]) -> Pod:
    """A namespace, and CNI ADD."""
    identity = secrets.token_hex(16)
    kernel_netns.create(namespace(name))
    arguments = {"IgnoreUnknown": "1", "K8S_POD_NAMESPACE": "default", "K8S_POD_NAME": name,
                 "K8S_POD_INFRA_CONTAINER_ID": identity}  # fmt: skip
    try:
        outcome = runtime().add(Attachment(identity, kernel_netns.path(namespace(name)), cni_args=arguments))
    except Exception:
        kernel_netns.delete(namespace(name))
        raise
    assert outcome.result is not None
    ips = tuple(item["address"].partition("/")[0] for item in outcome.result["ips"])
    return Pod(name=name, id=identity, labels=labels, ips=ips)


def remove(pod: Pod) -> None:
    """CNI DEL, and the namespace's end."""
    path = kernel_netns.path(namespace(pod.name))
    there = os.path.exists(path)
    runtime().delete(Attachment(pod.id, path if there else ""))
    if there:
        kernel_netns.delete(namespace(pod.name))


# serve


def serve() -> None:
    """Serve until told to stop: the matrix' echoes, a port that tells the pod's name, iperf3 and sockperf."""
    pods, mtu = load(), mtu_here()
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    served = tuple(
        ServedPod(
            name=pod.name,
            id=pod.id,
            namespace=namespace(pod.name),
            ports=((TCP, PORT), (UDP, PORT)),
            families=tuple(int(family) for family in families()),
        )
        for pod in pods
    )
    with serving(_measured(pods)), PodServer() as server, Prober(hosts_here(pods, mtu)) as prober:
        server.set(served)
        for problem in server.problems():
            print(problem, flush=True)
        ending = threading.Event()

        def turn() -> None:
            while not ending.is_set():
                server.turn(0.5)

        thread = threading.Thread(target=turn)
        thread.start()
        try:
            page = Page(node=host(), pods=pods, mtu=mtu, doors=prober.doors())
            _publish(page)
            SERVING.parent.mkdir(exist_ok=True)
            SERVING.touch()
            prober.serve(read)
        finally:
            ending.set()
            thread.join()


def _publish(page: Page) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            etcdctl("put", BOOK + page.node, feed=msgspec.json.encode(page).decode())
        except subprocess.CalledProcessError as exc:
            if time.monotonic() > deadline:
                raise SystemExit(f"etcd does not take this host's page: {exc.stderr}") from exc
            time.sleep(1)
        else:
            return


def _measured(pods: tuple[Pod, ...]) -> list[Place]:
    """Where ``across.py`` measures to: the node, its first open pod."""
    places = [Place("", "", next(iter(underlay()[host()].values())))]
    first = next((pod for pod in pods if not pod.closed), None)
    if first is not None:
        space = namespace(first.name)
        places.append(Place(space, kernel_netns.path(space), first.ips[0]))
    return places


# objects


def objects() -> None:
    """Write the manifests: every pod, the Service over the open ones, a policy for the closed ones."""
    if not MANIFESTS.is_dir():
        return
    found = [manifest(pod, page.node) for page in book().values() for pod in page.pods]
    found += [service(), policy()]
    MANIFESTS.mkdir(parents=True, exist_ok=True)
    whole = MANIFESTS / ".hosts.new"
    whole.write_text("\n---\n".join(json.dumps(item) for item in found) + "\n")
    whole.rename(MANIFESTS / "hosts.yaml")


def manifest(pod: Pod, node: str) -> dict[str, Any]:
    """The pod's object."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": pod.name, "namespace": "default", "labels": pod.labels, "uid": pod.id},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "server", "ports": [{"name": "http", "containerPort": PORT}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": pod.ips[0],
            "podIPs": [{"ip": ip} for ip in pod.ips],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service() -> dict[str, Any]:
    """A ClusterIP, a node port and an external address over all open pods."""
    addresses = [SERVICE[family] for family in families()]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "type": "NodePort",
            "selector": {"app": "web"},
            "clusterIP": addresses[0],
            "clusterIPs": addresses,
            "ipFamilies": ["IPv4" if family is Family.V4 else "IPv6" for family in families()],
            "ipFamilyPolicy": "RequireDualStack" if len(families()) == 2 else "SingleStack",
            "externalIPs": [EXTERNAL[family] for family in families()],
            "ports": [
                {"name": "http", "protocol": "TCP", "port": 80, "targetPort": PORT, "nodePort": NODE_PORT}
            ],
        },
    }


def policy() -> dict[str, Any]:
    """Closed pods take connections from pods in front only."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed", "namespace": "default"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "closed"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"podSelector": {"matchLabels": {"role": "front"}}}],
                    "ports": [{"protocol": "TCP", "port": "http"}],
                }
            ],
        },
    }


if __name__ == "__main__":
    {"add": add, "serve": serve, "objects": objects}[sys.argv[1]]()
