"""Do rr, lc, sh and dh do what their names say, by every data plane?

Services with the annotation, three endpoints, real clients: rr takes turns to the letter; sh keeps a client at its
endpoint, dh an address at its; lc fills up who has least open connections. IPVS in User-Mode Linux guests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from bench.rows import row
from bench.size import sized
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

ENDPOINTS, CLIENTS = 3, 8
ASKED = 30
LAB = f"pyb{os.getpid()}sc"
SCHEDULERS = {
    "nftables": ("rr", "sh", "dh"),
    "ebpf": ("rr", "lc", "sh", "dh"),
    "ipvs": ("rr", "lc", "sh", "dh"),
}
PLANES = sized(tuple(SCHEDULERS), ("nftables", "ebpf"))
ADDRESS = {name: f"10.96.200.{number}" for number, name in enumerate(("rr", "lc", "sh", "dh"), 1)}
POD = """apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec: {{nodeName: {node}, containers: [{{name: c, ports: [{{containerPort: 8080}}]}}]}}
---
"""
SERVICE = """apiVersion: v1
kind: Service
metadata: {{name: s-{how}, annotations: {{kube-router.io/service.scheduler: {how}}}}}
spec: {{selector: {{app: web}}, clusterIP: {address}, ports: [{{port: 80, targetPort: 8080}}]}}
---
"""
CLIENT = """
import json, socket, sys
held = {}
def one(host):
    sock = socket.create_connection((host, 80), timeout=5)
    pod = sock.makefile().readline().split()[0]
    return pod, sock
for line in sys.stdin:
    word, host, count = line.split()
    first, answers = not held, []
    for _ in range(int(count)):
        pod, sock = one(host)
        answers.append(pod)
        if word == "hold":
            sock.send(b"hold\\n")
            held.setdefault(pod, []).append(sock)
        else:
            sock.close()
    if word == "hold" and first:
        fullest = max(held, key=lambda pod: len(held[pod]))
        freed = held.pop(fullest)
        for sock in freed:
            sock.close()
        answers.append(fullest)
        import time
        time.sleep(0.5)
    print(json.dumps(answers), flush=True)
"""


def ctl(*words: str, feed: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pycni.cli", "lab", words[0], "--name", LAB, *words[1:]],
        input=feed, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr}")
    return done.stdout


@contextmanager
def lab(plane: str) -> Iterator[list[str]]:
    """Two nodes with a Service for each scheduler; yields clients, all on one node."""
    how = SCHEDULERS[plane]
    spec = LabSpec(name=LAB, nodes=2, pods=0, proxy=plane, driver="uml" if plane == "ipvs" else "netns")
    made = Lab.up(spec)
    try:
        clients = [f"c{number}" for number in range(CLIENTS)]
        objects = [POD.format(name=f"web{n}", app="web", node="node2") for n in range(ENDPOINTS)]
        objects += [POD.format(name=name, app="client", node="node1") for name in clients]
        objects += [SERVICE.format(how=name, address=ADDRESS[name]) for name in how]
        ctl("apply", "-f", "-", feed="".join(objects))
        yield clients
    finally:
        made.down()


def talk(client: str, *lines: str) -> list[list[str]]:
    """Who answered a client, by line."""
    out = ctl("exec", client, "--", sys.executable, "-c", CLIENT, feed="\n".join(lines) + "\n")
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plane", PLANES)
def test_schedulers(benchmark: Any, plane: str) -> None:
    def everything() -> None:
        with lab(plane) as clients:
            judge(plane, clients)

    benchmark.pedantic(everything, rounds=1)


def judge(plane: str, clients: list[str]) -> None:
    """A row per claim. Each client says all it has to say at once: a guest takes seconds to start a program."""
    each = [f"ask {ADDRESS['sh']} 10", f"ask {ADDRESS['dh']} 5"]
    alone = [f"ask {ADDRESS['rr']} {ASKED}"]
    if "lc" in SCHEDULERS[plane]:
        alone += [f"hold {ADDRESS['lc']} {ASKED}", f"hold {ADDRESS['lc']} {ASKED // ENDPOINTS}"]
    sticky, at_address, *rest = talk(clients[0], *each, *alone)
    mine, met = [set(sticky)], set(at_address)
    for client in clients[1:]:
        sticky, at_address = talk(client, *each)
        mine.append(set(sticky))
        met.update(at_address)
    turns = Counter(rest[0])
    fullest = max(turns.values()) / (ASKED / ENDPOINTS)
    row(
        f"{plane}: rr: connections at the fullest of {ENDPOINTS} endpoints, of {ASKED}",
        str(max(turns.values())), f"even: {ASKED // ENDPOINTS}", fullest, "<= 1.0",
    )  # fmt: skip
    row(
        f"{plane}: sh: endpoints one client meets, of 10 connections",
        f"{max(map(len, mine))}", "", max(map(len, mine)), "<= 1",
    )  # fmt: skip
    spread = len(set.union(*mine))
    row(f"{plane}: sh: endpoints {CLIENTS} clients meet", f"{spread}", "", spread, ">= 2")
    row(f"{plane}: dh: endpoints {CLIENTS} clients meet at one address", f"{len(met)}", "", len(met), "<= 1")
    if "lc" in SCHEDULERS[plane]:
        least_rows(plane, *rest[1:])


def least_rows(plane: str, first: list[str], then: list[str]) -> None:
    """Connections that stay open, and those after one endpoint, the last word of the first, was freed of its."""
    freed = first.pop()
    right = then.count(freed) / len(then)
    even = max(Counter(first).values()) / (ASKED / ENDPOINTS)
    row(
        f"{plane}: lc: open connections at the fullest of {ENDPOINTS} endpoints, of {ASKED}",
        str(max(Counter(first).values())), f"even: {ASKED // ENDPOINTS}", even, "<= 1.0",
    )  # fmt: skip
    row(f"{plane}: lc: new connections that go to who was freed", f"{right:.0%}", "", right, ">= 1.0")
