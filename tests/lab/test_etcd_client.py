"""The etcd client against real servers of both versions: requests, certificates, users, endpoints that fail."""

import asyncio
import signal
import socket
import time

import pytest

from pycni.errors import StoreError
from pycni.lab.etcd import EtcdTls
from pycni.sources.etcd_pb import rpc_pb2 as rpc
from pycni.sources.etcd_watch import prefix_end
from pycni.sources.leases_own import absent, none_made_since, unchanged
from tests.lab.etcd_tools import client, free_ports

pytest_plugins = ["tests.lab.etcd_fixtures"]


def put(key, value=b"x"):
    return rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value))


def test_keys_are_written_read_listed_and_deleted(etcd, prefix):
    async def scene():
        async with client(etcd.endpoint) as c:
            assert await c.get(f"{prefix}/a") is None
            revision = await c.put(f"{prefix}/a", b"1")
            await c.put(f"{prefix}/b", b"2")
            found = await c.get(f"{prefix}/a")
            assert (found.value, found.mod_revision, found.version, found.lease) == (b"1", revision, 1, 0)
            listing = await c.range(rpc.RangeRequest(key=prefix.encode(), range_end=prefix_end(prefix)))
            assert [kv.value for kv in listing.kvs] == [b"1", b"2"]
            assert await c.delete(prefix, prefix_end(prefix)) == 2
            assert (await c.status()).version.startswith("3.")
            assert c.dials == 1

    asyncio.run(scene())


def test_comparisons_mean_what_they_say(etcd, prefix):
    async def scene():
        async with client(etcd.endpoint) as c:
            folder = f"{prefix}/"

            async def holds(*compare):
                return (await c.txn(rpc.TxnRequest(compare=compare))).succeeded

            async def revision():
                return (await c.range(rpc.RangeRequest(key=b"x"))).header.revision

            start = await revision()
            assert await holds(absent(folder + "a"), absent(folder, prefix_end(folder)))
            assert await holds(none_made_since(folder, start))
            made = await c.put(folder + "a", b"1")
            assert not await holds(absent(folder + "a"))
            assert not await holds(absent(folder, prefix_end(folder)))
            assert not await holds(none_made_since(folder, start))
            assert await holds(unchanged(folder + "a", made))
            written = await c.put(folder + "a", b"2")
            assert not await holds(unchanged(folder + "a", made))
            assert await holds(unchanged(folder + "a", written), none_made_since(folder, made))

    asyncio.run(scene())


def test_etcd_leases_live_are_kept_and_take_their_keys_with_them(etcd, prefix):
    async def scene():
        async with client(etcd.endpoint) as c:
            lease, ttl = await c.lease_grant(60)
            assert ttl == 60
            await c.put(f"{prefix}/a", b"1", lease)
            assert (await c.lease_time_to_live(lease))[1] == 60
            assert await c.lease_keepalive(lease) == 60
            await c.lease_revoke(lease)
            assert await c.get(f"{prefix}/a") is None
            assert (await c.lease_time_to_live(lease))[0] == -1
            assert await c.lease_keepalive(lease) == 0
            with pytest.raises(StoreError, match="requested lease not found"):
                await c.put(f"{prefix}/a", b"1", lease)

    asyncio.run(scene())


def test_many_requests_at_once_share_one_connection(etcd, prefix):
    async def scene():
        async with client(etcd.endpoint) as c:
            await asyncio.gather(*(c.put(f"{prefix}/{n}", b"x") for n in range(200)))
            assert c.dials == 1

    asyncio.run(scene())


# --- endpoints -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["refuses", "is silent"])
def test_a_dead_endpoint_costs_little(etcd, kind):
    """A silent one accepts connections and never says a word, as a half-open link does."""

    async def scene(dead):
        async with client(dead, etcd.endpoint) as c:
            start = time.monotonic()
            await c.get("x")
            took = time.monotonic() - start
            assert c.endpoint == etcd.endpoint
            await c.get("x")
            assert c.dials == 1
            return took

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == "is silent":
            sock.listen()
        took = asyncio.run(scene(f"http://127.0.0.1:{sock.getsockname()[1]}"))
    assert took < 3, "a call's own limit is longer"


def test_when_nothing_answers_every_endpoint_is_named():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        silent = f"http://127.0.0.1:{sock.getsockname()[1]}"
        refusing = f"http://127.0.0.1:{free_ports(1)[0]}"

        async def scene():
            async with client(silent, refusing, dial_timeout_s=0.8) as c:
                with pytest.raises(StoreError) as caught:
                    await c.get("x")
                return caught.value

        start = time.monotonic()
        error = asyncio.run(scene())
    assert error.transient
    assert f"{silent}: no answer" in str(error)
    assert f"{refusing}: " in str(error)
    assert "Connection refused" in str(error)
    assert time.monotonic() - start < 8


def test_a_member_that_is_killed_is_left_for_the_next(modern):
    first, second, third = modern.cluster()

    async def scene():
        async with client(first.endpoint, second.endpoint, third.endpoint) as c:
            await c.put("/a", b"1")
            assert c.endpoint == first.endpoint
            first.kill()
            start = time.monotonic()
            while True:
                try:
                    await c.put("/a", b"2")
                    break
                except StoreError as exc:
                    assert exc.transient  # noqa: PT017
                    await asyncio.sleep(0.05)
            assert c.endpoint != first.endpoint
            return time.monotonic() - start

    assert asyncio.run(scene()) < 5


