"""The whole CNI path on a real kernel: shim, server, operations, addresses, records, pods; no etcd, no runtime."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pycni.agent.cni_ops import CniOps
from pycni.agent.cni_server import CniServer
from pycni.agent.pods import Pods
from pycni.errors import PycniError
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools
from pycni.kernel import netns as namespaces
from pycni.kernel.pod import PodDriver
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.podnet import PodNetwork
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import PODNET, addresses, links, pings, run
from tests.wire.cni_cases import conf

SHIM = Path(__file__).resolve().parents[2] / "cni-bin" / "pycni"
HOST_LOCAL = Path("/usr/lib/cni")
VALID = "cni.dev/valid-attachments"


class Agent:
    """The agent's CNI side in this process, whose thread is in the node's namespace."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.podnet: PodNetwork | None = PODNET
        self.gate_error: Exception | None = None
        self.start()

    def start(self) -> None:
        self.endpoints = EndpointStore(str(self.folder / "state"))
        self.pools = Pools(str(self.folder / "networks"), in_use=self.endpoints.in_use)
        self.driver = PodDriver()
        self.driver.start()
        self.ops = CniOps(
            ipam=self.pools,
            endpoints=self.endpoints,
            pods=Pods(self.driver, self.endpoints),
            podnet=lambda: self.podnet,
            not_ready_reason=lambda: "",
            boot_id="boot",
            gates=[self],
        )
        self.ops.resume()
        self.ops.adopt()
        self.server = CniServer(str(self.folder / "s"), self.ops)
        self.server.start()

    def admit(self, _endpoint: Endpoint, _netns_fd: int | None = None) -> None:
        if self.gate_error is not None:
            raise self.gate_error

    def attached(self, _endpoint: Endpoint) -> None: ...

    def gone(self, _endpoint: Endpoint) -> None: ...

    def stop(self) -> None:
        self.server.stop()
        self.driver.close()
        self.pools.close()
        self.endpoints.close()

    def call(self, command: str, stdin: bytes, pod: str = "", **env: str) -> tuple[int, bytes]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod or "none",
            "CNI_NETNS": namespaces.path(pod) if pod else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(HOST_LOCAL),
            "PYCNI_SOCKET": str(self.folder / "s"),
        } | {f"CNI_{key}": value for key, value in env.items()}
        done = subprocess.run(
            [SHIM], input=stdin, env=environment, capture_output=True, timeout=30, check=False
        )
        assert done.stderr == b""
        return done.returncode, done.stdout

    def add(self, stdin: bytes, pod: str, **env: str) -> dict[str, Any]:
        code, out = self.call("ADD", stdin, pod, **env)
        assert code == 0, out
        result: dict[str, Any] = json.loads(out)
        return result

    def error(self, command: str, stdin: bytes, pod: str = "", **env: str) -> dict[str, Any]:
        code, out = self.call(command, stdin, pod, **env)
        assert code == 1, out
        decoded: dict[str, Any] = json.loads(out)
        return decoded

    def reserved(self) -> list[str]:
        return sorted(str(ip) for ips in self.pools("", "net").owners().values() for ip in ips)

    def settle(self) -> None:
        """Wait for removals in the background."""
        deadline = time.monotonic() + 5
        while self.ops.busy():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    @property
    def clean(self) -> bool:
        self.settle()
        return not (self.reserved() or self.endpoints.all() or host_ends())


def host_ends() -> list[str]:
    return [name for name in links() if name.startswith("veth")]


@pytest.fixture
def make_pod() -> Iterator[Callable[[], str]]:
    with fresh_spaces() as make:
        yield make


@pytest.fixture
def agent(make_pod: Callable[[], str], short_folder: Path) -> Iterator[Agent]:
    """The test's thread is in a fresh namespace, the node's, until the end."""
    home = namespaces.current()
    node = namespaces.open_netns(namespaces.path(make_pod()))
    try:
        namespaces.setns(node)
        run("ip link set lo up")
        made = Agent(short_folder)
        with closing_agent(made):
            yield made
    finally:
        namespaces.setns(home)
        os.close(node)
        os.close(home)


def closing_agent(agent: Agent) -> closing[Any]:
    class Stopping:
        def close(self) -> None:
            agent.stop()

    return closing(Stopping())


