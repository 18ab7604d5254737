"""Whatever happens to guests, they are told about, and ``lab down`` leaves nothing of them."""

from __future__ import annotations

import json
import time

import pytest

from pycni.lab import netns, processes
from pycni.lab.processes import ProcessId
from pycni.lab.run import Lab
from pycni.lab.topology import LabError, LabSpec

from .conftest import LabMaker
from .lab_tools import ctl, ctl_start
from .test_lab_crash import everything, lose_record, remains, wait_for


def clients(lab: str) -> list[ProcessId]:
    """The processes on this machine that stand for programs in guests."""
    return processes.marked(lab)


@pytest.mark.parametrize("moment", ["etcd", "guests booted"])
def test_up_killed_in_the_middle_is_cleaned_by_down(lab_name: str, moment: str) -> None:
    with ctl_start(
        "lab", "up", "--driver", "uml", "--name", lab_name, "--nodes", "2", "--pods", "1"
    ) as process:
        wait_for(moment, lab_name, process)
        process.kill()
    found = processes.inside(netns.inodes(netns.found(lab_name)))
    assert len(found) >= 3, "two guests and etcd"
    done = ctl("lab", "down", "--name", lab_name)
    assert done.returncode == 0, done.stderr
    assert remains(lab_name, found) == []


def test_a_guest_that_dies_is_told_about_and_everything_else_goes_on(make_lab: LabMaker) -> None:
    lab = make_lab(driver="uml", nodes=2, pods=1)
    kernel = lab.record.processes["node2 kernel"]
    processes.kill([kernel])
    started = time.monotonic()
    status = lab.status()
    assert [node["ready"] for node in status["nodes"]] == [True, False]
    assert "the guest of node2 has ended; see " in status["nodes"][1]["reason"]
    assert time.monotonic() - started < 20, "nobody waits for the dead"
    failed = {(check.source, check.target) for check, _reason in lab.matrix(0.5).failed()}
    dead = {"node2", "pod2"}
    assert failed == {pair for pair in PAIRS if dead & set(pair)}
    done = ctl("lab", "exec", "--name", lab.spec.name, "node2", "--", "true")
    assert (done.returncode, "the guest of node2 has ended" in done.stderr) == (1, True)
    # As a power cut: the node goes, another one comes in its place.
    lab.remove_node("node2")
    assert not [item for item in processes.in_session(kernel.pid) if item.alive()]
    node = lab.add_node()
    assert (node.name, lab.add_pod().node) == ("node2", "node2")
    assert lab.matrix().ok
    found = everything(lab) + clients(lab.spec.name)
    lab.down()
    assert remains(lab.spec.name, found) == []


PAIRS = [
    ("pod1", "pod2"),
    ("pod2", "pod1"),
    *[(node, pod) for node in ("node1", "node2") for pod in ("pod1", "pod2")],
    *[(pod, node) for node in ("node1", "node2") for pod in ("pod1", "pod2")],
]


@pytest.mark.parametrize("lost", ["record", "processes"])
def test_down_removes_guests_whatever_is_left_of_the_lab(make_lab: LabMaker, lost: str) -> None:
    lab = make_lab(driver="uml", nodes=1, pods=1)
    name = lab.spec.name
    found = everything(lab) + clients(name)
    if lost == "record":
        lose_record(name)
    if lost == "processes":
        processes.kill(found)
        status = json.loads(ctl("lab", "status", "--name", name, "--json").stdout)
        assert [(node["alive"], node["ready"]) for node in status["nodes"]] == [(False, False)]
    done = ctl("lab", "down", "--name", name)
    assert done.returncode == 0, done.stderr
    assert remains(name, found) == []
    assert clients(name) == []


def test_a_guest_that_does_not_boot_shows_its_console(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycni.lab.uml.MEMORY", "8M")
    with pytest.raises(
        LabError, match=r"the guest of node1 (ended|is not up .*); its console ends with:\n.*"
    ) as caught:
        Lab.up(LabSpec(name=lab_name, driver="uml", nodes=1))
    assert str(caught.value).count("\n") >= 1
    assert remains(lab_name) == []


def test_without_the_package_it_is_one_clear_line(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pycni.lab.uml.shutil.which", lambda _name: None)
    with pytest.raises(LabError, match="needs Debian's package user-mode-linux: run `make setup`"):
        Lab.up(LabSpec(name=lab_name, driver="uml", nodes=1))
    assert remains(lab_name) == []


def test_an_interrupted_up_cleans_up_after_itself(lab_name: str) -> None:
    with ctl_start("lab", "up", "--driver", "uml", "--name", lab_name, "--nodes", "1") as process:
        wait_for("etcd", lab_name, process)
        found = processes.inside(netns.inodes(netns.found(lab_name)))
        process.terminate()
        assert process.communicate(timeout=30)[0].strip() == "pycnictl: interrupted"
    assert remains(lab_name, found) == []
