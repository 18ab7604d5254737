"""LB IPAM against the scripted API: one leader writes statuses, stays out of others' way, and gives the lead back."""

import asyncio
import contextlib
import json
import logging
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.kube import SERVICE
from pycni.sources.kube import KubeSource
from pycni.sources.kube_lballoc import LEASE_NAME, LbAllocator
from pycni.sources.kube_leader import Elector
from pycni.store import Store
from pycni.wire.kube import from_mapping
from pycni.wire.kube_election import Move, Record, decode_record, next_lease, next_move
from tests.k8s.api_server import ApiServer, Reply, status
from tests.k8s.kube_tools import client_of, running, until

POOLS = (ip_network("192.0.2.0/29"),)


def lb(name, ip="", **spec):
    obj = {
        "metadata": {"name": name, "namespace": "d"},
        "spec": {"type": "LoadBalancer", "ipFamilies": ["IPv4"], **spec},
    }
    return {**obj, "status": {"loadBalancer": {"ingress": [{"ip": ip}]} if ip else {}}}


def given_out(server):
    found = {}
    for (_, name), obj in server.world.objects["services"].items():
        ingress = (obj["status"].get("loadBalancer") or {}).get("ingress") or []
        found[name] = " ".join(entry["ip"] for entry in ingress)
    return found


@contextlib.asynccontextmanager
async def allocator(server, identity="me", pools=POOLS, period_s=60.0, **election):
    async with client_of(server) as client:
        store = Store()
        source = KubeSource(client, ["Service"], longest_pause_s=0.2)
        elector = Elector(
            client, LEASE_NAME, identity, **{"duration_s": 2.0, "renew_s": 1.2, "retry_s": 0.1, **election}
        )
        made = LbAllocator(
            client, store, pools, elector, following=lambda: source.connected, period_s=period_s
        )
        async with running(source.run(store), made.run()):
            yield made


def lease_of(server):
    return server.world.objects["leases"]["kube-system", LEASE_NAME]["spec"]


def test_services_get_addresses_when_they_come_and_change():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", lb("a"))
            server.world.put("services", lb("kept", "192.0.2.5"))
            async with allocator(server) as made:
                await until(lambda: given_out(server) == {"a": "192.0.2.1", "kept": "192.0.2.5"})
                server.world.put("services", lb("b"))
                await until(lambda: given_out(server)["b"] == "192.0.2.2")
                server.world.remove("services", "a", "d")
                server.world.put("services", lb("c"))
                await until(lambda: given_out(server)["c"] == "192.0.2.1")
                server.world.put("services", lb("b", "192.0.2.2", loadBalancerIP="192.0.2.6"))
                await until(lambda: given_out(server)["b"] == "192.0.2.6")
                await asyncio.sleep(0.3)
                assert made.patched == 4, "nothing is written twice"
            patches = server.asked("services", method="PATCH")
            assert {each.path for each in patches} == {
                f"/api/v1/namespaces/d/services/{name}/status" for name in "abc"
            }
            assert lease_of(server)["holderIdentity"] == "", "the lead was given back"

    asyncio.run(main())


def test_many_services_are_served_in_one_go():
    async def main():
        async with ApiServer() as server:
            for number in range(60):
                server.world.put("services", lb(f"s{number:02}"))
            async with allocator(server, pools=(ip_network("192.0.2.0/25"),)) as made:
                await until(lambda: all(given_out(server).values()))
                assert len(set(given_out(server).values())) == 60
                await until(lambda: made.patched == 60)
                await until(lambda: made.problems == ())

    asyncio.run(main())


