"""What each backend puts into the kernel for its peers, as ip(8) and bridge(8) print it."""

from ipaddress import IPv4Address, IPv6Address, ip_interface

import msgspec
import pytest

from pycni.backends.base import overlay_mtu, pod_mtu
from pycni.backends.compiler import FabricCompiler, compile_fabric
from pycni.backends.table import BACKENDS, backend
from pycni.backends.vxlan import device_name
from pycni.errors import ConfigError
from pycni.model.extension import Commands
from pycni.model.family import Family
from pycni.model.wireguard import Secret, WireguardKey, key_text
from tests.unit.fabric_world import OWN_KEY, OWN_MAC, by_key, conf, lease, node, site, wg_key

VXLAN4 = [
    "02:00:00:00:04:02 dev flannel.1 dst 192.0.2.2 self permanent",
    "10.5.2.0 dev flannel.1 lladdr 02:00:00:00:04:02 PERMANENT",
    "10.5.2.0/24 via 10.5.2.0 dev flannel.1 proto 112 onlink",
    "link flannel.1 type vxlan id 1 dstport 8472 mtu 1450",
]
VXLAN6 = [
    "02:00:00:00:06:02 dev flannel-v6.1 dst 2001:db8::2 self permanent",
    "fd00:5:0:2:: dev flannel-v6.1 lladdr 02:00:00:00:06:02 PERMANENT",
    "fd00:5:0:2::/64 via fd00:5:0:2:: dev flannel-v6.1 proto 112 onlink",
    "link flannel-v6.1 type vxlan id 1 dstport 8472 mtu 1430",
]
WIREGUARD4 = [
    "10.5.2.0/24 dev flannel-wg proto 112",
    f"link flannel-wg type wireguard listen-port 51820 public-key {key_text(OWN_KEY)} mtu 1420",
    f"peer {key_text(wg_key(2))} dev flannel-wg endpoint 192.0.2.2:51820 allowed-ips 10.5.2.0/24",
]
WIREGUARD6 = [
    "fd00:5:0:2::/64 dev flannel-wg-v6 proto 112",
    f"link flannel-wg-v6 type wireguard listen-port 51821 public-key {key_text(OWN_KEY)} mtu 1420",
    f"peer {key_text(wg_key(2))} dev flannel-wg-v6 endpoint [2001:db8::2]:51821 allowed-ips fd00:5:0:2::/64",
]
UDP4 = ["10.5.2.0/24 dev flannel0 proto 112", "forward 10.5.2.0/24 dev flannel0 to 192.0.2.2:8285"]
UDP6 = [
    "fd00:5:0:2::/64 dev flannel0 proto 112",
    "forward fd00:5:0:2::/64 dev flannel0 to [2001:db8::2]:8285",
]
UDP_LINK = "link flannel0 type udp local {} port 8285 mtu {}"
COMPILED = [
    pytest.param("4", "vxlan", {}, VXLAN4, id="vxlan ipv4"),
    pytest.param("6", "vxlan", {}, VXLAN6, id="vxlan ipv6"),
    pytest.param("46", "vxlan", {}, sorted(VXLAN4 + VXLAN6), id="vxlan dual-stack"),
    pytest.param(
        "4",
        "vxlan",
        {"direct_routing": True},
        ["10.5.2.0/24 via 192.0.2.2 dev eth0 proto 112", VXLAN4[3]],
        id="vxlan with DirectRouting, peer on our link",
    ),
    pytest.param(
        "6",
        "vxlan",
        {"direct_routing": True},
        ["fd00:5:0:2::/64 via 2001:db8::2 dev eth0 proto 112", VXLAN6[3]],
        id="vxlan ipv6 with DirectRouting",
    ),
    pytest.param(
        "4",
        "vxlan",
        {"port": 4789, "mtu": 1400},
        [*VXLAN4[:3], "link flannel.1 type vxlan id 1 dstport 4789 mtu 1350"],
        id="vxlan with Port and MTU",
    ),
    pytest.param(
        "4",
        "ipip",
        {},
        [
            "10.5.2.0/24 via 192.0.2.2 dev flannel.ipip proto 112 onlink",
            "link flannel.ipip type ipip local 192.0.2.1 mtu 1480",
        ],
        id="ipip",
    ),
    pytest.param(
        "4",
        "ipip",
        {"direct_routing": True},
        [
            "10.5.2.0/24 via 192.0.2.2 dev eth0 proto 112",
            "link flannel.ipip type ipip local 192.0.2.1 mtu 1480",
        ],
        id="ipip with DirectRouting, peer on our link",
    ),
    pytest.param("4", "wireguard", {}, WIREGUARD4, id="wireguard ipv4"),
    pytest.param("6", "wireguard", {}, WIREGUARD6, id="wireguard ipv6"),
    pytest.param("46", "wireguard", {}, sorted(WIREGUARD4 + WIREGUARD6), id="wireguard separate"),
    *(
        pytest.param(
            "46",
            "wireguard",
            {"mode": mode, "keepalive_s": 25, "psk": Secret(b"x" * 32), "mtu": 1400},
            [
                "10.5.2.0/24 dev flannel-wg proto 112",
                "fd00:5:0:2::/64 dev flannel-wg proto 112",
                f"link flannel-wg type wireguard listen-port 51820 public-key {key_text(OWN_KEY)} mtu 1320",
                (
                    f"peer {key_text(wg_key(2))} dev flannel-wg endpoint {host}:51820"
                    " allowed-ips 10.5.2.0/24,fd00:5:0:2::/64 persistent-keepalive 25 psk"
                ),
            ],
            id=f"wireguard {mode}",
        )
        for mode, host in (("ipv4", "192.0.2.2"), ("ipv6", "[2001:db8::2]"), ("auto", "192.0.2.2"))
    ),
    pytest.param("46", "bgp", {}, [], id="bgp"),
    pytest.param(
        "46",
        "extension",
        {"commands": Commands(subnet_remove="true")},
        ["lease 10.5.2.0-24&fd00:5:0:2::-64 at 192.0.2.2 2001:db8::2"],
        id="extension: one row for both families",
    ),
    pytest.param(
        "4",
        "extension",
        {"commands": Commands(pre_startup="true")},
        [],
        id="extension without peers' commands",
    ),
    pytest.param("4", "udp", {"port": 8285}, [*UDP4, UDP_LINK.format("192.0.2.1", 1472)], id="udp ipv4"),
    pytest.param("6", "udp", {"port": 8285}, [*UDP6, UDP_LINK.format("2001:db8::1", 1452)], id="udp ipv6"),
    pytest.param(
        "46",
        "udp",
        {"port": 8285},
        sorted([*UDP4, *UDP6, UDP_LINK.format("192.0.2.1,2001:db8::1", 1452)]),
        id="udp dual-stack",
    ),
    pytest.param(
        "4",
        "udp",
        {"port": 8285, "psk": Secret(b"x" * 32), "mtu": 1400},
        [*UDP4, UDP_LINK.format("192.0.2.1", 1340) + " psk"],
        id="udp with PSK and MTU",
    ),
    pytest.param("46", "alloc", {}, [], id="alloc"),
    pytest.param("4", "host-gw", {}, ["10.5.2.0/24 via 192.0.2.2 dev eth0 proto 112"], id="host-gw ipv4"),
    pytest.param(
        "46",
        "host-gw",
        {},
        [
            "10.5.2.0/24 via 192.0.2.2 dev eth0 proto 112",
            "fd00:5:0:2::/64 via 2001:db8::2 dev eth0 proto 112",
        ],
        id="host-gw dual-stack",
    ),
]


