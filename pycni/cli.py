"""``pycnictl``: what people and CI type.

A command is a row of ``COMMANDS``: its module is only imported when it is asked for, so that each command starts as
fast as its own imports allow. A command's module has ``SUMMARY`` (also given here, for the help text) and
``configure(parser)``, which sets ``run`` to a function from the parsed arguments to an exit code.

Exit codes: 0 done, 1 failed, 2 a wrong command line, 130 interrupted. Errors are one line on standard error.
"""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # typing's own takes a tenth of what --help may take to import
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    class Command(Protocol):
        """A module of ``COMMANDS``."""

        def configure(self, parser: argparse.ArgumentParser) -> None:
            """Add arguments and subcommands."""


COMMANDS = {
    "status": ("pycni.cli_status", "how this node is: parts, lease, peers, last errors, repairs"),
    "lab": ("pycni.lab.cli", "pod networks of namespaces on this machine: make, look at, try, remove"),
    "services": ("pycni_proxy.cli_services", "services of this node: addresses, endpoints, connections"),
    "policy": (
        "pycni.cli_policy",
        "network policies: what holds for a pod, what becomes of a connection and why",
    ),
    "trace": (
        "pycni.cli_trace",
        "a packet's way, hop by hop: what should happen, what does, and where they part",
    ),
    "ui": ("pycni.cli_ui", "the topology in a browser: traffic, drops and traces, live"),
    "check": ("pycni.cli_check", "does the network work? own pods, every kind of way tried, likely causes"),
    "doctor": (
        "pycni.cli_doctor",
        "what is wrong with a node or a lab's nodes: kernel, switches, MTU, offloads, conflicts; --fix",
    ),
    "top": ("pycni.cli_top", "live traffic: rates, connections, drops by pod, service, policy and node"),
    "flows": (
        "pycni.cli_flows",
        "connections with names, translation and verdict: the present ones, or live with -f",
    ),
    "drops": ("pycni.cli_drops", "packets that network policies deny: counters, or live"),
    "bgp": (
        "pycni_bgp.cli_bgp",
        "BGP of this node: sessions, what is announced to whom and why not, learned routes",
    ),
    "wireguard": ("pycni.cli_wireguard", "this node's WireGuard key: show it, have it changed"),
    "ipam": ("pycni.cli_ipam", "addresses of pods: what is irregular, who has which, taking one back"),
    "dump": ("pycni.cli_dump", "wanted and actual state of this node's kernel, and where they differ"),
    "sysdump": ("pycni.cli_sysdump", "a bundle for a bug report: settings, states, logs, kernel; no secrets"),
    "completion": (
        "pycni.cli_completion",
        "a script that completes commands and options in bash, zsh or fish",
    ),
    "cleanup": ("pycni_proxy.cli_cleanup", "take everything of pycni out of this node's kernel"),
}


HELP_WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if words[:1] in (["-h"], ["--help"]):
            print(help_text(), end="")
            return 0
        args = parse(words)
        return int(args.run(args))
    except KeyboardInterrupt:
        print("pycnictl: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader has gone (| head): nothing more to say, also not while Python closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as exc:
        from pycni.errors import PycniError  # noqa: PLC0415  # only when something went wrong

        if not isinstance(exc, PycniError | OSError) or os.environ.get("PYCNI_TRACEBACK"):
            raise
        print(f"pycnictl: {exc}", file=sys.stderr)
        return 2 if getattr(exc, "usage", False) else 1


def help_text() -> str:
    """What ``--help`` prints: argparse would take longer to say it than Python to start."""
    rows = "".join(line for name, (_, summary) in COMMANDS.items() for line in _row(name, summary))
    return (
        "usage: pycnictl [-h] [--version] COMMAND ...\n\n"
        "Operate and try pycni pod networks.\n\n"
        f"commands:\n{rows}\n"
        "options:\n"
        "  -h, --help  show this help message and exit\n"
        "  --version   show program's version number and exit\n\n"
        "pycnictl COMMAND --help has the arguments of a command.\n"
    )


def _row(name: str, summary: str) -> Iterable[str]:
    """A command and what it does, in lines that fit on a terminal."""
    line = f"  {name:<11}"
    for word in summary.split(" "):
        if len(line) + len(word) >= HELP_WIDTH:
            yield f"{line}\n"
            line = " " * 13
        line += f" {word}"
    yield f"{line}\n"


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The parsed command line. Raises SystemExit for --help and for what makes no sense (exit code 2)."""
    import argparse  # noqa: PLC0415 - see help_text
    import importlib  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="pycnictl", description="Operate and try pycni pod networks.")
    parser.add_argument("--version", action="version", version=f"pycnictl {_version()}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    wanted = next((word for word in words if not word.startswith("-")), "")
    # All of them only for a word that is none.
    for name in (wanted,) if wanted in COMMANDS else COMMANDS:
        module, summary = COMMANDS[name]
        command = commands.add_parser(name, help=summary, description=f"{summary}.")
        if name == wanted:
            made: Command = importlib.import_module(module)
            made.configure(command)
    # What follows "--" belongs to the program a command runs, to the letter: argparse would look into it.
    cut = words.index("--") if "--" in words else len(words)
    args = parser.parse_args(words[:cut])
    args.rest = list(words[cut + 1 :])
    if args.rest and not getattr(args, "takes_rest", False):
        parser.error(f"unrecognized arguments: -- {' '.join(args.rest)}")
    return args


def _version() -> str:
    from pycni import __version__  # noqa: PLC0415

    return __version__


def _terminated(_number: int, _frame: object) -> None:
    """SIGTERM ends a command as Ctrl-C does: with its clean-up."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
