"""The nftables data plane under real connections: how targets are chosen, remembered, and kept over restarts."""

from __future__ import annotations

import collections
import subprocess
import threading
import time

import msgspec
import pytest

from pycni.model.kube import TCP, UDP
from pycni.model.service import FrontendKey
from pycni_proxy import nft
from pycni_proxy.engine import Engine
from pycni_proxy.nft.driver import NftDriver
from pycni_proxy.nft.layout import frontend_bytes, shard_of
from tests.proxy.cases import VIP, eps, svc
from tests.proxy.dataplanes import plain
from tests.proxy.rig import FACTS, PATIENCE_S, Rig, Visit
from tests.proxy.traffic import Dial
from tests.unit.service_world import net, pack

SOURCES = {0: [f"192.0.2.{n}" for n in range(20, 80)], 1: [f"2001:db8:9::{n}" for n in range(20, 80)]}
EVERYBODY = ("a", "b", "x", "y")
BOTH = pytest.mark.parametrize("family", [0, 1], ids=["ipv4", "ipv6"])


@pytest.fixture(scope="module")
def node():
    with plain("nftables") as made:
        for family, length in ((0, 32), (1, 128)):
            lines = "".join(
                f"addr add {address}/{length} dev lo{' nodad' if family else ''}\n"
                for address in SOURCES[family]
            )
            command = ["ip", f"-{6 if family else 4}", "-n", made.spaces.names["out"], "-batch", "-"]
            subprocess.run(command, input=lines, text=True, check=True)
        yield made


def put(node: Rig, service, slices, facts=FACTS):
    services = {service.meta.key: service}
    node.apply(services, {item.meta.key: item for item in slices}, facts)


def ask(node: Rig, family: int, sources, protocol=TCP, address=None):
    """Who answers each source, in order; all at once."""
    path = node.spaces.netns_of("out")
    dials = [Dial(path, source, address or VIP[family], 80, protocol, PATIENCE_S) for source in sources]
    outcomes = node.traffic.dial(dials)
    assert {outcome.verdict for outcome in outcomes} == {"answer"}, outcomes
    return [outcome.name for outcome in outcomes]


@BOTH
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
def test_rr_takes_exact_turns(node, family, protocol):
    put(node, svc(annotations={"scheduler": "rr"}), eps(*EVERYBODY))
    names = [
        ask(node, family, ["192.0.2.9" if family == 0 else "2001:db8:9::9"], protocol)[0] for _ in range(12)
    ]
    assert names == names[:4] * 3
    assert sorted(names[:4]) == list(EVERYBODY)


@BOTH
def test_rr_services_do_not_disturb_each_others_turns(node, family):
    first = svc(annotations={"scheduler": "rr"})
    # They meet in one map of targets, so nothing but their chains keeps them apart.
    of_family, prefix = FACTS.families[family], ("10.96.0.", "fd00:96::")[family]
    alike = shard_of(frontend_bytes(FrontendKey(of_family, pack(VIP[family]), TCP, 80)))
    (other, *_) = (
        address
        for address in (f"{prefix}{number}" for number in range(20, 100))
        if shard_of(frontend_bytes(FrontendKey(of_family, pack(address), TCP, 80))) == alike
    )
    addresses = ((other, "fd00:96::20"), ("10.96.0.20", other))[family]
    second = svc("other", annotations={"scheduler": "rr"}, cluster_ips=addresses)
    slices = {item.meta.key: item for item in (*eps("a", "b"), *eps("a", "b", name="other"))}
    node.apply({item.meta.key: item for item in (first, second)}, slices)
    turns = [VIP[family], other] * 4
    names = [ask(node, family, [SOURCES[family][0]], address=address)[0] for address in turns]
    for seen in (names[::2], names[1::2]):
        assert seen == seen[:2] * 2
        assert set(seen) == {"a", "b"}


@BOTH
def test_sh_sends_a_source_to_one_endpoint_also_in_the_next_life(node, family):
    put(node, svc(annotations={"scheduler": "sh"}), eps(*EVERYBODY))
    first = ask(node, family, SOURCES[family])
    assert ask(node, family, SOURCES[family]) == first
    assert len(set(first)) == 4
    node.close()
    put(node, svc(annotations={"scheduler": "sh"}), eps(*EVERYBODY))
    assert ask(node, family, SOURCES[family]) == first


