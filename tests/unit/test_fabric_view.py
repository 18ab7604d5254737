"""Which leases become peers, and why the others do not."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network

import msgspec
import pytest

from pycni.model.family import Family
from pycni.view.fabric import FabricView, fabric
from tests.unit.fabric_world import by_key, conf, lease, site


def at(subnet, number=9, subnet6=None):
    """Lease of node ``number`` on another subnet."""
    return msgspec.structs.replace(
        lease(number, "46" if subnet6 else "4"),
        subnet=IPv4Network(subnet),
        subnet6=None if subnet6 is None else IPv6Network(subnet6),
    )


def verdicts(*leases, families="4"):
    seen = fabric(by_key(*leases), site(families).own, conf(families))
    return sorted(key for key, _ in seen.peers), {key: reason for (key, _), reason in seen.skipped.items()}


VERDICTS = [
    pytest.param([lease(2), lease(3)], ["10.5.2.0-24", "10.5.3.0-24"], {}, id="all fit"),
    pytest.param([site().own, lease(2)], ["10.5.2.0-24"], {}, id="our own record is no peer"),
    pytest.param(
        [at("10.5.1.0/24")],
        [],
        {"10.5.1.0-24": "10.5.1.0/24 is this node's own subnet"},
        id="our subnet taken by another",
    ),
    pytest.param(
        [at("10.5.0.0/20")],
        [],
        {"10.5.0.0-20": "10.5.0.0/20 overlaps this node's own subnet 10.5.1.0/24"},
        id="contains our subnet",
    ),
    pytest.param(
        [at("10.5.1.128/25")],
        [],
        {"10.5.1.128-25": "10.5.1.128/25 overlaps this node's own subnet 10.5.1.0/24"},
        id="inside our subnet",
    ),
    pytest.param(
        [at("8.8.8.0/24"), at("10.0.0.0/8"), lease(2)],
        ["10.5.2.0-24"],
        {
            "8.8.8.0-24": "8.8.8.0/24 is not inside the cluster network 10.5.0.0/16",
            "10.0.0.0-8": "10.0.0.0/8 is not inside the cluster network 10.5.0.0/16",
        },
        id="outside the cluster network",
    ),
    pytest.param(
        [at("10.5.16.0/20"), lease(17), lease(40)],
        ["10.5.17.0-24", "10.5.40.0-24"],
        {"10.5.16.0-20": "10.5.16.0/20 overlaps the subnet of lease 10.5.17.0-24"},
        id="the narrower counts",
    ),
    pytest.param(
        [at("10.5.16.0/20"), at("10.5.16.0/24"), at("10.5.16.0/26")],
        ["10.5.16.0-24"],
        {
            "10.5.16.0-20": "10.5.16.0/20 overlaps the subnet of lease 10.5.16.0-24",
            "10.5.16.0-26": "10.5.16.0/26 overlaps the subnet of lease 10.5.16.0-24",
        },
        id="of three with one base the one of the network's subnet length",
    ),
    pytest.param(
        [at("10.5.16.0/20"), at("10.5.16.0/25"), at("10.5.16.0/26")],
        ["10.5.16.0-26"],
        {
            "10.5.16.0-20": "10.5.16.0/20 overlaps the subnet of lease 10.5.16.0-26",
            "10.5.16.0-25": "10.5.16.0/25 overlaps the subnet of lease 10.5.16.0-26",
        },
        id="of three irregular ones with one base the narrowest",
    ),
]


@pytest.mark.parametrize(("leases", "peers", "skipped"), VERDICTS)
def test_leases_are_judged(leases, peers, skipped):
    assert verdicts(*leases) == (peers, skipped)


def test_equal_subnets_under_two_dual_stack_keys_collide_in_one_family_only():
    first, second = at("10.5.7.0/24", 7, "fd00:5:0:7::/64"), at("10.5.7.0/24", 8, "fd00:5:0:8::/64")
    seen = fabric(by_key(first, second), site("46").own, conf("46"))
    assert set(seen.peers) == {(first.key, Family.V4), (first.key, Family.V6), (second.key, Family.V6)}
    assert seen.skipped == {(second.key, Family.V4): f"10.5.7.0/24 overlaps the subnet of lease {first.key}"}


def test_a_family_that_is_off_is_not_looked_at():
    assert verdicts(lease(2, "46"))[0] == ["10.5.2.0-24&fd00:5:0:2::-64"]
    assert len(fabric(by_key(lease(2, "46")), site().own, conf()).peers) == 1


def test_our_record_is_ours_while_a_new_address_is_on_its_way():
    own = site().own
    moved = msgspec.structs.replace(
        own, attrs=msgspec.structs.replace(own.attrs, public_ip=IPv4Address("192.0.2.77"))
    )
    assert fabric(by_key(moved), own, conf()).skipped == {}


def test_update_names_exactly_what_changed():
    view = FabricView(site().own, conf())
    wide, narrow = at("10.5.16.0/20"), lease(17)
    assert view.update(by_key(wide, lease(2))) == {("10.5.16.0-20", Family.V4), ("10.5.2.0-24", Family.V4)}
    assert view.update(by_key(wide, lease(2))) == set()
    assert view.update(by_key(wide, lease(2), narrow)) == {
        ("10.5.17.0-24", Family.V4),
        ("10.5.16.0-20", Family.V4),
    }
    moved = lease(2, public_ip=IPv4Address("192.0.2.200"))
    assert view.update(by_key(wide, moved, narrow)) == {("10.5.2.0-24", Family.V4)}
    assert view.update(by_key(wide, moved)) == {("10.5.17.0-24", Family.V4), ("10.5.16.0-20", Family.V4)}
    assert set(view.peers) == {("10.5.16.0-20", Family.V4), ("10.5.2.0-24", Family.V4)}