@pytest.mark.parametrize(("families", "kind", "keys", "expected"), COMPILED)
def test_one_peer_compiles_to(families, kind, keys, expected):
    here = site(families, kind, **keys)
    leases = by_key(here.own, lease(2, families, kind))
    assert compile_fabric(backend(kind), leases, here).text() == expected


def test_direct_routing_uses_the_overlay_for_a_peer_behind_a_router():
    here = site(direct_routing=True)
    far = lease(2, public_ip=IPv4Address("198.51.100.2"))
    state = compile_fabric(backend("vxlan"), by_key(here.own, far), here)
    assert state.text()[2] == VXLAN4[2]
    assert state.vtep_peers == {IPv4Address("198.51.100.2").packed}


def test_vxlan_is_accepted_from_every_peer_also_directly_routed_ones():
    here = site("46", direct_routing=True)
    state = compile_fabric(backend("vxlan"), by_key(here.own, lease(2, "46"), lease(3, "46")), here)
    assert {len(address) for address in state.vtep_peers} == {4, 16}
    assert len(state.vtep_peers) == 4


def test_a_vtep_has_the_subnets_base_address_alone_and_the_interfaces_address_as_source():
    here = site("46")
    links = backend("vxlan").links(here)
    assert links["flannel.1"].addresses == ((IPv4Address("10.5.1.0").packed, 32),)
    assert links["flannel-v6.1"].addresses == ((IPv6Address("fd00:5:0:1::").packed, 128),)
    assert links["flannel.1"].local == IPv4Address("192.0.2.1").packed
    assert links["flannel.1"].mac == OWN_MAC
    assert links["flannel.1"].parent == "eth0"