def test_an_exhausted_pool_is_said_once_and_made_up_when_an_address_is_free(caplog):
    async def main():
        async with ApiServer() as server:
            for name in "ab":
                server.world.put("services", lb(name))
            server.world.put(
                "services",
                {
                    **lb("late"),
                    "metadata": {
                        "name": "late",
                        "namespace": "d",
                        "creationTimestamp": "2025-01-01T00:00:00Z",
                    },
                },
            )
            async with allocator(server, pools=(ip_network("192.0.2.8/31"),), period_s=0.2) as made:
                await until(
                    lambda: made.problems == ("service d/late: no free ipv4 address in 192.0.2.8/31",)
                )
                await asyncio.sleep(0.6)
                server.world.remove("services", "a", "d")
                await until(lambda: given_out(server)["late"] == "192.0.2.8")
                await until(lambda: made.problems == ())

    with caplog.at_level(logging.WARNING, "pycni.lballoc"):
        asyncio.run(main())
    assert sum("no free ipv4" in line for line in caplog.messages) == 1


def test_what_somebody_else_writes_meanwhile_is_looked_at_first():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", lb("a"))
            server.script("services", *[Reply(409, status(409, "Conflict"))] * 2, method="PATCH")
            async with allocator(server, period_s=1.0) as made:
                await until(lambda: given_out(server) == {"a": "192.0.2.1"} and made.patched == 1)
            assert all(
                "resourceVersion" in each.json["metadata"]
                for each in server.asked("services", method="PATCH")
            )

    asyncio.run(main())


def test_one_service_that_cannot_be_written_does_not_keep_others_waiting():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", lb("a"))
            server.world.put("services", lb("b"))
            server.script("services/a", *[Reply(500, status(500, "InternalError"))] * 2, method="PATCH")
            async with allocator(server, period_s=0.5):
                await until(lambda: given_out(server)["b"] == "192.0.2.2")
                await until(lambda: given_out(server)["a"] == "192.0.2.1")

    asyncio.run(main())


def test_an_address_just_given_is_taken_though_the_store_has_not_heard_of_it():
    async def main():
        async with ApiServer() as server, client_of(server) as client:
            store = Store()
            made = LbAllocator(
                client, store, POOLS, Elector(client, LEASE_NAME, "me"), following=lambda: True
            )

            def hear(obj):
                store.put(
                    SERVICE,
                    obj["metadata"]["namespace"] + "/" + obj["metadata"]["name"],
                    from_mapping(obj)[1],
                )

            hear(server.world.put("services", lb("young")))
            store.mark_listed(SERVICE)
            assert await made.sync() == 0
            old = lb("old")
            old["metadata"]["creationTimestamp"] = "2001-01-01T00:00:00Z"
            hear(server.world.put("services", old))
            assert await made.sync() == 0
            assert given_out(server) == {"young": "192.0.2.1", "old": "192.0.2.2"}

    asyncio.run(main())


def test_nothing_is_given_out_while_services_are_not_followed():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", lb("a"))
            async with client_of(server) as client:
                store = Store()
                elector = Elector(client, LEASE_NAME, "me", retry_s=0.1)
                source = KubeSource(client, ["Service"])
                made = LbAllocator(client, store, POOLS, elector, following=lambda: False, period_s=0.1)
                async with running(source.run(store), made.run()):
                    await until(lambda: elector.leading and "Service" in store.snapshot().listed)
                    await asyncio.sleep(0.5)
                    assert given_out(server) == {"a": ""}

    asyncio.run(main())


def test_of_two_one_leads_and_the_other_takes_over_at_once_when_it_stops():
    async def main():
        async with ApiServer() as server:
            async with allocator(server, "first", duration_s=60, renew_s=30) as first:
                await until(lambda: first.elector.leading)
                async with allocator(server, "second", duration_s=60, renew_s=30) as second:
                    server.world.put("services", lb("a"))
                    await until(lambda: given_out(server) == {"a": "192.0.2.1"})
                    assert not second.elector.leading
                    assert second.elector.holder == "first"
                    assert second.patched == 0
                    server.world.put("services", lb("b"))
                    await until(lambda: given_out(server)["b"] == "192.0.2.2")
            async with allocator(server, "third", duration_s=60, renew_s=30) as third:
                await until(lambda: third.elector.leading)
                assert lease_of(server)["leaseTransitions"] >= 1

    asyncio.run(main())


