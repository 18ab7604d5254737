"""``pycnictl check``: does the network do what it has to? Own pods, some two hundred tries, likely causes.

In a lab (``--name``) the lab makes the pods; in a cluster (``--kubeconfig``, ``--kube-api-url``, or inside of a pod)
the Kubernetes API does, in a namespace ``pycni-check`` that is deleted at the end, also after Ctrl-C.

Exit codes: 0 everything works, 1 something does not, 2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pycni.check.ground import Ground

IMAGE = "docker.io/library/python:3-alpine"
PODS = 10
"""Nodes that are tried where none are named."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    where = parser.add_argument_group("where")
    where.add_argument(
        "--name", default="", metavar="LAB", help="the lab (default: default, where there is one)"
    )
    where.add_argument("--kubeconfig", default="", metavar="FILE", help="the cluster this file leads to")
    where.add_argument("--kube-api-url", default="", metavar="URL", help="the cluster with this API server")
    where.add_argument(
        "--nodes", default="", metavar="NODE,...", help=f"only these (default: up to {PODS} ready ones)"
    )
    where.add_argument(
        "--image", default=IMAGE, help=f"of the pods in a cluster, with Python 3.10 (default: {IMAGE})"
    )
    where.add_argument(
        "--outside",
        default="",
        metavar="HOST:PORT",
        help="a host outside of the cluster to be reached by TCP",
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only tests with such a name; * is anything (may be repeated)",
    )
    parser.add_argument(
        "--restart-agent", action="store_true", help="at the end restart an agent under traffic (labs)"
    )
    parser.add_argument("--keep", action="store_true", help="leave the pods there")
    parser.add_argument("--list", action="store_true", help="only show which tests there are")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Check and print; returns the exit code."""
    # Labs, codecs and the API's client: --help does without.
    from pycni.check import course, plan, report  # noqa: PLC0415
    from pycni.check.show import shown  # noqa: PLC0415

    if args.list:
        found = plan.chosen(plan.tests(plan.sketch()), args.test)
        if args.json:
            print(json.dumps([{"name": test.name, "about": test.about} for test in found], indent=2))
        else:
            print(report.listing(found))
        return 0
    wanted = course.Wanted(args.test, keep=args.keep, restart=args.restart_agent)
    with shown(quiet=args.json) as show:
        outcome = course.check(_ground(args), wanted, show)
    if args.json:
        print(json.dumps(report.as_json(outcome), indent=2))
    else:
        print(report.as_text(outcome, colour=sys.stdout.isatty()))
    return 0 if outcome.ok else 1


def _ground(args: argparse.Namespace) -> Ground:
    nodes = [name for name in args.nodes.split(",") if name]
    from pycni.check.lab import LabGround  # noqa: PLC0415
    from pycni.lab.run import Lab  # noqa: PLC0415

    return LabGround(Lab.open(args.name or "default"), nodes=nodes)
