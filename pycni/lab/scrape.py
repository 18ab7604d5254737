"""``pycnictl lab scrape-config``: how a Prometheus reaches the agents of a lab.

Agents answer scrapers on the underlay, which nothing outside the lab reaches: so Prometheus runs in the namespace of
the fabric (or of the client). Its configuration follows from the lab's specification.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import yaml

from pycni.lab import topology
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

JOB = "pycni"


def config(
    spec: LabSpec, nodes: Sequence[str], rules: Sequence[str] = (), *, interval: str = "15s"
) -> dict[str, object]:
    """Prometheus' configuration as a value. ``rules``: files of rules; ``interval``: between scrapes."""
    jobs = [
        {
            "job_name": JOB,
            "static_configs": [
                {"targets": [target(spec, node)], "labels": {"node": node, "lab": spec.name}}
                for node in nodes
            ],
        }
    ]
    found: dict[str, object] = {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "scrape_configs": jobs,
    }
    return found | ({"rule_files": list(rules)} if rules else {})


def target(spec: LabSpec, node: str) -> str:
    """Where a node's agent answers: host and port."""
    address = topology.underlay_address(spec.families[0], topology.node_index(node)).ip
    host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{topology.HEALTH_PORT}"


def scrape_config(args: argparse.Namespace) -> int:
    """Print it: YAML for a file, or JSON, which is YAML too."""
    lab = Lab.open(args.name)
    found = config(lab.spec, [node.name for node in lab.nodes()], args.rules, interval=args.interval)
    if args.json:
        print(json.dumps(found, indent=2))
        return 0

    space = topology.fabric_namespace(args.name)
    print(f"# ip netns exec {space} prometheus --config.file=FILE --storage.tsdb.path=FOLDER")
    print(yaml.safe_dump(found, sort_keys=False), end="")
    return 0
