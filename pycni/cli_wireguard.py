"""``pycnictl wireguard``: a node's key in a network of type wireguard, and having it changed.

The agent is asked over its control socket, which root alone may use. ``--rotate`` waits until the new key is in force,
which needs etcd or the Kubernetes API: until the lease says the new key, the old one stays.
"""

from __future__ import annotations

import argparse
import sys
import time

import msgspec

from pycni import cli_agent
from pycni.agent.wireguard_rotate import KeyStatus
from pycni.cli_agent import Agent, AgentError
from pycni.wire import typed

POLL_S = 0.05


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--rotate", action="store_true", help="change the key, node by node")
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="how long to wait for a new key (default: 30)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per node")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Ask and print; returns the exit code."""
    for agent in cli_agent.agents(args):
        before = _ask(agent, "/wireguard")
        if not args.rotate:
            _show(before, "", as_json=args.json)
            continue
        started = time.monotonic()
        _ask(agent, "/wireguard/rotate")
        now = _wait(agent, before, started + args.timeout)
        words = f", before {before.key}, changed within {time.monotonic() - started:.2f} s"
        _show(now, words, as_json=args.json)
    return 0


def _ask(agent: Agent, target: str) -> KeyStatus:
    raw = agent.fetch(target)
    try:
        return typed.decode(raw, KeyStatus)
    except msgspec.DecodeError as exc:
        raise AgentError(f"the agent's answer cannot be read: {exc}") from exc


def _wait(agent: Agent, before: KeyStatus, deadline: float) -> KeyStatus:
    """The status once another key is in force. Raises AgentError."""
    while True:
        now = _ask(agent, "/wireguard")
        if now.key != before.key and not now.following:
            return now
        if time.monotonic() > deadline:
            waiting = f"{now.following} is to follow, the lease does not say it yet" if now.following else ""
            raise AgentError(
                f"node {now.node}: {now.key} is still in force: {waiting or 'the agent did nothing yet'}"
            )
        time.sleep(POLL_S)


def _show(status: KeyStatus, words: str, *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(status).decode() + "\n")
        return
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(status.made))
    following = f", {status.following} is to follow" if status.following else ""
    period = f", changed every {status.period_s / 3600:g} h" if status.period_s else ""
    print(f"node {status.node}: {status.key}, made {made}{period}{following}{words}")
