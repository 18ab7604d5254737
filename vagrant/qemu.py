"""The hosts as QEMU guests without KVM: Debian's kernel and systemd over this machine's files, no way out.

    qemu.py [--nodes N ...]             all of it, see --help
    qemu.py on FOLDER HOST WORDS...     a command on a host of those that are up (--keep says which folder)

Life: a namespace has a bridge and a tap per guest; each guest has the machine's files read-only (virtiofs) below a
layer in its memory, boots systemd, and obeys commands that come by a serial line. Then the same happens as with
Vagrant: ``provision/host.sh`` on every host, and ``cluster.sh``, which gets at them by the second form: up, verify for
each backend in turn, bench with the last one, report. What each host found out is printed as one table. Everything
ends with this program. ``qemu.sh`` fetches the kernel first.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from qemu_guest import BOOT_S, ROOT, ROUTER, Host

from tests.qemu.boot import KERNEL, files

FIRST_NODE = 11
ON, SETTINGS = "on", "settings.json"
"""Files of the folder: a program that runs a command on a host, and what it has to know."""


class Hosts:
    """All guests on one bridge. A context manager."""

    def __init__(self, folder: Path, nodes: int, settings: dict[str, str]) -> None:
        self.folder = folder
        self.space = f"pycni-qemu{os.getpid()}"
        numbers = {"router": ROUTER, **{f"node{i}": FIRST_NODE - 1 + i for i in range(1, nodes + 1)}}
        self.hosts = {name: Host(name, number, folder / name) for name, number in numbers.items()}
        self.settings = {
            **settings,
            "PYCNI_NODES": str(nodes),
            "PYCNI_KUBERNETES": "0",
            "PYCNI_UNDERLAY": "192.168.57.0/24",
            "PYCNI_UNDERLAY6": "fd57::/64",
            "PYCNI_SOURCE": str(ROOT),
            "PYCNI_PACKAGES": "present",
            "PYCNI_PYTHON": "checkout",
            "PYCNI_SERVICES": "systemd",
            "PYCNI_HOSTS": " ".join(f"{h.name}={h.address}={h.address6}" for h in self.hosts.values()),
        }
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        version = (KERNEL / "ready").read_text().strip()
        ip(f"netns add {self.space}")
        self._stack.callback(subprocess.run, ["ip", "netns", "del", self.space], check=False)
        ip(f"-n {self.space} link add br0 type bridge mcast_snooping 0")
        ip(f"-n {self.space} link set br0 up")
        waiting = self._stack.enter_context(contextlib.ExitStack())
        lines: dict[str, socket.socket] = {}
        for name, host in self.hosts.items():
            ip(f"-n {self.space} tuntap add {host.name} mode tap")
            ip(f"-n {self.space} link set {host.name} master br0 up")
            host.folder.mkdir()
            host.initial((KERNEL / "root/lib/modules").resolve(), version)
            shared = self._stack.enter_context(files(host.folder))
            words = ["ip", "netns", "exec", self.space, *host.words(version, shared)]
            with (host.folder / "qemu.log").open("wb") as log:
                process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._stack.callback(process.wait)
            self._stack.callback(process.kill)
            # What it says first is lost when nobody listens.
            lines[name] = waiting.enter_context(host.open_line(BOOT_S))
        for name, host in self.hosts.items():
            host.wait(lines[name])
        waiting.close()
        told = {
            "settings": self.settings,
            "numbers": {name: host.number for name, host in self.hosts.items()},
        }
        (self.folder / SETTINGS).write_text(json.dumps(told))
        on = self.folder / ON
        on.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} on {self.folder} "$@"\n')
        on.chmod(0o755)

    def run(self, name: str, *words: str) -> tuple[int, str]:
        """A command on a host, with all settings."""
        return told(self.hosts[name], self.settings, words)

    def must(self, name: str, *words: str) -> str:
        """The same, which has to work."""
        code, text = self.run(name, *words)
        if code:
            raise SystemExit(f"{name}: {shlex.join(words)} exits with {code}\n{text}\n{self.logs(name)}")
        return text

    def logs(self, name: str) -> str:
        """The end of its journal."""
        return self.run(name, "journalctl", "-n", "30", "--no-pager", "-o", "cat")[1]

    def cluster(self, *words: str, may_fail: bool = False, **more: str) -> tuple[int, str]:
        """``cluster.sh``: its exit code, what it printed (shown as it goes). Raises SystemExit with the journals."""
        environment = {**os.environ, **self.settings, **more, "PYCNI_ON": str(self.folder / ON)}
        command = ["sh", str(ROOT / "vagrant/cluster.sh"), *words]
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            lines = []
            try:
                for line in process.stdout:
                    lines.append(line)
                    print(line, end="", flush=True)
            except BaseException:
                process.kill()
                raise
        if process.returncode and not may_fail:
            logs = "\n".join(f"{name}:\n{self.logs(name)}" for name in self.hosts)
            raise SystemExit(f"cluster.sh {' '.join(words)} exits with {process.returncode}\n{logs}")
        return process.returncode, "".join(lines)


def told(host: Host, settings: Mapping[str, str], words: Sequence[str]) -> tuple[int, str]:
    """A command on a host: exit code and output."""
    own = {"PYCNI_HOST": host.name, "PYCNI_ADDRESS": host.address, "PYCNI_ADDRESS6": host.address6}
    variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in {**settings, **own}.items())
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return host.obey(f"exec env {path} HOME=/root {variables} {shlex.join(words)}")


def on(folder: Path, name: str, *words: str) -> int:
    """A command on a host of those that are up, for ``cluster.sh`` and people."""
    known = json.loads((folder / SETTINGS).read_text())
    if name not in known["numbers"]:
        print(f"qemu.py: no host {name}; there are {', '.join(known['numbers'])}", file=sys.stderr)
        return 2
    code, text = told(Host(name, known["numbers"][name], folder / name), known["settings"], words)
    print(text, end="")
    return code


def ip(words: str) -> None:
    """Run it."""
    subprocess.run(["ip", *words.split()], check=True)


def at_once(names: Iterable[str], function: Callable[[str], str]) -> dict[str, str]:
    """On several hosts side by side."""
    with ThreadPoolExecutor() as pool:
        jobs = {name: pool.submit(function, name) for name in names}
        return {name: job.result() for name, job in jobs.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What was found out, aligned."""
    lines = [("", "BACKEND", "HOST", "CHECK", "FOUND")]
    lines += [("ok" if r["ok"] else "FAIL", r["backend"], r["host"], r["check"], r["detail"]) for r in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]).rstrip()
        for line in lines
    )


