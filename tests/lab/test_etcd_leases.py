"""Leases on real servers of both versions: races, renewal, losses, and etcd going away and coming back empty."""

import asyncio
import contextlib
import random
import shutil
from ipaddress import IPv4Address, IPv4Network

import pytest

from pycni.model.lease import LeaseAttrs
from pycni.sources.leases import LeaseLostError, LeaseSource
from pycni.store import Store
from pycni.wire.lease import HeldLease, encode_attrs
from tests.lab.etcd_tools import client, running, until
from tests.wire.test_lease import BAD_KEYS, BAD_VALUES

pytest_plugins = ["tests.lab.etcd_fixtures"]

V4 = b'{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'
DUAL = b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}'
OTHER = b'{"PublicIP":"192.0.2.99","PublicIPv6":null}'


def attrs(number=1, **more):
    values = {
        "public_ip": IPv4Address("192.0.2.0") + number,
        "backend_type": "vxlan",
        "backend_data": b'{"VNI":1,"VtepMAC":"0e:00:00:00:00:%02x"}' % number,
    }
    return LeaseAttrs(**(values | more))


class Agent:
    """One node's source with its own client and store."""

    def __init__(self, endpoint, prefix, number=1, seed=None, **more):
        rng = random.Random(number if seed is None else seed)
        values = {"ttl_s": 60, "margin_s": 20, "retry_s": 0.3, "poll_s": 0.05, "rng": rng} | more
        self.client = client(endpoint)
        self.source = LeaseSource(self.client, prefix, **values)
        self.store = Store()
        self.attrs = attrs(number)
        self.remembered = []
        self.source.on_held = self.remembered.append

    async def acquire(self, **more):
        return await self.source.acquire(self.attrs, **more)

    def run(self):
        return self.source.run(self.store)

    @property
    def leases(self):
        return set(self.store.snapshot().of("lease"))

    async def record(self):
        """Our record in etcd."""
        return await self.client.get(f"{self.source.prefix}/subnets/{self.source.held.lease.key}")


@contextlib.asynccontextmanager
async def agents(server, prefix, count=1, conf=V4, **more):
    """Nodes of one network, whose configuration is there."""
    found = [Agent(server.endpoint, prefix, number, **more) for number in range(1, count + 1)]
    try:
        if conf is not None:
            await found[0].client.put(f"{prefix}/config", conf)
        yield found
    finally:
        for agent in found:
            await agent.client.close()


@pytest.mark.parametrize(("count", "seed"), [(50, None), (15, 7)], ids=["50 nodes", "15 that draw alike"])
@pytest.mark.parametrize("conf", [V4, DUAL], ids=["ipv4", "dual"])
def test_nodes_that_start_together_never_get_one_subnet_twice(etcd, prefix, conf, count, seed):
    async def scene():
        async with agents(etcd, prefix, count, conf, seed=seed) as found:
            held = await asyncio.gather(*(agent.acquire() for agent in found))
            assert len({lease.lease.subnet for lease in held}) == count
            families = {lease.lease.subnet6 for lease in held}
            assert len(families) == (count if conf == DUAL else 1)
            async with running(found[0].run()):
                await until(lambda: len(found[0].leases) == count)

    asyncio.run(scene())


def test_netconf_is_waited_for_and_corrected_ones_are_taken(etcd, prefix, caplog):
    async def scene():
        async with agents(etcd, prefix, conf=None) as (agent,):
            waiting = asyncio.create_task(agent.source.netconf())
            await until(lambda: "does not exist" in agent.source.waiting)
            await agent.client.put(f"{prefix}/config", b'{"Network":"10.5.0.0/29"}')
            await until(lambda: "is not valid" in agent.source.waiting)
            await agent.client.put(f"{prefix}/config", V4)
            assert (await waiting).network == IPv4Network("10.5.0.0/16")
            assert agent.source.waiting == ""

    asyncio.run(scene())
    assert len([message for message in caplog.messages if "too small" in message]) == 1


def test_a_changed_netconf_reaches_the_store(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix) as (agent,), running(agent.run()):
            await until(lambda: "netconf" in agent.store.snapshot().listed)
            await agent.client.put(f"{prefix}/config", DUAL)
            await until(lambda: agent.store.snapshot().of("netconf")["config"].network6 is not None)

    asyncio.run(scene())


def test_a_lease_is_renewed_before_it_ends_and_lives_on(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix, ttl_s=2, margin_s=1.2) as (agent,):
            first = await agent.acquire()
            lease = (await agent.record()).lease
            async with running(agent.run()):
                await asyncio.sleep(3.5)
                record = await agent.record()
                assert record.lease != lease
                assert agent.source.held.lease == first.lease
                assert agent.source.held.expires > first.expires + 1
                assert agent.leases == {first.lease.key}
            assert agent.source.renewals >= 2
            assert agent.remembered[-1] == agent.source.held
            assert agent.remembered[0] == first

    asyncio.run(scene())


