"""The agent's parts wired against the scripted API: policies are followed, with as few questions as possible."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from pycni.agent import wiring
from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.process import Context
from pycni.agent.settings_file import load
from pycni.kernel import bpf_places
from pycni.policy.base import Dataplane
from pycni.policy.component import PolicyComponent
from pycni.policy.nft.compile import NftCompiler
from pycni_proxy.cli_services import fetch
from tests.k8s.api_server import ApiServer, Reply, status
from tests.k8s.kube_tools import until
from tests.k8s.test_agent_services import fill, plane, targets
from tests.unit.test_policy_component import Driver, FakeShut

__all__ = ["plane"]
POD = bytes((10, 244, 1, 5))


@pytest.fixture
def kernel(monkeypatch):
    """A kernel in memory; nothing of the machine's own is looked at but names of tables."""
    driver = Driver()
    monkeypatch.setattr(bpf_places, "existing", lambda _part="": [])
    defaults = PolicyComponent.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "make", lambda: Dataplane("fake", NftCompiler(), driver))
    monkeypatch.setitem(defaults, "make_shut", FakeShut)
    monkeypatch.setitem(defaults, "see_bridged", lambda: False)
    return driver


@contextlib.asynccontextmanager
async def agent(folder, server, components):
    argv = [
        f"--components={components}",
        "--node-name=n1",
        f"--state-dir={folder}/state",
        f"--cni-socket={folder}/cni.sock",
        "--proxy-mode=nftables",
        "--proxy-healthz-port=0",
        "--conntrack-tcp-be-liberal=false",
        "--cluster-cidr=10.244.0.0/16",
        f"--kube-api-url={server.url}",
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


def put(world, kind, name, namespace="", labels=None, **fields):
    world.put(kind, {"metadata": {"name": name, "namespace": namespace, "labels": labels or {}}, **fields})


def fill_policies(world):
    put(world, "namespaces", "d")
    status_ = {"phase": "Running", "podIPs": [{"ip": "10.244.1.5"}]}
    put(world, "pods", "p", "d", spec={"nodeName": "n1", "containers": []}, status=status_)
    put(world, "networkpolicies", "deny", "d", spec={"podSelector": {}, "policyTypes": ["Ingress"]})


def judged(kernel):
    return POD in kernel.tables.get("judged_ingress4", {})


def test_services_and_policies_share_one_listing_of_each_kind(tmp_path, plane, kernel):
    async def main():
        async with ApiServer() as server:
            fill(server.world)
            fill_policies(server.world)
            async with agent(tmp_path, server, "proxy,policy") as context:
                await until(lambda: context.health.ready)
                assert (judged(kernel), targets(plane)) == (True, ["10.244.0.1:8080"])
                for plural in (
                    "nodes",
                    "pods",
                    "namespaces",
                    "networkpolicies",
                    "services",
                    "endpointslices",
                ):
                    assert len(server.asked(plural)) == 1, plural
                server.world.remove("networkpolicies", "deny", "d")
                await until(lambda: not judged(kernel))
                socket = str(tmp_path / "agent.sock")
                for path in ("/services", "/policies"):
                    assert json.loads(await asyncio.to_thread(fetch, socket, path))

    asyncio.run(main())


def test_a_cluster_without_the_cluster_wide_kind_is_served(tmp_path, kernel):
    async def main():
        async with ApiServer() as server:
            server.unknown.add("clusternetworkpolicies")
            server.world.put("nodes", {"metadata": {"name": "n1"}})
            fill_policies(server.world)
            async with agent(tmp_path, server, "policy") as context:
                await until(lambda: context.health.ready)
                assert judged(kernel)
                assert not server.asked("services")

    asyncio.run(main())


def test_nothing_is_changed_in_the_kernel_while_the_api_says_nothing(tmp_path, kernel):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", {"metadata": {"name": "n1"}})
            fill_policies(server.world)
            for _ in range(3):
                server.script("pods", Reply(503, status(503, "ServiceUnavailable")))
            async with agent(tmp_path, server, "policy") as context:
                await until(lambda: "no listing of Pod" in context.health.red().get("policy", ""))
                assert kernel.tables == {}
                await until(lambda: context.health.ready)
                assert judged(kernel)

    asyncio.run(main())


def test_a_policy_of_the_api_that_makes_no_sense_denies_and_is_named(tmp_path, kernel):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", {"metadata": {"name": "n1"}})
            fill_policies(server.world)
            bad = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"ports": [{"port": -1}]}]}
            put(server.world, "networkpolicies", "bad", "d", spec=bad)
            async with agent(tmp_path, server, "policy") as context:
                await until(lambda: POD in kernel.tables.get("judged_egress4", {}))
                await until(lambda: "NetworkPolicy d/bad" in context.health.red().get("policy", ""))
                assert "port=-1" in context.health.red()["policy"]
                server.world.remove("networkpolicies", "bad", "d")
                await until(lambda: context.health.ready)

    asyncio.run(main())
