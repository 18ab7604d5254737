"""Cases of ClusterNetworkPolicy: tiers, priorities, actions, peers, networks, protocols, names of ports."""

from __future__ import annotations

from collections.abc import Iterator

from tests.lab.policy_build import (
    Case,
    case,
    cnp,
    crule,
    ends,
    labels,
    named,
    networks,
    np,
    number,
    port,
    rule,
    space,
    step,
    where,
)

X, Y, Z = (labels(ns=name) for name in "xyz")
X_A = ends(X, labels(pod="a"))
EVERYBODY = ends()


def actions() -> Iterator[Case]:
    for direction in ("ingress", "egress"):
        shut = "deny * -> x/*" if direction == "ingress" else "deny x/* -> *"
        to_y = "y/* -> x/*" if direction == "ingress" else "x/* -> y/*"
        yield case(
            f"cnp-{direction}-deny",
            cnp("c", 10, ends(X), **{direction: [crule("Deny")]}),
            expect=[shut],
            services=direction == "ingress",
        )
        yield case(
            f"cnp-{direction}-accept-before-deny",
            cnp("c", 10, ends(X), **{direction: [crule("Accept", ends(Y)), crule("Deny")]}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-deny-before-accept",
            cnp("c", 10, ends(X), **{direction: [crule("Deny"), crule("Accept", ends(Y))]}),
            expect=[shut],
        )
        yield case(
            f"cnp-{direction}-small-priority-first",
            cnp("late", 20, ends(X), **{direction: [crule("Deny")]}),
            cnp("early", 10, ends(X), **{direction: [crule("Accept", ends(Y))]}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-equal-priority-by-name",
            cnp("a", 10, ends(X), **{direction: [crule("Accept", ends(Y))]}),
            cnp("b", 10, ends(X), **{direction: [crule("Deny")]}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-accept-over-network-policies",
            cnp("c", 10, ends(X), **{direction: [crule("Accept", ends(Y))]}),
            np("x/deny", **{direction: []}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-deny-over-network-policies",
            cnp("c", 10, ends(X), **{direction: [crule("Deny", ends(Y))]}),
            np("x/all", **{direction: [rule()]}),
            expect=[f"deny {to_y}"],
        )
        yield case(
            f"cnp-{direction}-pass-to-network-policies",
            cnp("c", 10, ends(X), **{direction: [crule("Pass", ends(Y)), crule("Deny")]}),
            np("x/p", **{direction: [rule(space("y"), ports=[port(80)])]}),
            expect=[shut, f"allow {to_y} 80/TCP"],
        )
        yield case(
            f"cnp-{direction}-pass-skips-later-admin",
            cnp("a", 10, ends(X), **{direction: [crule("Pass", ends(Y))]}),
            cnp("b", 20, ends(X), **{direction: [crule("Deny")]}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-baseline-deny",
            cnp("c", 10, ends(X), tier="Baseline", **{direction: [crule("Deny")]}),
            expect=[shut],
        )
        yield case(
            f"cnp-{direction}-network-policy-over-baseline",
            cnp("c", 10, ends(X), tier="Baseline", **{direction: [crule("Deny")]}),
            np("x/a", labels(pod="a"), **{direction: [rule(space("y"))]}),
            expect=[
                shut,
                "allow y/* -> x/a" if direction == "ingress" else "allow x/a -> y/*",
            ],
        )
        yield case(
            f"cnp-{direction}-baseline-accept-first",
            cnp("a", 1, ends(X), tier="Baseline", **{direction: [crule("Accept", ends(Y))]}),
            cnp("b", 2, ends(X), tier="Baseline", **{direction: [crule("Deny")]}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-baseline-pass",
            cnp("a", 1, ends(X), tier="Baseline", **{direction: [crule("Pass", ends(Y)), crule("Deny")]}),
            expect=[shut, f"allow {to_y}"],
        )
        yield case(
            f"cnp-{direction}-pass-through-to-baseline",
            cnp("a", 1, ends(X), **{direction: [crule("Pass", ends(Y)), crule("Accept", ends(Z))]}),
            cnp("b", 2, ends(X), tier="Baseline", **{direction: [crule("Deny")]}),
            expect=[shut, "allow z/* -> x/*" if direction == "ingress" else "allow x/* -> z/*"],
        )
        yield case(
            f"cnp-{direction}-admin-accept-over-baseline",
            cnp("a", 1000, ends(X), **{direction: [crule("Accept", ends(Y))]}),
            cnp("b", 0, ends(X), tier="Baseline", **{direction: [crule("Deny")]}),
            expect=[shut, f"allow {to_y}"],
        )


def peers() -> Iterator[Case]:
    yield case(
        "cnp-subject-pods",
        cnp("c", 1, X_A, ingress=[crule("Deny")], egress=[crule("Deny", ends(Z))]),
        expect=["deny * -> x/a", "deny x/a -> z/*"],
    )
    yield case(
        "cnp-subject-everybody",
        cnp("c", 1, ingress=[crule("Accept", ends({}, labels(pod="a"))), crule("Deny")]),
        expect=["deny * -> *", "allow */a -> *"],
    )
    yield case(
        "cnp-peer-pods",
        cnp("c", 1, X_A, ingress=[crule("Deny", ends(Y, labels(pod="b")))]),
        expect=["deny y/b -> x/a"],
    )
    yield case(
        "cnp-peer-expressions",
        cnp(
            "c",
            1,
            ends(where(("ns", "In", "x", "y"))),
            ingress=[crule("Deny", ends(where(("ns", "NotIn", "z")), where(("pod", "Exists"))))],
        ),
        expect=["deny [xy]/* -> [xy]/*"],
    )
    yield case(
        "cnp-several-peers",
        cnp("c", 1, X_A, egress=[crule("Deny", ends(Y, labels(pod="b")), ends(Z))]),
        expect=["deny x/a -> y/b", "deny x/a -> z/*"],
    )
    yield case(
        "cnp-networks",
        cnp("c", 1, ends(X), egress=[crule("Deny", networks("<y/b v4/32>", "<z/c v6/128>"))]),
        expect=["deny x/* -> y/b v4", "deny x/* -> z/c v6"],
        services=True,
    )
    yield case(
        "cnp-networks-around-one-that-is-accepted",
        cnp(
            "c",
            1,
            ends(X),
            egress=[
                crule("Accept", networks("<y/b v4/32>", "<y/b v6/128>")),
                crule("Deny", networks("0.0.0.0/0", "::/0")),
            ],
        ),
        expect=["deny x/* -> *", "allow x/* -> y/b"],
    )
    yield case(
        "cnp-networks-and-pods",
        cnp("c", 1, X_A, egress=[crule("Deny", networks("<y/b v4/24>"), ends(Z, labels(pod="a")))]),
    )
    for action, expect in (("Accept", []), ("Deny", ["deny x/* -> *"]), ("Pass", ["deny x/* -> *"])):
        yield case(
            f"cnp-unknown-peer-{action.lower()}",
            cnp("c", 1, ends(X), egress=[crule(action, {"unheardOf": {}})]),
            expect=expect,
        )


def protocols() -> Iterator[Case]:
    for word in ("tcp", "udp", "sctp"):
        name = word.upper()
        yield case(
            f"cnp-{word}-number",
            cnp("c", 1, X_A, ingress=[crule("Deny", protocols=[number(word, 80)])]),
            expect=[f"deny * -> x/a 80/{name}"],
        )
        yield case(
            f"cnp-{word}-range",
            cnp("c", 1, X_A, egress=[crule("Deny", protocols=[number(word, 81, 90)])]),
            expect=[f"deny x/a -> * 81/{name}"],
        )
        yield case(
            f"cnp-{word}-name",
            cnp("c", 1, ends(X), ingress=[crule("Deny", protocols=[named(f"serve-81-{word}")])]),
            expect=[f"deny * -> x/* 81/{name}"],
        )
    yield case(
        "cnp-name-at-egress",
        cnp("c", 1, X_A, egress=[crule("Accept", protocols=[named("serve-80-tcp")]), crule("Deny")]),
        expect=["deny x/a -> *", "allow x/a -> * 80/TCP"],
        services=True,
    )
    yield case(
        "cnp-several-protocols",
        cnp(
            "c",
            1,
            X_A,
            ingress=[
                crule("Accept", ends(Y), protocols=[number("tcp", 80), number("udp", 80, 81)]),
                crule("Deny"),
            ],
        ),
        expect=["deny * -> x/a", "allow y/* -> x/a 80/TCP", "allow y/* -> x/a */UDP"],
    )
    yield case(
        "cnp-ports-fall-through-to-the-next-rule",
        cnp(
            "c",
            1,
            ends(X),
            ingress=[
                crule("Accept", ends(Y), protocols=[number("tcp", 80)]),
                crule("Deny", ends(Y)),
                crule("Pass", ends(Z)),
                crule("Deny", protocols=[number("udp", 81)]),
            ],
        ),
        np("x/p", labels(pod="b"), ingress=[]),
        expect=[
            *("deny * -> x/b", "deny y/* -> x/*", "allow y/* -> x/* 80/TCP"),
            *("deny x/* -> x/* 81/UDP",),
        ],
    )


def over_time() -> Iterator[Case]:
    shut = cnp("c", 5, ends(X), ingress=[crule("Deny")])
    yield Case(
        "cnp-time-priorities-change",
        (
            step(shut, cnp("d", 6, ends(X), ingress=[crule("Accept")]), expect=["deny * -> x/*"]),
            step(shut, cnp("d", 4, ends(X), ingress=[crule("Accept")]), expect=[]),
            step(
                shut, cnp("d", 4, ends(X), ingress=[crule("Accept", ends(Z))]), expect=["deny [xy]/* -> x/*"]
            ),
            step(expect=[]),
        ),
    )
    yield Case(
        "cnp-time-tier-changes",
        (
            step(shut, np("x/all", ingress=[rule()]), expect=["deny * -> x/*"]),
            step(
                {**shut, "spec": {**shut["spec"], "tier": "Baseline"}},
                np("x/all", ingress=[rule()]),
                expect=[],
            ),
            step({**shut, "spec": {**shut["spec"], "tier": "Baseline"}}, expect=["deny * -> x/*"]),
        ),
    )
    gold = cnp("c", 5, ends(labels(gold="yes")), ingress=[crule("Deny", ends(labels(ns="x")))])
    yield Case(
        "cnp-time-namespaces-become-subjects",
        (
            step(gold, expect=[]),
            step(gold, spaces={"y": {"ns": "y", "gold": "yes"}}, expect=["deny x/* -> y/*"]),
            step(
                gold,
                spaces={"y": {"gold": "yes"}, "x": {"ns": "x", "gold": "yes"}},
                expect=["deny x/* -> [xy]/*"],
            ),
        ),
    )


CLUSTER: list[Case] = [item for make in (actions, peers, protocols, over_time) for item in make()]
