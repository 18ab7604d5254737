"""Which UDP connections are forgotten after which change (field: kube-proxy's full reconcile). Pure."""

from __future__ import annotations

import pytest

from pycni.model.family import Family
from pycni.model.kube import TCP, UDP
from pycni.model.service import Frontend, FrontendKey, IpvsOptions, Kind, NodeFacts, Pool, PortName, Target
from pycni_proxy import conntrack
from tests.unit.service_world import FACTS, net, pack

VIP, VIP6, NODE = pack("10.96.0.10"), pack("fd00:96::10"), FACTS.addresses[0]
A, B, C = (Target(pack(f"10.244.1.{number}"), 5353, local=True) for number in (1, 2, 3))


def frontend(*targets, draining=(), address=VIP, protocol=UDP, port=53, inside=None):
    family = Family.V6 if len(address) == 16 else Family.V4
    return Frontend(
        key=FrontendKey(family, address, protocol, port),
        kind=Kind.CLUSTER_IP if address else Kind.NODE_PORT,
        name=PortName("default", "dns", ""),
        pool=Pool(targets=targets, draining=tuple(draining)),
        inside=inside,
    )


CHANGES = [
    ("endpoint gone", frontend(A, B), frontend(B), True),
    ("endpoint replaced", frontend(A), frontend(B), True),
    ("endpoint added", frontend(A), frontend(A, B), False),
    ("first endpoint", frontend(), frontend(A), True),
    ("service new", None, frontend(A), True),
    ("last endpoint gone: rules refuse, nothing is looked for", frontend(A), frontend(), False),
    ("still draining", frontend(A, B), frontend(B, draining=[A]), False),
    ("drained", frontend(B, draining=[A]), frontend(B), True),
    ("service gone", frontend(A), None, False),
    ("tcp", frontend(A, protocol=TCP), frontend(B, protocol=TCP), False),
    ("gone from both pools", frontend(A, inside=Pool(targets=(B,))), frontend(A, inside=Pool(targets=(C,))), True),
    ("moved between pools", frontend(A, inside=Pool(targets=(B,))), frontend(B, inside=Pool(targets=(A,))), False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "looked_at"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_only_relevant_changes_are_looked_at(before, after, looked_at):
    found = conntrack.relevant([([before] if before else [], [after] if after else [])])
    assert bool(found.ends) is looked_at


def end(target):
    return target.address, target.port


RANGES = NodeFacts(
    name="n", addresses=(NODE,), node_port_ranges=(net("198.51.100.0/24"),), ipvs=IpvsOptions()
)
ENTRIES = [
    ("leads to an endpoint", FACTS, (VIP, 53), end(A), False),
    ("leads to a gone one", FACTS, (VIP, 53), end(C), True),
    ("leads to a draining one", FACTS, (VIP, 53), end(B), False),
    ("another port of an endpoint", FACTS, (VIP, 53), (A.address, 53), True),
    ("untranslated, made while there was nobody", FACTS, (VIP, 53), (VIP, 53), True),
    ("another port of the service", FACTS, (VIP, 54), end(C), False),
    ("straight to a pod", FACTS, end(A), end(A), False),
    ("node port, gone", FACTS, (NODE, 30053), end(C), True),
    ("node port, served", FACTS, (NODE, 30053), end(A), False),
    ("the port's number elsewhere", FACTS, (pack("8.8.8.8"), 30053), (pack("8.8.8.8"), 30053), False),
    ("node port in a range", RANGES, (pack("198.51.100.7"), 30053), end(C), True),
    ("node port outside the ranges", RANGES, (NODE, 30053), end(C), False),
    ("IPv6", FACTS, (VIP6, 53), (pack("fd00:244::9"), 5353), True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "target", "source", "stale"), [c[1:] for c in ENTRIES], ids=[c[0] for c in ENTRIES]
)
def test_a_connection_goes_when_nobody_serving_answers_it(facts, target, source, stale):
    six = Target(pack("fd00:244::1"), 5353, local=True)
    watched = conntrack.everything(
        [
            frontend(A, draining=[B]),
            frontend(A, address=b"", port=30053),
            frontend(six, address=VIP6),
            frontend(address=VIP, port=99),
            frontend(A, address=VIP, port=54, protocol=TCP),
        ]
    )
    assert conntrack.Stale(watched, facts)(*target, *source) is stale
    assert watched.families == (Family.V4, Family.V6)
    assert watched.ports(Family.V4) == {53, 30053}
