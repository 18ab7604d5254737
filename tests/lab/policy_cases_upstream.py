"""The 48 behaviours of Kubernetes' own end-to-end tests of NetworkPolicy, with what the API text says comes of them.

Expectations are written by hand from the text, for every pair of pods, port and protocol, not taken from the oracle.
"""

from __future__ import annotations

from tests.lab.policy_build import (
    EVERY,
    NAME,
    Case,
    blocks,
    case,
    labels,
    np,
    pods,
    port,
    rule,
    space,
    step,
    where,
)

A = labels(pod="a")
CLOSED = "deny * -> x/a"

_TCP: list[Case] = [
    case("default-deny-ingress", np("x/deny", ingress=[]), expect=["deny * -> x/*"], services=True),
    case(
        "default-deny-all",
        np("x/deny", ingress=[], egress=[]),
        expect=["deny * -> x/*", "deny x/* -> *"],
        services=True,
    ),
    case(
        "pod-selector-in-own-namespace",
        np("x/p", A, ingress=[rule(pods(pod="b"))]),
        expect=[CLOSED, "allow x/b -> x/a"],
        services=True,
    ),
    case(
        "target-allowed-over-deny-all",
        np("x/deny", ingress=[]),
        np("x/p", A, ingress=[rule(space())]),
        expect=["deny * -> x/*", "allow * -> x/a"],
    ),
    case("from-all-namespaces", np("x/p", A, ingress=[rule(space())]), expect=[]),
    case(
        "only-another-namespace",
        np("x/p", A, ingress=[rule(space("y"))]),
        expect=[CLOSED, "allow y/* -> x/a"],
    ),
    case(
        "pod-selector-expressions",
        np("x/p", A, ingress=[rule({"podSelector": where(("pod", "In", "b"))})]),
        expect=[CLOSED, "allow x/b -> x/a"],
    ),
    case(
        "namespace-selector-expressions",
        np("x/p", A, ingress=[rule({"namespaceSelector": where(("ns", "In", "y"))})]),
        expect=[CLOSED, "allow y/* -> x/a"],
    ),
    case(
        "pod-or-namespace",
        np("x/p", A, ingress=[rule(pods(pod="b"), space("y"))]),
        expect=[CLOSED, "allow x/b -> x/a", "allow y/* -> x/a"],
    ),
    case(
        "pod-and-namespace",
        np("x/p", A, ingress=[rule(space("y", pod="b"))]),
        expect=[CLOSED, "allow y/b -> x/a"],
    ),
    case(
        "several-and-with-not-in",
        np(
            "x/p",
            A,
            ingress=[
                rule(
                    {
                        "namespaceSelector": where(("ns", "NotIn", "x")),
                        "podSelector": where(("pod", "In", "b", "c")),
                    }
                )
            ],
        ),
        expect=[CLOSED, "allow y/[bc] -> x/a", "allow z/[bc] -> x/a"],
    ),
    case(
        "several-peers",
        np("x/p", A, ingress=[rule(pods(pod="b"), pods(pod="c"))]),
        expect=[CLOSED, "allow x/[bc] -> x/a"],
    ),
    case(
        "one-pod-of-another-namespace",
        np("x/p", A, ingress=[rule(space("y", pod="a"))]),
        expect=[CLOSED, "allow y/a -> x/a"],
        services=True,
    ),
    case(
        "by-port",
        np("x/p", A, ingress=[rule(space("y"), ports=[port(81)])]),
        expect=[CLOSED, "allow y/* -> x/a 81/TCP"],
        services=True,
    ),
    Case(
        "stacked-policies",
        (
            step(
                np("x/p81", A, ingress=[rule(space("y"), ports=[port(81)])]),
                expect=[CLOSED, "allow y/* -> x/a 81/TCP"],
            ),
            step(
                np("x/p81", A, ingress=[rule(space("y"), ports=[port(81)])]),
                np("x/p80", A, ingress=[rule(space("y"), ports=[port(80)])]),
                expect=[CLOSED, "allow y/* -> x/a 8?/TCP"],
            ),
        ),
    ),
    Case(
        "allow-all-over-a-narrower-one",
        (
            step(
                np("x/p81", ingress=[rule(space("y"), ports=[port(81)])]),
                expect=["deny * -> x/*", "allow y/* -> x/* 81/TCP"],
            ),
            step(
                np("x/p81", ingress=[rule(space("y"), ports=[port(81)])]),
                np("x/all", ingress=[rule()]),
                expect=[],
            ),
        ),
    ),
    case(
        "named-port",
        np("x/p", A, ingress=[rule(ports=[port("serve-81-tcp")])]),
        expect=[CLOSED, "allow * -> x/a 81/TCP"],
        services=True,
    ),
    case(
        "named-port-from-a-namespace",
        np("x/p", A, ingress=[rule(space("y"), ports=[port("serve-80-tcp")])]),
        expect=[CLOSED, "allow y/* -> x/a 80/TCP"],
    ),
    case(
        "named-port-at-egress",
        np("x/p", A, egress=[rule(ports=[port("serve-80-tcp")])]),
        expect=["deny x/a -> *", "allow x/a -> * 80/TCP"],
        services=True,
    ),
    Case(
        "updated-policy",
        (
            step(np("x/p", ingress=[rule()]), expect=[]),
            step(np("x/p", ingress=[]), expect=["deny * -> x/*"]),
        ),
    ),
    Case(
        "updated-namespace-label",
        (
            step(np("x/p", A, ingress=[rule({"namespaceSelector": labels(ns2="updated")})]), expect=[CLOSED]),
            step(
                np("x/p", A, ingress=[rule({"namespaceSelector": labels(ns2="updated")})]),
                spaces={"y": {"ns": "y", "ns2": "updated"}},
                expect=[CLOSED, "allow y/* -> x/a"],
            ),
        ),
    ),
    Case(
        "updated-pod-label",
        (
            step(np("x/p", A, ingress=[rule(pods(pod="b", pod2="updated"))]), expect=[CLOSED]),
            step(
                np("x/p", A, ingress=[rule(pods(pod="b", pod2="updated"))]),
                pods={"x/b": {"pod": "b", "pod2": "updated"}},
                expect=[CLOSED, "allow x/b -> x/a"],
            ),
        ),
    ),
    case(
        "no-other-namespaces",
        np("x/p", ingress=[rule(pods())]),
        expect=["deny y/* -> x/*", "deny z/* -> x/*"],
    ),
    Case(
        "a-pod-becomes-isolated",
        (
            step(np("x/p", labels(target="isolated"), ingress=[]), expect=[]),
            step(
                np("x/p", labels(target="isolated"), ingress=[]),
                pods={"x/a": {"pod": "a", "target": "isolated"}},
                expect=[CLOSED],
            ),
        ),
    ),
    case("egress-denied-to-a-pod", np("x/p", A, egress=[]), expect=["deny x/a -> *"], services=True),
    case("egress-denied-to-a-namespace", np("x/p", egress=[]), expect=["deny x/* -> *"]),
    Case(
        "ingress-and-egress-together",
        (
            step(
                np("x/p", A, ingress=[rule(pods(pod="b"))], egress=[rule(ports=[port(80)])]),
                expect=["deny * -> x/a", "deny x/a -> *", "allow x/b -> x/a", "allow x/a -> * 80/TCP"],
            ),
            step(
                np(
                    "x/p",
                    A,
                    ingress=[rule(pods(pod="b"))],
                    egress=[rule(ports=[port(80), port(81, "UDP")])],
                ),
                expect=[
                    *("deny * -> x/a", "deny x/a -> *", "allow x/b -> x/a"),
                    *("allow x/a -> * 80/TCP", "allow x/a -> * 81/UDP"),
                ],
            ),
        ),
    ),
    case(
        "denied-by-the-client-though-the-server-allows",
        np("x/p", A, egress=[rule(space("y", pod="a"))]),
        np("y/a", A, ingress=[rule(space("x", pod="a"))]),
        np("y/b", labels(pod="b"), ingress=[rule(space("x", pod="a"))]),
        expect=["deny x/a -> *", "deny * -> y/[ab]", "allow x/a -> y/a"],
        services=True,
    ),
    case(
        "egress-to-one-pod-of-another-namespace",
        np("x/p", A, egress=[rule(space("y", pod="a"))]),
        expect=["deny x/a -> *", "allow x/a -> y/a"],
    ),
    case(
        "a-protocol-alone",
        np("x/p", A, ingress=[rule(ports=[port(protocol="TCP")])]),
        expect=[CLOSED, "allow * -> x/a */TCP"],
    ),
    Case(
        "ingress-allow-all-wins",
        (
            step(np("x/p", A, ingress=[rule(ports=[port(80)])]), expect=[CLOSED, "allow * -> x/a 80/TCP"]),
            step(np("x/p", A, ingress=[rule(ports=[port(80)])]), np("x/q", A, ingress=[rule()]), expect=[]),
        ),
    ),
    Case(
        "egress-allow-all-wins",
        (
            step(
                np("x/p", A, egress=[rule(ports=[port(80)])]),
                expect=["deny x/a -> *", "allow x/a -> * 80/TCP"],
            ),
            step(np("x/p", A, egress=[rule(ports=[port(80)])]), np("x/q", A, egress=[rule()]), expect=[]),
        ),
    ),
    Case(
        "removal-restores",
        (
            step(
                np("x/deny", ingress=[], egress=[]),
                np("y/p", A, ingress=[]),
                expect=["deny * -> x/*", "deny x/* -> *", "deny * -> y/a"],
            ),
            step(np("y/p", A, ingress=[]), expect=["deny * -> y/a"]),
            step(expect=[]),
        ),
    ),
    case(
        "egress-to-a-block",
        np("x/p", A, egress=[rule(*blocks("y/b", 32, 128))]),
        expect=["deny x/a -> *", "allow x/a -> y/b"],
        services=True,
    ),
    case(
        "egress-to-a-block-without-one-address",
        np("x/p", A, egress=[rule(*blocks("y/b", 4, 4, excluded=[("y/b", 32, 128)]))]),
        expect=["deny x/a -> y/b"],
    ),
    Case(
        "excluded-by-one-allowed-by-another",
        (
            step(
                np("x/p", A, egress=[rule(*blocks("y/b", 4, 4, excluded=[("y/b", 32, 128)]))]),
                expect=["deny x/a -> y/b"],
            ),
            step(
                np("x/p", A, egress=[rule(*blocks("y/b", 4, 4, excluded=[("y/b", 32, 128)]))]),
                np("x/q", A, egress=[rule(*blocks("y/b", 32, 128))]),
                expect=[],
            ),
        ),
    ),
    Case(
        "directions-are-independent",
        (
            step(np("x/out", A, egress=[rule(pods(pod="b"))]), expect=["deny x/a -> *", "allow x/a -> x/b"]),
            step(
                np("x/out", A, egress=[rule(pods(pod="b"))]),
                np("x/in", A, ingress=[]),
                expect=["deny x/a -> *", "allow x/a -> x/b", "deny * -> x/a"],
            ),
        ),
    ),
    case(
        "sctp-is-not-tcp",
        np("x/p", A, ingress=[rule(ports=[port(81, "SCTP")])]),
        expect=[CLOSED, "allow * -> x/a 81/SCTP"],
    ),
    case(
        "a-pod-that-allows-sctp-is-isolated",
        np("x/p", ingress=[rule(ports=[port(80, "SCTP")])]),
        expect=["deny * -> x/*", "allow * -> x/* 80/SCTP"],
    ),
    case(
        "udp-gives-no-tcp",
        np("x/p", A, ingress=[rule(ports=[port(81, "UDP")])]),
        expect=[CLOSED, "allow * -> x/a 81/UDP"],
    ),
    case(
        "the-label-every-namespace-has",
        np("x/p", A, ingress=[rule({"namespaceSelector": labels(**{NAME: "y"})})]),
        expect=[CLOSED, "allow y/* -> x/a"],
    ),
    case(
        "not-in-the-label-every-namespace-has",
        np("x/p", A, egress=[rule({"namespaceSelector": where((NAME, "NotIn", "y")), "podSelector": EVERY})]),
        expect=["deny x/a -> y/*"],
    ),
]


def _of_protocol(protocol: str) -> list[Case]:
    word = protocol.lower()
    return [
        case(
            f"default-deny-ingress-{word}",
            np("x/deny", ingress=[]),
            np("x/tcp", ingress=[rule(ports=[port(protocol="TCP")])]),
            expect=["deny * -> x/*", "allow * -> x/* */TCP"],
            services=True,
        ),
        case(
            f"by-port-{word}",
            np("x/p", A, ingress=[rule(space("y"), ports=[port(81, protocol)])]),
            expect=[CLOSED, f"allow y/* -> x/a 81/{protocol}"],
            services=True,
        ),
        case(
            f"one-pod-of-another-namespace-{word}",
            np("x/p", A, ingress=[rule(space("y", pod="a"), ports=[port(protocol=protocol)])]),
            expect=[CLOSED, f"allow y/a -> x/a */{protocol}"],
        ),
    ]


UPSTREAM: list[Case] = [*_TCP, *_of_protocol("UDP"), *_of_protocol("SCTP")]
assert len(_TCP) == 42, len(_TCP)
