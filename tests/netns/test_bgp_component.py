"""The BGP component beside real BIRDs: from objects to a router's table, and what pycnictl says of it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from pycni.agent.health import Health
from pycni.agent.settings import Given, Settings, resolve
from pycni.errors import ConfigError
from pycni.kernel import netns as namespaces
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NODE,
    SERVICE,
    EndpointSlice,
    Ingress,
    KubeNode,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.node import Underlay
from pycni.model.podnet import PodNetwork
from pycni.store import Store
from pycni_bgp import cli_bgp
from pycni_bgp.bird.daemon import Bird
from pycni_bgp.component import LEASE, BgpComponent
from pycni_bgp.drain import LABEL as DRAINED
from pycni_bgp.status import Status
from tests.netns.bgp_nodes import Router, Switch, until

VIP = "198.51.100.7/32"
PEERS = "[{remoteip: 192.0.2.11, remoteasn: 65011}]"


@pytest.fixture
def switch(netns_factory: Callable[[], str]) -> Switch:
    """An underlay."""
    return Switch(netns_factory)


def _settings(folder: Path, **given: str) -> Settings:
    words = {
        "node-name": "a",
        "state-dir": str(folder),
        **{key.replace("_", "-"): value for key, value in given.items()},
    }
    return resolve([[Given(name, (value,), "test") for name, value in words.items()]], "a")


def _underlay(_settings: Settings, _families: object) -> Underlay:
    own = (ipaddress.IPv4Interface("192.0.2.1/24"), ipaddress.IPv6Interface("2001:db8::1/64"))
    return Underlay(name="eth0", mtu=1500, address=own[0], address6=own[1], on_link=own)


def _node(name: str, number: int, labels: Mapping[str, str] = {}, **annotations: str) -> KubeNode:
    found = {f"kube-router.io/{key}": value for key, value in annotations.items()}
    return KubeNode(
        meta=Meta(name=name, annotations=found, labels=labels),
        pod_cidrs=(f"10.1.{number}.0/24", f"2001:db8:{number}::/64"),
        internal_ips=(f"192.0.2.{number}", f"2001:db8::{number}"),
    )


def _service(store: Store, *, at: str, local: bool = True) -> None:
    service = Service(
        meta=Meta(name="web", namespace="x"),
        type="LoadBalancer",
        cluster_ips=("10.96.0.7",),
        families=(Family.V4,),
        ingress=(Ingress(ip="198.51.100.7"),),
        ports=(ServicePortSpec(port=80),),
        external_local=local,
    )
    piece = EndpointSlice(
        meta=Meta(name="web-1", namespace="x"),
        service="x/web",
        family=Family.V4,
        ports=(SlicePort(port=8080),),
        endpoints=(SliceEndpoint(address="10.1.1.3", node=at),),
    )
    store.replace(SERVICE, {"x/web": service})
    store.replace(ENDPOINT_SLICE, {"x/web-1": piece})


@contextlib.asynccontextmanager
async def _running(component: BgpComponent) -> AsyncIterator[None]:
    task = asyncio.create_task(component.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _status(component: BgpComponent) -> Status:
    answer = await component.routes()["/bgp"]("")
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body.encode(), type=Status)


def test_objects_become_a_routers_routes(
    switch: Switch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service with an endpoint here, gone elsewhere, back, and the node drained; the peer is in an annotation.

    Node b, which is away all the time, keeps nobody waiting.
    """

    async def story() -> None:
        where = switch.join(1)
        router = Router(switch, 11, 65011, tmp_path, "192.0.2.1 as 64512")
        store, health = Store(), Health()
        component = BgpComponent(
            _settings(tmp_path, advertise_loadbalancer_ip="true"),
            store,
            health=health,
            find_underlay=_underlay,
            engine=Bird(str(tmp_path / "bgp"), command=[*namespaces.exec_prefix(where), "bird"]),
        )
        try:
            async with _running(component):
                await until(lambda: "no listing of" in health.reason(), "waiting for listings")
                assert (await component.routes()["/bgp"]("")).status == 503
                store.replace(NODE, {"a": _node("a", 1, peers=PEERS), "b": _node("b", 2)})
                _service(store, at="a")
                await until(lambda: router.has(VIP), "the service's address at the router")
                await until(lambda: router.has("10.1.1.0/24"), "the pods' subnet")
                await until(lambda: health.ready, f"health: {health.reason()}")
                _service(store, at="b")
                await until(lambda: router.lacks(VIP), "withdrawal without an endpoint here")
                found = await _status(component)
                assert found.silent[VIP] == (
                    "Service x/web: traffic policy Local, and no ready endpoint on this node"
                )
                assert {peer.address: peer.state for peer in found.peers if peer.kind == "eBGP"} == {
                    "192.0.2.11": "Established"
                }
                assert [item.prefix for item in found.learned] == ["203.0.113.0/24"]
                _service(store, at="a")
                await until(lambda: router.has(VIP), "the address again")
                store.put(NODE, "a", _node("a", 1, {DRAINED: ""}, peers=PEERS))
                await until(lambda: router.lacks(VIP), "withdrawal from a drained node")
                assert await router.has("10.1.1.0/24")
                found = await _status(component)
                told = {item.prefix: item for item in found.announced}
                assert told[VIP].withheld["192.0.2.11"] == "this node is being drained"
                cli_bgp.show(found, learned=True)
        finally:
            router.end()

    asyncio.run(story())
    shown = capsys.readouterr().out
    for words in ("AS64512", "192.0.2.11", "Established", "being drained", "203.0.113.0/24", "Service x/web"):
        assert words in shown