class Inside:
    """A pod for ``pings``."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def inside(self, fn: Callable[[], Any]) -> Any:
        return namespaces.run_in(self._fd, fn)


def reaches(pod: str, target: str) -> bool:
    fd = namespaces.open_netns(namespaces.path(pod))
    try:
        return pings(Inside(fd), target)  # type: ignore[arg-type]
    finally:
        os.close(fd)


def fd_count() -> int:
    return len(os.listdir("/proc/self/fd"))


def previous(result: dict[str, Any], **keys: Any) -> bytes:
    return conf(cniVersion=result["cniVersion"], prevResult=result, **keys)


def test_a_pod_lives_from_add_to_del(agent: Agent, make_pod: Callable[[], str]) -> None:
    one, two = make_pod(), make_pod()
    result = agent.add(conf(), one)
    agent.add(conf(), two)
    assert [item["address"] for item in result["ips"]] == ["10.1.2.2/24", "fd00:1:2::2/64"]
    assert addresses("eth0", one) == ["10.1.2.2/24", "fd00:1:2::2/64"]
    pod = links(one)["eth0"]
    assert (pod["address"], pod["mtu"]) == (result["interfaces"][2]["mac"], result["interfaces"][2]["mtu"])
    assert result["interfaces"][1]["mac"] == links()[result["interfaces"][1]["name"]]["address"]
    assert result["interfaces"][0]["mac"] == links()["cni0"]["address"]
    assert reaches(one, "10.1.2.3")
    assert reaches(one, "fd00:1:2::3")
    assert pings(None, "10.1.2.2")
    assert agent.call("CHECK", previous(result), one) == (0, b"")
    assert agent.call("STATUS", conf()) == (0, b"")
    for pod_name in (one, two):
        assert agent.call("DEL", conf(), pod_name) == (0, b"")
    assert agent.clean
    assert list(links(one)) == ["lo"]


def test_del_cuts_off_at_once_and_the_interface_is_gone_soon(
    agent: Agent, make_pod: Callable[[], str]
) -> None:
    pod = make_pod()
    agent.add(conf(), pod)
    assert pings(None, "10.1.2.2")
    assert agent.call("DEL", conf(), pod) == (0, b"")
    assert not pings(None, "10.1.2.2", wait=0.2)
    agent.settle()
    assert "eth0" not in links(pod)


@pytest.mark.parametrize("netns", ["kept", "gone", "empty"])
def test_del_whatever_became_of_the_namespace(agent: Agent, make_pod: Callable[[], str], netns: str) -> None:
    pod = make_pod()
    result = agent.add(conf(), pod)
    if netns == "gone":
        namespaces.delete(pod)
    env = {"NETNS": ""} if netns == "empty" else {}
    assert agent.call("DEL", previous(result), pod, **env) == (0, b"")
    assert agent.call("DEL", conf(), pod, NETNS="") == (0, b"")
    assert agent.clean


def test_a_pod_survives_a_new_agent_and_is_removed_by_it(agent: Agent, make_pod: Callable[[], str]) -> None:
    pod = make_pod()
    stdin = conf(ipMasq=True, runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80}]})
    result = agent.add(stdin, pod)
    rules = run("nft list ruleset")
    agent.stop()
    assert pings(None, "10.1.2.2")
    agent.start()
    assert run("nft list ruleset") == rules
    keys = {"ipMasq": True, "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}}
    assert agent.call("CHECK", previous(result, **keys), pod) == (0, b"")
    run("nft flush ruleset")
    assert agent.error("CHECK", previous(result, **keys), pod)["code"] == 101
    assert agent.ops.adopt(), "it says what it repaired"
    assert agent.call("CHECK", previous(result, **keys), pod) == (0, b"")
    assert agent.call("DEL", stdin, pod) == (0, b"")
    assert agent.clean


def test_after_a_failed_policy_nothing_is_left(agent: Agent, make_pod: Callable[[], str]) -> None:
    pod = make_pod()
    agent.gate_error = PycniError("policy is broken")
    assert agent.error("ADD", conf(ipMasq=True), pod)["msg"] == "policy is broken"
    assert agent.clean
    assert list(links(pod)) == ["lo"]
    agent.gate_error = None
    assert agent.add(conf(), pod)


def test_a_second_add_is_refused_and_the_first_keeps_working(
    agent: Agent, make_pod: Callable[[], str]
) -> None:
    pod = make_pod()
    result = agent.add(conf(), pod)
    assert agent.error("ADD", conf(), pod)["code"] == 100
    assert agent.error("ADD", conf(name="other"), pod)["code"] == 100
    assert agent.call("CHECK", previous(result), pod) == (0, b"")
    assert pings(None, "10.1.2.2")


def test_a_foreign_interface_is_left_alone(agent: Agent, make_pod: Callable[[], str]) -> None:
    pod = make_pod()
    run("ip link add eth0 type veth peer name eth9", pod)
    assert agent.error("ADD", conf(), pod)["code"] == 100
    assert agent.call("DEL", conf(), pod) == (0, b"")
    assert "eth0" in links(pod)
    assert agent.clean


def test_a_pod_of_the_reference_bridge_is_taken_over_by_del(
    agent: Agent, make_pod: Callable[[], str]
) -> None:
    """As after a move from flannel: same network name, same reservation files, a veth with another name."""
    pod = make_pod()
    reference = conf(
        cniVersion="1.0.0",
        type="bridge",
        isGateway=True,
        ipam={"type": "host-local", "subnet": "10.1.2.0/24", "dataDir": str(agent.folder / "networks")},
    )
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": namespaces.path(pod),
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(HOST_LOCAL),
        "PATH": os.environ["PATH"],
    }
    subprocess.run([HOST_LOCAL / "bridge"], input=reference, env=environment, check=True, capture_output=True)
    assert agent.reserved() == ["10.1.2.2"]
    assert agent.call("DEL", conf(), pod) == (0, b"")
    assert agent.clean
    assert list(links(pod)) == ["lo"]


def test_host_local_is_delegated_to(agent: Agent, make_pod: Callable[[], str]) -> None:
    pod = make_pod()
    data = agent.folder / "hl"
    keys = {
        "cniVersion": "1.0.0",
        "ipam": {
            "type": "host-local",
            "dataDir": str(data),
            "ranges": [[{"subnet": "10.9.0.0/24", "gateway": "10.9.0.254"}], [{"subnet": "fd09::/64"}]],
            "routes": [{"dst": "10.8.0.0/16"}],
        },
    }
    result = agent.add(conf(**keys), pod)
    assert [item["address"] for item in result["ips"]] == ["10.9.0.1/24", "fd09::2/64"]
    assert {"dst": "10.8.0.0/16", "gw": "10.9.0.254"} in result["routes"]
    assert (data / "net" / "10.9.0.1").exists()
    assert agent.call("CHECK", conf(**keys, prevResult=result), pod) == (0, b"")
    assert agent.call("DEL", conf(**keys), pod, NETNS="") == (0, b"")
    assert not (data / "net" / "10.9.0.1").exists()
    assert agent.clean


def test_gc_keeps_what_is_named(agent: Agent, make_pod: Callable[[], str]) -> None:
    pods = [make_pod() for _ in range(3)]
    for pod in pods:
        agent.add(conf(), pod)
    named = [{"containerID": pods[1], "ifname": "eth0"}]
    assert agent.call("GC", conf(**{VALID: named})) == (0, b"")
    assert [endpoint.container_id for endpoint in agent.endpoints.all()] == [pods[1]]
    assert len(host_ends()) == 1
    assert "eth0" in links(pods[1])


def test_check_names_what_was_changed_behind_our_back(agent: Agent, make_pod: Callable[[], str]) -> None:
    pod = make_pod()
    result = agent.add(conf(), pod)
    run("ip addr del 10.1.2.2/24 dev eth0", pod)
    assert "10.1.2.2" in agent.error("CHECK", previous(result), pod)["details"]


def test_the_nodes_own_eth0_is_never_touched(agent: Agent) -> None:
    run("ip link add eth0 type veth peer name eth9")
    assert agent.error("ADD", conf(), NETNS="/proc/self/ns/net")["code"] == 8
    assert agent.error("DEL", conf(), NETNS="/proc/self/ns/net")["code"] == 8
    assert "eth0" in links()


def test_many_adds_and_dels_at_once_leak_nothing(agent: Agent, make_pod: Callable[[], str]) -> None:
    pods = [make_pod() for _ in range(24)]
    agent.add(conf(), pods[0])
    agent.call("DEL", conf(), pods[0])
    agent.settle()
    before, seen, failed = fd_count(), [], []

    def live(pod: str) -> None:
        try:
            seen.append(agent.add(conf(ipMasq=True), pod)["ips"][0]["address"])
            assert agent.call("DEL", conf(ipMasq=True), pod) == (0, b"")
            assert agent.add(conf(ipMasq=True), pod)
        except AssertionError as exc:
            failed.append(exc)

    threads = [threading.Thread(target=live, args=(pod,)) for pod in pods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    held = [str(ip) for endpoint in agent.endpoints.all() for ip in endpoint.addresses]
    assert len(set(held)) == len(held) == 48
    for pod in pods:
        agent.call("DEL", conf(ipMasq=True), pod)
    assert agent.clean
    assert fd_count() <= before + 12, (
        "some sockets are kept for reuse, half as many as there were calls at once"
    )


def test_an_agent_that_died_in_an_add_leaves_nothing_half_made(
    agent: Agent, make_pod: Callable[[], str]
) -> None:
    pod = make_pod()
    agent.add(conf(), pod)
    endpoint = agent.endpoints.get(Owner("net", pod, "eth0"))
    assert endpoint is not None
    fields = {name: getattr(endpoint, name) for name in endpoint.__struct_fields__}
    agent.endpoints.put(Endpoint(**(fields | {"state": "pending"})))
    agent.stop()
    agent.start()
    assert agent.clean
    assert "eth0" not in links(pod)
