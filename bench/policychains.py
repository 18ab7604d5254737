"""A layout of iptables and ipset like kube-router's for the policies of ``policyshapes``: text for the kernel's own tools.

    KUBE-ROUTER-FORWARD    two rules per pod of the node, by its address -> KUBE-POD-FW-<pod>
    KUBE-POD-FW-<pod>      established; each policy; then NFLOG and REJECT what no policy has marked
    KUBE-NWPLCY-<policy>   two rules per rule of the policy: sets of sources and destinations, mark, return
    KUBE-SRC-*, KUBE-DST-* a set of addresses or of networks for each rule, a set of pods for each policy

Only what decides is there: no comments, no rules of other hooks, no second rule for bridged packets. So it is a lower
bound of what the real thing costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pycni.model.kube import POD, Pod
from pycni.model.policy import NETWORK_POLICY, NetworkPolicy, Rule
from pycni.store import Snapshot

MATCHED = "0x10000/0x10000"
ACCEPTED = "0x20000/0x20000"


class Layout(NamedTuple):
    """Input of ``ipset restore`` and of ``iptables-restore``."""

    sets: str
    chains: str


def layout(objects: Snapshot, node: str, measured: str) -> Layout:
    """Everything of one node. The pod ``measured`` stands in the middle of the list of pods: a fair place."""
    every: Sequence[Pod] = list(objects.of(POD).values())
    policies: Sequence[NetworkPolicy] = list(objects.of(NETWORK_POLICY).values())
    local = [pod for pod in every if pod.node == node]
    local.sort(key=lambda pod: pod.meta.name == measured)
    if local[-1].meta.name == measured:
        local.insert(len(local) // 2, local.pop())
    by_label: dict[tuple[str, str], list[str]] = {}
    for pod in every:
        for label in pod.meta.labels.items():
            by_label.setdefault(label, []).append(pod.ips[0])
    holding: dict[str, list[int]] = {pod.meta.name: [] for pod in local}
    used: list[int] = []
    for number, policy in enumerate(policies):
        here = [pod for pod in local if policy.pods.matches(pod.meta.labels)]
        for pod in here:
            holding[pod.meta.name].append(number)
        if here:
            used.append(number)
    sets: list[str] = []
    rules: list[str] = []
    for number in used:
        destinations = [pod.ips[0] for pod in local if number in holding[pod.meta.name]]
        sets += _set(f"KUBE-DST-{number}", "hash:ip", destinations)
        for place, rule in enumerate(policies[number].ingress or ()):
            sets += _sources(f"KUBE-SRC-{number}-{place}", rule, by_label)
            rules += _rule(number, place, rule)
    heads = ["KUBE-ROUTER-FORWARD", *(f"KUBE-POD-FW-{pod.meta.name}" for pod in local)]
    heads += (f"KUBE-NWPLCY-{number}" for number in used)
    lines = ["*filter", *(f":{name} - [0:0]" for name in heads), "-A FORWARD -j KUBE-ROUTER-FORWARD"]
    for pod in local:
        lines += _pod(pod, holding[pod.meta.name])
    lines.append(f"-A KUBE-ROUTER-FORWARD -m mark --mark {ACCEPTED} -j ACCEPT")
    return Layout("\n".join(sets) + "\n", "\n".join([*lines, *rules, "COMMIT"]) + "\n")


def _sources(name: str, rule: Rule, by_label: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    (peer,) = rule.peers or ()
    if peer.block is not None:
        yield from _set(name, "hash:net", [str(peer.block.cidr)])
    elif peer.pods is not None:
        yield from _set(name, "hash:ip", by_label.get(peer.pods.labels[0], []))


def _set(name: str, kind: str, members: Sequence[str]) -> Iterator[str]:
    yield f"create {name} {kind} family inet hashsize 64 maxelem 65536"
    yield from (f"add {name} {member}" for member in members)


def _rule(number: int, place: int, rule: Rule) -> Iterator[str]:
    (port,) = rule.ports or ()
    sets = f"-m set --match-set KUBE-SRC-{number}-{place} src -m set --match-set KUBE-DST-{number} dst"
    match = f"-A KUBE-NWPLCY-{number} {sets} -p tcp -m tcp --dport {port.first}:{port.last}"
    yield f"{match} -j MARK --set-xmark {MATCHED}"
    yield f"-A KUBE-NWPLCY-{number} -m mark --mark {MATCHED} -j RETURN"


def _pod(pod: Pod, policies: Sequence[int]) -> Iterator[str]:
    chain, address = f"KUBE-POD-FW-{pod.meta.name}", pod.ips[0]
    for way in ("-d", "-s"):
        yield f"-A KUBE-ROUTER-FORWARD {way} {address}/32 -j {chain}"
    yield f"-A {chain} -m conntrack --ctstate INVALID -j DROP"
    yield f"-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield f"-A {chain} -d {address}/32 -m addrtype --src-type LOCAL -j ACCEPT"
    for number in policies:
        yield f"-A {chain} -d {address}/32 -j KUBE-NWPLCY-{number}"
    # What leaves a pod without egress policies, and what reaches a pod without any, is allowed by default.
    yield f"-A {chain} -s {address}/32 -j MARK --set-xmark {MATCHED}"
    if not policies:
        yield f"-A {chain} -d {address}/32 -j MARK --set-xmark {MATCHED}"
    denied = f"-A {chain} -m mark ! --mark {MATCHED}"
    yield f"{denied} -m limit --limit 10/min --limit-burst 10 -j NFLOG --nflog-group 100"
    yield f"{denied} -j REJECT"
    yield f"-A {chain} -j MARK --set-xmark 0x0/0x10000"
    yield f"-A {chain} -j MARK --set-xmark {ACCEPTED}"
