"""`make lab`: what a stranger sees first."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time

import pytest

from pycni.lab import cleanup, netns

from .conftest import LabMaker
from .lab_tools import COMMAND, ctl, environment


def test_the_demo_shows_a_proven_network_and_leaves_nothing(lab_name: str) -> None:
    started = time.monotonic()
    done = ctl("lab", "demo", "--name", lab_name)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout + done.stderr
    for said in (
        "pycnid ready on 3 nodes, vxlan, ipv4",
        "6 pods by CNI ADD",
        "└─ node3  172.20.0.3  vxlan  10.244.",
        "dev flannel.1",
        "all 616 checks pass",
        "services by tcp",
        "15 default/web      service",
        "60 of 60 answered",
        "web-1 is deleted with 0.4 s of grace and replaced by web-4",
        " asked, 0 failed; ",
        "pod1 asks web:80: 5 of 5 answered",
        "pod2 asks web:80: no answer",
        "denied by NetworkPolicy default/web-closed",
        "all as the policies say",
        " 0 lost; ",
        "nothing is left behind",
    ):
        assert said in done.stdout
    assert done.stderr == ""
    assert netns.found(lab_name) == []
    assert lab_name not in cleanup.known()
    print(f"{seconds:.1f} s; the aim is 10 s on a quiet machine, 2.0 to 4.0 were measured")


def test_the_demo_speaks_json_too(lab_name: str) -> None:
    done = ctl(
        "lab", "demo", "--name", lab_name, "--nodes", "2", "--pods", "1", "--backend", "host-gw", "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"name": lab_name, "ok": True}


def test_a_demo_of_one_node_has_no_traffic_between_nodes_to_show(lab_name: str) -> None:
    done = ctl("lab", "demo", "--name", lab_name, "--nodes", "1", "--pods", "2", "--family", "ipv6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill -9" not in done.stdout


def test_a_demo_does_not_take_the_place_of_a_lab(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=1)
    done = ctl("lab", "demo", "--name", lab.spec.name)
    assert done.returncode == 1
    assert "is up already" in done.stderr
    assert lab.matrix().ok


def test_on_a_terminal_progress_moves_and_ends_in_the_same_lines(lab_name: str) -> None:
    main, side = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "lab", "up", "--name", lab_name, "--nodes", "1", "--pods", "1"],
        stdout=side,
        stderr=side,
        env={**environment(), "TERM": "xterm", "COLUMNS": "120"},
    ) as process:
        os.close(side)
        output = b""
        while chunk := _read(main):
            output += chunk
        os.close(main)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", output.decode())
    assert re.search(r"^\s*pycnid ready on 1 nodes, vxlan, ipv4 \([0-9.]+ s\)\s*$", text, re.MULTILINE)
    assert "lab matrix --name" in text


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except OSError:  # the other side is closed
        return b""


@pytest.mark.slow
def test_twenty_nodes_come_up_and_reach_each_other(make_lab: LabMaker) -> None:
    started = time.monotonic()
    lab = make_lab(nodes=20, pods=1, family="dual", backend="host-gw")
    seconds = time.monotonic() - started
    matrix = lab.matrix()
    assert matrix.failed() == []
    assert len(matrix.reasons) == (20 * 19 + 2 * 20 * 20) * 4 * 2
    assert lab.status()["ready"]
    print(f"{seconds:.1f} s; 7 s were measured")
