"""Boots Debian's kernel under QEMU, emulated, to run one Python module of the tests as its only program.

The guest sees the host's files read-only (virtiofs) and has a kernel of its own with all of its modules. An initial
file system of a shell and seven modules mounts them. Its program prints one line ``ANSWER <JSON>`` on the console
(``tests/proxy/uml_boot.answer``). ``tools/qemu.sh`` fetches what is needed.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KERNEL = ROOT / ".venv/qemu"
BUSYBOX = Path("/bin/busybox")
VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
DRIVERS = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "fuse",
    "virtiofs",
)
MEMORY = "768M"
FIRST = """#!/bin/busybox sh
for name in {drivers}; do busybox insmod /modules/$name.ko; done
busybox mount -t virtiofs -o ro host /root
exec busybox switch_root /root {init}
"""
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={root}:{root}/proxy:{root}/bgp HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs run /run
mkdir -p /dev/shm /run/tmp; mount -t tmpfs shm /dev/shm
export TMPDIR=/run/tmp
mount --bind {modules} /lib/modules
modprobe -a {wanted}
ip link set lo up
cd {root} && {python} -m {module} </dev/null >/dev/console 2>&1
echo o >/proc/sysrq-trigger
sleep 60
"""


def boot(folder: Path, module: str, *, modules: str, timeout_s: float) -> Any:
    """Run ``python -m module`` in a guest; ``folder`` is the guest's own on the host. Returns the answer."""
    if not (KERNEL / "ready").exists():
        raise AssertionError("there is no kernel to boot: run tools/qemu.sh (make qemu)")
    version = (KERNEL / "ready").read_text().strip()
    root = KERNEL / "root"
    init = folder / "init"
    init.write_text(
        INIT.format(
            root=ROOT,
            modules=root / "lib/modules",
            wanted=modules,
            module=module,
            python=ROOT / ".venv/bin/python",
        )
    )
    init.chmod(0o755)
    initial = folder / "initial.gz"
    initial.write_bytes(
        gzip.compress(
            archive(root / "lib/modules" / version, FIRST.format(drivers=" ".join(DRIVERS), init=init)), 1
        )
    )
    with files(folder) as socket:
        words = [
            *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", MEMORY),
            *("-kernel", f"{root}/boot/vmlinuz-{version}", "-initrd", str(initial)),
            *("-append", "console=ttyS0 quiet panic=-1"),
            *("-nodefaults", "-display", "none", "-no-reboot", "-monitor", "none", "-serial", "stdio"),
            *("-object", f"memory-backend-memfd,id=memory,size={MEMORY},share=on"),
            *("-machine", "q35,memory-backend=memory"),
            *("-chardev", f"socket,id=files,path={socket}"),
            *("-device", "vhost-user-fs-pci,chardev=files,tag=host"),
        ]
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=timeout_s,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, f"the guest gave no answer:\n{done.stderr[-1000:]}\n{done.stdout[-6000:]}"
    print(*(line for line in done.stdout.splitlines() if line.startswith("part ")), sep="\n")
    return json.loads(lines[-1].removeprefix("ANSWER "))


@contextlib.contextmanager
def files(folder: Path) -> Iterator[Path]:
    """The host's files behind a socket."""
    socket = folder / "files.sock"
    words = [
        VIRTIOFSD,
        f"--socket-path={socket}",
        "-o",
        "source=/",
        "-o",
        "sandbox=chroot",
        "-o",
        "cache=always",
    ]
    with (folder / "files.log").open("wb") as log:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not socket.exists():
            assert process.poll() is None, (folder / "files.log").read_text()
            assert time.monotonic() < end, "virtiofsd does not come up"
            time.sleep(0.02)
        yield socket
    finally:
        process.terminate()
        process.wait()


def archive(
    modules: Path,
    first: str,
    drivers: Sequence[str] = DRIVERS,
    folders: Sequence[str] = (),
    more: Mapping[str, bytes] | None = None,
) -> bytes:
    """An initial file system: a cpio archive in the format "newc" (kernel: driver-api/early-userspace/buffer-format).

    ``first`` is its first program, ``drivers`` the modules it has, ``more`` other files by name.
    """
    entries: list[tuple[str, int, bytes]] = [
        (name, 0o040755, b"") for name in ("bin", "modules", "root", "dev", *folders)
    ]
    entries.append(("bin/busybox", 0o100755, BUSYBOX.read_bytes()))
    for name in drivers:
        [path] = modules.glob(f"kernel/**/{name}.ko")
        entries.append((f"modules/{name}.ko", 0o100644, path.read_bytes()))
    entries += [(name, 0o100644, content) for name, content in (more or {}).items()]
    entries += [("init", 0o100755, first.encode()), ("TRAILER!!!", 0, b"")]
    whole = b""
    for number, (name, mode, content) in enumerate(entries, 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        whole += head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
    return whole


def uptime() -> str:
    """Seconds since the guest's kernel began, for its console."""
    return Path("/proc/uptime").read_text().split()[0] + f" s, kernel {os.uname().release}"
