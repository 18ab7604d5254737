"""Network policies and IPVS, in a guest with a kernel that has it: started by ``uml_boot``, answers in one line.

The guest's kernel has no nftables for IP. What the compiled table decides is therefore put into iptables, at the same hook
with the same first rules: connections that are established pass, what the node sends passes, then source and
destination decide (mangle is before the table's priority, nat behind it, and IPVS has nothing at this hook, see
ip_vs_ops in net/netfilter/ipvs/ip_vs_core.c). So this shows what the table's rules see of packets that IPVS handles.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

from pycni.kernel import netns
from pycni.model.family import Family
from pycni.model.kube import NAMESPACE, NODE, POD, TCP, UDP, KubeNode, Meta, Namespace, Pod
from pycni.model.policy import NETWORK_POLICY, IpBlock, NetworkPolicy, Peer, Rule, Selector
from pycni.policy import nft, spoof
from pycni.policy.base import Packet
from pycni.policy.nft.compile import NftCompiler
from pycni.reconcile.ledger import Ledger
from pycni.store import Store
from pycni.view.policies import PolicyView
from pycni.view.policy_stages import ABSENT
from tests.proxy.cases import NODE_PORT, VIP, eps, svc
from tests.proxy.dataplanes import plain
from tests.proxy.rig import Rig, Visit
from tests.proxy.topology import FAR, PODS, REMOTE, source_of
from tests.proxy.topology import NODE as NODE_IPS
from tests.proxy.uml_boot import answer
from tests.unit.service_world import net, pack

CLIENTS = ("a", "c", "x", "out", "node")
WHERE = {**dict.fromkeys(PODS, "n1"), **dict.fromkeys(REMOTE, "n2")}


def called(name: str) -> Selector:
    return Selector(labels=(("name", name),))


def policy(name: str, **sections: Any) -> NetworkPolicy:
    return NetworkPolicy(
        meta=Meta(name=name, namespace="ns"), pods=called(name), **{"ingress": None, **sections}
    )


FROM_A = Rule(peers=(Peer(pods=called("a")),), ports=None)
OUTSIDE = tuple(
    Rule(peers=(Peer(block=IpBlock(cidr=net(cidr), excluded=())),), ports=None)
    for cidr in ("192.0.2.9/32", "2001:db8:9::9/128")
)
WORLDS: dict[str, tuple[str, tuple[NetworkPolicy, ...]]] = {
    "nobody isolated, local": ("b", ()),
    "nobody isolated, remote": ("x", ()),
    "ingress of a local server from a pod": ("b", (policy("b", ingress=(FROM_A,)),)),
    "ingress of a local server from outside": ("b", (policy("b", ingress=OUTSIDE),)),
    "ingress of a local server from nobody": ("b", (policy("b", ingress=()),)),
    "egress of a client to a remote server": ("x", (policy("c", egress=()),)),
    "egress of a client to a local server": ("b", (policy("c", egress=()),)),
    "a server that may only answer": ("b", (policy("b", egress=()),)),
}  # fmt: skip
"""Who serves, and the policies."""


def compiled(policies: tuple[NetworkPolicy, ...]) -> Ledger:
    """The table of node n1."""
    store = Store()
    store.put(NAMESPACE, "ns", Namespace(meta=Meta(name="ns")))
    for number, pair in ((1, NODE_IPS), (2, FAR)):
        cidrs = (f"10.244.{number}.0/24", f"fd00:244:{number}::/64")
        store.put(
            NODE, f"n{number}", KubeNode(meta=Meta(name=f"n{number}"), pod_cidrs=cidrs, internal_ips=pair)
        )
    for name, node in WHERE.items():
        meta = Meta(name=name, namespace="ns", labels={"name": name})
        store.put(POD, meta.key, Pod(meta=meta, node=node, ips={**PODS, **REMOTE}[name], phase="Running"))
    for item in policies:
        store.put(NETWORK_POLICY, item.meta.key, item)
    compiler = NftCompiler()
    ledger = Ledger(compiler.tables, compiler.shared)
    ledger.put(compiler.common())
    for row in PolicyView("n1").update(store.snapshot(), None):
        if row.after is not ABSENT:
            ledger.put(compiler.rows(row.table, row.key, row.after))
    return ledger


def allowed(ledger: Ledger, source: str, target: str, protocol: int, *, local: bool) -> bool:
    packet = Packet(pack(source), pack(target), protocol, 8080, local)
    return NftCompiler().decide(ledger.tables, packet).allowed


def rules(ledger: Ledger, server: str) -> Iterator[tuple[str, str]]:
    """Program and rule, as the table has them in its hook."""
    for program, family in (("iptables-legacy", 0), ("ip6tables-legacy", 1)):
        yield program, "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
        yield program, "-m addrtype --src-type LOCAL -j ACCEPT"
        there = {**PODS, **REMOTE}[server][family]
        for client in CLIENTS:
            if client in {"node", server}:
                continue
            own = source_of(client)[family]
            for source, target in ((own, there), (there, own)):
                if not allowed(ledger, source, target, TCP, local=False):
                    yield program, f"-s {source} -d {target} -j DROP"


def enforced(node: Rig, ledger: Ledger, server: str) -> None:
    path = netns.exec_prefix(node.spaces.names["node"])

    def run(words: str) -> None:
        subprocess.run([*path, *words.split()], check=True, capture_output=True)

    for program in ("iptables-legacy", "ip6tables-legacy"):
        run(f"{program} -t mangle -F POSTROUTING")
    for program, rule in rules(ledger, server):
        run(f"{program} -t mangle -A POSTROUTING {rule}")


def judged() -> dict[str, Any]:
    """By world: which connections were not as the table says, and how many were allowed and denied."""
    found: dict[str, Any] = {}
    with plain("ipvs") as node:
        service = svc(type="NodePort")
        for name, (server, policies) in WORLDS.items():
            node.apply({service.meta.key: service}, {item.meta.key: item for item in eps(server)})
            ledger = compiled(policies)
            enforced(node, ledger, server)
            visits = [
                Visit(client, place[family], port, protocol)
                for client in CLIENTS
                for place, port in ((VIP, 80), (NODE_IPS, NODE_PORT))
                for family in (0, 1)
                for protocol in (TCP, UDP)
                if client != server
            ]
            wanted = [
                allowed(
                    ledger,
                    visit.source,
                    {**PODS, **REMOTE}[server][visit.family is Family.V6],
                    visit.protocol,
                    local=visit.client == "node",
                )
                for visit in visits
            ]
            outcomes = node.dial(visits, 1.5 if not all(wanted) else 8.0)
            late = [at for at, outcome in enumerate(outcomes) if wanted[at] and outcome.verdict != "answer"]
            for at, outcome in zip(late, node.dial([visits[at] for at in late]), strict=True):
                outcomes[at] = outcome
            wrong = [
                f"{visit}: {outcome.verdict} {outcome.name}, allowed: {want}"
                for visit, want, outcome in zip(visits, wanted, outcomes, strict=True)
                if (outcome.verdict, outcome.name) != (("answer", server) if want else ("silence", ""))
            ]
            found[name] = {"wrong": wrong, "allowed": sum(wanted), "denied": len(wanted) - sum(wanted)}
        found["planes"] = node.planes
    return found


if __name__ == "__main__":
    answer({"judged": judged, "guard lacks": spoof.missing, "table lacks": nft.missing})
