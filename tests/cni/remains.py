"""What attachments leave on a node when they are not removed, and the networks the tests of that attach to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Callable

from tests.cni.node import AgentNode
from tests.cni.runtimes import inside

OPTIONS = ("--ip-masq", "--workers=8")
NET = {"cniVersion": "1.1.0", "name": "net", "type": "pycni"}
TIGHT = {
    **NET,
    "name": "tight",
    "bridge": "cni77",
    "isDefaultGateway": True,
    "ipam": {"ranges": [[{"subnet": "10.77.0.0/27"}]]},
}
"""Twenty slots in 29 addresses: every address is used many times."""


def until(what: Callable[[], object], explain: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, explain()
        time.sleep(0.02)


def leftovers(node: AgentNode) -> dict[str, list[str]]:
    """Everything attachments leave when they are not removed."""
    links = subprocess.run(
        ["ip", "-n", node.name, "-j", "link"], capture_output=True, text=True, check=True
    ).stdout
    names = [link["ifname"] for link in json.loads(links)]
    return {
        "reservations": sorted(name for net in ("net", "tight") for name in node.reservations(net)),
        "records": sorted(os.listdir(node.folder / "state" / "endpoints")),
        "links": [name for name in names if name.startswith(("veth", "pcbw", "ifb"))],
        "nft": elements(node),
    }


SHARED = ("localnet", "near_v4", "near_v6", "spared_v4", "spared_v6")
"""Sets of bridges and their networks, which outlive pods as the bridges do."""


def elements(node: AgentNode) -> list[str]:
    """Elements of all sets and maps for pods, and chains of single ones."""
    found = []
    for table in ("inet pycni_pods", "bridge pycni_spoof"):
        command = [*inside(node.name), "nft", "-j", "list", "table", *table.split()]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for item in json.loads(done.stdout)["nftables"] if not done.returncode else []:
            for kind, value in item.items():
                if kind in ("set", "map") and value["name"] not in SHARED:
                    found += [f"{table} {value['name']} {element}" for element in value.get("elem", ())]
                if kind == "chain" and re.search("veth|[0-9a-f]{11}", value["name"]):
                    found.append(f"{table} chain {value['name']}")
    return found


def sh(node: AgentNode, command: str) -> str:
    """Run a shell line inside the node, whatever its exit code; its output."""
    done = subprocess.run(
        [*inside(node.name), "sh", "-c", command], capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr
