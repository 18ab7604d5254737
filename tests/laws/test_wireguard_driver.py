"""Laws of the fabric driver with WireGuard devices, on a kernel in memory that speaks the kernel's messages."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import TRANSIENT_ERRNOS
from pycni.kernel.fabric import FabricDriver
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.fabric import FabricState, WireguardLink
from pycni.model.family import Family
from pycni.model.tables import Route, RouteKey
from pycni.model.wireguard import Secret, WireguardKey, WireguardPeer, WireguardSecrets
from pycni.wire import rtlink
from tests.laws.fake_wireguard import FAMILY, FakeWireguard
from tests.laws.fakes import FakeKernel

SECRETS = WireguardSecrets(
    public_key=b"\1" * 32, private_key=Secret(b"\2" * 32), psk=Secret(b"\3" * 32), folder="/nowhere"
)
NAMES = ("flannel-wg", "flannel-wg-v6")
LAW = settings(deadline=None, max_examples=40)


def subnet(number: int) -> tuple[bytes, int]:
    return bytes([10, 5, number, 0]), 24


@st.composite
def states(draw: st.DrawFn) -> FabricState:
    """Peers on few keys and networks, so that networks wander from one to the other."""
    links, peers, routes = {}, {}, {}
    for name in sorted(draw(st.sets(st.sampled_from(NAMES)))):
        links[name] = WireguardLink(
            name=name,
            public_key=SECRETS.public_key,
            port=draw(st.sampled_from([51820, 51821])),
            mtu=draw(st.sampled_from([1420, 1320])),
            addresses=((bytes([10, 5, 1, 0]), 32),),
        )
        for number, holder in draw(st.dictionaries(st.integers(2, 6), st.integers(1, 3))).items():
            key = WireguardKey(name, bytes([holder]) * 31 + b"\7")
            old = peers.get(key, WireguardPeer(bytes([192, 0, 2, draw(st.integers(2, 4))]), 51820, ()))
            psk = draw(st.sampled_from(["", SECRETS.psk.fingerprint]))
            peers[key] = old._replace(
                allowed=tuple(sorted((*old.allowed, subnet(number)))),
                keepalive_s=draw(st.integers(0, 1)),
                psk=psk,
            )
            routes[RouteKey(Family.V4, 254, *subnet(number), 0)] = Route(None, name)
    return FabricState(links=links, routes=routes, wireguard=peers)


class Host:
    """A kernel with WireGuard."""

    def __init__(self) -> None:
        self.kernel, self.wireguard = FakeKernel(), FakeWireguard()
        self.kernel.add_link("eth0")

    @contextmanager
    def driver(self) -> Iterator[FabricDriver]:
        made = FabricDriver(cast("NetlinkSocket", self.kernel), put_sysctl=lambda name, value: None)
        made.wireguard.secrets = SECRETS
        made.wireguard._sock, made.wireguard._family = cast("NetlinkSocket", self.wireguard), FAMILY
        try:
            yield made
        finally:
            made.close()

    def reach(self, desired: FabricState) -> list[Any]:
        with self.driver() as driver:
            failures = driver.apply(desired, driver.read(desired.links.keys()))
        there = {attrs[rtlink.IFLA_IFNAME].rstrip(b"\0").decode() for _, attrs in self.kernel.links.values()}
        for name in set(self.wireguard.devices) - there:
            del self.wireguard.devices[name]
        return failures

    def state(self) -> FabricState:
        with self.driver() as driver:
            return driver.read()


@LAW
@given(states(), states())
def test_any_peers_are_reached_from_any_others(first, second):
    host = Host()
    for desired in (first, second, FabricState()):
        assert host.reach(desired) == []
        assert host.state() == desired


@LAW
@given(states(), states())
def test_from_memory_as_from_reading_and_peers_that_stay_are_not_touched(first, second):
    host = Host()
    with host.driver() as driver:
        driver.apply(first, driver.read())
        host.wireguard.touched.clear()
        same_devices = (
            msgspec.structs.replace(second, links=first.links)
            if second.links.keys() == first.links.keys()
            else second
        )
        assert driver.apply(same_devices, first) == []
    for name in set(first.links) - set(second.links):
        host.wireguard.devices.pop(name, None)
    assert host.state() == same_devices
    stay = {
        key.public_key for key, peer in first.wireguard.items() if same_devices.wireguard.get(key) == peer
    }
    moved = {
        key.public_key
        for key in {*first.wireguard, *second.wireguard}
        if first.wireguard.get(key) != second.wireguard.get(key)
    }
    assert not (stay - moved) & set(host.wireguard.touched)


@LAW
@given(states(), st.dictionaries(st.integers(0, 10), st.sampled_from(sorted(TRANSIENT_ERRNOS)), max_size=4))
def test_what_fails_is_told_and_done_by_the_next_pass(desired, failing):
    host = Host()
    host.wireguard.fail_at = dict(failing)
    for _ in range(len(failing) + 1):
        failures = host.reach(desired)
        if not failures:
            break
        assert all(failure.error.transient for failure in failures)
    assert not failures
    assert host.state() == desired


def one(allowed: tuple[tuple[bytes, int], ...] = (subnet(2),), endpoint: int = 2) -> FabricState:
    link = WireguardLink(name="flannel-wg", public_key=SECRETS.public_key, port=51820, mtu=1420)
    peer = WireguardPeer(bytes([192, 0, 2, endpoint]), 51820, allowed)
    return FabricState(links={link.name: link}, wireguard={WireguardKey(link.name, b"\7" * 32): peer})


def replaced(host: Host, first: FabricState, second: FabricState) -> bool:
    """Whether the change from one to the other replaced a peer's networks."""
    seen = []
    with host.driver() as driver:
        driver.apply(first, driver.read())
        batch = host.wireguard.batch
        host.wireguard.batch = lambda msgs, *words: seen.extend(msgs) or batch(msgs, *words)  # type: ignore[method-assign]
        assert driver.apply(second, first) == []
    assert len(seen) == 1
    return b"\x08\0\3\0\2\0\0\0" in seen[0]


