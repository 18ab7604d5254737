"""Metrics in Prometheus' text format 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).

Life: components make their metrics on the process's one ``Registry`` at construction and change them from any
thread; a scrape reads all of them under one lock and adds what is only asked for then (callbacks, the process's
own figures). Durations are in seconds, sizes in bytes, as the format's conventions want.
"""

from __future__ import annotations

import logging
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from pycni import __version__

log = logging.getLogger("pycni.metrics")

LabelValues = tuple[str, ...]
Sample = tuple[LabelValues, float]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

DURATION_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a netlink batch to a full resync."""

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class _Metric:
    """Name, help, labels and the samples of one metric family."""

    kind = "untyped"

    def __init__(self, name: str, text: str, labels: Sequence[str], lock: threading.Lock) -> None:
        if _NAME.fullmatch(name) is None or any(_LABEL.fullmatch(label) is None for label in labels):
            raise ValueError(f"metric {name!r} with labels {labels!r}: not a name of the exposition format")
        self.name = name
        self.text = text
        self.labels = tuple(labels)
        self._lock = lock

    def _values(self, labels: Mapping[str, object]) -> LabelValues:
        if len(labels) != len(self.labels):
            raise ValueError(f"metric {self.name}: labels {sorted(labels)}, expected {sorted(self.labels)}")
        try:
            return tuple(str(labels[label]) for label in self.labels)
        except KeyError as exc:
            raise ValueError(f"metric {self.name}: label {exc} is missing") from None

    def lines(self) -> list[str]:
        """Sample lines; called under the registry's lock."""
        raise NotImplementedError


class _Valued(_Metric):
    def __init__(self, name: str, text: str, labels: Sequence[str], lock: threading.Lock) -> None:
        super().__init__(name, text, labels, lock)
        self._samples: dict[LabelValues, float] = {} if labels else {(): 0.0}

    def value(self, **labels: object) -> float:
        """The present value; 0 for label values never seen."""
        return self._samples.get(self._values(labels), 0.0)

    def remove(self, **labels: object) -> None:
        """Forget one combination of label values (its object is gone)."""
        with self._lock:
            self._samples.pop(self._values(labels), None)

    def lines(self) -> list[str]:
        return [_line(self.name, self.labels, values, value) for values, value in self._samples.items()]


class Counter(_Valued):
    """Only grows; restarts at 0 with the process."""

    kind = "counter"

    def inc(self, amount: float = 1.0, **labels: object) -> None:
        """Add ``amount`` (not negative)."""
        if amount < 0:
            raise ValueError(f"counter {self.name}: {amount} is negative")
        values = self._values(labels)
        with self._lock:
            self._samples[values] = self._samples.get(values, 0.0) + amount


class Gauge(_Valued):
    """Goes up and down."""

    kind = "gauge"

    def set(self, value: float, **labels: object) -> None:
        """Replace the value."""
        values = self._values(labels)
        with self._lock:
            self._samples[values] = float(value)

    def inc(self, amount: float = 1.0, **labels: object) -> None:
        """Add ``amount``, which may be negative."""
        values = self._values(labels)
        with self._lock:
            self._samples[values] = self._samples.get(values, 0.0) + amount


class Histogram(_Metric):
    """Counts observations per upper bound, with their sum."""

    kind = "histogram"

    def __init__(
        self, name: str, text: str, labels: Sequence[str], lock: threading.Lock, buckets: Sequence[float]
    ) -> None:
        super().__init__(name, text, labels, lock)
        if not buckets or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"histogram {name}: bounds {buckets!r} do not rise")
        self.buckets = tuple(float(bound) for bound in buckets)
        self._counts: dict[LabelValues, list[int]] = {}
        self._sums: dict[LabelValues, float] = {}

    def observe(self, value: float, **labels: object) -> None:
        """Count one observation."""
        values = self._values(labels)
        index = next((i for i, bound in enumerate(self.buckets) if value <= bound), len(self.buckets))
        with self._lock:
            counts = self._counts.setdefault(values, [0] * (len(self.buckets) + 1))
            counts[index] += 1
            self._sums[values] = self._sums.get(values, 0.0) + value

    def count(self, **labels: object) -> int:
        """Number of observations so far."""
        return sum(self._counts.get(self._values(labels), ()))

    def lines(self) -> list[str]:
        """Cumulative buckets, sum and count of every combination of labels."""
        found = []
        bounds = [*(_number(bound) for bound in self.buckets), "+Inf"]
        for values, counts in self._counts.items():
            total = 0
            for bound, count in zip(bounds, counts, strict=True):
                total += count
                found.append(_line(f"{self.name}_bucket", (*self.labels, "le"), (*values, bound), total))
            found.append(_line(f"{self.name}_sum", self.labels, values, self._sums[values]))
            found.append(_line(f"{self.name}_count", self.labels, values, total))
        return found


