"""Leases in Node objects: the interface of the etcd source, kept with flannel's annotations."""

import asyncio
import json
import logging
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from pycni.model.lease import LeaseAttrs
from pycni.sources.kube_leases import KubeLeaseSource, LeaseLostError
from pycni.store import Store
from pycni.wire.lease import HeldLease
from tests.k8s.api_server import ApiServer, Reply, status
from tests.k8s.kube_tools import client_of, node, running, until

P = "flannel.alpha.coreos.com/"
DATA = b'{"VNI":1,"VtepMAC":"0a:0b:0c:0d:0e:0f"}'
ME = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=DATA)
FLANNEL = {
    "kube_subnet_manager": "true",
    "backend_type": "vxlan",
    "backend_data": '{"VNI":1,"VtepMAC":"aa:bb:cc:00:00:02"}',
}


def annotations(server, name="n1"):
    return server.world.objects["nodes"]["", name]["metadata"]["annotations"]


def source_for(client, tmp_path, conf='{"Network":"10.244.0.0/16"}', **options):
    (tmp_path / "net-conf.json").write_text(conf)
    settings = {"look_s": 0.05, "retry_s": 0.2, "grace_s": 0.5, **options}
    return KubeLeaseSource(client, "n1", str(tmp_path / "net-conf.json"), **settings)


def leases(store):
    return {key: str(lease.attrs.public_ip) for key, lease in store.snapshot().of("lease").items()}


def scenario(tmp_path, play, **options):
    """Run ``play(server, source, store)`` with n1 ready, our source running and its lease held."""

    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n1", "10.244.1.0/24"))
            server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="192.0.2.2", **FLANNEL))
            async with client_of(server) as client:
                source, store = source_for(client, tmp_path, **options), Store()
                async with running(source.run(store)):
                    await source.acquire(ME)
                    await until(
                        lambda: leases(store) == {"10.244.1.0-24": "192.0.2.1", "10.244.2.0-24": "192.0.2.2"},
                        "both leases",
                    )
                    await play(server, source, store)

    asyncio.run(main())


def test_a_lease_is_the_nodes_pod_network_and_says_so_in_flannels_words(tmp_path):
    async def play(server, source, store):
        assert annotations(server) == {
            f"{P}kube-subnet-manager": "true",
            f"{P}backend-type": "vxlan",
            f"{P}backend-data": DATA.decode(),
            f"{P}public-ip": "192.0.2.1",
        }
        assert source.held.lease.subnet == IPv4Network("10.244.1.0/24")
        assert source.held.expires is None, "nothing ends by itself"
        assert "lease" in store.snapshot().listed
        assert store.snapshot().of("netconf")["config"].network == IPv4Network("10.244.0.0/16")
        patches = server.asked("nodes", method="PATCH")
        assert all(each.path == "/api/v1/nodes/n1/status" for each in patches), (
            "flannel's roles allow nothing else"
        )
        await until(lambda: server.world.objects["nodes"]["", "n1"].get("status"))
        (condition,) = server.world.objects["nodes"]["", "n1"]["status"]["conditions"]
        assert (condition["type"], condition["status"], condition["reason"]) == (
            "NetworkUnavailable",
            "False",
            "FlannelIsUp",
        )

    scenario(tmp_path, play)


def test_without_being_asked_no_condition_is_set(tmp_path):
    async def play(server, source, store):
        del source, store
        await asyncio.sleep(0.3)
        assert not any(b"conditions" in each.body for each in server.asked("nodes", method="PATCH"))

    scenario(tmp_path, play, set_condition=False)