def test_a_restarted_agent_gets_its_record_again_and_its_life_anew(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix) as (agent,):
            first = await agent.acquire()
            again = Agent(etcd.endpoint, prefix, seed=99)
            try:
                second = await again.acquire()
            finally:
                await again.client.close()
            assert second.lease == first.lease
            assert second.expires >= first.expires
            assert (await agent.record()).version == 2

    asyncio.run(scene())


def test_after_a_change_of_address_the_record_is_recognised(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix) as (agent,):
            first = await agent.acquire()
            agent.attrs = attrs(1, public_ip=IPv4Address("198.51.100.7"))
            again = await agent.acquire(remembered=first)
            assert again.lease.subnet == first.lease.subnet
            assert (await agent.record()).value == encode_attrs(agent.attrs)

    asyncio.run(scene())


def test_the_subnet_of_subnet_env_is_taken_when_free(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix, 2) as (agent, other):
            previous = (IPv4Network("10.5.77.0/24"), None)
            assert (await agent.acquire(previous=previous)).lease.subnet == previous[0]
            assert (await other.acquire(previous=previous)).lease.subnet != previous[0]

    asyncio.run(scene())


def test_a_static_reservation_is_used_for_ever(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix, ttl_s=2, margin_s=1.5) as (agent,):
            await agent.client.put(f"{prefix}/subnets/10.5.30.0-24", b'{"PublicIP":"192.0.2.1"}')
            held = await agent.acquire()
            assert (held.lease.key, held.permanent) == ("10.5.30.0-24", True)
            async with running(agent.run()):
                await asyncio.sleep(1.0)
            record = await agent.record()
            assert (record.lease, record.value, record.version) == (0, encode_attrs(agent.attrs), 2)

    asyncio.run(scene())


def test_publishing_is_seen_by_peers_and_prolongs_nothing(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix, 2) as (agent, peer):
            held = await agent.acquire()
            lease = (await agent.record()).lease
            async with running(agent.run(), peer.run()):
                await until(lambda: peer.leases)
                new = attrs(1, backend_data=b'{"VNI":1,"VtepMAC":"0e:00:00:00:00:ff"}')
                assert (await agent.source.publish(new)).expires == held.expires
                await until(lambda: peer.store.snapshot().of("lease")[held.lease.key].attrs == new)
                assert (await agent.record()).lease == lease

    asyncio.run(scene())


@pytest.mark.parametrize(
    "value",
    [None, b'{"PublicIP":"192.0.2.1","BackendType":"udp"}', b"rubbish"],
    ids=["deleted", "written by another agent of this node", "made unreadable"],
)
def test_a_record_of_ours_that_was_touched_is_put_right(etcd, prefix, value):
    async def scene():
        async with agents(etcd, prefix) as (agent,):
            held = await agent.acquire()
            key = f"{prefix}/subnets/{held.lease.key}"
            async with running(agent.run()):
                await until(lambda: agent.leases)
                if value is None:
                    await agent.client.delete(key)
                else:
                    await agent.client.put(key, value)
                while True:
                    record = await agent.client.get(key)
                    if record is not None and record.value == encode_attrs(agent.attrs):
                        break
                await until(lambda: agent.leases == {held.lease.key})

    asyncio.run(scene())


def test_a_lease_taken_by_another_node_is_lost_and_another_one_acquired(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix) as (agent,):
            held = await agent.acquire()
            key = f"{prefix}/subnets/{held.lease.key}"
            task = asyncio.create_task(agent.run())
            await until(lambda: agent.leases)
            await agent.client.put(key, OTHER)
            with pytest.raises(LeaseLostError, match=r"taken by 192\.0\.2\.99"):
                await asyncio.wait_for(task, 5)
            assert agent.source.held is None
            again = await agent.acquire(previous=(held.lease.subnet, None))
            assert again.lease.subnet != held.lease.subnet
            assert (await agent.client.get(key)).value == OTHER
            async with running(agent.run()):
                await until(lambda: len(agent.leases) == 2)

    asyncio.run(scene())


def test_two_agents_with_one_address_do_not_write_for_ever(etcd, prefix):
    """A mistake of the operator's: each corrects the other, ever more slowly."""

    async def scene():
        async with agents(etcd, prefix, retry_s=60) as (agent,):
            twin = Agent(etcd.endpoint, prefix, retry_s=60)
            twin.attrs = attrs(1, backend_data=b'{"VNI":1,"VtepMAC":"twin"}')
            try:
                await agent.acquire()
                await twin.acquire()
                async with running(agent.run(), twin.run()):
                    await asyncio.sleep(1.5)
                    assert (await agent.record()).version < 16
            finally:
                await twin.client.close()

    asyncio.run(scene())


