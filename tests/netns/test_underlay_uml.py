"""Pods on the underlay by ipvlan, on a second kernel that has it (Debian's user-mode 6.1): real packets, no policies."""

from __future__ import annotations

from typing import Any

import pytest

from tests.proxy.uml_boot import boot


@pytest.fixture(scope="module")
def answer(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("uml")
    found: dict[str, Any] = boot(folder, "tests.netns.uml_ipvlan", modules="ipv6 bridge veth ipvlan")
    return found


def test_everybody_reaches_everybody(answer):
    both = [True, True]
    assert answer["reached"] == {
        "kind": "ipvlan",
        "uplink's MAC": True,
        "from pod": {"node": both, "router": both, "far pod": both, "pod beside": both},
        "to pod": both,
        "sources": ["192.0.2.20", "192.0.2.60"],
    }


def test_pods_are_checked_removed_and_attached_again(answer):
    found = answer["life"]
    assert "failed" not in found, found["failed"]
    (route,) = found.pop("routes")
    assert found == {
        "check": [],
        "check after": [
            "address 192.0.2.20/24 is missing on eth0",
            "route default via 192.0.2.2 is missing in the pod",
        ],
        "clash": "KernelError",
        "after clash": ["eth0", "lo"],
        "left": [[["lo"], ["lo"]], []],
        "again": [True, True],
    }
    assert route.startswith("192.0.2.20 dev veth")
    assert route.strip().endswith("proto 114 scope link src 192.0.2.1")
