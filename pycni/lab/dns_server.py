"""The lab's DNS server: two dnsmasq in the pod ``dns.kube-system``.

Life: ``update`` is called with new ``Records`` whenever the lab's objects changed. The front listens on port 53 and
knows all addresses; a SIGHUP makes it read them again. What dnsmasq reads only at its start (SRV, CNAME) is in a
second one, the back, to which the front forwards what it does not know itself: when that changes, a new back is
started beside the old one, the front is told to use it, and the old one ends after its last answers. So no query is
lost by a change. Files are in the folder of the pod's node.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import msgspec

from pycni.lab import processes
from pycni.lab.dns import Records
from pycni.lab.node import LabNode
from pycni.lab.topology import DNS_DOMAIN, LabError
from pycni.wire import typed

PROGRAM = "dnsmasq"
START_S = 10.0
POLL_S = 0.01
LINGER_S = 0.2
"""How long an old back goes on for queries the front has sent it: its answers take microseconds."""
_PORTS = (5301, 5302)
# A pid alone is no identity: what is signalled must have this folder's name in its command line.
_KILL = """\
folder=$0 signal=$1; shift
for pid; do tr '\\0' ' ' </proc/$pid/cmdline | grep -qF "$folder/" || exit 1; done
[ "$signal" = 0 ] || kill "-$signal" "$@"
"""


class _State(msgspec.Struct, kw_only=True):
    """``state.json``: which processes there are (pids of the node's kernel)."""

    namespace: str = ""
    front: int = 0
    back: int = 0
    port: int = 0
    """Of the back."""
    special: str = ""
    """What the back knows."""
    hosts: str = ""


class DnsServer:
    """The server in one pod. Used by one command at a time."""

    def __init__(self, node: LabNode, namespace: str) -> None:
        """``namespace``: name of the pod's network namespace on the node."""
        self._node = node
        self._namespace = namespace
        self._folder = node.folder / "dns"

    def update(self, records: Records) -> None:
        """Let it say exactly this, starting what is not there. Raises LabError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        state = self._load()
        if state.namespace != self._namespace or not self._alive(state.front, state.back):
            state = _State(namespace=self._namespace)
        elif (state.hosts, state.special) == records:
            return
        self._write("hosts", records.hosts)
        old = 0
        if not state.back or state.special != records.special:
            old, state.back = state.back, self._start_back(state, records.special)
        self._write("servers", f"server=/{DNS_DOMAIN}/127.0.0.1#{state.port}\n")
        if state.front:
            self._signal("HUP", state.front, *([] if old else [state.back]))
        else:
            # There is no way to other servers: what is not the lab's does not exist ("/#/": any name).
            options = (f"--servers-file={self._folder / 'servers'}", "--address=/#/")
            state.front = self._start("front", 53, *options)
        state.hosts, state.special = records
        self._write("state.json", msgspec.json.encode(state).decode())
        if old:
            time.sleep(LINGER_S)
            self._signal("TERM", old)

    def _start_back(self, state: _State, special: str) -> int:
        state.port = _PORTS[state.port == _PORTS[0]]
        self._write(f"special-{state.port}.conf", special)
        options = (
            f"--conf-file={self._folder / f'special-{state.port}.conf'}",
            f"--local=/{DNS_DOMAIN}/",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
        )
        return self._start(f"back-{state.port}", state.port, *options)

    def _start(self, name: str, port: int, *options: str) -> int:
        """Start one; returns its pid once its socket is open."""
        if shutil.which(PROGRAM) is None:
            raise LabError(f"the lab's DNS needs {PROGRAM} (Debian: dnsmasq-base)")
        pid_file = self._folder / f"{name}.pid"
        pid_file.unlink(missing_ok=True)
        log = self._folder / f"{name}.log"
        words = [
            *self._node.prefix(self._namespace),
            *(PROGRAM, "--keep-in-foreground", "--user=root", "--no-resolv", "--no-hosts", "--cache-size=0"),
            *(f"--port={port}", f"--addn-hosts={self._folder / 'hosts'}", f"--pid-file={pid_file}"),
            *("--local=/in-addr.arpa/", "--local=/ip6.arpa/", "--log-facility=-"),
            *options,
        ]
        if not any(option.startswith("--conf-file") for option in options):
            words.append("--conf-file=/dev/null")
        process = processes.spawn(words, log, processes.environment(self._node.spec.name))
        deadline = time.monotonic() + START_S
        while not (text := _read(pid_file).strip()):
            if not process.alive() or time.monotonic() > deadline:
                raise LabError(f"{PROGRAM} does not start; {log} ends with:\n{_read(log)[-500:]}")
            time.sleep(POLL_S)
        return int(text)

    def _alive(self, *pids: int) -> bool:
        return all(pids) and self._signal("0", *pids)

    def _signal(self, name: str, *pids: int) -> bool:
        """Signal processes of the node; whether all were there."""
        words = [*self._node.prefix(), "sh", "-c", _KILL, str(self._folder), name, *map(str, pids)]
        return subprocess.run(words, capture_output=True, check=False).returncode == 0

    def _load(self) -> _State:
        try:
            return typed.decode((self._folder / "state.json").read_bytes(), _State)
        except (FileNotFoundError, msgspec.MsgspecError):
            return _State()

    def _write(self, name: str, text: str) -> None:
        temporary = self._folder / f".{name}"
        temporary.write_text(text)
        temporary.rename(self._folder / name)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return ""
