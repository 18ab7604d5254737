"""What operators get to see of a node with real policies: its answers, its kernel read back, its live denials."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import select
import socket
import time

import msgspec
import pytest

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.kernel.nflog import NflogSocket
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    SERVICE,
    TCP,
    UDP,
    EndpointSlice,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.policy import Action, Peer, Selector, Tier
from pycni.policy.drops_nft import NftDrops
from pycni.policy.effective import Overview, PodRules
from pycni.policy.explain import Answer
from pycni.policy.report import Routes
from tests.netns.fabric_nodes import run
from tests.netns.policy_rig import Try, block, policy, rule, web
from tests.netns.test_policy_nft import HTTP, TCP80, cluster, does, rig  # noqa: F401
from tests.proxy.topology import PODS, REMOTE

ALL = Selector()
POLICIES = (
    policy("shop/web", web(app="web"), ingress=(rule(Peer(pods=web(app="db")), ports=[TCP80]),)),
    policy("shop/out", web(app="web"), egress=(rule(block("10.244.1.0/24", "10.244.1.12/32"), block("fd00:244::/32")),)),
    policy("lone/other", web(app="none"), ingress=()),
    cluster("no-lone", Tier.ADMIN, 7, ingress=(does(Action.DENY, Peer(namespaces=web(team="l"))),)),
)  # fmt: skip


@pytest.fixture
def node(rig, spaces):  # noqa: F811
    """The rig's routes, as a function from path and query to the answer."""
    fd = namespaces.open_netns(spaces.path("node"))

    async def work(job):
        return namespaces.run_in(fd, job)

    routes = Routes("n1", lambda: rig.engine, rig.store.snapshot, work)
    try:
        rig.routes = routes
        yield rig
    finally:
        os.close(fd)


def ask(node, path, kind=None, **asked):
    query = "&".join(f"{key}={value}" for key, value in asked.items())
    found = asyncio.run(node.routes.routes()[path](query))
    if kind is None:
        return found
    assert found.status == 200, found.body
    return msgspec.json.decode(found.body, type=kind)


def explained(node, source, destination, port="80", protocol="TCP"):
    return ask(
        node,
        "/policies/explain",
        Answer,
        source=source,
        destination=destination,
        port=port,
        protocol=protocol,
    )


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_list_says_what_is_in_use_and_what_was_denied(node):
    node.only(*POLICIES)
    node.passes([Try("x", "a", 0, UDP, 80), Try("c", "a", 0, TCP, 80), Try("x", "a", 1, UDP, 80)], 0.3)
    found = ask(node, "/policies", Overview)
    assert (found.node, found.planes, found.pods, found.isolated) == (
        "n1",
        ("nftables",),
        3,
        {"ingress": 1, "egress": 1},
    )
    rows = {row.name: row for row in found.policies}
    assert list(rows) == ["no-lone", "other", "out", "web"]
    assert [rows[name].pods for name in rows] == [3, 0, 1, 1]
    assert [rows[name].state for name in rows] == ["in use", "no pod here", "in use", "in use"]
    assert [rows[name].selects for name in rows] == [
        "all namespaces",
        "pods app=none",
        "pods app=web",
        "pods app=web",
    ]
    assert [(rows[name].tier, rows[name].priority) for name in rows] == [("admin", 7)] + [("network", -1)] * 3
    assert rows["web"].denied["ingress"].packets == 2
    assert rows["no-lone"].denied["ingress"].packets > 0
    assert rows["other"].denied["ingress"].packets == 0


def test_a_pods_page_has_its_policies_with_peers_counted_and_ports_named(node):
    node.only(
        *POLICIES, policy("shop/all", ingress=(rule(),), egress=(rule(Peer(namespaces=ALL), ports=[HTTP]),))
    )
    found = ask(node, "/policies", PodRules, pod="shop/a")
    assert (found.runs_on, found.addresses, found.exempt) == ("n1", PODS["a"], "")
    ingress, egress = found.sides
    assert [one.key for one in ingress.policies] == ["no-lone", "shop/all", "shop/web"]
    assert ingress.otherwise == egress.otherwise == "denied"
    assert ingress.programmed
    assert egress.programmed
    assert not ingress.closed
    peer = ingress.policies[2].rules[0].peers[0]
    assert (peer.text, peer.pods) == ("pods app=db of namespace shop", 1)
    assert ingress.policies[2].rules[0].ports == ("TCP 80",)
    assert egress.policies[0].rules[0].ports == ("TCP http (80 at 2 pods, 8080 at 3 pods)",)
    assert [peer.text for peer in egress.policies[1].rules[0].peers] == [
        "10.244.1.0/24 except 10.244.1.12/32", "fd00:244::/32",
    ]  # fmt: skip
    nobody = ask(node, "/policies", PodRules, pod="lone/c")
    assert [one.key for one in nobody.sides[0].policies] == ["no-lone"]
    assert nobody.sides[0].otherwise == "allowed"
    assert not nobody.sides[1].policies
    assert not nobody.sides[1].programmed


