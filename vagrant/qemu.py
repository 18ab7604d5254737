"""The hosts as QEMU guests without KVM: Debian's kernel and systemd over this machine's files, no way out.

Life: a namespace has a bridge and a tap per guest; each guest has the machine's files read-only (virtiofs) below a
layer in its memory, boots systemd, and obeys commands that come by a serial line. Then the same happens as with
Vagrant: ``provision/host.sh`` on every host, and what ``cluster.sh`` does, for each backend in turn. What each host
found out is printed as one table. Everything ends with this program. ``qemu.sh`` fetches the kernel first.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import fcntl
import gzip
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.qemu.boot import DRIVERS, KERNEL, archive, files  # noqa: E402

MEMORY = "1G"
ROUTER, FIRST_NODE = 2, 11
BOOT_S, COMMAND_S = 600.0, 1200.0
MODULES = (*DRIVERS, "overlay", "failover", "net_failover", "virtio_net")
MASKED = (
    *("systemd-tmpfiles-setup.service", "systemd-tmpfiles-setup-dev.service", "systemd-tmpfiles-clean.timer"),
    *(
        "systemd-logind.service",
        "getty.target",
        "systemd-journal-flush.service",
        "systemd-update-utmp.service",
    ),
    *(
        "systemd-update-utmp-runlevel.service",
        "modprobe@.service",
        "kmod-static-nodes.service",
        "dbus.socket",
        "dbus.service",
    ),
    *("sys-kernel-debug.mount", "sys-kernel-tracing.mount", "dev-hugepages.mount", "dev-mqueue.mount"),
)
"""Units that cost an emulated machine a minute and that nobody asks for here."""
START = """#!/bin/busybox sh
for name in {drivers}; do busybox insmod /modules/$name.ko; done
busybox mount -t proc proc /proc
busybox mount -t virtiofs -o ro host /lower
busybox mount -t tmpfs -o mode=755 upper /upper
busybox mkdir /upper/files /upper/work
busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root
busybox mount --bind {modules} /root/lib/modules
# What of the machine's own services would start is no part of a new host.
cd /root/etc
busybox rm -rf systemd/system fstab modules-load.d sysctl.d machine-id ../.dockerenv
cd /
busybox rm -rf /root/etc/init.d
busybox mkdir -p /root/etc/systemd/system/multi-user.target.wants
for unit in {masked}; do busybox ln -s /dev/null /root/etc/systemd/system/$unit; done
for folder in tmp var/tmp var/log var/lib/etcd; do busybox mount -t tmpfs -o mode=1777 own /root/$folder; done
echo {host} >/root/etc/hostname
echo {machine} >/root/etc/machine-id
busybox cp /lab.service /root/etc/systemd/system/lab.service
busybox ln -s ../lab.service /root/etc/systemd/system/multi-user.target.wants/lab.service
busybox cp /obey.py /root/etc/lab-obey.py
busybox umount /proc
exec busybox switch_root /root /lib/systemd/systemd
"""
UNIT = """[Unit]
Description=obeys the lab
DefaultDependencies=no
[Service]
ExecStartPre=/bin/sh -c 'ip link set eth0 up; ip address add {address}/24 dev eth0; {route}'
ExecStart=/usr/bin/python3 -ISB /etc/lab-obey.py
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
"""
OBEY = """
import base64, os, subprocess, tty
fd = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
tty.setraw(fd)
os.write(fd, b"up\\n")
with open(fd, "rb", buffering=0) as line:
    pending = b""
    while True:
        while b"\\n" not in pending:
            pending += line.read(4096)
        order, _, pending = pending.partition(b"\\n")
        done = subprocess.run(
            ["sh", "-c", base64.b64decode(order)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        answer = base64.b64encode(done.stdout) + b" %d\\n" % (done.returncode & 255)
        while answer:
            answer = answer[os.write(fd, answer):]
"""


class Host:
    """One guest."""

    def __init__(self, name: str, number: int, folder: Path) -> None:
        self.name, self.number, self.folder = name, number, folder
        folder.mkdir()
        self.address = f"192.168.57.{number}"
        self.address6 = f"fd57::{number}"
        self.line = folder / "line.sock"
        self.console = folder / "console.log"

    def words(self, version: str, files_socket: Path) -> list[str]:
        """The command line of its QEMU."""
        mac = f"02:70:79:00:00:{self.number:02x}"
        return [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", MEMORY),
            *("-kernel", f"{KERNEL}/root/boot/vmlinuz-{version}", "-initrd", str(self.folder / "initial.gz")),
            *(
                "-append",
                "console=ttyS0 quiet panic=-1 net.ifnames=0 systemd.unit=multi-user.target",
            ),
            *("-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none"),
            *("-serial", f"file:{self.console}", "-serial", f"unix:{self.line},server=on,wait=off"),
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
            *("-machine", "q35,memory-backend=memory"),
            *("-chardev", f"socket,id=files,path={files_socket}"),
            *("-device", "vhost-user-fs-pci,chardev=files,tag=host"),
            *("-netdev", f"tap,id=net,ifname={self.name},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={mac}"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=rng"),
        ]

    def initial(self, modules: Path, version: str) -> None:
        """Write its initial file system."""
        start = START.format(
            drivers=" ".join(MODULES),
            masked=" ".join(MASKED),
            modules=f"/lower{modules}",
            host=self.name,
            machine=os.urandom(16).hex(),
        )
        route = "true" if self.name == "router" else f"ip route add default via 192.168.57.{ROUTER}"
        more = {
            "lab.service": UNIT.format(address=self.address, route=route).encode(),
            "obey.py": OBEY.encode(),
        }
        whole = archive(modules / version, start, MODULES, ("lower", "upper", "proc"), more)
        (self.folder / "initial.gz").write_bytes(gzip.compress(whole, 1))

    @contextlib.contextmanager
    def open_line(self, seconds: float) -> Iterator[socket.socket]:
        """The serial line its commands come by; ``seconds`` an answer may take."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(seconds)
            until(lambda: not sock.connect_ex(str(self.line)), f"QEMU of {self.name}")
            yield sock

    def _answer(self, sock: socket.socket) -> bytes:
        answer = b""
        while not answer.endswith(b"\n"):
            more = sock.recv(65536)
            if not more:
                raise SystemExit(
                    f"{self.name} has ended:\n{self.console.read_text(errors='replace')[-2000:]}"
                )
            answer += more
        return answer

    def wait(self, sock: socket.socket) -> None:
        """Until it takes commands; the line is open since before."""
        try:
            self._answer(sock)
        except TimeoutError:
            text = self.console.read_text(errors="replace")[-3000:]
            raise SystemExit(f"{self.name} does not come up:\n{text}") from None

    def obey(self, command: str, seconds: float = COMMAND_S) -> tuple[int, str]:
        """Run a shell command as root in it: exit code and output. One at a time."""
        with (self.folder / "line.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.open_line(seconds) as sock:
                sock.sendall(base64.b64encode(command.encode()) + b"\n")
                text, _, code = self._answer(sock).strip(b"\n").rpartition(b" ")
        return int(code), base64.b64decode(text).decode(errors="replace")


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
            host.initial(KERNEL / "root/lib/modules", version)
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

    def run(self, name: str, *words: str) -> tuple[int, str]:
        """A command on a host, with all settings."""
        host = self.hosts[name]
        own = {"PYCNI_HOST": name, "PYCNI_ADDRESS": host.address, "PYCNI_ADDRESS6": host.address6}
        variables = " ".join(f"{key}={shlex.quote(value)}" for key, value in {**self.settings, **own}.items())
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return host.obey(f"exec env {path} HOME=/root {variables} {shlex.join(words)}")

    def must(self, name: str, *words: str) -> str:
        """The same, which has to work."""
        code, text = self.run(name, *words)
        if code:
            _, log = self.run(name, "journalctl", "-n", "30", "--no-pager", "-o", "cat")
            raise SystemExit(f"{name}: {shlex.join(words)} exits with {code}\n{text}\n{log}")
        return text


def ip(words: str) -> None:
    """Run it."""
    subprocess.run(["ip", *words.split()], check=True)


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


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
        "--keep", action="store_true", help="stay until a line is entered; says how to get in"
    )
    arguments = parser.parse_args()
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
    try:
        with Hosts(folder, arguments.nodes, settings) as hosts:
            say(f"{len(hosts.hosts)} hosts are up, kernel {hosts.must('node1', 'uname', '-r').strip()}")
            try:
                rows = course(hosts, backends, say)
            finally:
                if arguments.keep:
                    print(f"commands: {sys.executable} {__file__} is at {folder}; Enter ends it")
                    sys.stdin.readline()
    finally:
        shutil.rmtree(folder)
    print(table(rows))
    return 0 if all(row["ok"] for row in rows) else 1


def course(hosts: Hosts, backends: Sequence[str], say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What is done with them."""
    nodes = [name for name in hosts.hosts if name != "router"]

    def script(name: str, *words: str) -> Callable[[str], str]:
        return lambda host: hosts.must(host, "sh", str(ROOT / f"vagrant/provision/{name}.sh"), *words)

    at_once(hosts.hosts, script("host"))
    say("provisioned")
    script("netconf")("node1")
    say("etcd has the network's configuration")
    at_once(nodes, script("pods"))
    at_once(nodes, script("objects"))
    at_once(nodes, script("doctor"))
    say("pods, Services, policies, switches")
    rows = []
    for backend in backends:
        if backend != backends[0]:
            script("netconf", backend)("node1")
            at_once(nodes, script("settled", backend))
            at_once(nodes, script("pods"))
            say(f"backend changed to {backend}")
        for name in hosts.hosts:
            code, text = hosts.run(name, "sh", str(ROOT / "vagrant/provision/verify.sh"))
            print(text)
            found = re.findall(r"^(ok|FAIL) +(\w+) +(\S.*?)  +(.*)$", text, re.MULTILINE)
            rows += [
                {"backend": backend, "ok": f == "ok", "host": h, "check": c, "detail": d}
                for f, h, c, d in found
            ]
            if code and all(row["ok"] for row in rows):
                rows.append(
                    {
                        "backend": backend,
                        "ok": False,
                        "host": name,
                        "check": "verify.sh",
                        "detail": f"exit {code}",
                    }
                )
        say(f"{backend}: asked")
    return rows


if __name__ == "__main__":
    sys.exit(main())
