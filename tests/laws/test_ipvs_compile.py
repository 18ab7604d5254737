"""The IPVS compiler: its tables decide what the frontends mean, and incremental is from scratch."""

from __future__ import annotations

import ipaddress
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.service import (
    Decision,
    Frontend,
    FrontendKey,
    Kind,
    NodeFacts,
    Options,
    Packet,
    Pool,
    PortName,
    Target,
    Verdict,
)
from pycni.reconcile.ledger import Ledger
from pycni.view.service_decide import decide_frontends
from pycni_proxy.ipvs.compile import SHARED, TABLES, IpvsCompiler
from pycni_proxy.ipvs.options import IpvsOptions


def packed(text):
    return ipaddress.ip_address(text).packed


WORLD = {
    Family.V4: {
        "node": "192.168.0.1",
        "cluster": ["10.96.0.1", "10.96.0.2"],
        "outer": ["192.168.9.1", "192.168.9.2", "192.168.0.1"],
        "pods": ["10.244.1.5", "10.244.1.6", "10.244.2.5"],
        "sources": ["10.244.1.5", "10.244.1.9", "192.168.0.77", "172.16.0.1"],
        "nowhere": ["10.96.7.7", "8.8.8.8"],
        "ranges": ["192.168.0.0/24", "172.16.0.0/12", "0.0.0.0/0"],
    },
    Family.V6: {
        "node": "2001:db8::1",
        "cluster": ["fd00:96::1", "fd00:96::2"],
        "outer": ["2001:db8:9::1", "2001:db8:9::2", "2001:db8::1"],
        "pods": ["fd01:0:0:1::5", "fd01:0:0:1::6", "fd01:0:0:2::5"],
        "sources": ["fd01:0:0:1::5", "fd01:0:0:1::9", "2001:db8::77", "2001:db8:77::1"],
        "nowhere": ["fd00:96::7:7", "2600::1"],
        "ranges": ["2001:db8::/64", "2001:db8:77::/48", "::/0"],
    },
}
LOCAL = {packed(WORLD[family]["pods"][at]) for family in Family for at in (0, 1)}
PORTS = (80, 53)
NODE_PORTS = (30080, 30053)
FACTS = NodeFacts(
    name="n1",
    addresses=tuple(packed(WORLD[family]["node"]) for family in Family),
    cluster_networks=(ip_network("10.244.0.0/16"), ip_network("fd01::/48")),
    service_networks=(ip_network("10.96.0.0/12"), ip_network("fd00:96::/108")),
    families=tuple(Family),
)


@st.composite
def pools(draw, family, port=0, *, local=False):
    addresses = [packed(text) for text in WORLD[family]["pods"]]
    if local:
        addresses = [address for address in addresses if address in LOCAL]
    ports = [port] if port else [8080, 8081]
    one = st.builds(lambda a, p: Target(a, p, a in LOCAL), st.sampled_from(addresses), st.sampled_from(ports))
    found = draw(st.lists(one, max_size=3, unique=True))
    draining = draw(st.lists(one, max_size=1))
    targets = tuple(sorted(found))
    return Pool(targets, tuple(t for t in draining if t not in targets), draw(st.sampled_from(Verdict)))