REFUSED = [
    pytest.param(
        {"backend_type": "host-gw"}, "its backend is 'host-gw', this network's is 'vxlan'", id="other backend"
    ),
    pytest.param({"public_ip": None}, "it publishes no ipv4 address", id="no address of the family"),
    pytest.param(
        {"public_ip": IPv4Address("192.0.2.1")},
        "its public address 192.0.2.1 is this node's own",
        id="our address",
    ),
    pytest.param({"backend_data": None}, "it publishes no backend data for this family", id="no data"),
    pytest.param(
        {"backend_data": b'{"VNI":7,"VtepMAC":"02:00:00:00:04:02"}'},
        "its VNI is 7, this network's is 1",
        id="another VNI",
    ),
    pytest.param(
        {"backend_data": b'{"VNI":1}'},
        "its backend data '{\"VNI\":1}': Object missing required field `VtepMAC`",
        id="no MAC",
    ),
    pytest.param(
        {"backend_data": b'{"VtepMAC":7}'},
        "its backend data '{\"VtepMAC\":7}': Expected `str`, got `int` - at `$.VtepMAC`",
        id="MAC of another type",
    ),
    pytest.param(
        {"backend_data": b'{"VtepMAC":"02:00:00:00:04"}'},
        "its VtepMAC '02:00:00:00:04' is no unicast MAC address",
        id="short MAC",
    ),
    pytest.param(
        {"backend_data": b'{"VtepMAC":"+1:00:00:00:04:02"}'},
        "its VtepMAC '+1:00:00:00:04:02' is no unicast MAC address",
        id="signed MAC",
    ),
    pytest.param(
        {"backend_data": b'{"VtepMAC":"03:00:00:00:04:02"}'},
        "its VtepMAC '03:00:00:00:04:02' is no unicast MAC address",
        id="multicast MAC",
    ),
    pytest.param(
        {"backend_data": b'{"VtepMAC":"00:00:00:00:00:00"}'},
        "its VtepMAC '00:00:00:00:00:00' is no unicast MAC address",
        id="zero MAC",
    ),
    pytest.param(
        {"backend_data": b'{"VtepMAC":"02:aa:00:00:00:01"}'},
        "its VtepMAC 02:aa:00:00:00:01 is this node's own",
        id="our MAC",
    ),
]


@pytest.mark.parametrize(("changes", "reason"), REFUSED)
def test_a_peer_that_does_not_fit_is_skipped_with_the_reason_and_others_go_on(changes, reason):
    here = site()
    compiler = FabricCompiler(backend("vxlan"), here)
    compiler.update(by_key(here.own, lease(2, **changes), lease(3)))
    refusals = compiler.refusals
    assert {key: (refusal.reason, refusal.fault) for key, refusal in refusals.items()} == {
        ("10.5.2.0-24", Family.V4): (reason, False)
    }
    assert [key for key, _ in compiler.peers] == ["10.5.3.0-24"]


def test_data_without_a_vni_is_taken_as_old_flannels():
    here = site(vni=9)
    old = lease(2, backend_data=b'{"VtepMAC":"02:00:00:00:04:02"}')
    assert len(compile_fabric(backend("vxlan"), by_key(old), here).fdb) == 1


