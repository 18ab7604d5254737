"""Records on their way into the store: one bad record harms no other, and nothing goes without being deleted."""

import asyncio
import logging
from ipaddress import IPv4Address

import pytest

from pycni.sources.etcd_watch import Change, Changed, Listed, Record
from pycni.sources.leases_follow import CONFIG, LEASE, NETCONF, RecordFollower
from pycni.store import Store

FOLDER = "/p/subnets/"
GOOD = b'{"PublicIP":"192.0.2.%d"}'
CONF = b'{"Network":"10.5.0.0/16"}'


class World:
    """A follower without etcd: listings and changes are handed to it on a loop that never runs."""

    def __init__(self, grace_s=60.0):
        self.store = Store()
        self.follower = RecordFollower(None, "/p", grace_s=grace_s)
        self.follower._store = self.store
        self.seen = []
        self.follower.on_watched = self.seen.append

    def listed(self, records, *, replaced=False, revision=10):
        async def act():
            found = tuple(Record(FOLDER + name, value, 5, 0) for name, value in records.items())
            self.follower._listed(Listed(found, revision, replaced))

        asyncio.run(act())

    def changed(self, *changes):
        found = [
            Change(FOLDER + name, None if value is None else Record(FOLDER + name, value, 20, 0), 20)
            for name, value in changes
        ]
        self.follower._changed(Changed(tuple(found)))

    def config(self, value):
        record = None if value is None else Record("/p/config", value, 20, 0)
        self.follower._config_changed(Changed((Change("/p/config", record, 20),)))

    @property
    def leases(self):
        return {name: lease.attrs.public_ip for name, lease in self.store.snapshot().of(LEASE).items()}

    @property
    def conf(self):
        return self.store.snapshot().of(NETCONF).get(CONFIG)


@pytest.fixture
def world():
    return World()


def ip(last):
    return IPv4Address(f"192.0.2.{last}")


def test_a_listing_puts_every_record_and_forgets_the_others(world):
    world.listed({"10.5.1.0-24": GOOD % 1, "10.5.2.0-24": GOOD % 2})
    world.listed({"10.5.2.0-24": GOOD % 3})
    assert world.leases == {"10.5.2.0-24": ip(3)}
    assert LEASE in world.store.snapshot().listed


def test_changes_put_and_delete(world):
    world.listed({"10.5.1.0-24": GOOD % 1})
    world.changed(("10.5.2.0-24", GOOD % 2), ("10.5.1.0-24", None))
    assert world.leases == {"10.5.2.0-24": ip(2)}


def test_before_the_first_listing_nothing_counts_as_listed(world):
    world.changed(("10.5.2.0-24", GOOD % 2))
    world.config(CONF)
    assert world.store.snapshot().listed == {NETCONF}


BAD = {"10.5.1.1-24": GOOD % 1, "hello": GOOD % 1, "10.5.3.0-24": b"{", "10.5.4.0-24": b'{"PublicIP":1}'}


def test_malformed_records_are_one_log_line_each_and_harm_no_other(world, caplog):
    world.listed(BAD | {"10.5.2.0-24": GOOD % 2})
    world.listed(BAD | {"10.5.2.0-24": GOOD % 2})
    world.changed(*BAD.items())
    assert world.leases == {"10.5.2.0-24": ip(2)}
    assert len(caplog.messages) == len(BAD)
    for name in BAD:
        assert sum(f"/p/subnets/{name}:" in message for message in caplog.messages) == 1
    assert set(world.follower.malformed) == set(BAD)


def test_a_malformed_record_is_reported_again_when_it_is_wrong_in_another_way(world, caplog):
    world.listed({"10.5.3.0-24": b"{"})
    world.changed(("10.5.3.0-24", b"[]"))
    assert len(caplog.messages) == 2
    world.changed(("10.5.3.0-24", GOOD % 3))
    assert world.follower.malformed == {}
    world.changed(("10.5.3.0-24", b"[]"))
    assert len(caplog.messages) == 3


def test_a_record_that_becomes_unreadable_keeps_its_last_good_value_until_deleted(world):
    world.listed({"10.5.3.0-24": GOOD % 3})
    world.changed(("10.5.3.0-24", b"rubbish"))
    assert world.leases == {"10.5.3.0-24": ip(3)}
    world.listed({"10.5.3.0-24": b"rubbish"})
    assert world.leases == {"10.5.3.0-24": ip(3)}
    world.changed(("10.5.3.0-24", None))
    assert world.leases == {}
    assert world.follower.malformed == {}


