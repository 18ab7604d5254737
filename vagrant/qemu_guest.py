"""One guest: its command line, its first file system, and the serial line its commands come by.

Life: ``initial`` writes the file system that boots it, ``words`` starts it; ``wait`` until systemd has come so far that
commands are taken, and from then on ``obey``, by any process that can open the line's socket.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.qemu.boot import DRIVERS, KERNEL, archive  # noqa: E402

MEMORY = "1G"
ROUTER = 2
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


def until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)