@BOTH
def test_sh_by_port_spreads_one_source(node, family):
    put(node, svc(annotations={"scheduler": "sh", "schedflags": "flag-2"}), eps(*EVERYBODY))
    assert set(ask(node, family, [SOURCES[family][0]] * 60)) == set(EVERYBODY)


@BOTH
def test_dh_sends_a_destination_to_one_endpoint(node, family):
    put(node, svc(annotations={"scheduler": "dh"}), eps(*EVERYBODY))
    assert len(set(ask(node, family, SOURCES[family]))) == 1


@BOTH
def test_mh_moves_only_the_flows_of_the_endpoint_that_goes(node, family):
    put(node, svc(annotations={"scheduler": "mh"}), eps(*EVERYBODY))
    before = ask(node, family, SOURCES[family])
    print("mh:", collections.Counter(before))
    assert set(before) == set(EVERYBODY)
    put(node, svc(annotations={"scheduler": "mh"}), eps("a", "b", "x"))
    after = ask(node, family, SOURCES[family])
    moved = {was for was, now in zip(before, after, strict=True) if was != now}
    assert moved == {"y"}
    assert before.count("y") <= 2 * len(before) / 4
    put(node, svc(annotations={"scheduler": "mh"}), eps(*EVERYBODY))
    assert ask(node, family, SOURCES[family]) == before


@BOTH
def test_by_default_everybody_gets_a_share(node, family):
    put(node, svc(), eps(*EVERYBODY))
    shares = collections.Counter(ask(node, family, SOURCES[family] * 4))
    print("random:", shares)
    assert set(shares) == set(EVERYBODY)
    assert min(shares.values()) > 240 / 4 / 3


@BOTH
@pytest.mark.parametrize("scheduler", ["", "rr", "dh", "mh"])
def test_affinity_keeps_a_client_where_it_was(node, family, scheduler):
    node.close()  # what earlier tests left remembered goes with the table
    put(node, svc(affinity_s=600, annotations={"scheduler": scheduler} if scheduler else {}), eps(*EVERYBODY))
    first = ask(node, family, SOURCES[family])
    assert len(set(first)) == (1 if scheduler == "dh" else 4)
    for _ in range(2):
        assert ask(node, family, SOURCES[family]) == first


def test_affinity_lasts_its_time_after_the_last_use(node):
    put(node, svc(affinity_s=3), eps(*EVERYBODY))
    first = ask(node, 0, SOURCES[0])
    for _ in range(4):
        time.sleep(1.2)
        assert ask(node, 0, SOURCES[0]) == first, "each use starts the time anew"
    time.sleep(4.5)
    assert ask(node, 0, SOURCES[0]) != first


@BOTH
def test_a_client_of_an_endpoint_that_goes_finds_another_one_and_stays_there(node, family):
    put(node, svc(affinity_s=600), eps(*EVERYBODY))
    first = ask(node, family, SOURCES[family])
    put(node, svc(affinity_s=600), eps("a", "b", "x"))
    second = ask(node, family, SOURCES[family])
    moved = [(was, now) for was, now in zip(first, second, strict=True) if was != now]
    assert {was for was, _ in moved} == {"y"}
    put(node, svc(affinity_s=600), eps(*EVERYBODY))
    assert ask(node, family, SOURCES[family]) == second, "who comes back is nobody's any more"


@BOTH
def test_a_full_memory_serves_without_it(node, family, monkeypatch):
    monkeypatch.setattr("pycni_proxy.nft.layout.AFFINITY_SIZE", 8)
    monkeypatch.setattr("pycni_proxy.nft.layout.LAYOUT", "small")
    node.close()
    put(node, svc(affinity_s=600), eps(*EVERYBODY))
    assert set(ask(node, family, SOURCES[family])) == set(EVERYBODY)
    monkeypatch.undo()
    node.close()


