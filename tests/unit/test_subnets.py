"""Which subnet a node gets: flannel's ladder, family by family."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs, lease_key
from pycni.view.subnets import Known, OutOfSubnetsError, choose, first_free, fits, is_ours, overlapping, unfit
from pycni.wire.netconf import decode_netconf

V4 = decode_netconf(b'{"Network":"10.5.0.0/16"}')
DUAL = decode_netconf(b'{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48"}')
V6 = decode_netconf(b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/48"}')
SMALL = decode_netconf(b'{"Network":"10.5.0.0/22"}')
ME = LeaseAttrs(
    public_ip=IPv4Address("192.0.2.1"), backend_type="vxlan", backend_data=b'{"VNI":1,"VtepMAC":"a"}'
)
OTHER = LeaseAttrs(public_ip=IPv4Address("192.0.2.9"))
NOBODY = (None, None)


def net(text):
    return None if text is None else IPv4Network(text)


def net6(text):
    return None if text is None else IPv6Network(text)


def known(subnet, subnet6=None, attrs=OTHER, permanent=False, revision=5):
    v4, v6 = net(subnet), net6(subnet6)
    return Known(lease_key(v4, v6), v4, v6, attrs, permanent, revision)


def picked(conf, records, previous=NOBODY, draw=lambda n: 0, **more):
    choice = choose(conf, records, ME, previous, draw=draw, **more)
    return choice, tuple(str(subnet) for subnet in (choice.subnet, choice.subnet6) if subnet is not None)


def test_a_first_node_draws_among_the_first_hundred():
    sizes = []
    _, subnets = picked(V4, [], draw=lambda n: sizes.append(n) or n - 1)
    assert sizes == [100]
    assert subnets == ("10.5.100.0/24",)


def test_both_families_are_drawn_by_themselves():
    _, subnets = picked(DUAL, [known("10.5.1.0/24"), known("10.5.9.0/24", "fd00:1:0:1::/64")])
    assert subnets == ("10.5.2.0/24", "fd00:1:0:2::/64")


def test_an_ipv6_network_needs_no_ipv4():
    choice, subnets = picked(V6, [known(None, "fd00:1:0:1::/64")])
    assert subnets == ("fd00:1:0:2::/64",)
    assert choice.subnet is None


def test_a_record_with_our_address_is_used_again():
    record = known("10.5.7.0/24", attrs=ME)
    choice, subnets = picked(V4, [known("10.5.1.0/24"), record], (net("10.5.3.0/24"), None))
    assert (choice.reuse, choice.replaces) == (record, None)
    assert subnets == ("10.5.7.0/24",)


def test_of_several_records_of_ours_the_previous_one_wins_then_the_reservation():
    first, reserved = known("10.5.7.0/24", attrs=ME), known("10.5.8.0/24", attrs=ME, permanent=True)
    assert picked(V4, [first, reserved], (net("10.5.7.0/24"), None))[0].reuse == first
    assert picked(V4, [first, reserved])[0].reuse == reserved


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(known("10.9.7.0/24", attrs=ME), id="outside"),
        pytest.param(known("10.5.7.0/25", attrs=ME), id="other length"),
        pytest.param(known("10.5.0.0/24", attrs=ME), id="before the first subnet"),
        pytest.param(known("10.5.7.0/24", "fd00:1:0:1::/64", attrs=ME), id="a family too many"),
    ],
)
def test_our_record_that_does_not_fit_is_replaced(record):
    choice, subnets = picked(V4, [record])
    assert (choice.reuse, choice.replaces) == (None, record)
    assert subnets == ("10.5.1.0/24",)


def test_a_reservation_that_does_not_fit_is_left_alone():
    choice, subnets = picked(V4, [known("10.9.7.0/24", attrs=ME, permanent=True)])
    assert (choice.reuse, choice.replaces, subnets) == (None, None, ("10.5.1.0/24",))


def test_when_the_network_becomes_dual_stack_the_ipv4_subnet_stays():
    record = known("10.5.7.0/24", attrs=ME)
    choice, subnets = picked(DUAL, [record], (net("10.5.7.0/24"), None))
    assert choice.replaces == record
    assert subnets == ("10.5.7.0/24", "fd00:1:0:1::/64")


@pytest.mark.parametrize(
    ("previous", "records", "expected"),
    [
        (("10.5.7.0/24", None), [], "10.5.7.0/24"),
        (("10.5.7.0/24", None), [known("10.5.8.0/24")], "10.5.7.0/24"),
        (("10.5.7.0/24", None), [known("10.5.7.0/24")], "10.5.1.0/24"),
        (("10.5.7.0/24", None), [known("10.5.6.0/23")], "10.5.1.0/24"),
        (("10.5.7.0/24", None), [known("10.5.7.0/24", attrs=None)], "10.5.1.0/24"),
        (("10.9.7.0/24", None), [], "10.5.1.0/24"),
        (("10.5.7.0/25", None), [], "10.5.1.0/24"),
        ((None, None), [], "10.5.1.0/24"),
    ],
    ids=["free", "free beside others", "taken", "taken by a larger one", "taken by an unreadable record",
         "outside", "other length", "none"],
)  # fmt: skip
def test_the_previous_subnet_is_taken_when_free_and_fitting(previous, records, expected):
    assert picked(V4, records, (net(previous[0]), None))[1] == (expected,)


def test_previous_subnets_are_judged_family_by_family():
    previous = (net("10.5.7.0/24"), net6("fd00:1:0:9::/64"))
    assert picked(DUAL, [known("10.5.7.0/24")], previous)[1] == ("10.5.1.0/24", "fd00:1:0:9::/64")
    assert picked(DUAL, [known("10.5.8.0/24", "fd00:1:0:9::/64")], previous)[1] == (
        "10.5.7.0/24",
        "fd00:1:0:1::/64",
    )


@pytest.mark.parametrize(
    ("data", "reused"),
    [(b'{"VNI":1,"VtepMAC":"a"}', True), (None, False)],
    ids=["backend data identifies us", "an address alone does not"],
)
def test_after_a_change_of_address_our_record_is_known_by_its_backend_data(data, reused):
    before = LeaseAttrs(public_ip=IPv4Address("192.0.2.77"), backend_type="vxlan", backend_data=data)
    record = known("10.5.7.0/24", attrs=before)
    last = Lease(subnet=net("10.5.7.0/24"), attrs=before)
    assert (picked(V4, [record], remembered=last)[0].reuse == record) is reused


def test_an_unreadable_record_takes_up_its_subnet():
    assert picked(SMALL, [known("10.5.1.0/24", attrs=None), known("10.5.2.0/24")])[1] == ("10.5.3.0/24",)


def test_a_full_network_is_said_to_be_full():
    full = [known(f"10.5.{n}.0/24") for n in (1, 2, 3)]
    with pytest.raises(OutOfSubnetsError, match=r"no free /24 in 10\.5\.0\.0/22 .* 3 records"):
        picked(SMALL, full)


@pytest.mark.parametrize(
    ("attrs", "mine", "ours"),
    [
        (ME, ME, True),
        (OTHER, ME, False),
        (None, ME, False),
        (LeaseAttrs(public_ip=ME.public_ip, public_ipv6=IPv6Address("fd::1")), ME, True),
        (LeaseAttrs(), LeaseAttrs(), False),
        (LeaseAttrs(public_ipv6=IPv6Address("fd::1")), LeaseAttrs(public_ipv6=IPv6Address("fd::1")), True),
        (LeaseAttrs(public_ipv6=IPv6Address("fd::2")), LeaseAttrs(public_ipv6=IPv6Address("fd::1")), False),
    ],
    ids=["same", "other", "unreadable", "IPv4 decides", "no address", "IPv6 only", "IPv6 only, other"],
)
def test_a_record_is_ours_by_its_public_address(attrs, mine, ours):
    assert is_ours(attrs, mine) is ours


def test_leases_that_do_not_fit_are_named():
    leases = [Lease(subnet=net(text), attrs=OTHER) for text in ("10.5.7.0/24", "10.9.1.0/24", "10.5.8.0/25")]
    assert unfit(V4, leases) == ["10.5.8.0-25", "10.9.1.0-24"]
    assert fits(DUAL, net("10.5.7.0/24"), net6("fd00:1:0:1::/64"))
    assert not fits(DUAL, net("10.5.7.0/24"), None)


def test_overlapping_looks_at_both_families():
    a, b = known("10.5.1.0/24", "fd00:1:0:1::/64"), known("10.5.2.0/24", "fd00:1:0:2::/64")
    assert overlapping([a, b], net("10.5.9.0/24"), net6("fd00:1:0:2::/64")) == [b]
    assert overlapping([a, b], net("10.5.0.0/23"), None) == [a]


subnets = st.builds(
    lambda third, length: ip_network(f"10.5.{third}.0/{length}", strict=False),
    st.integers(0, 255),
    st.integers(17, 30),
)


@given(st.lists(subnets, max_size=12), st.integers(1, 300))
def test_the_free_subnets_are_those_that_overlap_nothing(taken, limit):
    naive = [
        sub
        for sub in IPv4Network("10.5.0.0/16").subnets(new_prefix=24)
        if not any(sub.overlaps(t) for t in taken)
    ]
    expected = [int(sub.network_address) for sub in naive if sub.network_address >= V4.subnet_min][:limit]
    assert first_free(V4, Family.V4, taken, limit) == expected


def test_a_huge_network_full_of_records_is_searched_quickly():
    base = int(IPv6Address("fd00:1::"))
    conf = decode_netconf(b'{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:1::/32"}')
    taken = [IPv6Network((base + (n << 64), 64)) for n in range(5000)]
    assert first_free(conf, Family.V6, taken)[0] == base + (5000 << 64)
