"""Services and pods on links of their own: translated, answered and hairpinned, from everywhere, beside a bridge too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import pytest

from pycni.model.attachment import AttachmentKind
from pycni.model.family import Family
from pycni.model.service import Frontend, FrontendKey, Kind, NodeFacts, Pool, PortName, Target
from pycni.reconcile.ledger import Ledger
from pycni_proxy.nft.compile import NftCompiler
from pycni_proxy.nft.driver import NftDriver
from tests.netns.podenv import PODNET, Env, Pod, connect, exchange, node, run, serving

NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
OUT = {4: "192.0.2.2", 6: "2001:db8::2"}
VIRTUAL = {4: "10.96.0.7", 6: "fd00:96::7"}
KINDS: dict[str, AttachmentKind] = {"ptp": AttachmentKind.PTP, "bridge": AttachmentKind.BRIDGE}
FACTS = NodeFacts(
    name="n1",
    addresses=tuple(ip_address(item).packed for item in NODE.values()),
    cluster_networks=PODNET.networks,
    service_networks=(ip_network("10.96.0.0/16"), ip_network("fd00:96::/112")),
    families=(Family.V4, Family.V6),
)


@pytest.fixture
def env(netns_factory: Callable[[], str]) -> Iterator[Env]:
    with node(netns_factory) as made:
        # As the agent has it: pods of a bridge answer each other by the node's translation.
        run("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
        yield made


def own(pod: Pod, family: int) -> str:
    return pod.v4() if family == 4 else pod.v6()


def frontends(backend: Pod) -> Iterator[Frontend]:
    for family in (4, 6):
        kind = Family.V4 if family == 4 else Family.V6
        for protocol, port in ((6, 8080), (17, 5353)):
            pool = Pool((Target(ip_address(own(backend, family)).packed, port, True),))
            for address, number, what in (
                (ip_address(VIRTUAL[family]).packed, 80, Kind.CLUSTER_IP),
                (b"", 30080, Kind.NODE_PORT),
            ):
                key = FrontendKey(kind, address, protocol, number)
                yield Frontend(key=key, kind=what, name=PortName("default", "web", ""), pool=pool)


@pytest.mark.parametrize(("server", "client"), [("ptp", "ptp"), ("ptp", "bridge"), ("bridge", "ptp")])
def test_a_service_is_reached_from_everywhere(env: Env, server: str, client: str):
    out = env.outside((4, 6))
    for family in (
        4,
        6,
    ):  # what the node itself sends to a virtual address needs some way before it is translated
        run(f"ip -{family} route add default via {OUT[family]}")
    backend = env.attach((4, 6), attachment=KINDS[server], hairpin_mode=True)
    other = env.attach((4, 6), attachment=KINDS[client])
    compiler, driver = NftCompiler(FACTS), NftDriver(FACTS)
    try:
        ledger = Ledger(compiler.tables, compiler.shared)
        ledger.put(compiler.common())
        ledger.put(compiler.rows(tuple(frontends(backend))))
        driver.apply(ledger.against(driver.read()))
        for family in (4, 6):
            with serving(backend, 8080, family=family) as sock:
                assert connect(other, VIRTUAL[family], 80, sock, wait=5) == own(other, family)
                assert connect(None, VIRTUAL[family], 80, sock, wait=5)
                assert connect(backend, VIRTUAL[family], 80, sock, wait=5), "itself behind the service"
                assert connect(out, NODE[family], 30080, sock, wait=5)
                assert connect(other, NODE[family], 30080, sock, wait=5)
                assert connect(None, NODE[family], 30080, sock, wait=5)
            with serving(backend, 5353, family=family, udp=True) as sock:
                assert exchange(other, VIRTUAL[family], 80, sock, wait=5) == own(other, family)
                assert exchange(out, NODE[family], 30080, sock, wait=5)
                assert exchange(backend, VIRTUAL[family], 80, sock, wait=5)
    finally:
        driver.close()
