"""What the kernel refuses of policies: found to the row, left out, and its pods closed; everything else is programmed."""

from __future__ import annotations

import errno

import pytest

from pycni.errors import KernelError
from pycni.model.kube import NAMESPACE, NODE, POD, TCP, KubeNode, Meta, Namespace, Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Peer,
    PortRange,
    Rule,
    Selector,
    Tier,
)
from pycni.policy.base import Dataplane, Packet
from pycni.policy.engine import PolicyEngine
from pycni.policy.nft.compile import NftCompiler
from pycni.policy.refusals import about_content
from pycni.store import Store
from pycni.view.policies import KINDS
from tests.netns.policy_rig import policy, rule, web

NODE_IP, OUT = bytes((192, 0, 2, 1)), bytes((198, 51, 100, 1))


class Kernel:
    """Tables in memory behind a driver that refuses rows: ``refuses(table, key, value)`` gives an errno or 0."""

    def __init__(self):
        self.tables = {}
        self.refuses = lambda table, key, value: 0
        self.fail = []
        self.checks = self.applies = 0

    def read(self):
        return {name: dict(rows) for name, rows in self.tables.items()}

    def check(self, changes):
        self.checks += 1
        self._try(changes)

    def apply(self, changes):
        self.applies += 1
        if self.fail:
            raise self.fail.pop(0)
        self._try(changes)
        for name, delta in changes:
            rows = self.tables.setdefault(name, {})
            for key in delta.remove:
                del rows[key]
            rows.update(delta.add)
            rows.update(delta.change)

    def _try(self, changes):
        for name, delta in changes:
            for rows in (delta.add, delta.change):
                for key, value in rows.items():
                    code = self.refuses(name, key, value)
                    if code:
                        raise KernelError(code, "change table", f"{name} {key!r}")


def whole(kernel):
    """Its tables, the empty ones too."""
    return {**{name: {} for name in NftCompiler().tables}, **kernel.tables}


class World:
    """Pods p0 ... in namespace ``a`` and q0 ... in ``b``, all on node n1, and an engine."""

    def __init__(self, count=4):
        self.store, self.kernel = Store(), Kernel()
        self.tracker = self.store.track(*KINDS)
        self.engine = PolicyEngine("n1", Dataplane("fake", NftCompiler(), self.kernel))
        self.store.put(NODE, "n1", KubeNode(meta=Meta(name="n1"), internal_ips=("192.0.2.1",)))
        for space in ("a", "b"):
            self.store.put(NAMESPACE, space, Namespace(meta=Meta(name=space)))
            for number in range(count):
                name = f"{'p' if space == 'a' else 'q'}{number}"
                meta = Meta(name=name, namespace=space, labels={"n": str(number), "s": space})
                third = 1 if space == "a" else 2
                self.store.put(POD, meta.key, Pod(meta=meta, node="n1", ips=(f"10.0.{third}.{number + 1}",)))

    def put(self, *policies):
        for item in policies:
            kind = CLUSTER_NETWORK_POLICY if isinstance(item, ClusterNetworkPolicy) else NETWORK_POLICY
            self.store.put(kind, item.meta.key, item)

    def sync(self, **more):
        return self.engine.sync(self.store.current(), self.tracker.take(), **more)

    def allowed(self, source, destination, port=80):
        return (
            NftCompiler().decide(whole(self.kernel), Packet(ip(source), ip(destination), TCP, port)).allowed
        )

    def open_from_outside(self):
        names = [f"{letter}{number}" for letter in "pq" for number in range(4)]
        return "".join(name + " " for name in names if self.allowed("out", name)).strip()


def ip(name):
    if name == "out":
        return OUT
    return bytes((10, 0, 1 if name[0] == "p" else 2, int(name[1:]) + 1))


def refuse(table, match, code=errno.EINVAL):
    return lambda name, key, value: code * (name == table and match(key, value))


def chain_of(text):
    return refuse("chains", lambda key, value: text in key)


