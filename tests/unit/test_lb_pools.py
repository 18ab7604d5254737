"""Addresses for LoadBalancer services: who gets which, who keeps what, who gets none and why."""

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.ipam.pools import allocate, is_ours
from pycni.model.family import Family
from pycni.model.kube import Ingress, Meta, Service

V4, V6 = (Family.V4,), (Family.V6,)
BOTH = (Family.V4, Family.V6)
POOL = (ip_network("192.0.2.0/29"),)
DUAL = (ip_network("192.0.2.0/29"), ip_network("2001:db8::/125"))


def svc(name, *has, families=V4, created=0, **fields):
    fields = {"type": "LoadBalancer", **fields}
    ingress = tuple(Ingress(ip=text) for text in has)
    return Service(
        meta=Meta(name=name, namespace="d", created=created), families=families, ingress=ingress, **fields
    )


def given_to(*services, pools=POOL, **options):
    """Service name -> addresses, and the problems."""
    found = allocate({each.meta.key: each for each in services}, pools, **options)
    return {
        key.removeprefix("d/"): " ".join(entry.ip for entry in got) for key, got in found.ingress.items()
    }, found.problems


CASES = [
    ("the first free one, without network and broadcast address", [svc("a"), svc("b")], POOL, {"a": "192.0.2.1", "b": "192.0.2.2"}),
    ("older services first", [svc("a", created=9), svc("b", created=5)], POOL, {"a": "192.0.2.2", "b": "192.0.2.1"}),
    ("what they have stays", [svc("a", "192.0.2.5"), svc("b", "192.0.2.1", created=9)], POOL, {"a": "192.0.2.5", "b": "192.0.2.1"}),
    ("what is outside of every pool is replaced", [svc("a", "198.51.100.1")], POOL, {"a": "192.0.2.1"}),
    ("a newcomer takes nothing away", [svc("new", created=1), svc("old", "192.0.2.1", created=9)], POOL, {"new": "192.0.2.2", "old": "192.0.2.1"}),
    ("an address asked for", [svc("a", load_balancer_ip="192.0.2.6"), svc("b")], POOL, {"a": "192.0.2.6", "b": "192.0.2.1"}),
    ("asking moves a service", [svc("a", "192.0.2.1", load_balancer_ip="192.0.2.6")], POOL, {"a": "192.0.2.6"}),
    ("asking comes before taking any", [svc("a", created=1), svc("b", created=2, load_balancer_ip="192.0.2.1")], POOL, {"a": "192.0.2.2", "b": "192.0.2.1"}),
    ("of two that have one address the older keeps it", [svc("a", "192.0.2.3", created=2), svc("b", "192.0.2.3", created=1)], POOL, {"a": "192.0.2.1", "b": "192.0.2.3"}),
    ("both families, in the service's order", [svc("a", families=(Family.V6, Family.V4))], DUAL, {"a": "2001:db8::1 192.0.2.1"}),
    ("a family more keeps the other", [svc("a", "192.0.2.4", families=BOTH)], DUAL, {"a": "192.0.2.4 2001:db8::1"}),
    ("a family less is given back", [svc("a", "192.0.2.4", "2001:db8::2", families=V6)], DUAL, {"a": "2001:db8::2"}),
    ("one of each family only", [svc("a", "192.0.2.4", "192.0.2.5")], POOL, {"a": "192.0.2.4"}),
    ("dual-stack preferred where there is one family", [svc("a", families=BOTH, family_policy="PreferDualStack")], POOL, {"a": "192.0.2.1"}),
    ("pools in their order", [svc("a"), svc("b"), svc("c")], (ip_network("192.0.2.8/31"), *POOL), {"a": "192.0.2.8", "b": "192.0.2.9", "c": "192.0.2.1"}),
    ("a pool of one address", [svc("a")], (ip_network("192.0.2.9/32"),), {"a": "192.0.2.9"}),
    ("overlapping pools give an address once", [svc("a"), svc("b")], (ip_network("192.0.2.1/32"), *POOL), {"a": "192.0.2.1", "b": "192.0.2.2"}),
    ("IPv6 without its first address", [svc("a", families=V6)], (ip_network("2001:db8::/64"),), {"a": "2001:db8::1"}),
    ("somebody's external IP is taken", [svc("a"), svc("e", type="ClusterIP", external_ips=("192.0.2.1",))], POOL, {"a": "192.0.2.2"}),
    ("one's own external IP may be asked for", [svc("a", external_ips=("192.0.2.3",), load_balancer_ip="192.0.2.3")], POOL, {"a": "192.0.2.3"}),
    ("another controller's address is taken", [svc("a"), svc("x", "192.0.2.1", load_balancer_class="metal")], POOL, {"a": "192.0.2.2"}),
    ("other classes and types are not ours", [svc("x", load_balancer_class="metal"), svc("c", type="ClusterIP")], POOL, {}),
    ("our classes", [svc("a", load_balancer_class="default"), svc("b", load_balancer_class="kube-router")], POOL, {"a": "192.0.2.1", "b": "192.0.2.2"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("services", "pools", "expected"), [row[1:] for row in CASES], ids=[row[0] for row in CASES]
)
def test_who_gets_which_address(services, pools, expected):
    for order in (services, services[::-1]):
        assert given_to(*order, pools=pools) == (expected, ())


PROBLEMS = [
    ("an exhausted pool", [svc("a"), svc("b"), svc("c", created=9)], (ip_network("192.0.2.8/31"),), "service d/c: no free ipv4 address in 192.0.2.8/31"),
    ("no pool of a family", [svc("a", families=V6)], POOL, "service d/a: there is no ipv6 address pool"),
    ("dual-stack required", [svc("a", families=BOTH, family_policy="RequireDualStack")], POOL, "service d/a: there is no ipv6 address pool"),
    ("asked for outside", [svc("a", load_balancer_ip="198.51.100.1")], POOL, "service d/a: spec.loadBalancerIP 198.51.100.1 is in none of the address pools (192.0.2.0/29)"),
    ("asked for the broadcast address", [svc("a", load_balancer_ip="192.0.2.7")], POOL, "service d/a: spec.loadBalancerIP 192.0.2.7 is in none of"),
    ("asked for what another has", [svc("a", "192.0.2.1", created=9), svc("b", load_balancer_ip="192.0.2.1")], POOL, "service d/b: spec.loadBalancerIP 192.0.2.1 is taken by service d/a"),
    ("an external IP that another has too is nobody's own", [svc("a", external_ips=("192.0.2.1",), load_balancer_ip="192.0.2.1"), svc("b", "192.0.2.1", load_balancer_class="metal")], POOL, "service d/a: spec.loadBalancerIP 192.0.2.1 is taken by service d/a, d/b"),
    ("asked for another family", [svc("a", load_balancer_ip="2001:db8::1")], DUAL, "service d/a: spec.loadBalancerIP 2001:db8::1: the service has no ipv6"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("services", "pools", "text"), [row[1:] for row in PROBLEMS], ids=[row[0] for row in PROBLEMS]
)
def test_what_cannot_be_given_names_the_service(services, pools, text):
    for order in (services, services[::-1]):
        _, problems = given_to(*order, pools=pools)
        assert len(problems) == 1
        assert problems[0].startswith(text)


def test_an_address_asked_for_in_vain_is_not_replaced_by_another():
    got, _ = given_to(svc("a", load_balancer_ip="198.51.100.1"))
    assert got == {"a": ""}


def test_without_services_of_no_class_only_those_that_ask_for_us_are_ours():
    classes = frozenset({"default", "kube-router"})
    assert not is_ours(svc("a"), classes)
    assert is_ours(svc("a", load_balancer_class="default"), classes)


def test_a_service_that_is_going_gives_its_address_back():
    going = Service(meta=Meta(name="g", namespace="d", deleting=True), type="LoadBalancer", families=V4)
    assert given_to(going) == ({}, ())


def test_an_entry_that_stays_keeps_its_mode():
    service = Service(
        meta=Meta(name="a"), type="LoadBalancer", families=V4, ingress=(Ingress(ip="192.0.2.3", proxy=True),)
    )
    assert allocate({"a": service}, POOL).ingress["a"] == service.ingress


ADDRESSES = st.sampled_from(
    [f"192.0.2.{n}" for n in range(8)] + [f"2001:db8::{n}" for n in range(8)] + ["198.51.100.1"]
)


@st.composite
def services(draw):
    found = {}
    for number in range(draw(st.integers(0, 9))):
        each = svc(
            f"s{number}",
            *draw(st.lists(ADDRESSES, max_size=3)),
            families=draw(st.sampled_from([V4, V6, BOTH, BOTH[::-1], ()])),
            created=draw(st.integers(0, 3)),
            load_balancer_class=draw(st.sampled_from([None, "default", "metal"])),
            load_balancer_ip=draw(st.just("") | ADDRESSES),
            external_ips=tuple(draw(st.lists(ADDRESSES, max_size=1))),
            family_policy=draw(st.sampled_from(["SingleStack", "PreferDualStack", "RequireDualStack"])),
        )
        found[each.meta.key] = each
    return found


@settings(deadline=None)
@given(services(), st.randoms(use_true_random=False))
def test_no_address_is_shared_lost_or_moved_whatever_the_services(world, rng):
    found = allocate(world, DUAL)
    given_out = [entry.ip for entries in found.ingress.values() for entry in entries]
    assert len(set(given_out)) == len(given_out)
    assert all(any(ip_address(text) in pool for pool in DUAL) for text in given_out)
    foreign = {entry.ip for key, each in world.items() if key not in found.ingress for entry in each.ingress}
    assert not foreign & set(given_out)
    for key, entries in found.ingress.items():
        assert [Family.of(ip_address(entry.ip)) for entry in entries] == [
            family
            for family in world[key].families
            if family in {Family.of(ip_address(entry.ip)) for entry in entries}
        ]
    order = list(world)
    rng.shuffle(order)
    assert allocate({key: world[key] for key in order}, DUAL) == found
    settled = {key: _with(each, found.ingress.get(key)) for key, each in world.items()}
    assert allocate(settled, DUAL) == found, "written and read back, nothing moves"
    newer = {**settled, "z/new": svc("new", created=99)}
    after = allocate(newer, DUAL).ingress
    assert {key: after[key] for key in found.ingress} == found.ingress, "a service more moves nobody"


def _with(service, ingress):
    if ingress is None:
        return service
    return Service(
        **{name: getattr(service, name) for name in Service.__struct_fields__ if name != "ingress"},
        ingress=ingress,
    )
