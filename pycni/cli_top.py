"""``pycnictl top``: live rates per pod, service, policy and node; of this node, or of a lab's.

On a terminal a full-screen view (``cli_top_app``, which loads the library ``textual``); else, and with ``--once``,
plain tables; with ``--json`` one object a line. Counters come from the agents, connections from readers beside them
(``cli_traffic``); rates are computed here (``traffic/rates``), from two samples an interval apart.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pycni import cli_agent

if TYPE_CHECKING:
    from pycni.cli_traffic import Source
    from pycni.traffic.model import Sample
    from pycni.traffic.rates import Frame

SUMMARY = "live traffic: rates, connections, drops by pod, service, policy and node"
VIEWS = ("pods", "services", "policies", "nodes")
LEAST_S = 0.2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("view", nargs="?", choices=VIEWS, help="what to show (default: pods)")
    parser.add_argument(
        "-i", "--interval", type=float, default=1.0, metavar="SECONDS", help="between samples"
    )
    parser.add_argument("--once", action="store_true", help="print the rates of one interval, and end")
    parser.add_argument("-c", "--count", type=int, default=0, metavar="N", help="end after N intervals")
    parser.add_argument("--json", action="store_true", help="print JSON, one object an interval, all views")
    parser.add_argument("-s", "--sort", default="", metavar="FIELD", help="a column's field as in --json")
    parser.add_argument("-r", "--ascending", action="store_true", help="the least first")
    parser.add_argument("--filter", default="", metavar="WORDS", help="only rows with all of these in a name")
    parser.add_argument("-n", "--rows", type=int, default=0, metavar="N", help="at most N rows a table")
    parser.add_argument("--apart", action="store_true", help="services by node, not added up")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=lambda args: run(args, parser))


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Show until interrupted, or as often as asked."""
    if args.interval < LEAST_S:
        parser.error(f"--interval {args.interval:g}: at least {LEAST_S:g} s")
    _check_sort(args, parser)
    from pycni import cli_traffic  # noqa: PLC0415 - --help must be quick

    count = 1 if args.once else args.count
    with Sampler(cli_traffic.sources(args)) as sampler:
        if not args.json and not args.once and not count and sys.stdout.isatty():
            return _screen(args, sampler)
        try:
            for frame in islice(sampler.frames(args.interval), count or None):
                _print(frame, args)
        except KeyboardInterrupt:
            return 0
    return 0


def _check_sort(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if not args.sort:
        return
    from pycni.traffic.views import COLUMNS  # noqa: PLC0415

    fields = [column.field for column in COLUMNS[args.view or "pods"]]
    if args.sort not in fields:
        parser.error(f"--sort {args.sort}: {args.view or 'pods'} have {', '.join(fields)}")


def _screen(args: argparse.Namespace, sampler: Sampler) -> int:
    try:
        from pycni.cli_top_app import TopApp  # noqa: PLC0415 - half a second
    except ModuleNotFoundError as exc:
        if not (exc.name or "").startswith("textual"):
            raise
        from pycni.errors import PycniError  # noqa: PLC0415

        raise PycniError("the live view needs textual: pip install textual; or use --once, --json") from exc
    app = TopApp(
        sampler.round,
        interval=args.interval,
        view=args.view or "pods",
        sort=args.sort,
        ascending=args.ascending,
        words=args.filter,
        apart=args.apart,
        title=args.name or os.uname().nodename,
    )
    app.run()
    return app.return_code or 0


class Sampler:
    """Rounds of samples of some nodes, all asked at the same time."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._exits = ExitStack()
        self._pool = ThreadPoolExecutor(max_workers=max(1, len(sources)))
        self._meters: dict[int, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        for meter in self._meters.values():
            meter.close()

    def round(self) -> dict[str, Sample]:
        """A sample of every node; of one that cannot be asked its trouble. Raises PycniError: none can be."""
        from pycni.errors import PycniError  # noqa: PLC0415
        from pycni.traffic.model import Sample  # noqa: PLC0415

        found: dict[str, Sample] = {}
        failures: list[PycniError] = []
        asked = [self._pool.submit(self._sample, index) for index in range(len(self._sources))]
        for source, future in zip(self._sources, asked, strict=True):
            try:
                sample = future.result()
            except PycniError as error:
                failures.append(error)
                sample = Sample(node=source.node, time=time.time(), troubles={"agent": str(error)})
            found[sample.node] = sample
        if len(failures) == len(self._sources):
            raise failures[0]
        return found

    def _sample(self, index: int) -> Sample:
        from pycni.errors import PycniError  # noqa: PLC0415

        meter = self._meters.get(index)
        if meter is None:
            meter = self._meters[index] = self._sources[index].meter()
        try:
            meter.ask()
            sample: Sample = meter.answer()
        except PycniError:
            # A reader that has ended is started again the next time.
            del self._meters[index]
            meter.close()
            raise
        return sample

    def frames(self, interval: float) -> Iterator[Frame]:
        """Rates, every ``interval`` seconds. Raises PycniError."""
        from pycni.traffic.rates import Rates  # noqa: PLC0415

        rates, due = Rates(), time.monotonic()
        while True:
            frame = rates.feed(self.round())
            if frame is not None:
                yield frame
            else:
                due = time.monotonic()  # readers had to be started first
            due = max(due + interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))


def _print(frame: Frame, args: argparse.Namespace) -> None:
    import msgspec  # noqa: PLC0415

    from pycni.traffic import views  # noqa: PLC0415

    wanted = [args.view] if args.view else (VIEWS if args.json else ["nodes", "pods", "services", "policies"])
    found = {}
    for view in wanted:
        rows = views.rows_of(frame, view, words=args.filter, apart=args.apart, silent=args.json)
        chosen = [column.field for column in views.COLUMNS[view]]
        key = args.sort if args.sort in chosen else views.BUSIEST
        rows = views.ordered(rows, view, key, ascending=args.ascending)
        found[view] = (rows[: args.rows] if args.rows else rows, len(rows))
    if args.json:
        body: Mapping[str, Any] = {
            "time": frame.time,
            "interval_s": round(frame.interval_s, 6),
            **{view: [_rounded(row) for row in rows] for view, (rows, _) in found.items()},
        }
        sys.stdout.write(msgspec.json.encode(body).decode() + "\n")
    else:
        shown = [view for view in wanted if found[view][1] or args.view]
        sys.stdout.write("\n".join(_table(view, *found[view]) for view in shown) + "\n")
        for node in frame.nodes:
            for trouble in node.troubles:
                print(f"pycnictl: {node.node}: {trouble}", file=sys.stderr)
    sys.stdout.flush()


def _rounded(row: Any) -> dict[str, Any]:
    import msgspec  # noqa: PLC0415

    fields: dict[str, Any] = msgspec.structs.asdict(row)
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}


def _table(view: str, rows: Sequence[Any], total: int) -> str:
    """A view as text, names to the left, numbers to the right."""
    from pycni.traffic.views import COLUMNS, human  # noqa: PLC0415

    columns = COLUMNS[view]
    cells = [[column.title for column in columns]]
    for row in rows:
        values = [getattr(row, column.field) for column in columns]
        cells.append(
            [
                str(value) if column.kind == "name" else human(value, column.kind)
                for column, value in zip(columns, values, strict=True)
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if column.kind == "name" else cell.rjust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in cells
    ]
    if len(rows) < total:
        lines.append(f"... {total - len(rows)} more")
    return "\n".join(lines) + "\n"