@pytest.mark.parametrize(
    ("second", "expected"),
    [(one(endpoint=3), False), (one((subnet(2), subnet(3))), False), (one((subnet(3),)), True)],
    ids=["endpoint", "one more network", "another network"],
)
def test_networks_are_replaced_only_when_one_went(second, expected):
    assert replaced(Host(), one(), second) is expected


@pytest.mark.parametrize(("keepalive_s", "greeted"), [(0, True), (25, False)], ids=["off", "on"])
def test_a_peer_with_another_key_is_greeted_and_then_as_wanted(keepalive_s, greeted):
    """A new peer's first keepalive is sent at once (wg_set_device), so one that is on needs no more."""

    def state(*holders: int) -> FabricState:
        peers = {
            WireguardKey("flannel-wg", bytes([holder]) * 32): WireguardPeer(
                bytes([192, 0, 2, number]), 51820, (subnet(number),), keepalive_s
            )
            for number, holder in enumerate(holders, 2)
        }
        return msgspec.structs.replace(one(), wireguard=peers)

    host = Host()
    with host.driver() as driver:
        driver.apply(state(7), driver.read())
        host.wireguard.touched.clear()
        assert driver.apply(state(8, 9), state(7)) == []
    eight, nine, seven = (bytes([number]) * 32 for number in (8, 9, 7))
    assert host.wireguard.touched == [eight] * greeted + [eight, nine, seven]
    assert host.state() == state(8, 9)


def test_a_new_private_key_is_in_the_devices_at_once_and_one_that_cannot_be_set_by_the_next_pass():
    host = Host()
    both = msgspec.structs.replace(
        one(), links={name: msgspec.structs.replace(one().links["flannel-wg"], name=name) for name in NAMES}
    )
    following = msgspec.structs.replace(SECRETS, public_key=b"\5" * 32, private_key=Secret(b"\6" * 32))
    with host.driver() as driver:
        driver.apply(both, driver.read())
        host.wireguard.fail_at = {host.wireguard._count + 1: errno.EBUSY}
        driver.wireguard.take(following)
        keys = {name: device[0] for name, device in host.wireguard.devices.items()}
        assert set(keys.values()) == {SECRETS.private_key, following.private_key}
        links = {
            name: msgspec.structs.replace(link, public_key=following.public_key)
            for name, link in both.links.items()
        }
        wanted = msgspec.structs.replace(both, links=links)
        assert driver.apply(wanted, driver.read(links.keys())) == []
        assert {device[0] for device in host.wireguard.devices.values()} == {following.private_key}
        assert driver.read() == wanted


def test_a_peer_that_moved_and_was_heard_of_is_where_it_says(monkeypatch):
    host = Host()
    with host.driver() as driver:
        driver.apply(one(), driver.read())
        [(key, peer)] = host.wireguard.devices["flannel-wg"][2].items()
        host.wireguard.devices["flannel-wg"][2][key] = peer._replace(
            endpoint=bytes([198, 51, 100, 9]), port=7
        )
        [(_, seen)] = driver.read().wireguard.items()
        assert seen.endpoint == bytes([198, 51, 100, 9])  # never heard of: somebody else's doing

    from pycni.wire import wireguard as wire

    parse = wire.parse_device
    with host.driver() as driver:
        driver.apply(one(), driver.read())
        host.wireguard.devices["flannel-wg"][2][key] = peer._replace(
            endpoint=bytes([198, 51, 100, 9]), port=7
        )

        def heard(messages):
            info = parse(messages)
            return info._replace(peers=tuple(peer._replace(handshake=True) for peer in info.peers))

        monkeypatch.setattr(wire, "parse_device", heard)
        assert driver.read() == one()


def test_a_peer_that_cannot_be_set_is_named_without_secrets():
    host = Host()
    wrong = one(((bytes([10, 5, 2, 0]), 77),))
    [failure] = host.reach(wrong)
    assert (failure.table, failure.error.errno) == ("wireguard", errno.EINVAL)
    assert str(failure.error) == (
        "add WireGuard peer BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc= dev flannel-wg"
        " endpoint 192.0.2.2:51820 allowed-ips 10.5.2.0/77: EINVAL"
    )