def deny(name, space):
    return ClusterNetworkPolicy(
        meta=Meta(name=name),
        tier=Tier.ADMIN,
        priority=5,
        namespaces=web(**{"kubernetes.io/metadata.name": space}),
        ingress=(ClusterRule(action=Action.DENY, peers=(Peer(namespaces=web(**{"kubernetes.io/metadata.name": "b"})),)),),
    )  # fmt: skip


ALLOW = Rule()
GOOD = policy("b/good", web(n="1"), ingress=(ALLOW,))


@pytest.fixture
def world():
    return World()


def test_a_refused_policy_closes_its_pods_and_no_others(world):
    world.put(
        policy("a/bad", web(n="0"), ingress=(ALLOW,)), policy("a/other", web(n="1"), ingress=(ALLOW,)), GOOD
    )
    world.kernel.refuses = chain_of("np-ingress4-a/bad")
    world.sync()
    assert world.open_from_outside() == "p1 p2 p3 q0 q1 q2 q3"
    assert not world.allowed("p0", "out"), "closed in both directions"
    assert list(world.engine.closed) == ["a/p0"]
    assert "NetworkPolicy a/bad" in world.engine.closed["a/p0"]
    assert "EINVAL" in world.engine.closed["a/p0"]
    assert list(world.engine.refusals.problems()) == ["NetworkPolicy a/bad (ingress)"]


def test_the_node_reaches_pods_that_are_closed(world):
    world.put(policy("a/bad", ingress=(ALLOW,)))
    world.kernel.refuses = chain_of("np-ingress4-a/bad")
    world.sync()
    decided = NftCompiler().decide(whole(world.kernel), Packet(NODE_IP, ip("p0"), TCP, 80))
    assert decided.allowed
    assert not world.allowed("out", "p0")


def test_a_change_that_is_refused_closes_and_a_good_one_opens(world):
    world.put(policy("a/x", web(n="0"), ingress=(ALLOW,)), GOOD)
    world.sync()
    assert not world.engine.closed
    world.kernel.refuses = refuse("ports", lambda key, value: True)
    world.put(policy("a/x", web(n="0"), ingress=(rule(ports=ports(80, 90)),)))
    world.sync()
    assert world.open_from_outside() == "p1 p2 p3 q0 q1 q2 q3"
    world.put(policy("a/x", web(n="0"), ingress=(ALLOW,)))
    world.sync()
    assert world.open_from_outside() == "p0 p1 p2 p3 q0 q1 q2 q3"
    assert not world.engine.refusals.rows
    result = world.sync()
    assert (result.full, result.operations) == (False, 0), "passes are small again"


def ports(*numbers):
    return tuple(PortRange(first=number, last=number) for number in numbers)


def test_what_was_refused_is_tried_again_when_asked(world):
    world.put(policy("a/x", web(n="0"), ingress=(ALLOW,)))
    world.kernel.refuses = chain_of("np-ingress4-a/x")
    world.sync()
    world.kernel.refuses = lambda *_: 0
    world.sync()
    assert world.engine.closed, "not by itself: a search costs many trials"
    world.sync(again=True)
    assert not world.engine.closed
    assert world.open_from_outside() == "p0 p1 p2 p3 q0 q1 q2 q3"


def test_a_refused_address_closes_its_pod(world):
    world.put(policy("a/all", ingress=(ALLOW,)))
    world.kernel.refuses = refuse("judged_ingress4", lambda key, value: key == ip("p2"))
    world.sync()
    assert list(world.engine.closed) == ["a/p2"]
    assert world.open_from_outside() == "p0 p1 p3 q0 q1 q2 q3"


def test_a_refused_combination_closes_all_that_share_it_in_few_trials():
    world = World(200)
    world.put(policy("a/all", ingress=(ALLOW,)), GOOD)
    world.kernel.refuses = chain_of("pods-ingress4")
    world.sync()
    assert set(world.engine.closed) >= {f"a/p{number}" for number in range(200)}
    assert world.kernel.checks < 60


