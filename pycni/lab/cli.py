"""``pycnictl lab ...``: its arguments. What the commands do is in ``commands``, imported once one is chosen.

With ``--json`` standard output is one JSON object and progress goes nowhere; otherwise it is for people. Exit codes:
0 done (and, for ``matrix`` and ``demo``, all well), 1 failed, 2 a wrong command; ``exec`` gives the command's own.
"""

from __future__ import annotations

import argparse
import importlib
import json
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands."""
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)
    up = _command(commands, "up", "up", "make a lab and leave it running")
    _spec_arguments(up)
    _command(commands, "down", "down", "remove a lab, whatever state it is in")
    _command(commands, "status", "status", "nodes, their agents and subnets, pods")
    _pod_commands(commands)
    _object_commands(commands)
    _try_commands(commands)
    _agent_commands(commands)
    demo = _command(
        commands, "demo", "demo", "up, matrix, kill an agent under traffic, down: telling what happens"
    )
    _spec_arguments(demo)


def _pod_commands(commands: Any) -> None:
    """Pods by hand."""
    pod = commands.add_parser("pod", help="add or remove a pod").add_subparsers(
        dest="pod_command", metavar="COMMAND", required=True
    )
    add = _command(pod, "add", "pod_add", "make a pod, by CNI ADD unless --network says otherwise")
    add.add_argument("pod", nargs="?", help="name of the pod (default: the next free pod<n>)")
    add.add_argument("--node", help="node it is made on (default: the one with the fewest pods)")
    add.add_argument(
        "--network",
        default="cluster",
        metavar="MODE",
        help="cluster (default), or as on a single host: bridge, host, container:POD, none (docs/single-host.md)",
    )
    add.add_argument(
        "--capabilities", type=_json_object, metavar="JSON", help="capability arguments for the plugins"
    )
    add.add_argument("--labels", default="", metavar="KEY=VALUE,...", help="its labels (default: pod=NAME)")
    add.add_argument(
        "--ports", default="", metavar="PORTS", help="what it listens on: [NAME:]NUMBER[/PROTOCOL],..."
    )
    remove = _command(pod, "rm", "pod_rm", "remove a pod by CNI DEL")
    remove.add_argument("pod", help="name of the pod")
    remove.add_argument("--force", action="store_true", help="remove it also when DEL fails")
    ready = _command(pod, "ready", "apply_commands:pod_ready", "make a pod of a service ready or not")
    ready.add_argument("pod", help="name of the pod")
    ready.add_argument("ready", choices=("true", "false"))
    ready.add_argument(
        "--listen", choices=("on", "off"), help="whether its servers listen (default: as before)"
    )


def _object_commands(commands: Any) -> None:
    """What is done with Kubernetes objects."""
    apply = _command(
        commands, "apply", "apply_commands:apply", "make what manifests say: pods, services, workloads"
    )
    apply.add_argument(
        "-f",
        "--file",
        dest="files",
        action="append",
        required=True,
        metavar="FILE",
        help="- for standard input; may be repeated",
    )
    delete = _command(
        commands, "delete", "apply_commands:delete", "delete objects; pods get their grace period"
    )
    delete.add_argument(
        "-f",
        "--file",
        dest="files",
        action="append",
        default=[],
        metavar="FILE",
        help="delete what a manifest names",
    )
    delete.add_argument("kind", nargs="?", metavar="KIND", help="pod, service, deployment ...")
    delete.add_argument("names", nargs="*", metavar="NAME")
    delete.add_argument(
        "-n", "--namespace", default="default", help="Kubernetes namespace (default: default)"
    )
    delete.add_argument("--grace", type=float, metavar="S", help="grace period in place of the pods' own")
    label = _command(
        commands, "label", "apply_commands:label", "change labels of objects: KEY=VALUE sets, KEY- removes"
    )
    label.add_argument("kind", metavar="KIND", help="pod, namespace, node ...")
    label.add_argument("object", metavar="OBJECT", help="its name")
    label.add_argument("changes", nargs="+", metavar="KEY=VALUE|KEY-")
    label.add_argument("-n", "--namespace", default="default", help="Kubernetes namespace (default: default)")
    get = _command(commands, "get", "apply_commands:get", "list objects")
    get.add_argument("kind", nargs="?", default="", metavar="KIND", help="pod, service ... (default: all)")
    get.add_argument("-n", "--namespace", default="", help="Kubernetes namespace (default: all)")
    ask = _command(commands, "ask", "apply_commands:ask", "ask a service and count who answers")
    ask.add_argument("source", metavar="NODE|POD|fabric|client", help="who asks")
    ask.add_argument("target", metavar="HOST:PORT", help="name (from pods) or address of a service")
    ask.add_argument("--protocol", choices=("tcp", "udp", "sctp"), default="tcp")
    ask.add_argument("--count", type=int, default=1, metavar="N", help="how many times (default: 1)")
    ask.add_argument(
        "--timeout", type=float, default=2.0, metavar="S", help="patience each time (default: 2)"
    )


def _try_commands(commands: Any) -> None:
    """What is run in a lab: commands, and who reaches whom."""
    execute = _command(
        commands, "exec", "execute", "run a command in a node, a pod, the fabric or the client"
    )
    execute.usage = "%(prog)s [--name NAME] [--json] NODE|POD|fabric|client -- CMD ..."
    execute.add_argument("target", metavar="NODE|POD|fabric|client")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="-- CMD ...")
    execute.set_defaults(takes_rest=True)
    matrix = _command(commands, "matrix", "matrix", "try who reaches whom with real packets")
    matrix.add_argument(
        "--timeout", type=float, default=2.0, metavar="S", help="patience per check (default: 2)"
    )
    matrix.add_argument(
        "--policy", action="store_true", help="what policies do between pods, beside what they should"
    )
    matrix.add_argument(
        "--port",
        default="",
        metavar="PORT",
        help="with --policy: NUMBER[/PROTOCOL] (default: all declared ones)",
    )


def _agent_commands(commands: Any) -> None:
    """Agents: their lives, their backend, who watches them."""
    agent = _command(commands, "agent", "agent", "stop, kill or start the agent of a node")
    agent.add_argument("action", choices=("stop", "kill", "start", "restart"))
    agent.add_argument("node", help="name of the node")
    backend = _command(
        commands, "backend", "change:backend", "change the backend node by node, under traffic"
    )
    backend.add_argument("type", metavar="TYPE", help="the new backend")
    backend.add_argument("--node", help="only this node (default: all, one after the other)")
    backend.add_argument(
        "--backend-conf",
        type=_json_object,
        default={},
        metavar="JSON",
        help="keys of the net-conf's Backend object besides Type",
    )
    scrape = _command(
        commands,
        "scrape-config",
        "scrape:scrape_config",
        "a Prometheus configuration that scrapes its agents",
    )
    scrape.add_argument(
        "--rules", action="append", default=[], metavar="FILE", help="a file of rules; may be repeated"
    )
    scrape.add_argument("--interval", default="15s", help="between two scrapes (default: 15s)")


def _command(commands: Any, name: str, function: str, summary: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=f"{summary}.")
    parser.add_argument("--name", default="default", help="name of the lab (default: default)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=lambda args: _run(function, args))
    return parser


def _run(function: str, args: argparse.Namespace) -> int:
    """Call a function of ``commands`` or of the module named, whose imports --help and mistyped commands do not pay."""
    if function == "execute":
        _split_command(args)
    module, _colon, name = function.rpartition(":")
    return int(getattr(importlib.import_module(f"pycni.lab.{module or 'commands'}"), name)(args))


def _split_command(args: argparse.Namespace) -> None:
    """Options between the target and ``--`` are ours; without ``--`` everything after the target is the command."""
    if not args.rest:
        return
    ours = argparse.ArgumentParser(prog="pycnictl lab exec", add_help=False)
    ours.add_argument("--name", default=args.name)
    ours.add_argument("--json", action="store_true", default=args.json)
    ours.parse_args(args.argv, namespace=args)
    args.argv = args.rest


def _spec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=int, default=3, metavar="N", help="how many nodes (default: 3)")
    parser.add_argument(
        "--backend",
        choices=("vxlan", "host-gw", "wireguard", "udp", "ipip", "extension", "bgp", "alloc"),
        default="vxlan",
        help="how pods' packets get from node to node (default: vxlan; ipip needs --driver uml on most machines)",
    )
    parser.add_argument(
        "--follow-backend",
        action="store_true",
        help="agents take another backend at once, not when they are restarted (lab backend)",
    )
    parser.add_argument(
        "--backend-conf",
        type=_json_object,
        default={},
        metavar="JSON",
        help="further keys of Backend in the net-conf (docs/backends.md)",
    )
    parser.add_argument(
        "--attach",
        choices=("bridge", "ptp", "macvlan", "ipvlan"),
        default="bridge",
        help="how pods are joined to their nodes (default: bridge)",
    )
    parser.add_argument("--family", choices=("ipv4", "ipv6", "dual"), default="ipv4")
    parser.add_argument("--pods", type=int, default=2, metavar="N", help="pods per node (default: 2)")
    parser.add_argument(
        "--mtu", type=int, default=1500, metavar="BYTES", help="MTU of the underlay (default: 1500)"
    )
    parser.add_argument(
        "--driver",
        choices=("netns", "uml"),
        default="netns",
        help="nodes are network namespaces (default) or User-Mode Linux guests with a kernel of their own",
    )
    _component_arguments(parser)


def _component_arguments(parser: argparse.ArgumentParser) -> None:
    """What nodes do beside networks."""
    parser.add_argument(
        "--proxy",
        choices=("nftables", "ipvs", "ebpf", "auto", "none"),
        help="data plane of services; none: no services, no DNS, no outside client "
        "(default: nftables; with --driver uml: ipvs)",
    )
    parser.add_argument(
        "--policy",
        nargs="?",
        choices=("nftables", "ebpf", "none"),
        const="nftables",
        help="data plane of network policies (default: none, for demo nftables; --policy alone: nftables)",
    )
    parser.add_argument(
        "--bgp",
        nargs="?",
        choices=("exabgp", "bird", "none"),
        const="exabgp",
        help="nodes announce pods and services by BGP to each other and to a router, where the client is "
        "(default: none; --bgp alone and with backend bgp: exabgp)",
    )
    parser.add_argument(
        "--chain",
        default="",
        metavar="TYPES",
        help="reference plugins after ours in the conflist, by commas: portmap,bandwidth,tuning,firewall",
    )
    parser.add_argument(
        "--trace-tls",
        action="store_true",
        help="agents answer traces by mutual TLS, with certificates made for the lab (trace --by-agents)",
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value
