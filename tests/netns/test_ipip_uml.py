"""The ipip backend with real packets, on Debian's user-mode kernel: agents, DirectRouting, the driver's changes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.uml_boot import boot


@pytest.fixture(scope="module")
def answer(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uml")
    return boot(
        folder, "tests.netns.uml_ipip", modules="ipv6 bridge veth vxlan nf_tables nfnetlink tunnel4 ipip"
    )


def test_agents_carry_pods_packets_in_packets_of_protocol_4(answer):
    found = answer["agents"]
    assert "failed" not in found, found["failed"]
    assert found == {
        "mtu": 1480,
        "talks": [True, True],
        "protocols": [4],
        "too large": False,
        "route": "10.5.2.0/24 via 192.0.2.2 dev flannel.ipip onlink".split(),
        "device": True,
        "addresses": "10.5.1.0/32",
        "after the device was deleted": True,
    }


def test_direct_routing_spares_the_tunnel_for_neighbours_only(answer):
    found = answer["direct"]
    assert "failed" not in found, found["failed"]
    assert sorted(line.strip() for line in found["routes"]) == [
        "10.5.2.0/24 via 192.0.2.2 dev eth0",
        "10.5.3.0/24 via 198.51.100.3 dev flannel.ipip onlink",
    ]
    assert 4 not in found["near"]
    assert found["far"] == [4]


def test_the_driver_reaches_every_state_and_spares_a_living_device(answer):
    found = answer["driver"]
    assert "failed" not in found, found["failed"]
    assert {name: value for name, value in found.items() if isinstance(value, list) and len(value) == 2} == {
        name: [[], True]
        for name in (
            "made",
            "another source",
            "another device",
            "another MTU",
            "another address",
            "flannel's with a far end",
            "taken over",
            "of another kind",
            "of the first kind",
            "gone",
        )
    }
    assert found["in place"]
    assert found["taken over in place"]
    assert found["fallback device stays"]
    assert found["left"] == []
    assert found["route"] == "10.5.2.0/24 via 192.0.2.2 dev flannel.ipip onlink".split()