def test_of_two_peers_with_one_mac_the_smaller_key_counts_and_the_other_says_why():
    here = site()
    twin = lease(3, backend_data=lease(2).attrs.backend_data)
    compiler = FabricCompiler(backend("vxlan"), here)
    compiler.update(by_key(twin))
    assert not compiler.refusals
    compiler.update(by_key(twin, lease(2)))
    (key,) = compiler.refusals
    assert key == ("10.5.3.0-24", Family.V4)
    assert compiler.refusals[key].reason == (
        "its VtepMAC 02:00:00:00:04:02 is announced by lease 10.5.2.0-24 too"
    )
    compiler.update(by_key(twin))
    assert not compiler.refusals


def test_an_underlay_address_counts_while_any_lease_names_it():
    here = site()
    compiler = FabricCompiler(backend("vxlan"), here)
    twice = lease(3, public_ip=IPv4Address("192.0.2.2"))
    compiler.update(by_key(lease(2), twice))
    compiler.update(by_key(twice))
    assert compiler.state.vtep_peers == {IPv4Address("192.0.2.2").packed}
    touched = compiler.update({})
    assert touched.remotes == {IPv4Address("192.0.2.2").packed}
    assert compiler.state.vtep_peers == frozenset()


def test_host_gw_names_the_peer_that_is_not_on_link_as_a_fault_and_serves_the_others():
    here = site(kind="host-gw")
    far = lease(2, kind="host-gw", public_ip=IPv4Address("198.51.100.2"))
    compiler = FabricCompiler(backend("host-gw"), here)
    compiler.update(by_key(far, lease(3, kind="host-gw")))
    refusal = compiler.refusals["10.5.2.0-24", Family.V4]
    assert refusal.fault
    assert refusal.reason == "198.51.100.2 is not on a network of eth0: host-gw needs all nodes on one link"
    assert compiler.state.text() == ["10.5.3.0/24 via 192.0.2.3 dev eth0 proto 112"]


def test_only_the_changed_peer_is_compiled_again_and_touched():
    here = site()
    asked = []

    class Counting:
        name = "vxlan"
        inner = backend("vxlan")
        overhead = inner.overhead
        published = inner.published
        links = inner.links

        def peer(self, one, family, where):
            asked.append(one.key)
            return self.inner.peer(one, family, where)

    leases = by_key(*(lease(number) for number in range(2, 200)))
    compiler = FabricCompiler(Counting(), here)
    compiler.update(leases)
    asked.clear()
    moved = lease(7, public_ip=IPv4Address("192.0.2.250"))
    touched = compiler.update(leases | by_key(moved))
    assert asked == [moved.key]
    assert [key.destination for key in touched.routes] == [IPv4Address("10.5.7.0").packed]
    assert (len(touched.neighbours), len(touched.fdb)) == (1, 1)
    assert touched.remotes == {IPv4Address(f"192.0.2.{last}").packed for last in (7, 250)}
    again = compiler.update(leases | by_key(moved))
    assert again.empty
    assert not again.peers


PUBLISHED = [
    pytest.param("4", "vxlan", {"VNI": 1, "VtepMAC": "02:aa:00:00:00:01"}, None, id="vxlan ipv4"),
    pytest.param("6", "vxlan", None, {"VNI": 1, "VtepMAC": "02:aa:00:00:06:01"}, id="vxlan ipv6"),
    pytest.param("4", "host-gw", None, None, id="host-gw"),
    pytest.param("4", "bgp", None, None, id="bgp"),
    pytest.param("4", "extension", None, None, id="extension without a command"),
    pytest.param("4", "alloc", None, None, id="alloc"),
    pytest.param("4", "ipip", None, None, id="ipip"),
    pytest.param("46", "udp", None, None, id="udp"),
    pytest.param("4", "wireguard", {"PublicKey": key_text(OWN_KEY)}, None, id="wireguard"),
    pytest.param("6", "wireguard", None, {"PublicKey": key_text(OWN_KEY)}, id="wireguard ipv6"),
]


@pytest.mark.parametrize(("families", "kind", "data", "data6"), PUBLISHED)
def test_a_node_publishes_what_flannel_publishes(families, kind, data, data6):
    attrs = backend(kind).published(node(families), conf(families, kind))
    assert attrs.backend_type == kind
    assert (attrs.public_ip is None, attrs.public_ipv6 is None) == ("4" not in families, "6" not in families)
    for raw, expected in ((attrs.backend_data, data), (attrs.backend_v6_data, data6)):
        assert (None if raw is None else msgspec.json.decode(raw)) == expected
        assert raw is None or b" " not in raw


