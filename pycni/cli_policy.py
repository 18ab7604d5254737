"""``pycnictl policy``: which policies there are, which hold for a pod, and what becomes of a connection and why.

Agents answer over their control sockets (``policy/report``); with ``--name`` those of a lab's nodes, whose answers are
put together: a pod's own node knows what holds for it, and of a connection egress is the source's node's to judge,
ingress the destination's. ``--json`` prints what the agents say.

Exit codes of ``explain``: 0 allowed, 1 denied, 2 nobody can tell, or a kernel does something else than it should.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec

from pycni import cli_agent
from pycni.cli_agent import Agent, AgentError
from pycni.policy.effective import Overview, PodRules
from pycni.policy.explain import Answer, put_together
from pycni.wire import typed

T = TypeVar("T")

_WHAT = re.compile(r"(?P<port>\d+)(?:/(?P<protocol>[A-Za-z0-9]+))?|(?P<bare>[A-Za-z][A-Za-z0-9]*)")
_ALLOWED, _DENIED, _UNSURE = 0, 1, 2


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.usage = (
        "pycnictl policy [-h] [--json] [--name LAB] [--node NODE] [--socket SOCKET]\n"
        "                       [POD | explain SOURCE DESTINATION PORT[/PROTOCOL]]"
    )
    parser.epilog = (
        "POD, SOURCE, DESTINATION: NAMESPACE/NAME or the name of a pod, an address, a node (node/NAME);\n"
        "DESTINATION also a Service or its address: its endpoints are judged, as policies see no Services.\n"
        "PORT/PROTOCOL: 80, 53/UDP, 7/SCTP, or icmp.\n\n"
        "explain ends with 0: allowed, 1: denied, 2: nobody can tell, or a kernel is not as it should be."
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="POD | explain SOURCE DESTINATION PORT[/PROTOCOL]",
        help="nothing: all policies; a pod: what holds for it; explain: what becomes of a connection, and why",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=lambda args: run(args, parser))
    _options_anywhere(parser)


def _options_anywhere(parser: argparse.ArgumentParser) -> None:
    """Let options stand between words too: by itself argparse takes only the first words of a list, up to an option."""
    strict = parser.parse_known_args

    def intermixed(args: Any = None, namespace: Any = None) -> Any:
        setattr(parser, "parse_known_args", strict)  # noqa: B010 - a method; what is called next calls it
        return parser.parse_known_intermixed_args(args, namespace)

    setattr(parser, "parse_known_args", intermixed)  # noqa: B010


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Ask and print; returns the exit code."""
    words: list[str] = args.words
    if words[:1] == ["explain"]:
        what = _WHAT.fullmatch(words[3]) if len(words) == 4 else None
        if what is None:
            parser.error(
                "explain wants SOURCE DESTINATION PORT[/PROTOCOL], as in: explain a/client b/web 80/TCP"
            )
        protocol = what["protocol"] or what["bare"] or "TCP"
        asked = {
            "source": words[1],
            "destination": words[2],
            "port": what["port"] or "",
            "protocol": protocol,
        }
        try:
            return _explain(args, asked)
        except AgentError as exc:
            print(f"pycnictl: {exc}", file=sys.stderr)
            return _UNSURE
    if len(words) > 1:
        parser.error(f"one pod at a time, or explain: {' '.join(words)}")
    return _pod(args, words[0]) if words else _list(args)


# --- lists -----------------------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    found, silent = _ask_all(cli_agent.agents(args), "/policies", Overview)
    if args.json:
        return _print_json({"nodes": found, "silent": silent})
    from pycni import cli_policy_show as show  # noqa: PLC0415 - rich costs 80 ms that --json does not pay

    show.overview(found, silent)
    return 0


def _pod(args: argparse.Namespace, pod: str) -> int:
    agents = cli_agent.agents(args)
    target = f"/policies?{urlencode({'pod': pod})}"
    found, silent = _ask_all(agents, target, PodRules, first=lambda item: item.node == item.runs_on)
    if not found:
        raise AgentError("; ".join(silent) or "nobody answers")
    best = next((item for item in found if item.node == item.runs_on), found[0])
    if args.json:
        return _print_json(best)
    from pycni import cli_policy_show as show  # noqa: PLC0415

    show.pod(best)
    return 0


def denials(agents: Sequence[Agent], *, as_json: bool) -> int:
    """``pycnictl drops`` without -f: what has been denied so far."""
    found, silent = _ask_all(agents, "/policies", Overview)
    if as_json:
        return _print_json({"nodes": found, "silent": silent})
    from pycni import cli_policy_show as show  # noqa: PLC0415

    show.denials(found, silent)
    return 0


# --- explain ---------------------------------------------------------------------------------------------------------


def _explain(args: argparse.Namespace, asked: dict[str, str]) -> int:
    agents = cli_agent.agents(args)
    found, silent = _ask_all(agents, f"/policies/explain?{urlencode(asked)}", Answer)
    if not found:
        raise AgentError("; ".join(silent) or "nobody answers")
    merged = put_together(found)
    notes = sorted({f"{item.node}: {text}" for item in found for text in (item.trouble, *item.notes) if text})
    if args.json:
        _print_json({"connections": merged, "notes": notes, "silent": silent})
    else:
        from pycni import cli_policy_show as show  # noqa: PLC0415

        show.explanations(merged, notes, silent)
    if any(item.differences for item in merged):
        return _UNSURE
    return _ALLOWED if all(item.connection.allowed for item in merged) else _DENIED


# --- asking ----------------------------------------------------------------------------------------------------------


def _ask_all(
    agents: Sequence[Agent], target: str, kind: type[T], *, first: Callable[[T], bool] = lambda _: False
) -> tuple[list[T], list[str]]:
    """Answers, and why there is none of whom.

    Raises AgentError when nobody answers, with the most telling reason. ``first``: one such answer is enough.
    """
    found: list[T] = []
    silent: list[AgentError] = []
    for agent in agents:
        try:
            answer = _decoded(agent.fetch(target), kind)
        except AgentError as exc:
            silent.append(exc)
            continue
        found.append(answer)
        if first(answer):
            return [answer], []
    if not found and silent:
        most = max(silent, key=lambda exc: (exc.status == 400, exc.status == 404, exc.status))
        # What is wrong with the question is nothing of the agent's.
        raise AgentError(most.reason, most.status) if most.status in {400, 404} else most
    return found, [str(exc) for exc in silent]


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return typed.decode(raw, kind)
    except msgspec.DecodeError as exc:
        raise AgentError(f"the agent's answer cannot be read: {exc}") from exc


def _print_json(value: object) -> int:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
    return 0
