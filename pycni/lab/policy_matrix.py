"""Who may reach whom: what a lab's policies do to every pair of pods, beside what the API text says. Pure.

Life: ``plan`` turns the lab's objects into shots: every pod to every port every other pod declares, in every family
they share, or to one port that is asked for; ``survey`` tries them (``policy_probe``) and asks the oracle about each. A
``PolicyMatrix`` holds both for the table, the JSON and the exit code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

import msgspec

from pycni.lab.apply_tables import table
from pycni.lab.dns import DNS_POD
from pycni.lab.objects import Key, Mappings, decoded
from pycni.lab.policy_probe import Outcome, Shot
from pycni.lab.policy_station import Target
from pycni.lab.topology import LabError, pod_key
from pycni.model.kube import NAMESPACE, NODE, POD, PROTOCOL_NAMES, PROTOCOLS, TCP, Pod
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.view.policy_oracle import Judgement, verdict

PORT = (TCP, 80)
"""Of a pod that declares none, or whose servers do not greet."""
LISTED = 12
ALLOWED, PART, DENIED, ITSELF, DIFFERS = "●", "◐", "✗", "-", "!"
_KINDS = (POD, NAMESPACE, NODE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY)


class Snapshot:
    """The lab's objects as the oracle reads them."""

    def __init__(self, objects: Mapping[Key, Mappings]) -> None:
        self._held: dict[str, dict[str, Any]] = {kind: {} for kind in _KINDS}
        for key, value in objects.items():
            if key.kind in self._held and (item := decoded(value)) is not None:
                self._held[key.kind][item.meta.key] = item

    def of(self, kind: str) -> Mapping[str, Any]:
        """By key."""
        return self._held[kind]


class Pair(NamedTuple):
    """What is known of one shot."""

    outcome: Outcome
    said: Judgement

    @property
    def differs(self) -> bool:
        """Whether something else happened than the API text says, or it happened by halves."""
        return self.outcome.allowed is not self.said.allowed or not self.outcome.sound

    @property
    def denied_by(self) -> tuple[str, ...]:
        """Policies that deny it, by the oracle."""
        reason = self.said.egress if not self.said.egress.allowed else self.said.ingress
        return () if self.said.allowed else reason.policies


