"""Threads that run CNI calls.

A few threads are enough and best while calls keep the processor or the kernel busy (the kernel's RTNL lock admits one
at a time anyway). A call may also wait: for a delegated plugin, for another call on the same container, for a lock
of another process. So when calls are queued and none was finished for ``STUCK_S``, one more thread is started, up to
``MAX_THREADS``; threads beyond the usual number end when they have nothing to do.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger("pycni.cni")

STUCK_S = 0.1
IDLE_S = 5.0
MAX_THREADS = 64

Job = Callable[[], None]


def go_first() -> None:
    """Give the calling thread the lowest real-time priority, where the kernel allows that.

    For threads that work for microseconds at a time: without it each of their wake-ups waits for the end of a time
    slice (milliseconds) while plugins start on every processor. What the thread starts does not inherit it.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as exc:
        log.info("thread %s: no real-time priority: %s", threading.current_thread().name, exc.strerror)


class Pool:
    """Runs jobs on ``size`` threads, more while they are stuck. A job must not raise."""

    def __init__(self, name: str, size: int, *, urgent: bool = False) -> None:
        """``urgent``: see ``go_first``."""
        self.name = name
        self.size = size
        self._urgent = urgent
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._finished = 0
        self._seen = 0
        self._stuck_since: float | None = None

    def start(self) -> None:
        """Start the usual threads."""
        for _ in range(self.size):
            self._add_thread()

    def submit(self, job: Job) -> None:
        """Queue a job."""
        self._jobs.put(job)

    @property
    def waiting(self) -> bool:
        """Whether jobs are queued."""
        return not self._jobs.empty()

    @property
    def threads(self) -> int:
        """Threads there are now."""
        return len(self._threads)

    def relieve(self, now: float) -> None:
        """Called at least every ``STUCK_S`` while jobs wait, with the monotonic time: one more thread if need be."""
        if not self.waiting or self._seen != self._finished:
            self._seen, self._stuck_since = self._finished, None
        elif self._stuck_since is None:
            self._stuck_since = now
        elif now - self._stuck_since >= STUCK_S and self.threads < MAX_THREADS:
            log.info("%s: all %d threads are waiting, starting one more", self.name, self.threads)
            self._stuck_since = now
            self._add_thread()

    def stop(self, timeout_s: float) -> bool:
        """Let everything queued be done, then end the threads. False when some did not end in time."""
        deadline = time.monotonic() + timeout_s
        threads = tuple(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        with self._lock:
            self._threads.add(thread)
        thread.start()

    def _run(self) -> None:
        if self._urgent:
            go_first()
        while True:
            try:
                job = self._jobs.get(timeout=None if self.threads <= self.size else IDLE_S)
            except queue.Empty:
                if self._leave():
                    return
                continue
            if job is None:
                return
            job()
            self._finished += 1

    def _leave(self) -> bool:
        """Whether this thread is one too many."""
        with self._lock:
            if len(self._threads) <= self.size:
                return False
            self._threads.discard(threading.current_thread())
            return True
