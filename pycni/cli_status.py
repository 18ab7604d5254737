"""``pycnictl status``: how this node is, or every node of a lab: parts, lease, peers, last errors, repairs.

Each agent is asked over its control socket and tells what it knows; nothing is measured for the question. Peers that
are as they should be are counted when there are many (``--all`` lists them). ``--json`` prints one object with
``ready``, ``nodes`` (shape: ``agent.status_model.Status``) and ``silent``.

Exit codes: 0 every agent asked is ready, 1 one is not or does not answer.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

from pycni import cli_status_ask as ask
from pycni.agent.status_model import Complaint, NetworkStatus, PeerStatus, RepairStatus, Status
from pycni.cli_status_text import Cell, paint, seconds, show, table

FEW = 20
"""So many peers are all listed."""
SHOWN = 5
"""So many errors and repairs are shown."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--all", action="store_true", help="every peer, error and repair the agent knows of")
    ask.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit code."""
    found, silent = ask.each(args, lambda agent: ask.decoded(agent.fetch("/status"), Status))
    ready = not silent and all(item.ready for item in found)
    if args.json:
        ask.as_json(found, silent, ready=ready)
    else:
        lines: list[str] = []
        for item in found:
            lines += [*text(item, everything=args.all), ""]
        show([*lines, *ask.complaints(silent)] if silent else lines[:-1])
    return 0 if ready else 1


def text(found: Status, *, everything: bool = False) -> list[str]:
    """One node, for people."""
    title = (
        f"{paint(f'node {found.node}', 'bold')}: "
        f"{paint('ready', 'green') if found.ready else paint('NOT READY', 'red')}, "
        f"pycni {found.version}, up {seconds(found.up_s)}, {found.memory_bytes / 2**20:.0f} MiB, "
        f"pid {found.pid}, kernel {found.kernel}"
    )
    lines = [
        title,
        *_network(found),
        f"  pods      {_pods(found)}",
        *table(
            ("PART", "STATE", "FOR", "REASON"),
            [
                (
                    part.name,
                    Cell("ok", "green") if part.ok else Cell("RED", "red"),
                    seconds(part.for_s),
                    Cell(part.reason, "" if part.ok else "red"),
                )
                for part in found.parts
            ],
            "  ",
        ),
    ]
    if found.network is not None:
        lines += _peers(found.network, everything=everything)
    lines += _errors(found.errors, everything=everything)
    lines += _repairs(found, everything=everything)
    return lines


def _pods(found: Status) -> str:
    others = [f"{count} {state}" for state, count in found.pods.items() if count and state != "ready"]
    return ", ".join([f"{found.pods.get('ready', 0)} attached", *others])


def _network(found: Status) -> Iterator[str]:
    net = found.network
    if net is None:
        yield f"  runs      {', '.join(found.components)}"
        return
    subnets = ", ".join(net.subnets) or "no subnet yet"
    within = f" of {', '.join(net.networks)}" if net.networks else ""
    yield (
        f"  network   {subnets}{within} by {net.backend or '?'}, pods' MTU {net.mtu or '?'}, "
        f"underlay {net.underlay or '?'} MTU {net.underlay_mtu or '?'}"
    )
    lease = net.lease
    if lease is None:
        words = "none"
    else:
        ends = (
            "a static reservation"
            if lease.expires_in_s is None
            else f"ends in {seconds(lease.expires_in_s)}"
            if lease.expires_in_s > 0
            else paint(f"ended {seconds(-lease.expires_in_s)} ago", "red")
        )
        known = "" if lease.confirmed else paint(", remembered from an earlier life", "yellow")
        words = f"{lease.key} at {', '.join(lease.public)}, {ends}{known}"
    yield f"  lease     {words}; {net.leases} in all"
    if net.waiting:
        yield "  " + paint(f"waiting   {net.waiting}", "red")


def _peers(net: NetworkStatus, *, everything: bool) -> list[str]:
    wrong = [peer for peer in net.peers if peer.refused or peer.reachable is False]
    answered = [peer.latency_ms for peer in net.peers if peer.latency_ms is not None]
    shown: Sequence[PeerStatus] = net.peers if everything or len(net.peers) <= FEW else wrong
    asked = sum(peer.asked_s is not None for peer in net.peers)
    words = [f"{len(net.peers)} peer{'s' * (len(net.peers) != 1)}"]
    if asked:
        words.append(f"{len(answered)} of {asked} probed reachable")
    if answered:
        words.append(f"{min(answered):.2f}-{max(answered):.2f} ms")
    unreachable = sum(peer.reachable is False for peer in net.peers)
    if unreachable:
        words.append(paint(f"{unreachable} unreachable", "red"))
    if not net.probed:
        words.append("not probed (vtep-probe-port 0)")
    elif net.peers and not asked:
        words.append("none probed")
    lines = [f"  peers     {', '.join(words)}"]
    if not shown:
        return lines
    rows = [
        (peer.subnet, peer.public, peer.backend, _state(peer), _latency(peer), _asked(peer)) for peer in shown
    ]
    return lines + table(("PEER", "UNDERLAY", "BACKEND", "STATE", "LATENCY", "ASKED"), rows, "  ")


def _state(peer: PeerStatus) -> Cell:
    if peer.refused:
        return Cell(f"skipped: {peer.refused}", "red")
    if peer.reachable:
        return Cell("reachable", "green")
    if peer.reachable is None:
        return Cell("not probed" if peer.asked_s is None else "never answered", "dim")
    last = f", answered {seconds(peer.answered_s)} ago" if peer.answered_s is not None else ""
    return Cell(f"UNREACHABLE{last}", "red")


def _latency(peer: PeerStatus) -> str:
    return f"{peer.latency_ms:.2f} ms" if peer.latency_ms is not None else "-"


def _asked(peer: PeerStatus) -> str:
    return f"{seconds(peer.asked_s)} ago" if peer.asked_s is not None else "-"


def _errors(errors: Sequence[Complaint], *, everything: bool) -> list[str]:
    if not errors:
        return ["  errors    none since the start"]
    shown = errors if everything else errors[:SHOWN]
    rows = [
        (
            _when(item.last),
            Cell(item.level, "red" if item.level != "warning" else "yellow"),
            item.area,
            f"{item.count}x" if item.count > 1 else "",
            item.text,
        )
        for item in shown
    ]
    return [
        f"  errors    the last {len(shown)} of {len(errors)} warnings and errors",
        *table(("WHEN", "LEVEL", "AREA", "", "WHAT"), rows, "  "),
    ]


def _repairs(found: Status, *, everything: bool) -> list[str]:
    if not found.repaired:
        return ["  drift     none found since the start"]
    counts = ", ".join(f"{count} of {part}" for part, count in found.repaired.items())
    shown: Sequence[RepairStatus] = found.repairs if everything else found.repairs[:SHOWN]
    rows = [(_when(item.at), item.part, str(item.entries), item.what) for item in shown]
    return [
        "  " + paint(f"drift     entries found changed and set right: {counts}", "yellow"),
        *table(("WHEN", "PART", "ENTRIES", "WHAT"), rows, "  "),
    ]


def _when(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))
