"""``pycnictl cleanup``: take everything of ours out of this node's kernel, with no agent running.

Services and network policies of every data plane go, whichever programmed them; with ``--all`` the pod network too:
routes, devices and nftables tables (kube-router's ``--cleanup-config``). Files stay: the records of pods and their
reserved addresses are needed by whatever manages the pods next. Kernel switches (sysctl) stay as they are, because
others may rely on them.
"""

from __future__ import annotations

import argparse
import sys

from pycni.cli_agent import SOCKET, AgentError
from pycni.errors import PycniError
from pycni.policy import cleanup
from pycni_proxy import planes
from pycni_proxy.cli_services import fetch


class RunningError(PycniError):
    """An agent would put everything back."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--all", action="store_true", help="the pod network too: routes, devices, tables")
    parser.add_argument("--force", action="store_true", help="also while an agent answers at the socket")
    parser.add_argument("--socket", default=SOCKET, help=f"the agent's control socket (default: {SOCKET})")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove; prints one line per thing that went. Returns 1 when something could not be removed."""
    if not args.force:
        _refuse_running(args.socket)
    gone, failed = planes.leftovers(())
    policies, refused = cleanup.leftovers()
    gone, failed = [*gone, *policies], [*failed, *refused]
    for line in gone:
        print(f"removed: {line}")
    if args.all:
        from pycni.kernel.remains import remove_network  # noqa: PLC0415 - nftables' library, only when asked for

        network = remove_network()
        gone += network.gone
        for line in network.gone:
            print(f"removed: {line}")
        if network.pods:
            print(
                f"pycnictl: interfaces of pods are left, {network.pods} of them: remove the pods",
                file=sys.stderr,
            )
    if not gone and not failed:
        print("nothing of pycni is here")
    for line in failed:
        print(f"pycnictl: {line}", file=sys.stderr)
    return 1 if failed else 0


def _refuse_running(socket: str) -> None:
    try:
        fetch(socket, "/readyz")
    except AgentError as exc:
        if not exc.status:
            return
    raise RunningError(
        f"an agent answers at {socket} and would put everything back: stop it first, or --force"
    )
