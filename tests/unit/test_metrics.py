"""Metrics: what a scrape reads, byte by byte."""

from __future__ import annotations

import logging
import os
import threading

import pytest

from pycni.agent.metrics import Registry, add_process_metrics, seconds_since_process_start


def test_every_kind_in_the_text_format():
    registry = Registry()
    requests = registry.counter("cni_requests_total", "Requests.\nBy \\ command.", ("command", "code"))
    requests.inc(command="ADD", code=0)
    requests.inc(2, command="DEL", code=11)
    registry.gauge("peers", "Peers.").set(3)
    spans = registry.histogram("sync_seconds", "Sync.", buckets=(0.1, 1, 2.5))
    for value in (0.05, 0.1, 0.7, 9):
        spans.observe(value)
    registry.callback("free", "Free.", lambda: [(("v4",), 1.5), (("v6",), float("inf"))], labels=("family",))
    assert registry.expose() == (
        "# HELP cni_requests_total Requests.\\nBy \\\\ command.\n"
        "# TYPE cni_requests_total counter\n"
        'cni_requests_total{command="ADD",code="0"} 1\n'
        'cni_requests_total{command="DEL",code="11"} 2\n'
        "# HELP free Free.\n"
        "# TYPE free gauge\n"
        'free{family="v4"} 1.5\n'
        'free{family="v6"} +Inf\n'
        "# HELP peers Peers.\n"
        "# TYPE peers gauge\n"
        "peers 3\n"
        "# HELP sync_seconds Sync.\n"
        "# TYPE sync_seconds histogram\n"
        'sync_seconds_bucket{le="0.1"} 2\n'
        'sync_seconds_bucket{le="1"} 3\n'
        'sync_seconds_bucket{le="2.5"} 3\n'
        'sync_seconds_bucket{le="+Inf"} 4\n'
        "sync_seconds_sum 9.85\n"
        "sync_seconds_count 4\n"
    )


def test_label_values_are_escaped():
    registry = Registry()
    registry.gauge("g", "", ("l",)).set(1, l='a"b\\c\nd')
    assert 'g{l="a\\"b\\\\c\\nd"} 1\n' in registry.expose()


def test_a_removed_combination_is_not_exposed():
    registry = Registry()
    gauge = registry.gauge("g", "", ("peer",))
    gauge.set(1, peer="a")
    gauge.inc(-2, peer="b")
    gauge.remove(peer="a")
    assert (gauge.value(peer="a"), gauge.value(peer="b")) == (0, -2)
    assert 'peer="a"' not in registry.expose()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda r: r.counter("a-b", ""),
        lambda r: r.counter("a", "", ("__x",)),
        lambda r: (r.counter("a", ""), r.gauge("a", "")),
        lambda r: r.counter("a", "").inc(-1),
        lambda r: r.counter("a", "", ("x",)).inc(),
        lambda r: r.counter("a", "", ("x",)).inc(y=1),
        lambda r: r.histogram("a", "", buckets=(2, 1)),
        lambda r: r.histogram("a", "", buckets=()),
    ],
    ids=[
        "name",
        "label",
        "twice",
        "counter-down",
        "label-missing",
        "label-unknown",
        "bounds-fall",
        "no-bounds",
    ],
)
def test_misuse_is_an_error(wrong):
    with pytest.raises(ValueError, match="a"):
        wrong(Registry())


def test_a_broken_callback_hides_no_other_metric(caplog):
    registry = Registry()
    registry.callback("broken", "", lambda: 1 / 0)
    registry.gauge("good", "").set(1)
    with caplog.at_level(logging.WARNING):
        text = registry.expose()
    assert "good 1\n" in text
    assert "metric broken cannot be read: ZeroDivisionError" in caplog.text


def test_counting_from_threads_loses_nothing():
    registry = Registry()
    counter, spans = registry.counter("c", ""), registry.histogram("h", "")

    def count():
        for _ in range(2000):
            counter.inc()
            spans.observe(0.1)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counter.value(), spans.count()) == (8000, 8000)


def test_process_metrics_are_this_processes():
    registry = Registry()
    add_process_metrics(registry)
    samples = dict(line.rsplit(" ", 1) for line in registry.expose().splitlines() if not line.startswith("#"))
    assert float(samples["process_open_fds"]) == len(os.listdir("/proc/self/fd")) - 1
    assert 1e6 < float(samples["process_resident_memory_bytes"]) < 4e9
    assert float(samples["process_cpu_seconds_total"]) > 0
    assert any(key.startswith("pycni_build_info{version=") for key in samples)


def test_process_age_is_seconds():
    assert 0 < seconds_since_process_start() < 86400