def test_a_condition_we_may_not_set_does_not_hold_up_the_lease(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.world.put(
                "nodes",
                node(
                    "n1", "10.244.1.0/24", public_ip="192.0.2.1", **{**FLANNEL, "backend_data": DATA.decode()}
                ),
            )
            server.script("nodes", *[Reply(403, status(403, "Forbidden"))] * 100, method="PATCH")
            async with client_of(server) as client:
                source, store = source_for(client, tmp_path), Store()
                async with running(source.run(store)):
                    await asyncio.wait_for(source.acquire(ME), 10)
                    await until(lambda: bool(server.asked("nodes", method="PATCH")))
                    assert source.waiting == ""

    asyncio.run(main())


def test_peers_come_change_and_go_with_their_node_objects(tmp_path):
    async def play(server, source, store):
        server.world.put("nodes", node("n3", "10.244.3.0/24", public_ip="192.0.2.3", **FLANNEL))
        server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="192.0.2.22", **FLANNEL))
        server.world.put("nodes", node("n4", "10.244.4.0/24"))
        await until(
            lambda: (
                leases(store)
                == {"10.244.1.0-24": "192.0.2.1", "10.244.2.0-24": "192.0.2.22", "10.244.3.0-24": "192.0.2.3"}
            )
        )
        server.world.put("nodes", node("n3", "10.244.33.0/24", public_ip="192.0.2.3", **FLANNEL))
        server.world.remove("nodes", "n2")
        await until(lambda: leases(store) == {"10.244.1.0-24": "192.0.2.1", "10.244.33.0-24": "192.0.2.3"})
        server.world.put("nodes", node("n3", "10.244.33.0/24"))
        await until(
            lambda: leases(store) == {"10.244.1.0-24": "192.0.2.1"}, "a node that is not managed any more"
        )
        assert source.malformed == {}

    scenario(tmp_path, play)


def test_an_unreadable_peer_is_reported_and_keeps_its_lease_until_it_goes(tmp_path, caplog):
    async def play(server, source, store):
        server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="nonsense", **FLANNEL))
        await until(lambda: "n2" in source.malformed)
        assert leases(store)["10.244.2.0-24"] == "192.0.2.2"
        server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="192.0.2.2", **FLANNEL))
        await until(lambda: source.malformed == {})
        server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="nonsense", **FLANNEL))
        await until(lambda: "n2" in source.malformed)
        server.world.remove("nodes", "n2")
        await until(lambda: leases(store) == {"10.244.1.0-24": "192.0.2.1"} and source.malformed == {})

    with caplog.at_level(logging.WARNING, "pycni.leases"):
        scenario(tmp_path, play)
    assert sum("Node n2" in line for line in caplog.messages) == 2


def test_of_two_nodes_with_one_subnet_the_older_has_it(tmp_path):
    async def play(server, source, store):
        young = node("a-young", "10.244.2.0/24", public_ip="192.0.2.9", **FLANNEL)
        young["metadata"]["creationTimestamp"] = "2024-06-01T00:00:00Z"
        server.world.put("nodes", young)
        server.world.put("nodes", node("n5", "10.244.5.0/24", public_ip="192.0.2.5", **FLANNEL))
        await until(lambda: "10.244.5.0-24" in leases(store))
        assert leases(store)["10.244.2.0-24"] == "192.0.2.2"
        server.world.remove("nodes", "n2")
        await until(lambda: leases(store)["10.244.2.0-24"] == "192.0.2.9")

    scenario(tmp_path, play)


def test_publishing_changes_annotations_and_store_and_tells_the_agent(tmp_path):
    async def play(server, source, store):
        told = []
        source.on_held = told.append
        changed = LeaseAttrs(public_ip=IPv4Address("192.0.2.7"), backend_type="vxlan", backend_data=DATA)
        held = await source.publish(changed)
        assert held.lease.attrs == changed
        assert told == [held]
        assert annotations(server)[f"{P}public-ip"] == "192.0.2.7"
        await until(lambda: leases(store)["10.244.1.0-24"] == "192.0.2.7")

    scenario(tmp_path, play)


def test_an_overwritten_address_is_told_to_peers_and_not_to_us(tmp_path):
    async def play(server, source, store):
        own = server.world.objects["nodes"]["", "n1"]
        own["metadata"]["annotations"][f"{P}public-ip-overwrite"] = "203.0.113.1"
        server.world.put("nodes", own)
        await until(lambda: annotations(server)[f"{P}public-ip"] == "203.0.113.1")
        assert leases(store)["10.244.1.0-24"] == "192.0.2.1"
        assert source.held.lease.attrs == ME

    scenario(tmp_path, play)


