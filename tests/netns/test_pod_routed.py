"""Attachment ``ptp``: pods on links of their own, routed by the node; real packets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pycni.model.attachment import AttachmentKind
from tests.netns.podenv import FAMILIES, Env, node, pings

PTP = {"attachment": AttachmentKind.PTP}


@pytest.fixture
def env(netns_factory: Callable[[], str]) -> Iterator[Env]:
    with node(netns_factory) as made:
        yield made


@pytest.mark.parametrize("families", FAMILIES.values(), ids=FAMILIES)
def test_pods_reach_each_other_and_the_node_at_once(env: Env, families):
    out = env.outside(families)
    one, two = env.attach(families, **PTP), env.attach(families, **PTP)
    for target in ([two.v4(), "169.254.1.1", "192.0.2.1", "192.0.2.2"] if 4 in families else []) + (
        [two.v6(), "2001:db8::1", "2001:db8::2"] if 6 in families else []
    ):
        # Full MTU: 1450 less the headers of IP and ICMP.
        assert pings(one, target, size=1450 - (48 if ":" in target else 28), wait=0.5), target
    for target in (one.v4(),) * (4 in families) + (one.v6(),) * (6 in families):
        assert pings(None, target, wait=0.5), target
        assert pings(out, target, wait=0.5), target
    assert env.driver.check(one.plan, one.fd) == []
