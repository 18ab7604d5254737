"""The agent as a process: started once per state folder, watched over, stopped in order.

Life: health and metrics answer first, so that a probe sees why the rest is not ready; then ``wire`` makes the parts
in the order in which they need each other and gives back the tasks they live by. Every task is eternal: one that
ends, whatever the reason, ends the process with one clear line and exit code 1, and the supervisor starts it anew.
SIGTERM or SIGINT: CNI calls under way are finished, the parts are taken down in reverse order, the data plane stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import logging
import os
import resource
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Self

from pycni import __version__
from pycni.agent.health import Health, routes
from pycni.agent.httpd import HttpServer
from pycni.agent.metrics import Registry, add_process_metrics, seconds_since_process_start
from pycni.agent.notify import Notifier
from pycni.agent.settings import Settings
from pycni.agent.settings_file import Loaded
from pycni.agent.status_log import NOT_READY
from pycni.errors import ConfigError, PycniError
from pycni.reconcile.runner import TaskEndedError, describe, eternal

log = logging.getLogger("pycni.agent")

LOCK_FILE = "pycnid.pid"
SERVING = "cni"
"""The health part that says whether CNI calls are answered."""

SHUTDOWN_SECONDS = 8.0
"""After that long a stopping process ends as it is: supervisors kill after ten seconds or more."""

LAG_SECONDS = 5.0
"""How often the event loop's lag is sampled."""

SETTLE_SECONDS = 3.0
"""How long the cycle collector stays off after the start: some 50 ms of a start with many leases."""

NICE = -10
"""Pods wait for this process, which needs a hundredth of a processor: it goes before what they compute. Without it a
readiness probe waits for its turn behind every plugin that starts at the same time."""

FILES = 65536
"""Open files we ask for: a few per pod being attached, one per delegated call."""


class Context(NamedTuple):
    """What every part may use."""

    settings: Settings
    health: Health
    metrics: Registry
    exits: AsyncExitStack
    """What is pushed here is taken down in reverse order when the process stops."""


Tasks = Mapping[str, Coroutine[Any, Any, object]]
Wire = Callable[[Context], Awaitable[Tasks]]


class StateLock:
    """Holds the state folder for this process: a lock on a file with our pid in it."""

    def __init__(self, state_dir: str) -> None:
        self._folder = state_dir
        self._fd = -1

    def __enter__(self) -> Self:
        """Raises ConfigError naming the process that has the folder."""
        try:
            os.makedirs(self._folder, mode=0o755, exist_ok=True)
            path = os.path.join(self._folder, LOCK_FILE)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as exc:
            raise ConfigError("settings", "state-dir", self._folder, exc.strerror or str(exc)) from exc
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(self._fd)
            reason = f"in use by another pycnid (pid {holder})"
            raise ConfigError("settings", "state-dir", self._folder, reason) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The file stays: removing it could take the lock of the next agent away.
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


def run(loaded: Loaded, wire: Wire) -> int:
    """Run the agent until a signal or a failure; returns the exit code."""
    settings = loaded.settings
    for warning in loaded.warnings:
        log.warning("%s", warning)
    log.info("pycnid %s starts as node %s", __version__, settings.node_name)
    log.debug("%r", settings)
    gc.disable()
    try:
        with StateLock(settings.state_dir):
            asyncio.run(_main(settings, wire))
    except (BaseExceptionGroup, PycniError, OSError) as exc:
        return _failed(exc)
    except Exception as exc:
        log.critical("pycnid ends: %s", describe(exc), exc_info=True)
        return 1
    log.info("pycnid has stopped; the data plane stays")
    return 0


def _failed(error: BaseException) -> int:
    """Log the one line, a program error with its traceback. Wrong settings have an exit code of their own."""
    leaves = list(_leaves(error))
    plain = (PycniError, OSError, TaskEndedError)
    unexpected = next((leaf for leaf in leaves if not isinstance(leaf, plain)), None)
    log.critical("pycnid ends: %s", describe(error), exc_info=unexpected)
    return 2 if all(isinstance(leaf, ConfigError) for leaf in leaves) else 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _main(settings: Settings, wire: Wire) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, log.warning, "SIGHUP: settings are read at the start only")
    _allow_many_files()
    _go_first()
    notifier = Notifier(os.environ)
    try:
        async with AsyncExitStack() as exits:
            context = Context(settings, Health(), Registry(), exits)
            announcer = _Announcer(context, notifier)
            await _serve_health(context)
            tasks = await _started(wire(context), stop)
            await _run_tasks(
                tasks, stop, [_sample_lag(context.metrics), _watchdog(notifier), announcer.run()]
            )
            log.info("pycnid stops")
            notifier.stopping()
            _end_anyway(SHUTDOWN_SECONDS)
    except BaseException:
        notifier.stopping()
        _end_anyway(SHUTDOWN_SECONDS)
        raise


