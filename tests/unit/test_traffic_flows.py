"""Flows from events: names, verdicts, durations, what is told after a loss, filters, order, lines for people."""

from __future__ import annotations

import ipaddress
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.traffic import filters, names
from pycni.traffic.denials import denial
from pycni.traffic.filters import FilterError
from pycni.traffic.follow import LIMIT, Follower
from pycni.traffic.merge import Merge
from pycni.traffic.model import Flow, Listening, Lost, Names, ServiceName, ServiceNames
from pycni.traffic.names import Book
from pycni.traffic.text import text
from pycni.wire import ctnetlink
from pycni.wire.ctnetlink import Count, Entry, Event, Tuple

S = 1_000_000_000
NEW, UPDATE, DESTROY = ctnetlink.GROUP_NEW, ctnetlink.GROUP_UPDATE, ctnetlink.GROUP_DESTROY


def pack(text):
    return ipaddress.ip_address(text).packed


def entry(source="10.0.0.1", target="10.96.0.1", server="10.0.1.2", back="", ident=1, protocol=6, **more):
    family = Family.V6 if ":" in source else Family.V4
    there = Tuple(pack(source), pack(target), 4000, 80)
    answer = Tuple(
        pack(server), pack(back or source), 8080 if server != target else 80, 4000 if not back else 61000
    )
    return Entry(family, protocol, there, answer, ident=ident, **more)


def event(kind, at, **fields):
    return Event(kind, entry(**fields), at * S)


def book():
    found = Book()
    found.put(
        Names(
            node="n1",
            generation="1",
            addresses=("172.20.0.1", "127.0.0.1", "fe80::1"),
            pods={"10.0.0.1": "a/client", "10.0.1.2": "b/stale"},
            local=("10.0.0.1",),
            nodes={"172.20.0.2": "n2"},
            services=ServiceNames(
                frontends=(
                    ServiceName("10.96.0.1", "TCP", 80, "b/web"),
                    ServiceName("", "TCP", 30080, "b/web"),
                ),
            ),
        )
    )
    found.put(
        Names(
            node="n2",
            generation="1",
            addresses=("172.20.0.2", "127.0.0.1"),
            pods={"10.0.1.2": "b/web-1"},
            local=("10.0.1.2",),
            services=ServiceNames(
                endpoints=(
                    ServiceName("10.0.1.2", "TCP", 8080, "b/web"),
                    ServiceName("10.0.1.2", "TCP", 9090, "b/web"),
                    ServiceName("10.0.1.2", "TCP", 9090, "b/also"),
                )
            ),
        )
    )
    return found


def flow(**fields):
    usual = {
        "time": 1.0,
        "node": "n1",
        "event": "new",
        "verdict": "allowed",
        "protocol": "TCP",
        "source": "10.0.0.1",
    }
    return Flow(**{**usual, "source_port": 4000, "destination": "10.96.0.1", "port": 80, **fields})


# --- following ---


def test_a_connection_through_a_service_has_both_its_addresses():
    found = book().describe(Follower("n1").flow(event(NEW, 5, back="172.20.0.1")))
    assert (found.event, found.verdict, found.time) == ("new", "allowed", 5.0)
    assert (found.source_name, found.service, found.translated_name) == ("a/client", "b/web", "b/web-1")
    assert (found.translated_destination, found.translated_port) == ("10.0.1.2", 8080)
    assert (found.translated_source, found.translated_source_port) == ("172.20.0.1", 61000)
    assert found.duration_s == -1


def test_a_tcp_connection_ends_when_it_is_closed_and_is_not_told_again_when_it_is_forgotten():
    follower = Follower("n1")
    follower.flow(event(NEW, 5))
    ended = follower.flow(
        event(UPDATE, 7, state=ctnetlink.TIME_WAIT, sent=Count(3, 300), answered=Count(2, 900))
    )
    assert (ended.event, ended.state, ended.duration_s) == ("ended", "time-wait", 2.0)
    assert (ended.bytes_out, ended.packets_out, ended.bytes_back, ended.packets_back) == (300, 3, 900, 2)
    assert follower.flow(event(DESTROY, 127)) is None
    assert follower.flow(event(NEW, 200)).event == "new"
    assert follower.flow(event(DESTROY, 203)).duration_s == 3.0


