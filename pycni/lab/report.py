"""What lab commands print: the tree of a lab, the grid of a matrix, progress. Text in, text out, but for ``Progress``.

Colours and the spinner come from rich, which is only imported when the output is a terminal.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from pycni.lab.apply_tables import table
from pycni.lab.checks import Check
from pycni.lab.matrix import ALONE, Matrix

OK, PART, BAD, SELF, UNASKED, ALONE_OK = "●", "◐", "✗", "-", "·", "○"
_ASCII = str.maketrans(
    {OK: "+", PART: "~", BAD: "X", UNASKED: ".", ALONE_OK: "o", "├": "|", "└": "`", "─": "-", "│": "|"}
)
Cells = dict[tuple[str, str], tuple[int, int]]
"""(from, to) -> (checks, failures)."""
GRID_HOSTS = 40
"""The widest grid that shows pods one by one."""
LISTED = 20
"""Failed checks shown in full under a grid."""


def writable(text: str, stream: TextIO) -> str:
    """The text with drawing characters replaced when the stream cannot show them."""
    try:
        text.encode(stream.encoding or "ascii")
    except UnicodeEncodeError:
        return text.translate(_ASCII)
    return text


def tree(status: Mapping[str, Any]) -> str:
    """The picture of a lab from its ``status`` object: fabric, nodes, their pods."""
    lines = [f"fabric  {_addresses(status['fabric'])}  etcd {status['etcd']['endpoint']} ({_etcd(status)})"]
    nodes: Sequence[Mapping[str, Any]] = status["nodes"]
    for node in nodes:
        last = node is nodes[-1]
        state = "ready" if node["ready"] else f"NOT READY: {node['reason']}"
        parts = [
            node["name"],
            " ".join(node["ips"]),
            node["backend"],
            " ".join(node["subnets"]) or "no lease",
            state,
        ]
        lines.append(f"{'└' if last else '├'}─ " + "  ".join(parts))
        pods = [pod for pod in status["pods"] if pod["node"] == node["name"]]
        for pod in pods:
            corner = "└" if pod is pods[-1] else "├"
            lines.append(f"{' ' if last else '│'}   {corner}─ {pod['name']}  {_pod_words(pod)}")
    return "\n".join([*lines, *services(status.get("services", ())), *policies(status)])


def _pod_words(pod: Mapping[str, Any]) -> str:
    """Addresses, and where they are from if not from the cluster's network."""
    network = pod.get("network", "cluster")
    return " ".join([*pod["ips"], *([] if network == "cluster" else [f"(network {network})"])])


def policies(status: Mapping[str, Any]) -> list[str]:
    """Which policies there are and what enforces them; nothing where nothing does and there are none."""
    found = [
        f"   {item['kind']} {item['namespace']}{'/' if item['namespace'] else ''}{item['name']}"
        for item in status.get("policies", ())
    ]
    plane = status.get("policy", "none")
    if plane == "none" and not found:
        return []
    head = "policies, which nothing enforces here" if plane == "none" else f"policies, by {plane}"
    return [head if found else f"{head}: none yet", *found]


