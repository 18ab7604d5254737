"""``pycnictl flows``: the connections there are; with ``-f`` connections as they begin and end, and packets denied.

Connections come from the kernel's connection tracking, by readers beside the agents (``cli_traffic``), denials from the
agents (``/drops``), names from both (``/names``). Every source is a thread that fills one bounded queue: what is not
printed in time stays where it is, in the end in the kernel's buffer, and what that cannot hold is told as lost.
"""

from __future__ import annotations

import argparse
import contextlib
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from pycni import cli_agent

if TYPE_CHECKING:
    from pycni.cli_traffic import Source, Told

SUMMARY = "connections with names, translation and verdict: the present ones, or live with -f"
QUEUE = 8192
HOLD_S = 0.25
"""So long lines wait for earlier ones of other nodes."""
AGAIN_S = 1.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "filter",
        nargs="*",
        metavar="FILTER",
        help="all must fit: allowed, denied, untranslated; tcp, udp ...; :PORT; an address or network; a name",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="show what happens from now on")
    parser.add_argument(
        "--pod", action="append", default=[], metavar="NAME", help="either end; NAME may have *"
    )
    parser.add_argument("--service", action="append", default=[], metavar="NAME")
    parser.add_argument(
        "--verdict", action="append", default=[], choices=("allowed", "denied", "untranslated")
    )
    parser.add_argument("--protocol", action="append", default=[], metavar="NAME", help="tcp, udp, icmp ...")
    parser.add_argument("--port", action="append", default=[], type=int, help="of either end")
    parser.add_argument("--address", action="append", default=[], metavar="NET", help="of either end")
    parser.add_argument(
        "--changes", action="store_true", help="with -f: also when a connection changes its state"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also what concerns neither pods nor services (tunnels, the agents' own)",
    )
    parser.add_argument("-c", "--count", type=int, default=0, metavar="N", help="end after N flows")
    parser.add_argument("--json", action="store_true", help="print JSON, one object a line")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=lambda args: run(args, parser))


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print the table, or follow until interrupted."""
    if args.changes and not args.follow:
        parser.error("--changes is for following: add -f")
    from pycni import cli_traffic  # noqa: PLC0415 - --help must be quick
    from pycni.traffic import filters, names  # noqa: PLC0415
    from pycni.traffic.model import Flow  # noqa: PLC0415

    fits = filters.make(
        args.filter,
        pods=args.pod,
        services=args.service,
        verdicts=args.verdict,
        protocols=args.protocol,
        ports=args.port,
        addresses=args.address,
    )
    whole = args.all or bool(
        args.filter or args.pod or args.service or args.protocol or args.port or args.address
    )
    hidden = 0
    with Sources(cli_traffic.sources(args)) as sources:
        show = _json if args.json else _printer()
        told = sources.follow(changes=args.changes) if args.follow else sources.table()
        left = args.count
        try:
            for item in told:
                if isinstance(item, Flow):
                    if not fits(sources.describe(item)):
                        continue
                    if not whole and not names.of_pods(item):
                        hidden += 1
                        continue
                    show(item)
                    left -= 1
                    if not left:
                        break
                else:
                    show(item)
        except KeyboardInterrupt:
            pass
    if hidden:
        print(f"{hidden} more concern neither pods nor services: --all shows them", file=sys.stderr)
    return 0


class Sources:
    """All nodes' connections and denials as one stream, in the order of time."""

    def __init__(self, sources: Sequence[Source]) -> None:
        from pycni.traffic.names import Book  # noqa: PLC0415

        self._sources = sources
        self._queue: queue.Queue[Any] = queue.Queue(QUEUE)
        self._book = Book()
        self._asked: dict[int, float] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    # --- names -----------------------------------------------------------------------------------------------

    def describe(self, flow: Any) -> Any:
        """Fill in names; those of addresses that nobody knew yet are asked for, now and then."""
        ends = (flow.source, flow.translated_destination or flow.destination)
        if not all(map(self._book.knows, ends)):
            self._refresh()
        return self._book.describe(flow)

    def _refresh(self) -> None:
        from pycni import cli_traffic  # noqa: PLC0415
        from pycni.cli_agent import AgentError  # noqa: PLC0415

        for index, source in enumerate(self._sources):
            began = time.monotonic()
            if began < self._asked.get(index, 0.0):
                continue
            with contextlib.suppress(AgentError):  # addresses do without names while an agent is away
                self._book.put(cli_traffic.names(source.agent, self._book.generation(source.node)))
            now = time.monotonic()
            self._asked[index] = now + max(cli_traffic.NAMES_S, (now - began) / cli_traffic.SHARE)

    def _named(self) -> list[str]:
        """Names of the nodes; asks agents that have not been named by the lab."""
        from pycni import cli_traffic  # noqa: PLC0415

        found = []
        for source in self._sources:
            names = None if source.node else cli_traffic.names(source.agent)
            if names is not None:
                self._book.put(names)
            found.append(names.node if names is not None else source.node)
        self._refresh()
        return found

    # --- streams ---------------------------------------------------------------------------------------------

    def table(self) -> Iterator[Told]:
        """What connection tracking has, node by node. Raises PycniError."""
        from pycni import cli_traffic  # noqa: PLC0415

        for source, node in zip(self._sources, self._named(), strict=True):
            yield from source.flows(cli_traffic.TABLE, node)

    def follow(self, *, changes: bool) -> Iterator[Told]:
        """What happens from now on. Raises PycniError when nothing is left to listen to."""
        from pycni.traffic.merge import Merge  # noqa: PLC0415

        alive = 0
        for source, node in zip(self._sources, self._named(), strict=True):
            for read in (self._connections, self._denials):
                threading.Thread(target=read, args=(source, node, changes), daemon=True).start()
            alive += 1
        merge: Merge[Told] = Merge(HOLD_S, QUEUE)
        while True:
            try:
                item = self._queue.get(timeout=HOLD_S / 2)
                while True:
                    if isinstance(item, Exception):
                        alive -= 1
                        if not alive:
                            yield from merge.rest()
                            raise item
                        print(f"pycnictl: {item}", file=sys.stderr)
                    else:
                        merge.put(item)
                    if len(merge) > QUEUE:
                        break
                    item = self._queue.get_nowait()
            except queue.Empty:
                pass
            yield from merge.due(time.time())

    def _connections(self, source: Source, node: str, changes: bool) -> None:
        from pycni.errors import PycniError  # noqa: PLC0415

        try:
            for item in source.flows("changes" if changes else "events", node):
                self._put(item)
        except (PycniError, OSError) as error:
            self._put(error)

    def _denials(self, source: Source, node: str, _changes: bool) -> None:
        from pycni.cli_agent import AgentError  # noqa: PLC0415
        from pycni.traffic.denials import denial  # noqa: PLC0415
        from pycni.traffic.model import Lost  # noqa: PLC0415

        said = ""
        while not self._ended.is_set():
            why = "the agent has ended"
            try:
                for line in source.agent.lines("/drops"):
                    item = denial(line, time.time())
                    self._put(item)
                    said = ""
            except AgentError as error:
                if error.status == 404:
                    return  # no policies are enforced here
                why = str(error)
            if why != said:
                said = why
                self._put(Lost(time=time.time(), node=node, what=f"denials: {why}"))
            self._ended.wait(AGAIN_S)

    def _put(self, item: Any) -> None:
        while not self._ended.is_set():
            try:
                self._queue.put(item, timeout=AGAIN_S)
                return
            except queue.Full:
                continue


def _json(item: Any) -> None:
    import msgspec  # noqa: PLC0415

    sys.stdout.write(msgspec.json.encode(item).decode() + "\n")
    sys.stdout.flush()


def _printer() -> Callable[[Any], None]:
    from pycni.traffic.model import Listening  # noqa: PLC0415
    from pycni.traffic.text import text  # noqa: PLC0415

    colours = sys.stdout.isatty()

    def show(item: Any) -> None:
        if isinstance(item, Listening):
            print(f"{item.node}: listening to {item.what}", file=sys.stderr)
        else:
            print(text(item, colours=colours), flush=True)

    return show
