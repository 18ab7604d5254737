"""The nftables data plane's table in the kernel: what it says, how it is read back, changed, replaced and removed."""

from __future__ import annotations

import os
import re
import subprocess

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.model.service import Kind, Verdict
from pycni.reconcile.ledger import Ledger
from pycni_proxy import nft
from pycni_proxy.nft.compile import NftCompiler
from pycni_proxy.nft.driver import NftDriver
from pycni_proxy.nft.layout import CHAINS, SHARDS, TARGETS, affinity_map, frontend_bytes, shard_of
from tests.netns.fabric_nodes import run
from tests.unit.nft_world import EVERY_SHAPE, FACTS, V4, V6, asking, frontend
from tests.unit.service_world import net


@pytest.fixture
def inside(netns):
    fd = namespaces.open_netns(namespaces.path(netns))
    yield lambda fn: namespaces.run_in(fd, fn)
    os.close(fd)


class Node:
    """A compiler, its ledger and a driver."""

    def __init__(self, inside, facts=FACTS):
        self.compiler = NftCompiler(facts)
        self.driver = inside(lambda: NftDriver(facts))
        self.ledger = Ledger(self.compiler.tables, self.compiler.shared)
        self.ledger.put(self.compiler.common())
        self.services = {}

    def put(self, key, *frontends):
        self.ledger.drop(self.compiler.rows(self.services.pop(key, ())))
        if frontends:
            self.services[key] = frontends
            self.ledger.put(self.compiler.rows(frontends))

    def take(self):
        self.driver.apply(self.ledger.take())

    def adopt(self):
        """A full pass; returns how many rows differed."""
        changes = self.ledger.against(self.driver.read())
        self.driver.apply(changes)
        return sum(delta.size for _, delta in changes)

    def close(self):
        self.driver.close()


@pytest.fixture
def node(inside):
    made = Node(inside)
    yield made
    made.close()


@pytest.fixture
def full(node):
    for name, one in EVERY_SHAPE.items():
        node.put(name, one)
    node.adopt()
    return node


def test_this_kernel_lacks_nothing_and_asking_changes_nothing(netns, inside):
    assert inside(nft.missing) == ""
    assert run(netns, "nft list ruleset") == ""


def test_asking_beside_a_working_table_leaves_it_alone(full, inside):
    before = full.driver.read()
    assert inside(nft.missing) == ""
    assert full.driver.read() == before


def test_every_row_reads_back(full):
    assert full.driver.read() == full.ledger.tables
    assert full.adopt() == 0


def listing(netns):
    """Chains as nft lists them: name -> lines; without our comments and what text needs and instructions do not."""
    chains = {}
    for line in run(netns, "nft -s list table inet pycni_proxy").splitlines():
        text = line.strip()
        if text.startswith("chain "):
            rules = chains[text.split()[1]] = []
        elif text.startswith(("set ", "map ", "table ")):
            rules = []
        elif text not in {"", "}"}:
            text = re.sub(r' comment "[^"]*"$', "", text)
            rules.append(
                text.removeprefix("meta l4proto { 6, 17, 132 } ").removeprefix(
                    "meta l4proto { tcp, udp, sctp } "
                )
            )
    return chains


def test_the_rules_are_what_nft_makes_of_the_text(full, netns, netns_factory):
    """Everything nft 1.0.6 has words for: not reading a map inside a key, which only services with affinity need."""
    some = {name: one for name, one in EVERY_SHAPE.items() if not one.options.affinity_s}
    tables = {name: {} for name in full.compiler.tables} | full.compiler.rows(tuple(some.values()))
    other = netns_factory()
    text = "\n".join(full.compiler.text(tables)) + "\n"
    subprocess.run([*namespaces.exec_prefix(other), "nft", "-f", "-"], input=text, text=True, check=True)
    ours, theirs = listing(netns), listing(other)
    compared = 0
    for name, rules in theirs.items():
        if name.startswith("services"):
            # A frontend's verdict takes two steps in the kernel and one in the text.
            assert [line for line in ours[name] if "vmap" not in line] == [
                line for line in rules if "vmap" not in line
            ]
        else:
            assert ours[name] == rules, name
        compared += len(rules)
    assert compared > 50
    for name in (
        "hairpin4",
        "cluster_ips6",
        "cluster4",
        "cluster6",
        "node_ports4",
        "node_ports6",
        "service_networks6",
    ):
        assert set() < elements(other, name) <= elements(netns, name), name
    assert len(elements(netns, "services4")) == sum(one.key.family is V4 for one in EVERY_SHAPE.values())