def test_the_public_address_behind_nat_is_published_and_the_interfaces_own_is_the_source():
    here = node(public_ip=IPv4Address("203.0.113.9"))
    attrs = backend("vxlan").published(here, conf())
    assert attrs.public_ip == IPv4Address("203.0.113.9")


def test_host_gw_refuses_a_public_address_that_is_not_the_interfaces():
    with pytest.raises(ConfigError, match=r"public ipv4 address='203.0.113.9': not an address of eth0"):
        backend("host-gw").published(node(public_ip=IPv4Address("203.0.113.9")), conf(kind="host-gw"))


@pytest.mark.parametrize("kind", [kind for kind in BACKENDS if kind != "ipip"])
def test_a_family_the_underlay_does_not_have_is_an_error_naming_it(kind):
    with pytest.raises(
        ConfigError, match=r"underlay eth0: ipv6 address=None: the cluster network fd00:5::/48"
    ):
        backend(kind).published(node("4"), conf("46", kind))


def test_ipip_refuses_a_network_with_ipv6_by_name():
    message = r"Backend.Type='ipip': carries IPv4 only, the cluster network fd00:5::/48 is IPv6"
    with pytest.raises(ConfigError, match=message):
        backend("ipip").published(node("46"), conf("46", "ipip"))


def test_the_ipip_device_has_the_subnets_base_address_alone_and_no_far_end():
    (link,) = backend("ipip").links(site(kind="ipip", own=3)).values()
    assert (link.name, link.parent) == ("flannel.ipip", "eth0")
    assert link.local == IPv4Address("192.0.2.1").packed
    assert link.addresses == ((IPv4Address("10.5.3.0").packed, 32),)


def test_ipip_with_direct_routing_tunnels_to_a_peer_behind_a_router():
    here = site(kind="ipip", direct_routing=True)
    far = lease(2, kind="ipip", public_ip=IPv4Address("198.51.100.2"))
    state = compile_fabric(backend("ipip"), by_key(here.own, far, lease(3, kind="ipip")), here)
    assert state.text()[:2] == [
        "10.5.2.0/24 via 198.51.100.2 dev flannel.ipip proto 112 onlink",
        "10.5.3.0/24 via 192.0.2.3 dev eth0 proto 112",
    ]


WIREGUARD_REFUSED = [
    pytest.param(None, "it publishes no backend data for this family", id="no data"),
    pytest.param(b"{}", "its backend data '{}': Object missing required field `PublicKey`", id="no key"),
    pytest.param(b'{"PublicKey":"AAAA"}', "its PublicKey 'AAAA' is no WireGuard key", id="short key"),
    pytest.param(
        b'{"PublicKey":"%s","Port":70000}' % key_text(wg_key(2)).encode(),
        "its Port 70000 is no UDP port",
        id="port too large",
    ),
    pytest.param(
        b'{"PublicKey":"%s"}' % key_text(OWN_KEY).encode(),
        f"its PublicKey {key_text(OWN_KEY)} is this node's own",
        id="our key",
    ),
]


@pytest.mark.parametrize(("data", "reason"), WIREGUARD_REFUSED)
def test_a_wireguard_peer_that_does_not_fit_is_skipped_and_others_go_on(data, reason):
    compiler = FabricCompiler(backend("wireguard"), site(kind="wireguard"))
    compiler.update(by_key(lease(2, kind="wireguard", backend_data=data), lease(3, kind="wireguard")))
    assert [refusal.reason for refusal in compiler.refusals.values()] == [reason]
    assert [key for key, _ in compiler.peers] == ["10.5.3.0-24"]


def test_a_port_in_the_lease_counts_for_its_peer():
    data = b'{"PublicKey":"%s","Port":7}' % key_text(wg_key(2)).encode()
    state = compile_fabric(
        backend("wireguard"), by_key(lease(2, kind="wireguard", backend_data=data)), site(kind="wireguard")
    )
    assert [peer.port for peer in state.wireguard.values()] == [7]


