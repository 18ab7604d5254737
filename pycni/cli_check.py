"""``pycnictl check``: does the network do what it has to? Own pods, some two hundred tries, likely causes.

In a lab (``--name``) the lab makes the pods; in a cluster (``--kubeconfig``, ``--kube-api-url``, or inside of a pod)
the Kubernetes API does, in a namespace ``pycni-check`` that is deleted at the end, also after Ctrl-C.

Exit codes: 0 everything works, 1 something does not, 2 a wrong command line, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from contextlib import AbstractContextManager, closing, nullcontext
from typing import TYPE_CHECKING

from pycni.cli_agent import SOCKET
from pycni.errors import PycniError

if TYPE_CHECKING:
    from pycni.check.ground import Ground
    from pycni.check.model import Host
    from pycni.trace.model import Trace

IMAGE = "docker.io/library/python:3-alpine"
PODS = 10
"""Nodes that are tried where none are named."""


class CheckError(PycniError):
    """A wrong command line."""

    usage = True


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
        "--cluster-domain",
        default="cluster.local",
        metavar="DOMAIN",
        help="of the cluster's DNS (default: cluster.local)",
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
    with _ground(args) as ground, shown(quiet=args.json) as show:
        outcome = course.check(ground, wanted, show)
    if args.json:
        print(json.dumps(report.as_json(outcome), indent=2))
    else:
        print(report.as_text(outcome, colour=sys.stdout.isatty()))
    return 0 if outcome.ok else 1


def _ground(args: argparse.Namespace) -> AbstractContextManager[Ground]:
    """The lab that is named, the cluster that is; else the lab ``default``, else the cluster this is a pod of."""
    nodes = [name for name in args.nodes.split(",") if name]
    cluster = args.kubeconfig or args.kube_api_url
    if args.name and cluster:
        raise CheckError("--name is a lab, --kubeconfig and --kube-api-url are a cluster: say one of them")
    if args.name or not (cluster or os.environ.get("KUBERNETES_SERVICE_HOST")):
        from pycni.check.lab import LabGround  # noqa: PLC0415
        from pycni.lab.run import Lab  # noqa: PLC0415

        return nullcontext(LabGround(Lab.open(args.name or "default"), nodes=nodes))
    from pycni.check.kube import KubeGround  # noqa: PLC0415
    from pycni.sources.kube_config import find  # noqa: PLC0415

    outside, port = _outside(args.outside)
    ground = KubeGround(
        find(args.kubeconfig, args.kube_api_url),
        image=args.image,
        nodes=nodes,
        most=PODS,
        outside=outside,
        outside_port=port,
        domain=args.cluster_domain,
        tracer=_trace if os.path.exists(SOCKET) else None,
    )
    return closing(ground)


def _outside(text: str) -> tuple[Host | None, int]:
    """Raises CheckError for what is no ``HOST:PORT``, OSError for a host that is not resolved."""
    from pycni.check.model import OUTSIDE, Host  # noqa: PLC0415
    from pycni.model.family import Family  # noqa: PLC0415

    if not text:
        return None, 0
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise CheckError(f"--outside {text!r}: expected HOST:PORT")
    found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    reached = {Family(family): str(address[0]) for family, _, _, _, address in reversed(found)}
    return Host(name=host, kind=OUTSIDE, addresses=reached), int(port)


def _trace(source: str, target: str, protocol: str) -> Trace:
    """A trace by the agents, asked by the one of this node."""
    from pycni.tracing import course  # noqa: PLC0415
    from pycni.tracing.ask import Door, unix  # noqa: PLC0415
    from pycni.tracing.cluster import of_agent  # noqa: PLC0415

    eyes = of_agent(Door("this node's agent", unix(SOCKET)), (source, target))
    return course.trace(eyes, course.Asked(source, target, protocol), time.perf_counter())
