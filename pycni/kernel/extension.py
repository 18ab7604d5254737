"""The extension backend's commands: run once for each thing that is wanted, remembered, undone, tried again.

Life: what was run, and with what, is in ``<state-dir>/extension.json`` before and after each command, so that a
restarted agent runs nothing again, and one that was killed in the middle knows what may be half done (that is removed,
whether or not there is anything to remove, and added again). After a reboot nothing counts: the kernel has forgotten
too. ``start`` and ``settle`` are the node's own part (PreStartupCommand, PostStartupCommand), the table the peers'.

A command that fails is a failure of its entry, so health is red and the pass is repeated. What commands made in the
kernel is theirs: it is neither read nor watched.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from pycni.errors import KernelError
from pycni.kernel import command
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.tunnel import Lost, PutSysctl
from pycni.model.extension import Commands, Environment, ExtensionKey, ExtensionPeer, extension_text
from pycni.wire import rtlink, typed

log = logging.getLogger("pycni.kernel")

FILE = "extension.json"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

Home = Callable[[Callable[[], Any]], Any]
"""Runs a function in the namespace of the node."""


class _Added(msgspec.Struct):
    """A peer whose SubnetAddCommand was run."""

    peer: ExtensionPeer
    whole: bool
    """False while a command for it runs, and when one failed."""


class _Started(msgspec.Struct):
    """The node's own part."""

    pre: str
    environment: Environment
    output: str
    shutdown: str
    post: tuple[str, Environment] | None = None


class _Memory(msgspec.Struct):
    boot: str
    started: _Started | None = None
    added: dict[str, _Added] = msgspec.field(default_factory=dict)


