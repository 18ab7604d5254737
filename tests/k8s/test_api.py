"""The same sources against the scripted API server and, where KUBEBUILDER_ASSETS names one, the real kube-apiserver.

Without the variable the real one's tests are not collected: no machine of ours has the program, and it cannot be had
from a package registry. What passes here on both says that the scripted server is a fair stand-in.
"""

import asyncio
import contextlib
import json
import threading
from ipaddress import IPv4Address, ip_network

import pytest

from pycni.model.lease import LeaseAttrs
from pycni.sources.kube import KubeSource, Selection, own_pods
from pycni.sources.kube_auth import Access
from pycni.sources.kube_client import KubeClient, object_path
from pycni.sources.kube_config import find
from pycni.sources.kube_http import KubeError
from pycni.sources.kube_lballoc import LbAllocator
from pycni.sources.kube_leader import Elector
from pycni.sources.kube_leases import KubeLeaseSource
from pycni.store import Store
from tests.k8s.api_server import ApiServer
from tests.k8s.kube_tools import names, running, until
from tests.k8s.real_api import ASSETS, real_api

SERVERS = ["scripted", "real"] if ASSETS else ["scripted"]
P = "flannel.alpha.coreos.com/"


@pytest.fixture(scope="module", params=SERVERS)
def config(request, tmp_path_factory):
    """Access to an API server that lives as long as the module's tests."""
    if request.param == "real":
        with real_api(tmp_path_factory.mktemp("api")) as path:
            yield find(path)
        return
    ready, over = threading.Event(), []

    async def serve():
        async with ApiServer() as server:
            stop = asyncio.Event()
            over.extend([asyncio.get_running_loop(), stop, server.url])
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    ready.wait(10)
    yield find("", over[2])
    over[0].call_soon_threadsafe(over[1].set)
    thread.join(10)


@contextlib.asynccontextmanager
async def client_for(config):
    client = KubeClient(Access(config))
    try:
        yield client
    finally:
        await client.close()


def service(name, ip, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}], **spec},
    }


def node(name, cidr):
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    }


async def drop(client, kind, *keys):
    for key in keys:
        await client.request("DELETE", object_path(kind, key))


def test_objects_are_made_read_changed_and_followed(config):
    async def main():
        async with client_for(config) as client:
            for number in range(5):
                await client.create(
                    "Service", f"default/s{number}", service(f"s{number}", f"10.0.0.{20 + number}")
                )
            labels = {"kubernetes.io/service-name": "s0"}
            made = {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "s0-1", "labels": labels},
                "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": True}}],
                "ports": [{"name": "", "port": 80, "protocol": "TCP"}],
            }
            await client.create("EndpointSlice", "default/s0-1", made)
            store = Store()
            source = KubeSource(
                client,
                ["Service", "EndpointSlice", "Namespace", Selection("Node"), own_pods("nobody")],
                page=2,
            )
            async with running(source.run(store)):
                await until(lambda: source.connected, "every kind followed", 30)
                assert {f"s{number}" for number in range(5)} <= set(names(store))
                assert store.snapshot().of("Service")["default/s0"].cluster_ips == ("10.0.0.20",)
                assert store.snapshot().of("EndpointSlice")["default/s0-1"].service == "default/s0"
                await client.create("Service", "default/late", service("late", "10.0.0.40"))
                await client.patch(
                    "Service",
                    "default/s1",
                    {"metadata": {"annotations": {"kube-router.io/service.scheduler": "lc"}}},
                )
                await drop(client, "Service", "default/s2")
                await until(lambda: "late" in names(store) and "s2" not in names(store))
                await until(lambda: bool(store.snapshot().of("Service")["default/s1"].meta.annotations))
                with pytest.raises(KubeError) as caught:
                    await client.create("Service", "default/s0", service("s0", "10.0.0.20"))
                assert caught.value.status == 409
                held = json.loads(await client.get("Service", "default/s0"))
                held["spec"]["sessionAffinity"] = "ClientIP"
                await client.update("Service", "default/s0", held)
                await until(lambda: store.snapshot().of("Service")["default/s0"].affinity_s == 10800)
                with pytest.raises(KubeError) as caught:
                    await client.update("Service", "default/s0", held)
                assert (caught.value.status, caught.value.reason) == (409, "Conflict")
                await drop(client, "EndpointSlice", "default/s0-1")
                await drop(
                    client, "Service", *(f"default/{name}" for name in ("s0", "s1", "s3", "s4", "late"))
                )
                await until(
                    lambda: (
                        not {"s0", "late"} & set(names(store))
                        and "default/s0-1" not in store.snapshot().of("EndpointSlice")
                    )
                )

    asyncio.run(main())


def test_a_version_that_was_forgotten_or_never_was_ends_in_a_listing(config):
    async def main():
        async with client_for(config) as client:
            store = Store()
            source = KubeSource(client, ["Namespace"], longest_pause_s=1.0)
            follower = source.followers["Namespace"]
            follower._version = "999999999"
            async with running(source.run(store)):
                await until(
                    lambda: "Namespace" in store.snapshot().listed and source.connected, "a listing", 60
                )

    asyncio.run(main())


def test_a_node_object_is_a_lease(config, tmp_path):
    (tmp_path / "net-conf.json").write_text('{"Network":"10.244.0.0/16"}')

    async def main():
        async with client_for(config) as client:
            await client.create("Node", "k1", node("k1", "10.244.1.0/24"))
            store = Store()
            source = KubeLeaseSource(client, "k1", str(tmp_path / "net-conf.json"), look_s=0.1)
            async with running(source.run(store)):
                data = b'{"VNI":1,"VtepMAC":"0a:0b:0c:0d:0e:0f"}'
                held = await source.acquire(
                    LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=data)
                )
                assert held.lease.key == "10.244.1.0-24"
                await until(lambda: "10.244.1.0-24" in store.snapshot().of("lease"))
                found = json.loads(await client.get("Node", "k1"))
                assert found["metadata"]["annotations"][f"{P}public-ip"] == "192.0.2.1"

                def conditions():
                    return (json.loads(raw[0]).get("status") or {}).get("conditions") or []

                raw = [b"{}"]
                for _ in range(100):
                    raw[0] = await client.get("Node", "k1")
                    if any(
                        each["type"] == "NetworkUnavailable" and each["status"] == "False"
                        for each in conditions()
                    ):
                        break
                    await asyncio.sleep(0.1)
                else:
                    raise AssertionError(raw[0])
            await drop(client, "Node", "k1")

    asyncio.run(main())


def test_a_load_balancer_gets_its_address_from_the_leader(config):
    async def main():
        async with client_for(config) as client:
            store = Store()
            source = KubeSource(client, ["Service"])
            made = [
                LbAllocator(
                    client,
                    store,
                    (ip_network("192.0.2.0/29"),),
                    Elector(client, "pycni-lballoc", name, retry_s=0.2),
                    following=lambda: source.connected,
                )
                for name in ("one", "two")
            ]
            async with running(source.run(store), *(each.run() for each in made)):
                await client.create(
                    "Service",
                    "default/lb",
                    service("lb", "10.0.0.50", type="LoadBalancer", ipFamilies=["IPv4"]),
                )
                await until(
                    lambda: (
                        "default/lb" in store.snapshot().of("Service")
                        and bool(store.snapshot().of("Service")["default/lb"].ingress)
                    )
                )
                assert store.snapshot().of("Service")["default/lb"].ingress[0].ip == "192.0.2.1"
                assert sorted(each.elector.leading for each in made) == [False, True]
            await drop(client, "Service", "default/lb")

    asyncio.run(main())
