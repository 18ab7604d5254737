"""Metrics of policies: bounded, never falling, and nothing read from the kernel while nobody scrapes."""

from __future__ import annotations

import re

import pytest

from pycni.agent.metrics import Registry
from pycni.policy.base import Denied
from pycni.policy.engine import SyncResult
from pycni.policy.metrics import SILENCE_S, PolicyMetrics, Reading, read, reason


def reading(*denied, fast=None, judging=False):
    return Reading(
        {"NetworkPolicy": 3}, {"ingress": 2, "egress": 0}, {"ingress": 1, "egress": 0}, {"chains": 9, "ports": 4}, 30, 5,
        denied, fast, judging,
    )  # fmt: skip


class Scraped:
    def __init__(self, limit=2):
        self.now, self.registry, self.wanted = 1000.0, Registry(), 0
        self.metrics = PolicyMetrics(self.registry, limit, lambda: self.now)
        self.metrics.wanted = self.want

    def want(self):
        self.wanted += 1

    def lines(self, name):
        found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", self.registry.expose(), re.MULTILINE)
        return {labels: float(value) for labels, value in found}


def test_what_holds_is_told_after_the_first_reading():
    it = Scraped()
    assert it.lines("pycni_policy_policies") == {}
    assert it.wanted == 1
    assert it.metrics.due
    it.metrics.take(reading(fast={"flows": 7, "flows limit": 100}, judging=True))
    assert it.lines("pycni_policy_policies") == {'kind="NetworkPolicy"': 3}
    assert it.lines("pycni_policy_isolated_pods") == {'direction="ingress"': 2, 'direction="egress"': 0}
    assert it.lines("pycni_policy_closed_addresses")['direction="ingress"'] == 1
    assert it.lines("pycni_policy_rows") == {'table="chains"': 9, 'table="ports"': 4}
    assert it.lines("pycni_policy_rules") == {"": 30}
    assert it.lines("pycni_policy_fast_path") == {"": 1}
    assert it.lines("pycni_policy_fast_path_entries") == {'what="flows"': 7}
    assert it.lines("pycni_policy_fast_path_limit") == {'what="flows"': 100}
    assert it.lines("kube_router_controller_policy_chains") == {"": 9}
    assert it.lines("kube_router_controller_policy_ipsets") == {"": 5}


def test_a_node_nobody_scrapes_is_not_read():
    it = Scraped()
    assert not it.metrics.due
    it.registry.expose()
    it.metrics.take(reading())
    it.now += SILENCE_S
    assert not it.metrics.due
    assert it.lines("pycni_policy_rules") == {}, "what was read before the silence means nothing now"
    assert it.wanted == 2


def test_denials_by_policy_are_bounded_and_the_rest_is_one_series():
    it = Scraped(limit=2)
    it.registry.expose()
    it.metrics.take(
        reading(
            Denied("NetworkPolicy a/x", "ingress", 5, 500),
            Denied("NetworkPolicy a/y", "ingress", 9, 90),
            Denied("ClusterNetworkPolicy z", "egress", 4, 40),
            Denied("NetworkPolicy a/v", "egress", 1, 10),
            Denied("spoofed source", "egress", 2, 20),
        )
    )
    assert it.lines("pycni_policy_denied_packets_total") == {
        'policy="NetworkPolicy a/x",direction="ingress"': 5,
        'policy="NetworkPolicy a/y",direction="ingress"': 9,
        'policy="(others)",direction="egress"': 7,
    }
    assert it.lines("pycni_policy_denied_bytes_total")['policy="(others)",direction="egress"'] == 70
    assert it.lines("pycni_policy_drops_total") == {
        'reason="NetworkPolicy",direction="ingress"': 14,
        'reason="NetworkPolicy",direction="egress"': 1,
        'reason="ClusterNetworkPolicy",direction="egress"': 4,
        'reason="spoofed",direction="egress"': 2,
    }