class Callback(_Metric):
    """A gauge or counter whose value is asked for at every scrape."""

    read: Callable[[], float | Iterable[Sample]]

    def ask(self) -> list[str]:
        """Sample lines; none, and a log line, when the value cannot be had."""
        try:
            found = self.read()
            samples: Iterable[Sample] = [((), found)] if isinstance(found, int | float) else found
            return [_line(self.name, self.labels, values, value) for values, value in samples]
        except Exception as exc:  # noqa: BLE001 - one broken metric must not hide all others
            log.warning("metric %s cannot be read: %r", self.name, exc)
            return []


class Description(NamedTuple):
    """What is told of a metric family besides its samples."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


class Registry:
    """All metrics of the process. Making one twice under one name is an error."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._metrics: dict[str, _Metric] = {}

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        """New counter; its name should end in ``_total``."""
        metric = Counter(name, text, labels, self._lock)
        self._add(metric)
        return metric

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        """New gauge."""
        metric = Gauge(name, text, labels, self._lock)
        self._add(metric)
        return metric

    def histogram(
        self, name: str, text: str, labels: Sequence[str] = (), buckets: Sequence[float] = DURATION_BUCKETS
    ) -> Histogram:
        """New histogram with the given upper bounds; +Inf is added."""
        metric = Histogram(name, text, labels, self._lock, buckets)
        self._add(metric)
        return metric

    def callback(
        self,
        name: str,
        text: str,
        read: Callable[[], float | Iterable[Sample]],
        labels: Sequence[str] = (),
        kind: str = "gauge",
    ) -> None:
        """Value read at every scrape: a number, or ``(label values, number)`` pairs.

        ``kind`` "untyped": for a name of somebody else's that says it is a counter when it is none, or the reverse.
        """
        metric = Callback(name, text, labels, self._lock)
        metric.kind, metric.read = kind, read
        self._add(metric)

    def _add(self, metric: _Metric) -> None:
        with self._lock:
            if metric.name in self._metrics:
                raise ValueError(f"metric {metric.name} exists already")
            self._metrics[metric.name] = metric

    def describe(self) -> tuple[Description, ...]:
        """Every metric family, sorted by name."""
        with self._lock:
            found = sorted(self._metrics.values(), key=lambda metric: metric.name)
        return tuple(Description(it.name, it.kind, it.labels, it.text) for it in found)

    def expose(self) -> str:
        """The text of a scrape, metrics sorted by name."""
        with self._lock:
            metrics = sorted(self._metrics.values(), key=lambda metric: metric.name)
        # Callbacks are asked outside the lock: they may change other metrics.
        asked = {metric.name: metric.ask() for metric in metrics if isinstance(metric, Callback)}
        lines: list[str] = []
        with self._lock:
            for metric in metrics:
                text = metric.text.replace("\\", r"\\").replace("\n", r"\n")
                lines.append(f"# HELP {metric.name} {text}")
                lines.append(f"# TYPE {metric.name} {metric.kind}")
                lines += asked[metric.name] if metric.name in asked else metric.lines()
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Sequence[str], values: Sequence[str], value: float) -> str:
    if not labels:
        return f"{name} {_number(value)}"
    pairs = ",".join(f'{label}="{_escape(text)}"' for label, text in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} {_number(value)}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    if value != value:  # noqa: PLR0124 - NaN
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(float(value))


def add_process_metrics(registry: Registry) -> None:
    """The process's own figures (names as every Prometheus client has them) and the build."""
    started = time.time() - (time.monotonic() - _start_monotonic())

    def usage() -> float:
        found = resource.getrusage(resource.RUSAGE_SELF)
        return found.ru_utime + found.ru_stime

    registry.callback("process_cpu_seconds_total", "User and system CPU time.", usage, kind="counter")
    registry.callback("process_resident_memory_bytes", "Resident memory.", resident_bytes)
    registry.callback(
        "process_open_fds", "Open file descriptors.", lambda: float(len(os.listdir("/proc/self/fd")) - 1)
    )
    registry.callback(
        "process_max_fds",
        "Limit of file descriptors.",
        lambda: float(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    )
    registry.callback("process_threads", "Threads.", lambda: float(len(os.listdir("/proc/self/task"))))
    registry.callback("process_start_time_seconds", "Start, seconds since the epoch.", lambda: started)
    build = registry.gauge("pycni_build_info", "Always 1; the labels tell the build.", ("version", "python"))
    build.set(1, version=__version__, python=sys.version.partition(" ")[0])


def resident_bytes() -> float:
    """Resident memory of this process in bytes (/proc/self/statm, second field, pages)."""
    with open("/proc/self/statm", "rb") as file:
        return float(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def _start_monotonic() -> float:
    """When this process began, on the monotonic clock (/proc/self/stat, field 22, ticks since boot)."""
    with open("/proc/self/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    # starttime counts suspended time, CLOCK_MONOTONIC does not.
    return since_boot - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())


def seconds_since_process_start() -> float:
    """Age of this process in seconds, from the kernel's record: imports and interpreter start included (±10 ms)."""
    return time.monotonic() - _start_monotonic()
