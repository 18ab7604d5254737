"""List, watch, list again after a gap: every way in which the API can misbehave, and that the store stays right."""

import asyncio
import json
import logging

import pytest

from pycni.errors import ConfigError
from pycni.sources.kube import KubeSource, Selection, own_node, own_pods
from tests.k8s.api_server import (
    ApiServer,
    Cut,
    Lines,
    Pass,
    Reply,
    Stall,
    bookmark,
    event,
    status,
)
from tests.k8s.kube_tools import following, names, service, until

EXPIRED = Reply(410, status(410, "Expired", "too old"))


def stored(name, version, ip="10.0.0.9"):
    """An object as events carry it."""
    meta = {"name": name, "namespace": "d", "resourceVersion": version}
    return {"kind": "Service", "apiVersion": "v1", "metadata": meta, "spec": {"clusterIP": ip}}


def test_a_listing_in_pages_is_put_as_a_whole_and_followed():
    async def main():
        async with ApiServer() as server:
            for number in range(7):
                server.world.put("services", service(f"s{number}"))
            async with following(server, page=3) as (source, store):
                await until(lambda: "Service" in store.snapshot().listed)
                assert len(names(store)) == 7, "nothing of a half-read listing is seen"
                await until(lambda: source.connected)
                assert source.waiting == ""
                server.world.put("services", service("new", "10.0.0.99"))
                server.world.put("services", service("s0", "10.0.0.50"))
                server.world.remove("services", "s1", "d")
                await until(lambda: store.snapshot().of("Service").get("d/s0").cluster_ips == ("10.0.0.50",))
                await until(lambda: "s1" not in names(store) and "new" in names(store))
                assert source.followers["Service"].events == 3
            lists = server.asked("services")
            assert [each.query.get("limit") for each in lists] == ["3", "3", "3"]
            (watch,) = server.asked("services", watch=True)
            assert watch.query["resourceVersion"] == "107"
            assert watch.query["allowWatchBookmarks"] == "true"
            assert 300 <= int(watch.query["timeoutSeconds"]) <= 600
            assert server.connections == 1, "pages and watch share one kept connection"

    asyncio.run(main())


def test_selectors_are_the_servers_business():
    async def main():
        async with ApiServer() as server:
            for name in ("n1", "n2"):
                server.world.put("nodes", {"metadata": {"name": name}})
                server.world.put(
                    "pods", {"metadata": {"name": f"p-{name}", "namespace": "d"}, "spec": {"nodeName": name}}
                )
            labelled = {
                "metadata": {
                    "name": "a",
                    "namespace": "d",
                    "labels": {"service.kubernetes.io/service-proxy-name": "x"},
                }
            }
            server.world.put("services", labelled)
            server.world.put("services", service("b"))
            server.world.put("services", service("c", namespace="other"))
            kinds = [
                own_node("n1"),
                own_pods("n2"),
                Selection("Service", labels="!service.kubernetes.io/service-proxy-name", namespace="d"),
            ]
            async with following(server, *kinds) as (source, store):
                await until(lambda: source.connected)
                assert names(store, "Node") == ["n1"]
                assert names(store, "Pod") == ["p-n2"]
                assert names(store) == ["b"]
                server.world.put("services", service("late", namespace="other"))
                server.world.put("services", service("later"))
                await until(lambda: names(store) == ["b", "later"])

    asyncio.run(main())


def test_a_kind_is_followed_once():
    with pytest.raises(ConfigError, match="each kind is followed once"):
        KubeSource(None, ["Pod", own_pods("n")])


def test_a_listing_that_expires_between_pages_starts_again():
    async def main():
        async with ApiServer() as server:
            for number in range(5):
                server.world.put("services", service(f"s{number}"))
            server.script("services", Pass(), EXPIRED, watch=False)
            async with following(server, page=2) as (_source, store):
                await until(lambda: "Service" in store.snapshot().listed)
                assert len(names(store)) == 5
            assert [bool(each.query.get("continue")) for each in server.asked("services")] == [
                False,
                True,
                False,
                True,
                True,
            ]

    asyncio.run(main())


