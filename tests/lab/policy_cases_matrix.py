"""Cases by category, in the manner of cyclonus: targets, peers, blocks, ports, rules, conflicts, types, over time.

Made as products of small tables; where no expectation is written the oracle's is taken, which the upstream cases and its
own tests hold to the API text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.lab.policy_build import Case, block, blocks, case, labels, np, pods, port, rule, space, step, where
from tests.lab.policy_world import Mappings

A = labels(pod="a")
DIRECTIONS = ("ingress", "egress")
PROTOCOLS = ("TCP", "UDP", "SCTP")


def one(direction: str, *rules: Any, key: str = "x/p", target: Mappings | None = None) -> Mappings:
    """A policy of one direction for pod x/a."""
    return np(key, A if target is None else target, **{direction: list(rules)})


def closed(direction: str) -> str:
    return "deny * -> x/a" if direction == "ingress" else "deny x/a -> *"


def with_peer(direction: str, peer: str, service: str = "") -> str:
    return f"allow {peer} -> x/a {service}" if direction == "ingress" else f"allow x/a -> {peer} {service}"


def targets() -> Iterator[Case]:
    selectors = {
        "all": ({}, "*"),
        "label": (labels(pod="b"), "b"),
        "in": (where(("pod", "In", "a", "b")), "[ab]"),
        "not-in": (where(("pod", "NotIn", "a", "b")), "c"),
        "exists": (where(("pod", "Exists")), "*"),
        "does-not-exist": (where(("pod", "DoesNotExist")), "none"),
        "two-expressions": (where(("pod", "In", "a", "b"), ("pod", "NotIn", "b")), "a"),
        "label-and-expression": ({**labels(all="pods"), **where(("pod", "In", "c"))}, "c"),
        "nobody": (labels(pod="nobody"), "none"),
    }
    for name, (selector, letter) in selectors.items():
        yield case(
            f"target-{name}",
            np("y/p", selector, ingress=[], egress=[]),
            expect=[f"deny * -> y/{letter}", f"deny y/{letter} -> *"],
        )


def peers() -> Iterator[Case]:
    namespaces = {
        "own": None,
        "every": {},
        "label": labels(ns="y"),
        "in": where(("ns", "In", "x", "z")),
        "not-in": where(("ns", "NotIn", "x")),
    }
    of = {
        "any": None,
        "every": {},
        "label": labels(pod="b"),
        "in": where(("pod", "In", "a", "b")),
        "not-in": where(("pod", "NotIn", "b")),
    }
    extra = {
        "exists": ({}, where(("pod", "Exists"), ("new", "DoesNotExist"))),
        "does-not-exist": (where(("new", "DoesNotExist"), ("ns", "Exists")), where(("pod", "DoesNotExist"))),
    }
    pairs = {(f"{a}-{b}"): (namespaces[a], of[b]) for a in namespaces for b in of} | extra
    del pairs["own-any"]
    for direction in DIRECTIONS:
        for name, (spaces, selector) in pairs.items():
            found = {"namespaceSelector": spaces, "podSelector": selector}
            peer = {key: value for key, value in found.items() if value is not None}
            yield case(f"peer-{direction}-{name}", one(direction, rule(peer)))
        yield case(
            f"peer-{direction}-several",
            one(direction, rule(pods(pod="b"), space("y", pod="c"), space("z"))),
            expect=[
                closed(direction),
                *(with_peer(direction, peer) for peer in ("x/b", "y/c", "z/*")),
            ],
        )


def ip_blocks() -> Iterator[Case]:
    for direction in DIRECTIONS:
        shut = closed(direction)

        def made(name: str, *found: Any, expect: list[str] | None = None, way: str = direction) -> Case:
            return case(f"block-{way}-{name}", one(way, rule(*found)), expect=expect)

        yield made("one-address", *blocks("z/c", 32, 128), expect=[shut, with_peer(direction, "z/c")])
        yield made("ipv4-only", block("<y/b v4/32>"), expect=[shut, with_peer(direction, "y/b", "v4")])
        yield made("ipv6-only", block("<y/b v6/128>"), expect=[shut, with_peer(direction, "y/b", "v6")])
        yield made("a-node", *blocks("y/b", 24, 64))
        yield made("everything", block("0.0.0.0/0"), block("::/0"), expect=[])
        yield made("everything-of-ipv6", block("::/0"), expect=[shut, with_peer(direction, "*", "v6")])
        yield made(
            "all-but-one",
            *blocks("y/b", 16, 48, excluded=[("y/b", 32, 128)]),
            expect=[f"{'deny y/b -> x/a' if direction == 'ingress' else 'deny x/a -> y/b'}"],
        )
        yield made("all-but-a-node", *blocks("y/b", 16, 48, excluded=[("y/b", 24, 64), ("z/c", 30, 126)]))
        yield made(
            "excluded-and-named-again",
            *blocks("y/b", 16, 48, excluded=[("y/b", 24, 64)]),
            *blocks("y/b", 32, 128),
        )
        yield made(
            "beside-selectors",
            *blocks("y/b", 32, 128),
            pods(pod="b"),
            expect=[shut, with_peer(direction, "y/b"), with_peer(direction, "x/b")],
        )
        yield made("nobody-here", block("192.0.2.0/24"), block("2001:db8::/32"), expect=[shut])
        yield case(
            f"block-{direction}-with-ports",
            one(direction, rule(*blocks("y/b", 32, 128), ports=[port(80), port(81, "UDP")])),
            expect=[
                shut,
                with_peer(direction, "y/b", "80/TCP"),
                with_peer(direction, "y/b", "81/UDP"),
            ],
        )
    # A name means a pod's port; in a block there are no pods.
    yield case(
        "block-egress-with-a-name",
        one("egress", rule(*blocks("y/b", 32, 128), ports=[port("serve-80-tcp")])),
        expect=["deny x/a -> *"],
    )
    yield case(
        "block-ingress-with-a-name",
        one("ingress", rule(*blocks("y/b", 32, 128), ports=[port("serve-80-tcp")])),
        expect=["deny * -> x/a", "allow y/b -> x/a 80/TCP"],
    )


def ports() -> Iterator[Case]:
    for direction in DIRECTIONS:
        for protocol in PROTOCOLS:
            word = protocol.lower()
            given = {
                "number": ([port(80, protocol)], f"80/{protocol}"),
                "name": ([port(f"serve-81-{word}", protocol)], f"81/{protocol}"),
                "range": ([port(79, protocol, 80)], f"80/{protocol}"),
                "range-of-both": ([port(80, protocol, 90)], f"8?/{protocol}"),
                "all": ([port(protocol=protocol)], f"*/{protocol}"),
            }
            for name, (wanted, service) in given.items():
                yield case(
                    f"port-{direction}-{word}-{name}",
                    one(direction, rule(ports=wanted)),
                    expect=[closed(direction), with_peer(direction, "*", service)],
                )
        several = {
            "two": ([port(80), port(81, "UDP")], ["80/TCP", "81/UDP"]),
            "three-protocols": (
                [port(80), port("serve-81-udp", "UDP"), port(80, "SCTP", 81)],
                ["80/TCP", "81/UDP", "8?/SCTP"],
            ),
            "name-of-another-protocol": ([port("serve-80-udp", "TCP")], []),
            "unknown-name": ([port("serve-82-tcp")], []),
            "without-protocol": ([port(81, None)], ["81/TCP"]),
            "name-without-protocol": ([port("serve-80-tcp", None)], ["80/TCP"]),
            "overlapping": ([port(80), port(1, "TCP", 80), port("serve-80-tcp")], ["80/TCP"]),
            "whole-range": ([port(1, "UDP", 65535)], ["*/UDP"]),
        }
        for name, (wanted, services) in several.items():
            yield case(
                f"port-{direction}-{name}",
                one(direction, rule(ports=wanted)),
                expect=[closed(direction), *(with_peer(direction, "*", item) for item in services)],
            )
        yield case(
            f"port-{direction}-of-a-peer",
            one(direction, rule(space("y"), ports=[port(80)]), rule(pods(pod="b"), ports=[port(81, "UDP")])),
            expect=[
                closed(direction),
                with_peer(direction, "y/*", "80/TCP"),
                with_peer(direction, "x/b", "81/UDP"),
            ],
            services=True,
        )


def rules() -> Iterator[Case]:
    for direction in DIRECTIONS:
        yield case(f"rules-{direction}-none", one(direction), expect=[closed(direction)])
        yield case(f"rules-{direction}-empty", one(direction, rule()), expect=[])
        yield case(
            f"rules-{direction}-two",
            one(direction, rule(pods(pod="b")), rule(space("y"))),
            expect=[closed(direction), with_peer(direction, "x/b"), with_peer(direction, "y/*")],
        )
        yield case(
            f"rules-{direction}-one-shadows-another",
            one(direction, rule(space("y"), ports=[port(80)]), rule(space("y"))),
            expect=[closed(direction), with_peer(direction, "y/*")],
        )
        # Missing types: ingress always, egress with at least one egress rule.
        untyped = one(direction, rule(pods(pod="b")))
        del untyped["spec"]["policyTypes"]
        both = [] if direction == "ingress" else ["deny * -> x/a"]
        yield case(
            f"types-missing-with-{direction}",
            untyped,
            expect=[*both, closed(direction), with_peer(direction, "x/b")]
            if direction == "ingress"
            else ["deny * -> x/a", "deny x/a -> *", "allow x/a -> x/b"],
        )
        other = {"ingress": "Egress", "egress": "Ingress"}[direction]
        mistyped = one(direction, rule())
        mistyped["spec"]["policyTypes"] = [other]
        yield case(f"types-other-than-{direction}", mistyped, expect=[closed(other.lower())])


def conflicts() -> Iterator[Case]:
    clients = {
        "open": None,
        "shut": [],
        "all": [rule()],
        "to-b": [rule(space("y", pod="b"))],
    }
    servers = {"shut": [], "all": [rule()], "from-a": [rule(space("x", pod="a"))]}
    for client, egress in clients.items():
        for server, ingress in servers.items():
            policies = [np("y/server", labels(pod="b"), ingress=ingress)]
            if egress is not None:
                policies.append(np("x/client", A, egress=egress))
            yield case(f"conflict-client-{client}-server-{server}", *policies, services=client == "to-b")
    yield case(
        "conflict-two-of-one-pod",
        np("x/deny", A, ingress=[]),
        np("x/b", A, ingress=[rule(pods(pod="b"))]),
        np("x/c", A, ingress=[rule(pods(pod="c"), ports=[port(80)])]),
        expect=["deny * -> x/a", "allow x/b -> x/a", "allow x/c -> x/a 80/TCP"],
    )


def over_time() -> Iterator[Case]:
    new = {"new": "yes"}
    y_new, shut = {"ns": "y", **new}, "deny * -> x/a"
    by_space = np("x/p", A, ingress=[rule({"namespaceSelector": labels(**new)})])
    by_pod = np("x/p", A, ingress=[rule({"namespaceSelector": {}, "podSelector": labels(**new)})])
    target = np("x/p", labels(**new), ingress=[], egress=[])
    yield Case(
        "time-namespace-labelled-and-back",
        (
            step(by_space, expect=[shut]),
            step(by_space, spaces={"y": y_new}, expect=[shut, "allow y/* -> x/a"]),
            step(by_space, spaces={"z": {"ns": "z", **new}}, expect=[shut, "allow z/* -> x/a"]),
            step(by_space, expect=[shut]),
        ),
    )
    yield Case(
        "time-pods-labelled-and-back",
        (
            step(by_pod, expect=[shut]),
            step(by_pod, pods={"z/c": {"pod": "c", **new}}, expect=[shut, "allow z/c -> x/a"]),
            step(
                by_pod,
                pods={"z/c": {"pod": "c", **new}, "y/a": {"pod": "a", **new}},
                expect=[shut, "allow z/c -> x/a", "allow y/a -> x/a"],
            ),
            step(by_pod, pods={"y/a": {"pod": "a", **new}}, expect=[shut, "allow y/a -> x/a"]),
        ),
    )
    yield Case(
        "time-isolated-and-free-again",
        (
            step(target, pods={"x/b": {"pod": "b", **new}}, expect=["deny * -> x/b", "deny x/b -> *"]),
            step(
                target,
                pods={"x/b": {"pod": "b", **new}, "x/c": {"pod": "c", **new}},
                expect=["deny * -> x/[bc]", "deny x/[bc] -> *"],
            ),
            step(target, expect=[]),
        ),
    )
    yield Case(
        "time-a-rule-changes",
        (
            step(one("ingress", rule(pods(pod="b"))), expect=[shut, "allow x/b -> x/a"]),
            step(one("ingress", rule(pods(pod="c"))), expect=[shut, "allow x/c -> x/a"]),
            step(
                one("ingress", rule(pods(pod="c"), ports=[port(80)])),
                expect=[shut, "allow x/c -> x/a 80/TCP"],
            ),
            step(one("egress", rule(pods(pod="c"))), expect=["deny x/a -> *", "allow x/a -> x/c"]),
        ),
    )
    yield Case(
        "time-a-policy-moves-to-another-pod",
        (
            step(np("x/p", A, ingress=[]), expect=[shut]),
            step(np("x/p", labels(pod="b"), ingress=[]), expect=["deny * -> x/b"]),
            step(np("x/p", ingress=[]), expect=["deny * -> x/*"]),
        ),
    )
    yield Case(
        "time-added-and-removed-one-by-one",
        tuple(
            step(
                *[np(f"x/p{name}", A, ingress=[rule(pods(pod=name))]) for name in held],
                expect=[shut if held else "allow * -> x/a", *(f"allow x/{name} -> x/a" for name in held)],
            )
            for held in ("b", "bc", "c", "")
        ),
    )


def together() -> Iterator[Case]:
    """Many policies at a time."""
    found = [item for make in (peers, ip_blocks, ports) for item in make()]
    for start in range(3):
        policies = []
        for index, item in enumerate(found[start::7]):
            space_name, letter = "xyz"[index % 3], "abc"[index // 3 % 3]
            manifest = item.steps[0].policies[0]
            policies.append(
                {
                    **manifest,
                    "metadata": {"name": f"p{index}", "namespace": space_name},
                    "spec": {**manifest["spec"], "podSelector": labels(pod=letter)},
                }
            )
        yield case(f"together-{start}", *policies, services=start == 0)


MATRIX: list[Case] = [
    item
    for make in (targets, peers, ip_blocks, ports, rules, conflicts, over_time, together)
    for item in make()
]
