"""The part of a node's view that concerns the addresses of one attachment, for tables of its own. Pure.

Life: ``part`` walks from the addresses to their stages and on to the policies, groups and names of ports these refer
to; the rows found are those of the view, so that the same compiler takes them. ``Part.touched`` says what a changed row
of the view means for a part that was taken before: nothing, the row alone, or that the part has to be taken anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pycni.model.policy import Direction
from pycni.view.policies import PolicyView
from pycni.view.policy_rules import Match, Named
from pycni.view.policy_stages import CLOSED, MEMBERS, OWN, PORTS, SECTIONS, SUBJECTS, RowDiff


class Part(NamedTuple):
    """Rows of a view by table and key, and what they refer to."""

    addresses: frozenset[bytes]
    rows: dict[tuple[str, Any], Any]
    sections: frozenset[tuple[str, Direction]]
    groups: frozenset[str]
    names: frozenset[Named]

    def takes(self, row: RowDiff) -> bool:
        """Whether a row belongs to the part as it is."""
        match row.table:
            case "members":
                return row.key[0] in self.groups
            case "ports":
                return row.key[0] in self.names
            case "own":
                return True
        return False

    def outdated(self, row: RowDiff) -> bool:
        """Whether a row that changed makes the part refer to other things."""
        match row.table:
            case "subjects" | "closed":
                return row.key[0] in self.addresses
            case "sections":
                return row.key in self.sections
        return False


def part(view: PolicyView, addresses: Iterable[bytes]) -> Part:
    """The part of these addresses."""
    wanted = frozenset(addresses)
    rows: dict[tuple[str, Any], Any] = {}
    sections: set[tuple[str, Direction]] = set()
    matches: list[Match] = []
    for address in sorted(wanted):
        for direction in Direction:
            key = (address, direction)
            if key in view.tables[CLOSED]:
                rows[CLOSED, key] = None
            subject = view.tables[SUBJECTS].get(key)
            if subject is None:
                continue
            rows[SUBJECTS, key] = subject
            sections.update((policy, direction) for policy in subject.stages.policies or ())
            for stage in (*subject.stages.admin, *subject.stages.baseline):
                matches += (rule.match for rule in stage.rules)
    for policy in sections:
        rows[SECTIONS, policy] = view.tables[SECTIONS][policy]
        matches += rows[SECTIONS, policy]
    groups = frozenset(group.name for match in matches for group in match.groups)
    names = frozenset(_names(matches))
    rows.update(((MEMBERS, (name, address)), None) for name in groups for address in view.members(name))
    rows.update(((PORTS, (named, *bearer)), None) for named in names for bearer in view.bearers(named))
    rows.update(((OWN, address), None) for address in view.tables[OWN])
    return Part(wanted, rows, frozenset(sections), groups, names)


def _names(matches: Iterable[Match]) -> Iterator[Named]:
    for match in matches:
        if match.ports is not None:
            yield from match.ports.names