def services(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per Service: its addresses and ports, and who is behind them."""
    if not found:
        return []
    rows = [
        (
            f"{item['namespace']}/{item['name']}",
            item["type"],
            " ".join(item["addresses"]),
            " ".join(item["ports"]),
            f"-> {item['summary']}",
        )
        for item in found
    ]
    return ["services", *(f"   {line}" for line in table(rows).splitlines())]


def grid(matrix: Matrix) -> str:
    """Rows: from; columns: to, by number. One character per pair over all kinds and families.

    Services have a column and, for their name, an empty row. With many hosts a node stands for itself and its pods.
    """
    place = dict(matrix.pods)
    hosts = [*matrix.nodes, *place]
    cells = matrix.pairs()
    alone = frozenset(check.source for check in matrix.reasons if check.kind == ALONE)
    if len(hosts) + len(matrix.services) > GRID_HOSTS:
        cells = _by_node(cells, place)
        hosts, place = list(matrix.nodes), dict.fromkeys(matrix.nodes, "and its pods")
    place = {name: " ".join(filter(None, (node, matrix.modes.get(name)))) for name, node in place.items()}
    place |= dict.fromkeys(matrix.outside, "outside") | dict.fromkeys(matrix.services, "service")
    hosts += [*matrix.outside, *matrix.services]
    width = max((len(host) for host in hosts), default=0)
    wide = len(str(len(hosts)))
    away = max((len(node) for node in place.values()), default=0)
    head = " ".join(str(number).rjust(wide) for number in range(1, len(hosts) + 1))
    lines = [f"{'from / to':<{wide + width + away + 3}} {head}"]
    for number, source in enumerate(hosts, 1):
        row = " ".join(_cell(cells, source, target, alone).rjust(wide) for target in hosts)
        line = f"{number:>{wide}} {source:<{width}}  {place.get(source, ''):<{away}} "
        lines.append((line + ("" if source in matrix.services else row)).rstrip())
    key = f"{OK} all kinds pass  {PART} some fail  {BAD} all fail  {UNASKED} not asked"
    lines.append(f"{key}  {ALONE_OK} nothing gets through, as it has to be" if alone else key)
    return "\n".join(lines)


def _by_node(cells: Cells, place: Mapping[str, str]) -> Cells:
    """The same counts with every pod counted for its node."""
    summed: Cells = {}
    for (source, target), (checks, failures) in cells.items():
        key = place.get(source, source), place.get(target, target)
        before = summed.get(key, (0, 0))
        summed[key] = before[0] + checks, before[1] + failures
    return summed


def verdict(matrix: Matrix) -> str:
    """The last lines of ``lab matrix``: the failures in words, then the sum."""
    place = dict(matrix.pods)
    failed = matrix.failed()
    lines = [_failure(check, reason, place) for check, reason in failed[:LISTED]]
    if len(failed) > LISTED:
        lines.append(f"... and {len(failed) - LISTED} more (--json lists all)")
    checks = len(matrix.reasons)
    summary = f"all {checks} checks pass" if matrix.ok else f"{len(failed)} of {checks} checks FAIL"
    kinds = ", ".join(dict.fromkeys(_kind(check, matrix) for check in matrix.reasons))
    families = ", ".join(dict.fromkeys(check.family.label for check in matrix.reasons))
    lines.append(f"{summary}: {kinds} over {families} in {matrix.seconds:.2f} s")
    return "\n".join(lines)


def _kind(check: Check, matrix: Matrix) -> str:
    return f"services by {check.kind.partition(' ')[0]}" if check.target in matrix.services else check.kind


def _failure(check: Check, reason: str, place: Mapping[str, str]) -> str:
    ends = [f"{host} ({place[host]})" if host in place else host for host in (check.source, check.target)]
    return f"  {ends[0]} -> {ends[1]}  {check.family.label} {check.kind}: {reason}"


def _cell(pairs: Cells, source: str, target: str, alone: frozenset[str]) -> str:
    """``alone``: hosts that must not get through."""
    if source == target and (source, target) not in pairs:
        return SELF
    checks, failures = pairs.get((source, target), (0, 0))
    if not checks:
        return UNASKED
    if not failures:
        return ALONE_OK if source in alone else OK
    return BAD if failures == checks else PART


def _addresses(fabric: Mapping[str, Any]) -> str:
    return " ".join(fabric["ips"])


def _etcd(status: Mapping[str, Any]) -> str:
    etcd = status["etcd"]
    return f"pid {etcd['pid']}" if etcd["alive"] else "NOT RUNNING"


class Progress:
    """Tells what is going on: plain lines, or on a terminal a spinner that gives way to them."""

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.stream = stream or sys.stdout
        self.quiet = quiet
        self._started = time.monotonic()

    def line(self, text: str = "") -> None:
        """One finished line (or several)."""
        if not self.quiet:
            print(writable(text, self.stream), file=self.stream, flush=True)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Something that takes a while: its line is printed with the time it took once it has worked.

        Yields a function that tells how far it has come, which only a terminal shows.
        """
        started = time.monotonic()
        with self._spinner(text) as update:
            yield update
        self.line(f"{text} ({time.monotonic() - started:.1f} s)")

    @contextlib.contextmanager
    def _spinner(self, text: str) -> Iterator[Callable[[str], None]]:
        if self.quiet or not self.stream.isatty():
            yield lambda _how_far: None
            return
        from rich.console import Console  # noqa: PLC0415  # 80 ms that pipes and scripts need not pay

        with Console(file=self.stream).status(text.strip()) as status:
            yield lambda how_far: status.update(f"{text.strip()}: {how_far}")
