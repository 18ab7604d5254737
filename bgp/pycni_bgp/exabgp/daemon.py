"""exabgp as a process of ours, and what it cannot do: the decision among paths.

Life: ``put`` writes the configuration and, through the relay, has exabgp read it, which leaves sessions alone that stay
as they are. Learned routes come through the relay; ``rib`` says which of them are used, ``kernel`` puts them into the
kernel, and what is to be announced goes back the same way. exabgp and its relay outlive an agent that was killed (one
that stops ends them); the next one takes them over and is told everything. After a start of exabgp no learned route is
removed before its neighbours have told everything, or ``RECOVERY_S`` are over. Routes that went from the kernel (an
interface was down, somebody removed them) are put back at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pycni_bgp
from pycni.model.family import FAMILIES, show
from pycni.reconcile.backoff import Backoff
from pycni_bgp.engine import LEAST_S, Adjacency, BgpError, Plan, Route, Session
from pycni_bgp.exabgp.config import config, own_address
from pycni_bgp.exabgp.kernel import PROTOCOL, KernelRoutes
from pycni_bgp.exabgp.words import attributes, words
from pycni_bgp.files import write_private
from pycni_bgp.model import Learned, Prefix, prefix
from pycni_bgp.rib import Rib

log = logging.getLogger("pycni.bgp")

RECOVERY_S = 15.0
SETTLE_S = 0.05
"""From the first news to looking at all of it."""
RESYNC_S = 60.0
END_S = 5.0
"""How long a good-bye may take."""
IDLE_S, IDLE_LOOKS = 0.1, 3
"""exabgp has said everything when it did nothing at so many looks."""
LIVED_S = 10.0
LINE_MAX = 1 << 24
_STATES = {"up": "Established", "connected": "OpenSent", "down": "Active"}


class ExaBgp:
    """An ``Engine``. On one event loop."""

    name = "exabgp"
    protocol = PROTOCOL

    def __init__(
        self,
        folder: str,
        *,
        prefix: Sequence[str] = (),
        kernel: KernelRoutes | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        """``prefix``: words before the command, for a node that is not where the agent is; ``kernel`` belongs to it."""
        self._folder = folder
        self._prefix = tuple(prefix)
        self.leaving: Callable[[], bool] = lambda: False
        self._backoff = backoff or Backoff(0.2, 30.0)
        self._plan: Plan | None = None
        self._rib: Rib | None = None
        self._text = ""
        self._planned, self._news = asyncio.Event(), asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._peers: dict[str, Mapping[str, Any]] = {}
        self._learned: dict[tuple[str, str], Learned] = {}
        self._sent: Mapping[str, Mapping[str, str]] | None = None
        self._synced = False
        """The relay has told all it remembered."""
        self._recovering_until = float("-inf")
        self._kernel = kernel or KernelRoutes()
        self.starts = 0
        """How often exabgp was started."""
        self._down = "exabgp has no plan yet"

    @property
    def trouble(self) -> str:
        """Why it does not do what it was told last; "" when it does."""
        return self._down or self._kernel.refused

    @property
    def socket(self) -> str:
        """Of the relay."""
        return os.path.join(self._folder, "relay.sock")

    @property
    def pid_file(self) -> str:
        """Holds the number of exabgp's process."""
        return os.path.join(self._folder, "exabgp.pid")

    @property
    def _conf(self) -> str:
        return os.path.join(self._folder, "exabgp.conf")

    # --- the engine's part ---------------------------------------------------------------------------------------

    async def put(self, plan: Plan) -> None:
        """Go by this plan from now on, or once exabgp is there (``trouble`` says so). Raises ConfigError."""
        if plan == self._plan:
            return
        relay = (
            sys.executable,
            str(Path(pycni_bgp.__file__).parent / "exabgp" / "start_relay.py"),
            self.socket,
        )
        text = config(plan, relay)
        changed = text != self._text
        if changed:
            await asyncio.to_thread(write_private, self._conf, text)
        self._text, self._plan = text, plan
        self._rib = Rib(plan.settings, plan.own, plan.router_id, plan.sessions, draining=plan.draining)
        self._planned.set()
        if changed and self._writer is not None:
            self._order({"reload": True})
        self._news.set()

    async def sessions(self) -> Sequence[Session]:
        """All of them. Raises BgpError."""
        self._need()
        plan, found = self._plan, []
        counts: dict[str, int] = {}
        for peer, _ in self._learned:
            counts[peer] = counts.get(peer, 0) + 1
        for address in plan.sessions if plan is not None else ():
            name = show(address)
            said = self._peers.get(name, {})
            since = time.strftime("%H:%M:%S", time.localtime(said["since"])) if said.get("since") else ""
            found.append(
                Session(
                    address,
                    _STATES.get(said.get("state", ""), "Idle"),
                    since,
                    said.get("reason", ""),
                    counts.get(name, 0),
                    len((self._sent or {}).get(name, ())),
                )
            )
        return found

    async def learned(self) -> Sequence[Route]:
        """All learned routes. Raises BgpError."""
        self._need()
        rib = self._rib
        if rib is None:
            return ()
        accepted = rib.accepted(self._learned.values())
        best = {id(path) for paths in _grouped(accepted).values() for path in rib.equals(paths)}
        return [
            Route(item.neighbour, item.prefix, item.attributes, id(item) in best)
            for item in self._learned.values()
        ]

    def told(self) -> Mapping[bytes, Iterable[str]] | None:
        """What the relay was told last, which remembers it."""
        return {ipaddress.ip_address(peer).packed: tuple(found) for peer, found in (self._sent or {}).items()}

    async def wanted(self) -> Mapping[Prefix, tuple[bytes, ...]] | None:
        """As they are given to the kernel. Raises BgpError."""
        self._need()
        rib, paths = self._rib, list(self._learned.values())
        return {} if rib is None else await asyncio.to_thread(lambda: rib.routes(rib.accepted(paths)))

    async def adjacencies(self) -> Sequence[Adjacency]:
        """None: there is no OSPF."""
        return ()

    async def run(self) -> None:
        """Keep exabgp running for ever. Cancelled, it ends it without a word, so that neighbours keep its routes."""
        await self._planned.wait()
        self._kernel.watch(self._news.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep())
                tasks.create_task(self._follow())
        finally:
            self._kill()
            self._kernel.close()

    def _need(self) -> None:
        if self._writer is None:
            raise BgpError(self._down or "exabgp does not answer")

    # --- the process ---------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            if not await self._talk():
                reason = await self._serve()
            else:
                reason = "its relay has ended"
                self._kill()
            self._down = f"exabgp ended: {reason}"
            if loop.time() - started > LIVED_S:
                self._backoff.reset()
            delay_s = self._backoff.next()
            log.error("exabgp ended (%s); it is started again in %.1f s", reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _serve(self) -> str:
        """Start exabgp and wait until it ends; says why it did."""
        plan = self._plan
        assert plan is not None, "run waits for it"
        listen = sorted({show(own_address(plan, item)) for item in plan.sessions.values()})
        settings = {
            "exabgp.api.ack": "false",
            "exabgp.api.cli": "false",
            "exabgp.daemon.user": "root",
            "exabgp.daemon.pid": self.pid_file,
            "exabgp.log.destination": os.path.join(self._folder, "exabgp.log"),
            "exabgp.log.level": "WARNING",
            "exabgp.tcp.port": str(plan.port),
            "exabgp.tcp.bind": " ".join(listen),
        }
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.pid_file)
        program = [sys.executable, "-m", "exabgp", "server", self._conf]
        try:
            process = await asyncio.create_subprocess_exec(
                *self._prefix, *program, env={**os.environ, **settings}, start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            return f"{program[0]}: {error.strerror or error}"
        self.starts += 1
        self._recovering_until = asyncio.get_running_loop().time() + RECOVERY_S
        talking = asyncio.create_task(self._talk_soon())
        ending = asyncio.create_task(process.wait())
        try:
            await asyncio.wait({talking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return f"status {ending.result()}"
            # exabgp would start another relay, which would remember nothing.
            return "its relay has ended"
        finally:
            await _ended(talking)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await ending

    async def _farewell(self) -> None:
        """When this node is leaving, withdraw everything and give exabgp time to say so.

        exabgp never says good-bye to neighbours that restart gracefully with it, so they keep what is not withdrawn.
        """
        if not self.leaving() or self._plan is None:
            return
        self._order({"out": {show(address): {} for address in self._plan.sessions}})
        idle, before = 0, self._worked()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                while idle < IDLE_LOOKS:
                    await asyncio.sleep(IDLE_S)
                    now = self._worked()
                    idle, before = (idle + 1 if now - before <= 1 else 0), now

    def _worked(self) -> int:
        """Processor time exabgp has used, in ticks: it does not say when it has sent everything."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(Path(self.pid_file).read_text(encoding="utf-8"))
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            return int(fields[11]) + int(fields[12])
        return 0

    def _kill(self) -> None:
        """End exabgp, whoever started it."""
        with contextlib.suppress(OSError, ValueError):
            pid = int(Path(self.pid_file).read_text(encoding="utf-8"))
            fd = os.pidfd_open(pid)
            try:
                if self._conf.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                    signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)

    async def _talk_soon(self) -> None:
        while not await self._talk():  # noqa: ASYNC110  (nobody tells when the relay is there)
            await asyncio.sleep(0.1)

    async def _talk(self) -> bool:
        """Listen to the relay until it hangs up; False when there is none."""
        try:
            reader, writer = await asyncio.open_unix_connection(self.socket, limit=LINE_MAX)
        except OSError:
            return False
        self._peers.clear()
        self._learned.clear()
        self._sent, self._synced = None, False
        try:
            self._writer, self._down = writer, ""
            self._order({"reload": True})
            while line := await reader.readline():
                self._take(json.loads(line))
        except asyncio.CancelledError:
            await self._farewell()
            raise
        finally:
            self._writer = None
            writer.close()
        return True

    def _order(self, order: Mapping[str, Any]) -> None:
        if self._writer is not None:
            self._writer.write(json.dumps(order).encode() + b"\n")

    def _take(self, message: Mapping[str, Any]) -> None:
        peer = message.get("peer", "")
        if "routes" in message:
            said = self._peers.get(peer, {})
            router = ipaddress.ip_address(said.get("router_id") or "0.0.0.0").packed
            source = ipaddress.ip_address(peer).packed
            for text, route in message["routes"].items():
                if route is None:
                    self._learned.pop((peer, text), None)
                else:
                    self._learned[peer, text] = Learned(source, router, prefix(text), attributes(*route))
        elif peer:
            self._peers[peer] = message
        self._synced = self._synced or "synced" in message
        self._news.set()

    # --- what follows from it ------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """Announcements and the kernel's routes, whenever there is news."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._next_look()):
                    await self._news.wait()
            await asyncio.sleep(SETTLE_S)
            self._news.clear()
            if self._rib is not None and self._plan is not None:
                self._announce(self._plan, self._rib)
                await self._program(self._rib)

    def _next_look(self) -> float:
        left = self._recovering_until - asyncio.get_running_loop().time()
        return min(max(left, SETTLE_S), 1.0) if left > 0 else RESYNC_S

    def _announce(self, plan: Plan, rib: Rib) -> None:
        if self._writer is None:
            return
        best = rib.first(rib.accepted(self._learned.values())) if plan.own.reflector else {}
        wanted = {
            show(neighbour.address): {
                str(item): words(neighbour, found)
                for item, found in rib.exports(neighbour, plan.local, best).items()
            }
            for neighbour in plan.sessions.values()
        }
        if wanted != self._sent:
            self._order({"out": wanted})
            self._sent = wanted

    async def _program(self, rib: Rib) -> None:
        # With ten thousand routes it takes a fifth of a second, which others on this loop would wait.
        paths = list(self._learned.values())
        wanted = await asyncio.to_thread(lambda: rib.routes(rib.accepted(paths)))
        keep = self._writer is None or not self._synced or not self._recovered()
        await self._kernel.apply(wanted, keep=keep)

    def _recovered(self) -> bool:
        """Whether all neighbours that are there have told everything, or enough time went by."""
        left_s = self._recovering_until - asyncio.get_running_loop().time()
        if not 0 < left_s <= RECOVERY_S - LEAST_S:
            return left_s <= 0
        plan = self._plan
        assert plan is not None, "there is a RIB, so there is a plan"
        peers = [self._peers.get(show(address), {}) for address in plan.sessions]
        return bool(peers) and all(len(peer.get("told", ())) == len(FAMILIES) for peer in peers)


def _grouped(paths: Sequence[Learned]) -> dict[Prefix, list[Learned]]:
    found: dict[Prefix, list[Learned]] = {}
    for path in paths:
        found.setdefault(path.prefix, []).append(path)
    return found


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