def test_a_listing_too_slow_for_pages_is_asked_for_at_once():
    async def main():
        async with ApiServer() as server:
            for number in range(5):
                server.world.put("services", service(f"s{number}"))
            server.script("services", Pass(), EXPIRED, Pass(), EXPIRED, watch=False)
            async with following(server, page=2) as (_source, store):
                await until(lambda: "Service" in store.snapshot().listed)
                assert len(names(store)) == 5
            assert "limit" not in server.asked("services")[-1].query

    asyncio.run(main())


def test_a_cut_watch_goes_on_from_the_last_version_heard_of():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            lines = [event("ADDED", stored("b", "105")), bookmark("108")]
            server.script("services", Lines(lines, then="cut"), Lines([], then="stall"), watch=True)
            async with following(server) as (source, store):
                await until(lambda: len(server.asked("services", watch=True)) == 2)
                assert names(store) == ["a", "b"], "nothing is forgotten while away"
                assert [each.query["resourceVersion"] for each in server.asked("services", watch=True)] == [
                    "101",
                    "108",
                ]
                assert len(server.asked("services")) == 1, "no new listing"
                await until(lambda: source.connected)
                assert source.followers["Service"].reconnects == 1

    asyncio.run(main())


def test_a_cut_inside_a_line_loses_nothing():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            whole = json.dumps(event("ADDED", stored("b", "102"))).encode() + b"\n"
            server.script(
                "services",
                Lines([whole[:40]], then="end"),
                Lines([whole[:40], whole[40:]], then="stall"),
                watch=True,
            )
            async with following(server) as (_source, store):
                await until(lambda: names(store) == ["a", "b"])
                assert [each.query["resourceVersion"] for each in server.asked("services", watch=True)] == [
                    "101",
                    "101",
                ]

    asyncio.run(main())


GONE = [
    ("as an answer", EXPIRED),
    ("as an event", Lines([event("ERROR", status(410, "Expired"))])),
    ("as an event named Gone", Lines([event("ERROR", status(0, "Gone"))])),
    (
        "a version from the future",
        Lines([event("ERROR", status(504, "Timeout", "Too large resource version"))]),
    ),
    ("an invalid version", Reply(400, status(400, "BadRequest", "invalid resource version"))),
    ("a line that is no event", Lines([b"<html>\n"])),
    ("a version of the past", Lines([bookmark("7")], then="stall")),
    ("a time-out of the API", Reply(504, status(504, "Timeout", "Too large resource version"))),
]


@pytest.mark.parametrize("step", [row[1] for row in GONE], ids=[row[0] for row in GONE])
def test_a_forgotten_version_means_a_new_listing_that_replaces(step):
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("stays"))
            server.world.put("services", service("goes"))
            server.script("services", Lines([], then="stall"), step, watch=True)
            async with following(server) as (source, store):
                await until(lambda: source.connected)
                server.world.remove("services", "goes", "d")
                server.world.put("services", service("comes"))
                await server.cut()
                await until(lambda: names(store) == ["comes", "stays"])
                assert source.followers["Service"].relists == 1
                await until(lambda: source.connected)

    asyncio.run(main())


def test_history_forgotten_while_away_is_made_up_by_a_listing():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("goes"))
            async with following(server) as (source, store):
                await until(lambda: source.connected)
                port = server.port
                await server.stop()
                assert names(store) == ["goes"]
                server.world.remove("services", "goes", "d")
                server.world.put("services", service("comes"))
                server.world.forget()
                await until(lambda: source.waiting != "")
                assert names(store) == ["goes"], "absence of the API is absence of news"
                server.world.put("services", service("after"))
                revived = ApiServer(port=port)
                revived.world = server.world
                async with revived:
                    await until(lambda: names(store) == ["after", "comes"])
                    await until(lambda: source.waiting == "")
            async with server:
                pass  # so that leaving it a second time finds it open

    asyncio.run(main())


def test_errors_in_a_row_lead_to_a_new_listing_in_the_end():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            broken = Lines(
                [event("ERROR", status(500, "InternalError", "etcd event received with PrevKv=nil"))]
            )
            server.script("services", *[broken] * 5, watch=True)
            async with following(server) as (source, _store):
                await until(lambda: source.followers["Service"].relists == 1)
                await until(lambda: source.connected)

    asyncio.run(main())


