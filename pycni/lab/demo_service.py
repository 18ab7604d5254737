"""The part of ``lab demo`` about services: one is applied, asked by name, and loses an endpoint while it is asked."""

from __future__ import annotations

import threading
from collections import Counter

from pycni.lab.apply import Cluster
from pycni.lab.apply_tables import histogram
from pycni.lab.ask import Tally
from pycni.lab.ask_client import ask_from
from pycni.lab.objects import Key, Mappings
from pycni.lab.report import Progress
from pycni.lab.run import Lab
from pycni.model.kube import POD, SERVICE

NAME = "web"
REPLICAS = 3
ASKED = 60
BURST = 100
"""Questions per look-up of the program that asks while an endpoint is replaced."""
GRACE_S = 0.4


def apply_service(lab: Lab, progress: Progress) -> None:
    """Three web servers behind a Service of type NodePort."""
    with progress.step(f"apply: Deployment {NAME} with {REPLICAS} replicas, Service {NAME}"):
        Cluster(lab).apply([("the demo", value) for value in _manifests()])


def show_service(lab: Lab, progress: Progress) -> bool:
    """Ask it, replace an endpoint under its feet. Whether every question was answered, and by everybody."""
    source = next(pod.name for pod in lab.pods() if "." not in pod.name)
    found = ask_from(lab, source, f"{NAME}:80", count=ASKED)
    progress.line(f"\n{source} asks {NAME}:80, found by DNS, {ASKED} times. Who answers:\n{histogram(found)}")
    replaced, names = _replace(lab, source)
    failed = sum(replaced.failures.values())
    progress.line(
        f"\n{NAME}-1 is deleted with {GRACE_S:g} s of grace and replaced by {', '.join(names)} meanwhile:\n"
        f"  {replaced.asked} asked, {failed} failed; the longest took {replaced.longest_s * 1000:.0f} ms"
    )
    return not found.failures and len(found.pods) == REPLICAS and not failed and bool(names)


def _replace(lab: Lab, source: str) -> tuple[Tally, list[str]]:
    """Delete a pod while another asks all the time. Returns the answers and who is new."""
    before = {pod.name for pod in lab.pods()}
    tallies: list[Tally] = []
    asking, done = threading.Event(), threading.Event()

    def ask() -> None:
        while not done.is_set():
            tallies.append(ask_from(lab, source, f"{NAME}:80", count=BURST))
            asking.set()

    thread = threading.Thread(target=ask, name="asking")
    thread.start()
    try:
        asking.wait(30)
        Cluster(lab).delete([Key(POD, "default", f"{NAME}-1")], GRACE_S)
    finally:
        done.set()
        thread.join()
    failures: Counter[str] = Counter()
    for tally in tallies:
        failures.update(tally.failures)
    total = Tally(
        asked=sum(tally.asked for tally in tallies),
        failures=failures,
        longest_s=max((tally.longest_s for tally in tallies), default=0.0),
    )
    return total, sorted({pod.name for pod in lab.pods()} - before)


def _manifests() -> list[Mappings]:
    labels = {"app": NAME}
    container = {"name": NAME, "ports": [{"name": "http", "containerPort": 8080}]}
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": NAME},
            "spec": {
                "replicas": REPLICAS,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        },
        {
            "apiVersion": "v1",
            "kind": SERVICE,
            "metadata": {"name": NAME},
            "spec": {
                "type": "NodePort",
                "selector": labels,
                "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
            },
        },
    ]
