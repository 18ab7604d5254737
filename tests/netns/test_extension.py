"""Backend extension with real packets: commands that make a VXLAN by hand, as flannel's documentation shows it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pytest

from pycni.kernel import command
from pycni.model.extension import Commands
from tests.netns.fabric_nodes import FabricWorld, until
from tests.netns.test_network_component import talk
from tests.unit.fabric_world import conf

SCRIPT = """
own=$(ip -4 -o addr show dev "$EXTERNAL_INTERFACE" | sed 's/.*inet 192.0.2.\\([0-9]*\\).*/\\1/')
read data
echo "$1 subnet=$SUBNET subnet6=$IPV6SUBNET ip=$PUBLIC_IP ip6=$PUBLIC_IPV6 net=$NETWORK net6=$IPV6NETWORK data=$data" \
  >> {folder}/log.$own
[ ! -e {folder}/fail.$1.$own ] || {{ echo "no luck with $1" >&2; exit 3; }}
base=${{SUBNET%/*}}
case $1 in
  pre) ip link del ext0 2>/dev/null; ip link add ext0 type vxlan id 77 dstport 8477 nolearning && set -- $(ip -br link show dev ext0) && echo $3 ;;
  post) ip addr add $base/32 dev ext0 && ip link set ext0 mtu 1450 up ;;
  add) ip neigh replace $base lladdr $data dev ext0 nud permanent && bridge fdb replace $data dev ext0 dst $PUBLIC_IP self &&
       ip route add $SUBNET via $base dev ext0 onlink ;;
  remove) ip route del $SUBNET dev ext0; bridge fdb del $data dev ext0; ip neigh del $base dev ext0; true ;;
  shutdown) ip link del ext0 ;;
esac
"""


class World(FabricWorld):
    """Nodes whose network is made by commands."""

    def __init__(self, families: str = "4", *, shutdown: bool = True, **_: object) -> None:
        super().__init__(families, "extension", mtu=1450)
        self.script = Path(self.folder) / "ext.sh"
        self.script.write_text(SCRIPT.format(folder=self.folder))
        self.commands = Commands(
            pre_startup=f"sh {self.script} pre",
            post_startup=f"sh {self.script} post",
            subnet_add=f"sh {self.script} add",
            subnet_remove=f"sh {self.script} remove",
            shutdown=f"sh {self.script} shutdown" if shutdown else "",
        )
        self.set_commands(self.commands)

    def set_commands(self, commands: Commands) -> None:
        backend = msgspec.structs.replace(self.cluster.conf.backend, commands=commands)
        self.cluster.set_conf(msgspec.structs.replace(self.cluster.conf, backend=backend))

    def ran(self, node) -> list[str]:
        """What was run on a node: words and the peer's or own subnet."""
        lines = self.log(node)
        return [f"{line.split()[0]} {line.split()[1].removeprefix('subnet=')}".strip() for line in lines]

    def log(self, node) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return (Path(self.folder) / f"log.{node.number}").read_text().splitlines()
        return []

    def failing(self, word: str, node) -> Path:
        return Path(self.folder) / f"fail.{word}.{node.number}"


@pytest.fixture
def world(request):
    made = World(**getattr(request, "param", {}))
    try:
        yield made
    finally:
        made.close()


without_shutdown = pytest.mark.parametrize("world", [{"shutdown": False}], indirect=True, ids=["stays"])


def joined(world, *numbers, **options):
    nodes = [world.node(number) for number in numbers]
    agents = [node.start(**options) for node in nodes]
    until(lambda: all(agent.well() for agent in agents), "agents well", 30)
    for node in nodes:
        until(lambda node=node: len(routes(node)) == len(nodes) - 1, f"routes of {node.number}", 30)
    return nodes, agents


def routes(node) -> list[str]:
    return node("ip route show dev ext0", ok=False).splitlines()


def reach(one, two, size=1450):
    for here, there in ((one, two), (two, one)):
        until(lambda h=here, t=there: talk(h, t, "4", size), f"{here.number} to {there.number}", 20)


def test_commands_carry_pods_packets_and_know_of_peers_that_come_and_go(world):
    (one, two), (agent, late) = joined(world, 1, 2)
    assert agent.component.podnet().mtu == 1450
    reach(one, two)
    mac = two("ip -br link show dev ext0").split()[2]
    attrs = world.cluster.leases["10.5.2.0-24"].attrs
    assert (attrs.backend_type, attrs.backend_data) == ("extension", b'"%s"' % mac.encode())
    assert world.ran(one) == ["pre", "post 10.5.1.0/24", "add 10.5.2.0/24"]
    assert world.log(one)[2] == (
        f"add subnet=10.5.2.0/24 subnet6= ip=192.0.2.2 ip6= net=10.5.0.0/16 net6= data={mac}"
    )
    late.stop()
    world.cluster.delete("10.5.2.0-24")
    until(lambda: world.ran(one)[-1] == "remove 10.5.2.0/24", "removal", 20)
    until(lambda: not routes(one), "the route is gone", 20)
    until(agent.well, "well", 20)


@without_shutdown
def test_a_restarted_agent_runs_nothing_again_and_loses_no_packet(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    reach(one, two)
    index, ran = one("ip -o link show dev ext0").split(":")[0], world.ran(one)
    agent.stop()
    assert talk(one, two, "4")
    three = world.node(3)
    late = three.start()
    until(late.well, "late agent well", 20)
    world.cluster.delete("10.5.2.0-24")
    again = one.start()
    until(again.well, "agent well", 20)
    until(lambda: len(world.ran(one)) == len(ran) + 2, "what became different meanwhile", 20)
    assert sorted(world.ran(one)[len(ran) :]) == ["add 10.5.3.0/24", "remove 10.5.2.0/24"]
    assert one("ip -o link show dev ext0").split(":")[0] == index
    reach(one, three)


def test_an_agent_that_ends_in_order_shuts_down_and_the_next_one_begins_anew(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    agent.stop()
    assert world.ran(one)[-1] == "shutdown"
    assert "ext0" not in one("ip -br link")
    until(one.start().well, "agent well", 20)
    until(lambda: world.ran(one)[4:] == ["pre", "post 10.5.1.0/24", "add 10.5.2.0/24"], "all again", 20)
    reach(one, two)


@pytest.mark.parametrize("word", ["pre", "post", "add", "remove"])
def test_a_command_that_fails_turns_health_red_and_is_tried_again(world, word):
    one, two = world.node(1), world.node(2)
    until(two.start().well, "the other one", 20)
    world.failing(word, one).touch()
    agent = one.start()
    if word == "remove":
        until(lambda: "add 10.5.2.0/24" in world.ran(one), "added", 20)
        until(agent.well, "well before", 20)
        two.agents[0].stop()
        world.cluster.delete("10.5.2.0-24")
    told = {
        "pre": "run PreStartupCommand: EIO (exit code 3: no luck with pre)",
        "post": "run PostStartupCommand: EIO (exit code 3: no luck with post)",
        "add": "lease 10.5.2.0-24 at 192.0.2.2: EIO (run SubnetAddCommand: exit code 3: no luck with add)",
        "remove": "lease 10.5.2.0-24 at 192.0.2.2: EIO (run SubnetRemoveCommand: exit code 3: no luck with remove)",
    }[word]
    until(lambda: told in agent.health.reason(), told, 20)
    assert agent.component.podnet() is None or word in ("add", "remove")
    until(lambda: sum(line.startswith(word) for line in world.ran(one)) > 1, "more attempts", 30)
    world.failing(word, one).unlink()
    until(agent.well, "well again", 30)
    if word == "remove":
        until(lambda: not routes(one), "the route is gone", 20)
    else:
        until(lambda: len(routes(one)) == 1, "the route", 20)
        reach(one, two)


@without_shutdown
def test_what_may_be_half_done_is_removed_and_added_again(world):
    """An agent killed while SubnetAddCommand ran; as its record shows it."""
    (one, two), (agent, _) = joined(world, 1, 2)
    agent.stop()
    file = one.folder / "state/extension.json"
    memory = json.loads(file.read_text())
    assert memory["added"]["10.5.2.0-24"]["whole"]
    memory["added"]["10.5.2.0-24"]["whole"] = False
    file.write_text(json.dumps(memory))
    count = len(world.ran(one))
    until(one.start().well, "agent well", 20)
    until(lambda: world.ran(one)[count:] == ["remove 10.5.2.0/24", "add 10.5.2.0/24"], "both", 20)
    reach(one, two)
    assert file.stat().st_mode & 0o777 == 0o600


@without_shutdown
def test_after_a_reboot_everything_is_run_again(world):
    (one, two), (agent, _) = joined(world, 1, 2)
    agent.stop()
    file = one.folder / "state/extension.json"
    memory = json.loads(file.read_text())
    file.write_text(json.dumps(memory | {"boot": "another"}))
    count = len(world.ran(one))
    until(one.start().well, "agent well", 20)
    until(lambda: world.ran(one)[count:] == ["pre", "post 10.5.1.0/24", "add 10.5.2.0/24"], "all again", 20)
    reach(one, two)


def test_a_peer_whose_data_changed_and_a_command_that_changed_are_undone_by_the_old_and_done_by_the_new(
    world,
):
    (one, two), _ = joined(world, 1, 2)
    old = world.cluster.leases["10.5.2.0-24"]
    count, data = len(world.ran(one)), b'"02:00:00:00:00:02"'
    attrs = msgspec.structs.replace(old.attrs, backend_data=data)
    world.cluster.put(msgspec.structs.replace(old, attrs=attrs))
    until(lambda: len(world.ran(one)) == count + 2, "two commands", 20)
    before, after = world.log(one)[count:]
    assert before.startswith("remove ")
    assert before.endswith(f"data={json.loads(old.attrs.backend_data)}")
    assert after.startswith("add ")
    assert after.endswith("data=02:00:00:00:00:02")
    world.cluster.put(old)
    until(lambda: len(world.ran(one)) == count + 4, "and back", 20)
    changed = f"sh {world.script} add; true"
    world.set_commands(msgspec.structs.replace(world.commands, subnet_add=changed))
    expected = ["remove 10.5.2.0/24", "add 10.5.2.0/24"] * 3
    until(lambda: world.ran(one)[count:] == expected, "the changed command", 20)
    reach(one, two)


def test_leaving_the_backend_undoes_everything(world):
    (one, two), agents = joined(world, 1, 2, patience_s=0.3, linger_s=0.1)
    reach(one, two)
    world.cluster.set_conf(conf("4", "host-gw"))
    for node in (one, two):
        until(lambda node=node: world.ran(node)[-1] == "shutdown", "shut down", 30)
        assert [line.split()[0] for line in world.ran(node)][-2:] == ["remove", "shutdown"]
        until(lambda node=node: "ext0" not in node("ip -br link"), "the script has removed its device", 20)
    until(lambda: talk(one, two, "4", 1500), "pods talk", 20)
    until(lambda: all(agent.well() for agent in agents), "agents well", 20)


@pytest.mark.parametrize("world", [{"families": "46"}], indirect=True, ids=["46"])
def test_a_lease_of_both_families_is_one_run(world):
    (one, _two), _ = joined(world, 1, 2)
    mac = json.loads(world.cluster.leases["10.5.2.0-24&fd00:5:0:2::-64"].attrs.backend_v6_data)
    assert world.log(one)[2:] == [
        (
            "add subnet=10.5.2.0/24 subnet6=fd00:5:0:2::/64 ip=192.0.2.2 ip6=2001:db8::2"
            f" net=10.5.0.0/16 net6=fd00:5::/48 data={mac}"
        )
    ]


def test_a_command_that_hangs_is_killed_with_its_children_and_a_daemon_of_one_that_ends_is_not_waited_for(
    tmp_path, monkeypatch
):
    pid_file = tmp_path / "pid"
    from pycni.errors import KernelError

    with pytest.raises(KernelError, match=r"run X subject: .*killed after 0.5 s: on my way"):
        command.run(
            "X",
            f"echo on my way >&2; sleep 1000 & echo $! > {pid_file}; wait",
            (),
            about="subject",
            timeout_s=0.5,
        )
    child = int(pid_file.read_text())
    until(lambda: not alive(child), "its child ends", 20)
    monkeypatch.setenv("PYCNID_ETCD_PASSWORD", "hunter2")
    started = time.monotonic()
    found = command.run("X", f"sleep 1000 & echo $! > {pid_file}; cat; env", (("A", "b c"),), "data")
    try:
        lines = found.splitlines()
        assert (lines[0], "A=b c" in lines, "hunter2" in found) == ("data", True, False)
        assert time.monotonic() - started < 60
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
    with pytest.raises(KernelError, match=r"run X: .*exit code 4: last") as caught:
        command.run("X", "cat >/dev/null; echo first >&2; echo last >&2; exit 4", (), "hunter2")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(KernelError, match="signal 9"):
        command.run("X", "kill -9 $$", ())


def alive(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()[:1] not in ("", "Z")
