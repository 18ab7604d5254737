"""How long until what the Kubernetes API says is in the store, and what does it cost?

10,000 services with 10,000 slices of five endpoints, and 10,000 pods, from a server in another process that has its
pages ready; then slices that change. Client figures are of a fresh process each: wall, processor, resident memory. The
floor takes turns with them: ``http.client`` fetches the same pages and ``json`` reads them into dicts.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import resource
import statistics
import subprocess
import sys
import time
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from bench.rows import row
from bench.size import sized

ROOT = Path(__file__).parents[1]
COUNT, PAGE, EVENTS = 10_000, 500, 5_000
ROUNDS = sized(4, 1)
SETS = {
    "10,000 services + 10,000 slices x 5 endpoints": {
        "Service": "services",
        "EndpointSlice": "endpointslices",
    },
    "10,000 pods": {"Pod": "pods"},
}
"""What is listed: kinds and their names in paths."""
ASKED = tuple(SETS)[: sized(2, 1)]
MANAGED = [{"manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}, "f:app": {}}}, "f:spec": {"f:ports": {'k:{"port":80,"protocol":"TCP"}': {".": {}, "f:port": {}}}}}}]  # fmt: skip


def meta(name: str, number: int, **more: Any) -> dict[str, Any]:
    uid = f"{number:08d}-1111-2222-3333-444444444444"
    made = {
        "creationTimestamp": "2024-05-05T10:00:00Z",
        "resourceVersion": str(number),
        "managedFields": MANAGED,
    }
    return {"name": name, "namespace": f"ns{number % 50}", "uid": uid, **made, **more}


def service(number: int) -> dict[str, Any]:
    ip = f"10.96.{number >> 8}.{number & 255}"
    ports = [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]
    spec = {
        "clusterIP": ip,
        "clusterIPs": [ip],
        "ipFamilies": ["IPv4"],
        "ports": ports,
        "selector": {"app": f"s{number}"},
    }
    more = {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}
    return {
        "metadata": meta(f"s{number}", number, labels={"app": f"s{number}"}),
        "spec": {**spec, **more},
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(number: int, version: int = 0) -> dict[str, Any]:
    def endpoint(index: int) -> dict[str, Any]:
        target = {
            "kind": "Pod",
            "namespace": f"ns{number % 50}",
            "name": f"s{number}-{index}",
            "uid": "u" * 36,
        }
        conditions = {"ready": True, "serving": True, "terminating": False}
        address = f"10.{index}.{number >> 8}.{number + version & 255}"
        return {
            "addresses": [address],
            "conditions": conditions,
            "nodeName": f"node-{number % 200}",
            "targetRef": target,
            "zone": "z1",
        }

    labels = {
        "kubernetes.io/service-name": f"s{number}",
        "endpointslice.kubernetes.io/managed-by": "x",
        "app": f"s{number}",
    }
    ports = [{"name": "http", "protocol": "TCP", "port": 8080}]
    return {
        "metadata": meta(f"s{number}-abcde", number, labels=labels, resourceVersion=str(number + version)),
        "addressType": "IPv4",
        "endpoints": [endpoint(i) for i in range(5)],
        "ports": ports,
    }


def pod(number: int) -> dict[str, Any]:
    ip = f"10.{number >> 14}.{number >> 7 & 127}.{number & 127}"
    container = {
        "name": "c",
        "image": "registry.example/x:1",
        "ports": [{"containerPort": 8080, "name": "http"}],
        "env": [{"name": "A", "value": "b" * 40}] * 5,
    }
    conditions = [
        {"type": kind, "status": "True"}
        for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    return {
        "metadata": meta(f"web-{number}", number, labels={"app": f"web-{number % 100}", "pod-template-hash": "abcdef1234"}, annotations={"x.example/y": "z" * 300}),
        "spec": {"nodeName": f"node-{number % 200}", "containers": [container], "tolerations": [{"key": "a", "operator": "Exists"}] * 3},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions, "containerStatuses": [{"name": "c", "ready": True}] * 2},
    }  # fmt: skip


KINDS = {"services": service, "endpointslices": endpoint_slice, "pods": pod}


async def serve() -> None:
    """The server's process."""
    from tests.k8s.api_server import ApiServer, Lines, Reply

    pages: dict[str, list[Reply]] = {}
    for plural in (plural for what in ASKED for plural in SETS[what].values()):
        make, pages[plural] = KINDS[plural], []
        for start in range(0, COUNT, PAGE):
            more = {"continue": f"c{start}"} if start + PAGE < COUNT else {}
            items = [make(number) for number in range(start, start + PAGE)]
            body = {
                "kind": "List",
                "apiVersion": "v1",
                "metadata": {"resourceVersion": "20000", **more},
                "items": items,
            }
            pages[plural].append(Reply(200, json.dumps(body).encode()))
    changes = [
        json.dumps({"type": "MODIFIED", "object": endpoint_slice(number, 20_001)}).encode() + b"\n"
        for number in range(EVENTS)
    ]
    async with ApiServer() as server:
        server.world.version = 20_000  # that of the listings: watches go on from it
        for plural, replies in pages.items():
            server.script(plural, *replies * 2 * (ROUNDS + 1), watch=False)
        server.script("endpointslices", *[Lines(changes, then="stall")] * (ROUNDS + 1), watch=True)
        print(
            json.dumps(
                {
                    "url": server.url,
                    "mb": {
                        plural: sum(len(page.body) for page in found) / 1e6 for plural, found in pages.items()
                    },
                }
            ),
            flush=True,
        )
        await asyncio.Event().wait()


