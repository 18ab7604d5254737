"""``pycnictl ipam``: addresses of this node's pods, or of a lab's nodes: what is irregular, who has which, one back.

    check                  reservations without a pod, pods without a reservation; exit code 1 when there is any
    show [WORD]            every reservation; WORD: those whose address, pod, container or network has it
    release ADDRESS        free one that no container has any more; --force also one that is in use (its pod then
                           loses its network), or that nobody knows anything about

The agent judges from the reservations on disk and the records of attachments, and looks at the containers' network
namespaces. ``--json`` prints one object with ``nodes`` and ``silent`` (shape: ``agent.status_model.IpamStatus``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from urllib.parse import urlencode

import msgspec

from pycni import cli_agent
from pycni import cli_status_ask as ask
from pycni.agent.status_model import IpamStatus, Released, Reserved
from pycni.cli_agent import AgentError
from pycni.cli_status_text import Cell, paint, show, table

SERIOUS = frozenset({"leaked-endpoint", "leaked-reservation", "unreserved", "duplicate"})
_SHORT = 13
"""Characters of a container id, as runtimes show it."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="ipam_command", metavar="COMMAND", required=True)
    check = commands.add_parser("check", help="what is irregular")
    ask.add_arguments(check)
    check.set_defaults(run=_check)
    listing = commands.add_parser("show", help="every reservation")
    listing.add_argument(
        "word", nargs="?", default="", metavar="WORD", help="an address, pod, container or network"
    )
    ask.add_arguments(listing)
    listing.set_defaults(run=_show)
    release = commands.add_parser("release", help="take an address back")
    release.add_argument("address", metavar="ADDRESS")
    release.add_argument("--network", default="", help="name of the network, where several have the address")
    release.add_argument("--force", action="store_true", help="also when a container has it, or may have it")
    ask.add_arguments(release)
    release.set_defaults(run=_release)


def _check(args: argparse.Namespace) -> int:
    found, silent = ask.each(args, lambda agent: ask.decoded(agent.fetch("/ipam/check"), IpamStatus))
    clean = not silent and not any(item.rows for item in found)
    if args.json:
        ask.as_json(found, silent, ok=clean)
        return 0 if clean else 1
    lines: list[str] = []
    for node in found:
        if not node.rows:
            lines.append(
                f"{paint(f'node {node.node}', 'bold')}: every reservation has its pod, every pod its own"
            )
            continue
        lines.append(f"{paint(f'node {node.node}', 'bold')}: {len(node.rows)} irregular")
        rows = [
            (
                Cell(row.kind, "red" if row.kind in SERIOUS else "yellow"),
                row.address or "-",
                row.network,
                row.container_id[:_SHORT] or "-",
                row.why,
            )
            for row in node.rows
        ]
        lines += table(("KIND", "ADDRESS", "NETWORK", "CONTAINER", "WHY"), rows, "  ")
    show([*lines, *ask.complaints(silent)])
    return 0 if clean else 1


def _show(args: argparse.Namespace) -> int:
    found, silent = ask.each(args, lambda agent: ask.decoded(agent.fetch("/ipam"), IpamStatus))
    if args.word:
        found = [
            msgspec.structs.replace(node, rows=tuple(row for row in node.rows if _has(row, args.word)))
            for node in found
        ]
    if args.json:
        ask.as_json(found, silent)
        return 1 if silent else 0
    rows = [(node.node, *_cells(row)) for node in found for row in node.rows]
    lines = table(("NODE", "ADDRESS", "NETWORK", "POD", "CONTAINER", "IF", "STATE"), rows) if rows else []
    show([*(lines or ["no reservations"]), *ask.complaints(silent)])
    return 1 if silent else 0


def _cells(row: Reserved) -> Sequence[str]:
    style = {"ready": "green", "unrecorded": "red", "torn": "red"}.get(row.state, "yellow")
    return (
        row.address,
        row.network,
        _pod(row),
        row.container_id[:_SHORT] or "-",
        row.ifname or "-",
        Cell(row.state, style),
    )


def _pod(row: Reserved) -> str:
    return f"{row.pod_namespace}/{row.pod_name}" if row.pod_name else "-"


def _has(row: Reserved, word: str) -> bool:
    return word in {row.address, row.network, row.pod_name, _pod(row)} or row.container_id.startswith(word)


def _release(args: argparse.Namespace) -> int:
    """The agent that has the address; of a lab's agents all are asked who that is."""
    asked = {"address": args.address, "network": args.network}
    if args.force:
        asked["force"] = "1"
    target = f"/ipam/release?{urlencode(asked)}"
    agents = cli_agent.agents(args)
    refusals: list[AgentError] = []
    for agent in agents:
        try:
            done = ask.decoded(agent.fetch(target), Released)
        except AgentError as error:
            refusals.append(error)
            continue
        if args.json:
            ask.as_json([done], [])
        else:
            print(f"node {done.node}: {done.address} of network {done.network} is free: {done.how}")
        return 0
    # One that has the address says more than those that do not.
    telling = [item for item in refusals if item.status == 400 and "is not reserved" not in item.reason]
    first = (telling or refusals)[0]
    raise AgentError(first.reason, first.status)
