"""Pods on a second kernel: Debian's 6.1 in user mode, with VLAN filtering and without echoed links."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
MODULES = Path("/usr/lib/uml/modules")
INIT = """#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t tmpfs run /run
for module in ipv6 bridge veth ifb sch_tbf sch_ingress cls_u32 act_mirred; do
  modprobe -d {folder} $module
done
cd {root} && {python} -m tests.netns.uml_guest
halt -f
"""


@pytest.fixture(scope="module")
def answer(tmp_path_factory) -> dict[str, Any]:
    if shutil.which("linux.uml") is None:
        pytest.fail("needs the Debian package user-mode-linux: run `make setup`", pytrace=False)
    folder = tmp_path_factory.mktemp("uml")
    (folder / "lib").mkdir()
    (folder / "lib/modules").symlink_to(MODULES)
    init = folder / "init"
    init.write_text(INIT.format(folder=folder, root=ROOT, python=ROOT / ".venv/bin/python"))
    init.chmod(0o755)
    words = (
        f"mem=512M root=/dev/root rootfstype=hostfs rootflags=/ ro init={init} con=null con0=null,fd:1 quiet"
    )
    run = folder / "run"
    run.mkdir()
    done = subprocess.run(
        ["linux.uml", *words.split(), f"uml_dir={run}"],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stdout[-4000:]
    return json.loads(lines[0].removeprefix("ANSWER "))


def test_pods_are_attached_and_removed(answer):
    assert answer["plain"] == {"ping": [True] * 4, "check": [], "left": []}


def test_vlans_are_apart_and_each_has_its_gateway(answer):
    assert answer["vlans"] == {
        "same": True,
        "gateway": True,
        "other": False,
        "other's gateway": True,
        "check": [],
        "after leg down": True,
        "after leg deleted": True,
    }


def test_shaping_is_in_place(answer):
    assert answer["shaping"] == {"ping": True, "check": []}
