"""Finding the external interface, on a real kernel in a namespace of its own."""

from __future__ import annotations

import os
import subprocess

import pytest

from pycni.agent.settings_file import load
from pycni.agent.underlay import detect
from pycni.errors import ConfigError
from pycni.kernel import netns
from pycni.model.family import Family

V4, V6, DUAL = (Family.V4,), (Family.V6,), (Family.V4, Family.V6)

LAYOUT = """
link set lo up
link add eth0 type veth peer name far0
link add eth1 mtu 9000 type veth peer name far1
link add bare type veth peer name far2
link add small mtu 500 type veth peer name far3
link set eth0 up
link set far0 up
link set eth1 up
link set far1 up
addr add 192.0.2.10/24 dev eth0
addr add 192.0.2.11/24 dev eth0
addr add fd00:2::10/64 dev eth0 nodad
addr add 10.1.0.1/16 dev eth1
addr add 169.254.7.7/16 dev eth1 scope link
addr add fd00:1::1/64 dev eth1 nodad
addr add fd00:1::99/64 dev eth1 nodad preferred_lft 0
addr add 10.9.0.1/24 dev small
route add default via 192.0.2.1 dev eth0 metric 200
route add default via 10.1.0.254 dev eth1 metric 300
route add 203.0.113.0/24 via 10.1.0.254 src 10.1.0.1
"""


def batch(namespace, lines):
    subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"], input=lines, text=True, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def node():
    """A namespace with the layout above; gives its name."""
    name = f"pyt{os.getpid()}ul"
    netns.create(name)
    try:
        batch(name, LAYOUT)
        yield name
    finally:
        netns.delete(name)


def found(node, *argv, families=()):
    fd = netns.open_netns(netns.path(node))
    try:
        settings = load(argv, {}, "n").settings
        return netns.run_in(fd, lambda: detect(settings, families))
    finally:
        os.close(fd)


CASES = [
    ("default route of the lowest metric", [], V4, "eth0", 1500, "192.0.2.10/24", "fd00:2::10/64"),
    ("families not known yet", [], (), "eth0", 1500, "192.0.2.10/24", "fd00:2::10/64"),
    ("by name", ["--iface=eth1"], DUAL, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("by address", ["--iface=192.0.2.11"], V4, "eth0", 1500, "192.0.2.11/24", "fd00:2::10/64"),
    ("by IPv6 address", ["--iface=fd00:1::99"], DUAL, "eth1", 9000, "10.1.0.1/16", "fd00:1::99/64"),
    ("the first that exists", ["--iface=ens3", "--iface=eth1"], V4, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("regex on addresses before names", ["--iface-regex=^10\\.1\\.|^eth0$"], V4, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("regex on names", ["--iface-regex=^eth[1-9]$"], V4, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("regex after iface", ["--iface=ens3", "--iface-regex=eth1"], V4, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("regex does not match the loopback", ["--iface-regex=^(lo|eth1)$"], V4, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("by reach", ["--iface-can-reach=203.0.113.9"], V4, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
    ("by reach on link", ["--iface-can-reach=fd00:1::5"], V6, "eth1", 9000, "10.1.0.1/16", "fd00:1::1/64"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("argv", "families", "name", "mtu", "v4", "v6"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_interface_is_found(node, argv, families, name, mtu, v4, v6):
    underlay = found(node, *argv, families=families)
    assert (underlay.name, underlay.mtu) == (name, mtu)
    assert (str(underlay.address), str(underlay.address6)) == (v4, v6)


def test_every_address_counts_as_on_link(node):
    underlay = found(node, "--iface=eth1")
    assert {str(own) for own in underlay.on_link} >= {
        "10.1.0.1/16",
        "169.254.7.7/16",
        "fd00:1::1/64",
        "fd00:1::99/64",
    }


ERRORS = [
    ("no such name", ["--iface=ens3"], V4, "settings: iface='ens3': matches no interface of this node (there are lo, "),
    ("no such address", ["--iface=10.9.9.9"], V4, "settings: iface='10.9.9.9': matches no interface"),
    ("no match", ["--iface-regex=^wlan"], V4, "settings: iface-regex='^wlan': matches no interface"),
    ("unreachable", ["--iface-can-reach=2001:db8:9::1"], V6, "settings: iface-can-reach='2001:db8:9::1': no route to it"),
    ("itself", ["--iface-can-reach=192.0.2.10"], V4, "settings: iface-can-reach='192.0.2.10': is an address of this node itself"),
    ("no default route of a family", [], DUAL, "kernel: default route='none': no ipv6 default route: name the interface by iface"),
    ("no address at all", ["--iface=bare"], (), "interface bare: addresses='none': no usable address"),
    ("no address of a family", ["--iface=small"], V6, "interface small: mtu=500: at least 576 are needed"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "families", "text"), [c[1:] for c in ERRORS], ids=[c[0] for c in ERRORS])
def test_what_cannot_be_found_is_named(node, argv, families, text):
    with pytest.raises(ConfigError) as caught:
        found(node, *argv, families=families)
    assert str(caught.value).startswith(text)


@pytest.fixture
def changing():
    """An empty namespace of one test."""
    name = f"pyt{os.getpid()}uc"
    netns.create(name)
    try:
        yield name
    finally:
        netns.delete(name)


TWO = """
link add eth0 type veth peer name far0
link add eth1 type veth peer name far1
link set eth0 up
link set far0 up
link set eth1 up
link set far1 up
addr add 192.0.2.10/24 dev eth0
addr add 10.1.0.1/16 dev eth1
addr add fd00:2::10/64 dev eth0 nodad
addr add fd00:1::10/64 dev eth1 nodad
"""


def test_no_default_route_at_all(changing):
    with pytest.raises(ConfigError, match="no ipv4 or ipv6 default route: name the interface by iface"):
        found(changing)


def test_default_routes_by_different_interfaces_are_refused_in_dual_stack(changing):
    batch(changing, TWO + "route add default via 192.0.2.1\nroute add default via fd00:1::1\n")
    with pytest.raises(
        ConfigError, match="default route='eth0 and eth1': the families' default routes differ"
    ):
        found(changing, families=DUAL)
    assert found(changing, families=V6).name == "eth1"
    assert found(changing, families=V4).name == "eth0"


def test_default_route_with_several_next_hops(changing):
    batch(changing, TWO + "route add default nexthop via 192.0.2.1 dev eth0 nexthop via 10.1.0.9 dev eth1\n")
    assert found(changing, families=V4).name in {"eth0", "eth1"}


def test_unreachable_default_route_is_none(changing):
    batch(
        changing,
        TWO + "route add unreachable ::/0 metric 10\nroute add default via fd00:2::1 metric 20\n",
    )
    assert found(changing, families=V6).name == "eth0"


def test_address_under_duplicate_detection_is_not_taken(changing):
    batch(
        changing,
        TWO + "link set far1 down\nlink set eth1 down\naddr flush dev eth1\naddr add fd00:1::2/64 dev eth1\n",
    )
    with pytest.raises(ConfigError, match="interface eth1: addresses='none'"):
        found(changing, "--iface=eth1", families=V6)
