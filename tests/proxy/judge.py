"""Runs a case: four answers must agree: the case's own words, the oracle, the evaluators, and real connections.

Life: ``run`` applies the case, compares what oracle, resolved frontends and compiled tables say about every connection
of every check, then makes the connections. It gives disagreements in words; none means the case holds.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.service import Decision, Verdict, show
from pycni.view.service_decide import decide_frontends
from pycni.view.service_oracle import decide
from tests.proxy.cases import ENDPOINTS, Case, Check
from tests.proxy.rig import PATIENCE_S, SILENCE_S, Rig, Visit
from tests.proxy.topology import BRIDGE, NODE, PODS
from tests.proxy.traffic import Outcome

ROUNDS, BATCH = 12, 4
"""Connections are made in batches until every expected target answered, at most this often."""
TURNS = 3
WHOSE = {address: name for name, pair in ENDPOINTS.items() for address in pair}


class _Asked(NamedTuple):
    """One check in one family and protocol."""

    check: Check
    visit: Visit
    decision: Decision
    """What the compiled tables say."""

    def __str__(self) -> str:
        visit = self.visit
        kind = {6: "TCP", 17: "UDP", 132: "SCTP"}[visit.protocol]
        return f"{visit.client} -> {self.check.place} ({kind} {visit.address} {visit.port})"


def run(rig: Rig, case: Case, *, read_back: bool = True) -> list[str]:
    """Disagreements, one line each. ``read_back``: compare the kernel's tables with the compiled ones too."""
    services = {item.meta.key: item for item in case.services}
    slices = {item.meta.key: item for item in case.slices}
    rig.apply(services, slices, case.facts)
    found = []
    lines = sum(len(item) for item in rig.engine.problems.values())
    if lines < case.problems or (lines and not case.problems and not _remarks(rig)):
        found.append(f"problems: {dict(rig.engine.problems)}, expected {case.problems}")
    asked = []
    for check, visit in _visits(case):
        oracle = decide(services, slices, case.facts, visit.packet)
        frontends = [item for items in rig.engine.frontends().values() for item in items]
        compiled = rig.decide(visit.packet)
        one = _Asked(check, visit, compiled)
        asked.append(one)
        if case.owned and rig.planes == "ipvs":
            found += _owned(one, oracle)
            continue
        if decide_frontends(frontends, case.facts, visit.packet) != oracle:
            found.append(f"{one}: the oracle says {_say(oracle)}, the frontends otherwise")
        found += [f"{one}: {line}" for line in _compare(one, oracle, rig, direct=case.direct)]
    if read_back:
        found += rig.differences()
    if case.direct and rig.planes == "ipvs":
        return found
    if case.owned and rig.planes == "ipvs":
        asked = [item._replace(check=item.check._replace(expect="reject")) for item in asked]
    return found or list(_connect(rig, [item for item in asked if item.visit.protocol in rig.protocols]))


def _visits(case: Case) -> Iterator[tuple[Check, Visit]]:
    for check in case.checks:
        pair, port = check.target
        protocols = (*case.protocols, SCTP) if case.protocols == (TCP, UDP) else case.protocols
        for protocol, family in itertools.product(protocols, case.families):
            yield check, Visit(check.client, pair[family.bits == 128], port, protocol)


def _remarks(rig: Rig) -> bool:
    """Whether what is reported is what data planes cannot do, which depends on them and not on the case."""
    return all(
        " cannot: " in line or "needs " in line for lines in rig.engine.problems.values() for line in lines
    )


def _say(decision: Decision) -> str:
    """A decision in the words of ``Check.expect``."""
    if decision.verdict is not None:
        return "reject" if decision.verdict is Verdict.REJECT else "drop"
    words = [
        WHOSE.get(show(target.address), show(target.address))
        + ("~" if target in decision.masqueraded else "")
        for target in decision.targets
    ]
    return " ".join(sorted(words)) or "untouched"


def _compare(asked: _Asked, oracle: Decision, rig: Rig, *, direct: bool) -> Iterator[str]:
    """The case's words against the oracle's, and the oracle's against the compiled tables'."""
    expected = "untouched" if _untouched(asked) else asked.check.expect
    if _say(oracle) != expected:
        yield f"the case says {expected}, the oracle {_say(oracle)}"
    compiled = asked.decision
    partial = any(plane.partial for plane in rig.engine.planes)
    kept = direct or (partial and not compiled.masqueraded)
    same = (compiled.verdict, compiled.targets) == (oracle.verdict, oracle.targets)
    # A socket translated before it sends keeps its own address: nothing passes the node's addresses on the way.
    if not same or (compiled.masqueraded != oracle.masqueraded and not kept):
        yield f"the oracle says {_say(oracle)}, the compiled tables {_say(compiled)}"


