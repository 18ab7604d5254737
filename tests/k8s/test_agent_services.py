"""The agent's parts wired against the scripted API: services are served, addresses given out, outages survived."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

import pytest

from pycni.agent import wiring
from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.process import Context
from pycni.agent.settings_file import load
from pycni.errors import ConfigError
from pycni_proxy import planes
from pycni_proxy.cli_services import fetch
from tests.k8s.api_server import ApiServer, Reply, status
from tests.k8s.kube_tools import until
from tests.unit.proxy_fakes import FakePlane


@pytest.fixture
def plane(monkeypatch):
    """A data plane in memory in place of all real ones."""
    made = FakePlane("nftables", [])
    monkeypatch.setitem(sys.modules, "pyt_fake_plane", made)
    monkeypatch.setattr(planes, "FACTORIES", {"nftables": "pyt_fake_plane"})
    return made


@contextlib.asynccontextmanager
async def agent(folder, *flags):
    argv = [
        "--components=proxy",
        "--node-name=n1",
        f"--state-dir={folder}/state",
        f"--cni-socket={folder}/cni.sock",
        "--proxy-mode=nftables",
        "--proxy-healthz-port=0",
        "--cluster-cidr=10.244.0.0/16",
        *flags,
    ]
    async with contextlib.AsyncExitStack() as exits:
        context = Context(load(argv, {}, "n1").settings, Health(), Registry(), exits)
        tasks = [asyncio.create_task(task, name=name) for name, task in (await wiring.wire(context)).items()]
        try:
            yield context
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def fill(world):
    world.put("nodes", {"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z7"}}})
    world.put("nodes", {"metadata": {"name": "n2"}})
    spec = {
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "ipFamilies": ["IPv4"],
        "ports": [{"port": 80}],
    }
    world.put(
        "services",
        {
            "metadata": {"name": "web", "namespace": "d"},
            "spec": {"type": "LoadBalancer", **spec},
            "status": {},
        },
    )
    put_slice(world, "10.244.0.1")


def put_slice(world, address, name="web-1", **labels):
    world.put(
        "endpointslices",
        {
            "metadata": {
                "name": name,
                "namespace": "d",
                "labels": {"kubernetes.io/service-name": "web", **labels},
            },
            "addressType": "IPv4",
            "ports": [{"port": 8080, "protocol": "TCP"}],
            "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
        },
    )


def targets(plane):
    return sorted({str(target) for item in plane.kernel.values() for target in item.pool.targets})


def test_services_of_the_api_are_served_and_followed(tmp_path, plane):
    async def main():
        async with ApiServer() as server:
            fill(server.world)
            async with agent(tmp_path, f"--kube-api-url={server.url}") as context:
                await until(lambda: context.health.ready)
                assert targets(plane) == ["10.244.0.1:8080"]
                assert plane.made[0].zone == "z7"
                put_slice(server.world, "10.244.0.2")
                await until(lambda: targets(plane) == ["10.244.0.2:8080"])
                found = json.loads(await asyncio.to_thread(fetch, str(tmp_path / "agent.sock"), "/services"))
                assert [item["name"] for item in found["services"]] == ["web"]
                assert await asyncio.to_thread(fetch, str(tmp_path / "agent.sock"), "/readyz") == b"ok\n"
                assert 'pycni_kube_connected{kind="Service"} 1' in context.metrics.expose()

    asyncio.run(main())


def test_only_what_counts_is_asked_for(tmp_path, plane):
    async def main():
        async with ApiServer() as server:
            fill(server.world)
            put_slice(server.world, "10.244.0.9", "headless-1", **{"service.kubernetes.io/headless": ""})
            async with agent(tmp_path, f"--kube-api-url={server.url}") as context:
                await until(lambda: context.health.ready)
                assert targets(plane) == ["10.244.0.1:8080"]
            asked = [request for request in server.requests if "/nodes" in request.path]
            assert asked
            assert all("n1" in str(request.query) for request in asked), "of nodes only our own"

    asyncio.run(main())


def test_an_api_that_is_away_at_first_is_red_with_the_reason_and_later_harmless(tmp_path, plane):
    plane.kernel["left"] = "an earlier life"

    async def main():
        async with ApiServer() as server:
            fill(server.world)
            server.script("services", *[Reply(500, status(500, "InternalError", "not yet"))] * 4, watch=False)
            async with agent(tmp_path, f"--kube-api-url={server.url}") as context:
                await until(lambda: "not yet" in context.health.red().get("kubernetes", ""))
                assert "no listing of Service" in context.health.red()["proxy"]
                assert plane.kernel == {"left": "an earlier life"}
                await until(lambda: context.health.ready)
                assert targets(plane) == ["10.244.0.1:8080"]
                await server.stop()
                await asyncio.sleep(0.3)
                assert context.health.ready, context.health.red()
                assert targets(plane) == ["10.244.0.1:8080"]

    asyncio.run(main())


def test_addresses_for_load_balancers_are_given_out_and_served(tmp_path, plane):
    async def main():
        async with ApiServer() as server:
            fill(server.world)
            flags = [
                "--run-loadbalancer",
                "--loadbalancer-ip-range=192.0.2.0/29",
                f"--kube-api-url={server.url}",
            ]
            async with agent(tmp_path, *flags) as context:
                await until(
                    lambda: any(item.key.address == bytes((192, 0, 2, 1)) for item in plane.kernel.values())
                )
                metrics = context.metrics.expose()
                assert "pycni_loadbalancer_leading 1\n" in metrics
                assert "pycni_loadbalancer_patched_total 1\n" in metrics

    asyncio.run(main())


def test_a_default_class_that_is_off_leaves_services_without_class_alone(tmp_path, plane):
    async def main():
        async with ApiServer() as server:
            fill(server.world)
            flags = [
                "--run-loadbalancer",
                "--loadbalancer-ip-range=192.0.2.0/29",
                "--loadbalancer-default-class=false",
            ]
            async with agent(tmp_path, *flags, f"--kube-api-url={server.url}") as context:
                await until(
                    lambda: (
                        context.health.ready and "pycni_loadbalancer_leading 1\n" in context.metrics.expose()
                    )
                )
                await asyncio.sleep(0.3)
                assert "pycni_loadbalancer_patched_total 0\n" in context.metrics.expose()

    asyncio.run(main())


def test_without_any_source_the_agent_says_what_it_needs(tmp_path, plane, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    async def main():
        with pytest.raises(ConfigError, match="kubeconfig or kube-api-url is needed"):
            async with agent(tmp_path):
                pass

    asyncio.run(main())


def test_a_folder_of_manifests_needs_no_api(tmp_path, plane):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a.yaml").write_text(
        """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: d}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ipFamilies: [IPv4], selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: d, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.244.0.7, podIPs: [{ip: 10.244.0.7}], phase: Running, conditions: [{type: Ready, status: "True"}]}
