"""Small pure parts of the IPVS data plane: draining, and what is done to rules."""

from __future__ import annotations

import pytest

from pycni.model.family import Family
from pycni.model.kube import TCP
from pycni.wire.ipset import NAME_BYTES, Member
from pycni.wire.ipvs import DestInfo, DestKey, DestSpec, ServiceInfo, ServiceKey, ServiceSpec, Stats
from pycni_proxy.ipvs import names
from pycni_proxy.ipvs.drain import Drains
from pycni_proxy.ipvs.names import set_name, set_specs
from pycni_proxy.ipvs.readback import our_services, rule_changes
from pycni_proxy.ipvs.rules import normalised

SERVICE = ServiceKey(Family.V4, b"\x0a\x60\0\1", TCP, 80)
DEST = DestKey(b"\x0a\xf4\1\5", 8080)


def info(active=0, inactive=0):
    return DestInfo(DEST, DestSpec(0), active, inactive, 0, Stats())


def test_a_target_is_due_when_it_is_idle_or_its_time_is_up():
    drains = Drains(30.0)
    drains.add(SERVICE, DEST, 100.0)
    assert drains.due(SERVICE, [info(active=1)], 101.0) == []
    assert drains.due(SERVICE, [info(inactive=1)], 129.9) == []
    assert drains.due(SERVICE, [info(active=1)], 130.0) == [DEST]
    assert drains.due(SERVICE, [info()], 101.0) == [DEST]


def test_draining_again_keeps_the_first_deadline():
    drains = Drains(30.0)
    drains.add(SERVICE, DEST, 100.0)
    drains.add(SERVICE, DEST, 120.0)
    assert drains.due(SERVICE, [info(active=1)], 130.0) == [DEST]


def test_what_is_wanted_again_or_gone_is_forgotten():
    drains = Drains(30.0)
    drains.add(SERVICE, DEST, 0.0)
    assert (SERVICE, DEST) in drains
    assert drains.take(SERVICE, DEST)
    assert not drains.take(SERVICE, DEST)
    assert not drains
    drains.add(SERVICE, DEST, 0.0)
    assert drains.due(SERVICE, [], 1.0) == []
    assert not drains
    drains.add(SERVICE, DEST, 0.0)
    drains.forget(SERVICE)
    assert drains.services() == []


SAVED = [
    ":INPUT ACCEPT [0:0]",
    ":PYCNI-INPUT - [0:0]",
    "-A INPUT -s 9.9.9.9/32 -j DROP",
    "-A INPUT -j PYCNI-INPUT",
    "-A OTHER -p tcp -j ACCEPT",
    "-A PYCNI-INPUT -p tcp -j RETURN",
    "-A PYCNI-INPUT -j DROP",
]
OURS = ("-A INPUT -j PYCNI-INPUT", "-A PYCNI-INPUT -p tcp -j RETURN", "-A PYCNI-INPUT -j DROP")


def test_of_saved_rules_only_ours_are_seen():
    assert normalised(SAVED) == OURS


CHANGES = {
    "everything is new": ((), OURS, ["PYCNI-INPUT"], ["-I INPUT 1 -j PYCNI-INPUT", *OURS[1:]]),
    "nothing differs": (OURS, OURS, ["PYCNI-INPUT"], list(OURS[1:])),
    "the jump stands twice": (
        (OURS[0], *OURS),
        OURS,
        ["PYCNI-INPUT"],
        ["-D INPUT -j PYCNI-INPUT", *OURS[1:]],
    ),
    "everything goes": (OURS, (), ["PYCNI-INPUT"], ["-D INPUT -j PYCNI-INPUT", "-X PYCNI-INPUT"]),
    "a chain of an older version goes": (
        (*OURS, "-A PYCNI-OLD -j DROP"),
        OURS,
        ["PYCNI-INPUT", "PYCNI-OLD"],
        [*OURS[1:], "-X PYCNI-OLD"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_rules_become_what_is_wanted(name):
    actual, desired, chains, lines = CHANGES[name]
    change = rule_changes(actual, desired)
    assert (change.chains, sorted(change.lines)) == (chains, sorted(lines))


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        (SERVICE, True),
        (SERVICE._replace(port=81), False),
        (ServiceKey(Family.V4, fwmark=names.OURS | 99), True),
        (ServiceKey(Family.V4, fwmark=99), False),
        (ServiceKey(Family.V4, fwmark=0xC0000001), False),
        (ServiceKey(Family.V4, b"\xc0\xa8\0\1", TCP, 30080), True),
        (ServiceKey(Family.V4, b"\xc0\xa8\0\2", TCP, 30080), False),
        (ServiceKey(Family.V4, b"\xc0\xa8\0\1", TCP, 30081), False),
    ],
    ids=str,
)
def test_virtual_servers_are_ours_by_the_sets(key, ours):
    members = {
        (names.CLUSTER_IP, Member(SERVICE.address, TCP, 80)): 0,
        (names.NODE_PORT_LOCAL[TCP], Member(port=30080)): 0,
    }
    listed = [ServiceInfo(key, ServiceSpec("rr"), Stats())]
    assert bool(our_services(listed, members, {b"\xc0\xa8\0\1"})) is ours


def test_names_of_sets_fit_and_are_kube_proxys():
    assert set_name(names.SOURCE_CIDR, Family.V6) == "KUBE-6-LOAD-BALANCER-SOURCE-CID"
    assert set_name(names.LOOP_BACK, Family.V4) == "KUBE-LOOP-BACK"
    every = [name for family in Family for name in set_specs(family)]
    assert len(every) == len(set(every))
    assert max(map(len, every)) <= NAME_BYTES