ENDS = [
    (one, other)
    for one in ("shop/a", "shop/b", "lone/c", "shop/x", "192.0.2.9", "node/n1")
    for other in ("a", "b", "shop/x")
    if one[-1] != other[-1]
]


def test_explain_agrees_with_the_kernel_as_long_as_nobody_touches_it(node):
    node.only(*POLICIES)
    told = set()
    for source, destination in ENDS:
        for protocol in ("TCP", "UDP", "icmp"):
            answer = explained(node, source, destination, protocol=protocol)
            for item in answer.connections:
                assert not item.differences, item
                if item.judges:
                    assert [check.by for check in item.checks] == ["compiled", "nftables in the kernel"]
                told.add(item.allowed)
            assert not answer.notes
    assert told == {True, False}


def test_explain_names_what_the_kernel_has_otherwise(node, spaces):
    node.only(*POLICIES)
    name = spaces.names["node"]
    run(name, f"nft delete element inet pycni_policy judged_ingress4 {{ {PODS['a'][0]} }}")
    run(name, f"nft delete element inet pycni_policy closed_ingress4 {{ {PODS['a'][0]} }}")
    answer = explained(node, "shop/x", "shop/a")
    four, six = answer.connections
    assert (four.allowed, six.allowed) == (False, False)
    assert four.differences == (
        "nftables in the kernel: allowed, expected ingress denied by NetworkPolicy shop/web",
    )
    assert not six.differences
    assert "nftables in the kernel: rows of judged_ingress4: 1 missing" in answer.notes
    run(name, "nft delete table inet pycni_policy")
    answer = explained(node, "shop/x", "shop/a")
    assert all(item.differences for item in answer.connections)
    assert "nftables in the kernel: the table is missing, or not as this version makes it" in answer.notes
    node.engine.sync(node.store.snapshot())
    assert not explained(node, "shop/x", "shop/a").notes


def test_explain_says_when_bridged_packets_are_not_seen(node, spaces):
    node.only(*POLICIES)
    run(spaces.names["node"], "sysctl -qw net.bridge.bridge-nf-call-ip6tables=0")
    try:
        (note,) = explained(node, "shop/x", "shop/a").notes
        assert note == "net.bridge.bridge-nf-call-ip6tables is off: what passes bridges is not judged"
    finally:
        run(spaces.names["node"], "sysctl -qw net.bridge.bridge-nf-call-ip6tables=1")


def test_a_service_is_explained_endpoint_by_endpoint(node):
    node.only(*POLICIES)
    port = ServicePortSpec(port=8000, target_port=80)
    service = Service(meta=Meta(name="web", namespace="shop"), cluster_ips=("10.96.0.7",), ports=(port,))
    ends = tuple(SliceEndpoint(address=pair[0]) for pair in (PODS["a"], REMOTE["x"]))
    piece = EndpointSlice(
        meta=Meta(name="web-1", namespace="shop"),
        service="shop/web",
        family=Family.V4,
        ports=(SlicePort(port=80),),
        endpoints=ends,
    )
    node.store.put(SERVICE, "shop/web", service)
    node.store.put(ENDPOINT_SLICE, "shop/web-1", piece)
    for text in ("web", "shop/web", "10.96.0.7"):
        found = explained(node, "shop/b", text, port="8000").connections
        assert [(item.destination.pod, item.port, item.through, item.allowed) for item in found] == [
            ("shop/a", 80, "Service shop/web port 8000", True),
            ("shop/x", 80, "Service shop/web port 8000", True),
        ]
        assert [item.judges for item in found] == [("egress", "ingress"), ("egress",)]