def _owned(asked: _Asked, oracle: Decision) -> Iterator[str]:
    """IPVS needs the addresses it serves on a device of the node: what is not served there is the node's to refuse."""
    if _say(oracle) != "untouched" or _say(asked.decision) != "reject":
        yield f"{asked}: oracle {_say(oracle)}, compiled tables {_say(asked.decision)}, expected untouched, reject"


def _untouched(asked: _Asked) -> bool:
    if asked.check.expect in {"elsewhere", "closed"}:
        return True
    # A pod's own address, asked for as an external IP in vain: reached as any pod is.
    return asked.check.place == "xpod"


# --- connections ---------------------------------------------------------------------------------------------


def _connect(rig: Rig, asked: Sequence[_Asked]) -> Iterator[str]:
    quiet = [item for item in asked if item.check.expect == "drop"]
    turns = [item for item in asked if item.check.how == "turn"]
    rest = [item for item in asked if item not in quiet and item not in turns]
    for item, outcome in zip(quiet, rig.dial([item.visit for item in quiet], SILENCE_S), strict=True):
        if outcome.verdict != "silence":
            yield f"{item}: expected silence, {_tell(outcome)}"
    for item in turns:
        yield from _in_turn(rig, item)
    yield from _until_all_answered(rig, rest)


def _in_turn(rig: Rig, item: _Asked) -> Iterator[str]:
    wanted = _wanted(item)
    counts = Counter(rig.dial([item.visit])[0] for _ in range(TURNS * len(wanted)))
    if counts != Counter(dict.fromkeys(wanted, TURNS)):
        yield f"{item}: not in turn: " + ", ".join(f"{n} x {_tell(o)}" for o, n in counts.items())


def _until_all_answered(rig: Rig, asked: Sequence[_Asked]) -> Iterator[str]:
    """Batch by batch: what answers must be expected, and what is expected must answer in the end."""
    open_: dict[int, set[Outcome]] = {number: set() for number in range(len(asked))}
    for _ in range(ROUNDS):
        if not open_:
            return
        order = [number for number in open_ for _ in range(_count(asked[number]))]
        outcomes = rig.dial([asked[number].visit for number in order], PATIENCE_S)
        for number, outcome in zip(order, outcomes, strict=True):
            open_[number].add(_as_routed(rig, asked[number], outcome))
        for number, seen in list(open_.items()):
            item = asked[number]
            wanted = _wanted(item)
            wrong = seen - wanted
            if wrong:
                yield f"{item}: expected {_words(wanted)}, {_words(wrong)}"
            elif item.check.how == "sticky":
                if len(seen) != 1:
                    yield f"{item}: not always the same one answers: {_words(seen)}"
            elif seen != wanted and item.check.how != "any":
                continue
            del open_[number]
    for number, seen in open_.items():
        item = asked[number]
        yield f"{item}: expected {_words(_wanted(item))}, only {_words(seen)} in {ROUNDS * _count(item)} tries"


def _as_routed(rig: Rig, item: _Asked, outcome: Outcome) -> Outcome:
    """What a socket layer that translated without its evaluator knowing (it has no list of the node's addresses, nor of
    pods whose networks are unknown) did to the source, as if the packet had been masqueraded on its way."""
    inside = item.visit.client in PODS and any(plane.partial for plane in rig.engine.planes)
    if not inside or outcome.verdict != "answer" or outcome.seen != item.visit.source:
        return outcome
    hidden = {WHOSE[show(target.address)] for target in item.decision.masqueraded}
    if outcome.name not in hidden:
        return outcome
    pair = BRIDGE if outcome.name in PODS else NODE
    return outcome._replace(seen=pair[item.visit.family.bits == 128])


def _count(item: _Asked) -> int:
    """Connections in a batch."""
    return BATCH if len(_wanted(item)) > 1 else 1


def _wanted(item: _Asked) -> set[Outcome]:
    """The outcomes that may be, and all of which must be seen."""
    check, visit = item.check, item.visit
    if check.expect in {"reject", "closed"}:
        return {Outcome("refused")}
    if check.expect == "elsewhere":
        return {Outcome("answer", "elsewhere", visit.source)}
    if check.place == "xpod":
        return {Outcome("answer", check.expect, visit.source)}
    index = visit.family.bits == 128
    hidden = {WHOSE[show(target.address)] for target in item.decision.masqueraded}
    wanted = set()
    for word in check.expect.split():
        name = word.rstrip("~")
        seen = visit.source
        if name in hidden or visit.client == "node":
            # The node's address on the way there: its own sources are such whether they are rewritten or not.
            seen = (BRIDGE if name in PODS else NODE)[index]
        wanted.add(Outcome("answer", name, seen))
    return wanted


def _tell(outcome: Outcome) -> str:
    if outcome.verdict == "answer":
        return f"{outcome.name} answered and saw {outcome.seen}"
    return f"{outcome.verdict} {outcome.name}".strip()


def _words(outcomes: set[Outcome]) -> str:
    return " or ".join(sorted(map(_tell, outcomes))) or "nothing"
