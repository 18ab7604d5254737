"""Sweeping connection tracking: entries of all shapes are judged by what they are, and large tables are cheap."""

from __future__ import annotations

import ipaddress
import os
import struct
import time

import pytest

from pycni.kernel import conntrack
from pycni.kernel import netns as namespaces
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.model.family import Family
from pycni.model.kube import UDP
from pycni.wire.netlink import attr, attr_be16, message

NEW, CREATE_EXCL = 0x100, 0x600
CTA_STATUS, CTA_TIMEOUT, CTA_REPLY = 3, 7, 2


def pack(text):
    return ipaddress.ip_address(text).packed


def entry(family, original, reply, zone=0):
    def tuple_as(kind, value):
        whole = conntrack.encode_tuple(conntrack.TUPLE_ORIG, family, UDP, value)
        return struct.pack("=HH", len(whole), kind | 0x8000) + whole[4:]

    body = bytes((family, 0, 0, 0)) + tuple_as(1, original) + tuple_as(CTA_REPLY, reply)
    if zone:
        body += attr_be16(18, zone)
    confirmed_assured = 0x8 | 0x4
    return message(
        NEW,
        CREATE_EXCL,
        body
        + attr(CTA_TIMEOUT, struct.pack(">I", 600))
        + attr(CTA_STATUS, struct.pack(">I", confirmed_assured)),
    )


def inside(netns, function):
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        return namespaces.run_in(fd, function)
    finally:
        os.close(fd)


def make(entries):
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        errors = [error for error in sock.batch(entries, "make entries") if error]
    assert errors == []


def flow(client, port, target, target_port, server, server_port):
    return (
        conntrack.Tuple(client, target, port, target_port),
        conntrack.Tuple(server, client, server_port, port),
    )


WORLDS = {
    Family.V4: [pack(text) for text in ("10.0.0.1", "10.96.0.1", "10.244.0.1", "10.244.0.2")],
    Family.V6: [pack(text) for text in ("fd00::1", "fd00:96::1", "fd00:244::1", "fd00:244::2")],
}


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
@pytest.mark.parametrize("ports", [{53}, set(range(40, 60))], ids=["asked port by port", "read whole"])
def test_only_what_is_judged_stale_goes_whatever_its_zone(netns, family, ports):
    client, vip, one, two = WORLDS[family]
    kept = [
        flow(client, 1, vip, 53, one, 5353),
        flow(client, 2, vip, 99, two, 5353),
        flow(client, 3, two, 53, two, 53),
    ]
    doomed = [flow(client, 4, vip, 53, two, 5353), flow(client, 5, vip, 53, vip, 53)]

    def scenario():
        make(
            [entry(family, *item) for item in kept + doomed]
            + [entry(family, *flow(client, 6, vip, 53, two, 5353), zone=7)]
        )
        found = conntrack.sweep(
            family, UDP, ports, lambda target, _tp, source, _sp: target == vip and source != one
        )
        with NetlinkSocket(NETLINK_NETFILTER) as sock:
            left = {
                item.original.source_port
                for port in (53, 99)
                for item in conntrack.flows(sock, family, UDP, port)
            }
        return found, left

    (looked, gone), left = inside(netns, scenario)
    assert (looked, gone) == (5, 3)
    assert left == {1, 2, 3}


def test_the_quick_way_to_read_entries_gives_what_the_attributes_say():
    for family in Family:
        client, vip, one, _ = WORLDS[family]
        payload = entry(family, *flow(client, 1000, vip, 53, one, 5353))[16:]
        quick = conntrack._ends(payload, family)
        # Another first attribute makes it walk the attributes.
        slow = conntrack._ends(payload[:4] + attr(30, b"1234") + payload[4:], family)
        assert quick == slow == (UDP, vip, 53, one, 5353)


def test_a_table_of_many_thousands_costs_little(netns, capsys):
    count = 50_000

    def scenario():
        entries = [
            entry(
                Family.V4,
                *flow(
                    struct.pack(">I", 0x0A000001 + number),
                    1000,
                    pack("10.96.0.1"),
                    53,
                    pack(f"10.244.0.{number % 5}"),
                    5353,
                ),
            )
            for number in range(count)
        ]
        make(entries)
        del entries
        times = []
        for ports in ({54}, {53}, set(range(50, 60))):
            started = time.perf_counter()
            looked, gone = conntrack.sweep(Family.V4, UDP, ports, lambda *_ends: False)
            times.append((time.perf_counter() - started, looked, gone))
        return times

    (none, _, _), (port, looked, _), (whole, _, _) = inside(netns, scenario)
    with capsys.disabled():
        print(
            f"\n{count} entries: no match {none * 1e3:.0f} ms, all of one port {port * 1e3:.0f} ms, read whole {whole * 1e3:.0f} ms"
        )
    assert looked == count
    assert none < 0.5
    assert whole < 5