def test_other_changes_are_told_as_such():
    follower = Follower("n1")
    follower.flow(event(NEW, 5))
    changed = follower.flow(event(UPDATE, 6, state=3))
    assert (changed.event, changed.state, changed.duration_s) == ("changed", "established", 1.0)


def test_what_began_before_is_told_to_end_without_a_duration_that_nobody_knows():
    follower = Follower("n1")
    follower.begin([entry()])
    ended = follower.flow(event(DESTROY, 7, protocol=17))
    assert (ended.event, ended.protocol, ended.duration_s) == ("ended", "UDP", -1)


def test_the_kernels_own_times_go_before_ours():
    found = Follower("n1").flow(event(DESTROY, 9, protocol=17, started_ns=2 * S, stopped_ns=6 * S))
    assert found.duration_s == 4.0


def test_after_a_loss_what_is_still_there_is_told_once_and_what_is_gone_is_forgotten():
    follower = Follower("n1")
    follower.flow(event(NEW, 1, ident=1))
    follower.flow(event(NEW, 1, ident=2))
    table = [entry(ident=2), entry(ident=3), entry(ident=4, state=ctnetlink.TIME_WAIT)]
    again = list(follower.resync(table, 9 * S))
    assert [(item.ident, item.event, item.resynced) for item in again] == [(3, "new", True), (4, "new", True)]
    assert follower.flow(event(NEW, 8, ident=3)) is None, "its event came after the table was read"
    assert follower.flow(event(DESTROY, 10, ident=4)) is None
    assert follower.flow(event(DESTROY, 11, ident=2)).duration_s == 10.0
    assert follower.flow(event(NEW, 12, ident=3)).event == "new", "another one with the same number"
    assert list(follower.resync([], 13 * S)) == []


def test_no_more_is_remembered_than_a_table_holds():
    follower = Follower("n1")
    follower.begin(entry(ident=ident) for ident in range(1, 101))
    made = entry()
    for ident in range(LIMIT + 50):
        follower._remember(made.ident + ident, 1)
    assert len(follower._began) == LIMIT


def test_entries_of_the_table_are_present_and_pings_have_no_ports():
    (found,) = Follower("n1").present([entry(protocol=1, target="10.0.1.2", started_ns=3 * S)], 4 * S)
    assert (found.event, found.protocol, found.source_port, found.port) == ("present", "ICMP", 0, 0)
    assert (found.translated_destination, found.duration_s, found.answered) == ("", 1.0, False)


# --- names ---


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("10.0.0.1", "a/client"),
        ("10.0.1.2", "b/web-1"),
        ("172.20.0.1", "node/n1"),
        ("172.20.0.2", "node/n2"),
        ("127.0.0.1", ""),
        ("fe80::1", ""),
        ("203.0.113.1", ""),
    ],
)
def test_who_has_an_address(address, name):
    """The node that runs a pod knows its name best; addresses every node has are nobody's."""
    assert book().name(address) == name


@pytest.mark.parametrize(
    ("where", "service"),
    [
        (("10.96.0.1", "TCP", 80), "b/web"),
        (("10.96.0.1", "UDP", 80), ""),
        (("172.20.0.2", "TCP", 30080), "b/web"),
        (("203.0.113.1", "TCP", 30080), ""),
    ],
)
def test_which_service_is_met_where(where, service):
    assert book().service(*where) == service


def test_a_services_address_that_was_not_translated_says_so():
    found = book().describe(flow())
    assert (found.verdict, found.service) == ("untranslated", "b/web")
    assert book().describe(flow(verdict="denied")).verdict == "denied"


@pytest.mark.parametrize(("port", "via"), [(8080, "b/web"), (9090, "b/web|b/also"), (1, "")])
def test_where_a_data_plane_translates_first_the_endpoint_tells_which_service_it_may_have_been(port, via):
    assert book().describe(flow(destination="10.0.1.2", port=port)).via == via