def elements(netns, name):
    kind = "map" if name.startswith("services") else "set"
    text = " ".join(run(netns, f"nft list {kind} inet pycni_proxy {name}").split())
    found = re.search(r"elements = \{ (.*?) \}", text)
    return set(found.group(1).split(", ")) if found else set()


def test_rules_of_affinity_are_listed_without_a_crash(full, netns):
    chains = listing(netns)
    lines = chains[sharded("cluster4-vip-random-3-60s", EVERY_SHAPE["affinity"])]
    assert "update @affinity4 { ip daddr . meta l4proto . th dport . ip saddr timeout 1m" in lines[1]
    assert lines[2].startswith("delete @affinity4 { ip daddr . meta l4proto . th dport . ip saddr")
    assert "numgen random mod 3" in lines[3]
    assert run(netns, "nft -j list ruleset").startswith("{")


def sharded(name, one):
    """A chain's name with the letter of the frontend's map of targets."""
    return name.replace("-", SHARDS[shard_of(frontend_bytes(one.key))] + "-", 1)


def test_what_people_read_names_what_it_is(full, netns):
    one = EVERY_SHAPE["cluster ip"]
    text = run(netns, f"nft list chain inet pycni_proxy {sharded('cluster4-vip-random-5', one)}")
    assert f'comment "dnat 4 {SHARDS[shard_of(frontend_bytes(one.key))]} vip random 5 0"' in text


def test_a_service_that_goes_takes_its_rows_along(full):
    for name in EVERY_SHAPE:
        full.put(name)
    full.take()
    found = full.driver.read()
    assert {name: rows for name, rows in found.items() if rows} == full.compiler.common()


def test_a_refused_change_changes_nothing(full):
    before = full.driver.read()
    full.ledger.tables["services4"][bytes(12)] = bytes(12)
    full.put("new", frontend("10.96.0.99", 1, 2, 3, 4, 5, 6, 7))
    changes = [*full.ledger.take()]
    name, delta = next(item for item in changes if item[0] == "services4")
    delta.remove[bytes(12)] = b""
    with pytest.raises(KernelError, match="ENOENT"):
        full.driver.apply(changes)
    assert full.driver.read() == before
    assert name


@pytest.mark.parametrize(
    "damage",
    [
        "flush ruleset",
        "delete element inet pycni_proxy services4 { 10.96.0.1 . tcp . 80 }",
        "flush chain inet pycni_proxy {cluster4-vip-random-5}",
        "flush chain inet pycni_proxy postrouting",
        "add rule inet pycni_proxy services4 drop",
        "add chain inet pycni_proxy strange",
        "flush map inet pycni_proxy {targets6}",
    ],
)
def test_what_others_damaged_is_mended_by_a_full_pass(full, netns, damage):
    one = EVERY_SHAPE["cluster ip"]
    names = {"{cluster4-vip-random-5}": sharded("cluster4-vip-random-5", one), "{targets6}": TARGETS[6][0]}
    full.put("v6", *(frontend(f"fd00:96::2:{n}", 1) for n in range(50)))
    full.take()
    for name, there in names.items():
        damage = damage.replace(name, there)
    run(netns, f"nft {damage}")
    assert full.driver.read() != full.ledger.tables
    assert full.adopt() > 0
    assert full.driver.read() == full.ledger.tables


def test_a_driver_of_the_next_life_finds_everything(full, inside):
    later = Node(inside)
    for name, one in EVERY_SHAPE.items():
        later.put(name, one)
    assert later.adopt() == 0
    later.close()