@pytest.mark.parametrize("mode", ["separate", "auto"])
def test_of_two_leases_with_one_public_key_the_smaller_has_it(mode):
    here = site("46", "wireguard", mode=mode)
    data = lease(2, "46", "wireguard").attrs.backend_data
    twin = lease(3, "46", "wireguard", backend_data=data, backend_v6_data=data)
    compiler = FabricCompiler(backend("wireguard"), here)
    compiler.update(by_key(lease(2, "46", "wireguard"), twin))
    assert {key for key, _ in compiler.refusals} == {twin.key}
    assert {refusal.reason for refusal in compiler.refusals.values()} == {
        f"its PublicKey {key_text(wg_key(2))} is announced by lease 10.5.2.0-24&fd00:5:0:2::-64 too"
    }
    touched = compiler.update(by_key(twin))
    assert not compiler.refusals
    assert len(compiler.state.wireguard) == len(touched.wireguard) == (2 if mode == "separate" else 1)


def test_one_more_wireguard_peer_touches_no_other():
    compiler = FabricCompiler(backend("wireguard"), site(kind="wireguard"))
    some = by_key(*(lease(number, kind="wireguard") for number in range(2, 90)))
    compiler.update(some)
    touched = compiler.update(some | by_key(lease(90, kind="wireguard")))
    assert touched.wireguard == {WireguardKey("flannel-wg", wg_key(90))}
    assert len(touched.routes) == 1


def test_wireguard_mode_ipv6_needs_an_ipv6_underlay_even_for_ipv4_pods():
    with pytest.raises(ConfigError, match="underlay eth0: ipv6 address=None: Mode ipv6 needs one"):
        backend("wireguard").published(node("4"), conf("4", "wireguard", mode="ipv6"))
    attrs = backend("wireguard").published(node("46"), conf("4", "wireguard", mode="ipv6"))
    assert (attrs.public_ip, attrs.public_ipv6) == (None, IPv6Address("2001:db8::1"))
    assert attrs.backend_v6_data is None


def test_a_pre_shared_key_is_in_no_state():
    here = site(kind="wireguard", psk=Secret(b"top secret, not to be seen here!"))
    state = compile_fabric(backend("wireguard"), by_key(lease(2, kind="wireguard")), here)
    assert "secret," not in repr(state) + repr(here) + "".join(state.text())


def test_an_ipip_node_does_not_take_vxlan_peers():
    here = site(kind="ipip")
    compiler = FabricCompiler(backend("ipip"), here)
    compiler.update(by_key(lease(2, kind="vxlan"), lease(3, kind="ipip")))
    assert [refusal.reason for refusal in compiler.refusals.values()] == [
        "its backend is 'vxlan', this network's is 'ipip'"
    ]
    assert [key for key, _ in compiler.peers] == ["10.5.3.0-24"]


MTUS = [
    pytest.param("46", "wireguard", 1500, 0, 1420, id="wireguard pays 80 in both families"),
    pytest.param("4", "ipip", 1500, 0, 1480, id="ipip pays one more IPv4 header"),
    pytest.param("4", "vxlan", 1500, 0, 1450, id="vxlan ipv4"),
    pytest.param("6", "vxlan", 1500, 0, 1430, id="vxlan ipv6 pays 20 more"),
    pytest.param("46", "vxlan", 1500, 0, 1430, id="dual-stack pods take the smaller one"),
    pytest.param("4", "vxlan", 9001, 1500, 1450, id="Backend.MTU stands for the underlay's"),
    pytest.param(
        "4", "vxlan", 1400, 1500, 1350, id="Backend.MTU above the underlay's counts as the underlay's"
    ),
    pytest.param("46", "host-gw", 1500, 0, 1500, id="host-gw costs nothing"),
    pytest.param("46", "bgp", 1500, 0, 1500, id="bgp costs nothing"),
    pytest.param("46", "extension", 1500, 1400, 1400, id="Backend.MTU of extension is the pods'"),
    pytest.param("46", "alloc", 1500, 0, 1500, id="alloc costs nothing"),
]


@pytest.mark.parametrize(("families", "kind", "underlay_mtu", "conf_mtu", "expected"), MTUS)
def test_pods_get_the_mtu(families, kind, underlay_mtu, conf_mtu, expected):
    assert (
        pod_mtu(backend(kind), node(families, underlay_mtu), conf(families, kind, mtu=conf_mtu)) == expected
    )


