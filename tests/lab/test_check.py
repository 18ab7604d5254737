"""``pycnictl check`` in labs: sound ones pass, each damage fails the right tests and is named, nothing stays behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from pycni.check import course, report
from pycni.check.lab import LabGround
from pycni.check.model import NAMESPACE, Scene, Site
from pycni.check.show import Quiet
from pycni.lab import processes
from pycni.lab.apply import Cluster
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import LabSpec

from .conftest import unique_name
from .lab_tools import ctl, ctl_start, within

REACH = {"pod-to-pod-other-node", "mtu-other-node", "bulk-other-node"}
ACROSS = {*REACH, "node-to-other-pod"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Lab]:
    lab = Lab.up(
        LabSpec(name=unique_name(), nodes=3, pods=0, family="dual", proxy="nftables", policy="nftables")
    )
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture
def world(shared: Lab) -> Lab:
    """As it is now: commands of other tests may have restarted agents."""
    return Lab.open(shared.spec.name)


def run(lab: Lab, target: str, command: str) -> str:
    done = lab.exec(target, ["sh", "-ec", command])
    return done.stdout.strip()


def left(lab: Lab) -> list[str]:
    """What a check should have taken away."""
    found = [str(key) for key in Cluster(lab).objects() if NAMESPACE in {key.namespace, key.name}]
    found += [pod.name for pod in lab.pods() if pod.name.endswith(NAMESPACE)]
    spaces = Path("/run/netns").glob(f"pycni-{lab.spec.name}-pod.*{NAMESPACE}")
    return [*found, *map(str, spaces), *servers(lab)]


def servers(lab: Lab) -> list[str]:
    """Programs of a check in the lab's nodes."""
    inodes = [
        os.stat(f"/run/netns/pycni-{lab.spec.name}-{name}").st_ino for name in (*lab.record.nodes, "client")
    ]
    found = []
    for item in processes.inside(inodes):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.append(Path(f"/proc/{item.pid}/cmdline").read_text())
    return [text for text in found if "peer.py" in text]


def test_a_sound_lab_passes_every_test(world: Lab) -> None:
    done = ctl("check", "--name", world.spec.name, "--json", "--restart-agent")
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    assert found["ok"] is True
    assert [item["name"] for item in found["tests"] if item["status"] != "ok"] == []
    names = [item["name"] for item in found["tests"]]
    listed = ctl("check", "--list").stdout.split("\n")
    assert names == ["pods-start", *(line.split()[0] for line in listed if line), "agent-restart"]
    tried = {item["name"]: item["tried"] for item in found["tests"]}
    # Three nodes, both families: six ordered pairs by ping, TCP and UDP; node ports of three nodes by TCP and UDP.
    assert (tried["pod-to-pod-other-node"], tried["service-nodeport-outside"]) == (36, 12)
    assert left(world) == []


def test_people_see_a_table_and_choose_tests(world: Lab) -> None:
    done = ctl("check", "--name", world.spec.name, "--test", "mtu-*", "--test", "hairpin")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    signed = [line.split()[1] for line in lines if line.startswith("✓ ")]
    assert signed == ["pods-start", "mtu-same-node", "mtu-other-node", "service-hairpin"]
    assert "\033" not in done.stdout, "no colours where nobody looks"
    assert lines[-1].endswith("everything works")
    done = ctl("check", "--name", world.spec.name, "--test", "nothing-like-it")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing-like-it" in done.stderr


class Damage(NamedTuple):
    """Something broken, and what a check says of it."""

    target: str
    command: str
    undo: str
    failing: set[str]
    kind: str
    node: str


FDB = "bridge fdb show dev flannel.1 | awk '/dst 172.20.0.2/{print $1; exit}'"
DENY = """
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: freeze}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - {name: nobody, action: Deny, from: [{namespaces: {}}]}
"""
DAMAGES = {
    "forwarding entry deleted": Damage(
        "node1", f"m=$({FDB}); echo $m >FILE; bridge fdb del $m dev flannel.1 dst 172.20.0.2",
        "bridge fdb add $(cat FILE) dev flannel.1 dst 172.20.0.2; rm FILE",
        ACROSS, "fdb-missing", "node1",
    ),
    "VXLAN dropped by somebody else": Damage(
        "node2", "nft 'add table ip foe; add chain ip foe c { type filter hook input priority 0; };"
        " add rule ip foe c udp dport 8472 drop'", "nft delete table ip foe", ACROSS, "foreign-rule", "node2",
    ),
    "underlay too small": Damage(
        "node2", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500",
        {"mtu-other-node"}, "mtu-too-small", "node2",
    ),
}  # fmt: skip


