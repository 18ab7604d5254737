"""``pycnictl services``: what the services of a node are, as its agent programmed them and its kernel has them.

The agent is asked over its control socket, which root alone may use. With ``--node`` it is the agent of a lab's node.
A row per virtual address, its endpoints below; ``--json`` prints the agent's answer (shape: ``status.Status``), ``-w``
again and again, a fresh screen each time on a terminal and one JSON line each time with ``--json``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from urllib.parse import urlencode

import msgspec

from pycni import cli_agent
from pycni.cli_agent import SOCKET, AgentError
from pycni.wire import typed
from pycni_proxy.status import EndpointStatus, FrontendStatus, ServiceStatus, Status

WATCH_S = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "service", nargs="?", default="", metavar="NAME", help="one service: NAME or NAMESPACE/NAME"
    )
    parser.add_argument("-n", "--namespace", default="", help="services of one namespace only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-w", "--watch", action="store_true", help="print again every two seconds")
    parser.add_argument("--socket", default=SOCKET, help=f"the agent's control socket (default: {SOCKET})")
    parser.add_argument("--node", default="", help="ask the agent of this node of a lab")
    parser.add_argument("--name", default="default", help="name of the lab (default: default)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit code: 1 when a service that was named does not exist."""
    asked = {key: value for key, value in (("name", args.service), ("namespace", args.namespace)) if value}
    while True:
        raw = _ask(args, f"/services?{urlencode(asked)}")
        try:
            found = typed.decode(raw, Status)
        except msgspec.DecodeError as exc:
            raise AgentError(f"the agent's answer cannot be read: {exc}") from exc
        if args.watch and not args.json and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        if args.json:
            sys.stdout.write(raw.decode().rstrip("\n") + "\n")
        else:
            show(found)
        if not args.watch:
            return 1 if args.service and not found.services else 0
        sys.stdout.flush()
        time.sleep(WATCH_S)


def _ask(args: argparse.Namespace, target: str) -> bytes:
    if not args.node:
        return fetch(args.socket, target)
    from pycni.lab.run import Lab  # noqa: PLC0415 - most calls are for no lab

    return cli_agent.of_lab(Lab.open(args.name), args.node).fetch(target)


def fetch(path: str, target: str) -> bytes:
    """Body of the agent's answer. Raises AgentError."""
    return cli_agent.fetch(path, target, "agent with a service proxy")


def show(found: Status) -> None:
    """Print for people; colours on a terminal only (rich sees to that)."""
    from rich.console import Console  # noqa: PLC0415 - 80 ms that --json does not pay
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=True, width=None if terminal else 200)
    console.print(
        f"node {found.node}: {len(found.services)} services by {', '.join(found.data_planes) or 'nothing'}"
    )
    for style, lines in (
        ("red", [f"not as programmed: {found.trouble}"] if found.trouble else []),
        ("yellow", [f"note: {line}" for line in found.notes]),
        ("yellow", [f"also on this node: {line}" for line in found.others]),
    ):
        for line in lines:
            console.print(Text(line, style))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("SERVICE", "KIND", "ADDRESS", "DATA PLANE", "CONNS", "IN/OUT", "LATENCY"):
        table.add_column(name, no_wrap=True)
    for service in found.services:
        for row in _rows(service):
            table.add_row(*(Text(cell, style) for cell, style in row))
    if any(service.frontends for service in found.services):
        with console.capture() as drawn:
            console.print(table, soft_wrap=False)
        # Cells are filled up with blanks, which only a terminal has a use for.
        lines = drawn.get().splitlines()
        sys.stdout.write("\n".join(lines if terminal else [line.rstrip() for line in lines]) + "\n")
        sys.stdout.flush()
    for service in found.services:
        for problem in service.problems:
            console.print(Text.assemble((f"{service.namespace}/{service.name}: ", "bold"), (problem, "red")))


_Cells = list[tuple[str, str]]


def _rows(service: ServiceStatus) -> Iterator[_Cells]:
    latency = f"{service.latency_s * 1000:.1f} ms" if service.latency_s >= 0 else ""
    first = True
    for item in service.frontends:
        name = f"{service.namespace}/{service.name}" if first else ""
        if item.port_name:
            name = f"{name}:{item.port_name}" if name else f"  :{item.port_name}"
        yield [
            (name, "bold"),
            (item.kind + (" Local" if item.local_only else ""), ""),
            (_address(item), "cyan"),
            (_how(item), "" if item.data_plane else "red"),
            (_count(item.connections), ""),
            (_traffic(item), ""),
            (latency if first else "", ""),
        ]
        first = False
        if item.verdict:
            where = " from outside" if item.endpoints else ""
            yield [("", ""), ("", ""), (f"  {item.verdict}s new connections{where}", "yellow")]
        for end in item.endpoints:
            yield [("", ""), ("", ""), (f"  -> {_endpoint(end)}", "dim" if not end.weight else "")]


def _address(item: FrontendStatus) -> str:
    host = f"[{item.address}]" if ":" in item.address else item.address or "*"
    return f"{item.protocol} {host}:{item.port}"


def _how(item: FrontendStatus) -> str:
    parts = [item.data_plane or "not served", item.scheduler]
    if item.affinity_s:
        parts.append(f"affinity {item.affinity_s} s")
    return " ".join(filter(None, parts))


def _endpoint(end: EndpointStatus) -> str:
    host = f"[{end.address}]" if ":" in end.address else end.address
    parts = [f"{host}:{end.port}", f"weight {end.weight}" if end.weight else "draining"]
    if end.active >= 0:
        parts.append(f"{end.active} open")
    if end.local:
        parts.append("here")
    if end.inside_only:
        parts.append("not from outside")
    return "  ".join(parts)


def _count(value: int) -> str:
    return str(value) if value >= 0 else "-"


def _traffic(item: FrontendStatus) -> str:
    if max(item.bytes_in, item.bytes_out) < 0:
        return "-"
    return f"{_size(item.bytes_in)}/{_size(item.bytes_out)}"


def _size(count: int) -> str:
    if count < 0:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
