"""BIRD as a process of ours: started, told its plan, looked after, left in peace when the agent goes.

Life: ``put`` writes the configuration (a file only root can read, as passwords are in it; written beside and renamed)
and has BIRD take it, which leaves sessions alone whose block is the same. ``run`` starts BIRD as soon as there is a
plan, and again, with growing delays, whenever it ended; then with graceful restart, so that neighbours keep our routes
and the kernel keeps theirs meanwhile. A BIRD that an agent left behind when it was killed is found by its
control socket and taken over. When the agent stops, BIRD is told to end for a graceful restart, or for good when this
node is leaving. It logs to a file of its own, bounded in size, so that nothing waits for a reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from pycni.reconcile.backoff import Backoff
from pycni_bgp.bird import show
from pycni_bgp.bird.config import config
from pycni_bgp.bird.control import ask
from pycni_bgp.engine import Adjacency, BgpError, Plan, Route, Session
from pycni_bgp.files import write_private
from pycni_bgp.model import Prefix

log = logging.getLogger("pycni.bgp")

LOOK_S = 1.0
"""Between two looks at a BIRD that is not our child, or has not come up yet."""
END_S = 5.0
"""How long BIRD may take to end."""
RTPROT_BIRD = 12
"""include/uapi/linux/rtnetlink.h."""
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LIVED_S = 10.0
"""A BIRD that ran so long was well: the next delay is the first one again."""


class Bird:
    """An ``Engine``. On one event loop."""

    name = "bird"
    protocol = RTPROT_BIRD

    def __init__(
        self, folder: str, *, command: Sequence[str] = ("bird",), backoff: Backoff | None = None
    ) -> None:
        """``folder`` is made when missing and holds the configuration, the control socket and the log."""
        self._folder = folder
        self._command = tuple(command)
        self._backoff = backoff or Backoff(0.2, 30.0)
        self.leaving: Callable[[], bool] = lambda: False
        self._plan: Plan | None = None
        self._planned = asyncio.Event()
        self.starts = 0
        """How often BIRD was started."""
        self.trouble = "BIRD has no plan yet"
        """Why BIRD does not do what it was told last; "" when it does."""

    @property
    def control(self) -> str:
        """The control socket."""
        return os.path.join(self._folder, "bird.ctl")

    @property
    def pid_file(self) -> str:
        """Holds the number of BIRD's process."""
        return os.path.join(self._folder, "bird.pid")

    @property
    def log_file(self) -> str:
        """BIRD's own log."""
        return os.path.join(self._folder, "bird.log")

    # --- the engine's part ---------------------------------------------------------------------------------------

    async def put(self, plan: Plan) -> None:
        """Go by this plan from now on, or once BIRD is there (``trouble`` says so). Raises ConfigError, BgpError."""
        if plan == self._plan and not self.trouble:
            return
        text = config(plan, self.log_file)
        await asyncio.to_thread(write_private, self._file, text)
        self._plan = plan
        self._planned.set()
        self.trouble = "BIRD is not running yet"
        try:
            await self._configure()
        except BgpError:
            if await self._answers():
                raise

    async def sessions(self) -> Sequence[Session]:
        """All of them. Raises BgpError."""
        return show.sessions((await ask(self.control, "show protocols all"))[0])

    async def learned(self) -> Sequence[Route]:
        """All learned routes. Raises BgpError."""
        return await asyncio.to_thread(show.routes, (await ask(self.control, "show route all"))[0])

    def told(self) -> Mapping[bytes, Iterable[str]] | None:
        """BIRD is not asked: it decides by the filters it was given."""
        return None

    async def wanted(self) -> Mapping[Prefix, tuple[bytes, ...]] | None:
        """Of the best paths; BIRD merges equal ones. None with OSPF. Raises BgpError."""
        if self._plan is None or self._plan.settings.ospf is not None:
            return None
        found: dict[Prefix, tuple[bytes, ...]] = {}
        for item in await self.learned():
            if item.best:
                found[item.prefix] = (item.attributes.next_hop,)
        return found

    async def adjacencies(self) -> Sequence[Adjacency]:
        """Neighbours of OSPF of both versions. Raises BgpError."""
        if self._plan is None or self._plan.settings.ospf is None:
            return ()
        texts = await ask(self.control, "show ospf neighbors ospf4", "show ospf neighbors ospf6")
        return [item for text in texts for item in show.adjacencies(text)]

    async def run(self) -> None:
        """Keep BIRD running for ever. Cancelled, it ends BIRD in a way that keeps routes here and at neighbours."""
        await self._planned.wait()
        loop = asyncio.get_running_loop()
        try:
            while True:
                started = loop.time()
                if await self._answers():
                    log.info("BIRD is running already and is taken over")
                    await self._configured()
                    reason = await self._watch()
                else:
                    reason = await self._serve()
                self.trouble = f"BIRD ended: {reason}"
                if loop.time() - started > LIVED_S:
                    self._backoff.reset()
                delay_s = self._backoff.next()
                log.error("BIRD ended (%s); it is started again in %.1f s", reason, delay_s)
                await asyncio.sleep(delay_s)
        except asyncio.CancelledError:
            await self._farewell()
            raise

    # --- the process ---------------------------------------------------------------------------------------------

    async def _serve(self) -> str:
        """Start BIRD and wait until it ends; says why it did."""
        again = ["-R"] if self._ran_before() else []
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, "-f", *again, "-c", self._file, "-s", self.control, "-P", self.pid_file,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError as error:
            return f"{self._command[0]}: {error.strerror or error}"
        self.starts += 1
        coming = asyncio.create_task(self._configured())
        try:
            # Only what it says before it has read its configuration comes this way.
            _, said = await process.communicate()
        except asyncio.CancelledError:
            await self._farewell()
            await _end(process)
            raise
        finally:
            coming.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await coming
        words = said.decode(errors="replace").strip().splitlines()
        return words[-1] if words else f"status {process.returncode}"

    async def _watch(self) -> str:
        """Wait until a BIRD that is not our child ends; says so."""
        while await self._answers():  # noqa: ASYNC110  (nobody tells)
            await asyncio.sleep(LOOK_S)
        return "it does not answer any more"

    async def _farewell(self) -> None:
        """Have BIRD end so that routes stay, or so that neighbours forget them."""
        leaving = self.leaving()
        if leaving:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._mark)
        with contextlib.suppress(BgpError):
            await ask(self.control, "down" if leaving else "graceful restart", wait_s=END_S)

    async def _configured(self) -> None:
        """Wait until BIRD has the plan: it may have started with an older file."""
        while True:
            try:
                await self._configure()
            except BgpError as error:
                self.trouble = str(error)
                await asyncio.sleep(LOOK_S / 5)
            else:
                return

    async def _configure(self) -> None:
        """Have BIRD read its file. Raises BgpError."""
        await ask(self.control, "configure")
        self.trouble = ""

    async def _answers(self) -> bool:
        try:
            await ask(self.control, "show status")
        except BgpError:
            return False
        return True

    # --- files ---------------------------------------------------------------------------------------------------

    @property
    def _file(self) -> str:
        return os.path.join(self._folder, "bird.conf")

    @property
    def _mark(self) -> str:
        """Says in which boot BIRD ran. BIRD removes ``pid_file`` when it ends in good order."""
        return os.path.join(self._folder, "bird.ran")

    def _ran_before(self) -> bool:
        """Whether there may be something to recover; a first start would only wait for neighbours that are away."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.control)
        boot = Path(BOOT_ID).read_text(encoding="ascii")
        with contextlib.suppress(FileNotFoundError):
            if Path(self._mark).read_text(encoding="ascii") == boot:
                return True
        write_private(self._mark, boot)
        return False


async def _end(process: asyncio.subprocess.Process) -> None:
    try:
        await asyncio.wait_for(process.wait(), END_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