def test_an_underlay_too_small_for_ipv6_is_an_error():
    with pytest.raises(ConfigError, match="underlay eth0: mtu=1349: IPv6 pods need 1350 at least"):
        overlay_mtu(backend("vxlan"), node("6", 1349), conf("6"), Family.V6)


def test_an_unknown_backend_is_an_error_naming_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"Backend.Type='ipsec': expected one of vxlan, host-gw, ipip, wireguard, "
    ):
        backend("ipsec")


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("vni", [0, 1, 4096, 16777215])
def test_device_names_fit_and_are_flannels_where_flannels_fit(family, vni):
    name = device_name(family, vni)
    assert len(name) <= 15
    assert name.startswith("flannel") == (
        len(f"flannel-v6.{vni}") <= 15 or (family is Family.V4 and vni < 10**7)
    )


def test_a_second_underlay_network_is_on_link_too():
    underlay = node().underlay
    more = msgspec.structs.replace(underlay, on_link=(*underlay.on_link, ip_interface("198.51.100.1/24")))
    here = msgspec.structs.replace(site(kind="host-gw"), node=msgspec.structs.replace(node(), underlay=more))
    far = lease(2, kind="host-gw", public_ip=IPv4Address("198.51.100.2"))
    state = compile_fabric(backend("host-gw"), by_key(far), here)
    assert state.text() == ["10.5.2.0/24 via 198.51.100.2 dev eth0 proto 112"]


def test_udp_takes_flannels_leases_which_say_no_type_and_no_others():
    some = by_key(lease(2, kind=""), lease(3, kind="udp"), lease(4, kind="vxlan"))
    compiler = FabricCompiler(backend("udp"), site(kind="udp"))
    touched = compiler.update(some)
    assert {key for key, _ in compiler.peers} == {"10.5.2.0-24", "10.5.3.0-24"}
    assert {refusal.reason for refusal in compiler.refusals.values()} == {
        "its backend is 'vxlan', this network's is 'udp'"
    }
    assert touched.udp == set(compiler.state.udp)
    assert len(compiler.update(by_key(lease(3, kind="udp"))).udp) == 1


def test_behind_nat_the_forwarder_sends_from_the_own_address_and_is_known_by_the_public_one():
    here = site(kind="udp")
    behind = msgspec.structs.replace(here, node=node(public_ip=IPv4Address("203.0.113.9")))
    (link,) = backend("udp").links(behind).values()
    assert (link.local, link.public) == (
        (IPv4Address("192.0.2.1").packed,),
        (IPv4Address("203.0.113.9").packed,),
    )


def test_a_key_costs_udp_32_bytes_and_a_caller_without_net_conf_hears_the_most():
    how = backend("udp")
    for family, plain in ((Family.V4, 28), (Family.V6, 48)):
        assert how.overhead(family, conf(kind="udp")) == plain
        assert how.overhead(family, conf(kind="udp", psk=Secret(b"x" * 32))) == plain + 32
        assert how.overhead(family) == plain + 32


def test_extension_publishes_what_its_command_wrote_as_a_string_of_every_family():
    commands = Commands(pre_startup="x")
    here = msgspec.structs.replace(node("46"), extension_output='a "b"\nc')
    attrs = backend("extension").published(here, conf("46", "extension", commands=commands))
    assert (attrs.backend_data, attrs.backend_v6_data) == (rb'"a \"b\"\nc"',) * 2


def test_extension_hands_a_peers_data_on_and_refuses_what_is_no_string():
    here = site("4", "extension", commands=Commands(subnet_add="add"))
    peers = by_key(
        lease(2, kind="extension", backend_data=b'"a b"'),
        lease(3, kind="extension"),
        lease(4, kind="extension", backend_data=b'{"a":1}'),
    )
    compiler = FabricCompiler(backend("extension"), here)
    compiler.update(peers)
    found = {key.lease: (peer.add, peer.data) for key, peer in compiler.state.extension.items()}
    assert found == {"10.5.2.0-24": ("add", "a b"), "10.5.3.0-24": ("add", "")}
    assert "its backend data" in compiler.refusals["10.5.4.0-24", Family.V4].reason
    gone = compiler.update({})
    assert {key.lease for key in gone.extension} == set(found)
    assert not gone.empty
    assert not compiler.state.extension
