"""Our own record: never somebody else's overwritten, whatever fails in between."""

import asyncio
import random
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.errors import StoreError
from pycni.model.lease import LeaseAttrs
from pycni.sources.leases_own import LeaseLostError, OwnRecord
from pycni.view.subnets import OutOfSubnetsError
from pycni.wire.lease import encode_attrs
from pycni.wire.netconf import decode_netconf
from tests.unit.fake_etcd import FakeEtcd

FOLDER = "/p/subnets/"
V4 = decode_netconf(b'{"Network":"10.5.0.0/16"}')
SMALL = decode_netconf(b'{"Network":"10.5.0.0/22"}')
DUAL = decode_netconf(b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}')
V6 = decode_netconf(b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/48"}')
ME = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan")
CHANGED = LeaseAttrs(public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=b'{"VNI":2}')
OTHER = b'{"PublicIP":"192.0.2.9","PublicIPv6":null}'
MINE = encode_attrs(ME)
KEY = FOLDER + "10.5.7.0-24"
PREVIOUS = (IPv4Network("10.5.7.0/24"), None)


class World:
    def __init__(self):
        self.etcd = FakeEtcd()
        self.own = self.life()

    def life(self, seed=1):
        return OwnRecord(self.etcd, FOLDER, ttl_s=100, rng=random.Random(seed), clock=lambda: 1000.0)

    def acquire(self, conf=V4, attrs=ME, previous=PREVIOUS, own=None):
        return asyncio.run((own or self.own).acquire(conf, attrs, previous, None))

    def settle(self, attrs=ME, renew=False):
        return asyncio.run(self.own.settle(attrs, renew=renew))


@pytest.fixture
def world():
    return World()


@pytest.fixture
def held(world):
    world.acquire()
    return world


def test_a_new_record_hangs_on_an_etcd_lease(world):
    held = world.acquire()
    assert (held.lease.key, held.expires) == ("10.5.7.0-24", 1100.0)
    assert world.etcd.value(KEY) == MINE
    assert world.etcd.kvs[KEY.encode()].lease == 100


def test_whoever_was_quicker_keeps_the_subnet(world):
    world.etcd.before_txn = lambda: world.etcd.value(KEY) or world.etcd.write(KEY, OTHER)
    assert world.acquire() is None
    assert world.etcd.value(KEY) == OTHER
    assert world.acquire().lease.key != "10.5.7.0-24"


def test_in_an_ipv4_network_a_dual_record_with_the_same_ipv4_part_is_a_rival_too(world):
    rival = FOLDER + "10.5.7.0-24&fd00:1:0:77::-64"
    world.etcd.before_txn = lambda: world.etcd.value(rival) or world.etcd.write(rival, OTHER)
    assert world.acquire() is None
    assert world.acquire().lease.key != "10.5.7.0-24"


@pytest.mark.parametrize(
    "rival",
    ["10.5.7.0-24", "10.5.7.0-24&fd00:1:0:77::-64", "10.5.99.0-24&fd00:1:0:9::-64"],
    ids=["an IPv4 record", "same IPv4, other IPv6", "same IPv6, other IPv4"],
)
def test_in_a_dual_network_neither_half_is_given_twice(world, rival):
    previous = (IPv4Network("10.5.7.0/24"), IPv6Network("fd00:1:0:9::/64"))
    world.etcd.before_txn = lambda: (
        world.etcd.value(FOLDER + rival) or world.etcd.write(FOLDER + rival, OTHER)
    )
    assert world.acquire(DUAL, previous=previous) is None
    held = world.acquire(DUAL, previous=previous)
    assert str(held.lease.subnet) not in rival.replace("-", "/")
    assert str(held.lease.subnet6) not in rival.replace("-", "/")


def test_starts_of_others_do_not_disturb_an_ipv4_network(world):
    numbers = iter(range(100, 200))
    world.etcd.before_txn = lambda: world.etcd.write(f"{FOLDER}10.5.{next(numbers)}.0-24", OTHER)
    assert world.acquire() is not None


def test_after_a_change_of_address_our_record_is_known_by_its_etcd_lease(world):
    first = world.acquire()
    moved = LeaseAttrs(public_ip=IPv4Address("192.0.2.2"), backend_type="host-gw")
    again = asyncio.run(world.life().acquire(V4, moved, (None, None), first))
    assert again.lease.key == first.lease.key
    assert world.etcd.value(KEY) == encode_attrs(moved)
    stranger = LeaseAttrs(public_ip=IPv4Address("192.0.2.3"), backend_type="host-gw")
    other = asyncio.run(world.life().acquire(V4, stranger, (None, None), first))
    assert other.lease.key != first.lease.key


def test_renewals_of_others_do_not_disturb_a_dual_network(world):
    world.etcd.write(FOLDER + "10.5.1.0-24&fd00:1:0:1::-64", OTHER)
    world.etcd.before_txn = lambda: world.etcd.write(FOLDER + "10.5.1.0-24&fd00:1:0:1::-64", OTHER)
    assert world.acquire(DUAL) is not None


def test_ipv6_records_beside_ours_do_not_disturb_an_ipv6_network(world):
    world.etcd.write(FOLDER + "0.0.0.0-0&fd00:1:0:1::-64", OTHER)
    assert world.acquire(V6, previous=(None, None)).lease.key.startswith("0.0.0.0-0&fd00:1:0:")


def test_a_reservation_is_used_and_stays_permanent(world):
    world.etcd.write(FOLDER + "10.5.3.0-24", b'{"PublicIP":"192.0.2.1"}')
    held = world.acquire()
    assert (held.lease.key, held.expires, held.permanent) == ("10.5.3.0-24", None, True)
    assert world.etcd.kvs[b"/p/subnets/10.5.3.0-24"].lease == 0
    assert world.etcd.leases == {}
    world.settle(renew=True)
    assert world.etcd.kvs[b"/p/subnets/10.5.3.0-24"].lease == 0


def test_our_record_that_does_not_fit_goes_with_the_same_transaction(world):
    world.acquire()
    held = world.acquire(DUAL, previous=(IPv4Network("10.5.7.0/24"), None), own=world.life())
    assert str(held.lease.subnet) == "10.5.7.0/24"
    assert list(world.etcd.kvs) == [f"{FOLDER}{held.lease.key}".encode()]


def test_a_full_network_is_an_error_that_may_pass(world):
    for third in (1, 2, 3):
        world.etcd.write(f"{FOLDER}10.5.{third}.0-24", OTHER)
    with pytest.raises(OutOfSubnetsError) as caught:
        world.acquire(SMALL)
    assert caught.value.transient


def test_renewing_replaces_the_etcd_lease_and_nothing_else(held):
    held.settle(renew=True)
    kv = held.etcd.kvs[KEY.encode()]
    assert (kv.lease, kv.value, kv.version) == (101, MINE, 2)
    held.etcd.expire(100)
    assert held.etcd.value(KEY) == MINE


def test_publishing_changes_the_value_and_keeps_the_etcd_lease(held):
    assert held.settle(CHANGED).expires == 1100.0
    kv = held.etcd.kvs[KEY.encode()]
    assert (kv.lease, kv.value) == (100, encode_attrs(CHANGED))


def test_what_is_right_is_not_written(held):
    revision = held.etcd.revision
    held.settle()
    assert held.etcd.revision == revision


@pytest.mark.parametrize(
    "value",
    [b'{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"udp"}', b"rubbish"],
    ids=["another agent with our address", "unreadable"],
)
def test_our_key_with_another_value_is_written_again(held, value):
    held.etcd.write(KEY, value, lease=100)
    held.settle()
    assert held.etcd.value(KEY) == MINE


def test_a_change_of_address_keeps_the_record(held):
    moved = LeaseAttrs(public_ip=IPv4Address("192.0.2.2"), backend_type="vxlan")
    held.settle(moved)
    assert held.etcd.value(KEY) == encode_attrs(moved)
    assert held.own.held.lease.attrs == moved


def test_a_vanished_record_is_taken_back(held):
    held.etcd.expire(100)
    assert held.settle().lease.key == "10.5.7.0-24"
    assert held.etcd.kvs[KEY.encode()].lease == 101


@pytest.mark.parametrize(
    ("name", "value", "owner"),
    [
        ("10.5.7.0-24", OTHER, "192.0.2.9"),
        ("10.5.6.0-23", OTHER, "10.5.6.0-23 of 192.0.2.9"),
        ("10.5.7.0-24&fd00::-64", b"rubbish", "10.5.7.0-24&fd00::-64 of an unreadable record"),
    ],
    ids=["under our key", "a larger subnet around ours", "unreadable, but our subnet"],
)
def test_a_lease_that_another_node_has_is_lost(held, name, value, owner):
    held.etcd.expire(100)
    held.etcd.write(FOLDER + name, value)
    with pytest.raises(LeaseLostError) as caught:
        held.settle(renew=True)
    assert (caught.value.key, caught.value.owner) == ("10.5.7.0-24", owner)
    assert held.etcd.value(FOLDER + name) == value


def test_a_write_in_between_is_never_overwritten(held):
    held.etcd.before_txn = lambda: held.etcd.write(KEY, OTHER)
    with pytest.raises(StoreError):
        held.settle(renew=True)
    assert held.etcd.value(KEY) == OTHER


def test_an_etcd_lease_that_is_gone_is_not_used_again(world):
    world.etcd.fail(2, applied=False)
    with pytest.raises(StoreError):
        world.acquire()
    world.etcd.leases.clear()
    assert world.acquire() is not None


failures = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=4)


