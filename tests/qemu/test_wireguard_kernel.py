"""WireGuard in the kernel, with real packets: the backend on Debian's kernel under QEMU. ``make qemu`` runs this."""

from __future__ import annotations

import pytest

from tests.qemu.boot import boot

TIMEOUT_S = 900
MODULES = "wireguard veth bridge tun nf_tables nft_chain_nat nft_masq nft_ct af_packet ipv6"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guest")
    return boot(folder, "tests.qemu.guest_wireguard", modules=MODULES, timeout_s=TIMEOUT_S)


@pytest.fixture
def part(found, request):
    """What one part of the guest's program gave; a failure there is shown whole."""
    answer = found[request.param]
    assert "failed" not in answer, answer["failed"]
    return answer


def of(name):
    return pytest.mark.parametrize("part", [name], indirect=True, ids=[name])


pytestmark = pytest.mark.timeout(TIMEOUT_S + 60)


@of("carries")
def test_the_kernel_carries_pods_packets_of_full_size_encrypted(part):
    assert part == {
        "reach": True,
        "mtu": 1420,
        "talk": [True, True],
        "readable": 0,
        "large": 2,
        "kinds": [True, True],
        "programs": 0,
        "peer": [True, "10.5.2.0/24"],
        "psk": True,
    }


@of("lasts")
def test_a_restart_keeps_sessions_and_what_is_broken_is_put_right(part):
    assert all(part.values()), part
    assert len(part) == 5


@of("rotates")
def test_a_key_changes_under_traffic_and_no_packet_is_lost(part):
    print("longest wait with a delay of 3 s:", part.pop("longest wait, ms"), "ms")
    assert part == {"lost": [0, 0], "sent": [True, True], "changed": True, "device": True}


@of("beside wireguard-go")
def test_a_node_with_the_kernels_and_one_with_wireguard_go_are_one_network(part):
    assert part == {"kinds": ["wireguard", "tun"], "reach": True, "program": True}
