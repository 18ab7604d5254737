"""Laws of the view of services: oracle and frontends agree; order and history do not matter; costs follow changes."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pycni.model.kube import ENDPOINT_SLICE, SERVICE, EndpointSlice, Service
from pycni.model.service import UNTOUCHED, Decision, Frontend, NodeFacts
from pycni.store import Store
from pycni.view.service_decide import decide_frontends
from pycni.view.service_oracle import decide
from pycni.view.services import ServiceIndex, resolve
from pycni_proxy.claims import Claims
from tests.laws.service_worlds import KEYS, make_service, make_slice, make_world
from tests.unit.service_world import FACTS, ep, piece, service


def _kind(decision: Decision) -> str:
    if decision == UNTOUCHED:
        return "untouched"
    if decision.verdict is not None:
        return decision.verdict.name
    return "masqueraded" if decision.masqueraded else "translated"


def slices_of(key: str, pieces: Mapping[str, EndpointSlice]) -> list[EndpointSlice]:
    return [item for item in pieces.values() if item.service == key]


def served(
    objects: Mapping[str, Service], pieces: Mapping[str, EndpointSlice], facts: NodeFacts
) -> list[Frontend]:
    """The frontends of all services, contested addresses settled."""
    found = {key: resolve(item, slices_of(key, pieces), facts).frontends for key, item in objects.items()}
    claims = Claims()
    for key, frontends in found.items():
        claims.update(key, objects[key].meta.created, (), [item.key for item in frontends])
    return [item for key, frontends in found.items() for item in frontends if claims.owner(item.key) == key]


seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=1500, deadline=None)
@given(seeds)
def test_the_oracle_and_the_frontends_decide_alike(seed: int):
    world = make_world(seed)
    frontends = served(world.services, world.slices, world.facts)
    for packet in world.packets:
        expected = decide(world.services, world.slices, world.facts, packet)
        event(_kind(expected))
        assert decide_frontends(frontends, world.facts, packet) == expected


@settings(max_examples=500, deadline=None)
@given(seeds)
def test_the_order_of_slices_and_endpoints_does_not_matter(seed: int):
    world, random = make_world(seed), Random(seed)
    for key, item in world.services.items():
        pieces = slices_of(key, world.slices)
        shuffled = [_shuffled(found, random) for found in pieces]
        random.shuffle(shuffled)
        one, other = resolve(item, pieces, world.facts), resolve(item, shuffled, world.facts)
        assert one == other


def _shuffled(found: EndpointSlice, random) -> EndpointSlice:
    endpoints, ports = list(found.endpoints), list(found.ports)
    random.shuffle(endpoints)
    random.shuffle(ports)
    return EndpointSlice(
        meta=found.meta, service=found.service, family=found.family, headless=found.headless,
        ports=tuple(ports), endpoints=tuple(endpoints),
    )  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(seeds)
def test_frontends_have_distinct_keys_and_sorted_targets(seed: int):
    world = make_world(seed)
    for key, item in world.services.items():
        frontends = resolve(item, slices_of(key, world.slices), world.facts).frontends
        assert len({frontend.key for frontend in frontends}) == len(frontends)
        for frontend in frontends:
            for pool in frontend.pools:
                assert list(pool.targets) == sorted(set(pool.targets))
                assert list(pool.draining) == sorted(set(pool.draining))
                assert not {target[:2] for target in pool.targets} & {target[:2] for target in pool.draining}


@settings(max_examples=200, deadline=None)
@given(seeds)
def test_an_index_kept_up_to_date_is_one_made_anew(seed: int):
    random = Random(seed)
    store = Store()
    tracker = store.track(SERVICE, ENDPOINT_SLICE)
    index = ServiceIndex()
    known: dict[str, object] = {}
    for _ in range(20):
        what, number = (
            random.choice(("service", "slice", "slice", "gone", "slice gone")),
            random.randint(0, 3),
        )
        key = KEYS[number % len(KEYS)]
        if what == "service":
            store.put(SERVICE, key, make_service(random, key))
        elif what == "gone":
            store.delete(SERVICE, key)
        elif what == "slice":
            found = make_slice(random, str(number), make_service(random, random.choice(KEYS)))
            store.put(ENDPOINT_SLICE, f"x/{number}", _named(found, number))
        else:
            store.delete(ENDPOINT_SLICE, f"x/{number}")
        if random.random() < 0.5:
            continue
        snapshot = store.snapshot()
        touched = index.update(snapshot, tracker.take())
        fresh = ServiceIndex()
        everything = fresh.update(snapshot, None)
        now = {key: (snapshot.of(SERVICE).get(key), fresh.slices_of(key)) for key in KEYS}
        assert {key: index.slices_of(key) for key in KEYS} == {key: fresh.slices_of(key) for key in KEYS}
        assert touched >= {key for key in KEYS if now[key] != known.get(key, (None, ()))}
        assert everything == {key for key in KEYS if now[key] != (None, ())}
        known = now


def _named(found: EndpointSlice, number: int) -> EndpointSlice:
    meta = type(found.meta)(name=str(number), namespace="x", labels=found.meta.labels)
    return EndpointSlice(
        meta=meta, service=found.service, family=found.family, ports=found.ports, endpoints=found.endpoints
    )


def test_a_full_update_names_what_is_gone_too():
    store, index = Store(), ServiceIndex()
    store.put(ENDPOINT_SLICE, "default/web-1", piece(ep("10.244.1.1")))
    assert index.update(store.snapshot(), None) == {"default/web"}
    store.delete(ENDPOINT_SLICE, "default/web-1")
    assert index.update(store.snapshot(), None) == {"default/web"}
    assert index.update(store.snapshot(), None) == set()


def test_a_slice_that_moves_to_another_service_touches_both():
    store, index = Store(), ServiceIndex()
    tracker = store.track(SERVICE, ENDPOINT_SLICE)
    store.put(ENDPOINT_SLICE, "default/web-1", piece(ep("10.244.1.1")))
    index.update(store.snapshot(), tracker.take())
    store.put(ENDPOINT_SLICE, "default/web-1", piece(ep("10.244.1.1"), service_key="default/other"))
    assert index.update(store.snapshot(), tracker.take()) == {"default/web", "default/other"}
    assert index.slices_of("default/web") == ()
    assert len(index.slices_of("default/other")) == 1


class Counting(dict):
    """A listing that counts how often it is looked into."""

    looks = 0

    def get(self, *args):
        self.looks += 1
        return super().get(*args)

    def __iter__(self):
        self.looks += len(self)
        return super().__iter__()


class Listing:
    def __init__(self, objects):
        self.objects = objects

    def of(self, kind):
        return self.objects[kind]


@pytest.mark.parametrize("total", [10, 1000])
def test_the_cost_of_an_index_update_follows_the_keys_that_changed(total):
    keys = [f"default/web{number}" for number in range(total)]
    pieces = Counting({f"{key}-1": piece(name=key.split("/")[1] + "-1", service_key=key) for key in keys})
    listing = Listing({SERVICE: Counting(), ENDPOINT_SLICE: pieces})
    index = ServiceIndex()
    index.update(listing, None)
    pieces.looks = 0
    assert index.update(listing, {ENDPOINT_SLICE: {f"{keys[3]}-1"}, SERVICE: {keys[5]}}) == {keys[3], keys[5]}
    assert pieces.looks == 1


def test_ten_thousand_services_fit_into_little_memory():
    import tracemalloc

    count = 2000
    objects = [
        service(name=f"s{number}", cluster_ips=(f"10.96.{number >> 8}.{number & 255}",))
        for number in range(count)
    ]
    pieces = [
        (piece(*(ep(f"10.244.{number >> 5}.{(number & 31) * 5 + part}", f"n{part}") for part in range(5))),)
        for number in range(count)
    ]  # fmt: skip
    tracemalloc.start()
    kept = [resolve(item, found, FACTS) for item, found in zip(objects, pieces, strict=True)]
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == count
    assert held / count < 1300, f"{held / count:.0f} bytes for each service with five endpoints"