def test_annotations_somebody_changes_are_put_right_and_a_fight_slows_down(tmp_path):
    async def play(server, source, store):
        for _ in range(2):
            own = json.loads(json.dumps(server.world.objects["nodes"]["", "n1"]))
            own["metadata"]["annotations"][f"{P}backend-data"] = "null"
            server.world.put("nodes", own)
            await until(lambda: annotations(server)[f"{P}backend-data"] == DATA.decode())
        before = source.written
        for _ in range(40):
            own = json.loads(json.dumps(server.world.objects["nodes"]["", "n1"]))
            own["metadata"]["annotations"][f"{P}backend-type"] = "udp"
            server.world.put("nodes", own)
            await asyncio.sleep(0.02)
        assert source.written - before < 15
        await until(lambda: annotations(server)[f"{P}backend-type"] == "vxlan")

    scenario(tmp_path, play)


def test_our_own_writing_seen_late_is_not_written_again(tmp_path):
    async def play(server, source, store):
        await asyncio.sleep(0.3)
        assert source.written == 1

    scenario(tmp_path, play)


def test_our_node_is_looked_at_though_nothing_is_heard_of_it(tmp_path):
    async def play(server, source, store):
        del source, store
        # Changed behind the watch's back, as when the API's store was put back to an older state.
        del annotations(server)[f"{P}public-ip"]
        await until(lambda: f"{P}public-ip" in annotations(server))

    scenario(tmp_path, play, check_s=0.3)


