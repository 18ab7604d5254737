"""Metrics under kube-proxy's and kube-router's names."""

from __future__ import annotations

import re
import time

import pytest

from pycni.agent.metrics import Registry
from pycni.model.family import Family
from pycni.model.kube import ENDPOINT_SLICE, SERVICE, UDP
from pycni.model.service import Frontend, FrontendKey, Kind, Pool, PortName, Target, Verdict
from pycni_proxy.base import Counters
from pycni_proxy.engine import Change, SyncResult
from pycni_proxy.metrics import ProxyMetrics
from pycni_proxy.metrics_services import READ_S, SILENCE_S, ServiceMetrics
from tests.unit.service_world import pack

BOTH = (Family.V4, Family.V6)
END = Target(pack("10.244.1.1"), 80, local=True)


def values(registry, name):
    return {
        match[1] or "": float(match[2])
        for match in re.finditer(rf"^{name}(?:\{{(.*)\}})? (\S+)$", registry.expose(), re.MULTILINE)
    }


def result(services=None, *, changed=None, full=False, operations=1):
    return SyncResult(services or {}, operations, 1, full, 0.001, 0.002, changed or {})


def frontend(
    kind=Kind.CLUSTER_IP,
    *,
    targets=(),
    inside=None,
    local_only=True,
    empty=Verdict.DROP,
    number=1,
    protocol=6,
):
    return Frontend(
        key=FrontendKey(Family.V4, pack(f"10.96.{number // 250}.{number % 250 + 1}"), protocol, 80),
        kind=kind,
        name=PortName("default", f"s{number}", ""),
        pool=Pool(targets=tuple(targets), empty=empty),
        inside=inside,
        local_only=local_only,
    )


def test_passes_show_under_kube_proxys_names_for_each_family():
    registry, now = Registry(), [1000.0]
    metrics = ProxyMetrics(registry, lambda: now[0])
    metrics.taken({SERVICE: {"a", "b"}, ENDPOINT_SLICE: {"c"}}, BOTH)
    assert values(registry, "kubeproxy_sync_proxy_rules_service_changes_pending") == {
        'ip_family="IPv4"': 2,
        'ip_family="IPv6"': 2,
    }
    now[0] = 1001.5
    metrics.passed(result(full=True), 0.003, first=True)
    metrics.taken({ENDPOINT_SLICE: {"c"}}, BOTH)
    metrics.passed(result(), 0.004, first=False)
    four = 'ip_family="IPv4"'
    expected = {
        "kubeproxy_sync_proxy_rules_duration_seconds_count": 2,
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count": 1,
        "kubeproxy_sync_partial_proxy_rules_duration_seconds_count": 1,
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds": 1001.5,
        "kubeproxy_sync_proxy_rules_service_changes_total": 2,
        "kubeproxy_sync_proxy_rules_service_changes_pending": 0,
        "kubeproxy_sync_proxy_rules_endpoint_changes_total": 2,
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending": 0,
    }
    assert {name: values(registry, name)[four] for name in expected} == expected


def test_programming_latency_counts_each_change_once_and_none_from_before_the_start():
    registry, now = Registry(), [1000.0]
    metrics = ProxyMetrics(registry, lambda: now[0])
    metrics.taken({}, (Family.V4,))
    now[0] = 1010.0
    services = {"default/a": Change((), (frontend(),))}
    for changed in (999.0, 1009.0, 1009.0, 1009.9):
        metrics.passed(result(services, changed={"default/a": changed}), 0.001, first=False)
    name = "kubeproxy_network_programming_duration_seconds"
    assert values(registry, f"{name}_count") == {'ip_family="IPv4"': 2}
    assert values(registry, f"{name}_sum")['ip_family="IPv4"'] == pytest.approx(1.1)