def restarted(node: Rig, facts=FACTS):
    """A full pass of an agent of the next life; what it had to change."""

    def pass_once():
        plane = nft.make(facts)
        try:
            result = Engine(facts, [plane]).sync(node._store.snapshot())
            assert plane.driver.read() != {}
            return result.operations
        finally:
            plane.driver.close()

    return node.inside(pass_once)


@BOTH
def test_a_restarted_agent_adopts_under_open_connections_and_affinity(node, family):
    put(node, svc(affinity_s=600), eps(*EVERYBODY))
    first = ask(node, family, SOURCES[family])
    held = node.hold([Visit("c", VIP[family], 80, TCP), Visit("out", VIP[family], 80, TCP)])
    assert {outcome.verdict for outcome, _ in held} == {"answer"}
    assert restarted(node) == 0
    again = node.traffic.ask([number for _, number in held])
    assert [outcome.name for outcome in again] == [outcome.name for outcome, _ in held]
    assert ask(node, family, SOURCES[family]) == first
    node.traffic.drop([number for _, number in held])


@BOTH
def test_other_facts_cost_no_connection_and_no_memory(node, family):
    put(node, svc(affinity_s=600), eps(*EVERYBODY))
    first = ask(node, family, SOURCES[family])
    held = node.hold([Visit("c", VIP[family], 80, TCP)])
    facts = msgspec.structs.replace(FACTS, service_networks=(net("10.96.0.0/15"), net("fd00:96::/111")))
    assert restarted(node, facts) > 0
    assert [outcome.name for outcome in node.traffic.ask([held[0][1]])] == [held[0][0].name]
    assert ask(node, family, SOURCES[family]) == first
    node.traffic.drop([held[0][1]])
    assert restarted(node) > 0


@BOTH
def test_connections_are_counted_by_frontend(node, family):
    put(node, svc(), eps("a", "b"))
    key = FrontendKey(FACTS.families[family], pack(VIP[family]), TCP, 80)

    def counted():
        return node.inside(lambda: node.engine.planes[0].driver.counters()[key].connections)

    before = counted()
    held = node.hold([Visit("c", VIP[family], 80, TCP)] * 7)
    node.traffic.ask([number for _, number in held])
    assert counted() == before + 7
    put(node, svc(), eps("x", "b"))
    assert counted() == before + 7, "other endpoints are no new frontend"
    node.traffic.drop([number for _, number in held])


def test_no_connection_fails_while_endpoints_are_replaced(node):
    """New connections only; those to an endpoint that goes are its own to end."""
    done = threading.Event()
    errors: list[BaseException] = []
    sets = [("a", "b"), ("b", "x"), ("x", "y"), ("y", "a", "b"), ("x",)]
    put(node, svc(annotations={"scheduler": "rr"}), eps("a"))

    def replace():
        try:
            for number in range(100):
                annotations = {"scheduler": ("rr", "mh", "lc")[number // 10 % 3]}
                put(
                    node,
                    svc(annotations=annotations, affinity_s=number // 20 % 2 * 60),
                    eps(*sets[number % 5]),
                )
        except BaseException as exc:
            errors.append(exc)
        finally:
            done.set()

    thread = threading.Thread(target=replace)
    thread.start()
    rounds = 0
    while not done.is_set() or not rounds:
        ask(node, rounds % 2, SOURCES[rounds % 2], (TCP, UDP)[rounds // 2 % 2])
        rounds += 1
    thread.join()
    assert not errors
    assert node.differences() == []


def test_what_is_there_of_a_removed_service_is_nothing(node):
    put(node, svc(), eps("a"))
    node.apply({}, {})
    assert node.differences() == []
    driver = node.engine.planes[0].driver
    wait_s = node.inside(driver.poll)
    assert wait_s is not None, "kept for packets under way"
    while wait_s is not None:
        time.sleep(wait_s)
        wait_s = node.inside(driver.poll)
    fresh = node.inside(lambda: NftDriver(node.facts))
    try:
        tables = node.inside(fresh.read)
    finally:
        fresh.close()
    assert [name for name, rows in tables.items() if rows] == ["table"]
