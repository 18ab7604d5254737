"""``lab demo``: a whole lab from nothing to nothing, telling on the way what happens. Its output is real."""

from __future__ import annotations

import signal
import time

from pycni.lab import report
from pycni.lab.cleanup import known
from pycni.lab.demo_policy import show_policy
from pycni.lab.demo_service import apply_service, show_service
from pycni.lab.report import Progress
from pycni.lab.run import Lab
from pycni.lab.state import PodRecord
from pycni.lab.topology import LabError, LabSpec
from pycni.lab.traffic import TrafficReport

PING_S = 0.005
CALM_S = 0.5
"""How long traffic is watched with the agent dead."""


def demo(spec: LabSpec, progress: Progress) -> bool:
    """Run it; whether everything it shows came out well. The lab is gone afterwards, whatever happened."""
    started = time.monotonic()
    tell = progress.line
    made_of = {"netns": "a network namespace", "uml": "a User-Mode Linux guest"}[spec.driver]
    tell(f"A pod network of {spec.nodes} nodes, each {made_of} with a real pycnid, around one etcd.")
    tell("The machine's own network is not touched.\n")
    lab = Lab.up(spec, progress)
    try:
        tell("\n" + report.tree(lab.status()))
        _show_tables(lab, progress)
        serves = spec.proxy != "none" and spec.pods > 0
        if serves:
            tell()
            apply_service(lab, progress)
        matrix = lab.matrix()
        tell("\nWho reaches whom, by real packets in both directions:\n" + report.grid(matrix))
        tell(report.verdict(matrix))
        ok = matrix.ok
        if serves:
            ok &= show_service(lab, progress)
        if serves and spec.policy != "none":
            ok &= show_policy(lab, progress)
        ok &= _kill_an_agent(lab, progress)
    finally:
        with progress.step("\ndown: agents, etcd, namespaces"):
            lab.down()
    left = spec.name in known()
    tell(
        f"{'something is LEFT behind' if left else 'nothing is left behind'}; {time.monotonic() - started:.1f} s in all"
    )
    return ok and not left


def _show_tables(lab: Lab, progress: Progress) -> None:
    """The first node's routes to the others, as the kernel has them."""
    node = lab.nodes()[0].name
    lines = [
        line.strip()
        for flag in ("-4", "-6")
        for line in lab.exec(node, ["ip", flag, "route", "show", "proto", "112"]).stdout.splitlines()
    ]
    if lines:
        progress.line(f"\nWhat pycnid told the kernel of {node} about its peers:")
        progress.line("\n".join(f"  {line}" for line in lines))


def _kill_an_agent(lab: Lab, progress: Progress) -> bool:
    """Kill -9 under traffic and a restart: the data plane is the kernel's, so no packet may be lost."""
    source, target = _far_pair(lab)
    if source is None or target is None:
        return True
    node = source.node
    before = lab.agent(node)
    with lab.traffic(source.name, target.ips[0], PING_S) as traffic:
        if not traffic.wait_answered(10):
            raise LabError(f"no ping from {source.name} to {target.name} is answered")
        lab.signal_agent(node, signal.SIGKILL)
        time.sleep(CALM_S)
        lab.start_agent(node)
        traffic.wait_answered(10)
    result = traffic.report()
    progress.line(
        f"\nkill -9 of {node}'s pycnid (pid {before.pid if before else '?'}) and a new one, while {source.name} "
        f"pings {target.name} on {target.node} every {PING_S * 1000:g} ms:\n  {_sentence(result)}"
    )
    return result.lost == 0


def _far_pair(lab: Lab) -> tuple[PodRecord | None, PodRecord | None]:
    """Two pods on different nodes, of those that ``lab up`` made."""
    pods = [pod for pod in lab.pods() if pod.name.startswith("pod")]
    for target in pods[1:]:
        if target.node != pods[0].node:
            return pods[0], target
    return None, None


def _sentence(result: TrafficReport) -> str:
    return f"{result.sent} sent, {result.lost} lost; longest time without an answer {result.longest_gap * 1000:.0f} ms"
