"""``pycnictl trace``: a packet's whole way from a pod to another, a Service, a node: what should happen, and what does.

The packet is led through the states of all namespaces on its way, once as the agents want them and once as the kernels
have them. Where both part, the first such place is named with its cause. ``--json`` prints one object with ``ok``,
``hops`` and ``fault``.

Exit codes: 0 it arrives as predicted and its answer comes back, 1 it does not, 2 a wrong question.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycni.lab.trace_world import Gathered
    from pycni.trace.model import Trace
    from pycni.trace.question import Question


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
    parser.add_argument("--name", default="default", metavar="LAB", help="the lab (default: default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Trace and print; returns the exit code."""
    # Labs, etcd's codecs and compilers: --help does without.
    from pycni.lab.run import Lab  # noqa: PLC0415
    from pycni.lab.trace_world import gather  # noqa: PLC0415
    from pycni.trace.question import ask  # noqa: PLC0415
    from pycni.trace.report import as_json, as_text  # noqa: PLC0415

    started = time.perf_counter()
    known = gather(Lab.open(args.name))
    question = ask(known.world, known.objects, args.source, args.target, args.proto)
    trace = make(known, question, started)
    if args.json:
        print(json.dumps(as_json(trace), indent=2))
    else:
        print(as_text(trace, colour=sys.stdout.isatty()))
    return 0 if trace.ok else 1


def make(known: Gathered, question: Question, started: float) -> Trace:
    """The trace of a question; ``started``: when everything began (perf_counter)."""
    from pycni.trace.cluster import ClusterWays  # noqa: PLC0415
    from pycni.trace.model import Trace  # noqa: PLC0415
    from pycni.trace.verdict import Walks, judge  # noqa: PLC0415
    from pycni.trace.walk import answer, walk  # noqa: PLC0415

    ways = ClusterWays(known.objects, known.terms)
    begin = time.perf_counter()
    paths = []
    for world in (known.world.as_wanted, known.world):
        there = walk(world, ways, question.node, question.space, question.flow)
        paths += [there, answer(world, ways, there) if there.arrived else None]
    wanted, wanted_back, actual, actual_back = paths
    assert wanted is not None
    assert actual is not None
    predicted_ms = (time.perf_counter() - begin) * 1000
    fault, others = judge(known.world, Walks(wanted, wanted_back, actual, actual_back))
    return Trace(
        ok=fault is None,
        question=f"{question.words}: {question.flow.text()}",
        hops=actual.hops,
        back=actual_back.hops if actual_back is not None else (),
        fault=fault,
        suspicions=others,
        predicted_ms=predicted_ms,
        took_ms=(time.perf_counter() - started) * 1000,
    )
