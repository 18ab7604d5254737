"""Connections as the fast path's programs remember them: how long, whose, and under which key."""

from __future__ import annotations

import pytest

from pycni.policy.ebpf import flows
from pycni.policy.ebpf.flows import ANSWERED, BEGAN, ENDED, ICMP, RESET, SCTP, SECOND, TCP, UDP, Flow, Times
from pycni.policy.ebpf.layout import pack_address

ONE, OTHER = (pack_address(bytes((10, 244, 1, last))) for last in (11, 12))
TIMES = Times()


def entry(protocol: int, low: int, high: int, age: float, now: int = 10**15) -> tuple[bytes, bytes]:
    key, _ = flows.flow_key((ONE, 1), (OTHER, 2), protocol)
    used = now - int(age * SECOND)
    return key, Flow(used, 4, 5, bytes(6), bytes(6), low, high, 1500, 1).pack()


@pytest.mark.parametrize(
    ("protocol", "low", "high", "seconds"),
    [
        (TCP, BEGAN, 0, 120),
        (TCP, BEGAN, ANSWERED, 120),
        (TCP, BEGAN | ANSWERED, ANSWERED, 432000),
        (TCP, ANSWERED | ENDED, ANSWERED, 120),
        (TCP, ANSWERED, ANSWERED | RESET, 10),
        (SCTP, BEGAN | ANSWERED, ANSWERED, 210),
        (UDP, ANSWERED, 0, 30),
        (UDP, ANSWERED, ANSWERED, 120),
        (ICMP, ANSWERED, ANSWERED, 120),
    ],
)
def test_a_connection_ends_when_it_was_quiet_for_its_state_s_time(
    protocol: int, low: int, high: int, seconds: int
) -> None:
    for age, over in ((seconds - 1, False), (seconds + 1, True)):
        key, raw = entry(protocol, low, high, age)
        assert list(flows.ended(key, raw, 10**15, TIMES, {4, 5})) == ([key] if over else [])


@pytest.mark.parametrize(("devices", "over"), [({4, 5}, False), ({4}, True), ({5, 6}, True), (set(), True)])
def test_connections_of_interfaces_that_are_gone_end(devices: set[int], over: bool) -> None:
    key, raw = entry(TCP, ANSWERED, ANSWERED, 0)
    assert list(flows.ended(key, raw, 10**15, TIMES, devices)) == ([key] if over else [])
    assert list(flows.of_devices(key, raw, {4, 5} - devices)) == ([key] if over else [])


def test_many_entries_are_told_apart() -> None:
    parts = [entry(protocol, ANSWERED, ANSWERED, age) for protocol in (TCP, UDP) for age in (1, 200)]
    keys, rows = (b"".join(part) for part in zip(*parts, strict=True))
    assert list(flows.ended(keys, rows, 10**15, TIMES, {4, 5})) == [parts[3][0]]


@pytest.mark.parametrize(
    ("protocol", "state", "seconds"), [(UDP, ANSWERED, 200), (TCP, BEGAN, 120), (TCP, RESET, 10)]
)
def test_notes_outlive_what_connection_tracking_remembers(protocol: int, state: int, seconds: int) -> None:
    key, _ = entry(protocol, 0, 0, 0)
    for age, over in ((seconds - 1, False), (seconds + 1, True)):
        raw = (10**15 - age * SECOND).to_bytes(8, "little") + bytes((state, 0)) + bytes(6)
        assert list(flows.forgotten(key, raw, 10**15, TIMES)) == ([key] if over else [])


def test_both_directions_have_one_key() -> None:
    there, upper = flows.flow_key((ONE, 40000), (OTHER, 80), TCP)
    back, lower = flows.flow_key((OTHER, 80), (ONE, 40000), TCP)
    assert there == back
    assert upper is not lower
    assert there != flows.flow_key((ONE, 40000), (OTHER, 80), UDP)[0]
    assert there != flows.flow_key((ONE, 80), (OTHER, 40000), TCP)[0]


def test_open_connections_are_told_with_the_time_they_have_left() -> None:
    states = [
        (TCP, ANSWERED, ANSWERED),
        (TCP, BEGAN, 0),
        (TCP, ANSWERED, ANSWERED | ENDED),
        (UDP, ANSWERED, ANSWERED),
    ]
    parts = [entry(*state, 20) for state in states] + [entry(UDP, ANSWERED, ANSWERED, 500)]
    keys, rows = (b"".join(part) for part in zip(*parts, strict=True))
    ends = (b"\x0a\xf4\x01\x0b", 1, b"\x0a\xf4\x01\x0c", 2)
    found = list(flows.open_ones(keys, rows, 10**15, TIMES))
    assert found == [(*ends, TCP, 431980), (*ends, UDP, 100)]


def test_connections_of_hosts_are_found_at_both_ends() -> None:
    third = pack_address(b"\x0a\xf4\x01\x0d")
    keys = b"".join(
        flows.flow_key((one, 1), (other, 2), TCP)[0]
        for one, other in ((ONE, OTHER), (OTHER, third), (third, ONE))
    )
    found = list(flows.of_hosts(keys, {ONE}))
    assert found == [keys[:40], keys[80:]]
