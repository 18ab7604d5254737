"""The lab commands about Kubernetes objects: files and words to calls of ``Cluster``, results to text or JSON."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pycni.lab import apply_tables
from pycni.lab.apply import Cluster
from pycni.lab.ask_client import ask_from
from pycni.lab.commands import print_json
from pycni.lab.objects import Key, key_of
from pycni.lab.pod_words import label_changes
from pycni.lab.report import writable
from pycni.lab.run import Lab
from pycni.lab.topology import LabError
from pycni.model.kube import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.wire.kube import CLUSTER_WIDE
from pycni.wire.manifest import documents

ALIASES = {
    POD: ("pod", "pods", "po"),
    SERVICE: ("service", "services", "svc"),
    ENDPOINT_SLICE: ("endpointslice", "endpointslices", "eps"),
    NAMESPACE: ("namespace", "namespaces", "ns"),
    NODE: ("node", "nodes", "no"),
    NETWORK_POLICY: ("networkpolicy", "networkpolicies", "netpol"),
    CLUSTER_NETWORK_POLICY: ("clusternetworkpolicy", "clusternetworkpolicies", "cnp"),
    "Deployment": ("deployment", "deployments", "deploy"),
    "ReplicaSet": ("replicaset", "replicasets", "rs"),
}


def apply(args: argparse.Namespace) -> int:
    """Carry out manifests."""
    found = read(args.files)
    cluster = Cluster(Lab.open(args.name))
    told = cluster.apply(found)
    if args.json:
        return print_json({"name": args.name, "objects": told, "problems": cluster.problems})
    print("\n".join(told))
    _warn(cluster.problems)
    return 0


def delete(args: argparse.Namespace) -> int:
    """Delete objects by manifest or by name."""
    keys = [_key(place, value) for place, value in read(args.files)]
    if args.kind:
        kind = _kind(args.kind)
        if not args.names:
            raise LabError(f"delete {args.kind}: which? lab delete KIND NAME ...", usage=True)
        keys += [Key(kind, "" if kind in CLUSTER_WIDE else args.namespace, name) for name in args.names]
    if not keys:
        raise LabError("delete what? lab delete -f FILE, or lab delete KIND NAME ...", usage=True)
    cluster = Cluster(Lab.open(args.name))
    gone = cluster.delete(keys, args.grace)
    if args.json:
        return print_json({"name": args.name, "deleted": [str(key) for key in gone]})
    print("\n".join(f"{key} deleted" for key in gone))
    _warn(cluster.problems)
    return 0


def label(args: argparse.Namespace) -> int:
    """Change labels of an object."""
    kind = _kind(args.kind)
    key = Key(kind, "" if kind in CLUSTER_WIDE else args.namespace, args.object)
    cluster = Cluster(Lab.open(args.name))
    cluster.label([key], label_changes(args.changes))
    labels = cluster.objects()[key]["metadata"].get("labels") or {}
    if args.json:
        return print_json({"name": args.name, "object": str(key), "labels": labels})
    print(f"{key} labeled: {','.join(f'{name}={text}' for name, text in labels.items()) or 'no labels'}")
    _warn(cluster.problems)
    return 0


def get(args: argparse.Namespace) -> int:
    """List objects."""
    kind = _kind(args.kind) if args.kind else ""
    objects = Cluster(Lab.open(args.name)).objects()
    shown = [key for key in objects if kind in {"", key.kind} and args.namespace in {"", key.namespace}]
    if args.json:
        return print_json({"items": [objects[key] for key in shown]})
    print(writable(apply_tables.tables(objects, shown, time.time()), sys.stdout))
    return 0


def pod_ready(args: argparse.Namespace) -> int:
    """Make a pod ready or not."""
    listen = None if args.listen is None else args.listen == "on"
    cluster = Cluster(Lab.open(args.name))
    cluster.set_ready(args.pod, ready=args.ready == "true", listen=listen)
    if args.json:
        return print_json({"name": args.name, "pod": args.pod, "ready": args.ready == "true"})
    listening = "" if listen is None else ", listening" if listen else ", not listening"
    print(f"{args.pod}: {'ready' if args.ready == 'true' else 'not ready'}{listening}")
    _warn(cluster.problems)
    return 0


def ask(args: argparse.Namespace) -> int:
    """Ask a service and count who answers; 0 when everything was answered."""
    lab = Lab.open(args.name)
    protocol = args.protocol.upper()
    found = ask_from(lab, args.source, args.target, protocol=protocol, count=args.count, timeout=args.timeout)
    if args.json:
        print_json(msgspec.to_builtins(found))
    else:
        print(writable(apply_tables.histogram(found), sys.stdout))
    return 1 if found.failures else 0


def read(files: Sequence[str]) -> list[tuple[str, Mapping[str, Any]]]:
    """The documents of files ("-": standard input) with where they stand. Raises ConfigError, LabError."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for name in files:
        try:
            raw = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        except OSError as exc:
            raise LabError(f"{name}: {exc.strerror}", usage=True) from exc
        shown = "standard input" if name == "-" else name
        found += [(f"{shown} document {number}", value) for number, value in documents(shown, raw)]
    if files and not found:
        raise LabError(f"{', '.join(files)}: there is no object in it", usage=True)
    return found


def _key(place: str, value: Mapping[str, Any]) -> Key:
    try:
        return key_of(value)
    except (KeyError, TypeError, AttributeError) as exc:
        raise LabError(f"{place}: kind and metadata.name say what to delete", usage=True) from exc


def _kind(word: str) -> str:
    for kind, aliases in ALIASES.items():
        if word.lower() in aliases:
            return kind
    raise LabError(f"kind {word!r}: the lab knows {', '.join(ALIASES)}", usage=True)


def _warn(problems: Sequence[str]) -> None:
    for line in problems:
        print(f"pycnictl: {line}", file=sys.stderr)
