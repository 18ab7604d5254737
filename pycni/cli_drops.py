"""``pycnictl drops``: what policies have denied (counters), and with ``-f`` what they deny now, packet by packet.

Live lines come from the agents' ``/drops`` (``policy/report``), of all nodes of a lab at once. A rule tells of ten
packets a second at most, so that a flood of denied packets does not become a flood of messages; counters count all.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import msgspec

from pycni import cli_agent
from pycni.cli_agent import Agent, AgentError

_END = object()
_NAMES = {"0": "ARP", "1": "ICMP", "58": "ICMPv6"}
"""Of protocols without ports, by number."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("-f", "--follow", action="store_true", help="show packets as they are denied")
    parser.add_argument("--pod", default="", help="with -f: only packets from or to this pod")
    parser.add_argument(
        "-c", "--count", type=int, default=0, metavar="N", help="with -f: end after N packets"
    )
    parser.add_argument("--json", action="store_true", help="print JSON; with -f one object a line")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=lambda args: run(args, parser))


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print counters, or follow until interrupted."""
    agents = cli_agent.agents(args)
    if args.follow:
        try:
            return _follow(args, agents)
        except KeyboardInterrupt:
            return 0
    if args.pod or args.count:
        parser.error(
            "--pod and --count are for following: add -f (what has been denied to a pod: pycnictl policy POD)"
        )
    from pycni import cli_policy  # noqa: PLC0415

    return cli_policy.denials(agents, as_json=args.json)


def _follow(args: argparse.Namespace, agents: Sequence[Agent]) -> int:
    target = f"/drops?{urlencode({'pod': args.pod})}" if args.pod else "/drops"
    colours = sys.stdout.isatty() and not args.json
    left = args.count
    for line in _together(agents, target):
        row: dict[str, Any] = msgspec.json.decode(line)
        if "error" in row:
            raise AgentError(f"{row.get('node', '')}: {row['error']}")
        if args.json:
            sys.stdout.write(line.decode().rstrip("\n") + "\n")
        elif "listening" in row:
            print(f"listening on {row['node']}", file=sys.stderr)
        else:
            print(text(row, colours=colours))
        sys.stdout.flush()
        if "policy" in row and left:
            left -= 1
            if not left:
                break
    return 0


def _together(agents: Sequence[Agent], target: str) -> Iterator[bytes]:
    """Lines of all agents as they come. Raises AgentError when one cannot be listened to."""
    if len(agents) == 1:
        yield from agents[0].lines(target)
        raise _ended(agents[0])
    lines: queue.Queue[Any] = queue.Queue(4096)

    def read(agent: Agent) -> None:
        try:
            for line in agent.lines(target):
                lines.put(line)
            lines.put(_ended(agent))
        except AgentError as exc:
            lines.put(exc)
        lines.put(_END)

    for agent in agents:
        threading.Thread(target=read, args=(agent,), daemon=True).start()
    alive = len(agents)
    while alive:
        item = lines.get()
        if item is _END:
            alive -= 1
        elif isinstance(item, AgentError):
            print(f"pycnictl: {item}", file=sys.stderr)
            if alive == 1:
                raise AgentError("no agent is left to listen to")
        else:
            yield item


def _ended(agent: Agent) -> AgentError:
    return AgentError(f"{agent.node or agent.path}: the agent has ended")


def text(row: Mapping[str, Any], *, colours: bool = False) -> str:
    """A line for people."""
    if "lost" in row:
        return _coloured(f"{row['node']}: {row['lost']} more were not told", 33, colours=colours)
    if "trouble" in row:
        return _coloured(f"{row['node']}: {row['trouble']}", 31, colours=colours)
    when = time.strftime("%H:%M:%S", time.localtime(row["time"])) + f".{int(row['time'] % 1 * 1000):03d}"
    ends = f"{_end(row, 'source', 'source_port')} -> {_end(row, 'destination', 'port')}"
    protocol = _NAMES.get(row["protocol"], row["protocol"])
    more = f" and {row['more']} more" if row["more"] else ""
    what = _coloured(f"{row['direction']:<7} {row['policy']}{more}", 31, colours=colours)
    return f"{when} {row['node']} {row['by']:<8} {protocol:<5} {ends}  {what}"


def _end(row: Mapping[str, Any], end: str, port: str) -> str:
    name, address = row[f"{end}_pod"], row[end]
    if row[port]:
        address = f"[{address}]:{row[port]}" if ":" in address else f"{address}:{row[port]}"
    return f"{name} ({address})" if name else address


def _coloured(line: str, number: int, *, colours: bool) -> str:
    return f"\033[{number}m{line}\033[0m" if colours else line
