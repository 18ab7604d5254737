"""Every case of the policy suites with real packets between nine pods on three nodes: the kernel does as the oracle says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.policy_build import Case
from tests.lab.policy_cases import CASES, CLUSTER, UPSTREAM
from tests.lab.policy_lab import PolicyLab, verdicts
from tests.lab.policy_states import Oracle

from .conftest import unique_name

PLANES = ("nftables",)


@pytest.fixture(scope="module", params=PLANES)
def plane(request: pytest.FixtureRequest) -> Iterator[PolicyLab]:
    with PolicyLab(unique_name(), request.param) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernel_does_what_the_oracle_says(plane: PolicyLab, case: Case) -> None:
    whole = case in UPSTREAM or case in CLUSTER
    for step in case.steps:
        number = plane.begin(step)
        oracle = Oracle(plane.objects(), plane.address)
        said = verdicts(oracle, step, None if whole else CASES.index(case))
        plane.await_policies(number)
        plane.check(step, oracle, said)
        if case.services:
            plane.check(step, oracle, said, services=True)
