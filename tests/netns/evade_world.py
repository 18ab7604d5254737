"""A node with checked and judged pods: real attachments, the policy engine and the guard, objects as an API has them.

    a   attacker, may send to anybody             b   ingress: from c only; egress free
    e   egress: to c only                         p   ingress: TCP 80 only
    c   free                                      out a machine beside the node

The test's thread is in the node's namespace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager

from pycni.attach.plan import RoutedLeg
from pycni.model.attachment import AttachmentKind
from pycni.model.kube import NAMESPACE, NODE, POD, KubeNode, Meta, Namespace
from pycni.model.kube import Pod as KubePod
from pycni.model.policy import NETWORK_POLICY, NetworkPolicy, Peer, PortRange, Rule, Selector
from pycni.policy import nft
from pycni.policy.base import LocalPod
from pycni.policy.ebpf import fastpath
from pycni.policy.ebpf.driver import Places
from pycni.policy.ebpf.fastpath import EbpfFastPath
from pycni.policy.engine import PolicyEngine
from pycni.policy.spoof import Guard
from pycni.store import Store
from pycni.view.policies import KINDS
from tests.netns import frames as f
from tests.netns.podenv import Env, Pod, links, node
from tests.netns.policy_ebpf_rig import NO_GRACE, pins

NAMES = ("a", "b", "c", "e", "p")
GATEWAY = {4: "10.1.2.1", 6: "fd00:1:2::1"}
UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}
OUT = {4: "192.0.2.2", 6: "2001:db8::2"}


def only(name: str) -> Selector:
    return Selector(labels=(("name", name),))


FROM_C = Rule(peers=(Peer(pods=only("c")),), ports=None)
POLICIES = {
    "ns/b": NetworkPolicy(meta=Meta(name="b", namespace="ns"), pods=only("b"), ingress=(FROM_C,)),
    "ns/e": NetworkPolicy(
        meta=Meta(name="e", namespace="ns"), pods=only("e"), ingress=None, egress=(FROM_C,)
    ),
    "ns/p": NetworkPolicy(
        meta=Meta(name="p", namespace="ns"),
        pods=only("p"),
        ingress=(Rule(peers=None, ports=(PortRange(first=80, last=80),)),),
    ),
}


def local(pod: Pod) -> LocalPod:
    assert pod.plan is not None
    return LocalPod(
        pod.name,
        pod.plan.host,
        pod.plan.mac,
        tuple(item.address for item in pod.plan.addresses),
        isinstance(pod.plan.link, RoutedLeg),
    )


def address(pod: Pod, family: int) -> str:
    return pod.v4() if family == 4 else pod.v6()


class Judged:
    """The node; pods are attributes."""

    a: Pod
    b: Pod
    c: Pod
    e: Pod
    p: Pod

    def __init__(
        self, env: Env, exits: ExitStack, *, programs: bool, routed: Collection[str] = frozenset()
    ) -> None:
        """``programs``: the eBPF fast path stands above the table. ``routed``: these pods have links of their own."""
        self.env = env
        self.out = env.outside((4, 6))
        for name in NAMES:
            kind = AttachmentKind.PTP if name in routed else AttachmentKind.BRIDGE
            setattr(self, name, env.attach((4, 6), is_default_gateway=True, attachment=kind))
        self.gateway = self.a.plan.names.host_mac if "a" in routed else f.mac(links()["cni0"]["address"])
        self.guard = Guard()
        exits.callback(self.guard.close)
        self.fast: EbpfFastPath | None = None
        if programs:
            where = exits.enter_context(pins())
            self.fast = fastpath.make("n1", uplinks=("eth1",), places=Places(bpffs=where), times=NO_GRACE)
            exits.callback(self.fast.close)
        self.engine = PolicyEngine("n1", nft.make(), self.fast)
        exits.callback(self.engine.plane.driver.close)
        self.store = Store()
        self.tracker = self.store.track(*KINDS)
        self.store.put(NAMESPACE, "ns", Namespace(meta=Meta(name="ns")))
        self.store.put(
            NODE,
            "n1",
            KubeNode(
                meta=Meta(name="n1"),
                pod_cidrs=("10.1.2.0/24", "fd00:1:2::/64"),
                internal_ips=tuple(UPLINK.values()),
            ),
        )
        for name in NAMES:
            self.put(name, getattr(self, name))
        for key, policy in POLICIES.items():
            self.store.put(NETWORK_POLICY, key, policy)
        self.sync()
        self.guard.apply([local(getattr(self, name)) for name in NAMES])
        if self.fast is not None:
            self.fast.pods([local(getattr(self, name)) for name in NAMES])
            assert not self.fast.problems()
        self._senders = {
            name: exits.enter_context(getattr(self, name).inside(lambda: f.wire("eth0"))) for name in NAMES
        }
        self._senders["out"] = exits.enter_context(self.out.inside(lambda: f.wire("eth0")))
        self.catchers = {
            name: exits.enter_context(f.catching(getattr(self, name).inside, "eth0")) for name in NAMES
        }

    def put(self, name: str, pod: Pod, label: str = "") -> None:
        ips = (pod.v4(), pod.v6())
        meta = Meta(name=name, namespace="ns", labels={"name": label or name})
        self.store.put(POD, f"ns/{name}", KubePod(meta=meta, node="n1", ips=ips, phase="Running"))

    def sync(self) -> None:
        self.engine.sync(self.store.current(), self.tracker.take())

    def send(self, name: str, frame: bytes) -> None:
        self._senders[name].send(frame.ljust(60, b"\0"))

    def received(self, name: str, token: bytes, seconds: float) -> bool:
        return bool(self.catchers[name].wait(token, seconds=seconds))


@contextmanager
def judged(
    make: Callable[[], str], *, programs: bool = False, routed: Collection[str] = frozenset()
) -> Iterator[Judged]:
    with node(make) as env, ExitStack() as exits:
        yield Judged(env, exits, programs=programs, routed=routed)
