"""Which of the kernel's announcements contradict what we want."""

from ipaddress import ip_address

import pytest

from pycni.agent.drift import Concern, Watchman
from pycni.backends.compiler import compile_fabric
from pycni.backends.table import backend
from pycni.kernel.monitor import LOST, Event
from pycni.wire import rtlink, rtnl
from tests.unit.fabric_world import OWN_MAC, by_key, lease, site

SITE = site("46")
WANTED = compile_fabric(backend("vxlan"), by_key(lease(2, "46")), SITE)
NAMES = {1: "lo", 2: "eth0", 7: "flannel.1", 8: "flannel-v6.1", 9: "veth0"}
PEER_MAC = bytes.fromhex("020000000402")
NOTHING, FABRIC, UNDERLAY = Concern.NOTHING, Concern.FABRIC, Concern.UNDERLAY


def watchman(*, in_place=True):
    made = Watchman()
    made.expect(WANTED, SITE.node.underlay, NAMES, in_place=in_place)
    return made


def packed(text):
    return ip_address(text).packed


def link(index=7, name="flannel.1", *, up=True, mac=OWN_MAC, mtu=1450, vni=1, kind="vxlan", alias="pycni"):
    vxlan = (
        rtlink.Vxlan(vni, 2, packed("192.0.2.1"), 8472, learning=False, gbp=False)
        if kind == "vxlan"
        else None
    )
    return rtlink.Link(
        ifindex=index, name=name, flags=1 if up else 0, kind=kind, mtu=mtu, mac=mac, master=0, alias=alias,
        group=0, operstate=0, parent=2, vxlan=vxlan, hairpin=False, isolated=False,
    )  # fmt: skip


def route(to="10.5.2.0/24", via="10.5.2.0", oif=7, *, protocol=112, onlink=True, metric=0, flags=0):
    base, length = to.split("/")
    return rtnl.RouteInfo(
        family=2 if "." in base else 10, table=254, protocol=protocol, scope=0, kind=1, destination=packed(base),
        prefix_len=int(length), oif=oif, gateway=packed(via) if via else b"", source=b"", metric=metric,
        flags=flags | (rtnl.RTNH_F_ONLINK if onlink else 0), multipath=False, mtu=0,
    )  # fmt: skip


def neighbour(address="10.5.2.0", mac=PEER_MAC, index=7, state=rtnl.NUD_PERMANENT):
    return rtnl.NeighbourInfo(2 if "." in address else 10, index, state, 0, packed(address), mac)


def fdb(
    mac=PEER_MAC, remote="192.0.2.2", index=7, state=rtnl.NUD_PERMANENT | rtnl.NUD_NOARP, flags=rtnl.NTF_SELF
):
    return rtnl.NeighbourInfo(rtnl.AF_BRIDGE, index, state, flags, packed(remote), mac)


def address(text="10.5.1.0/32", index=7, scope=0):
    base, length = text.split("/")
    return rtnl.AddressInfo(index, packed(base), int(length), 0, scope)


