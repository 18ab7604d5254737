"""Several backends on one node: what is published, which devices there are, how each peer is reached and accepted."""

from __future__ import annotations

from ipaddress import IPv4Address

import msgspec
import pytest

from pycni.backends.base import Refusal
from pycni.backends.change import LINGER_S, PATIENCE_S, SETTLE_S, Changer, Course, census
from pycni.backends.compiler import compile_fabric
from pycni.backends.mixed import GREET_S, Mixed
from pycni.backends.table import backend
from pycni.model.family import Family
from pycni.model.lease import LeaseAttrs, Offer
from pycni.model.network import BackendConf
from pycni.model.wireguard import WireguardKey, key_text
from tests.unit.fabric_world import OWN_KEY, by_key, lease, site, wg_key

VXLAN, HOST_GW, WIREGUARD, IPIP = (
    BackendConf(type=kind) for kind in ("vxlan", "host-gw", "wireguard", "ipip")
)


def mixed(primary="vxlan", others=(HOST_GW, WIREGUARD), offered=(), **options):
    return Mixed(backend(primary), others, offered, **options)


def offering(number, kind, *offers, families="4"):
    """The lease of a node that is reached by ``kind`` and offers more."""
    plain = lease(number, families, kind)
    more = tuple(
        Offer(
            backend_type=each,
            backend_data=lease(number, families, each).attrs.backend_data,
            backend_v6_data=lease(number, families, each).attrs.backend_v6_data,
        )
        for each in offers
    )
    return msgspec.structs.replace(plain, attrs=msgspec.structs.replace(plain.attrs, offers=more))


def test_a_lease_names_the_primary_and_offers_what_is_to_be_offered():
    here = site("46")
    attrs = mixed(offered=["wireguard", "host-gw"]).published(here.node, here.conf)
    assert attrs.by("vxlan") == attrs
    assert attrs.types == ("vxlan", "host-gw", "wireguard")
    key = msgspec.json.encode({"PublicKey": key_text(OWN_KEY)})
    assert attrs.offers[1] == Offer(backend_type="wireguard", backend_data=key, backend_v6_data=key)
    assert mixed().published(here.node, here.conf) == backend("vxlan").published(here.node, here.conf)


def test_an_address_that_only_an_offered_backend_needs_is_published_too():
    here = site("46")
    only4 = msgspec.structs.replace(here.conf, network6=None)
    six = BackendConf(type="wireguard", mode="ipv6")
    attrs = mixed(others=[six], offered=["wireguard"]).published(here.node, only4)
    assert (attrs.public_ip, attrs.public_ipv6) == (here.node.public_ip, here.node.public_ipv6)


def test_the_devices_of_all_are_there_and_pods_get_the_primarys_mtu():
    here = site("46")
    how = mixed()
    assert set(how.links(here)) == {"flannel.1", "flannel-v6.1", "flannel-wg", "flannel-wg-v6"}
    assert how.devices(here) == {
        "vxlan": {"flannel.1", "flannel-v6.1"},
        "host-gw": frozenset(),
        "wireguard": {"flannel-wg", "flannel-wg-v6"},
    }
    assert [how.overhead(family) for family in Family] == [50, 70]


WAYS = {"vxlan": "flannel.1", "host-gw": "eth0", "wireguard": "flannel-wg"}


@pytest.mark.parametrize("kind", WAYS)
def test_each_peer_is_sent_to_in_the_way_of_its_lease(kind):
    state = compile_fabric(mixed(), by_key(lease(2, "4", kind)), site())
    assert [route.device for route in state.routes.values()] == [WAYS[kind]]
    assert state == compile_fabric(mixed(), by_key(lease(2, "4", kind)), site())


