"""``pycnictl trace``: a packet's whole way from a pod to another, a Service, a node: what should happen, and what does.

The packet is led through the states of all namespaces on its way, once as the agents want them and once as the kernels
have them; then a probe is sent and watched at every interface. Where these part, the first such place is named with
its cause. ``--json`` prints one object with ``ok``, ``hops`` and ``fault``.

Exit codes: 0 it arrives as predicted and its answer comes back, 1 it does not, 2 a wrong question.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

from pycni import cli_trace_eyes


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("source", metavar="SRC", help="a pod, a node or an address of one")
    parser.add_argument("target", metavar="DST[:PORT]", help="a pod, a node, a Service or an address")
    parser.add_argument(
        "--proto",
        default="",
        metavar="tcp|udp|icmp",
        help="default: tcp with a port or to a Service, else icmp",
    )
    parser.add_argument("--predict", action="store_true", help="send nothing: only say what should happen")
    parser.add_argument(
        "--pcap", default="", metavar="FILE", help="write the probe's frames to a pcapng file"
    )
    parser.add_argument(
        "--count", type=int, default=1, metavar="N", help="so many probes, or connections of live traffic"
    )
    parser.add_argument(
        "--live",
        metavar="FILTER",
        help="send nothing, follow live traffic: 'tcp port 80', 'icmp', 'udp and dst host ADDRESS', 'new'",
    )
    parser.add_argument(
        "--seconds", type=float, default=10.0, metavar="S", help="with --live: how long to wait (default: 10)"
    )
    cli_trace_eyes.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trace and print; returns the exit code."""
    # Labs, etcd's codecs and compilers: --help does without.
    from pycni.trace.report import as_json, as_text  # noqa: PLC0415
    from pycni.tracing import course  # noqa: PLC0415

    started = time.perf_counter()
    asked = course.Asked(
        args.source,
        args.target,
        args.proto,
        args.predict,
        args.pcap,
        times=args.count,
        live=args.live,
        seconds=args.seconds,
    )
    eyes = cli_trace_eyes.eyes(args, (args.source, args.target))
    trace = course.trace(eyes, asked, started)
    if args.json:
        print(json.dumps(as_json(trace), indent=2))
    else:
        print(as_text(trace, colour=sys.stdout.isatty()))
    return 0 if trace.ok else 1
