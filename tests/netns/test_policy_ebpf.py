"""The fast path of network policies with real packets: what the API says arrives, and by which way it went."""

from __future__ import annotations

import pytest

from pycni.model.kube import TCP, UDP
from tests.netns.policy_ebpf_rig import FastRig, pins
from tests.netns.policy_rig import EVERY, Try, policy, rule
from tests.netns.test_policy_nft import WORLDS
from tests.proxy.topology import topology
from tests.proxy.traffic import Traffic


@pytest.fixture(scope="module")
def spaces():
    with topology() as made:
        yield made


@pytest.fixture(scope="module")
def traffic(spaces):
    made = Traffic()
    try:
        made.listen(spaces.listeners())
        yield made
    finally:
        made.close()


@pytest.fixture
def rig(spaces, traffic):
    with pins() as bpffs:
        made = FastRig(spaces, traffic, bpffs)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("world", ["stacked policies", "admin before, baseline behind", "blocks with exceptions"])
def test_what_the_api_says_arrives(rig, world):
    rig.only(*WORLDS[world])
    assert rig.engine.aside == ""
    wanted = {one: rig.judged(one) for one in EVERY}
    for one, passed in zip(EVERY, rig.passes(EVERY), strict=True):
        told, why = wanted[one]
        assert passed == told, f"{one}\n{why}"
    print(rig.flows())