def test_leases_are_enough_without_kubernetes(switch: Switch, tmp_path: Path) -> None:
    """Two agents know each other by their leases and get each other's subnets into their kernels."""

    async def story() -> None:
        store = Store()
        leases = {
            lease.key: lease
            for lease in (
                Lease(
                    subnet=ipaddress.IPv4Network(f"10.1.{number}.0/24"),
                    attrs=LeaseAttrs(public_ip=ipaddress.IPv4Address(f"192.0.2.{number}")),
                )
                for number in (1, 2)
            )
        }
        store.replace(LEASE, leases)
        components = []
        where = {}
        for number in (1, 2):
            where[number] = switch.join(number)
            own = ipaddress.IPv4Interface(f"192.0.2.{number}/24")
            pods = PodNetwork(
                subnets=(ipaddress.ip_network(f"10.1.{number}.0/24"),),
                networks=(ipaddress.ip_network("10.1.0.0/16"),),
                mtu=1500,
            )
            components.append(
                BgpComponent(
                    _settings(tmp_path / str(number), node_name=f"n{number}"),
                    store,
                    podnet=lambda pods=pods: pods,
                    objects=False,
                    find_underlay=lambda _settings, _families, own=own: Underlay(
                        name="eth0", mtu=1500, address=own, on_link=(own,)
                    ),
                    engine=Bird(
                        str(tmp_path / f"bgp{number}"),
                        command=[*namespaces.exec_prefix(where[number]), "bird"],
                    ),
                )
            )
        async with _running(components[0]), _running(components[1]):
            await until(lambda: "10.1.2.0/24" in switch.routes(where[1]), "node 2's subnet at node 1")
            await until(lambda: "10.1.1.0/24" in switch.routes(where[2]), "node 1's subnet at node 2")

    asyncio.run(story())


def test_a_refused_plan_turns_health_red_and_leaves_sessions_alone(switch: Switch, tmp_path: Path) -> None:
    async def story() -> None:
        where = switch.join(1)
        router = Router(switch, 11, 65011, tmp_path, "192.0.2.1 as 64512")
        store, health = Store(), Health()
        engine = Bird(str(tmp_path / "bgp"), command=[*namespaces.exec_prefix(where), "bird"])
        component = BgpComponent(
            _settings(tmp_path), store, health=health, find_underlay=_underlay, engine=engine
        )
        for kind in (SERVICE, ENDPOINT_SLICE):
            store.replace(kind, {})
        store.replace(NODE, {"a": _node("a", 1, peers=PEERS)})
        try:
            async with _running(component):
                await until(lambda: router.has("10.1.1.0/24"), "a session")
                wrong = "[{remoteip: 192.0.2.11, remoteasn: 65011, password: ImEiYg==, port: 1179}]"
                store.put(NODE, "a", _node("a", 1, peers=wrong.replace("ImEiYg==", "YSJi")))
                await until(lambda: "quotation marks" in health.reason(), "a reason")
                assert 'a"b' not in health.reason()
                assert (await engine.sessions())[0].up
                store.put(NODE, "a", _node("a", 1, peers=PEERS))
                await until(lambda: health.ready, "well again")
        finally:
            router.end()

    asyncio.run(story())


def test_passwords_of_routers_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    given = {
        "peer_router_ips": "192.0.2.11,192.0.2.12",
        "peer_router_asns": "65011,65012",
        "peer_router_passwords_file": str(file),
    }
    for text, words in (
        ("", "1 passwords, 2 wanted"),
        ("YQ==", "1 passwords, 2 wanted"),
        ("hunter2,", "not base64"),
        (None, "No such file"),
    ):
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            BgpComponent(_settings(tmp_path, **given), Store(), engine=Bird(str(tmp_path)))
        assert "hunter2" not in str(caught.value)
    file.write_text("YQ==,\n")
    component = BgpComponent(_settings(tmp_path, **given), Store(), engine=Bird(str(tmp_path)))
    peers = component._view._settings.peers
    assert [peer.password.reveal() if peer.password else None for peer in peers] == ["a", None]
