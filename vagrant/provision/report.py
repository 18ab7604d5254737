"""One report of all that was measured across the hosts and on each, in the format of ``bench/`` (``bench/model.py``).

``report.py`` runs on the node that measured: it puts the screens of ``across.py``'s runs together, compares backends
with each other, adds those of every host's ``suite.sh`` (from etcd), and writes ``report.json`` and ``report.html``.
``report.py suite FILE`` puts a report of ``pytest bench/`` on this host there.
"""

from __future__ import annotations

import base64
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from across import FOLDER, THROUGHPUT, Kept
from pods import STATE, etcdctl, host, nodes

from bench import html, machine
from bench.model import Report, Row, Screen, decode, encode

SUITE = "/pycni-hosts-suite/"
FULL_ROUNDS = 5
"""Fewer make a quick run."""
BASE = "host-gw"
CLAIMS = {"vxlan": ">= 0.7", "udp": "<= 0.5"}
"""Of throughput: what the kernel wraps costs little beside plain routes, what a process wraps much."""


def main() -> None:
    """Both files."""
    runs = [msgspec.json.decode(path.read_bytes(), type=Kept) for path in sorted(FOLDER.glob("*.json"))]
    if not runs:
        raise SystemExit(f"nothing has been measured: {FOLDER} is empty; `cluster.sh bench` comes first")
    across = merged([screen for run in runs for screen in run.screens])
    for screen in across:
        if screen.name == "hosts_backends":
            screen.rows += claims(screen.rows)
    where = machine.describe()
    where.system += f"; {len(nodes())} hosts like this one"
    suites = list(suite())
    report = Report(
        machine=where,
        began=datetime.fromtimestamp(min(run.began for run in runs), UTC).isoformat(timespec="seconds"),
        took_s=sum(screen.took_s for screen in [*across, *suites]),
        quick=any(0 < run.rounds < FULL_ROUNDS for run in runs),
        commit=machine.commit(),
        screens=[*across, *suites],
    )
    (STATE / "report.json").write_bytes(encode(report))
    (STATE / "report.html").write_text(html.page(report, {}))
    print(f"{len(report.rows())} rows on {len(report.screens)} screens")


def merged(screens: Sequence[Screen]) -> list[Screen]:
    """One screen of each name, with the rows of all."""
    found: dict[str, Screen] = {}
    for screen in screens:
        into = found.setdefault(screen.name, Screen(name=screen.name, title=screen.title))
        into.rows.extend(screen.rows)
        into.took_s += screen.took_s
    return [found[name] for name in sorted(found)]


def claims(rows: Sequence[Row]) -> Iterator[Row]:
    """Backends beside each other, by what each leaves of the hosts' own throughput, as they were not up at one time."""
    left = {
        backend: row
        for row in rows
        if (backend := row.question.partition(":")[0]) and THROUGHPUT in row.question
    }
    base = left.pop(BASE, None)
    if base is None or not base.ratio:
        return
    for backend, row in left.items():
        if row.ratio is not None:
            yield Row(
                question=f"{backend} against {BASE}: {THROUGHPUT}, as a share of the hosts' own",
                ours=f"{row.ratio:.2f}",
                peer=f"{BASE} {base.ratio:.2f}",
                ratio=row.ratio / base.ratio,
                target=CLAIMS.get(backend, ""),
                better="" if backend in CLAIMS else "more",
                noise=statistics.fmean(noises) * 2 if (noises := _noises(row, base)) else None,
            )


def _noises(*rows: Row) -> list[float]:
    found = [row.noise for row in rows if row.noise is not None]
    return found if len(found) == len(rows) else []


def suite() -> Iterator[Screen]:
    """Those of ``pytest bench/`` on each host, with its name before theirs. Plots stay on the hosts."""
    answer = json.loads(etcdctl("get", "--prefix", SUITE, "-w", "json"))
    for item in answer.get("kvs", ()):
        name = base64.b64decode(item["key"]).decode().removeprefix(SUITE)
        for screen in decode(base64.b64decode(item["value"]), f"the report of {name}").screens:
            yield msgspec.structs.replace(screen, name=f"{name}_{screen.name}", plots=[])


def give(path: Path) -> None:
    """This host's, for the report."""
    decode(path.read_bytes(), str(path))
    etcdctl("put", SUITE + host(), feed=path.read_text())


if __name__ == "__main__":
    if sys.argv[1:2] == ["suite"]:
        give(Path(sys.argv[2]))
    else:
        main()