V6_ROUTE = route("fd00:5:0:2::/64", "fd00:5:0:2::", 8, metric=1024)
CASES = [
    pytest.param(False, route(), NOTHING, id="our own route set"),
    pytest.param(False, V6_ROUTE, NOTHING, id="our own IPv6 route, with the kernel's metric"),
    pytest.param(True, route("10.5.9.0/24"), NOTHING, id="a route we no longer want removed"),
    pytest.param(True, route(), FABRIC, id="our route deleted"),
    pytest.param(True, V6_ROUTE, FABRIC, id="our IPv6 route deleted"),
    pytest.param(False, route(via="10.5.3.0"), FABRIC, id="our route by another next hop"),
    pytest.param(False, route(protocol=4), FABRIC, id="our route under another protocol"),
    pytest.param(False, route(onlink=False), FABRIC, id="our route without onlink"),
    pytest.param(False, route(oif=2), FABRIC, id="our route on another device"),
    pytest.param(False, route("10.5.9.0/24"), FABRIC, id="a route of our protocol nobody wants"),
    pytest.param(False, route("10.9.0.0/16", protocol=4), FABRIC, id="a foreign route on our device"),
    pytest.param(False, route("10.9.0.0/16", protocol=2), NOTHING, id="the kernel's own route on our device"),
    pytest.param(False, route("10.9.0.0/16", protocol=4, oif=2), NOTHING, id="a foreign route elsewhere"),
    pytest.param(True, route("10.9.0.0/16", protocol=4, oif=2), NOTHING, id="a foreign route gone"),
    pytest.param(False, route("10.9.0.0/16", flags=rtnl.RTM_F_CLONED), NOTHING, id="a cached route"),
    pytest.param(False, neighbour(), NOTHING, id="our neighbour set"),
    pytest.param(True, neighbour(), FABRIC, id="our neighbour deleted"),
    pytest.param(False, neighbour(mac=OWN_MAC), FABRIC, id="our neighbour with another MAC"),
    pytest.param(False, neighbour(state=4), FABRIC, id="our neighbour no longer permanent"),
    pytest.param(False, neighbour("10.5.9.0"), FABRIC, id="a permanent neighbour nobody wants"),
    pytest.param(False, neighbour("10.5.9.0", state=2), NOTHING, id="a learnt neighbour on our device"),
    pytest.param(True, neighbour("10.5.9.0"), NOTHING, id="a neighbour we no longer want removed"),
    pytest.param(False, neighbour(index=9), NOTHING, id="a neighbour elsewhere"),
    pytest.param(False, fdb(), NOTHING, id="our forwarding entry set"),
    pytest.param(True, fdb(), FABRIC, id="our forwarding entry deleted"),
    pytest.param(False, fdb(remote="192.0.2.9"), FABRIC, id="our forwarding entry to another node"),
    pytest.param(False, fdb(OWN_MAC), FABRIC, id="a forwarding entry nobody wants"),
    pytest.param(False, fdb(OWN_MAC, state=2), NOTHING, id="a learnt forwarding entry"),
    pytest.param(False, fdb(bytes(6)), NOTHING, id="the device's default entry"),
    pytest.param(False, fdb(flags=0), NOTHING, id="a bridge's entry"),
    pytest.param(False, link(), NOTHING, id="our device as wanted"),
    pytest.param(True, link(), FABRIC, id="our device deleted"),
    pytest.param(False, link(up=False), FABRIC, id="our device taken down"),
    pytest.param(False, link(mac=PEER_MAC), FABRIC, id="our device with another MAC"),
    pytest.param(False, link(mtu=1400), FABRIC, id="our device with another MTU"),
    pytest.param(False, link(vni=2), FABRIC, id="another device under our name"),
    pytest.param(False, link(kind="bridge"), FABRIC, id="a bridge under our name"),
    pytest.param(False, link(12, "flannel.9", vni=9), FABRIC, id="a device of ours nobody wants"),
    pytest.param(False, link(12, "flannel.9", vni=9, alias=""), NOTHING, id="a foreign VXLAN device"),
    pytest.param(False, link(9, "veth0", kind="veth"), NOTHING, id="a pod's device"),
    pytest.param(True, link(9, "veth0", kind="veth"), NOTHING, id="a pod's device gone"),
    pytest.param(True, link(2, "eth0", kind="veth"), NOTHING, id="an underlay never announced before gone"),
    pytest.param(False, address(), NOTHING, id="our device's address"),
    pytest.param(True, address(), FABRIC, id="our device's address removed"),
    pytest.param(False, address("10.9.9.9/32"), FABRIC, id="an address more on our device"),
    pytest.param(True, address("10.9.9.9/32"), NOTHING, id="an address too many removed"),
    pytest.param(False, address("fe80::1/64", scope=253), NOTHING, id="a link-local address on our device"),
    pytest.param(False, address("10.9.9.9/32", 9), NOTHING, id="an address elsewhere"),
    pytest.param(False, address("192.0.2.9/24", 2), UNDERLAY, id="an address of the underlay"),
    pytest.param(True, address("192.0.2.1/24", 2), UNDERLAY, id="an address of the underlay removed"),
]


@pytest.mark.parametrize(("removed", "info", "concern"), CASES)
def test_an_announcement_gives_concern(removed, info, concern):
    assert watchman().judge([Event(removed, info)]) == concern


def test_lost_announcements_concern_everything():
    assert watchman().judge([LOST]) == FABRIC | UNDERLAY


def test_several_announcements_add_up_and_the_last_contradiction_is_remembered():
    made = watchman()
    assert made.judge(
        [Event(False, route()), Event(True, fdb()), Event(True, address("192.0.2.1/24", 2))]
    ) == (FABRIC | UNDERLAY)
    assert made.last == "underlay eth0: its addresses changed"