@st.composite
def frontends(draw):
    family = draw(st.sampled_from(Family))
    world = WORLD[family]
    kind = draw(st.sampled_from(Kind))
    protocol = draw(st.sampled_from((TCP, UDP, SCTP)))
    if kind is Kind.NODE_PORT:
        address, port = b"", draw(st.sampled_from(NODE_PORTS))
    else:
        address = packed(draw(st.sampled_from(world["cluster" if kind is Kind.CLUSTER_IP else "outer"])))
        port = draw(st.sampled_from(PORTS))
    direct = (
        kind in (Kind.EXTERNAL_IP, Kind.LOAD_BALANCER)
        and address != packed(world["node"])
        and draw(st.booleans())
    )
    local = draw(st.booleans())
    same = port if direct else 0
    pool = draw(pools(family, same, local=local and kind is not Kind.CLUSTER_IP))
    inside = None
    if local and kind is not Kind.CLUSTER_IP:
        # The cluster's targets are the node's, too.
        inside = draw(pools(family, same))
        everybody = {*inside.targets, *pool.targets}
        inside = Pool(
            tuple(sorted(everybody)), tuple(t for t in inside.draining if t not in everybody), inside.empty
        )
    ranges = None
    if kind is Kind.LOAD_BALANCER:
        ranges = draw(
            st.none()
            | st.lists(st.sampled_from(world["ranges"]).map(ip_network), max_size=2, unique=True).map(tuple)
        )
    options = Options(
        scheduler=draw(st.sampled_from(("", "rr", "sh", "mh", "lc", "dh"))),
        sched_flags=draw(st.sampled_from(((), ("flag-1",), ("flag-1", "flag-2")))),
        affinity_s=draw(st.sampled_from((0, 600))),
        dsr="tunnel" if direct else "",
    )
    return Frontend(
        key=FrontendKey(family, address, protocol, port),
        kind=kind,
        name=PortName("d", "s", ""),
        pool=pool,
        inside=inside,
        local_only=local,
        source_ranges=ranges,
        options=options,
    )


@st.composite
def packets(draw, found):
    """Mostly to frontends that are there, else anywhere."""
    hit = draw(st.sampled_from(found)).key if found and draw(st.integers(0, 4)) else None
    world = WORLD[hit.family if hit else draw(st.sampled_from(Family))]
    own = draw(st.booleans())
    source = world["node"] if own else draw(st.sampled_from(world["sources"]))
    if hit:
        return Packet(
            packed(source), 40000, hit.address or packed(world["node"]), hit.protocol, hit.port, own
        )
    places = [*world["cluster"], *world["outer"], world["node"], *world["nowhere"]]
    protocol = draw(st.sampled_from((TCP, UDP, SCTP)))
    port = draw(st.sampled_from((*PORTS, *NODE_PORTS, 81)))
    return Packet(packed(source), 40000, packed(draw(st.sampled_from(places))), protocol, port, own)


def services(max_size=6):
    """Frontends of one world: each key once, and an address direct for all or for none of its ports."""

    def coherent(found):
        direct = {}
        keep = []
        for item in found:
            known = direct.setdefault(item.key.address, item.options.dsr)
            if item.key.address and known != item.options.dsr:
                continue
            keep.append(item)
        return keep

    return st.lists(frontends(), max_size=max_size, unique_by=lambda item: item.key).map(coherent)


def compiled(found, compiler):
    ledger = Ledger(TABLES, SHARED)
    ledger.put(compiler.common())
    for item in found:
        ledger.put(compiler.rows([item]))
    return ledger


def stricter(decision, found, packet):
    """What a virtual address on the node's own device adds: other ports of any virtual address are refused."""
    mine = [
        f for f in found if f.key.address == packet.destination and packet.destination not in FACTS.addresses
    ]
    plain = any(not f.options.dsr for f in mine)
    if plain and decision == Decision(None, frozenset()):
        return Decision(Verdict.REJECT, frozenset())
    return decision


@settings(max_examples=200, deadline=None)
@given(services(), st.data())
def test_tables_decide_what_frontends_mean(found, data):
    compiler = IpvsCompiler(FACTS, IpvsOptions())
    tables = compiled(found, compiler).tables
    for packet in data.draw(st.lists(packets(found), min_size=4, max_size=8)):
        meant = stricter(decide_frontends(found, FACTS, packet), found, packet)
        got = compiler.decide(tables, packet)
        assert got == meant, (packet, found)


