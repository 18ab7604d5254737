"""Processes of a lab: recognised without doubt, and ended.

A pid alone is no identity. A process is one of a lab's when its pid was recorded together with its start time (field
22 of /proc/<pid>/stat) in this boot, when its network namespace is one that the lab made, or when its environment
says that it is a daemon of the lab (which holds from its first moment on, before it is recorded and before it
has entered a namespace). Signals go through a pidfd that was opened before the identity was checked, so that a reused
pid is never hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

import pycni
from pycni.lab.topology import LabError

POLL_S = 0.005
ROUNDS = 5
"""Times to look for processes again: one that was about to fork has a child the first look missed."""
MARK = "PYCNI_LAB_DAEMON_OF"
FATAL = (signal.SIGKILL, signal.SIGTERM)
"""Signals after which the end is waited for."""
_RESET = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE)


class ProcessId(msgspec.Struct, frozen=True):
    """A process for as long as the machine runs. ``start`` is in clock ticks since boot."""

    pid: int
    start: int

    def alive(self) -> bool:
        """Whether exactly this process is there and is no zombie."""
        return start_time(self.pid) == self.start


def boot_id() -> str:
    """Identity of this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_time(pid: int) -> int | None:
    """Start time of a live process in clock ticks since boot (proc(5), field 22); None for zombies and the dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def identify(pid: int) -> ProcessId:
    """The identity of a process that is known to run. Raises LabError when it has ended."""
    start = start_time(pid)
    if start is None:
        raise LabError(f"process {pid} has ended")
    return ProcessId(pid, start)


def spawn(argv: Sequence[str], log: Path, environment: Mapping[str, str]) -> ProcessId:
    """Start a daemon: its own session, no input, output appended to ``log``. The caller may end before it does."""
    with log.open("ab") as output, open(os.devnull, "rb") as nothing:
        actions = [
            (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
        ]
        pid = os.posix_spawnp(
            argv[0],
            list(argv),
            environment,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=_RESET,
        )
    return identify(pid)


def inside(namespaces: Iterable[int]) -> list[ProcessId]:
    """Every process whose network namespace has one of these inode numbers, except this one."""
    wanted = {f"net:[{inode}]" for inode in namespaces}
    return [process for process in _all() if _net_link(process.pid) in wanted]


def in_session(leader: int) -> list[ProcessId]:
    """Every process of the session that this process leads or led."""
    return [process for process in _all() if _session(process.pid) == leader]


def end(look: Callable[[], Iterable[ProcessId]]) -> int:
    """Kill what ``look`` finds until it finds nothing more; returns how many there were. Raises LabError."""
    ended: set[ProcessId] = set()
    for _round in range(ROUNDS):
        found = set(look())
        if not found:
            break
        kill(found)
        ended |= found
    return len(ended)


def import_roots() -> list[str]:
    """Folders from which daemons import the same code as this process."""
    root = Path(pycni.__file__).parent.parent
    return [str(root), *(str(root / name) for name in ("proxy", "bgp") if (root / name).is_dir())]


def environment(lab: str) -> dict[str, str]:
    """The environment of a lab's daemons: ours without what would configure them, with the lab's mark."""
    taken = ("PYCNI", "FLANNELD", "ETCD", "NOTIFY_SOCKET", "PYTHON")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(taken)}
    return kept | {"PYTHONPATH": os.pathsep.join(import_roots())} | mark(lab)


def mark(lab: str) -> dict[str, str]:
    """The variable that tells a lab's daemons."""
    return {MARK: lab}


def marked(lab: str) -> list[ProcessId]:
    """Every process that was started with the lab's mark."""
    variable = f"{MARK}={lab}".encode()
    return [process for process in _all() if variable in _environment(process.pid).split(b"\0")]


def kill(processes: Iterable[ProcessId], number: int = signal.SIGKILL, timeout: float = 10.0) -> None:
    """Signal processes that are still the ones meant and, when the signal ends them, wait until they are gone."""
    waiting = [item for item in processes if _signal(item, number)]
    if number in FATAL:
        wait(waiting, timeout)


def wait(processes: Iterable[ProcessId], timeout: float = 10.0) -> None:
    """Wait until processes are gone. Raises LabError naming those that stay."""
    waiting = list(processes)
    deadline = time.monotonic() + timeout
    while waiting := [item for item in waiting if not _gone(item)]:
        if time.monotonic() > deadline:
            pids = ", ".join(str(item.pid) for item in waiting)
            raise LabError(f"processes do not end after {timeout:g} s: {pids}")
        time.sleep(POLL_S)


def _signal(process: ProcessId, number: int) -> bool:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.alive():
            return False
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)
    return True


def _gone(process: ProcessId) -> bool:
    """Whether it has ended; our own children are reaped."""
    if process.alive():
        return False
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return True


def _all() -> list[ProcessId]:
    """Every live process but this one."""
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdecimal() and int(entry) != os.getpid()]
    return [ProcessId(pid, start) for pid in pids if (start := start_time(pid)) is not None]


def _environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _session(pid: int) -> int | None:
    """proc(5), field 6 of stat."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _net_link(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
