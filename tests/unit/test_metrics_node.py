"""Metrics that several parts make together, and those of the node itself: bounded, and read from the kernel's files."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pycni.agent.metrics import Registry
from pycni.agent.metrics_host import follow_host, parse_conntrack_stat, parse_devices
from pycni.agent.metrics_node import PEERS_TOLD, devices, peer_samples
from pycni.agent.vtep_probe import PeerProbe
from pycni.errors import IpamError
from pycni.ipam.pool import Ipam
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import AddressRange
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs

DEVICES = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
flannel.1: 2000      20    1    2    0     0          0         0     3000      30    3    4    0     0       0          0
"""
CONNTRACK = """entries  clashres found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error
0000001f  00000000 00000000 00000000 0000000a 00000000 00000000 00000000 00000000 00000001 00000002 0000000f 00000000
0000001f  00000000 00000000 00000000 00000001 00000000 00000000 00000000 00000000 00000001 00000000 00000001 00000000
"""


def samples(registry: Registry, name: str) -> dict[str, float]:
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", registry.expose(), re.MULTILINE)
    return {labels: float(value) for labels, value in found}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for name, text in (
        ("net/dev", DEVICES),
        ("net/stat/nf_conntrack", CONNTRACK),
        ("sys/net/netfilter/nf_conntrack_count", "31\n"),
        ("sys/net/netfilter/nf_conntrack_max", "262144\n"),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_kernels_figures_are_told_of_the_nodes_own_devices_only(proc: Path) -> None:
    registry = Registry()
    follow_host(registry, lambda: {"flannel.1", "gone"}, str(proc))
    assert samples(registry, "pycni_conntrack_entries") == {"": 31}
    assert samples(registry, "pycni_conntrack_limit") == {"": 262144}
    assert samples(registry, "pycni_conntrack_dropped_total") == {
        'reason="insert_failed"': 2,
        'reason="drop"': 2,
        'reason="early_drop"': 16,
    }
    assert samples(registry, "pycni_device_bytes_total") == {
        'device="flannel.1",direction="receive"': 2000,
        'device="flannel.1",direction="transmit"': 3000,
    }
    assert list(samples(registry, "pycni_device_errors_total").values()) == [1, 3]
    assert list(samples(registry, "pycni_device_drops_total").values()) == [2, 4]


def test_what_a_kernel_does_not_have_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    registry = Registry()
    follow_host(registry, lambda: {"eth0"}, str(tmp_path))
    assert not [line for line in registry.expose().splitlines() if not line.startswith("#")]
    assert not caplog.records


def test_this_machines_own_files_can_be_read() -> None:
    assert parse_devices(Path("/proc/net/dev").read_text())["lo"].received_bytes >= 0
    assert parse_conntrack_stat("") == {}


def world(peers: int, unreachable: int) -> tuple[Any, dict[str, Lease]]:
    """A network with this many peers asked."""
    probes, leases = {}, {}
    for number in range(peers):
        net = cast("IPv4Network", ip_network(f"10.{number // 256}.{number % 256}.0/24"))
        name = f"{net.network_address}-24"
        attrs = LeaseAttrs(
            public_ip=cast("Any", ip_address(f"172.16.{number // 256}.{number % 256}")),
            public_ipv6=None,
            backend_type="vxlan",
        )
        leases[name] = Lease(subnet=net, subnet6=None, attrs=attrs)
        probes[name, Family.V4] = PeerProbe(number >= unreachable, 0.001, 1.0, 1.0)
    return SimpleNamespace(probes=SimpleNamespace(peers=probes)), leases


def reachable(probe: PeerProbe) -> float | None:
    return None if probe.reachable is None else float(probe.reachable)


def test_every_peer_has_its_series_while_there_are_few() -> None:
    network, leases = world(3, 1)
    assert peer_samples(network, leases, reachable) == [
        (("10.0.0.0/24", "172.16.0.0", "ipv4"), 0.0),
        (("10.0.1.0/24", "172.16.0.1", "ipv4"), 1.0),
        (("10.0.2.0/24", "172.16.0.2", "ipv4"), 1.0),
    ]


@pytest.mark.parametrize(("unreachable", "told"), [(0, 0), (7, 7), (4000, PEERS_TOLD)])
def test_of_many_peers_only_the_lost_have_series_and_not_without_end(unreachable: int, told: int) -> None:
    network, leases = world(5000, unreachable)
    found = peer_samples(network, leases, reachable)
    assert len(found) == told
    assert {value for _, value in found} <= {0.0}


def test_a_peer_that_never_answered_is_neither_reachable_nor_not() -> None:
    network, leases = world(1, 0)
    network.probes.peers = {key: PeerProbe(None, None, 1.0, None) for key in network.probes.peers}
    assert peer_samples(network, leases, reachable) == []
    network.probes = None
    assert peer_samples(network, leases, reachable) == []


def test_devices_are_the_underlay_those_between_nodes_and_the_pods_bridges() -> None:
    known = SimpleNamespace(
        plan=SimpleNamespace(node=SimpleNamespace(underlay=SimpleNamespace(name="eth0"))),
        compiler=SimpleNamespace(tables=SimpleNamespace(links={"flannel.1": None})),
    )
    endpoints = [
        Endpoint(network="n", container_id="a", ifname="eth0", conf=b'{"bridge": "br7"}'),
        Endpoint(network="n", container_id="b", ifname="eth0", conf=b"{}"),
        Endpoint(network="n", container_id="c", ifname="eth0", conf=b"not JSON"),
        Endpoint(
            network="n",
            container_id="d",
            ifname="eth0",
            attachment=AttachmentKind.PTP,
            conf=b'{"bridge": "x"}',
        ),
    ]
    assert devices(cast("Any", SimpleNamespace(known=known)), endpoints) == {
        "eth0",
        "flannel.1",
        "br7",
        "cni0",
    }
    assert devices(None, ()) == set()


def ranges(*nets: str) -> tuple[tuple[AddressRange, ...], ...]:
    found = []
    for text in nets:
        net = ip_network(text)
        found.append((AddressRange(subnet=net, start=net[1], end=net[-2], gateway=net[1]),))
    return tuple(found)


def test_how_full_a_network_is_by_family(tmp_path: Path) -> None:
    pool = Ipam(str(tmp_path), "net")
    both = ranges("10.1.0.0/24", "fd00::/120")
    try:
        assert pool.usage() == {}
        assert pool.usage(lambda: both)[Family.V4] == (0, 253)
        pool.reserve(Owner("net", "c1", "eth0"), both)
        assert pool.usage() == {Family.V4: (1, 253), Family.V6: (1, 253)}
    finally:
        pool.close()
    # Another life has not been asked for an address yet: by the node's own ranges, when these are what is used.
    pool = Ipam(str(tmp_path), "net")
    try:
        assert pool.usage()[Family.V4] == (1, None)
        assert pool.usage(lambda: both) == {Family.V4: (1, 253), Family.V6: (1, 253)}
        assert pool.usage(lambda: ranges("10.2.0.0/24"))[Family.V4] == (1, None)
        small = ranges("10.3.0.0/30")
        pool.reserve(Owner("net", "c2", "eth0"), small)
        with pytest.raises(IpamError):
            pool.reserve(Owner("net", "c3", "eth0"), small)
        # What is in use outside of the ranges counts on both sides: full is full.
        assert pool.usage()[Family.V4] == (2, 2)
    finally:
        pool.close()
