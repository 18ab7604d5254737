"""All cases of the policy suites, and sequences of random mixtures of their policies."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from tests.lab.policy_build import Case, Step
from tests.lab.policy_cases_cluster import CLUSTER
from tests.lab.policy_cases_matrix import MATRIX
from tests.lab.policy_cases_upstream import UPSTREAM
from tests.lab.policy_world import PODS, SPACES, Mappings

SEQUENCES, LENGTH = 5, 4


def mixtures() -> Iterator[Case]:
    """Sequences of states that have little to do with each other, always the same ones."""
    found = [policy for case in (*UPSTREAM, *MATRIX) for step in case.steps for policy in step.policies]
    cluster = [policy for case in CLUSTER for step in case.steps for policy in step.policies]
    cluster = [policy for policy in cluster if policy["kind"] == "ClusterNetworkPolicy"]
    for seed in range(SEQUENCES):
        random = Random(seed)
        steps = []
        for _ in range(LENGTH):
            policies = [
                _moved(random, policy, number) for number, policy in enumerate(random.sample(found, 7))
            ]
            policies += [
                {**policy, "metadata": {"name": f"c{number}"}}
                for number, policy in enumerate(random.sample(cluster, random.choice((0, 1, 3))))
            ]
            pods = {pod: {"pod": pod[2], "new": "yes"} for pod in random.sample(PODS, 2)}
            steps.append(Step(tuple(policies), pods=pods, spaces={random.choice(SPACES): {"ns": "y"}}))
        yield Case(f"mixture-{seed}", tuple(steps), services=seed == 0)


def _moved(random: Random, policy: Mappings, number: int) -> Mappings:
    """The policy in another namespace, for other pods now and then."""
    selector = random.choice((policy["spec"]["podSelector"], {}, {"matchLabels": {"new": "yes"}}))
    return {
        **policy,
        "metadata": {"name": f"p{number}", "namespace": random.choice(SPACES)},
        "spec": {**policy["spec"], "podSelector": selector},
    }


CASES: list[Case] = [*UPSTREAM, *MATRIX, *CLUSTER, *mixtures()]
NAMES = [item.name for item in CASES]
assert len(set(NAMES)) == len(NAMES), sorted(name for name in NAMES if NAMES.count(name) > 1)