async def _started(wiring: Awaitable[Tasks], stop: asyncio.Event) -> Tasks:
    """The tasks, unless a signal comes while the parts are being made."""
    made = asyncio.ensure_future(wiring)
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({made, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if made.done():
        return made.result()
    made.cancel()
    await asyncio.wait({made})
    return {}


async def _run_tasks(tasks: Tasks, stop: asyncio.Event, own: list[Coroutine[Any, Any, object]]) -> None:
    """Run everything until ``stop``; raises the group of what ended by itself."""
    async with asyncio.TaskGroup() as group:
        running: list[asyncio.Task[Any]] = []
        running += [group.create_task(eternal(name, task), name=name) for name, task in tasks.items()]
        running += [group.create_task(task) for task in own]
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, _settle)
        await stop.wait()
        for task in running:
            task.cancel()


async def _serve_health(context: Context) -> None:
    settings = context.settings
    add_process_metrics(context.metrics)
    context.health.register(context.metrics)
    if not settings.healthz_port:
        return
    address, port = str(settings.healthz_ip), settings.healthz_port
    server = HttpServer(address, port, routes(context.health, context.metrics))
    try:
        await server.start()
    except OSError as exc:
        reason = f"cannot listen on {address}: {exc.strerror or exc}"
        raise ConfigError("settings", "healthz-port", port, reason) from exc
    context.exits.push_async_callback(server.stop)
    shown = f"[{address}]" if ":" in address else address
    log.info("health and metrics are served at http://%s:%d", shown, port)


class _Announcer:
    """Tells the log and the service manager how the agent is doing, when that changes."""

    def __init__(self, context: Context, notifier: Notifier) -> None:
        self._health = context.health
        self._notifier = notifier
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._shown: str | None = None
        self._serving = False
        self._seconds = context.metrics.gauge(
            "pycni_start_seconds", "From process start to the first readiness."
        )
        self._health.subscribe(self._poke)

    def _poke(self) -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # the loop is closed: a thread of ours was slower than the stop
            self._loop.call_soon_threadsafe(self._changed.set)

    async def run(self) -> NoReturn:
        """For ever."""
        while True:
            reason = self._health.reason()
            if reason != self._shown:
                self._say(reason)
                self._shown = reason
            # To the service manager we are up when CNI calls are answered. Waiting for the network would be a
            # deadlock where etcd is a pod: kubelet starts after us.
            if not self._serving and SERVING not in self._health.red():
                self._serving = True
                self._notifier.ready(f"not ready: {reason}" if reason else "ready")
            await self._changed.wait()
            self._changed.clear()

    def _say(self, reason: str) -> None:
        if reason:
            log.warning(NOT_READY, reason)
        elif self._seconds.value():
            log.info("ready again")
        else:
            self._seconds.set(seconds_since_process_start())
            log.info("ready %.2f s after process start", self._seconds.value())
        self._notifier.status(f"not ready: {reason}" if reason else "ready")


async def _sample_lag(metrics: Registry) -> None:
    """How late the event loop is: the time a timer came after it was due."""
    lag = metrics.histogram("pycni_event_loop_lag_seconds", "Lateness of a timer on the event loop.")
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_SECONDS
        await asyncio.sleep(LAG_SECONDS)
        lag.observe(max(0.0, loop.time() - due))


async def _watchdog(notifier: Notifier) -> None:
    """Tell the service manager twice per its interval that the event loop turns."""
    while True:
        notifier.watchdog()
        await asyncio.sleep(notifier.watchdog_seconds / 2 or 86400.0)


def _settle() -> None:
    """The start is over: what there is now lives as long as the process, what was only needed for it goes back."""
    gc.freeze()
    gc.enable()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; 7 of 74 MB with 5,000 leases
    if trim is not None:
        trim(0)


def _allow_many_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _go_first() -> None:
    """Threads started from here on inherit it. A supervisor that set a priority of its own is left alone."""
    if os.getpriority(os.PRIO_PROCESS, 0) == 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        except OSError as exc:
            log.info("the process keeps its usual priority: %s", exc.strerror)


def _end_anyway(seconds: float) -> None:
    """A stuck thread or a library's own clean-up must not keep a stopping process alive."""

    def end() -> None:
        log.error("stopping took more than %g s; the process ends as it is", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