def peak() -> float:
    """MiB of this process. Not ru_maxrss, which a process inherits from the one that started it."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


async def follow(url: str, kinds: list[str]) -> dict[str, float]:
    """The client's process."""
    from pycni.sources.kube import KubeSource
    from pycni.sources.kube_auth import Access
    from pycni.sources.kube_client import KubeClient
    from pycni.sources.kube_config import find
    from pycni.store import Store

    def used() -> resource.struct_rusage:
        return resource.getrusage(resource.RUSAGE_SELF)

    store = Store()
    client = KubeClient(Access(find("", url)))
    source = KubeSource(client, kinds)
    base, started = used(), time.perf_counter()
    task = asyncio.ensure_future(source.run(store))
    while not store.snapshot().listed.issuperset(kinds):
        await asyncio.sleep(0.002)
    wall, after = time.perf_counter() - started, used()
    found = {
        "wall": wall,
        "cpu": after.ru_utime + after.ru_stime - base.ru_utime - base.ru_stime,
        "rss": peak(),
        "objects": sum(len(store.snapshot().of(kind)) for kind in kinds),
    }
    if "EndpointSlice" in kinds:
        began, before = time.perf_counter(), used()
        while source.followers["EndpointSlice"].events < EVENTS:
            await asyncio.sleep(0.002)
        later = used()
        found["events_s"] = time.perf_counter() - began
        found["events_cpu"] = later.ru_utime + later.ru_stime - before.ru_utime - before.ru_stime
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await client.close()
    return found


def floor(url: str, plurals: list[str]) -> dict[str, float]:
    """The least a client in Python can do with the same pages."""
    where = urllib.parse.urlsplit(url)
    started, objects = time.perf_counter(), 0
    before = resource.getrusage(resource.RUSAGE_SELF)
    kept = []
    for plural in plurals:
        group = "/apis/discovery.k8s.io/v1" if plural == "endpointslices" else "/api/v1"
        goes_on = ""
        connection = http.client.HTTPConnection(where.hostname or "", where.port)
        while True:
            connection.request("GET", f"{group}/{plural}?limit={PAGE}{goes_on}")
            body = json.loads(connection.getresponse().read())
            kept.append(body["items"])
            objects += len(body["items"])
            if not (token := body["metadata"].get("continue")):
                break
            goes_on = f"&continue={token}"
        connection.close()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "wall": time.perf_counter() - started,
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "rss": peak(),
        "objects": objects,
    }


def run(*words: str) -> list[str]:
    return [sys.executable, "-m", "bench.test_kube", *words]


def client(*words: str) -> dict[str, float]:
    """The answer of a process of its own."""
    done = subprocess.run(run(*words), cwd=ROOT, check=True, capture_output=True, text=True, timeout=200)
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.timeout(600)
def test_objects_of_a_large_cluster_into_the_store() -> None:
    with subprocess.Popen(run("serve"), cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = json.loads(server.stdout.readline())
            for what in ASKED:
                measure(what, ready)
        finally:
            server.kill()


def measure(what: str, ready: dict[str, Any]) -> None:
    """Ours and the floor in turns, one round after the other."""
    kinds = SETS[what]
    ours: list[dict[str, float]] = []
    plain: list[dict[str, float]] = []
    for number in range(ROUNDS):
        turns = [(ours, "follow", list(kinds)), (plain, "floor", list(kinds.values()))]
        for found, word, names in turns if number % 2 else turns[::-1]:
            found.append(client(word, ready["url"], *names))
    for found in (ours, plain):
        assert [each["objects"] for each in found] == [COUNT * len(kinds)] * ROUNDS
    best, other = (
        {name: statistics.median(each[name] for each in found) for name in found[0]}
        for found in (ours, plain)
    )
    sent = sum(ready["mb"][plural] for plural in kinds.values())
    for name, words, key in (("time", "s", "wall"), ("processor time", "s", "cpu"), ("memory", "MiB", "rss")):
        ratios = [one[key] / two[key] for one, two in zip(ours, plain, strict=True)]
        row(
            f"{what} listed: {name}",
            f"{best[key]:.3g} {words} ({sent:.0f} MB sent)",
            f"http.client and json {other[key]:.3g}",
            statistics.median(ratios),
            better="less",
            ratios=ratios,
        )
    if "events_s" in best:
        row(
            f"{EVENTS} changed slices heard: per event, wall and CPU",
            f"{best['events_s'] / EVENTS * 1e6:.0f} us, {best['events_cpu'] / EVENTS * 1e6:.0f} us",
        )


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve())
    elif sys.argv[1] == "floor":
        print(json.dumps(floor(sys.argv[2], sys.argv[3:])))
    else:
        print(json.dumps(asyncio.run(follow(sys.argv[2], sys.argv[3:]))))
