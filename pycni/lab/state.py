"""What a lab remembers between commands: ``/run/pycni-lab/<name>/``.

Life: ``lab up`` takes the lock, writes ``lab.json`` (phase ``starting``) before it makes anything, adds each process
as it is started and sets the phase ``up`` at the end; pods are one file each, written once their ADD succeeded, so
that ``pod add`` and ``pod rm`` need no common lock; ``lab down`` removes the folder last. A record whose phase is
``starting`` while nobody holds the lock was left by a crash. Nothing here is trusted blindly: see ``processes``.

    lab.json  lock (beside the folder)  etcd/ etcd.log  pods/<pod>.json
    nodes/<node>/{agent.log, cni.sock, subnet.env, state/, networks/, net.d/, results/}
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from pycni.lab.processes import ProcessId
from pycni.lab.topology import LabError, LabSpec
from pycni.wire import typed

RUN = Path("/run/pycni-lab")
LOCK_WAIT_S = 20.0

T = TypeVar("T")


class LabRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``lab.json``."""

    version: Literal[1] = 1
    spec: LabSpec
    boot_id: str
    phase: Literal["starting", "up"] = "starting"
    nodes: tuple[str, ...] = ()
    """Names of the nodes that exist; ``spec.nodes`` is how many ``lab up`` made."""
    processes: Mapping[str, ProcessId] = {}
    """``etcd`` and the agents by their node's name."""


class PodRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``pods/<pod>.json``."""

    name: str
    node: str
    namespace: str
    """Name of its network namespace, its own or the one it shares; "" for a node's that has a kernel of its own."""
    container_id: str
    ips: tuple[str, ...] = ()
    """Addresses without prefix length, IPv4 first."""
    interface: str = "eth0"
    network: str = "cluster"
    """Where its network is from (``modes``)."""
    result: Mapping[str, Any] = {}
    """The CNI result of ADD."""
    add_seconds: float = 0.0


class LabState:
    """The folder of one lab."""

    def __init__(self, name: str, root: Path = RUN) -> None:
        self.name = name
        self.folder = root / name

    @property
    def file(self) -> Path:
        """The record."""
        return self.folder / "lab.json"

    def node_folder(self, node: str) -> Path:
        """Everything of one node."""
        return self.folder / "nodes" / node

    # record

    def load(self) -> LabRecord | None:
        """The record, None when there is none. Raises LabError when it cannot be read."""
        return self._read(self.file, LabRecord)

    def save(self, record: LabRecord) -> None:
        """Replace the record."""
        _write(self.file, record)

    def remove(self) -> None:
        """Forget everything."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    # pods

    def pods(self) -> list[PodRecord]:
        """Pods in the order of their names' numbers."""
        files = sorted((self.folder / "pods").glob("*.json"), key=_natural)
        found = (self._read(file, PodRecord) for file in files)
        return [pod for pod in found if pod is not None]

    def put_pod(self, pod: PodRecord) -> None:
        """Record a pod."""
        _write(self.folder / "pods" / f"{pod.name}.json", pod)

    def claim_pod(self, pod: PodRecord) -> bool:
        """Record a new pod; whether its name was free."""
        try:
            _write(self.folder / "pods" / f"{pod.name}.json", pod, new=True)
        except FileExistsError:
            return False
        return True

    def drop_pod(self, name: str) -> None:
        """Forget a pod."""
        (self.folder / "pods" / f"{name}.json").unlink(missing_ok=True)

    # lock

    @contextlib.contextmanager
    def lock(self, *, shared: bool = False, wait: float = LOCK_WAIT_S) -> Iterator[None]:
        """Hold the lab: alone to change it, shared for what only needs it to stay. A crash frees the lock."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        file = self.folder.with_name(f".{self.name}.lock")
        deadline = time.monotonic() + wait
        while True:
            fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            if _try_lock(fd, shared=shared) and _same_file(fd, file):
                break
            holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "?"
            os.close(fd)
            if time.monotonic() > deadline:
                raise LabError(f"lab {self.name} is being changed by another command (pid {holder})")
            time.sleep(0.02)
        try:
            if not shared:
                os.ftruncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
            yield
        finally:
            if not shared and not self.folder.exists():
                file.unlink(missing_ok=True)
            os.close(fd)

    def _read(self, file: Path, kind: type[T]) -> T | None:
        try:
            return typed.decode(file.read_bytes(), kind)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError as exc:
            raise LabError(
                f"lab {self.name}: {file} is damaged ({exc}); clean up with: pycnictl lab down --name {self.name}"
            ) from exc


def recorded(root: Path = RUN) -> list[str]:
    """Names of the labs that have a folder."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir()) if root.is_dir() else []


def _try_lock(fd: int, *, shared: bool) -> bool:
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(fd: int, file: Path) -> bool:
    """Whether the locked file is still the one of that name (its last holder may have removed it)."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(file))
    except FileNotFoundError:
        return False


def _write(file: Path, value: msgspec.Struct, *, new: bool = False) -> None:
    """Put the whole file in place. ``new``: raises FileExistsError when there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_native_id()}")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
    if not new:
        temporary.rename(file)
        return
    try:
        os.link(temporary, file)
    finally:
        temporary.unlink()


def _natural(file: Path) -> tuple[str, int]:
    stem = file.stem.rstrip("0123456789")
    number = file.stem[len(stem) :]
    return stem, int(number) if number else -1
