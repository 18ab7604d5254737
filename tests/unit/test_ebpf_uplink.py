"""What of the uplink's programs is decided outside the kernel: whom they serve, what they may forget."""

from __future__ import annotations

import pytest

from pycni.model.kube import TCP
from pycni.wire import rtnl
from pycni.wire.rtnl import RouteInfo
from pycni_proxy.ebpf import layout, sources, uplink
from pycni_proxy.ebpf.layout import ANSWERED, FIN, LEFT, RESET, Tuple, pack_address
from tests.unit.service_world import net, pack


def route(destination: str, oif: int, *, kind: int = rtnl.RTN_UNICAST, multipath: bool = False) -> RouteInfo:
    network = net(destination)
    return RouteInfo(
        family=2 if network.version == 4 else 10,
        table=254,
        protocol=4,
        scope=0,
        kind=kind,
        destination=network.network_address.packed,
        prefix_len=network.prefixlen,
        oif=oif,
        gateway=b"",
        source=b"",
        metric=0,
        flags=0,
        multipath=multipath,
        mtu=0,
    )


def served(routes: list[RouteInfo], client: str, cluster=()) -> bool:
    """What the kernel's longest match finds."""
    rows = sources.rows(routes, 2, tuple(map(net, cluster)))
    best = max(
        (key for key in rows if _holds(key, pack(client))), key=lambda key: int.from_bytes(key[:4], "little")
    )
    return rows[best] != bytes(4)


def _holds(key: bytes, address: bytes) -> bool:
    shift = 128 - int.from_bytes(key[:4], "little")
    return int.from_bytes(key[4:], "big") >> shift == int.from_bytes(pack_address(address), "big") >> shift


@pytest.mark.parametrize(
    ("routes", "client", "cluster", "expected"),
    [
        ([route("0.0.0.0/0", 2)], "192.0.2.1", (), True),
        ([route("0.0.0.0/0", 3)], "192.0.2.1", (), False),
        ([route("::/0", 2)], "192.0.2.1", (), False),
        ([route("::/0", 2)], "2001:db8::1", (), True),
        ([route("0.0.0.0/0", 2), route("192.0.2.0/24", 3)], "192.0.2.1", (), False),
        ([route("0.0.0.0/0", 3), route("192.0.2.0/24", 2)], "192.0.2.1", (), True),
        ([route("0.0.0.0/0", 2), route("0.0.0.0/0", 3)], "192.0.2.1", (), False),
        ([route("0.0.0.0/0", 3), route("0.0.0.0/0", 2)], "192.0.2.1", (), False),
        ([route("0.0.0.0/0", 2, multipath=True)], "192.0.2.1", (), False),
        ([route("0.0.0.0/0", 2), route("192.0.2.0/24", 2, kind=6)], "192.0.2.1", (), False),
        ([route("0.0.0.0/0", 2), route("10.1.2.0/24", 2)], "10.1.2.3", ("10.1.0.0/16",), False),
        ([route("0.0.0.0/0", 2), route("10.0.0.0/8", 2)], "10.2.2.3", ("10.1.0.0/16",), True),
        ([], "192.0.2.1", (), False),
    ],
)
def test_only_clients_whose_answers_leave_by_the_uplink_are_served(routes, client, cluster, expected):
    assert served(routes, client, cluster) is expected


S = 10**9
CLIENT, FRONT, POD = (pack_address(pack(text)) for text in ("192.0.2.1", "198.51.100.1", "10.244.1.11"))
PORT_OF = {"client": b"\xaf\xc8", "front": b"\0\x50", "pod": b"\x1f\x90"}
THERE = Tuple(CLIENT, FRONT, PORT_OF["client"] + PORT_OF["front"], TCP, answers=False).pack()
BACK = Tuple(CLIENT, POD, PORT_OF["client"] + PORT_OF["pod"], TCP, answers=True).pack()


def entry(address: bytes, port: str, flags: int, age_s: int) -> bytes:
    return layout._CONN.pack(address, PORT_OF[port], flags, 1, 10**18 - age_s * S)


@pytest.mark.parametrize(
    ("flags", "answer_flags", "age_s", "kept"),
    [
        (0, 0, 120, True),
        (0, 0, 131, False),
        (0, ANSWERED, 431_000, True),
        (0, ANSWERED, 432_061, False),
        (FIN, ANSWERED, 120, True),
        (FIN, ANSWERED | FIN, 131, False),
        (0, ANSWERED | RESET, 131, False),
        (RESET, ANSWERED, 131, False),
    ],
)
def test_connections_are_kept_while_they_last(flags, answer_flags, age_s, kept):
    entries = {THERE: entry(POD, "pod", flags, age_s), BACK: entry(FRONT, "front", answer_flags, age_s)}
    assert set(uplink.ended(entries, 10**18)) == (set() if kept else {THERE, BACK})
    entries[BACK] = entry(FRONT, "front", answer_flags, 1)
    assert not uplink.ended(entries, 10**18), "the latest packet of both directions counts"


def test_what_leads_nowhere_is_forgotten_when_it_is_old():
    left = {THERE: entry(bytes(16), "pod", LEFT, 131)}
    assert uplink.ended(left, 10**18) == [THERE]
    assert not uplink.ended({THERE: entry(bytes(16), "pod", LEFT, 129)}, 10**18)
    alone = {BACK: entry(FRONT, "front", ANSWERED, 131)}
    assert uplink.ended(alone, 10**18) == [BACK]
    assert not uplink.ended({BACK: entry(FRONT, "front", ANSWERED, 129)}, 10**18)
    other = {THERE: entry(POD, "pod", 0, 131), BACK: entry(CLIENT, "front", ANSWERED, 1)}
    assert uplink.ended(other, 10**18) == [THERE]