@settings(max_examples=100, deadline=None)
@given(services(), st.randoms(use_true_random=False))
def test_order_of_frontends_does_not_matter(found, random):
    shuffled = list(found)
    random.shuffle(shuffled)
    one = compiled(found, IpvsCompiler(FACTS, IpvsOptions()))
    other = compiled(shuffled, IpvsCompiler(FACTS, IpvsOptions()))
    assert one.tables == other.tables
    assert IpvsCompiler(FACTS, IpvsOptions()).text(one.tables) == sorted(
        IpvsCompiler(FACTS, IpvsOptions()).text(other.tables)
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(services(4), min_size=1, max_size=4))
def test_incremental_is_from_scratch(steps):
    compiler = IpvsCompiler(FACTS, IpvsOptions())
    ledger = Ledger(TABLES, SHARED)
    ledger.put(compiler.common())
    kernel = {name: {} for name in TABLES}
    before = []
    for after in steps:
        for item in before:
            ledger.drop(compiler.rows([item]))
        for item in after:
            ledger.put(compiler.rows([item]))
        before = after
        for name, delta in ledger.take():
            assert not delta.add.keys() & kernel[name].keys()
            for key in delta.remove:
                del kernel[name][key]
            kernel[name].update(delta.add | delta.change)
    assert kernel == compiled(steps[-1], IpvsCompiler(FACTS, IpvsOptions())).tables


def test_marks_that_collide_are_still_different(monkeypatch):
    from pycni_proxy.ipvs import names

    monkeypatch.setattr(names, "_SPACE", names._FIRST + 3)
    marks = names.Marks()
    keys = [FrontendKey(Family.V4, packed("192.168.9.1"), TCP, port) for port in (80, 81, 82)]
    assert len({marks.of(key) for key in keys}) == 3
    assert [marks.of(key) for key in keys] == [marks.of(key) for key in keys]


def test_a_drained_share_never_swallows_new_connections():
    """sh and mh get their fallback flag unasked; dh, which has none, gets no draining servers."""
    found = {}
    for scheduler in ("sh", "mh", "dh", "rr"):
        pool = Pool((Target(packed("10.244.1.5"), 80, True),), (Target(packed("10.244.1.6"), 80, True),))
        item = Frontend(
            key=FrontendKey(Family.V4, packed("10.96.0.1"), TCP, 80),
            kind=Kind.CLUSTER_IP,
            name=PortName("d", "s", ""),
            pool=pool,
            options=Options(scheduler=scheduler),
        )
        rows = IpvsCompiler(FACTS, IpvsOptions()).rows([item])
        [spec] = rows["services"].values()
        found[scheduler] = (bool(spec.flags & 8), sorted(dest.weight for dest in rows["dests"].values()))
    assert found == {"sh": (True, [0, 1]), "mh": (True, [0, 1]), "dh": (False, [1]), "rr": (False, [0, 1])}


REFUSED = {
    "scheduler the kernel lacks": (
        {"schedulers": frozenset({"rr"})},
        Options(scheduler="mh"),
        "lacks the scheduler ip_vs_mh",
    ),
    "family the kernel lacks": ({"families": (Family.V6,)}, Options(), "lacks ipv4"),
    "excluded address": ({"excluded": (ip_network("192.168.9.0/24"),)}, Options(), "excluded-cidrs"),
    "direct return with another port": ({}, Options(dsr="tunnel"), "cannot translate port 80 to 8080"),
}


def test_what_cannot_be_served_is_refused_with_the_reason():
    for name, (chosen, wanted, reason) in REFUSED.items():
        item = Frontend(
            key=FrontendKey(Family.V4, packed("192.168.9.1"), TCP, 80),
            kind=Kind.EXTERNAL_IP,
            name=PortName("d", "s", ""),
            pool=Pool((Target(packed("10.244.1.5"), 8080, True),)),
            options=wanted,
        )
        assert reason in IpvsCompiler(FACTS, IpvsOptions(**chosen)).refusal(item), name
        assert not IpvsCompiler(FACTS, IpvsOptions()).refusal(item) or wanted.dsr
