"""Laws of compiling a fabric: only the leases count, not their order nor the way they came."""

from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.backends.compiler import FabricCompiler, compile_fabric
from pycni.backends.table import backend
from pycni.model.family import Family
from pycni.model.wireguard import key_text
from pycni.reconcile.delta import diff, diff_keys, patched
from tests.unit.fabric_world import lease, mac, site, wg_key

TABLES = ("routes", "neighbours", "fdb", "udp", "wireguard")


@st.composite
def leases(draw, kind):
    """Leases on few subnets, MACs and addresses, so that they clash often."""
    number = draw(st.integers(1, 6))
    length = draw(st.sampled_from([22, 24, 24, 24, 26]))
    families = "4" if kind == "ipip" else draw(st.sampled_from(["4", "46"]))
    data = b'{"VtepMAC":"%s"}' % mac(draw(st.integers(1, 4))).encode()
    changes = {"public_ip": IPv4Address(f"192.0.2.{draw(st.integers(1, 4))}")}
    if kind == "vxlan":
        changes["backend_data"] = draw(st.sampled_from([data, data, None]))
    if kind.startswith("wireguard"):
        key = b'{"PublicKey":"%s"}' % key_text(wg_key(draw(st.integers(1, 4)))).encode()
        changes["backend_data"] = draw(st.sampled_from([key, key, None]))
        changes["backend_v6_data"] = draw(st.sampled_from([key, changes["backend_data"]]))
    made = lease(number, families, kind.split()[0], **changes)
    return msgspec.structs.replace(made, subnet=IPv4Network(f"10.5.{number}.0/{length}", strict=False))


def sets(kind):
    return st.lists(leases(kind), max_size=7).map(lambda items: {item.key: item for item in items})


KINDS = pytest.mark.parametrize("kind", ["vxlan", "host-gw", "ipip", "udp", "wireguard", "wireguard auto"])
SITES = {
    kind: site("4" if kind == "ipip" else "46", kind)
    for kind in ("vxlan", "host-gw", "ipip", "udp", "wireguard")
}
SITES["wireguard auto"] = site("46", "wireguard", mode="auto")


def tables(state):
    return {name: dict(getattr(state, name)) for name in (*TABLES, "links")} | {"peers": state.vtep_peers}


@KINDS
@given(data=st.data())
def test_order_of_leases_does_not_count(kind, data):
    some = data.draw(sets(kind))
    shuffled = dict(data.draw(st.permutations(list(some.items()))))
    where, how = SITES[kind], backend(kind.split()[0])
    assert tables(compile_fabric(how, some, where)) == tables(compile_fabric(how, shuffled, where))


@KINDS
@settings(max_examples=200)
@given(data=st.data())
def test_step_by_step_gives_what_from_nothing_gives(kind, data):
    where, how = SITES[kind], backend(kind.split()[0])
    compiler = FabricCompiler(how, where)
    for some in data.draw(st.lists(sets(kind), max_size=5)):
        compiler.update(some)
        fresh = FabricCompiler(how, where)
        fresh.update(some)
        assert tables(compiler.state) == tables(fresh.state)
        assert compiler.refusals == fresh.refusals
        assert dict(compiler.peers) == dict(fresh.peers)


@KINDS
@given(data=st.data())
def test_touched_keys_are_enough_to_bring_the_kernel_along(kind, data):
    compiler = FabricCompiler(backend(kind.split()[0]), SITES[kind])
    kernel = {name: {} for name in TABLES}
    allowed = set()
    for some in data.draw(st.lists(sets(kind), max_size=5)):
        touched, state = compiler.update(some), compiler.state
        for name in TABLES:
            delta = diff_keys(getattr(state, name), kernel[name], getattr(touched, name))
            assert delta == diff(getattr(state, name), kernel[name])
            kernel[name] = patched(kernel[name], delta)
        for address in touched.remotes:
            (allowed.add if address in compiler.remotes else allowed.discard)(address)
        assert allowed == state.vtep_peers


@KINDS
@given(data=st.data())
def test_no_two_peers_share_an_entry_and_every_lease_is_served_or_refused(kind, data):
    some = data.draw(sets(kind))
    compiler = FabricCompiler(backend(kind.split()[0]), SITES[kind])
    compiler.update(some)
    state = compiler.state
    for name in TABLES[:4]:
        count = sum(len(getattr(entries, name)) for entries in compiler.peers.values())
        assert count == len(getattr(state, name))
    for peer_key, peer in state.wireguard.items():
        holders = {key for key, entries in compiler.peers.items() if peer_key in dict(entries.wireguard)}
        assert len({name for name, _ in holders}) == 1
        assert {Family.of_packed(net) for net, _ in peer.allowed} == {family for _, family in holders}
    own = SITES[kind].own
    wanted = {(key, family) for key, item in some.items() for family in Family if item.of(family)}
    ours = {(own.key, family) for family in Family}
    assert wanted - ours <= {*compiler.peers, *compiler.refusals} <= wanted
    assert not {*compiler.peers} & {*compiler.refusals}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DATA = st.one_of(
    st.none(),
    st.binary(max_size=60),
    JSON.map(msgspec.json.encode),
    st.fixed_dictionaries(
        {},
        optional={
            "VNI": JSON | st.just(1),
            "VtepMAC": JSON
            | st.from_regex(r"[0-9a-f:+ ]{11,19}", fullmatch=True)
            | st.just("02:00:00:00:04:02"),
        },
    ).map(msgspec.json.encode),
    st.just(b"[" * 5000 + b"]" * 5000),
    st.just(b'{"x":' * 5000),
)


@settings(max_examples=500)
@given(data=DATA)
def test_whatever_a_peer_publishes_it_is_served_or_refused_with_a_reason(data):
    compiler = FabricCompiler(backend("vxlan"), SITES["vxlan"])
    some = lease(2, backend_data=data)
    compiler.update({some.key: some})
    refusal = compiler.refusals.get((some.key, Family.V4))
    if refusal is None:
        assert len(compiler.state.fdb) == 1
    else:
        assert 0 < len(refusal.reason) < 400
        assert "\n" not in refusal.reason
        assert not compiler.state.routes