@given(failures, st.booleans())
def test_whatever_fails_repeating_converges_on_one_record(failures, restart):
    """Requests fail before or after they took effect, and the node may have been restarted in between."""
    world = World()
    world.etcd.write(FOLDER + "10.5.1.0-24", OTHER)
    held = None
    for step, (at, applied) in enumerate([*failures, (99, False)]):
        world.etcd.fail(at, applied=applied)
        own = world.life(step) if restart else world.own
        try:
            held = world.acquire(previous=(None, None), own=own)
        except StoreError:
            continue
        world.own = own
    assert held is not None
    mine = [key for key, kv in world.etcd.kvs.items() if kv.value == MINE]
    assert mine == [f"{FOLDER}{held.lease.key}".encode()]
    assert world.etcd.kvs[mine[0]].lease in world.etcd.leases


@given(failures, st.sampled_from(["nothing", "expired", "rewritten"]))
def test_whatever_fails_settling_ends_with_our_record_alive(failures, before):
    world = World()
    world.acquire()
    if before == "expired":
        world.etcd.expire(100)
    elif before == "rewritten":
        world.etcd.write(KEY, b'{"PublicIP":"192.0.2.1"}', lease=100)
    for at, applied in [*failures, (99, False)]:
        world.etcd.fail(at, applied=applied)
        try:
            world.settle(CHANGED, renew=True)
        except StoreError:
            continue
    assert world.etcd.value(KEY) == encode_attrs(CHANGED)
    assert world.etcd.kvs[KEY.encode()].lease in world.etcd.leases
