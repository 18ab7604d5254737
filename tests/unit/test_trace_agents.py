"""What agents tell each other for a trace: codecs, what a question is about, clocks, who may ask, who is silent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from pycni.agent import trace_service
from pycni.agent.settings_file import load
from pycni.agent.trace_auth import BAD_S, CERT, GOOD_S, TOKEN, Guard, Review, certificate_names
from pycni.agent.trace_service import Bucket, TraceService
from pycni.agent.trace_state import Known
from pycni.agent.trace_watch import Places, RefusedError, Running
from pycni.backends.masq import Masquerade
from pycni.cli_trace_eyes import NobodyError, eyes
from pycni.errors import ConfigError, StoreError
from pycni.kernel.capture import Frame
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NAMESPACE,
    POD,
    SERVICE,
    EndpointSlice,
    KubeNode,
    Meta,
    Namespace,
    Pod,
    Service,
    ServicePortSpec,
    SliceEndpoint,
)
from pycni.model.kube import (
    NODE as NODE_KIND,
)
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Expression,
    IpBlock,
    NetworkPolicy,
    Operator,
    PortRange,
    Rule,
    Selector,
    Tier,
)
from pycni.model.policy import (
    Peer as PolicyPeer,
)
from pycni.model.service import IpvsOptions, NodeFacts
from pycni.model.space import NODE, LinkState, NodePart, PodPlace, SpaceState
from pycni.store import Store
from pycni.trace import clocks, pick
from pycni.trace.cluster import NodeTerms
from pycni.trace.frames import Dissected
from pycni.trace.match import Seen
from pycni.trace.model import Flow
from pycni.tracing import speech
from pycni.tracing.ask import AskError, Door
from pycni.tracing.cluster import ClusterEyes, Far, Picked, concerned
from pycni.tracing.eyes import Order, Report
from pycni.tracing.speech import Peer
from pycni.wire import plain
from tests.unit.trace_fakes import FakeNode

NETS = tuple(ip_network(text) for text in ("10.244.0.0/16", "fd00:10:244::/48"))
TERMS = NodeTerms(
    NodeFacts(
        name="n1",
        addresses=(b"\x0a\0\0\1", ip_address("fd00::1").packed),
        cluster_networks=NETS,
        families=(Family.V4, Family.V6),
        ipvs=IpvsOptions(excluded=(NETS[1],), graceful_s=3),
    ),
    policies=True,
    masquerades=(Masquerade(cluster=NETS[0], own=ip_network("10.244.7.0/24"), exclude=NETS),),
)
SELECTOR = Selector(labels=(("a", "b"),), expressions=(Expression(key="k", operator=Operator.EXISTS),))
OBJECTS: Mapping[str, Mapping[str, Any]] = {
    SERVICE: {
        "shop/web": Service(
            meta=Meta(name="web", namespace="shop"),
            cluster_ips=("10.96.0.20",),
            ports=(ServicePortSpec(port=80, target_port="http", node_port=30080),),
        ),
        "shop/other": Service(meta=Meta(name="other", namespace="shop"), cluster_ips=("10.96.0.21",)),
    },
    ENDPOINT_SLICE: {
        "shop/web-1": EndpointSlice(
            meta=Meta(name="web-1", namespace="shop"),
            service="shop/web",
            family=Family.V4,
            endpoints=(SliceEndpoint(address="10.244.2.9"),),
        )
    },
    POD: {
        "shop/web-x": Pod(meta=Meta(name="web-x", namespace="shop"), node="n2", ips=("10.244.2.9",)),
        "default/a": Pod(meta=Meta(name="a", namespace="default"), node="n1", ips=("10.244.1.5",)),
        "far/b": Pod(meta=Meta(name="b", namespace="far"), node="n3", ips=("10.244.3.5",)),
    },
    NAMESPACE: {name: Namespace(meta=Meta(name=name)) for name in ("shop", "default", "far")},
    NETWORK_POLICY: {
        "shop/p": NetworkPolicy(
            meta=Meta(name="p", namespace="shop"),
            pods=SELECTOR,
            ingress=(
                Rule(
                    peers=(
                        PolicyPeer(block=IpBlock(cidr=NETS[1], excluded=(ip_network("fd00:10:244::/64"),))),
                        PolicyPeer(pods=SELECTOR),
                    ),
                    ports=(PortRange(first=80, last=81),),
                ),
            ),
        ),
        "far/q": NetworkPolicy(meta=Meta(name="q", namespace="far")),
    },
    CLUSTER_NETWORK_POLICY: {
        "c": ClusterNetworkPolicy(
            meta=Meta(name="c"),
            tier=Tier.BASELINE,
            priority=7,
            ingress=(ClusterRule(action=Action.DENY, peers=(PolicyPeer(block=IpBlock(cidr=NETS[0])),)),),
        )
    },
    NODE_KIND: {"n1": KubeNode(meta=Meta(name="n1"), internal_ips=("10.0.0.1",))},
}
PART = NodePart(
    name="n1",
    addresses=(b"\x0a\0\0\1",),
    actual={NODE: SpaceState(links={"eth0": LinkState(name="eth0", mac=b"abcdef")})},
    pods=(PodPlace(name="default/a", node="n1", addresses=(b"\x0a\xf4\1\5",)),),
)


class Held:
    def __init__(self, objects: Mapping[str, Mapping[str, Any]] = OBJECTS) -> None:
        self._objects = objects

    def of(self, kind: str) -> Mapping[str, Any]:
        return self._objects.get(kind, {})


# --- codecs ---------------------------------------------------------------------------------------------------------


def test_what_a_node_tells_arrives_as_it_was() -> None:
    part, terms, objects = speech.read_told(speech.told(PART, TERMS, OBJECTS, 3))
    assert (part, terms) == (PART, TERMS)
    assert objects == {kind: dict(items) for kind, items in OBJECTS.items()}


WRONG = {
    "no JSON": (b"{", "no JSON"),
    "a text for a number": (b'{"facts":{"name":3}}', "facts.name"),
    "a network that is none": (
        b'{"facts":{"name":"x","cluster_networks":["10.0.0.0/40"]}}',
        "cluster_networks",
    ),
    "no base64": (b'{"facts":{"name":"x","addresses":["?"]}}', "facts.addresses"),
    "a list for an object": (b'{"facts":[]}', "facts"),
    "an unknown number": (b'{"facts":{"name":"x","families":[77]}}', "families"),
    "a pair of three": (b'{"facts":{"name":"x","node_ports":[1,2,3]}}', "node_ports"),
}


@pytest.mark.parametrize(("raw", "said"), WRONG.values(), ids=WRONG)
def test_what_is_not_as_it_should_be_is_named(raw: bytes, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plain.decode(raw, NodeTerms)


def test_deep_nesting_is_refused_and_kinds_nobody_knows_are_left_out() -> None:
    with pytest.raises(ConfigError):
        speech.read_objects(b"[" * 100_000)
    assert speech.read_objects(b'{"Gadget": {"a/b": {"x": 1}}}') == {}


# --- what a question is about ---------------------------------------------------------------------------------------

ABOUT = {
    "pod to service": (("a", "shop/web:80"), {"shop/web"}, {"default/a", "shop/web-x"}, {"shop/p"}),
    "by address": (("10.244.1.5", "10.96.0.20"), {"shop/web"}, {"default/a", "shop/web-x"}, {"shop/p"}),
    "by node port": (("n1", "10.0.0.2:30080"), {"shop/web"}, {"shop/web-x"}, {"shop/p"}),
    "names in other orders": (
        ("a.default", "svc/web"),
        {"shop/web"},
        {"default/a", "shop/web-x"},
        {"shop/p"},
    ),
    "pod to pod": (("pod/a", "far/b:80"), set(), {"default/a", "far/b"}, {"far/q"}),
    "six": (("[fd00::1]:80", "fd00::2"), set(), set(), set()),
}


@pytest.mark.parametrize(("words", "services", "pods", "policies"), ABOUT.values(), ids=ABOUT)
def test_only_what_a_question_is_about_is_told(
    words: tuple[str, str], services: set[str], pods: set[str], policies: set[str]
) -> None:
    found = pick.pick(Held(), pick.ends(words))
    assert set(found[SERVICE]) == services
    assert set(found[ENDPOINT_SLICE]) == ({"shop/web-1"} if services else set())
    assert set(found[POD]) == pods
    assert set(found[NETWORK_POLICY]) == policies
    assert set(found[NAMESPACE]) == {name.partition("/")[0] for name in pods}
    assert set(found[CLUSTER_NETWORK_POLICY]) == ({"c"} if pods else set())


def test_of_a_large_cluster_the_nodes_concerned_are_asked_and_all_when_that_cannot_be_told() -> None:
    peers = [
        Peer(name=f"10.0.0.{n}", addresses=(f"10.0.0.{n}",), subnets=(f"10.244.{n}.0/24",))
        for n in range(1, 40)
    ]

    def asked(*words: str) -> set[str] | None:
        found = concerned(peers, pick.ends(words), Picked([pick.pick(Held(), pick.ends(words))]))
        return None if found is None else {peer.name for peer in found}

    assert asked("a", "shop/web:80") == {"10.0.0.1", "10.0.0.2"}
    assert asked("10.244.7.3", "10.0.0.9") == {"10.0.0.7", "10.0.0.9"}
    assert asked("a", "somebody-unknown") is None


# --- clocks ---------------------------------------------------------------------------------------------------------

FLOW = Flow(protocol=1, source=b"\x0a\0\0\1", destination=b"\x0a\0\0\2")


def seen(node: str, when: int, kind: str, *, out: bool) -> Seen:
    return Seen(node, NODE, "eth0", out, when, 60, Dissected(FLOW, kind, 0))


WAY = (
    ("a", 1_000, "probe", True),
    ("b", 5_000, "probe", False),
    ("b", 9_000, "answer", True),
    ("a", 13_000, "answer", False),
)


@pytest.mark.parametrize("ahead", [-(10**12), -3_000_000, 0, 40, 10**15])
def test_other_clocks_are_put_on_the_askers(ahead: int) -> None:
    told = [seen(node, when + (ahead if node == "b" else 0), kind, out=out) for node, when, kind, out in WAY]
    found = clocks.align(told, "a", {"b"})
    assert [(item.node, item.time_ns) for item in found] == [(node, when) for node, when, _, _ in WAY]


def test_without_an_answer_causes_only_come_before_their_effects() -> None:
    early = [seen("a", 1_000, "probe", out=True), seen("b", 400, "probe", out=False)]
    assert [item.time_ns for item in clocks.align(early, "a", {"b"})] == [1_000, 1_000]
    late = [seen("a", 1_000, "probe", out=True), seen("b", 9_400, "probe", out=False)]
    assert [item.time_ns for item in clocks.align(late, "a", {"b"})] == [1_000, 9_400]
    assert clocks.offsets(late[1:], "a", {"b"}) == {}, "nothing to compare with"


# --- who may ask ----------------------------------------------------------------------------------------------------


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_answers_about_tokens_are_kept_shortly_and_questions_are_few() -> None:
    asked: list[str] = []

    def review(token: str) -> Review:
        asked.append(token)
        return Review("node", token == "good")

    clock = Clock()
    guard = Guard({TOKEN}, review=review, clock=clock)
    for _ in range(50):
        assert guard.judge(None, "Bearer good").status == 200
        assert guard.judge(None, "Bearer other").status == 403
    assert asked == ["good", "other"]
    clock.now += (GOOD_S + BAD_S) / 2
    assert (guard.judge(None, "Bearer good").status, guard.judge(None, "Bearer other").status) == (200, 403)
    assert asked == ["good", "other", "other"]
    statuses = [guard.judge(None, f"Bearer guess{n}").status for n in range(100)]
    assert statuses.count(503) >= 70, "the cluster is not asked for every guess"
    assert guard.judge(None, "Bearer good").status == 200, "who is known is not kept waiting"


def test_a_cluster_that_gives_no_answer_lets_nobody_in_and_says_so() -> None:
    def review(_token: str) -> Review:
        raise StoreError("no connection within 5 s")

    found = Guard({TOKEN}, review=review).judge(None, "Bearer x")
    assert (found.status, "no connection within 5 s" in found.reason) == (503, True)


@pytest.mark.parametrize(
    ("ways", "certificate", "status"),
    [
        ({CERT}, {"subject": ((("commonName", "n1"),),)}, 200),
        ({CERT}, {}, 401),
        ({CERT}, None, 401),
        ({TOKEN}, {"subject": ((("commonName", "n1"),),)}, 401),
    ],
)
def test_a_certificate_counts_where_it_is_a_way(
    ways: set[str], certificate: Mapping[str, Any] | None, status: int
) -> None:
    assert Guard(ways, review=lambda _token: Review("")).judge(certificate, "").status == status


def test_names_of_a_certificate_are_its_common_and_alternative_ones() -> None:
    found = certificate_names(
        {
            "subject": ((("organizationName", "x"),), (("commonName", "n1"),)),
            "subjectAltName": (("DNS", "n1"), ("DNS", "n1.example"), ("IP Address", "10.0.0.1")),
        }
    )
    assert found == ["n1", "n1.example"]


def test_a_bucket_is_empty_after_a_burst_and_fills_slowly() -> None:
    clock = Clock()
    bucket = Bucket(3, 2.0, clock)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    clock.now += 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]


# --- probes ---------------------------------------------------------------------------------------------------------

OWN = b"\x7f\0\0\1"


def probe(**changes: Any) -> bytes:
    flow = {
        "protocol": 17,
        "source": OWN,
        "destination": b"\x7f\0\0\2",
        "source_port": 9,
        "destination_port": 9,
    }
    fields = {name: changes.pop(name) for name in list(changes) if name in flow}
    return msgspec.json.encode({"space": "", "flow": {**flow, **fields}, "token": 5, **changes})


PROBES = {
    "no JSON": (b"{", 400, "not understood"),
    "another protocol": (probe(protocol=47), 400, "not of protocol 47"),
    "two families": (probe(destination=bytes(15) + b"\1"), 400, "one family"),
    "ICMPv6 over IPv4": (probe(protocol=58), 400, "ICMP goes with IPv4"),
    "a foreign source": (probe(source=b"\x0a\0\0\x63"), 403, "no address of where the probe is to start"),
    "everybody": (probe(destination=b"\xff" * 4), 400, "nobody in particular"),
    "a group": (probe(destination=b"\xe0\0\0\1"), 400, "nobody in particular"),
    "a port of 17 bits": (probe(destination_port=65536), 400, "16 bits"),
    "a token of 33 bits": (probe(token=1 << 32), 400, "32 bits"),
    "a giant": (probe(size=70000), 400, "65535"),
    "nobody's pod": (probe(space="a/b"), 404, "no pod 'a/b'"),
}


def known() -> Known:
    return Known(load([], {}, "n1").settings, Store().snapshot())


@pytest.mark.parametrize(("raw", "status", "said"), PROBES.values(), ids=PROBES)
def test_a_probe_is_a_first_packet_of_ones_own_and_nothing_else(
    raw: bytes, status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_service, "_addresses", lambda: {OWN})

    async def main() -> RefusedError:
        service = TraceService(known, lambda: speech.Peers(node="n1"))
        try:
            with pytest.raises(RefusedError, match=said) as caught:
                service.send(known(), raw)
            return caught.value
        finally:
            service.close()

    assert asyncio.run(main()).status == status


def test_probes_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_service, "_addresses", lambda: {OWN})
    sent: list[Flow] = []

    class Node:
        def send(self, _space: str, flow: Flow, _token: int) -> Flow:
            sent.append(flow)
            return flow

    monkeypatch.setattr(trace_service, "_node", lambda _known, _pods: Node())

    async def main() -> None:
        service = TraceService(known, lambda: speech.Peers(node="n1"), Clock())
        try:
            for _ in range(trace_service.PROBES_AT_ONCE):
                service.send(known(), probe())
            with pytest.raises(RefusedError, match="more than 10 probes") as caught:
                service.send(known(), probe())
            assert caught.value.status == 429
        finally:
            service.close()

    asyncio.run(main())
    assert len(sent) == trace_service.PROBES_AT_ONCE


def test_of_live_traffic_headers_are_told_and_of_probes_everything() -> None:
    frame = Frame("n1", "", "eth0", True, 1, bytes(range(250)), True)
    for keep, expected in ((0, frame.data), (100, frame.data[:100] + bytes(150)), (500, frame.data)):
        node = FakeNode()
        running = Running(Places(), node, speech.Watch(order=Order(token=1, flow=FLOW)), keep)  # type: ignore[arg-type]
        try:
            assert speech.read(running.step() or b"", speech.Line).ready
            node.watches[0].put(Report((frame,)))
            raw = b""
            while not raw:
                raw = running.step() or b""
            assert [item.data for item in speech.read(raw, speech.Line).frames] == [expected]
        finally:
            running.close()


@pytest.mark.parametrize("bits", [0, 15, 33])
def test_a_watch_is_for_few_packets(bits: int) -> None:
    async def main() -> None:
        service = TraceService(known, lambda: speech.Peers(node="n1"))
        try:
            order = Order(token=1, flow=FLOW, bits=bits)
            with pytest.raises(RefusedError, match="16 to 32 bits"):
                service.watch(known(), msgspec.json.encode(speech.Watch(order=order)))
        finally:
            service.close()

    asyncio.run(main())


# --- the cluster ----------------------------------------------------------------------------------------------------


class Answering(Door):
    def __init__(self, name: str, answer: bytes | None) -> None:
        super().__init__(name, self._never)
        self._answer = answer

    @staticmethod
    def _never(_timeout_s: float) -> socket.socket:
        raise OSError(111, "Connection refused")

    def get(self, target: str) -> bytes:
        if self._answer is None:
            return super().get(target)
        return self._answer


def told(name: str, objects: Mapping[str, Mapping[str, Any]]) -> bytes:
    return speech.told(msgspec.structs.replace(PART, name=name, pods=()), TERMS, objects, 0)


def fars(*answers: tuple[str, bytes | None]) -> Sequence[Far]:
    return [
        Far(
            Peer(name=f"10.0.0.{n}", addresses=(f"10.0.0.{n}",), subnets=(f"10.244.{n}.0/24",)),
            Answering(name, answer),
        )
        for n, (name, answer) in enumerate(answers, 1)
    ]


def test_a_silent_node_is_told_with_where_it_is_and_who_is_on_it() -> None:
    found = ClusterEyes(fars(("n1", told("n1", OBJECTS)), ("n2", None)), ("a", "web-x"))
    known = found.gather()
    assert known.world.silent == {"10.0.0.2": "n2 does not answer: Connection refused"}
    assert known.world.nodes["10.0.0.2"].addresses == (b"\x0a\0\0\2",)
    assert known.world.pods["shop/web-x"].node == "10.0.0.2"
    assert set(found.nodes) == set(known.terms) == {"n1"}


def test_an_answer_that_makes_no_sense_is_silence_and_nobody_at_all_an_error() -> None:
    found = ClusterEyes(fars(("n1", told("n1", {})), ("n2", b'{"part": 3}')), ("a", "b")).gather()
    assert list(found.world.silent) == ["10.0.0.2"]
    with pytest.raises(AskError, match="n1 does not answer: Connection refused"):
        ClusterEyes(fars(("n1", None)), ("a", "b")).gather()


def test_who_is_nowhere_is_told_what_to_do(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    from pycni import cli_trace_eyes

    monkeypatch.setattr(cli_trace_eyes, "_LABS", str(tmp_path))
    args = argparse.Namespace(name="", by_agents=False, socket=str(tmp_path / "no.sock"))
    with pytest.raises(NobodyError, match="name a lab with --name") as caught:
        eyes(args, ("a", "b"))
    assert caught.value.usage
    (tmp_path / "no.sock").touch()
    args.by_agents = True
    with pytest.raises(NobodyError, match="--by-agents goes with --name LAB"):
        eyes(args, ("a", "b"))
