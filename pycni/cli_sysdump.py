"""``pycnictl sysdump``: all a bug report needs of this node, or of a lab's nodes, in one .tar.gz, without secrets.

Settings, states, the agent's log, what it keeps on disk, versions, the kernel's tables, switches and counters, the
pods' network namespaces (docs/status.md lists it). Passwords, pre-shared keys and private keys are taken out, wherever
they stand; files that hold them are not read into it. It is written readable by its owner only: look through it before
it is handed on, for addresses and names of pods are in it.

Exit codes: 0 written, with what could be had (each node's ``not-collected.txt`` says what could not), 1 not written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping

from pycni import cli_agent
from pycni import cli_sysdump_collect as collecting
from pycni.cli_agent import Agent, AgentError
from pycni.cli_status_text import paint

NODE_TIMEOUT_S = 300.0
AT_ONCE = 4


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "-o",
        "--output",
        default="",
        metavar="FILE",
        help="where to (default: pycni-sysdump-<name>-<time>.tar.gz)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object about the bundle")
    cli_agent.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Collect and write; returns the exit code."""
    agents = cli_agent.agents(args)
    if not args.name and not args.node:
        found: dict[str, Mapping[str, str]] = {os.uname().nodename: collecting.collect(args.socket)}
        failed: dict[str, str] = {}
    else:
        found, failed = _of_lab(args, agents)
    name = args.name or (args.node and "default") or os.uname().nodename
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = f"pycni-sysdump-{name}-{stamp}"
    path = args.output or f"{folder}.tar.gz"
    _write(path, folder, found, failed)
    if args.json:
        body = {
            "file": os.path.abspath(path),
            "bytes": os.path.getsize(path),
            "nodes": {node: sorted(texts) for node, texts in found.items()},
            "failed": failed,
        }
        sys.stdout.write(json.dumps(body, indent=2) + "\n")
    else:
        files = sum(len(texts) for texts in found.values())
        print(
            f"{path}: {os.path.getsize(path) / 2**10:.0f} KiB, {files} files of {', '.join(found) or 'no node'}"
        )
        for node, why in failed.items():
            print(paint(f"node {node}: {why}", "red"))
    return 1 if failed else 0


def _of_lab(
    args: argparse.Namespace, agents: list[Agent]
) -> tuple[dict[str, Mapping[str, str]], dict[str, str]]:
    """By node; and why there is nothing of some."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - most calls are for no lab

    from pycni.lab.run import Lab  # noqa: PLC0415

    lab = Lab.open(args.name or "default")
    found: dict[str, Mapping[str, str]] = {}
    failed: dict[str, str] = {}

    def one(agent: Agent) -> None:
        try:
            found[agent.node] = _over_there(lab.exec_argv(agent.node, []), agent)
        except AgentError as exc:
            failed[agent.node] = str(exc)

    with ThreadPoolExecutor(min(len(agents), AT_ONCE)) as pool:
        list(pool.map(one, agents))
    return dict(sorted(found.items())), failed


def _over_there(prefix: list[str], agent: Agent) -> dict[str, str]:
    """What is collected in a node. Raises AgentError."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    words = [
        *(*prefix, "env", f"PYTHONPATH={root}"),
        *(sys.executable, "-P", "-m", "pycni.cli_sysdump_collect", agent.path),
    ]
    try:
        done = subprocess.run(
            words, capture_output=True, check=False, timeout=NODE_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as exc:
        raise AgentError(f"nothing was collected within {exc.timeout:g} s") from exc
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise AgentError(f"collecting failed: {last}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout), mode="r:") as archive:
        return {
            entry.name: file.read().decode(errors="replace")
            for entry in archive
            if (file := archive.extractfile(entry)) is not None
        }


def _write(path: str, folder: str, found: Mapping[str, Mapping[str, str]], failed: Mapping[str, str]) -> None:
    """The bundle, readable by its owner alone; never over another file's content half-way."""
    new = f"{path}.part"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for node, texts in found.items():
                collecting.write(archive, texts, f"{folder}/{node}")
            if failed:
                text = "".join(f"{node}: {why}\n" for node, why in failed.items())
                collecting.write(archive, {"not-collected.txt": text}, folder)
        os.replace(new, path)
    except BaseException:
        os.unlink(new)
        raise
