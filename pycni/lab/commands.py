"""What the lab commands do: arguments to calls of ``Lab``, results to text or JSON. Arguments are in ``cli``."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys

from pycni.lab import backends, cleanup, modes, policy_matrix
from pycni.lab.demo import demo as demonstrate
from pycni.lab.pod_words import manifest_of
from pycni.lab.report import Progress, grid, tree, verdict, writable
from pycni.lab.run import Lab
from pycni.lab.survey import pod_status
from pycni.lab.topology import DEFAULT_PROXY, LabError, LabSpec

DEMO_POLICY = {"netns": "nftables", "uml": "none"}
"""By driver."""
_SIGNALS = {"stop": signal.SIGTERM, "kill": signal.SIGKILL}


def up(args: argparse.Namespace) -> int:
    """Make a lab and say what to do with it."""
    lab = Lab.up(spec_of(args), Progress(quiet=args.json))
    status = lab.status()
    if args.json:
        return print_json(status)
    print(writable(tree(status), sys.stdout))
    plain = [pod["name"] for pod in status["pods"] if "." not in pod["name"]]
    pod = plain[0] if plain else status["nodes"][0]["name"]
    hints = {
        cleanup.command("matrix", args.name): "who reaches whom",
        f"{cleanup.command('exec', args.name)} {pod} -- ip address": "a command in a pod or a node",
        cleanup.command("pod add", args.name): "one more pod",
        cleanup.command("apply -f docs/examples/web.yaml", args.name): "pods behind a Service",
        cleanup.command("down", args.name): "remove it all",
    }
    width = max(map(len, hints))
    print("\nNext:\n" + "\n".join(f"  {command:<{width}}  {what}" for command, what in hints.items()))
    return 0


def down(args: argparse.Namespace) -> int:
    """Remove a lab."""
    wiped = cleanup.down(args.name)
    if args.json:
        return print_json({"name": args.name, "namespaces": wiped.namespaces, "processes": wiped.processes})
    if wiped.namespaces or wiped.processes:
        print(f"lab {args.name}: removed {wiped.namespaces} namespaces, ended {wiped.processes} processes")
    else:
        print(f"lab {args.name}: nothing there")
    return 0


def status(args: argparse.Namespace) -> int:
    """Show a lab."""
    status = Lab.open(args.name).status()
    if args.json:
        return print_json(status)
    print(writable(tree(status), sys.stdout))
    return 0


def pod_add(args: argparse.Namespace) -> int:
    """Make a pod."""
    lab = Lab.open(args.name)
    manifest = None
    if args.labels or args.ports:
        name = args.pod or _free_name(lab)
        manifest = manifest_of(name, args.labels, args.ports)
    else:
        name = args.pod
    pod = lab.add_pod(args.node, name, args.capabilities, manifest, args.network)
    if args.json:
        return print_json(pod_status(pod))
    took = f" (ADD took {pod.add_seconds * 1000:.0f} ms)" if pod.network in modes.BY_CNI else ""
    print(f"{pod.name} on {pod.node}: {' '.join(pod.ips) or 'loopback alone'}{took}")
    return 0


def _free_name(lab: Lab) -> str:
    taken = {pod.name for pod in lab.pods()}
    return next(name for number in itertools.count(1) if (name := f"pod{number}") not in taken)


def pod_rm(args: argparse.Namespace) -> int:
    """Remove a pod."""
    Lab.open(args.name).remove_pod(args.pod, force=args.force)
    if args.json:
        return print_json({"name": args.name, "removed": args.pod})
    print(f"{args.pod}: removed")
    return 0


def execute(args: argparse.Namespace) -> int:
    """Run a command; in the end as the command itself, so that terminal and exit code are its own."""
    words = args.argv
    if not words:
        raise LabError(f"no command for {args.target} given: lab exec {args.target} -- CMD ...", usage=True)
    lab = Lab.open(args.name)
    if args.json:
        done = lab.exec(args.target, words, check=False, timeout=3600)
        print_json({"exit": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
        return done.returncode
    argv = lab.exec_argv(args.target, words)
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606
    return 1  # not reached


def matrix(args: argparse.Namespace) -> int:
    """Try who reaches whom."""
    if args.policy:
        return _policy_matrix(args)
    matrix = Lab.open(args.name).matrix(args.timeout)
    if args.json:
        print_json(matrix.json())
    else:
        print(writable(f"{grid(matrix)}\n{verdict(matrix)}", sys.stdout))
    return 0 if matrix.ok else 1


def _policy_matrix(args: argparse.Namespace) -> int:
    """Try what policies do to every pair of pods; 0 when all is as the API text says."""
    only = policy_matrix.port_of(args.port) if args.port else None
    found = Lab.open(args.name).policy_matrix(only, args.timeout)
    if args.json:
        print_json(found.json())
    else:
        print(writable(f"{policy_matrix.grid(found)}\n{policy_matrix.summary(found)}", sys.stdout))
    return 0 if found.ok else 1


def agent(args: argparse.Namespace) -> int:
    """Stop, kill, start or restart a node's agent."""
    lab = Lab.open(args.name)
    if args.action in _SIGNALS:
        lab.signal_agent(args.node, _SIGNALS[args.action])
    elif args.action == "restart" and lab.agent(args.node) is not None:
        lab.signal_agent(args.node, signal.SIGTERM)
    if args.action in {"start", "restart"}:
        lab.start_agent(args.node)
    process = lab.agent(args.node)
    if args.json:
        return print_json({"node": args.node, "pid": process.pid if process else None})
    print(f"{args.node}: agent {f'pid {process.pid}' if process else 'not running'}")
    return 0


def demo(args: argparse.Namespace) -> int:
    """Tell and show."""
    ok = demonstrate(spec_of(args, DEMO_POLICY[args.driver]), Progress(quiet=args.json))
    if args.json:
        print_json({"name": args.name, "ok": ok})
    return 0 if ok else 1


def spec_of(args: argparse.Namespace, policy: str = "none") -> LabSpec:
    """What the flags of ``lab up`` ask for. ``policy``: where nothing is said of it."""
    return LabSpec(
        name=args.name,
        nodes=args.nodes,
        backend=args.backend,
        backend_conf=args.backend_conf,
        follow_backend=args.follow_backend,
        attach=args.attach,
        family=args.family,
        pods=args.pods,
        mtu=args.mtu,
        chain=tuple(item for item in args.chain.split(",") if item),
        driver=args.driver,
        proxy=args.proxy or DEFAULT_PROXY[args.driver],
        policy=args.policy or policy,
        bgp=args.bgp or backends.of(args.backend).engine,
        trace_tls=args.trace_tls,
    )


def print_json(value: object) -> int:
    """One JSON object on standard output."""
    json.dump(value, sys.stdout, indent=2)
    sys.stdout.write("\n")
    return 0
