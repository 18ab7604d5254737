"""``pycnictl bgp``: with whom a node speaks BGP, what it announces to whom and why not, and what it learned.

The agent is asked over its control socket, which root alone may use. With ``--node`` it is the agent of a lab's node.
``drain`` and ``undrain`` have it withdraw services' addresses, and announce them again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pycni import cli_agent
from pycni.cli_agent import AgentError
from pycni.wire import typed
from pycni_bgp.status import Status


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=("show", "drain", "undrain"),
        default="show",
        help="drain: announce no addresses of services from this node until undrain",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per node")
    parser.add_argument("--learned", action="store_true", help="print learned routes too")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit code."""
    for number, agent in enumerate(cli_agent.agents(args)):
        if args.action != "show":
            sys.stdout.write(agent.fetch(f"/bgp/{args.action}").decode())
            continue
        raw = agent.fetch("/bgp")
        if args.json:
            sys.stdout.write(raw.decode().rstrip("\n") + "\n")
            continue
        try:
            found = typed.decode(raw, Status)
        except msgspec.DecodeError as exc:
            raise AgentError(f"the agent's answer cannot be read: {exc}") from exc
        if number:
            print()
        show(found, learned=args.learned)
    return 0


def show(found: Status, *, learned: bool) -> None:
    """One node, as tables."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
    why = "; ".join(found.drained)
    drained = f", being drained ({why}): services are not announced" if why else ""
    console.print(f"node {found.node}: AS{found.asn}, router id {found.router_id}, {found.engine}{drained}")
    for line in filter(None, (found.trouble, *found.problems)):
        console.print(f"[red]{escape(line)}[/red]")
    rows: list[tuple[str, ...]] = [
        (
            peer.address,
            f"AS{peer.asn}",
            peer.kind,
            f"[green]{peer.state}[/green]" if peer.state == "Established" else f"[red]{peer.state}[/red]",
            peer.since,
            str(peer.received),
            str(peer.sent),
            peer.origin,
            escape(peer.error),
        )
        for peer in found.peers
    ]
    _table(console, ("PEER", "AS", "KIND", "STATE", "SINCE", "IN", "OUT", "FROM", "LAST ERROR"), rows)
    for name, why in found.strangers.items():
        console.print(f"no session with node {name}: {escape(why)}")
    adjacent = [(item.router_id, item.state, item.interface, item.address) for item in found.ospf]
    _table(console, ("OSPF NEIGHBOUR", "STATE", "INTERFACE", "ADDRESS"), adjacent)
    rows = [
        (
            item.prefix,
            item.kind,
            item.owner,
            f"{len(item.to)} of {len(item.to) + len(item.withheld)}",
            escape("; ".join(sorted(set(item.withheld.values())))),
        )
        for item in found.announced
    ]
    _table(console, ("ANNOUNCED", "KIND", "FOR", "TO PEERS", "NOT TO THE OTHERS BECAUSE"), rows)
    _table(
        console,
        ("NOT ANNOUNCED", "BECAUSE"),
        [(prefix, escape(why)) for prefix, why in found.silent.items()],
    )
    if learned:
        rows = [
            (
                item.prefix,
                item.neighbour,
                item.next_hop,
                " ".join(map(str, item.as_path)),
                " ".join(item.communities),
                "best" if item.best else "",
            )
            for item in found.learned
        ]
        _table(console, ("LEARNED", "FROM", "NEXT HOP", "AS PATH", "COMMUNITIES", ""), rows)


def _table(console: Console, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
