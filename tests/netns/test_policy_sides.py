"""Both sides of what enforces policies, for ``pycnictl dump``: equal when all is well, and damage is named."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from pycni.agent.status_dump import difference
from pycni.lab.netns import inside
from pycni.policy.base import LocalPod
from pycni.policy.shut import Shut
from pycni.policy.spoof import Guard
from tests.netns.fabric_nodes import run
from tests.netns.policy_ebpf_rig import NO_GRACE, FastRig, pins
from tests.netns.policy_rig import policy
from tests.proxy.dataplanes import plain

FOUR, SIX = ip_address("10.5.1.7").packed, ip_address("fd00:5:0:1::7").packed
BRIDGED = LocalPod("a/x", "veth1", bytes.fromhex("020000000001"), (FOUR, SIX))
ROUTED = LocalPod(
    "a/y", "veth2", bytes.fromhex("020000000002"), (ip_address("10.5.1.8").packed,), routed=True
)


def test_the_check_of_senders(netns: str) -> None:
    def job() -> None:
        guard = Guard()
        try:
            guard.apply([BRIDGED, ROUTED])
            found = {name: (wanted, there) for name, wanted, there in guard.sides()}
            assert list(found) == ["table bridge pycni_guard", "table inet pycni_leg_guard"]
            assert all(wanted == there for wanted, there in found.values())
            assert (
                'element bridge pycni_guard own4 { "veth1" . 10.5.1.7 }'
                in found["table bridge pycni_guard"][0]
            )
            assert (
                'element inet pycni_leg_guard macs { "veth2" . 02:00:00:00:00:02 }'
                in found["table inet pycni_leg_guard"][0]
            )
            run(netns, 'nft delete element bridge pycni_guard own4 { "veth1" . 10.5.1.7 }')
            run(netns, "nft delete table inet pycni_leg_guard")
            damaged = {name: difference(wanted, there) for name, wanted, there in guard.sides()}
            assert damaged["table bridge pycni_guard"] == (
                ('element bridge pycni_guard own4 { "veth1" . 10.5.1.7 }',),
                (),
            )
            assert len(damaged["table inet pycni_leg_guard"][0]) == len(
                found["table inet pycni_leg_guard"][0]
            )
        finally:
            guard.close()

    inside(netns, job)


def test_addresses_that_are_shut(netns: str) -> None:
    def job() -> None:
        shut = Shut()
        try:
            assert shut.sides() == ([], [])
            shut.add([FOUR, SIX])
            wanted, there = shut.sides()
            assert wanted == there
            assert "element inet pycni_shut closed_egress4 { 10.5.1.7 }" in wanted
            run(netns, "nft delete element inet pycni_shut closed_egress4 { 10.5.1.7 }")
            assert difference(*shut.sides()) == (("element inet pycni_shut closed_egress4 { 10.5.1.7 }",), ())
            run(netns, "nft add element inet pycni_shut closed_ingress4 { 10.9.9.9 }")
            shut.repair()
            wanted_again, there = shut.sides()
            assert sorted(there) == sorted(wanted_again) == sorted(wanted), "one set's alone is put back too"
        finally:
            shut.close()

    inside(netns, job)


@pytest.fixture
def rig() -> Iterator[FastRig]:
    with plain("nftables") as proxy, pins() as bpffs:
        proxy.apply({}, {})
        made = FastRig(proxy.spaces, proxy.traffic, bpffs, NO_GRACE)
        try:
            yield made
        finally:
            made.close()


def test_the_fast_path(rig: FastRig) -> None:
    rig.only(policy("shop/deny", ingress=()))
    wanted, there = rig.fast.sides()
    assert wanted == there
    assert any(line.startswith("map ") for line in wanted)
    assert {line.split()[1] for line in wanted if line.startswith("program")} == {
        "pod_in",
        "pod_out",
        "uplink_in",
        "uplink_out",
    }
    name, rows = next(
        (name, rows) for name, rows in rig.fast.compiled.tables.items() if rows and name != "rules"
    )
    key = next(iter(rows))
    table = rig.fast.maps[name]
    before = table.get(key)
    table.delete(key)
    try:
        missing, extra = difference(*rig.fast.sides())
        assert [line.partition(" value")[0] for line in missing] == [f"map {name} key {key.hex(' ')}"]
        assert extra == ()
    finally:
        assert before is not None
        table.put(key, before)
    assert difference(*rig.fast.sides()) == ((), ())