class PolicyMatrix(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one run."""

    pods: tuple[tuple[str, str], ...]
    """(pod, its node)."""
    pairs: Mapping[Shot, Pair]
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether there was something to try and everything is as the API text says."""
        return bool(self.pairs) and not self.differences()

    def differences(self) -> list[tuple[Shot, Pair]]:
        """What is not."""
        return [(shot, pair) for shot, pair in self.pairs.items() if pair.differs]

    def json(self) -> dict[str, Any]:
        """The object ``lab matrix --policy --json`` prints."""
        return {
            "ok": self.ok,
            "checks": len(self.pairs),
            "differences": len(self.differences()),
            "connections": [
                {
                    "from": shot.source,
                    "to": shot.target,
                    "family": shot.family.label,
                    "protocol": PROTOCOL_NAMES[shot.protocol],
                    "port": shot.port,
                    "allowed": pair.outcome.allowed,
                    "expected": pair.said.allowed,
                    "denied_by": list(pair.denied_by),
                    **({"trouble": pair.outcome.trouble} if pair.outcome.trouble else {}),
                }
                for shot, pair in self.pairs.items()
            ],
            "seconds": round(self.seconds, 3),
        }


def port_of(text: str) -> tuple[int, int]:
    """(protocol, port) of ``80`` or ``53/UDP``. Raises LabError."""
    number, _slash, protocol = text.partition("/")
    found = PROTOCOLS.get((protocol or "TCP").upper())
    if found is None or not number.isdigit() or not 0 < int(number) < 65536:
        raise LabError(f"--port {text!r}: expected NUMBER[/TCP|UDP|SCTP]", usage=True)
    return found, int(number)


def plan(snapshot: Snapshot, targets: Sequence[Target], only: tuple[int, int] | None = None) -> list[Shot]:
    """Every pod to every port of every other pod. ``only``: (protocol, port) in place of what pods declare."""
    return [
        Shot(source.name, target.name, family, protocol, port)
        for target in targets
        for protocol, port in ((only,) if only else ports_of(snapshot, target.name))
        for source in targets
        if source.name != target.name
        for family in source.addresses
        if family in target.addresses
    ]


def ports_of(snapshot: Snapshot, name: str) -> list[tuple[int, int]]:
    """(protocol, port) that a pod of the lab declares; ``PORT`` when none."""
    if pod_key(name) == DNS_POD[1:]:
        return [PORT]
    pod: Pod | None = snapshot.of(POD).get("/".join(pod_key(name)))
    found = sorted({(port.protocol, port.port) for port in pod.ports}) if pod is not None else []
    return found or [PORT]


def judge(snapshot: Snapshot, shots: Iterable[Shot], targets: Sequence[Target]) -> dict[Shot, Judgement]:
    """What the API text says."""
    packed = {
        (target.name, family): ip_address(address).packed
        for target in targets
        for family, address in target.addresses.items()
    }
    return {
        shot: verdict(
            snapshot,
            packed[shot.source, shot.family],
            packed[shot.target, shot.family],
            shot.protocol,
            shot.port,
        )
        for shot in shots
    }


def grid(matrix: PolicyMatrix) -> str:
    """Rows: from; columns: to, by number. A character per pair over all ports and families, ``!`` where it differs."""
    cells: dict[tuple[str, str], list[Pair]] = {}
    for shot, pair in matrix.pairs.items():
        cells.setdefault((shot.source, shot.target), []).append(pair)
    names = [name for name, _node in matrix.pods]
    rows = [("from / to", "", *(str(number) for number in range(1, len(names) + 1)))]
    for number, (source, node) in enumerate(matrix.pods, 1):
        rows.append(
            (f"{number:>2} {source}", node, *(_cell(cells.get((source, target), [])) for target in names))
        )
    key = f"{ALLOWED} allowed  {DENIED} denied  {PART} depends on port or family  {DIFFERS} not as the policies say"
    return f"{table(rows)}\n{key}"


def _cell(pairs: Sequence[Pair]) -> str:
    if not pairs:
        return ITSELF
    allowed = sum(pair.outcome.allowed for pair in pairs)
    sign = ALLOWED if allowed == len(pairs) else PART if allowed else DENIED
    return sign + (DIFFERS if any(pair.differs for pair in pairs) else "")


def summary(matrix: PolicyMatrix) -> str:
    """Who denies how much, what depends on the port, the differences, the sum."""
    by = Counter(name for pair in matrix.pairs.values() for name in pair.denied_by)
    lines = [f"  {count} denied by {name}" for name, count in sorted(by.items(), key=lambda item: -item[1])]
    lines += _parts(matrix)
    differences = matrix.differences()
    for shot, pair in differences[:LISTED]:
        happened = "got through" if pair.outcome.allowed else "did not get through"
        trouble = f" ({pair.outcome.trouble})" if pair.outcome.trouble else ""
        halves = ", but arrived" if pair.outcome.arrived and not pair.outcome.allowed else ""
        lines.append(f"{shot} {happened}{halves}{trouble}, though\n  " + str(pair.said).replace("\n", "\n  "))
    if len(differences) > LISTED:
        lines.append(f"... and {len(differences) - LISTED} more (--json lists all)")
    allowed = sum(pair.outcome.allowed for pair in matrix.pairs.values())
    verdict_ = "all as the policies say" if matrix.ok else f"{len(differences)} NOT as the policies say"
    count = len(matrix.pairs)
    lines.append(f"{count} connections, {allowed} allowed: {verdict_}; {matrix.seconds:.2f} s")
    return "\n".join(lines)


def _parts(matrix: PolicyMatrix) -> list[str]:
    """``  a -> b: 80/TCP`` for pairs of which only a part is allowed."""
    cells: dict[tuple[str, str], list[tuple[Shot, Pair]]] = {}
    for shot, pair in matrix.pairs.items():
        cells.setdefault((shot.source, shot.target), []).append((shot, pair))
    lines = []
    for (source, target), items in cells.items():
        open_ = [shot for shot, pair in items if pair.outcome.allowed]
        if open_ and len(open_) < len(items):
            families = {shot.family for shot, _pair in items}
            ports = Counter(f"{shot.port}/{PROTOCOL_NAMES[shot.protocol]}" for shot in open_)
            words = [
                word if count == len(families) else f"{word} (not in every family)"
                for word, count in ports.items()
            ]
            lines.append(f"  {source} -> {target} only by {', '.join(words)}")
    more = len(lines) - LISTED
    return lines[:LISTED] + ([f"  ... and {more} more pairs"] if more > 0 else [])