def test_malformed_records_in_etcd_harm_nobody_and_stay(etcd, prefix, caplog):
    records = {f"{prefix}/subnets/{name}": encode_attrs(attrs(9)) for _, name in BAD_KEYS if len(name) < 1000}
    records |= {f"{prefix}/subnets/10.5.{100 + n}.0-24": value for n, (_, value) in enumerate(BAD_VALUES)}
    del records[f"{prefix}/subnets/"]

    async def scene():
        async with agents(etcd, prefix) as (agent,):
            for key, value in records.items():
                await agent.client.put(key, value)
            held = await agent.acquire()
            assert not 100 <= held.lease.subnet.network_address.packed[2] < 100 + len(BAD_VALUES)
            async with running(agent.run()):
                await until(lambda: agent.source.connected)
                assert agent.leases == {held.lease.key}
                assert len(agent.source.malformed) == len(records)
                for key, value in records.items():
                    assert (await agent.client.get(key)).value == value
                await agent.client.put(f"{prefix}/subnets/10.5.100.0-24", encode_attrs(attrs(2)))
                await until(lambda: len(agent.leases) == 2)

    asyncio.run(scene())
    assert len([message for message in caplog.messages if "ignoring etcd record" in message]) == len(records)
    assert len(records) > 50


def test_a_full_network_is_waited_for(etcd, prefix):
    async def scene():
        async with agents(etcd, prefix, conf=b'{"Network":"10.5.0.0/22"}') as (agent,):
            for third in (1, 2, 3):
                await agent.client.put(f"{prefix}/subnets/10.5.{third}.0-24", OTHER)
            waiting = asyncio.create_task(agent.acquire())
            await until(lambda: "no free /24" in agent.source.waiting)
            await agent.client.delete(f"{prefix}/subnets/10.5.2.0-24")
            assert (await asyncio.wait_for(waiting, 5)).lease.key == "10.5.2.0-24"

    asyncio.run(scene())


# --- etcd goes away ------------------------------------------------------------------------------------------


def test_while_etcd_is_away_nothing_is_forgotten_and_afterwards_all_is_right(servers):
    async def scene():
        server = servers.start()
        async with agents(server, "/p", 2, ttl_s=3, margin_s=1) as (agent, peer):
            await agent.acquire()
            await peer.acquire()
            async with running(agent.run(), peer.run()):
                await until(lambda: len(agent.leases) == len(peer.leases) == 2)
                before = agent.leases
                server.kill()
                await until(lambda: not agent.source.connected)
                await asyncio.sleep(0.5)
                assert agent.leases == before
                server = servers.restart(server.options)
                await until(lambda: agent.source.connected and peer.source.connected)
                await asyncio.sleep(3.2)
                assert agent.leases == peer.leases == before
                for node in (agent, peer):
                    assert (await node.client.lease_time_to_live((await node.record()).lease))[0] >= 0

    asyncio.run(scene())


def test_an_agent_starts_while_etcd_is_away_and_gets_its_lease_when_it_is_back(modern):
    async def scene():
        server = modern.start()
        async with agents(server, "/p") as (agent,):
            first = await agent.acquire()
            server.kill()
            again = Agent(server.endpoint, "/p")
            try:
                waiting = asyncio.create_task(again.acquire(remembered=first))
                running_too = asyncio.create_task(again.run())
                await until(lambda: "no endpoint answers" in again.source.waiting)
                assert again.store.snapshot().listed == frozenset()
                server = modern.restart(server.options)
                assert isinstance(await asyncio.wait_for(waiting, 10), HeldLease)
                assert again.source.held.lease == first.lease
                await until(lambda: again.leases == {first.lease.key})
                running_too.cancel()
                await asyncio.gather(running_too, return_exceptions=True)
            finally:
                await again.client.close()

    asyncio.run(scene())


def test_when_etcd_comes_back_empty_nodes_write_their_leases_again_and_forget_nobody(servers):
    async def scene():
        server = servers.start()
        async with agents(server, "/p", 3, grace_s=1.5) as found:
            for agent in found:
                await agent.acquire()
            async with running(*(agent.run() for agent in found)):
                await until(lambda: all(len(agent.leases) == 3 for agent in found))
                names = found[0].leases
                ever = set()
                for agent in found:
                    agent.store.subscribe(lambda a=agent: ever.add(len(a.leases)))
                server.kill()
                shutil.rmtree(server.options.data_dir)
                server = servers.restart(server.options)

                async def written():
                    listing = [await agent.record() for agent in found]
                    return all(record is not None for record in listing)

                await until(lambda: all(agent.source.connected for agent in found))
                while not await written():
                    await asyncio.sleep(0.02)
                await asyncio.sleep(2)
                assert all(agent.leases == names for agent in found)
                assert ever <= {3}

    asyncio.run(scene())


def test_after_the_grace_nodes_that_did_not_come_back_are_forgotten(modern):
    async def scene():
        server = modern.start()
        async with agents(server, "/p", 2, grace_s=1.0) as (agent, dead):
            await agent.acquire()
            gone = await dead.acquire()
            async with running(agent.run()):
                await until(lambda: len(agent.leases) == 2)
                server.kill()
                shutil.rmtree(server.options.data_dir)
                modern.restart(server.options)
                await until(lambda: agent.source.connected)
                assert gone.lease.key in agent.leases
                await until(lambda: agent.leases == {agent.source.held.lease.key})

    asyncio.run(scene())