def test_other_facts_replace_the_table_and_keep_what_is_remembered(full, netns, inside):
    key = frontend_bytes(EVERY_SHAPE["affinity"].key) + bytes([10, 244, 1, 9])
    run(
        netns,
        "nft add element inet pycni_proxy affinity4 { 10.96.0.7 . tcp . 80 . 10.244.1.9 timeout 2h expires 1h : 0x0 . 0x5 }",
    )
    changed = msgspec.structs.replace(FACTS, cluster_networks=(net("10.200.0.0/16"),))
    later = Node(inside, changed)
    assert later.driver.read() == {name: {} for name in later.compiler.tables}
    for name, one in EVERY_SHAPE.items():
        later.put(name, one)
    later.adopt()
    assert later.driver.read() == later.ledger.tables
    (kept,) = later.driver._table.memory(affinity_map(4))
    assert (kept.key, kept.value[-4:]) == (key, bytes([5, 0, 0, 0]))
    assert kept.timeout_ms == 7_200_000
    assert 3_500_000 < kept.expires_ms <= 3_600_000
    later.close()


def test_a_table_of_another_generation_is_replaced(node, netns):
    run(
        netns,
        "nft add table inet pycni_proxy { chain prerouting { type filter hook prerouting priority 0 ; } ; }",
    )
    node.put("web", EVERY_SHAPE["cluster ip"])
    assert node.adopt() > 0
    assert node.driver.read() == node.ledger.tables


def test_removing_says_what_went_and_is_harmless_twice(full, netns, inside):
    run(netns, "nft add table inet other")
    assert inside(nft.leftovers) == ["table inet pycni_proxy"]
    assert inside(nft.leftovers) == []
    assert full.driver.remove() == []
    assert run(netns, "nft list tables") == "table inet other\n"


@pytest.mark.parametrize("one", EVERY_SHAPE.values(), ids=EVERY_SHAPE.keys())
def test_targets_are_told_as_the_kernel_has_them(full, one):
    allowed = one.source_ranges != ()
    wanted = {target for pool in one.pools for target in pool.targets if allowed}
    assert {state.target for state in full.driver.targets(one.key)} == wanted


def test_an_unknown_frontend_has_no_targets(full):
    assert full.driver.targets(frontend("10.96.5.5").key) == ()


def test_every_frontend_has_a_counter(full):
    assert set(full.driver.counters()) == {one.key for one in EVERY_SHAPE.values()}


def frontends(slot):
    """Frontends of one address: whatever a service may become."""
    kinds = {0: Kind.CLUSTER_IP, 1: Kind.LOAD_BALANCER, 2: Kind.NODE_PORT}
    numbers = st.lists(st.integers(1, 6), unique=True, max_size=4)
    options = st.builds(
        asking,
        st.sampled_from(["", "rr", "sh", "lc"]),
        st.sampled_from([(), ("flag-2",)]),
        st.sampled_from([0, 0, 60, 600]),
    )

    def build(pool, inside, options, local, empty, ranges):
        kind = kinds[slot % 3]
        family = V4 if slot % 2 else V6
        address = f"10.96.1.{slot}" if family is V4 else f"fd00:96::1:{slot}"
        local &= kind is not Kind.CLUSTER_IP
        return frontend(
            "" if kind is Kind.NODE_PORT else address,
            *pool,
            family=family,
            kind=kind,
            port=30000 + slot,
            inside=sorted({*pool, *inside}) if local else None,
            local_only=local,
            empty=empty,
            options=options,
            source_ranges=ranges if kind is Kind.LOAD_BALANCER else None,
        )

    return st.builds(
        build,
        numbers,
        numbers,
        options,
        st.booleans(),
        st.sampled_from(Verdict),
        st.sampled_from([None, None, (), (net("192.0.2.0/24"), net("2001:db8::/32"))]),
    )


STEPS = st.lists(
    st.lists(
        st.integers(1, 8).flatmap(lambda slot: st.tuples(st.just(slot), st.none() | frontends(slot))),
        min_size=1,
        max_size=4,
        unique_by=lambda item: item[0],
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_step_by_step_is_from_scratch_is_the_kernel(inside, steps):
    inside(nft.leftovers)
    node = Node(inside)
    try:
        node.adopt()
        for step in steps:
            for slot, one in step:
                node.put(slot, *([] if one is None else [one]))
            node.take()
            scratch = {name: {} for name in node.compiler.tables} | node.compiler.common()
            for some in node.services.values():
                for name, rows in node.compiler.rows(some).items():
                    scratch[name] = scratch[name] | rows
            assert node.ledger.tables == scratch
            assert node.driver.read() == scratch
        assert set(scratch[CHAINS]) == set(node.driver.read()[CHAINS])
    finally:
        node.close()