BUSY = [
    ("429 of a listing", False, Reply(429, status(429, "TooManyRequests"), {"Retry-After": "1"})),
    ("503 of a listing", False, Reply(503, b"unavailable", {"Retry-After": "1"})),
    ("429 of a watch", True, Reply(429, status(429, "TooManyRequests"), {"Retry-After": "1"})),
    ("in an event", True, Lines([event("ERROR", status(429, "TooManyRequests", retryAfterSeconds=1))])),
]


@pytest.mark.parametrize(("watch", "step"), [row[1:] for row in BUSY], ids=[row[0] for row in BUSY])
def test_a_busy_server_is_left_alone_for_as_long_as_it_says(watch, step):
    async def main():
        async with ApiServer() as server:
            server.script("services", step, watch=watch)
            async with following(server, longest_pause_s=0.05) as (source, _store):
                await until(
                    lambda: (
                        bool(source.followers["Service"].waiting)
                        and bool(server.asked("services", watch=watch))
                    )
                )
                before = asyncio.get_running_loop().time()
                await until(lambda: len(server.asked("services", watch=watch)) == 2)
                assert asyncio.get_running_loop().time() - before > 0.8
                await until(lambda: source.connected)

    asyncio.run(main())


ODD = [
    ("no JSON", Reply(200, b"<html>login</html>")),
    ("no list", Reply(200, b'{"kind":"Status"}')),
    ("a list without version", Reply(200, {"metadata": {}, "items": []})),
    ("an error of the server", Reply(500, status(500, "InternalError"))),
    ("no permission", Reply(403, status(403, "Forbidden", 'services is forbidden: User "x"'))),
    ("an unknown path", Reply(404, b"404 page not found")),
    ("a redirection", Reply(302, b"", {"Location": "http://192.0.2.1/"})),
    ("a cut before the answer", Cut()),
    ("a cut inside the head", Cut(b"HTTP/1.1 200 OK\r\nContent-Le")),
    ("a cut inside the body", Cut(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"metadata"')),
    ("no HTTP", Cut(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")),
    ("a stall before the answer", Stall()),
    ("a stall inside the body", Stall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")),
    ("bytes too slow", Reply(200, {"metadata": {"resourceVersion": "1"}, "items": []}, slow_s=0.1)),
    ("a head without end", Cut(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000)),
]  # fmt: skip


@pytest.mark.parametrize("step", [row[1] for row in ODD], ids=[row[0] for row in ODD])
def test_whatever_a_listing_meets_the_next_one_is_tried(step):
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            server.script("services", step, step, watch=False)
            options = {"silence_s": 0.3, "request_s": 0.8}
            async with following(server, client_options=options) as (source, store):
                await until(
                    lambda: source.followers["Service"].waiting not in ("", "the first listing"),
                    "a complaint",
                )
                assert "Service" not in store.snapshot().listed
                await until(lambda: names(store) == ["a"])
                await until(lambda: source.waiting == "")

    asyncio.run(main())


def test_a_silent_watch_is_given_up_and_nothing_forgotten():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            server.script("services", Lines([], then="stall"), watch=True)
            async with following(server, silence_s=0.3) as (source, store):
                await until(lambda: len(server.asked("services", watch=True)) >= 2)
                assert names(store) == ["a"]
                assert source.followers["Service"].relists == 0

    asyncio.run(main())


def test_bookmarks_keep_a_quiet_watch_open():
    async def main():
        async with ApiServer() as server:
            server.bookmark_s = 0.1
            async with following(server, silence_s=0.5) as (source, _store):
                await until(lambda: source.connected)
                await asyncio.sleep(1.2)
                assert len(server.asked("services", watch=True)) == 1

    asyncio.run(main())


def test_watches_that_end_at_once_are_spaced():
    async def main():
        async with ApiServer() as server:
            server.script(
                "services",
                *[Lines([event("MODIFIED", stored("a", str(200 + n)))]) for n in range(200)],
                watch=True,
            )
            async with following(server, longest_pause_s=0.5) as (source, store):
                await until(lambda: names(store) == ["a"])
                await asyncio.sleep(1.5)
                assert len(server.asked("services", watch=True)) < 15
                assert source.followers["Service"].relists == 0

    asyncio.run(main())


def test_a_server_that_always_forgets_is_not_listed_in_a_hot_loop():
    async def main():
        async with ApiServer() as server:
            server.script("services", *[EXPIRED] * 500, watch=True)
            async with following(server, longest_pause_s=0.5):
                await until(lambda: bool(server.asked("services", watch=True)))
                await asyncio.sleep(1.5)
                assert len(server.asked("services")) < 15

    asyncio.run(main())


def test_a_bad_object_is_reported_once_and_keeps_its_last_good_value(caplog):
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("good"))
            server.world.put("services", service("turns", "10.0.0.5"))
            server.world.put("services", service("bad", "nonsense"))
            async with following(server) as (source, store):
                await until(lambda: source.connected)
                assert names(store) == ["good", "turns"]
                server.world.put("services", service("turns", "nonsense"))
                await until(lambda: "Service d/turns" in source.malformed)
                assert store.snapshot().of("Service")["d/turns"].cluster_ips == ("10.0.0.5",)
                server.script("services", EXPIRED, watch=True)
                await server.cut()
                await until(lambda: source.followers["Service"].relists == 1 and source.connected)
                assert names(store) == ["good", "turns"], "a listing keeps it too"
                server.world.put("services", service("turns", "10.0.0.6"))
                server.world.remove("services", "bad", "d")
                await until(lambda: store.snapshot().of("Service")["d/turns"].cluster_ips == ("10.0.0.6",))
                await until(lambda: source.malformed == {})

    with caplog.at_level(logging.WARNING, "pycni.kube"):
        asyncio.run(main())
    assert sum("Service d/bad" in line for line in caplog.messages) == 1


def test_a_policy_that_was_never_good_has_a_stand_in_until_it_is():
    def policy(name, spec):
        return {"metadata": {"name": name, "namespace": "d"}, "spec": spec}

    async def main():
        async with ApiServer() as server:
            bad = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"ports": [{"port": 0}]}]}
            server.world.put("networkpolicies", policy("listed", bad))
            async with following(server, "NetworkPolicy") as (source, store):
                await until(lambda: source.connected)

                def of(name):
                    return store.snapshot().of("NetworkPolicy")["d/" + name]

                assert (of("listed").ingress, of("listed").egress) == ((), None)
                server.world.put("networkpolicies", policy("seen", bad))
                await until(lambda: "d/seen" in store.snapshot().of("NetworkPolicy"))
                assert of("seen").ingress == ()
                server.world.put("networkpolicies", policy("seen", {**bad, "policyTypes": ["Egress"]}))
                await until(lambda: of("seen").egress == ())
                server.script("networkpolicies", EXPIRED, watch=True)
                await server.cut()
                await until(lambda: source.followers["NetworkPolicy"].relists == 1 and source.connected)
                assert (of("seen").ingress, of("seen").egress) == (None, ())
                server.world.put("networkpolicies", policy("seen", {"podSelector": {}, "ingress": [{}]}))
                await until(lambda: of("seen").ingress not in {None, ()})
                server.world.put("networkpolicies", policy("seen", bad))
                await until(lambda: "NetworkPolicy d/seen" in source.malformed)
                assert of("seen").ingress not in {None, ()}, "the last good version"

    asyncio.run(main())


def test_a_gigantic_line_ends_the_watch_not_the_agent(monkeypatch):
    monkeypatch.setattr("pycni.sources.kube_client.MAX_LINE", 100_000)

    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            server.script("services", Lines([b"x" * 400_000], then="stall"), watch=True)
            async with following(server) as (source, store):
                await until(lambda: len(server.asked("services", watch=True)) == 2)
                await until(lambda: source.connected)
                assert names(store) == ["a"]

    asyncio.run(main())


def test_an_answer_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr("pycni.sources.kube_client.MAX_BODY", 100_000)

    async def main():
        async with ApiServer() as server:
            server.script("services", Lines([b"x" * 50_000] * 20, then="stall"), watch=False)
            async with following(server) as (source, store):
                await until(lambda: "more than 100000 bytes" in source.waiting)
                await until(lambda: "Service" in store.snapshot().listed)

    asyncio.run(main())


def test_another_address_means_other_connections():
    async def main():
        async with ApiServer() as server:
            server.world.put("services", service("a"))
            async with following(server) as (source, store):
                await until(lambda: source.connected)
                source.readdressed()
                await until(lambda: server.connections == 2 and source.connected)
                assert names(store) == ["a"]

    asyncio.run(main())


def test_the_api_away_at_the_start_is_waited_for():
    async def main():
        async with ApiServer() as probe:
            port = probe.port
        late = ApiServer(port=port)
        late.world.put("services", service("a"))

        class Url:
            url = f"http://127.0.0.1:{port}"

        async with following(Url) as (source, store):
            await until(
                lambda: "Connect call failed" in source.waiting or "refused" in source.waiting.lower(),
                "a complaint",
            )
            async with late:
                await until(lambda: names(store) == ["a"])

    asyncio.run(main())


# --- kinds a cluster need not have -----------------------------------------------------------------------------------


def deny(name):
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}}
    return {"metadata": {"name": name}, "spec": spec}


