"""By whose eyes a trace is made: a lab's, directly or through its agents, or those of the cluster this node is in.

``--name LAB`` is a lab; with ``--by-agents`` its nodes are asked as a cluster's are. Without a name the agent of this
node is asked for the others; where no agent runs and there is a lab called ``default``, it is that.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pycni.cli_agent import SOCKET
from pycni.errors import PycniError

if TYPE_CHECKING:
    from pycni.tracing.eyes import Eyes

DEFAULT = "default"
_LABS = "/run/pycni-lab"


class NobodyError(PycniError):
    """There is nobody to trace by."""

    usage = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which cluster."""
    parser.add_argument(
        "--name", default="", metavar="LAB", help="a lab (default: the cluster of this node's agent)"
    )
    parser.add_argument(
        "--by-agents",
        action="store_true",
        help="ask the lab's agents, as in a cluster, and look at nothing here",
    )
    parser.add_argument("--socket", default=SOCKET, help=f"the agent's control socket (default: {SOCKET})")


def lab_name(args: argparse.Namespace) -> str:
    """The lab that is meant; "": the cluster of this node's agent. Raises NobodyError."""
    name: str = args.name
    if not name and not os.path.exists(args.socket):
        if not os.path.isdir(f"{_LABS}/{DEFAULT}"):
            raise NobodyError(
                f"no agent has a socket at {args.socket}, and there is no lab {DEFAULT!r}: name a lab with --name, "
                "make one with `pycnictl lab up`, or trace on a node of the cluster"
            )
        name = DEFAULT
    if not name and args.by_agents:
        raise NobodyError("--by-agents goes with --name LAB: without a lab agents are asked anyway")
    return name


def eyes(args: argparse.Namespace, words: Sequence[str]) -> Eyes:
    """The eyes. ``words``: the ends of the trace, as typed. Raises LabError, AskError, NobodyError."""
    name = lab_name(args)
    if not name:
        from pycni.tracing.ask import Door, unix  # noqa: PLC0415
        from pycni.tracing.cluster import of_agent  # noqa: PLC0415

        return of_agent(Door("this node's agent", unix(args.socket)), words)
    from pycni.lab.run import Lab  # noqa: PLC0415 - labs, etcd's codecs: not for a cluster
    from pycni.lab.tracing import LabEyes, by_agents  # noqa: PLC0415

    lab = Lab.open(name)
    return by_agents(lab, words) if args.by_agents else LabEyes(lab)
