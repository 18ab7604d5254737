"""``pycnictl dump``: what is wanted of a node's kernel and what it has, and where they differ.

Fabric, pods, services, policies and BGP, each line in the notation of the tool that lists it (ip, bridge, nft, ipvsadm,
bpftool):

    dump [--diff]      the differences: ``-`` wanted and missing, ``+`` there and not wanted, ``!`` said otherwise
    dump --desired     what is wanted
    dump --actual      what the kernel has

``--part`` picks one kind. ``--json`` prints one object: ``same``, ``nodes`` (shape: ``agent.status_model.Dump``) and
``silent``. Exit codes: 0 as wanted everywhere, 1 something differs or cannot be had (with --desired or --actual only
the latter).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import msgspec

from pycni import cli_status_ask as ask
from pycni.agent.status_model import Dump, Section
from pycni.cli_agent import Agent, AgentError
from pycni.cli_status_text import paint, show

PARTS = ("fabric", "pods", "services", "policies", "bgp")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    side = parser.add_mutually_exclusive_group()
    for name, text in (
        ("desired", "what is wanted"),
        ("actual", "what the kernel has"),
        ("diff", "where they differ (the default)"),
    ):
        side.add_argument(f"--{name}", dest="side", action="store_const", const=name, help=text)
    parser.add_argument("--part", choices=PARTS, default="", help="only this kind of state")
    ask.add_arguments(parser)
    parser.set_defaults(run=run, side="diff")


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit code."""
    found, silent = ask.each(args, lambda agent: fetch(agent, args.part))
    same = all(section.same for node in found for section in node.sections)
    had = not silent and not any(node.troubles for node in found)
    if args.json:
        ask.as_json([_of_side(node, args.side) for node in found], silent, same=same and had)
    else:
        lines = [line for node in found for line in text(node, args.side)]
        show([*lines, *ask.complaints(silent)])
    return 0 if had and (same or args.side != "diff") else 1


def fetch(agent: Agent, part: str = "") -> Dump:
    """An agent's answer, its lines put together. Raises AgentError."""
    raw = agent.fetch(f"/dump?part={part}" if part else "/dump")
    pieces = [ask.decoded(line, Dump) for line in raw.splitlines()]
    if not pieces:
        raise AgentError("the agent's answer is empty")
    return Dump(
        node=pieces[0].node,
        sections=tuple(section for piece in pieces for section in piece.sections),
        troubles={name: why for piece in pieces for name, why in piece.troubles.items()},
    )


def _of_side(node: Dump, side: str) -> Dump:
    """Only what was asked for."""
    kept = {
        "desired": {"actual": (), "missing": (), "extra": ()},
        "actual": {"desired": (), "missing": (), "extra": ()},
        "diff": {"desired": (), "actual": ()},
    }[side]
    return msgspec.structs.replace(
        node, sections=tuple(msgspec.structs.replace(section, **kept) for section in node.sections)
    )


def text(node: Dump, side: str) -> Iterator[str]:
    """One node, for people."""
    for section in node.sections:
        yield from _section(node.node, section, side)
    for part, why in node.troubles.items():
        yield f"{_title(node.node, part, '')}: {paint(why, 'red')}"


def _title(node: str, part: str, name: str) -> str:
    return paint(f"# node {node} {part}{f' {name}' if name else ''}", "bold")


def _section(node: str, section: Section, side: str) -> Iterator[str]:
    title = _title(node, section.part, section.name)
    if side != "diff":
        lines: Sequence[str] = getattr(section, side)
        yield f"{title}: {len(lines)} lines"
        yield from lines
    elif section.same:
        yield f"{title}: {paint('as wanted', 'green')}, {len(section.desired)} lines"
    else:
        yield f"{title}: {paint('DIFFERS', 'red')}"
        yield from (paint(f"- {line}", "red") for line in section.missing)
        yield from (paint(f"+ {line}", "yellow") for line in section.extra)
    if side != "desired":
        yield from (paint(f"! {line}", "red") for line in section.notes)