CNP, CNPS = "ClusterNetworkPolicy", "clusternetworkpolicies"


def test_policies_of_both_kinds_are_followed():
    async def main():
        async with ApiServer() as server:
            server.world.put(CNPS, deny("a"))
            server.world.put("networkpolicies", {"metadata": {"name": "b", "namespace": "d"}})
            async with following(server, CNP, "NetworkPolicy") as (source, store):
                await until(lambda: source.connected)
                assert (names(store, CNP), names(store, "NetworkPolicy")) == (["a"], ["b"])
                server.world.remove(CNPS, "a")
                server.world.put("networkpolicies", {"metadata": {"name": "c", "namespace": "e"}})
                await until(lambda: sorted(store.snapshot().of("NetworkPolicy")) == ["d/b", "e/c"])
                await until(lambda: names(store, CNP) == [])

    asyncio.run(main())


def test_a_kind_the_cluster_does_not_have_is_listed_with_no_objects_and_found_when_it_comes():
    async def main():
        async with ApiServer() as server:
            server.unknown.add(CNPS)
            server.world.put("services", service("s"))
            async with following(server, CNP, "Service", absent_s=0.3) as (source, store):
                await until(lambda: source.connected)
                assert CNP in store.snapshot().listed
                assert (source.waiting, names(store, CNP)) == ("", [])
                follower = source.followers[CNP]
                assert (follower.absent, follower.relists) == (True, 0)
                await until(lambda: len(server.asked(CNPS)) >= 3, "another question now and then")
                server.unknown.clear()
                server.world.put(CNPS, deny("a"))
                await until(lambda: names(store, CNP) == ["a"])
                await until(lambda: source.connected and not follower.absent)
                server.world.put(CNPS, deny("b"))
                await until(lambda: names(store, CNP) == ["a", "b"])

    asyncio.run(main())


def test_what_was_listed_is_not_forgotten_because_of_one_404():
    async def main():
        async with ApiServer() as server:
            server.world.put(CNPS, deny("a"))
            server.script(CNPS, EXPIRED, watch=True)
            async with following(server, CNP, longest_pause_s=0.05) as (source, store):
                await until(lambda: names(store, CNP) == ["a"])
                seen = len(server.asked(CNPS))
                server.unknown.add(CNPS)
                await server.cut()
                await until(lambda: len(server.asked(CNPS)) >= seen + 2, "two listings that find nothing")
                assert names(store, CNP) == ["a"]
                await until(lambda: source.followers[CNP].absent, "believed in the end")
                assert names(store, CNP) == []

    asyncio.run(main())


def test_a_404_for_a_kind_every_cluster_has_is_an_error():
    async def main():
        async with ApiServer() as server:
            server.unknown.add("services")
            async with following(server) as (source, store):
                await until(lambda: "404" in source.waiting)
                assert "Service" not in store.snapshot().listed
                assert not source.connected

    asyncio.run(main())