@pytest.mark.parametrize("kind", WAYS)
def test_a_peer_that_offers_more_is_accepted_so_and_sent_to_as_before(kind):
    others = [each for each in WAYS if each != kind]
    plain = compile_fabric(mixed(), by_key(lease(2, "4", kind)), site())
    state = compile_fabric(mixed(), by_key(offering(2, kind, *others)), site())
    assert state.routes == plain.routes
    assert state.neighbours == plain.neighbours
    assert WireguardKey("flannel-wg", wg_key(2)) in state.wireguard
    assert state.vtep_peers == {IPv4Address("192.0.2.2").packed}


def test_vxlan_is_accepted_from_nobody_where_it_is_not_spoken():
    how = mixed("host-gw", [WIREGUARD])
    assert (
        compile_fabric(how, by_key(lease(2, "4", "host-gw")), site("4", "host-gw")).vtep_peers == frozenset()
    )


@pytest.mark.parametrize(("theirs", "begins"), [(1, False), (2, True), (9, True)])
def test_of_two_nodes_the_one_with_the_smaller_key_begins(theirs, begins):
    """Ours is 0102..20, theirs one byte 32 times."""
    data = msgspec.json.encode({"PublicKey": key_text(wg_key(theirs))})
    offers = (Offer(backend_type="wireguard", backend_data=data),)
    peer = msgspec.structs.replace(lease(2), attrs=msgspec.structs.replace(lease(2).attrs, offers=offers))
    state = compile_fabric(mixed(greet=True), by_key(peer), site())
    assert [found.keepalive_s for found in state.wireguard.values()] == [GREET_S if begins else 0]


def test_a_keepalive_of_the_net_conf_stays():
    how = mixed(others=[BackendConf(type="wireguard", keepalive_s=25)], greet=True)
    state = compile_fabric(how, by_key(offering(2, "vxlan", "wireguard")), site())
    assert [peer.keepalive_s for peer in state.wireguard.values()] == [25]


def test_a_backend_this_node_cannot_have_is_left_out_and_its_peers_are_refused_with_the_reason():
    narrow = BackendConf(type="wireguard", mtu=1300)
    how, here = mixed(others=[narrow]), site("46")
    assert set(how.links(here)) == {"flannel.1", "flannel-v6.1"}
    found = how.peer(lease(2, "46", "wireguard"), Family.V4, here)
    assert found == Refusal(
        "its backend is 'wireguard', which this node cannot have: underlay eth0: mtu=1300: IPv6 pods need 1360 at least"
    )


def test_a_backend_nobody_has_told_us_of_is_refused_as_ever():
    found = mixed(others=[HOST_GW]).peer(lease(2, "4", "ipip"), Family.V4, site())
    assert found == Refusal("its backend is 'ipip', this network's is 'vxlan'")


def test_a_malformed_offer_spoils_nothing():
    plain = lease(2)
    wrong = Offer(backend_type="wireguard", backend_data=b'{"PublicKey":"short"}')
    strange = Offer(backend_type="pigeons")
    spoilt = msgspec.structs.replace(
        plain, attrs=msgspec.structs.replace(plain.attrs, offers=(strange, wrong))
    )
    assert compile_fabric(mixed(), by_key(spoilt), site()) == compile_fabric(mixed(), by_key(plain), site())


def test_flannels_udp_has_no_type():
    attrs = LeaseAttrs(public_ip=IPv4Address("192.0.2.2"))
    assert (attrs.way, attrs.types, attrs.by("udp")) == ("udp", ("udp",), attrs)
    assert census({"x": msgspec.structs.replace(lease(2), attrs=attrs)}, "", "udp").types == {"udp"}


def test_equal_mixtures_are_equal():
    assert mixed() == mixed()
    assert hash(mixed()) == hash(mixed())
    assert mixed() != mixed(greet=True)
    assert mixed() != mixed(offered=["host-gw"])
    assert mixed() != mixed(others=[HOST_GW])
    assert mixed() != mixed("ipip")


# the course of one node


