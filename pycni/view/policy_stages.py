"""What a pod's connections of one direction pass through: tiers of policies, and the tables of a node's view. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from pycni.view.policy_rules import ClusterSection

SUBJECTS, SECTIONS, GROUPS, MEMBERS, NAMES, PORTS, OWN, CLOSED = TABLES = (
    "subjects",
    "sections",
    "groups",
    "members",
    "names",
    "ports",
    "own",
    "closed",
)
"""Tables of a node's view:

    subjects   (address, Direction) -> Subject                 pods of this node that policies judge
    sections   (policy key, Direction) -> Section              NetworkPolicies among their stages
    groups     name -> Group                                   peers of sections and of rules in stages
    members    (group name, address) -> None                   who is in them
    names      Named -> None                                   names of ports that sections and rules use
    ports      (Named, address, port) -> None                  which pods have them
    own        address -> None                                 this node's own, as far as no pod has them
    closed     (address, Direction) -> None                    pods not known yet that a policy may isolate
"""


class ClusterPart(NamedTuple):
    """One ClusterNetworkPolicy among a pod's stages."""

    name: str
    rules: ClusterSection


class Stages(NamedTuple):
    """In this order."""

    admin: tuple[ClusterPart, ...] = ()
    policies: tuple[str, ...] | None = None
    """Keys of the NetworkPolicies that isolate the pod; None: none does."""
    baseline: tuple[ClusterPart, ...] = ()


class Subject(NamedTuple):
    """A pod's address in one direction."""

    stages: Stages
    siblings: tuple[bytes, ...]
    """The pod's addresses of this family, this one too: it always reaches itself."""


class RowDiff(NamedTuple):
    """A row of the view that changed; None: not there."""

    table: str
    key: Any
    before: Any
    after: Any


ABSENT: Any = ...
"""For ``RowDiff``: rows of some tables have the value None."""