@pytest.mark.parametrize(
    ("path", "asked", "status", "text"),
    [
        ("/policies", {"pod": "shop/none"}, 404, "shop/none: not a pod that this agent knows of"),
        ("/policies/explain", {"source": "shop/a"}, 400, "destination: who?"),
        ("/policies/explain", {"source": "shop/a", "destination": "b", "port": "0"}, 400, "port '0': expected a number from 1 to 65535"),
        ("/policies/explain", {"source": "shop/a", "destination": "b"}, 400, "port: TCP needs one"),
        ("/policies/explain", {"source": "shop/a", "destination": "b", "port": "80", "protocol": "TPC"}, 400, "protocol 'TPC': expected TCP, UDP, SCTP, ICMP or a number below 256"),
        ("/policies/explain", {"source": "nobody", "destination": "b", "port": "80"}, 404, "nobody: not a pod, an address or a node that this agent knows of"),
        ("/policies/explain", {"source": "shop/a", "destination": "web", "port": "80"}, 404, "web: not a pod, a Service, an address or a node that this agent knows of"),
        ("/drops", {"pod": "shop/none"}, 404, "shop/none: not a pod that this agent knows of"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_said(node, path, asked, status, text):
    found = ask(node, path, **asked)
    assert (found.status, found.body) == (status, f"{text}\n")


# --- drops -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def listening(path, make):
    fd = namespaces.open_netns(path)
    try:
        reader = namespaces.run_in(fd, make)
    finally:
        os.close(fd)
    with contextlib.closing(reader):
        yield reader


def heard(reader, count, seconds=5.0):
    found, deadline = [], time.monotonic() + seconds
    while len(found) < count and (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            found += reader.read()
    return found


def test_a_denial_tells_who_whom_and_which_policy(node, spaces):
    node.only(*POLICIES, policy("shop/more", web(app="web"), ingress=()))
    with listening(spaces.path("node"), NftDrops) as reader:
        before = time.time()
        node.passes(
            [
                Try("x", "a", 0, UDP, 80),
                Try("x", "a", 1, UDP, 80),
                Try("c", "a", 0, UDP, 8080),
                Try("a", "y", 0, UDP, 80),
            ],
            0.3,
        )
        found = {
            (show(drop.source), show(drop.destination), drop.direction): drop for drop in heard(reader, 4)
        }
        assert reader.lost == 0
    assert len(found) == 4
    for family in (0, 1):
        drop = found[REMOTE["x"][family], PODS["a"][family], "ingress"]
        assert (drop.policy, drop.more, drop.by, drop.protocol, drop.port) == (
            "NetworkPolicy shop/more",
            1,
            "nftables",
            UDP,
            80,
        )
        assert drop.source_port > 1023
        assert before - 1 < drop.time < time.time() + 1
    assert found[PODS["c"][0], PODS["a"][0], "ingress"].policy == "ClusterNetworkPolicy no-lone"
    assert found[PODS["a"][0], REMOTE["y"][0], "egress"].policy == "NetworkPolicy shop/out"


def show(address):
    return str(ipaddress.ip_address(address))


GROUP = 191


@pytest.fixture
def talker():
    """A namespace that logs what it sends to UDP port 9, and a function that sends so many packets there."""
    name = f"pyt{os.getpid()}log"
    namespaces.create(name)
    try:
        for line in ("ip link set lo up", "nft add table inet t", "nft add chain inet t c { type filter hook output priority 0 ; }",
                     f'nft add rule inet t c udp dport 9 log prefix "pycni egress NetworkPolicy a/x: " group {GROUP}'):  # fmt: skip
            run(name, line)

        def send(count):
            with listening(
                namespaces.path(name), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            ) as sock:
                for _ in range(count):
                    with contextlib.suppress(ConnectionError):
                        sock.sendto(b"x", ("127.0.0.1", 9))

        yield namespaces.path(name), send
    finally:
        namespaces.delete(name)


def test_what_does_not_fit_is_counted_as_lost(talker):
    path, send = talker
    with listening(path, lambda: NflogSocket(GROUP, buffer=8192)) as reader:
        send(500)
        first = reader.read()
        assert 0 < len(first) < 500
        assert reader.lost >= 1, "the kernel has said that it ran out of room"
        send(1)
        assert len(heard(reader, 1)) == 1
        assert len(first) + 1 + reader.lost == 501
        send(3)
        assert len(heard(reader, 3)) == 3
        assert len(first) + 1 + reader.lost == 501


def test_a_group_has_one_listener(talker):
    path, _ = talker
    with (
        listening(path, lambda: NflogSocket(GROUP)),
        pytest.raises(
            KernelError,
            match=rf"listen to packet log group {GROUP}: EPERM \(another program listens to this group, or",
        ),
        listening(path, lambda: NflogSocket(GROUP)),
    ):
        pass
    with listening(path, lambda: NflogSocket(GROUP)):
        pass


def test_drops_are_streamed_with_the_names_of_pods_until_the_client_goes(node):
    node.only(*POLICIES)

    async def follow(query, count):
        answer = await node.routes.routes()["/drops"](query)
        stream = answer.stream()
        rows = [json.loads(await anext(stream))]
        await asyncio.to_thread(node.passes, [Try("x", "a", 0, UDP, 80), Try("a", "y", 0, UDP, 80)], 0.3)
        while len(rows) <= count:
            rows += map(json.loads, (await asyncio.wait_for(anext(stream), 5)).splitlines())
        await stream.aclose()
        return rows

    rows = asyncio.run(follow("", 2))
    assert rows[0] == {"node": "n1", "listening": True}
    assert {(row["source_pod"], row["destination_pod"], row["protocol"], row["direction"], row["policy"]) for row in rows[1:]} == {
        ("shop/x", "shop/a", "UDP", "ingress", "NetworkPolicy shop/web"),
        ("shop/a", "lone/y", "UDP", "egress", "NetworkPolicy shop/out"),
    }  # fmt: skip
    (_, only) = asyncio.run(follow("pod=lone/y", 1))
    assert only["destination_pod"] == "lone/y"
    with listening_here(node) as reader:
        assert reader.lost == 0, "nobody listens, so the group is free again"


@contextlib.contextmanager
def listening_here(node):
    with listening(node._spaces.path("node"), NftDrops) as reader:
        yield reader