def test_no_series_by_policy_with_limit_0():
    it = Scraped(limit=0)
    it.registry.expose()
    it.metrics.take(reading(Denied("NetworkPolicy a/x", "ingress", 5, 500)))
    assert it.lines("pycni_policy_denied_packets_total") == {}
    assert it.lines("pycni_policy_drops_total") == {'reason="NetworkPolicy",direction="ingress"': 5}


def test_counters_never_fall_when_a_policy_is_programmed_anew():
    it = Scraped()
    it.registry.expose()
    key = 'policy="NetworkPolicy a/x",direction="ingress"'
    told = []
    for packets in (5, 8, 2, 2, 4):
        # Two planes count the same policy.
        it.metrics.take(
            reading(
                Denied("NetworkPolicy a/x", "ingress", packets - 1, 0),
                Denied("NetworkPolicy a/x", "ingress", 1, 0),
            )
        )
        told.append(it.lines("pycni_policy_denied_packets_total")[key])
    assert told == [5, 8, 10, 10, 12]


def test_the_series_of_others_never_falls():
    it = Scraped(limit=1)
    it.registry.expose()
    first, second = (
        Denied("NetworkPolicy a/x", "ingress", 1, 10),
        Denied("NetworkPolicy a/y", "ingress", 7, 70),
    )
    it.metrics.take(reading(first, second))
    # The one with a series of its own goes, another one gets its place.
    it.metrics.take(reading(second))
    it.metrics.take(reading(second._replace(packets=9, bytes=90)))
    assert it.lines("pycni_policy_denied_packets_total") == {
        'policy="(others)",direction="ingress"': 7,
        'policy="NetworkPolicy a/y",direction="ingress"': 2,
    }


def test_a_policy_that_goes_and_comes_back_counts_on():
    it = Scraped()
    it.registry.expose()
    seen = []
    for denied in (
        [Denied("NetworkPolicy a/x", "ingress", 6, 0)],
        [],
        [Denied("NetworkPolicy a/x", "ingress", 1, 0)],
    ):
        it.metrics.take(reading(*denied))
        seen.append(sum(it.lines("pycni_policy_drops_total").values()))
    assert seen == sorted(seen)
    assert seen[-1] == 7


@pytest.mark.parametrize(
    ("policy", "kind"),
    [("NetworkPolicy a/x", "NetworkPolicy"), ("ClusterNetworkPolicy x", "ClusterNetworkPolicy"), ("spoofed ARP sender", "spoofed"), ("pods not known yet", "closed")],
)  # fmt: skip
def test_a_reason_is_the_kind_of_what_denied(policy, kind):
    assert reason(policy) == kind


def test_passes_are_observed_under_kube_routers_name():
    it = Scraped()
    it.metrics.synced(SyncResult(1, 2, False, 0.001, 0.002))
    assert it.lines("kube_router_controller_policy_chains_sync_time_count") == {"": 1}
    assert it.lines("kube_router_controller_policy_chains_sync_time_sum") == {"": 0.003}


class FakeFast:
    name = "ebpf"

    def denied(self):
        return [Denied("NetworkPolicy a/x", "ingress", 3, 30)]

    def figures(self):
        return {"flows": 2.0}


class FakeDriver:
    def denied(self):
        return [Denied("NetworkPolicy a/x", "ingress", 4, 40)]


def test_a_reading_has_what_all_parts_say():
    from pycni.policy.base import Dataplane
    from pycni.policy.engine import PolicyEngine
    from pycni.policy.nft.compile import NftCompiler
    from tests.laws.policy_worlds import make_world

    world = make_world(11)
    engine = PolicyEngine("n1", Dataplane("nftables", NftCompiler(), FakeDriver()), FakeFast())  # type: ignore[arg-type]
    engine.view.update(world.snapshot())
    found = read(engine, {"NetworkPolicy": 1}, lambda: [Denied("spoofed source", "egress", 1, 1)])
    assert [item.packets for item in found.denied] == [4, 1, 3]
    assert (found.fast, found.judging) == ({"flows": 2.0}, True)
    engine.aside = "no maps"
    assert not read(engine, {}).judging
