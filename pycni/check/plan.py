"""What is tried: every test with its cases, from who is there. Pure.

Life: ``tests`` is called without pods to list what there would be, and with them for the cases. Nodes are tried against
each other in a mesh while they are few, else in a ring, so that a check of a large cluster stays short.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from pycni.check import objects
from pycni.check.cases import SERVERS, Cases, Door
from pycni.check.model import (
    ALLOW,
    DENY,
    NAMESPACE,
    NODE,
    OPEN,
    OUTSIDE,
    POD,
    Case,
    Expect,
    Host,
    Scene,
    Site,
    Test,
)
from pycni.model.family import Family

REACH = ("ping", *SERVERS)
ASKED = 6
"""Questions to a Service, one after the other."""
OWN_NODE, NO_OTHER = "pods on the underlay do not reach their own node", "there is one node only"
NO_SERVICES = "the agents serve no Services"
NO_POLICIES = "the agents enforce no policies"


def tests(scene: Scene) -> list[Test]:
    """All of them, in the order of the table."""
    made = Cases(scene)
    return [*_reach(made), *_sizes(made), *_services(made), *_names(made), *_outside(made), *_policies(made)]


def sketch() -> Scene:
    """A scene with everything there can be: its tests are all there are."""
    reached = {Family.V4: "0.0.0.0"}
    nodes = tuple(
        Host(name=f"node{number}", kind=NODE, node=f"node{number}", addresses=reached) for number in (1, 2)
    )
    site = Site(
        name="",
        nodes=nodes,
        families=(Family.V4,),
        outside=Host(name=OUTSIDE, kind=OUTSIDE, addresses=reached),
        outside_is_ours=True,
    )
    pods = {
        name: Host(name=name, kind=POD, node=node, addresses=reached)
        for name, node in objects.pods(site).items()
    }
    service = {"clusterIPs": ["0.0.0.0"], "ports": [{"protocol": "TCP", "nodePort": 1}]}
    return Scene(
        site=site, pods=pods, services=dict.fromkeys((objects.ALL, objects.OWN, objects.STICKY), service)
    )


def chosen(found: Iterable[Test], patterns: Sequence[str]) -> list[Test]:
    """Those whose name matches one of the patterns (``*`` for anything, a part of the name too); all without any."""
    return [
        test
        for test in found
        if not patterns or any(fnmatchcase(test.name, item) or item in test.name for item in patterns)
    ]


def _test(
    name: str, about: str, cases: Callable[[], Iterable[Case]], skipped: str = "", phase: int = OPEN
) -> Test:
    found = () if skipped else tuple(cases())
    return Test(
        name=name,
        about=about,
        phase=phase,
        cases=found,
        skipped=skipped or ("" if found else "nothing to try it with"),
    )


def _reach(made: Cases) -> list[Test]:
    own = OWN_NODE if made.site.beside_node else ""
    other = "" if made.far else NO_OTHER
    turned = [(node, pod) for pod, node in made.own_node()]
    back = [(node, pod) for pod, node in made.next_node()]
    rest = [(one, two) for (_, one), (_, two) in itertools.pairwise(made.own_node())]
    return [
        _test(
            "pod-to-pod-same-node",
            "a pod reaches another one on its node",
            lambda: made.each([(made.a, made.b), (made.b, made.a)], REACH),
        ),
        _test(
            "pod-to-pod-other-node",
            "pods reach those of other nodes",
            lambda: made.each(made.between_nodes(), REACH),
            other,
        ),
        _test("pod-to-own-node", "pods reach their own node", lambda: made.each(made.own_node(), REACH), own),
        _test("pod-to-other-node", "pods reach other nodes", lambda: made.each(made.next_node(), REACH), other),
        _test("node-to-own-pod", "nodes reach their own pods", lambda: made.each(turned, REACH), own),
        _test("node-to-other-pod", "nodes reach pods of others", lambda: made.each(back, REACH), other),
        _test(
            "host-network",
            "programs in the nodes' own networks reach each other",
            lambda: made.each(rest, SERVERS),
            other,
        ),
    ]  # fmt: skip


def _sizes(made: Cases) -> list[Test]:
    other = "" if made.far else NO_OTHER
    return [
        _test(
            "mtu-same-node",
            "packets as large as a pod may send arrive whole on its node",
            lambda: made.each([(made.a, made.b)], ("mtu",)),
        ),
        _test(
            "mtu-other-node",
            "packets as large as a pod may send arrive whole on other nodes",
            lambda: made.each(made.between_nodes(), ("mtu",)),
            other,
        ),
        _test(
            "bulk-other-node",
            "4 MiB by TCP go to another node and come back unchanged",
            lambda: made.each([(made.a, pod) for pod in made.far[:2]], ("bulk",)),
            other,
        ),
    ]


def _services(made: Cases) -> list[Test]:
    none = "" if made.site.services else NO_SERVICES
    beside = none or ("pods on the underlay pass by their node" if made.site.beside_node else "")
    someone = Expect(who=made.servers)
    outside = [made.site.outside] if made.site.outside is not None and made.site.outside_is_ours else []
    nodes = made.site.nodes
    return [
        _test(
            "service-from-pod",
            "a Service answers pods of every node by its cluster address",
            lambda: made.served(objects.ALL, [made.a, *made.far], someone, count=ASKED),
            beside,
        ),
        _test(
            "service-from-node",
            "it answers nodes",
            lambda: made.served(objects.ALL, nodes, someone, count=ASKED),
            none,
        ),
        _test(
            "service-hairpin",
            "a pod reaches the Service it is alone behind",
            lambda: made.served(objects.OWN, [made.a], Expect(who=(made.a.name,))),
            beside,
        ),
        _test(
            "service-affinity",
            "with session affinity it is always the same pod that answers",
            lambda: made.served(objects.STICKY, [made.c], Expect(who=made.servers, same=True), count=ASKED),
            beside,
        ),
        _test(
            "service-nodeport",
            "node ports answer pods and nodes, at their own node and at another",
            lambda: [
                *made.node_ports([made.first], nodes[:2], someone),
                *([] if beside else made.node_ports([made.a], nodes[-1:], someone)),
            ],
            none,
        ),
        _test(
            "service-nodeport-outside",
            "node ports of every node answer from outside of the cluster",
            lambda: made.node_ports(outside, nodes, someone),
            none or ("" if outside else "nobody outside to ask from"),
        ),
    ]


def _names(made: Cases) -> list[Test]:
    domain = made.site.dns
    none = "" if domain else "the cluster has no DNS"
    if made.site.beside_node:
        none = none or "pods on the underlay pass by their node"
    who = [made.a, *made.far[:1]]
    pods = list(made.scene.pods.values())
    short = f"{objects.ALL}.{NAMESPACE}"

    def name(service: str, family: Family, source: Host, addresses: Sequence[str]) -> Case:
        full = f"{service}.{NAMESPACE}.svc.{domain}"
        return made.case(source, Door(full, family, full), "name", Expect(addresses=tuple(sorted(addresses))))

    return [
        _test(
            "dns-service",
            "a Service's name stands for its addresses, and answers",
            lambda: [
                *(
                    name(objects.ALL, family, source, [address])
                    for source in who
                    for family, address in made.addresses(objects.ALL).items()
                ),
                *(
                    made.case(source, Door(short, made.site.families[0], short, 80), "tcp", Expect(who=made.servers))
                    for source in who
                ),
            ],
            none or ("" if made.site.services else NO_SERVICES),
        ),
        _test(
            "dns-headless",
            "a headless Service's name stands for its pods",
            lambda: [
                name(objects.HEADLESS, family, source, [pod.addresses[family] for pod in pods])
                for source in who
                for family in made.site.families
                if all(family in pod.addresses for pod in pods)
            ],
            none or ("" if made.site.services else NO_SERVICES),
        ),
    ]  # fmt: skip


def _outside(made: Cases) -> list[Test]:
    outside, site = made.site.outside, made.site

    def cases() -> Iterator[Case]:
        assert outside is not None, "skipped without"
        for source, family in itertools.product([made.a, *made.far], outside.addresses):
            if family not in source.addresses:
                continue
            home = next(node for node in site.nodes if node.name == source.node)
            hidden = home.addresses.get(family, "")
            seen = (source.addresses[family],) if site.beside_node else (hidden,)
            for kind in SERVERS if site.outside_is_ours else ("reach",):
                expect = Expect(seen=seen if site.outside_is_ours else ())
                at = Door(outside.name, family, outside.addresses[family], site.outside_port)
                yield made.case(source, at, kind, expect)

    return [
        _test(
            "egress-outside",
            "pods reach a host outside of the cluster, by their node's address",
            cases,
            "" if outside is not None else "no host outside is known (--outside)",
        )
    ]


def _policies(made: Cases) -> list[Test]:
    none = "" if made.site.policies else NO_POLICIES
    shut = made.scene.pods[objects.guarded(made.site)]
    denied = Expect(denied=True)
    beyond = made.c if shut is not made.c else made.far[0] if made.far else None

    def only(
        pairs: Sequence[tuple[Host, Host]], expect: Expect | None = None
    ) -> Callable[[], Iterator[Case]]:
        return lambda: made.each(pairs, SERVERS, expect)

    return [
        _test(
            "policy-deny-ingress",
            "a policy without rules lets nobody in",
            only([(made.a, shut), *([(beyond, shut)] if beyond else [])], denied),
            none,
            DENY,
        ),
        _test("policy-deny-egress", "one for egress lets nobody out", only([(made.b, made.a)], denied), none, DENY),
        _test(
            "policy-allow-ingress", "a rule lets in whom it names", only([(made.a, shut)]), none, ALLOW
        ),
        _test(
            "policy-others-denied",
            "and nobody else",
            only([(beyond, shut)] if beyond else [], denied),
            none,
            ALLOW,
        ),
        _test(
            "policy-allow-egress", "a rule lets out to whom it names", only([(made.b, made.a)]), none, ALLOW
        ),
        _test(
            "policy-egress-denied",
            "and to nobody else",
            only([(made.b, pod) for pod in made.far[1:2] or [made.c]], denied),
            none,
            ALLOW,
        ),
    ]  # fmt: skip