def test_a_leader_stopped_while_it_renews_gives_the_lead_back():
    """Its renewal reached the API, the answer did not reach it: what it knows of the Lease is old."""

    async def main():
        async with ApiServer() as server:
            async with allocator(server, "first", duration_s=60, renew_s=30) as first:
                await until(lambda: first.elector.leading)
                client = first.elector._client
                update, cut = client.update, asyncio.Event()

                async def unanswered(*args):
                    await update(*args)
                    cut.set()
                    await asyncio.Event().wait()

                client.update = unanswered
                await cut.wait()
                client.update = update
            assert lease_of(server)["holderIdentity"] == ""

    asyncio.run(main())


def test_a_leader_that_died_is_succeeded_when_its_lease_has_ended():
    async def main():
        async with ApiServer() as server:
            dead = next_lease(LEASE_NAME, "kube-system", None, "dead", duration_s=1, now=4e9)
            server.world.put("leases", dead)
            async with allocator(server) as made:
                await until(lambda: made.elector.holder == "dead")
                assert not made.elector.leading
                await until(lambda: made.elector.leading)
                assert lease_of(server)["leaseTransitions"] == 1

    asyncio.run(main())


def test_a_leader_cut_off_from_the_api_stops_before_others_may_start():
    async def main():
        async with ApiServer() as server, allocator(server) as made:
            await until(lambda: made.elector.leading)
            server.script("leases", *[Reply(503, b"")] * 1000)
            before = asyncio.get_running_loop().time()
            await until(lambda: not made.elector.leading)
            assert asyncio.get_running_loop().time() - before < 2.0

    asyncio.run(main())


def test_a_leader_whose_lease_was_taken_steps_down():
    async def main():
        async with ApiServer() as server, allocator(server) as made:
            await until(lambda: made.elector.leading)
            usurper = json.loads(json.dumps(server.world.objects["leases"]["kube-system", LEASE_NAME]))
            usurper["spec"]["holderIdentity"] = "other"
            usurper["spec"]["leaseDurationSeconds"] = 60
            server.world.put("leases", usurper)
            await until(lambda: not made.elector.leading)
            assert made.elector.holder == "other"

    asyncio.run(main())


# --- the rules, without an API -----------------------------------------------------------------------------------


def test_the_moves_of_a_candidate():
    held = Record(holder="a", duration_s=15)
    assert next_move(None, "me", 0) is Move.CREATE
    assert next_move(held, "a", 99) is Move.RENEW
    assert next_move(held, "me", 15) is Move.WAIT
    assert next_move(held, "me", 15.1) is Move.TAKE
    assert next_move(Record(duration_s=15), "me", 0) is Move.TAKE


def test_a_renewal_keeps_when_it_was_acquired_and_a_take_over_counts():
    held = Record(
        holder="a", duration_s=15, acquired="2024-01-01T00:00:00.000000Z", transitions=4, version="7"
    )
    renewed = next_lease("n", "s", held, "a", duration_s=15, now=0)
    assert (renewed["spec"]["acquireTime"], renewed["spec"]["leaseTransitions"]) == (held.acquired, 4)
    assert renewed["metadata"]["resourceVersion"] == "7"
    taken = next_lease("n", "s", held, "b", duration_s=15, now=0)
    assert (taken["spec"]["acquireTime"], taken["spec"]["leaseTransitions"]) == (
        "1970-01-01T00:00:00.000000Z",
        5,
    )
    back = next_lease("n", "s", held, "", duration_s=15, now=0)
    assert (
        back["spec"]["holderIdentity"],
        back["spec"]["leaseDurationSeconds"],
        back["spec"]["leaseTransitions"],
    ) == ("", 1, 4)


@settings(deadline=None)
@given(st.binary(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=3), lambda i: st.dictionaries(st.sampled_from(["metadata", "spec", "leaseDurationSeconds", "holderIdentity"]), i)).map(lambda v: json.dumps(v).encode()))  # fmt: skip
def test_whatever_a_lease_says_it_is_a_record_or_one_configerror(raw):
    try:
        found = decode_record(raw)
    except ConfigError:
        return
    assert found.duration_s >= 0