def test_a_member_without_quorum_is_left_for_an_endpoint_that_works(modern):
    """It accepts connections and answers no request that needs the cluster."""
    alone, *others = modern.cluster()
    for member in others:
        member.kill()
    healthy = modern.start()

    async def scene():
        async with client(alone.endpoint, healthy.endpoint, call_timeout_s=1.0, dial_timeout_s=0.8) as c:
            for attempt in range(3):
                try:
                    await c.put("/a", b"1")
                except StoreError as exc:
                    assert exc.transient  # noqa: PT017
                    assert attempt < 2
                else:
                    break
            assert c.endpoint == healthy.endpoint

    asyncio.run(scene())


def test_a_frozen_server_ends_a_request_at_its_deadline(modern):
    server = modern.start()

    async def scene():
        async with client(server.endpoint, call_timeout_s=0.5, dial_timeout_s=0.5) as c:
            await c.get("x")
            server.signal(signal.SIGSTOP)
            await asyncio.sleep(0.1)  # until every thread has stopped
            for _ in range(2):
                start = time.monotonic()
                with pytest.raises(StoreError) as caught:
                    await c.get("x")
                assert caught.value.transient
                assert time.monotonic() - start < 8
            server.signal(signal.SIGCONT)
            await asyncio.sleep(0.1)
            assert await c.get("x") is None

    asyncio.run(scene())


# --- who we are ----------------------------------------------------------------------------------------------


def tls_options(folder, *, client_auth):
    return EtcdTls(
        cert=folder / "server.pem",
        key=folder / "server.key",
        ca=folder / "ca.pem",
        client_cert_auth=client_auth,
    )


def files(folder, name=""):
    found = {"cafile": str(folder / "ca.pem")}
    if name:
        found |= {"certfile": str(folder / f"{name}.pem"), "keyfile": str(folder / f"{name}.key")}
    return found


def allow_agent(servers, server, *, password="", **environment):
    """A user ``agent`` who may use /net/ only; authentication on."""
    for words in (
        ["user", "add", "root:secret"],
        ["user", "grant-role", "root", "root"],
        ["role", "add", "agents"],
        ["role", "grant-permission", "--prefix", "agents", "readwrite", "/net/"],
        ["user", "add", "agent:" + (password or "unused")],
        ["user", "grant-role", "agent", "agents"],
        ["auth", "enable"],
    ):
        if words == ["user", "grant-role", "root", "root"]:
            servers.ctl(server, "role", "add", "root", **environment)
        servers.ctl(server, *words, **environment)


def test_tls_needs_the_right_authority_and_says_so(servers, certificates):
    server = servers.start(tls=tls_options(certificates, client_auth=False))

    async def scene(endpoint, **settings):
        async with client(endpoint, **settings) as c:
            await c.put("/a", b"1")

    asyncio.run(scene(server.endpoint, **files(certificates)))
    with pytest.raises(StoreError, match=r"(?i)certificate|ssl|handshake"):
        asyncio.run(scene(server.endpoint))
    with pytest.raises(StoreError):
        asyncio.run(scene(server.endpoint.replace("https", "http")))


def test_the_common_name_of_a_client_certificate_is_a_user(servers, certificates):
    server = servers.start(tls=tls_options(certificates, client_auth=True))
    ctl = {
        "ETCDCTL_CACERT": str(certificates / "ca.pem"),
        "ETCDCTL_CERT": str(certificates / "root.pem"),
        "ETCDCTL_KEY": str(certificates / "root.key"),
    }
    allow_agent(servers, server, **ctl)

    async def scene():
        async with client(server.endpoint, **files(certificates, "agent")) as c:
            await c.put("/net/a", b"1")
            with pytest.raises(StoreError, match="permission denied") as caught:
                await c.put("/other", b"1")
            assert not caught.value.transient
        async with client(server.endpoint, **files(certificates)) as c:
            with pytest.raises(StoreError):
                await c.put("/net/a", b"1")

    asyncio.run(scene())


def test_user_and_password_also_after_the_token_is_gone(servers):
    server = servers.start()
    allow_agent(servers, server, password="hunter2")

    async def scene():
        async with client(server.endpoint, username="agent", password="hunter2") as c:
            await c.put("/net/a", b"1")
            with pytest.raises(StoreError, match="permission denied") as caught:
                await c.get("/other")
            assert not caught.value.transient
            c._token = "stale.1"
            await c.put("/net/a", b"2")
            server.kill()
            servers.restart(server.options)
            while True:
                try:
                    await c.put("/net/a", b"3")
                    break
                except StoreError as exc:
                    assert exc.transient, exc  # noqa: PT017
        async with client(server.endpoint, username="agent", password="wrong") as c:
            with pytest.raises(StoreError, match="invalid user ID or password") as caught:
                await c.get("/net/a")
            assert not caught.value.transient
            assert "wrong" not in str(caught.value)

    asyncio.run(scene())


def test_a_user_where_authentication_is_off_is_no_error(etcd, caplog):
    async def scene():
        async with client(etcd.endpoint, username="agent", password="hunter2") as c:
            await c.get("x")
            await c.get("x")

    asyncio.run(scene())
    assert len([message for message in caplog.messages if "not enabled" in message]) == 1
    assert "hunter2" not in caplog.text
