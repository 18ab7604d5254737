"""Boots a User-Mode Linux guest that runs one Python module of the tests as its only program and reads its answer.

The guest sees the host's files read-only (hostfs) and has a kernel of its own, with IPVS. Its program prints one line
``ANSWER <JSON>``; `answer` runs named functions (all, or those its command line names), so that one failure does not
hide the others.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MODULES = Path("/usr/lib/uml/modules")
IPVS_MODULES = (
    "ipv6 bridge br_netfilter veth dummy ipip tunnel6 ip6_tunnel ip_vs ip_vs_rr ip_vs_wrr ip_vs_lc ip_vs_wlc ip_vs_sh"
    " ip_vs_dh ip_vs_mh ip_vs_sed ip_vs_nq ip_vs_fo ip_vs_ovf ip_vs_lblc ip_vs_lblcr nf_conntrack_netlink ip_set"
    " ip_set_hash_ip ip_set_hash_ipport ip_set_hash_ipportip ip_set_hash_ipportnet ip_set_hash_netport"
    " ip_set_bitmap_port xt_set xt_mark xt_connmark xt_conntrack xt_MASQUERADE xt_TCPMSS xt_tcpudp xt_comment"
    " xt_addrtype ipt_REJECT ip6t_REJECT iptable_filter iptable_nat iptable_mangle ip6table_filter ip6table_nat"
    " ip6table_mangle"
)
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={root}:{root}/proxy HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run
for module in {modules}; do modprobe -d {folder} $module; done
mount -t tmpfs tmp /tmp
ip link set lo up
cd {root} && {python} -m {module}
halt -f
"""


def boot(
    folder: Path, module: str, *, modules: str = IPVS_MODULES, mem: str = "768M", timeout: float = 110
) -> Any:
    """Run ``python -m module`` in a guest; ``folder`` is the guest's own on the host. Returns the answer."""
    if shutil.which("linux.uml") is None:
        raise AssertionError("needs the Debian package user-mode-linux: run `make setup`")
    (folder / "lib").mkdir()
    (folder / "lib/modules").symlink_to(MODULES)
    (folder / "run").mkdir()
    init = folder / "init"
    python = ROOT / ".venv/bin/python"
    init.write_text(INIT.format(folder=folder, root=ROOT, python=python, module=module, modules=modules))
    init.chmod(0o755)
    words = (
        f"mem={mem} root=/dev/root rootfstype=hostfs rootflags=/ ro init={init} con=null con0=null,fd:1 quiet"
    )
    done = subprocess.run(
        ["linux.uml", *words.split(), f"uml_dir={folder / 'run'}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=timeout,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, f"the guest gave no answer:\n{done.stdout[-6000:]}"
    return json.loads(lines[-1].removeprefix("ANSWER "))


def answer(parts: Mapping[str, Callable[[], Any]]) -> None:
    """In the guest: run the parts, print what they return (or how they failed) and end."""
    found: dict[str, Any] = {}
    wanted = sys.argv[1:] or list(parts)
    for name, part in ((name, parts[name]) for name in wanted):
        started = time.monotonic()
        try:
            found[name] = part()
        except BaseException:
            found[name] = {"failed": traceback.format_exc()}
        # On the guest's console: what a guest that gives no answer was doing.
        print(f"part {name}: {time.monotonic() - started:.1f} s", flush=True)
    print("\nANSWER", json.dumps(found))
    sys.stdout.flush()
    os._exit(0)