def test_another_pod_network_ends_the_lease(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n1", "10.244.1.0/24"))
            async with client_of(server) as client:
                source, store = source_for(client, tmp_path), Store()
                task = asyncio.ensure_future(source.run(store))
                await source.acquire(ME)
                await until(lambda: bool(leases(store)))
                server.world.remove("nodes", "n1")
                server.world.put("nodes", node("n1"))
                await asyncio.sleep(0.2)
                assert not task.done(), "a node made anew gets its network later"
                server.world.put("nodes", node("n1", "10.244.9.0/24"))
                with pytest.raises(
                    LeaseLostError, match=r"10.244.1.0-24: taken by spec.podCIDRs, which is 10.244.9.0/24 now"
                ):
                    await asyncio.wait_for(task, 10)
                assert source.held is None

    asyncio.run(main())


WAITING = [
    ("no node", None, "does not exist in Kubernetes"),
    ("no network", node("n1"), "--allocate-node-cidrs"),
    ("a network of the other family", node("n1", "fd00:1::/64"), "no ipv4 podCIDR"),
    ("two networks of a family", node("n1", "10.244.1.0/24", "10.244.2.0/24"), "expected one ipv4 network"),
]


@pytest.mark.parametrize(("own", "text"), [row[1:] for row in WAITING], ids=[row[0] for row in WAITING])
def test_what_keeps_us_from_a_lease_is_said_and_waited_for(tmp_path, own, text):
    async def main():
        async with ApiServer() as server:
            if own is not None:
                server.world.put("nodes", own)
            async with client_of(server) as client:
                source = source_for(client, tmp_path)
                task = asyncio.ensure_future(source.acquire(ME))
                await until(lambda: text in source.waiting, text)
                server.world.put("nodes", node("n1", "10.244.1.0/24"))
                held = await asyncio.wait_for(task, 10)
                assert held.lease.key == "10.244.1.0-24"
                assert source.waiting == ""

    asyncio.run(main())


def test_the_api_away_is_waited_for(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n1", "10.244.1.0/24"))
            server.script("nodes", *[Reply(503, b"")] * 3)
            server.script("nodes", Reply(500, status(500, "InternalError")), method="PATCH")
            async with client_of(server) as client:
                held = await asyncio.wait_for(source_for(client, tmp_path).acquire(ME), 20)
                assert held.lease.key == "10.244.1.0-24"
                assert annotations(server)[f"{P}public-ip"] == "192.0.2.1"

    asyncio.run(main())


def test_a_dual_stack_node_has_both_networks(tmp_path):
    conf = '{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}'

    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n1", "10.244.1.0/24", "fd00:1::/64"))
            async with client_of(server) as client:
                held = await source_for(client, tmp_path, conf).acquire(ME)
                assert held.lease.subnet6 == IPv6Network("fd00:1::/64")

    asyncio.run(main())


def test_the_net_conf_is_read_again_and_a_wrong_one_changes_nothing(tmp_path, caplog):
    async def play(server, source, store):
        file = tmp_path / "net-conf.json"
        for bad in ("{", '{"Network":"x"}'):
            file.write_text(bad)
            await asyncio.sleep(0.2)
            assert (await source.netconf()).network == IPv4Network("10.244.0.0/16")
        file.unlink()
        await asyncio.sleep(0.2)
        file.write_text('{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}')
        await until(lambda: store.snapshot().of("netconf")["config"].backend.type == "host-gw")

    with caplog.at_level(logging.ERROR, "pycni.leases"):
        scenario(tmp_path, play)
    assert len(caplog.messages) == 3, "each fault once"


def test_a_missing_net_conf_is_waited_for(tmp_path):
    async def main():
        async with ApiServer() as server, client_of(server) as client:
            source = KubeLeaseSource(client, "n1", str(tmp_path / "net-conf.json"), look_s=0.05)
            task = asyncio.ensure_future(source.netconf())
            await until(lambda: "No such file" in source.waiting)
            (tmp_path / "net-conf.json").write_text('{"Network":"10.244.0.0/16"}')
            assert (await asyncio.wait_for(task, 10)).network == IPv4Network("10.244.0.0/16")

    asyncio.run(main())


def test_an_api_that_lost_its_nodes_takes_no_peer_away_for_a_while(tmp_path):
    async def play(server, source, store):
        for name in ("n1", "n2"):
            del server.world.objects["nodes"]["", name]
        server.world.put("nodes", node("n9", "10.244.9.0/24", public_ip="192.0.2.9", **FLANNEL))
        server.script("nodes", Reply(410, status(410, "Expired")), watch=True)
        await server.cut()
        await until(lambda: "10.244.9.0-24" in leases(store))
        assert {"10.244.1.0-24", "10.244.2.0-24"} <= set(leases(store))
        await until(lambda: set(leases(store)) == {"10.244.9.0-24"}, "the end of the grace")

    scenario(tmp_path, play, grace_s=1.0)


def test_a_new_life_that_does_not_find_its_node_trusts_no_listing_for_a_while(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="192.0.2.2", **FLANNEL))
            async with client_of(server) as client:
                source, store = source_for(client, tmp_path, grace_s=1.0), Store()
                source.expected = "10.244.1.0-24"
                async with running(source.run(store)):
                    await until(lambda: set(leases(store)) == {"10.244.2.0-24"})
                    assert "lease" not in store.snapshot().listed
                    await until(lambda: "lease" in store.snapshot().listed)

    asyncio.run(main())


def test_publishing_without_a_node_object_is_made_up_when_it_is_back(tmp_path):
    async def play(server, source, store):
        server.world.remove("nodes", "n1")
        changed = LeaseAttrs(public_ip=IPv4Address("192.0.2.7"), backend_type="vxlan", backend_data=DATA)
        await source.publish(changed)
        server.world.put("nodes", node("n1", "10.244.1.0/24"))
        await until(lambda: annotations(server).get(f"{P}public-ip") == "192.0.2.7")

    scenario(tmp_path, play)


def test_another_prefix_makes_another_network(tmp_path):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n1", "10.244.1.0/24"))
            server.world.put("nodes", node("n2", "10.244.2.0/24", public_ip="192.0.2.2", **FLANNEL))
            async with client_of(server) as client:
                source, store = source_for(client, tmp_path, prefix="net.example/b"), Store()
                async with running(source.run(store)):
                    await source.acquire(ME)
                    await until(lambda: set(leases(store)) == {"10.244.1.0-24"})
                    assert annotations(server)["net.example/b-public-ip"] == "192.0.2.1"

    asyncio.run(main())


def test_a_remembered_lease_of_another_network_is_remarked_on(tmp_path, caplog):
    async def main():
        async with ApiServer() as server:
            server.world.put("nodes", node("n1", "10.244.1.0/24"))
            async with client_of(server) as client:
                source = source_for(client, tmp_path)
                remembered = HeldLease(lease=(await source.acquire(ME)).lease, expires=None)
                server.world.put("nodes", node("n1", "10.244.8.0/24"))
                held = await source.acquire(ME, (None, None), remembered)
                assert held.lease.key == "10.244.8.0-24"

    with caplog.at_level(logging.WARNING, "pycni.leases"):
        asyncio.run(main())
    assert any("this node had 10.244.1.0/24" in line for line in caplog.messages)
