"""All cases of the policy suites."""

from __future__ import annotations

from tests.lab.policy_build import Case
from tests.lab.policy_cases_cluster import CLUSTER
from tests.lab.policy_cases_matrix import MATRIX
from tests.lab.policy_cases_upstream import UPSTREAM

CASES: list[Case] = [*UPSTREAM, *MATRIX, *CLUSTER]
NAMES = [item.name for item in CASES]
assert len(set(NAMES)) == len(NAMES), sorted(name for name in NAMES if NAMES.count(name) > 1)
