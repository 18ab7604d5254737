"""The policy suites' cases without a kernel: what is written down, what the oracle says and what both planes compiled."""

from __future__ import annotations

import pytest

from pycni.model.family import Family
from tests.lab.policy_build import Case, Words
from tests.lab.policy_cases import CASES, CLUSTER, UPSTREAM
from tests.lab.policy_states import (
    Compiled,
    EbpfNode,
    NftNode,
    Objects,
    Oracle,
    address_without_lab,
    manifests_without_lab,
    table,
    ways,
)
from tests.lab.policy_world import NODES


def test_there_are_two_hundred_cases_and_all_of_upstreams() -> None:
    assert len(UPSTREAM) == 48
    assert len(CLUSTER) > 40
    assert len(CASES) > 250
    assert sum(len(step.policies) for case in CASES for step in case.steps) > 400
    assert all(step.expect is not None for case in UPSTREAM for step in case.steps)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_words_oracle_and_both_compiled_planes_agree(case: Case) -> None:
    # Only addresses differ between families.
    families = tuple(Family) if any(word in str(case) for word in ("ipBlock", "networks")) else (Family.V4,)
    chosen = ways(families)
    for step in case.steps:
        objects = Objects(manifests_without_lab(step))
        oracle = Oracle(objects, address_without_lab)
        said = {way: oracle.allowed(way) for way in chosen}
        if step.expect is not None:
            words = Words(step.expect)
            meant = {way: words.allowed(*way[:2], way.protocol, way.port, way.family) for way in chosen}
            assert table(said, chosen) == table(meant, chosen), (
                "the oracle says something else than the words"
            )
        for kind in (NftNode, EbpfNode):
            compiled = Compiled({name: kind(name, objects) for name in NODES}, address_without_lab)
            # A part is enough: the laws try thousands of random clusters.
            tried = chosen[CASES.index(case) % 5 :: 5]
            done = {way: compiled.allowed(way) for way in tried}
            if done != {way: said[way] for way in tried}:
                assert table(done, tried) == table(said, tried), f"{kind.__name__} does something else"
