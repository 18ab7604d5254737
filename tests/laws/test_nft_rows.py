"""Laws of the nftables data plane's compiler, over whatever services may be: no kernel needed."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.service import Kind, Packet, Verdict
from pycni.reconcile.ledger import Ledger
from pycni.view.service_decide import decide_frontends
from pycni_proxy.nft.compile import NftCompiler
from tests.unit.nft_world import FACTS, V4, V6, asking, frontend
from tests.unit.service_world import net, pack

NUMBERS = st.lists(st.integers(1, 9), unique=True, max_size=5)
OPTIONS = st.builds(
    asking,
    st.sampled_from(["", "rr", "wrr", "lc", "sh", "dh", "mh"]),
    st.sampled_from([(), ("flag-2",)]),
    st.sampled_from([0, 1, 10800]),
)
RANGES = {
    V4: [net("192.0.2.0/24"), net("10.244.0.0/16"), net("192.168.0.1/32")],
    V6: [net("2001:db8::/64"), net("fd00:a::/64"), net("::/0")],
}
SOURCES = {
    V4: ["10.244.1.2", "10.244.1.3", "192.0.2.9", "203.0.113.7", "192.168.0.1"],
    V6: ["fd00:244::2", "fd00:244::3", "2001:db8::9", "fd00:a::1"],
}
NODES = {V4: "192.168.0.1", V6: "fd00:a::1"}


@st.composite
def one_frontend(draw, slot):
    """A frontend at the address of a slot; the same slot always has the same key and kind."""
    family = V4 if slot % 2 else V6
    kind = (Kind.CLUSTER_IP, Kind.NODE_PORT, Kind.LOAD_BALANCER, Kind.EXTERNAL_IP)[slot % 4]
    base = {Kind.CLUSTER_IP: ("10.96.0.", "fd00:96::"), Kind.NODE_PORT: ("", "")}.get(
        kind, ("198.51.100.", "fd00:51::")
    )
    prefix = base[family is V6]
    targets = draw(NUMBERS)
    ranges = st.none() | st.lists(st.sampled_from(RANGES[family]), unique=True).map(tuple)
    local = draw(st.booleans())
    inside = sorted({*targets, *draw(NUMBERS)}) if local and kind is not Kind.CLUSTER_IP else None
    return frontend(
        prefix and f"{prefix}{slot}",
        *targets,
        family=family,
        kind=kind,
        port=30000 + slot,
        inside=inside,
        local_only=local,
        empty=draw(st.sampled_from(Verdict)),
        options=draw(OPTIONS),
        source_ranges=draw(ranges) if kind is Kind.LOAD_BALANCER else None,
    )


SLOTS = st.integers(0, 15)
WORLD = st.lists(SLOTS, unique=True, max_size=8).flatmap(lambda slots: st.tuples(*map(one_frontend, slots)))
STEPS = st.lists(
    SLOTS.flatmap(lambda slot: st.tuples(st.just(slot), st.none() | one_frontend(slot))),
    min_size=1,
    max_size=12,
)


def whole(compiler, frontends):
    ledger = Ledger(compiler.tables, compiler.shared)
    ledger.put(compiler.common())
    for one in frontends:
        ledger.put(compiler.rows((one,)))
    return ledger.tables


@settings(max_examples=60, deadline=None)
@given(WORLD, st.randoms(use_true_random=False))
def test_order_does_not_matter(world, random):
    turned = list(world)
    random.shuffle(turned)
    assert whole(NftCompiler(FACTS), world) == whole(NftCompiler(FACTS), turned)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_step_by_step_is_from_scratch(steps):
    compiler = NftCompiler(FACTS)
    ledger = Ledger(compiler.tables, compiler.shared)
    ledger.put(compiler.common())
    kernel = {name: {} for name in compiler.tables}
    there = {}
    for slot, one in steps:
        if slot in there:
            ledger.drop(compiler.rows((there.pop(slot),)))
        if one is not None:
            there[slot] = one
            ledger.put(compiler.rows((one,)))
        for name, delta in ledger.take():
            for key in delta.remove:
                del kernel[name][key]
            kernel[name] |= delta.change | delta.add
    assert kernel == whole(NftCompiler(FACTS), there.values())


@settings(max_examples=60, deadline=None)
@given(WORLD)
def test_every_row_leads_somewhere(world):
    """A chain that is gone to exists, and every index a chain may choose is there."""
    compiler = NftCompiler(FACTS)
    tables = whole(compiler, world)
    for one in world:
        for packet in packets(one):
            compiler.decide(tables, packet)  # raises KeyError for what is missing


@settings(max_examples=60, deadline=None)
@given(
    WORLD,
    st.sampled_from(
        [
            {},
            {"masquerade_all": True},
            {"cluster_networks": ()},
            {"node_port_ranges": (net("0.0.0.0/0"), net("::/0"))},
        ]
    ),
)
def test_the_tables_decide_as_the_frontends_say(world, fields):
    facts = msgspec.structs.replace(FACTS, **fields)
    compiler = NftCompiler(facts)
    tables = whole(compiler, world)
    for one in world:
        for packet in packets(one):
            assert compiler.decide(tables, packet) == decide_frontends(world, facts, packet), packet


def packets(one):
    family = one.key.family
    destination = one.key.address or pack(NODES[family])
    for source in SOURCES[family]:
        for port in (one.key.port, 1):
            yield Packet(pack(source), 1234, destination, one.key.protocol, port, source == NODES[family])


def test_the_text_of_equal_tables_is_equal():
    some = [frontend(f"10.96.0.{n}", 1, 2) for n in range(1, 5)]
    compiler = NftCompiler(FACTS)
    assert compiler.text(whole(compiler, some)) == compiler.text(whole(NftCompiler(FACTS), some[::-1]))