def test_a_newer_answer_of_an_agent_takes_the_place_of_its_earlier_one():
    found = book()
    assert not found.put(Names(node="n2", generation="1", fresh=False))
    assert found.name("10.0.1.2") == "b/web-1"
    assert found.put(Names(node="n2", generation="2"))
    assert (found.name("10.0.1.2"), found.generation("n2")) == ("b/stale", "2")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, True, id="a pod"),
        pytest.param({"source": "172.20.0.1", "destination": "172.20.0.2"}, False, id="two nodes"),
        pytest.param({"source": "172.20.0.1"}, True, id="a node to a service"),
        pytest.param({"source": "172.20.0.1", "destination": "203.0.113.9"}, False, id="a node to the world"),
        pytest.param({"source": "1.1.1.1", "destination": "2.2.2.2", "verdict": "denied"}, True, id="denied"),
    ],
)
def test_what_concerns_neither_pods_nor_services_can_be_left_out(fields, expected):
    assert names.of_pods(book().describe(flow(**fields))) is expected


# --- filters ---

SOME = {
    "service": {"source_name": "a/client", "service": "b/web", "translated_destination": "10.0.1.2", "translated_port": 8080, "translated_name": "b/web-1"},
    "denied": {"source_name": "a/other", "destination": "10.0.1.2", "destination_name": "b/web-1", "port": 8080, "verdict": "denied", "policy": "NetworkPolicy b/closed"},
    "dns": {"source_name": "node/n1", "protocol": "UDP", "port": 53, "destination": "fd00::5", "via": "x/dns|y/dns"},
    "ping": {"protocol": "ICMPv6", "source_port": 0, "port": 0, "verdict": "untranslated"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "options", "expected"),
    [
        ((), {}, "service denied dns ping"),
        (("denied",), {}, "denied"),
        (("untranslated",), {}, "ping"),
        (("udp",), {}, "dns"),
        (("icmpv6",), {}, "ping"),
        ((":8080",), {}, "service denied"),
        ((":4000",), {}, "service denied dns"),
        (("10.0.1.0/24",), {}, "service denied"),
        (("fd00::/64",), {}, "dns"),
        (("10.0.1.2", "allowed"), {}, "service"),
        (("b/web",), {}, "service"),
        (("web-1",), {}, "service denied"),
        (("web*",), {}, "service denied"),
        (("b/closed",), {}, "denied"),
        (("y/dns",), {}, "dns"),
        (("node/n1",), {}, "dns"),
        ((), {"pods": ["client", "other"]}, "service denied"),
        ((), {"pods": ["b/*"], "verdicts": ["denied"]}, "denied"),
        ((), {"services": ["web", "dns"]}, "service dns"),
        ((), {"protocols": ["tcp"], "ports": [80]}, "service"),
        ((), {"addresses": ["fd00::5", "10.0.1.2"]}, "service denied dns"),
        (("client",), {"verdicts": ["denied"]}, ""),
    ],
)
def test_filters(words, options, expected):
    fits = filters.make(words, **options)
    assert [name for name, fields in SOME.items() if fits(flow(**fields))] == expected.split()


@pytest.mark.parametrize(
    ("words", "options", "said"),
    [
        (("",), {}, "filter ''"),
        (("two words",), {}, "two words"),
        ((), {"addresses": ["10.0.0.300"]}, "10.0.0.300"),
        ((), {"pods": [""]}, "empty"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(words, options, said):
    with pytest.raises(FilterError, match=said) as caught:
        filters.make(words, **options)
    assert caught.value.usage


# --- order ---


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 3)), max_size=40))
def test_lines_that_are_late_by_less_than_the_hold_come_in_order(some):
    merge, out = Merge(3.0, 1000), []
    for at, late in sorted(some, key=sum):
        out += merge.due(at + late)
        merge.put(Lost(time=at, node="", what=""))
    out += merge.rest()
    assert [item.time for item in out] == sorted(at for at, _ in some)