LOCAL = [
    ("internal, elsewhere only", frontend(), (1, 0)),
    ("internal, here", frontend(targets=[END]), (0, 0)),
    ("internal, nobody anywhere", frontend(empty=Verdict.REJECT), (0, 0)),
    ("external, elsewhere only", frontend(Kind.NODE_PORT, inside=Pool(targets=(END,))), (0, 1)),
    ("external, nobody anywhere", frontend(Kind.NODE_PORT, inside=Pool()), (0, 0)),
    ("cluster policy", frontend(local_only=False), (0, 0)),
]


@pytest.mark.parametrize(("item", "counts"), [c[1:] for c in LOCAL], ids=[c[0] for c in LOCAL])
def test_services_without_local_endpoints_are_counted_while_they_are(item, counts):
    registry = Registry()
    metrics = ProxyMetrics(registry)
    metrics.passed(result({"default/a": Change((), (item,))}), 0.001, first=True)
    name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total"
    assert tuple(values(registry, name).values()) == counts
    metrics.passed(result({"default/a": Change((item,), ())}), 0.001, first=False)
    assert tuple(values(registry, name).values()) == (0, 0)


def test_repairs_are_what_a_read_back_found_without_any_change():
    registry = Registry()
    metrics = ProxyMetrics(registry)
    metrics.passed(result(full=True, operations=5), 0.001, first=True)
    metrics.passed(result({"a": Change((), (frontend(),))}, full=True, operations=3), 0.001, first=False)
    metrics.passed(result(full=True, operations=2), 0.001, first=False)
    assert values(registry, "pycni_proxy_repairs_total") == {"": 2}
    assert values(registry, "pycni_proxy_operations_total") == {"": 10}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def service_metrics(count, limit):
    registry, clock = Registry(), Clock()
    frontends = {f"default/s{n}": (frontend(number=n, targets=[END], protocol=UDP),) for n in range(count)}
    return registry, clock, frontends, ServiceMetrics(registry, lambda: frontends, limit, clock)


def test_counters_per_service_are_read_only_while_somebody_scrapes():
    registry, clock, frontends, metrics = service_metrics(1, 10)
    woken = []
    metrics.wanted = lambda: woken.append(clock.now)
    assert not metrics.due
    assert values(registry, "kube_router_service_total_connections") == {}
    assert woken
    assert metrics.due
    key = next(iter(frontends["default/s0"])).key
    metrics.take({key: Counters(5, bytes_in=100)})
    label = 'svc_namespace="default",service_name="s0",service_vip="10.96.0.1",protocol="UDP",port="80"'
    assert values(registry, "kube_router_service_total_connections") == {label: 5}
    assert values(registry, "kube_router_service_packets_in") == {}, "not counted is not 0"
    clock.now = READ_S
    metrics.take({key: Counters(25, bytes_in=300)})
    assert values(registry, "kube_router_service_cps") == {label: 2}
    assert values(registry, "kube_router_service_bps_in") == {label: 20}
    clock.now += READ_S
    metrics.take({key: Counters(1, bytes_in=0)})
    assert values(registry, "kube_router_service_cps") == {label: 0}, "programmed anew"
    clock.now += SILENCE_S
    assert not metrics.due
    assert values(registry, "kube_router_service_total_connections") == {}, "nothing old is shown"


@pytest.mark.parametrize("limit", [0, 3])
def test_above_the_limit_there_is_nothing_per_service(limit):
    registry, _, frontends, metrics = service_metrics(4, limit)
    registry.expose()
    assert not metrics.due
    metrics.take({items[0].key: Counters(1) for items in frontends.values()})
    assert values(registry, "kube_router_service_total_connections") == {}


def test_a_scrape_at_the_limit_has_every_service():
    registry, _, frontends, metrics = service_metrics(2000, 2000)
    registry.expose()
    metrics.take({items[0].key: Counters(1, 2, 3, 4, 5) for items in frontends.values()})
    started = time.perf_counter()
    text = registry.expose()
    took = time.perf_counter() - started
    assert text.count("\nkube_router_service_") == 10000
    print(f"{took * 1000:.0f} ms; well under a second is the aim")