"""
    )

    async def main():
        async with agent(tmp_path, f"--manifest-dir={folder}") as context:
            await until(lambda: context.health.ready)
            assert targets(plane) == ["10.244.0.7:8080"]
            (folder / "a.yaml").unlink()
            await until(lambda: not plane.kernel)

    asyncio.run(main())


def test_a_control_socket_that_cannot_be_had_is_a_wrong_setting(tmp_path, plane):
    (tmp_path / "agent.sock").write_text("a file")
    (tmp_path / "m").mkdir()

    async def main():
        with pytest.raises(ConfigError, match="control-socket"):
            async with agent(tmp_path, f"--manifest-dir={tmp_path / 'm'}"):
                pass

    asyncio.run(main())


def test_it_is_not_ready_before_services_are_served(tmp_path, plane):
    """Not even in the moment in which health is answered and the proxy is still being imported."""

    async def main():
        async with contextlib.AsyncExitStack() as exits:
            argv = ["--components=proxy", f"--state-dir={tmp_path}", f"--cni-socket={tmp_path}/cni.sock"]
            settings = load([*argv, f"--manifest-dir={tmp_path}"], {}, "n1").settings
            context = Context(settings, Health(), Registry(), exits)
            wired = asyncio.create_task(wiring.wire(context))
            await asyncio.sleep(0)
            assert not context.health.ready
            for task in (await wired).values():
                task.close()

    asyncio.run(main())
