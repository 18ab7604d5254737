"""Rates from raw counters, what views make of them, and connections counted from readings of a table."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from pycni.errors import KernelError
from pycni.kernel import linkcounts
from pycni.kernel.linkcounts import LinkCount
from pycni.model.family import Family
from pycni.traffic import views
from pycni.traffic.model import (
    Counted,
    PodCount,
    Policies,
    PolicyCount,
    Sample,
    ServiceCount,
    Services,
    Tally,
    Tracked,
)
from pycni.traffic.rates import Rates
from pycni.traffic.tally import Tallier, finder
from pycni.wire.ctnetlink import Count, Entry, Tuple

S = 1_000_000_000


def pack(text):
    return ipaddress.ip_address(text).packed


def sample(at, *, node="n1", pods=(), services=(), policies=(), tracked=None, services_at=None):
    return Sample(
        node=node,
        time=at,
        tracked=tracked,
        counted=Counted(
            node=node,
            at_ns=int(at * S),
            pods=tuple(pods),
            services=Services(
                at_ns=int((at if services_at is None else services_at) * S), rows=tuple(services)
            ),
            policies=Policies(at_ns=int(at * S), rows=tuple(policies)),
        ),
    )


def tracked(at, *, accounting=True, pods=None, services=None):
    return Tracked(
        at_ns=int(at * S), entries=7, limit=100, accounting=accounting, read_s=0.1, pods=pods or {}, services=services or {}
    )  # fmt: skip


def feed(*rounds):
    rates, frame = Rates(), None
    for item in rounds:
        frame = rates.feed({one.node: one for one in (item if isinstance(item, list) else [item])})
    return frame


def pod(name="a/p", *numbers, interface="eth0"):
    return PodCount(name, interface, *numbers)


def test_one_round_gives_no_rates():
    assert feed(sample(1, pods=[pod("a/p", 1, 2, 3, 4, 5)])) is None


def test_a_pods_rates_are_differences_over_the_time_between_readings():
    frame = feed(
        sample(10, pods=[pod("a/p", 100, 10, 50, 5, 1)]), sample(12, pods=[pod("a/p", 1100, 30, 50, 9, 2)])
    )
    (row,) = frame.pods
    assert (row.bytes_in, row.packets_in, row.bytes_out, row.packets_out, row.drops) == (500, 10, 0, 2, 0.5)
    (node,) = frame.nodes
    assert (node.pods, node.bytes_in, node.packets_out, node.new) == (1, 500, 2, None)
    assert frame.interval_s == 2


def test_a_counter_that_went_down_was_begun_anew():
    frame = feed(
        sample(10, pods=[pod("a/p", 1000, 10, 1, 1, 0)]), sample(11, pods=[pod("a/p", 40, 4, 1, 1, 0)])
    )
    assert (frame.pods[0].bytes_in, frame.pods[0].packets_in) == (40, 4)


def test_a_pod_that_came_between_two_rounds_counts_from_nothing():
    frame = feed(sample(10), sample(11, pods=[pod("a/p", 40, 4, 1, 1, 0)]))
    assert frame.pods[0].bytes_in == 40


def test_a_part_that_was_not_read_again_keeps_its_rates():
    rows = [[ServiceCount("a/s", 10)], [ServiceCount("a/s", 30)], [ServiceCount("a/s", 30)]]
    frame = feed(
        sample(10, services=rows[0]),
        sample(12, services=rows[1]),
        sample(13, services=rows[2], services_at=12),
    )
    assert frame.services[0].new == 10


@pytest.mark.parametrize(
    ("plane", "accounting", "expected"),
    [
        pytest.param((30, 900, 90, 600, 60), True, (10, 300, 200), id="the data plane counts everything"),
        pytest.param((30, -1, -1, -1, -1), True, (10, 50, 20), id="bytes by connection tracking"),
        pytest.param((30, -1, -1, -1, -1), False, (10, None, None), id="nobody counts bytes"),
        pytest.param(None, True, (1, 50, 20), id="no data plane of ours"),
    ],
)
def test_a_services_figures_come_from_whoever_counts_them(plane, accounting, expected):
    """The data plane knows connections that came and went between two readings."""
    tallies = [(5, 0, 0, 0, 0, 0), (5, 3, 150, 3, 60, 3)]
    rounds = []
    for at, numbers, share in ((10, tallies[0], 0), (13, tallies[1], 1)):
        tally = Tally(*numbers) if accounting else Tally(*numbers[:2])
        rows = (
            []
            if plane is None
            else [ServiceCount("a/s", *(max(item * share, min(item, 0)) for item in plane))]
        )
        rounds.append(
            sample(at, services=rows, tracked=tracked(at, accounting=accounting, services={"a/s": tally}))
        )
    (row,) = feed(*rounds).services
    assert (row.new, row.bytes_in, row.bytes_out) == expected
    assert row.active == 5


def test_a_service_without_any_connection_has_none_rather_than_unknown():
    rounds = [sample(at, services=[ServiceCount("a/s", 0)], tracked=tracked(at)) for at in (1, 2)]
    (row,) = feed(*rounds).services
    assert (row.bytes_in, row.new, row.active) == (0, 0, 0)


def test_where_sockets_are_translated_connection_tracking_knows_too_little_of_services():
    tallies = {"a/s": Tally(1, 0, 0, 0, 0, 0)}
    rounds = [
        sample(at, services=[ServiceCount("a/s", at * 2)], tracked=tracked(at, services=tallies))
        for at in (1, 2)
    ]
    rounds = [
        structs.replace(
            item,
            counted=structs.replace(
                item.counted, services=structs.replace(item.counted.services, planes=("ebpf", "nftables"))
            ),
        )
        for item in rounds
    ]
    (row,) = feed(*rounds).services
    assert (row.new, row.bytes_in, row.active) == (2, None, None)


def test_services_of_several_nodes_are_added_up_unless_wanted_apart():
    rounds = [
        [sample(at, node=node, services=[ServiceCount("a/s", at * 4)]) for node in ("n1", "n2")]
        for at in (1, 2)
    ]
    frame = feed(*rounds)
    (row,) = views.rows_of(frame, "services")
    assert (row.node, row.new, row.bytes_in) == ("2 nodes", 8, None)
    assert [row.node for row in views.rows_of(frame, "services", apart=True)] == ["n1", "n2"]
    (row,) = views.rows_of(frame, "services", node="n2")
    assert (row.node, row.new) == ("n2", 4)


def test_a_node_that_does_not_answer_has_its_trouble_and_no_rows():
    silent = Sample(node="n2", time=2, troubles={"agent": "is away"})
    frame = feed([sample(1), sample(1, node="n2")], [sample(2, pods=[pod("a/p", 1, 1, 1, 1, 0)]), silent])
    assert {node.node: node.troubles for node in frame.nodes} == {"n1": (), "n2": ("agent: is away",)}
    assert [row.pod for row in frame.pods] == ["a/p"]


def test_policies_that_deny_nothing_are_shown_when_asked_for():
    rows = [PolicyCount("NetworkPolicy a/x", "ingress", 5, 50), PolicyCount("spoofed source", "egress", 0, 0)]
    frame = feed(sample(1), sample(2, policies=rows))
    assert [row.policy for row in views.rows_of(frame, "policies")] == ["NetworkPolicy a/x"]
    assert [row.policy for row in views.rows_of(frame, "policies", words="spoof")] == ["spoofed source"]
    assert len(views.rows_of(frame, "policies", silent=True)) == 2
    assert frame.nodes[0].denied == 5


@pytest.mark.parametrize(
    ("key", "ascending", "expected"),
    [
        pytest.param("busiest", False, "bca", id="the busiest first"),
        pytest.param("bytes_in", True, "acb", id="the least first"),
        pytest.param("pod", False, "abc", id="by name"),
        pytest.param("pod", True, "cba", id="by name, backwards"),
        pytest.param("active", False, "cab", id="what is not counted comes last"),
        pytest.param("active", True, "acb", id="also the other way round"),
        pytest.param("drops", False, "abc", id="equals by name"),
    ],
)
def test_rows_are_ordered(key, ascending, expected):
    tallies = {"x/a": Tally(1, 0), "x/c": Tally(4, 0)}
    rows = [pod(f"x/{name}", size, 1, 0, 0, 0) for name, size in (("c", 20), ("a", 10), ("b", 30))]
    frame = feed(sample(1), sample(2, pods=rows, tracked=tracked(2, pods=tallies)))
    for row in frame.pods:
        if row.pod == "x/b":
            row.active = None
    found = views.ordered(views.rows_of(frame, "pods"), "pods", key, ascending=ascending)
    assert "".join(row.pod[-1] for row in found) == expected


@given(st.floats(0, 1e12))
def test_a_number_in_a_cell_is_short_and_near(value):
    text = views.human(value)
    assert len(text) <= 5
    factor = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
    assert float(text.rstrip("kMG")) * factor == pytest.approx(value, rel=0.05, abs=0.06)


COUNTS = st.lists(st.integers(0, 2**63), min_size=2, max_size=6)


@given(COUNTS, st.integers(1, 10))
@settings(max_examples=50)
def test_rates_times_seconds_add_up_to_what_a_growing_counter_counted(steps, seconds):
    rates, total, shown = Rates(), 0, 0.0
    for index, step in enumerate(steps):
        total += step
        frame = rates.feed({"n1": sample(1 + index * seconds, pods=[pod("a/p", total, 0, 0, 0, 0)])})
        if frame is not None:
            shown += frame.pods[0].bytes_in * seconds
    assert shown == pytest.approx(sum(steps[1:]))


# --- connections ---


def entry(source, target, server, *, ident=1, state=3, protocol=6, port=80, server_port=8080, counts=None):
    sent, answered = (Count(*counts[:2]), Count(*counts[2:])) if counts else (None, None)
    return Entry(
        Family.V4,
        protocol,
        Tuple(pack(source), pack(target), 4000 + ident, port),
        Tuple(pack(server), pack(source), server_port, 4000 + ident),
        state=state,
        ident=ident,
        sent=sent,
        answered=answered,
    )


PODS = {pack("10.0.0.1"): "a/client", pack("10.0.0.2"): "a/server"}
FIND = finder({(pack("10.96.0.1"), 6, 80): "a/s", (b"", 6, 30080): "a/np"}, frozenset({pack("192.0.2.1")}))


def read(tallier, *entries, accounting=True):
    return tallier.read(entries, PODS, FIND, accounting=accounting)


def test_connections_count_for_opener_server_and_service():
    tallier = Tallier()
    assert read(tallier) == 0
    number = read(
        tallier,
        entry("10.0.0.1", "10.96.0.1", "10.0.0.2", ident=1, counts=(2, 200, 1, 100)),
        entry("10.0.0.1", "203.0.113.9", "203.0.113.9", ident=2, counts=(1, 60, 0, 0), state=1),
        entry("203.0.113.7", "192.0.2.1", "10.0.0.2", ident=3, port=30080, counts=(1, 5, 1, 7), state=7),
        entry("172.20.0.1", "172.20.0.2", "172.20.0.2", ident=4, counts=(9, 9, 9, 9)),
    )
    assert number == 4
    assert tallier.pods() == {
        "a/client": Tally(1, 2, 260, 3, 100, 1),
        "a/server": Tally(1, 2, 205, 3, 107, 2),
    }
    assert tallier.services() == {"a/s": Tally(1, 1, 200, 2, 100, 1), "a/np": Tally(0, 1, 5, 1, 7, 1)}


def test_what_was_there_before_the_first_reading_is_active_but_not_new():
    tallier = Tallier()
    was = entry("10.0.0.1", "10.96.0.1", "10.0.0.2", counts=(10, 1000, 10, 1000))
    read(tallier, was)
    assert tallier.services() == {"a/s": Tally(1, 0, 0, 0, 0, 0)}
    read(tallier, was._replace(sent=Count(12, 1500)))
    assert tallier.services() == {"a/s": Tally(1, 0, 500, 2, 0, 0)}
    read(tallier)
    assert tallier.services() == {"a/s": Tally(0, 0, 500, 2, 0, 0)}


def test_without_accounting_connections_are_counted_and_bytes_are_not_claimed():
    tallier = Tallier()
    read(tallier, accounting=False)
    read(tallier, entry("10.0.0.1", "10.96.0.1", "10.0.0.2"), accounting=False)
    assert tallier.services() == {"a/s": Tally(1, 1)}
    assert tallier.services()["a/s"].bytes_out == -1


@given(st.lists(st.dictionaries(st.integers(1, 9), st.integers(0, 50), max_size=6), min_size=1, max_size=8))
@settings(max_examples=60)
def test_readings_add_up_to_what_connections_carried_since_the_first_one(steps):
    """Connections come, grow and go in any order; each step says by how much those that are there have grown."""
    tallier, sizes, carried, new = Tallier(), {}, 0, 0
    for number, step in enumerate(steps):
        for ident in set(sizes) - set(step):
            del sizes[ident]
        for ident, growth in step.items():
            if number:
                new += ident not in sizes
                carried += growth
            sizes[ident] = sizes.get(ident, 0) + growth
        read(
            tallier,
            *(
                entry("10.0.0.1", "10.96.0.1", "10.0.0.2", ident=ident, counts=(1, size, 1, 0))
                for ident, size in sizes.items()
            ),
        )
    found = tallier.services().get("a/s", Tally(0, 0, 0, 0, 0, 0))
    assert (found.new, found.bytes_out, found.active) == (new, carried, len(sizes))


# --- /proc/net/dev ---

DEV = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:   10       1    0    2    0     0          0         0       11       3    0    4    0     0       0          0
veth0:1: 9223372036854775807 7 0 0 0 0 0 0 5 6 0 0 0 0 0 0
"""


def test_counters_of_interfaces_are_read_by_name():
    assert linkcounts.decode(DEV) == {
        "lo": LinkCount(10, 1, 2, 11, 3, 4),
        "veth0:1": LinkCount(2**63 - 1, 7, 0, 5, 6, 0),
    }


def test_a_line_that_makes_no_sense_is_named():
    with pytest.raises(KernelError, match="eth0: 1 2"):
        linkcounts.decode(DEV + b"eth0: 1 2\n")
