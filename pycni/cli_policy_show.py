"""What ``pycnictl policy`` prints for people: tables and blocks, coloured on a terminal only (rich sees to that)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pycni.policy.effective import Count, Overview, PodRules, PolicyRules, PolicyStatus, SideRules
from pycni.policy.effective_texts import RuleText
from pycni.policy.explain import KERNEL, EndText, Explanation, Side, Together

_WIDEST = 2000
_STYLES = {"Accept": "green", "Deny": "red", "Pass": "yellow", "allowed": "green", "denied": "red"}


def overview(found: Sequence[Overview], silent: Sequence[str]) -> None:
    """All policies; of several nodes pods and denials are added up."""
    console = _console()
    for item in found:
        sides = ", ".join(f"{count} isolated for {side}" for side, count in item.isolated.items())
        console.print(
            Text.assemble(
                (f"node {item.node}", "bold"),
                f": {item.pods} pods, {sides}; enforced by {', '.join(item.planes)}",
            )
        )
        _say(console, item.trouble, item.notes)
        for side, count in item.closed.items():
            console.print(
                Text(f"  {count} addresses closed for {side} until their policies are programmed", "yellow")
            )
    for line in silent:
        console.print(Text(line, "red"))
    rows = _added_up(found)
    if not rows:
        console.print("no policies")
        return
    table = _table("POLICY", "TIER", "FOR", "SELECTS", "PODS", "DENIED", "STATE")
    for row in rows:
        tier = f"{row.tier} {row.priority}" if row.priority >= 0 else row.tier
        state = "red" if not row.tier or row.problems else "" if row.pods else "dim"
        table.add_row(
            Text(_key(row), "bold"),
            tier,
            ", ".join(row.directions),
            row.selects,
            str(row.pods),
            _denied(sum(row.denied.values(), Count())),
            Text(row.state, state),
        )
    _draw(console, table)
    for row in rows:
        for problem in row.problems:
            console.print(Text.assemble((f"{row.kind} {_key(row)}: ", "bold"), (problem, "red")))


def _key(row: PolicyStatus) -> str:
    return f"{row.namespace}/{row.name}" if row.namespace else row.name


def _added_up(found: Sequence[Overview]) -> list[PolicyStatus]:
    rows: dict[tuple[str, str, str], PolicyStatus] = {}
    for item in found:
        for row in item.policies:
            key = (row.kind, row.namespace, row.name)
            known = rows.get(key)
            rows[key] = row if known is None else _plus(known, row)
    return list(rows.values())


def _plus(one: PolicyStatus, other: PolicyStatus) -> PolicyStatus:
    denied = {
        side: one.denied.get(side, Count()) + other.denied.get(side, Count())
        for side in (*one.denied, *(side for side in other.denied if side not in one.denied))
    }
    return msgspec.structs.replace(one if one.pods else other, pods=one.pods + other.pods, denied=denied)


def denials(found: Sequence[Overview], silent: Sequence[str]) -> None:
    """What has been denied, by node, reason and direction."""
    console = _console()
    table = _table("NODE", "DENIED BY", "FOR", "PACKETS", "BYTES")
    rows = 0
    for item in found:
        named = {f"{row.kind} {_key(row)}": row.denied for row in item.policies} | dict(item.refused)
        for name, denied in named.items():
            for side, count in denied.items():
                if count.packets:
                    table.add_row(item.node, Text(name, "bold"), side, str(count.packets), str(count.bytes))
                    rows += 1
    if rows:
        _draw(console, table)
    else:
        console.print(f"nothing has been denied on {', '.join(item.node for item in found)}")
    for line in silent:
        console.print(Text(line, "red"))


# --- a pod -----------------------------------------------------------------------------------------------------------


def pod(found: PodRules) -> None:
    """What holds for a pod."""
    console = _console()
    labels = ",".join(f"{key}={value}" for key, value in found.labels.items()) or "no labels"
    where = f" on {found.runs_on}" if found.runs_on else ""
    addresses = ", ".join(found.addresses) or "no address yet"
    console.print(Text.assemble((f"pod {found.pod}", "bold"), f"{where} ({addresses}), {labels}"))
    _say(console, found.trouble, found.notes)
    if found.exempt:
        console.print(found.exempt)
        return
    if found.node == found.runs_on:
        console.print(f"enforced by {', '.join(found.planes)}")
    else:
        what = "its counters and whether it is closed are known there"
        console.print(Text(f"answered by {found.node}, which does not run it: {what}", "yellow"))
    for side in found.sides:
        _side(console, side, here=found.node == found.runs_on)


def _side(console: Console, side: SideRules, *, here: bool) -> None:
    head = Text.assemble("\n", (side.direction, "bold"), ": ")
    if not side.policies:
        head.append("no policy, everything is ")
        head.append("allowed", "green")
    else:
        count = len(side.policies)
        head.append(f"{count} polic{'ies' if count > 1 else 'y'}; what no rule decides is ")
        head.append(side.otherwise, _STYLES[side.otherwise])
    console.print(head)
    if side.closed:
        console.print(Text("  closed: nothing passes until the pod's policies are programmed", "red"))
    elif here and side.policies and not side.programmed:
        console.print(Text("  not programmed: the node's tables do not have this pod's address", "red"))
    if not side.policies:
        return
    peers = "FROM" if side.direction == "ingress" else "TO"
    table = _table("  POLICY", "TIER", "SELECTS", "HITS", "DENIED", "RULE", "ACTION", peers, "PORTS")
    for policy in side.policies:
        for row in _rules(policy, side.direction):
            table.add_row(*row)
    _draw(console, table)


def _rules(policy: PolicyRules, direction: str) -> Iterator[list[Text | str]]:
    tier = f"{policy.tier} {policy.priority}" if policy.priority >= 0 else policy.tier
    first: list[Text | str] = [
        Text(f"  {policy.key}", "bold"),
        tier,
        policy.selects,
        _hits(policy),
        _denied(policy.denied),
    ]
    nothing: list[Text | str] = [""] * len(first)
    if not policy.rules:
        yield [*first, "", Text("none", "dim"), Text("nobody", "dim"), ""]
    for rule in policy.rules:
        name = f"{direction}[{rule.number}]" + (f" {rule.name}" if rule.name else "")
        for line in range(max(1, len(rule.peers), len(rule.ports))):
            head = first if rule is policy.rules[0] and not line else nothing
            action = Text(rule.action, _STYLES[rule.action])
            yield [*head, *([name, action] if not line else ["", ""]), _peer(rule, line), _ports(rule, line)]
        if rule.problem:
            yield [*nothing, "", "", Text(rule.problem, "red"), ""]


def _hits(policy: PolicyRules) -> str:
    return str(policy.decided) if policy.decided >= 0 else "-"


def _peer(rule: RuleText, line: int) -> str:
    if not rule.peers:
        return "everybody" if not line else ""
    if line >= len(rule.peers):
        return ""
    peer = rule.peers[line]
    return peer.text if peer.pods < 0 else f"{peer.text} ({peer.pods} pod{'s' if peer.pods != 1 else ''})"


def _ports(rule: RuleText, line: int) -> str:
    if not rule.ports:
        return "everything" if not line else ""
    return rule.ports[line] if line < len(rule.ports) else ""


# --- explain ---------------------------------------------------------------------------------------------------------


def explanations(found: Sequence[Together], notes: Sequence[str], silent: Sequence[str]) -> None:
    """A block for each connection."""
    console = _console()
    for item in found:
        told = item.connection
        what = f"{told.protocol} port {told.port}" if told.port else f"protocol {told.protocol}"
        if told.protocol.isdigit():
            what = {"1": "ICMP", "58": "ICMPv6"}.get(told.protocol, what)
        through = f" by {told.through}" if told.through else ""
        word = "allowed" if told.allowed else "denied"
        console.print(
            Text.assemble(
                (f"{_end(told.source)} -> {_end(told.destination)}", "bold"),
                f", {what}{through}: ",
                (word, _STYLES[word]),
            )
        )
        for side in (told.egress, told.ingress):
            console.print(_verdict(side))
        console.print(_kernels(item, "did not answer" if silent else "was not asked"))
        for line in item.differences:
            console.print(Text(f"  {line}", "red"))
    for line in notes:
        console.print(Text(f"note: {line}", "yellow"))
    for line in silent:
        console.print(Text(line, "red"))


def _verdict(side: Side) -> Text:
    word = "allowed" if side.allowed else "denied"
    where = f" (on {side.node})" if side.node else ""
    return Text.assemble(f"  {side.direction:<8} ", (f"{word:<8}", _STYLES[word]), f" {side.why}{where}")


def _kernels(item: Together, absent: str) -> Text:
    """Whether what judges agrees with all this; ``absent``: what to say of nodes that have not said anything."""
    line = Text("  kernel   ")
    if not item.by_node and not item.not_asked:
        return line.append("nobody has to judge this")
    parts: list[tuple[str, str]] = []
    for node, told in item.by_node.items():
        planes = ", ".join(_planes(told))
        if told.differences:
            parts.append((f"{node} does something else", "red"))
        else:
            parts.append((f"{node} agrees ({planes})", "green"))
    parts += ((f"{node} {absent}", "yellow") for node in item.not_asked)
    for number, (text, style) in enumerate(parts):
        line.append("; " if number else "").append(text, style)
    return line


def _planes(told: Explanation) -> Iterator[str]:
    """The data planes whose kernel's side has been asked and decides about it."""
    for check in told.checks:
        if check.by.endswith(KERNEL) and not check.leaves:
            yield check.by.removesuffix(KERNEL)


def _end(end: EndText) -> str:
    if end.pod:
        return f"{end.pod} ({end.address})"
    return f"node {end.node} ({end.address})" if end.node else end.address


# --- tables ----------------------------------------------------------------------------------------------------------


def _console() -> Console:
    return Console(highlight=False, soft_wrap=True)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def _draw(console: Console, table: Table) -> None:
    # Cut off cells would help nobody: what is wider than the terminal is wrapped by it.
    console.width = _WIDEST
    with console.capture() as drawn:
        console.print(table, soft_wrap=False)
    # Cells are filled up with blanks, which only a terminal has a use for.
    lines = drawn.get().splitlines()
    sys.stdout.write("\n".join(lines if sys.stdout.isatty() else [line.rstrip() for line in lines]) + "\n")
    sys.stdout.flush()


def _say(console: Console, trouble: str, notes: Sequence[str]) -> None:
    if trouble:
        console.print(Text(f"not as policies say: {trouble}", "red"))
    for line in notes:
        console.print(Text(f"note: {line}", "yellow"))


def _denied(count: Count) -> str:
    return f"{count.packets} packet{'s' if count.packets != 1 else ''}" if count.packets else "-"