def main() -> int:
    """All of it. Exit code 1 when a check fails."""
    if sys.argv[1:2] == ["on"]:
        return on(Path(sys.argv[2]), *sys.argv[3:])
    arguments = parsed()
    backends = arguments.backends.split(",")
    settings = {
        "PYCNI_FAMILY": arguments.family,
        "PYCNI_BACKEND": backends[0],
        "PYCNI_ATTACHMENT": "bridge",
        "PYCNI_PROXY": arguments.proxy,
        "PYCNI_POLICY": arguments.policy,
        "PYCNI_BGP": arguments.bgp,
        "PYCNI_PODS": "2",
    }
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:4.0f} s] {text}", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="pycni-qemu-"))
    rows: list[dict[str, Any]] = []
    try:
        with Hosts(folder, arguments.nodes, settings) as hosts:
            say(f"{len(hosts.hosts)} hosts are up, kernel {hosts.must('node1', 'uname', '-r').strip()}")
            try:
                course(hosts, backends, arguments.report, say, rows)
            finally:
                if arguments.keep:
                    if (error := sys.exception()) is not None:
                        print(error)
                    print(f"{folder}/{ON} HOST COMMAND... runs one; Enter ends it", flush=True)
                    sys.stdin.readline()
    finally:
        shutil.rmtree(folder)
        print(table(rows))
    return 0 if all(row["ok"] for row in rows) else 1


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The hosts of vagrant/ as QEMU guests without KVM.")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--family", default="ipv4", choices=("ipv4", "ipv6", "dual"))
    parser.add_argument(
        "--backends", default="vxlan,ipip,wireguard", help="with commas; ipip needs --family ipv4"
    )
    parser.add_argument("--proxy", default="ipvs")
    parser.add_argument("--policy", default="nftables")
    parser.add_argument("--bgp", default="exabgp")
    parser.add_argument(
        "--report",
        default="",
        metavar="FILE",
        help="measure too: the last backend, an emulated machine's figures",
    )
    parser.add_argument(
        "--keep", action="store_true", help="stay until a line is entered; says how to get in"
    )
    return parser.parse_args()


def course(
    hosts: Hosts, backends: Sequence[str], report: str, say: Callable[[str], None], rows: list[dict[str, Any]]
) -> None:
    """What is done with them; what they found out is added to ``rows``."""
    at_once(hosts.hosts, lambda name: hosts.must(name, "sh", str(ROOT / "vagrant/provision/host.sh")))
    say("provisioned")
    hosts.cluster("up")
    say("pods, Services, policies, traces, switches")
    for backend in backends:
        if backend != backends[0]:
            hosts.cluster("backend", backend)
            say(f"backend changed to {backend}")
        rows += asked(hosts, backend)
        say(f"{backend}: asked")
    if report:
        small = {"PYCNI_BENCH_SECONDS": "1", "PYCNI_BENCH_ROUNDS": "2", "PYCNI_BENCH_SUITE": ""}
        hosts.cluster("bench", PYCNI_BENCH_BACKENDS=backends[-1], **small)
        hosts.cluster("report", report)
        say(f"{backends[-1]}: measured, {report}.json, {report}.html")


def asked(hosts: Hosts, backend: str) -> list[dict[str, Any]]:
    """``cluster.sh verify`` as rows. What fails without a row has one, too."""
    code, text = hosts.cluster("verify", may_fail=True)
    found = re.findall(r"^(ok|FAIL) +(\w+) +(\S.*?)  +(.*)$", text, re.MULTILINE)
    rows = [{"backend": backend, "ok": f == "ok", "host": h, "check": c, "detail": d} for f, h, c, d in found]
    if code and all(row["ok"] for row in rows):
        more = {"host": "all", "check": "cluster.sh verify", "detail": f"exit {code}"}
        rows.append({"backend": backend, "ok": False, **more})
    return rows


if __name__ == "__main__":
    sys.exit(main())