UNDERLAYS = [
    pytest.param(link(2, "eth0", mtu=1500, kind="veth"), NOTHING, id="as before"),
    pytest.param(link(2, "eth0", mtu=1400, kind="veth"), FABRIC | UNDERLAY, id="another MTU"),
    pytest.param(link(2, "eth0", mtu=1500, kind="veth", up=False), FABRIC | UNDERLAY, id="taken down"),
    pytest.param(link(33, "eth0", mtu=1500, kind="veth"), FABRIC | UNDERLAY, id="made anew"),
]


@pytest.mark.parametrize(("info", "concern"), UNDERLAYS)
def test_the_underlay_concerns_when_it_changes(info, concern):
    made = watchman()
    made.judge([Event(False, link(2, "eth0", mtu=1500, kind="veth"))])
    assert made.judge([Event(False, info)]) == concern


def test_an_underlay_that_goes_and_comes_concerns_both_times():
    made = watchman()
    card = link(2, "eth0", mtu=1500, kind="veth")
    made.judge([Event(False, card)])
    assert made.judge([Event(True, card)]) == FABRIC | UNDERLAY
    assert made.judge([Event(False, card)]) == FABRIC | UNDERLAY


def test_half_made_devices_mean_nothing_until_they_were_right_once():
    made = watchman(in_place=False)
    half = [Event(False, link(up=False, mtu=1500)), Event(False, link(up=False)), Event(False, link())]
    assert made.judge(half) == NOTHING
    assert made.judge([Event(False, link(up=False))]) == FABRIC


def test_a_device_that_is_changed_by_us_is_half_made_again():
    made = watchman()
    smaller = compile_fabric(backend("vxlan"), {}, site("46", mtu=1400))
    made.expect(smaller, SITE.node.underlay)
    assert made.judge([Event(False, link()), Event(False, link(mtu=1350))]) == NOTHING
    assert made.judge([Event(False, link())]) == FABRIC


def test_devices_are_known_by_the_number_they_were_announced_with():
    made = watchman()
    made.judge([Event(True, link()), Event(False, link(70))])
    assert made.judge([Event(True, neighbour(index=70))]) == FABRIC
    assert made.judge([Event(True, neighbour(index=7))]) == NOTHING


def other_device(backend_type, **changes):
    """The device of another backend as the kernel announces it."""
    name, mtu = ("flannel.ipip", 1480) if backend_type == "ipip" else ("flannel-wg", 1420)
    made = link(
        7, name, kind=changes.pop("kind", backend_type), mac=b"", mtu=changes.pop("mtu", mtu), **changes
    )
    ends = rtlink.Ipip(2, packed("192.0.2.1"))
    return made._replace(ipip=ends) if made.kind == "ipip" else made


@pytest.mark.parametrize(
    ("kind", "event", "expected"),
    [
        pytest.param("ipip", other_device("ipip"), NOTHING, id="ipip as wanted"),
        pytest.param("ipip", other_device("ipip", up=False), FABRIC, id="ipip taken down"),
        pytest.param("ipip", other_device("ipip", mtu=1500), FABRIC, id="ipip with another MTU"),
        pytest.param("ipip", other_device("ipip", kind="tun"), FABRIC, id="ipip's name on another device"),
        pytest.param(
            "ipip",
            other_device("ipip")._replace(ipip=rtlink.Ipip(2, packed("192.0.2.9"))),
            FABRIC,
            id="ipip with another source",
        ),
        pytest.param("wireguard", other_device("wireguard"), NOTHING, id="wireguard as wanted"),
        pytest.param("wireguard", other_device("wireguard", kind="tun"), NOTHING, id="wireguard-go's device"),
        pytest.param("wireguard", other_device("wireguard", up=False), FABRIC, id="wireguard taken down"),
        pytest.param(
            "wireguard", other_device("wireguard", kind="veth"), FABRIC, id="wireguard's name on a veth"
        ),
        pytest.param("wireguard", other_device("ipip"), FABRIC, id="a device of a backend that is left"),
        pytest.param("wireguard", other_device("ipip", alias=""), NOTHING, id="somebody else's ipip device"),
    ],
)
def test_devices_of_other_backends_are_watched_too(kind, event, expected):
    here = site(kind=kind)
    made = Watchman()
    state = compile_fabric(backend(kind), by_key(lease(2, kind=kind)), here)
    made.expect(state, here.node.underlay, NAMES, in_place=True)
    assert made.judge([Event(removed=False, info=event)]) == expected