def ready(*kinds):
    """What two peers say that are reached by vxlan and equipped for more."""
    return census(
        by_key(*(offering(number, "vxlan", *kinds) for number in (2, 3))),
        "",
        kinds[0] if kinds else "wireguard",
    )


def test_a_node_takes_one_step_after_the_other():
    changer = Changer()
    assert changer.step(VXLAN, None, 0.0, bound=False) == Course(using=VXLAN)
    assert changer.step(WIREGUARD, ready(), 1.0) == Course(using=VXLAN, others=(WIREGUARD,))
    changer.carried(ready(), ["vxlan", "wireguard"], 2.0, None)
    offers = Course(using=VXLAN, others=(WIREGUARD,), offered=("wireguard",))
    assert changer.step(WIREGUARD, ready(), 2.0) == offers
    assert 0 < changer.wake_s <= SETTLE_S
    assert changer.lacking == (lease(2).key, lease(3).key)
    greets = msgspec.structs.replace(offers, greeting=True)
    changer.carried(ready("wireguard"), ["vxlan", "wireguard"], 2.1, None)
    assert changer.step(WIREGUARD, ready("wireguard"), 2.0 + SETTLE_S) == greets
    changer.carried(ready("wireguard"), ["vxlan", "wireguard"], 3.0, (lease(2).key,))
    assert changer.step(WIREGUARD, ready("wireguard"), 3.0) == greets
    assert changer.lacking == (lease(2).key,)
    changer.carried(ready("wireguard"), ["vxlan", "wireguard"], 3.1, ())
    changed = Course(using=WIREGUARD, others=(VXLAN,), offered=("vxlan",), greeting=True)
    assert changer.step(WIREGUARD, ready("wireguard"), 3.1) == changed
    over = census(by_key(lease(2, "4", "wireguard"), lease(3, "4", "wireguard")), "", "wireguard")
    assert changer.step(WIREGUARD, over, 4.0) == changed
    changer.carried(over, ["vxlan", "wireguard"], 4.0, None)
    assert changer.step(WIREGUARD, over, 4.1) == msgspec.structs.replace(changed, offered=())
    assert changer.wake_s == pytest.approx(LINGER_S - 0.1)
    assert changer.step(WIREGUARD, over, 4.0 + LINGER_S) == Course(using=WIREGUARD)
    assert not changer.changing


def test_a_device_that_cannot_be_made_is_never_offered():
    changer = Changer()
    changer.step(VXLAN, None, 0.0, bound=False)
    for now in (1.0, 2.0, 2.0 + PATIENCE_S, 3.0 + PATIENCE_S):
        changer.step(WIREGUARD, ready("wireguard"), now)
        changer.carried(ready("wireguard"), ["vxlan"], now, None)
        assert changer.step(WIREGUARD, ready("wireguard"), now) == Course(using=VXLAN, others=(WIREGUARD,))


def test_what_was_answered_about_another_type_does_not_count():
    changer = Changer()
    changer.step(VXLAN, None, 0.0, bound=False)
    for target in (HOST_GW, IPIP):
        changer.step(target, ready("ipip"), 1.0)
    changer.carried(ready("ipip"), ["vxlan", "host-gw", "ipip"], 1.0, None)
    assert changer.step(HOST_GW, ready("ipip"), 1.1).using == VXLAN
    assert changer.step(IPIP, ready("ipip"), 1.2).using == IPIP


def test_keys_of_the_same_type_are_taken_at_once_unless_following_is_off():
    changer = Changer()
    other = BackendConf(type="vxlan", vni=7)
    changer.step(VXLAN, None, 0.0, bound=False)
    assert changer.step(other, None, 1.0, follow=False).using == VXLAN
    assert changer.step(other, None, 1.0).using == other


def test_a_node_nobody_knows_yet_takes_what_there_is():
    changer = Changer()
    for conf in (VXLAN, IPIP, WIREGUARD):
        assert changer.step(conf, None, 0.0, bound=False) == Course(using=conf)