def test_somebody_missing_in_a_group_closes_whom_a_deny_would_protect(world):
    """The peer is not in the set, so the rule would let it through."""
    world.put(deny("admin", "a"))
    world.kernel.refuses = refuse("groups4", lambda key, value: key.startswith(ip("q3")))
    world.sync()
    assert not world.allowed("q3", "p0")
    assert set(world.engine.closed) == {f"a/p{number}" for number in range(4)}


def test_a_policy_that_comes_later_is_judged_by_what_is_known_to_be_refused(world):
    world.put(policy("a/bad", web(n="0"), ingress=(ALLOW,)))
    world.kernel.refuses = chain_of("np-ingress4-a/bad")
    world.sync()
    checks = world.kernel.checks
    world.put(policy("b/deny", web(n="3"), ingress=()))
    world.sync()
    assert world.open_from_outside() == "p1 p2 p3 q0 q1 q2"
    assert world.kernel.checks == checks


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EINTR, errno.ENOMEM, errno.EBUSY, errno.EPERM])
def test_circumstances_are_no_refusals(world, code):
    world.put(policy("a/x", ingress=()))
    world.kernel.fail = [KernelError(code, "change table")]
    with pytest.raises(KernelError):
        world.sync()
    assert world.kernel.checks == 0
    assert not about_content(KernelError(code, "x"))
    world.sync()
    assert world.open_from_outside() == "q0 q1 q2 q3"


def test_a_kernel_that_is_not_as_we_believed_is_read_back_and_nothing_is_refused(world):
    world.put(policy("a/x", ingress=()))
    world.sync()
    world.kernel.tables.clear()
    world.kernel.fail = [KernelError(errno.ENOENT, "change table")]
    world.put(policy("a/y", ingress=(ALLOW,)))
    world.sync()
    assert not world.engine.refusals.rows
    assert world.kernel.checks == 0
    assert world.open_from_outside() == "p0 p1 p2 p3 q0 q1 q2 q3"


def test_rows_refused_only_together_blame_nobody(world):
    world.put(policy("a/x", web(n="0"), ingress=()), policy("b/y", web(n="1"), ingress=()))
    seen = set()

    def both(table, key, value):
        if table == "chains" and "np-" in key:
            seen.add(key.rpartition("/")[2])
        return errno.E2BIG * (len(seen) == 2)

    check, apply = world.kernel.check, world.kernel.apply
    world.kernel.refuses = both

    def fresh(call):
        def made(changes):
            seen.clear()
            call(changes)

        return made

    world.kernel.check, world.kernel.apply = fresh(check), fresh(apply)
    with pytest.raises(KernelError, match="E2BIG"):
        world.sync()
    assert not world.engine.refusals.rows


def test_a_kernel_that_takes_no_table_at_all_blames_nobody(world):
    world.put(policy("a/x", ingress=()))
    world.kernel.refuses = lambda *_: errno.EOPNOTSUPP
    with pytest.raises(KernelError, match=r"ENOTSUP|EOPNOTSUPP"):
        world.sync()
    assert not world.engine.refusals.rows


def test_an_empty_selector_and_pods_of_two_families_are_closed_whole():
    world = World(1)
    meta = Meta(name="dual", namespace="a", labels={"n": "d"})
    world.store.put(POD, meta.key, Pod(meta=meta, node="n1", ips=("10.0.1.9", "fd00::9")))
    world.put(policy("a/x", Selector(), ingress=(ALLOW,)))
    world.kernel.refuses = chain_of("pods-ingress6")
    world.sync()
    assert list(world.engine.closed) == ["a/dual"]
    assert not NftCompiler().decide(whole(world.kernel), Packet(OUT, bytes((10, 0, 1, 9)), TCP, 80)).allowed
    assert world.allowed("out", "p0")