class Kept(LabGround):
    """Its pods are made once, and not waited for long."""

    scene: Scene | None = None

    def site(self) -> Site:
        return msgspec.structs.replace(super().site(), answer_s=1.0, patience_s=0.0)

    def bring(self) -> Scene:
        if self.scene is None:
            self.scene = super().bring()
        return self.scene

    def clear(self) -> list[str]:
        return []

    def end(self) -> list[str]:
        return super().clear()


def checked(ground: LabGround, *patterns: str) -> dict[str, Any]:
    return report.as_json(course.check(ground, course.Wanted(patterns), Quiet()))


def failing(found: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item for item in found["tests"] if item["status"] == "failed"}


def causes(wrong: dict[str, Any]) -> set[tuple[str, str]]:
    failures = [item for test in wrong.values() for item in test["failures"]]
    return {(item["kind"], item["node"]) for item in failures if item["cause"]}


def test_a_policy_of_somebody_else_that_denies_is_named(world: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "PER_TEST", 1)
    done = ctl("lab", "apply", "--name", world.spec.name, "-f", "-", feed=DENY)
    assert done.returncode == 0, done.stderr
    ground = Kept(world)
    try:
        found = checked(ground, "pod-to-pod-*", "policy-allow-ingress")
    finally:
        ground.end()
        Cluster(world).delete([Key("ClusterNetworkPolicy", "", "freeze")])
    wrong = failing(found)
    assert set(wrong) == {"pod-to-pod-same-node", "pod-to-pod-other-node", "policy-allow-ingress"}
    assert {kind for kind, _ in causes(wrong)} == {"policy-denied"}
    told = [item for item in wrong["policy-allow-ingress"]["failures"] if item["cause"]]
    assert "ClusterNetworkPolicy freeze" in told[0]["cause"]
    assert told[0]["command"].startswith("pycnictl policy explain")
    assert left(world) == []


def test_agents_that_do_not_make_pods_are_a_failure_that_says_so(world: Lab) -> None:
    world.signal_agent("node2", signal.SIGKILL)
    try:
        done = ctl("check", "--name", world.spec.name, "--json")
    finally:
        world.start_agent("node2")
    found = failing(json.loads(done.stdout))
    assert done.returncode == 1
    assert list(found) == ["pods-start"]
    assert "pycnid cannot be reached" in found["pods-start"]["failures"][0]["reason"]
    assert left(world) == []


def test_an_interrupted_check_leaves_nothing(world: Lab) -> None:
    process = ctl_start("check", "--name", world.spec.name)
    try:
        assert within(20, lambda: len(servers(world)) >= len(world.record.nodes)), "servers come up"
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
    assert process.returncode == 130, said
    assert left(world) == []


def test_what_a_killed_check_leaves_the_next_one_takes_away(world: Lab) -> None:
    process = ctl_start("check", "--name", world.spec.name)
    try:
        assert within(20, lambda: len(servers(world)) >= len(world.record.nodes)), "servers come up"
    finally:
        process.kill()
        process.communicate()
    assert left(world)
    done = ctl("check", "--name", world.spec.name, "--test", "pod-to-pod-same-node")
    assert done.returncode == 0, done.stdout + done.stderr
    assert left(world) == []


def test_without_a_lab_the_way_to_one_is_told() -> None:
    done = ctl("check", "--name", unique_name())
    assert done.returncode == 1
    assert "make one with: pycnictl lab up" in done.stderr


@pytest.fixture(scope="module")
def still(shared: Lab) -> Iterator[Kept]:
    """By agents that stand still, so that nobody repairs anything."""
    lab = Lab.open(shared.spec.name)
    ground = Kept(lab)
    try:
        ground.bring()
        for node in lab.record.nodes:
            lab.signal_agent(node, signal.SIGSTOP)
        yield ground
    finally:
        for node in lab.record.nodes:
            lab.signal_agent(node, signal.SIGCONT)
        assert ground.end() == []
        assert left(lab) == []


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damage_fails_the_right_tests_and_is_named(
    world: Lab, still: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Damage
) -> None:
    monkeypatch.setattr(course, "PER_TEST", 1)
    file = str(tmp_path / "kept")
    run(world, damage.target, damage.command.replace("FILE", file))
    try:
        found = checked(still, "pod-to-*", "node-to-*", "mtu-*", "bulk-*")
    finally:
        run(world, damage.target, damage.undo.replace("FILE", file))
    wrong = failing(found)
    # What is too large for a wire of this machine still passes it as one large segment.
    unsure = {"bulk-other-node"} if damage.kind == "mtu-too-small" else set()
    assert set(wrong) - unsure == damage.failing - unsure, found
    assert causes(wrong) == {(damage.kind, damage.node)}, wrong
    assert [item for item in next(iter(wrong.values()))["failures"] if item["command"]]


def test_all_is_well_again_without_damages(still: Kept) -> None:
    """But for sizes: nodes remember for minutes that a way was too small."""
    found = checked(still, "pod-to-*", "node-to-*")
    assert failing(found) == {}