class Extension:
    """Driver of the table. One thread at a time."""

    table, label = "extension", "extension"

    def __init__(self, home: Home) -> None:
        self._home = home
        self._path = ""
        self._memory = _Memory("")

    def remember_in(self, folder: str) -> None:
        """Read what an earlier life did, and keep it there from now on; before anything else."""
        self._path = os.path.join(folder, FILE)
        boot = _boot_id()
        try:
            with open(self._path, "rb") as file:
                found = typed.decode(file.read(), _Memory)
        except FileNotFoundError:
            found = _Memory(boot)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            log.warning("%s: not readable, every command is run again: %s", self._path, error)
            found = _Memory(boot)
        self._memory = found if found.boot == boot else _Memory(boot)

    # the node's own part

    def start(self, commands: Commands, environment: Environment) -> str:
        """What PreStartupCommand wrote; it is run unless it was since the last boot, with the same variables.

        What was done for another one is undone first. Raises KernelError.
        """
        started = self._memory.started
        if started is None or (started.pre, started.environment) != (commands.pre_startup, environment):
            self.leave()
            output = self._run("PreStartupCommand", commands.pre_startup, environment)
            started = _Started(commands.pre_startup, environment, output, commands.shutdown)
            self._memory.started = started
            self._save()
        elif started.shutdown != commands.shutdown:
            started.shutdown = commands.shutdown
            self._save()
        return started.output

    def settle(self, commands: Commands, environment: Environment) -> None:
        """Run PostStartupCommand, unless it was run after the last ``start``. Raises KernelError."""
        started = self._memory.started
        if started is None:
            raise KernelError(errno.EAGAIN, "run PostStartupCommand", "", "PreStartupCommand was not run yet")
        wanted = commands.post_startup, environment
        if started.post != wanted:
            self._run("PostStartupCommand", *wanted)
            started.post = wanted
            self._save()

    @property
    def idle(self) -> bool:
        """Whether there is nothing that could be undone."""
        return self._memory.started is None and not self._memory.added

    def leave(self) -> None:
        """Undo everything: the network is another one now. What fails is told and forgotten."""
        failed = self.remove([ExtensionKey(lease) for lease in self._memory.added])
        for error in failed.values():
            log.warning("%s", error)
        self._memory.added.clear()
        self.stop()
        if not self.idle:
            self._memory.started = None
            self._save()

    def stop(self) -> None:
        """The agent ends in good order: run ShutdownCommand, after which nothing counts. Without one, all stays."""
        started = self._memory.started
        if started is None or not started.shutdown:
            return
        try:
            self._run("ShutdownCommand", started.shutdown, started.environment)
        except KernelError as error:
            log.warning("%s", error)
        self._memory = _Memory(self._memory.boot)
        try:
            self._save()
        except KernelError as error:
            log.warning("%s", error)

    # the table

    def owns(self, _link: rtlink.Link) -> bool:
        """No devices."""
        return False

    def read(
        self, _sock: NetlinkSocket, _links: Sequence[rtlink.Link]
    ) -> tuple[dict[str, Any], dict[ExtensionKey, ExtensionPeer]]:
        """What was done. A peer that may be half done is unlike any wanted one."""
        return {}, {
            ExtensionKey(lease): added.peer if added.whole else added.peer._replace(environment=())
            for lease, added in self._memory.added.items()
        }

    def ensure(self, _sock: NetlinkSocket, desired: Any, _actual: Any, _put_sysctl: PutSysctl) -> Lost:
        """There are no devices to ensure."""
        raise KernelError(errno.EOPNOTSUPP, "make device", str(desired))

    def put(self, entries: Mapping[ExtensionKey, ExtensionPeer]) -> dict[ExtensionKey, KernelError]:
        """Run SubnetAddCommand for peers, after SubnetRemoveCommand where they were others; returns what failed."""
        added, failed = self._memory.added, dict[ExtensionKey, KernelError]()
        try:
            self._undo([key for key in entries if key.lease in added])
            added.update({key.lease: _Added(peer, whole=False) for key, peer in entries.items()})
            self._save()
        except KernelError as error:
            return dict.fromkeys(entries, error)
        for key, peer in entries.items():
            try:
                self._run("SubnetAddCommand", peer.add, peer.environment, peer.data, key.lease)
            except KernelError as error:
                failed[key] = _named(error)
            else:
                added[key.lease].whole = True
        self._save_after(entries, failed)
        return failed

    def remove(self, keys: Iterable[ExtensionKey]) -> dict[ExtensionKey, KernelError]:
        """Run SubnetRemoveCommand for peers; returns what failed: those are remembered and tried again."""
        failed: dict[ExtensionKey, KernelError] = {}
        keys = [key for key in keys if key.lease in self._memory.added]
        for key in keys:
            peer = self._memory.added[key.lease].peer
            try:
                self._run("SubnetRemoveCommand", peer.remove, peer.environment, peer.data, key.lease)
            except KernelError as error:
                failed[key] = _named(error)
            else:
                del self._memory.added[key.lease]
        self._save_after(keys, failed)
        return failed

    def text(self, key: ExtensionKey, value: ExtensionPeer) -> str:
        """A peer in a line."""
        return extension_text(key, value)

    def close(self) -> None:
        """Nothing is open between calls."""

    def _undo(self, keys: Sequence[ExtensionKey]) -> None:
        """Before peers are added as others. What fails here shows when they are added."""
        for key in keys:
            self._memory.added[key.lease].whole = False
        if keys:
            self._save()
        for key in keys:
            peer = self._memory.added[key.lease].peer
            try:
                self._run("SubnetRemoveCommand", peer.remove, peer.environment, peer.data, key.lease)
            except KernelError as error:
                log.warning("%s; going on with SubnetAddCommand", error)

    def _run(self, name: str, text: str, environment: Environment, data: str = "", about: str = "") -> str:
        if not text:
            return ""
        output: str = self._home(lambda: command.run(name, text, environment, data, about=about))
        log.info("%s%s: done", name, f" for {about}" if about else "")
        if output and name != "PreStartupCommand":
            log.debug("%s wrote: %s", name, output)
        return output

    def _save_after(self, keys: Iterable[ExtensionKey], failed: dict[ExtensionKey, KernelError]) -> None:
        """Remember; what cannot be remembered has failed."""
        try:
            self._save()
        except KernelError as error:
            failed.update({key: error for key in keys if key not in failed})

    def _save(self) -> None:
        if not self._path:
            raise KernelError(errno.EINVAL, "remember", FILE, "no folder was given")
        part = f"{self._path}.part"
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o755, exist_ok=True)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(msgspec.json.encode(self._memory))
            os.rename(part, self._path)
        except OSError as error:
            raise KernelError(
                error.errno or errno.EIO, "remember", self._path, error.strerror or ""
            ) from error


def _named(error: KernelError) -> KernelError:
    """With the command among the details: operation and object are the entry's in a failure."""
    detail = f"{error.operation}: {error.detail}"
    return KernelError(error.errno, error.operation, error.obj, detail)


def _boot_id() -> str:
    with open(BOOT_ID, encoding="ascii") as file:
        return file.read().strip()