def test_no_more_is_held_than_the_limit():
    merge = Merge(3.0, 10)
    for number in range(25):
        merge.put(Lost(time=100.0 + number, node="", what=""))
    assert [item.time for item in merge.due(0.0)] == [100.0 + number for number in range(15)]
    assert len(merge) == 10


# --- denials, lines ---


def test_denials_of_an_agent_become_flows():
    line = {
        "time": 4.5, "node": "n1", "source": "10.0.0.1", "source_pod": "a/client", "source_port": 4000,
        "destination": "10.0.1.2", "destination_pod": "", "port": 8080, "protocol": "TCP",
        "direction": "ingress", "policy": "NetworkPolicy b/closed", "more": 1, "by": "nftables",
    }  # fmt: skip
    found = book().describe(denial(msgspec.json.encode(line)))
    assert (found.verdict, found.event, found.policy) == ("denied", "denied", "NetworkPolicy b/closed")
    assert (found.destination_name, found.more, found.time) == ("b/web-1", 1, 4.5)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ({"node": "n1", "listening": True}, Listening(time=9.0, node="n1", what="denials")),
        (
            {"node": "n1", "lost": 4},
            Lost(time=9.0, node="n1", what="denials: more than rules tell of", count=4),
        ),
        ({"node": "n1", "trouble": "gone"}, Lost(time=9.0, node="n1", what="denials: gone")),
        ({"node": "n1", "error": "taken"}, Lost(time=9.0, node="n1", what="denials: taken")),
    ],
)
def test_what_an_agent_says_beside_denials_is_passed_on(line, expected):
    assert denial(msgspec.json.encode(line), 9.0) == expected


LINES = [
    (
        {"source_name": "a/client", "service": "b/web", "translated_destination": "10.0.1.2", "translated_port": 8080, "translated_name": "b/web-1", "translated_source": "172.20.0.1", "translated_source_port": 61000},
        "n1 + allowed      TCP   a/client (10.0.0.1:4000) -> b/web (10.96.0.1:80) => b/web-1 (10.0.1.2:8080) as 172.20.0.1:61000",
    ),
    (
        {"event": "denied", "verdict": "denied", "destination": "fd00::2", "port": 8080, "policy": "NetworkPolicy b/closed", "direction": "ingress", "more": 2},
        "n1 x denied       TCP   10.0.0.1:4000 -> [fd00::2]:8080 ingress by NetworkPolicy b/closed and 2 more",
    ),
    (
        {"event": "ended", "answered": True, "state": "time-wait", "duration_s": 1.25, "bytes_out": 1234, "bytes_back": 0, "via": "b/web"},
        "n1 - allowed      TCP   10.0.0.1:4000 -> 10.96.0.1:80 via b/web? time-wait 1.23kB out 0B back 1.250 s",
    ),
    (
        {"event": "new", "resynced": True},
        "n1 + allowed      TCP   10.0.0.1:4000 -> 10.96.0.1:80 (found after a loss)",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), LINES, ids=["service", "denied", "ended", "resynced"])
def test_a_flow_as_a_line(fields, expected):
    found = text(flow(**fields))
    assert found.partition(" ")[2] == expected
    assert found.partition(" ")[0].startswith(time.strftime("%H:%M:%S", time.localtime(1.0)))
    assert "\033[" in text(flow(**fields), colours=True)


def test_a_loss_is_a_line_too():
    found = text(Lost(time=1.0, node="n1", what="denials: more than rules tell of", count=7))
    assert found.endswith("n1 LOST 7 denials: more than rules tell of")


def test_flows_and_losses_survive_the_way_between_programs():
    some = [flow(), Lost(time=1.0, node="n1", what="x"), Listening(time=2.0, node="n1", what="connections")]
    lines = msgspec.json.Encoder().encode_lines(some).splitlines()
    decoder = msgspec.json.Decoder(Flow | Lost | Listening)
    assert [decoder.decode(line) for line in lines] == some