def test_an_emptied_store_forgets_nothing_for_a_while(world, caplog):
    world.listed({"10.5.1.0-24": GOOD % 1, "10.5.2.0-24": GOOD % 2})
    world.listed({"10.5.2.0-24": GOOD % 9}, replaced=True, revision=1)
    assert world.leases == {"10.5.1.0-24": ip(1), "10.5.2.0-24": ip(9)}
    world.listed({}, revision=2)
    assert set(world.leases) == {"10.5.1.0-24", "10.5.2.0-24"}
    assert "etcd was replaced" in caplog.text


def test_after_the_grace_a_listing_counts_again():
    world = World(grace_s=0.0)
    world.listed({"10.5.1.0-24": GOOD % 1})
    world.listed({}, replaced=True)
    assert world.leases == {}


def test_somebody_deleting_a_record_of_the_new_store_is_believed_at_once(world):
    world.listed({"10.5.1.0-24": GOOD % 1})
    world.listed({"10.5.1.0-24": GOOD % 1}, replaced=True)
    world.changed(("10.5.1.0-24", None))
    assert world.leases == {}


@pytest.mark.parametrize("where", ["missing in the listing", "missing before it"])
def test_a_start_without_the_record_of_an_earlier_life_lists_nothing_for_a_while(world, caplog, where):
    world.follower.expected = "10.5.1.0-24"
    world.follower.was_missing = lambda: where == "missing before it"
    own = {"10.5.1.0-24": GOOD % 1} if where == "missing before it" else {}
    world.listed(own | {"10.5.2.0-24": GOOD % 2})
    assert ip(2) in world.leases.values()
    assert LEASE not in world.store.snapshot().listed, "so nothing is removed"
    world.listed({"10.5.1.0-24": GOOD % 1})
    assert LEASE not in world.store.snapshot().listed
    assert caplog.text.count("etcd may have lost its data") == 1


def test_a_start_with_the_record_of_an_earlier_life_lists_at_once(world):
    world.follower.expected = "10.5.1.0-24"
    world.listed({"10.5.1.0-24": GOOD % 1})
    assert LEASE in world.store.snapshot().listed
    world.listed({})
    assert world.leases == {}


def test_after_the_grace_a_start_without_its_record_lists():
    world = World(grace_s=0.0)
    world.follower.expected = "10.5.1.0-24"
    world.listed({"10.5.2.0-24": GOOD % 2})
    assert LEASE in world.store.snapshot().listed


def test_our_own_record_is_watched_in_listings_and_changes(world):
    world.follower.watched = "10.5.1.0-24"
    world.listed({"10.5.1.0-24": GOOD % 1, "10.5.2.0-24": GOOD % 2})
    world.changed(("10.5.2.0-24", GOOD % 3))
    world.changed(("10.5.1.0-24", None))
    world.listed({})
    assert world.seen == [5, 20, None]


def test_a_net_conf_goes_into_the_store(world):
    world.config(CONF)
    assert str(world.conf.network) == "10.5.0.0/16"
    assert NETCONF in world.store.snapshot().listed


@pytest.mark.parametrize("bad", [b"{", b"{}", b'{"Network":"10.5.0.0/29"}', None], ids=repr)
def test_a_bad_or_deleted_net_conf_leaves_the_last_one_in_force(world, bad, caplog):
    world.config(CONF)
    world.config(bad)
    world.config(bad)
    assert str(world.conf.network) == "10.5.0.0/16"
    assert 1 <= len(caplog.messages) <= 2


def test_unknown_keys_are_said_once(world, caplog):
    for _ in range(3):
        world.config(b'{"Network":"10.5.0.0/16","Foo":1}')
    assert [message for message in caplog.messages if "Foo" in message] == [
        "etcd key /p/config: unknown keys ignored: Foo"
    ]


def test_leases_that_do_not_fit_a_changed_network_are_reported(world, caplog):
    world.config(CONF)
    world.follower.watched = "10.5.7.0-24"
    world.listed({f"10.5.{n}.0-24": GOOD % n for n in range(1, 8)})
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING):
        world.config(b'{"Network":"10.6.0.0/16"}')
    assert "net-conf changed to" in caplog.messages[0]
    assert "7 leases do not fit the network: 10.5.1.0-24," in caplog.messages[1]
    assert "and 2 more (our own among them)" in caplog.messages[1]
    world.listed({f"10.5.{n}.0-24": GOOD % n for n in range(1, 8)})
    assert len(caplog.messages) == 2


def test_a_new_lease_that_does_not_fit_is_reported(world, caplog):
    world.config(CONF)
    world.changed(("10.9.1.0-24", GOOD % 1), ("10.5.1.0-24", GOOD % 2))
    world.changed(("10.9.1.0-24", GOOD % 3))
    assert caplog.messages == ["1 leases do not fit the network: 10.9.1.0-24"]
