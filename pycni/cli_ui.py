"""``pycnictl ui``: the topology in a browser, live: traffic and drops on the edges, traces along their paths.

It looks and changes nothing but for the one probe a trace sends. Loopback by default; whoever has the printed URL with
its token sees everything. It runs until Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys

from pycni import cli_trace_eyes


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    cli_trace_eyes.add_arguments(parser)
    parser.add_argument(
        "--listen",
        default="127.0.0.1",
        metavar="ADDRESS[:PORT]",
        help="where browsers reach it (default: 127.0.0.1, a free port)",
    )
    parser.set_defaults(run=lambda args: run(args, parser))


def run(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Serve until interrupted; returns the exit code."""
    from ipaddress import ip_address  # noqa: PLC0415 - --help does without all of this

    from pycni.trace.question import QuestionError, split  # noqa: PLC0415
    from pycni.ui.server import UiServer  # noqa: PLC0415
    from pycni.ui.source import source  # noqa: PLC0415
    from pycni.ui.watch import Watch  # noqa: PLC0415

    try:
        host, port = split(args.listen)
        address = ip_address(host)
    except (ValueError, QuestionError) as exc:
        parser.error(f"--listen {args.listen!r}: {exc}")
    found = source(args)
    try:
        with UiServer(Watch(found), str(address), port) as server:
            if not address.is_loopback:
                print(
                    "pycnictl: warning: others can reach this, and HTTP hides neither the token nor what is shown; "
                    "safer: --listen 127.0.0.1 and ssh -L",
                    file=sys.stderr,
                )
            print(f"{found.title}: {server.url}", flush=True)
            print("Ctrl-C ends it.", flush=True)
            try:
                server.serve_forever(poll_interval=0.2)
            finally:
                server.ended.set()
    except KeyboardInterrupt:
        return 0
    return 0
