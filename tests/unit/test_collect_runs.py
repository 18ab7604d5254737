"""The collector at work on real pools and endpoints, with the node's life scripted."""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest

from pycni.agent.collector import Collector
from pycni.errors import KernelError
from pycni.ipam.collect import Held, View
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools
from pycni.model.cni import AddressRange
from pycni.model.endpoint import Endpoint, Owner

NET = ip_network("10.1.2.0/24")
SETS = ((AddressRange(subnet=NET, start=NET[1], end=NET[-1], gateway=NET[1]),),)


class Node:
    """A node whose life is told: which host links there are, what namespaces have which addresses."""

    def __init__(self, folder: Path) -> None:
        self.data_dir = str(folder / "networks")
        self.endpoints = EndpointStore(str(folder))
        self.pools = Pools(self.data_dir, in_use=self.endpoints.in_use, lock_timeout_s=0.1)
        self.links: set[str] = set()
        self.addresses: set[str] = set()
        self.busy: set[Owner] = set()
        self.now = 1000.0
        self.looking: Callable[[], None] = lambda: None
        self.removed: list[str] = []
        self.collector = Collector(
            pools=self.pools,
            endpoints=self.endpoints,
            remove=self.remove,
            busy=lambda: self.busy,
            observer=self,  # type: ignore[arg-type]
            interval_s=0.02,
            first_s=0.01,
            clock=lambda: self.now,
        )

    def view(self, _held: Collection[Held], _endpoints: Collection[Endpoint], *, deep: bool = False) -> View:
        self.looking()
        return View(
            boot_id="boot",
            links=frozenset(self.links),
            addresses=frozenset(map(ip_address, self.addresses)),
            complete=True,
            cache_readable=True,
        )

    def remove(self, endpoint: Endpoint) -> None:
        self.removed.append(endpoint.container_id)
        self.pools(endpoint.data_dir, endpoint.network).release(endpoint.owner)
        self.endpoints.remove(endpoint.owner)

    def add(
        self, container: str, *, network: str = "net", alive: bool = True, state: str = "ready"
    ) -> Endpoint:
        owner = Owner(network, container, "eth0")
        made = self.pools("", network).reserve(owner, SETS)
        endpoint = Endpoint(
            network=network,
            container_id=container,
            ifname="eth0",
            state=state,  # type: ignore[arg-type]
            netns_inode=7,
            boot_id="boot",
            host_ifname=f"v{container}",
            addresses=tuple(one.address for one in made),
            data_dir=self.data_dir,
        )
        self.endpoints.put(endpoint)
        if alive:
            self.links.add(endpoint.host_ifname)
        return endpoint

    def sweep(self, times: int = 1) -> None:
        for _ in range(times):
            self.now += 400
            self.collector.sweep()

    def held(self, network: str = "net") -> set[str]:
        return {owner.container_id for owner in self.pools("", network).owners()}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.collector.stop()
    made.pools.close()
    made.endpoints.close()


def test_a_vanished_pod_is_removed_in_the_second_sweep_and_nothing_else(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.add("live")
    node.add("dead", alive=False)
    node.sweep()
    assert (node.removed, node.collector.suspects, node.held()) == ([], 1, {"live", "dead"})
    with caplog.at_level(logging.WARNING):
        node.sweep()
    assert (node.removed, node.held()) == (["dead"], {"live"})
    assert "network net, container dead, interface eth0: removing its endpoint (10.1.2.3)" in caplog.text
    node.sweep(3)
    assert node.removed == ["dead"]
    assert (node.collector.sweeps, node.collector.endpoints_removed, node.collector.failures) == (5, 1, 0)
    assert node.collector.suspects == 0
    assert node.collector.last_success == node.now


def test_an_endpoint_changed_while_looking_is_left_alone(node: Node) -> None:
    dead = node.add("dead", alive=False)
    node.sweep()
    node.looking = lambda: node.endpoints.put(msgspec.structs.replace(dead, created=5.0))
    node.sweep()
    assert node.removed == []


def test_an_owner_taken_up_while_looking_is_left_alone(node: Node) -> None:
    node.add("dead", alive=False)
    node.pools("", "net").reserve(Owner("net", "bare", "eth0"), SETS)
    node.sweep()
    node.looking = lambda: node.busy.update([Owner("net", "dead", "eth0"), Owner("net", "bare", "eth0")])
    node.sweep()
    assert (node.removed, node.held()) == ([], {"dead", "bare"})


def test_an_add_that_begins_after_the_judgement_keeps_its_address(node: Node) -> None:
    """The last question is asked while the pool is locked: the ADD gets the held address again, or a new one."""
    who = Owner("net", "bare", "eth0")
    node.pools("", "net").reserve(who, SETS)
    node.sweep()
    answers = iter([set[Owner](), {who}])
    node.collector._busy = lambda: next(answers)
    node.sweep()
    assert (node.held(), node.collector.reservations_removed) == ({"bare"}, 0)


def test_an_endpoint_stored_after_the_judgement_keeps_its_address(node: Node) -> None:
    who = Owner("net", "bare", "eth0")
    node.pools("", "net").reserve(who, SETS)
    node.sweep()

    def busy() -> set[Owner]:
        node.endpoints.put(Endpoint(network="net", container_id="bare", ifname="eth0"))
        return set()

    node.collector._busy = busy
    node.sweep()
    assert (node.held(), node.collector.reservations_removed) == ({"bare"}, 0)


def test_a_removal_that_fails_is_tried_again_and_stops_no_other(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.add("a", alive=False)
    node.add("b", alive=False)
    fails = [KernelError(16, "delete link", "va"), ValueError("unforeseen")]
    real = node.remove

    def remove(endpoint: Endpoint) -> None:
        if endpoint.container_id == "a" and fails:
            raise fails.pop(0)
        real(endpoint)

    node.collector._remove = remove
    node.sweep(2)
    assert (node.removed, node.collector.failures) == (["b"], 1)
    assert node.collector.last_success != node.now
    node.sweep()
    assert (node.removed, node.collector.failures) == (["b"], 2)
    node.sweep()
    assert (node.removed, node.collector.failures, node.held()) == (["b", "a"], 2, set())
    assert "delete link va: EBUSY" in caplog.text
    assert "unforeseen" in caplog.text


def test_lonely_and_torn_reservations_are_discarded_used_ones_kept(node: Node) -> None:
    for container in ("gone", "migrated"):
        node.pools("", "net").reserve(Owner("net", container, "eth0"), SETS)
    (Path(node.data_dir) / "net" / "10.1.2.9").write_bytes(b"")
    node.addresses.add("10.1.2.3")
    node.sweep(3)
    assert node.held() == {"migrated"}
    assert node.collector.reservations_removed == 2


def test_a_torn_file_of_a_running_pod_is_kept(node: Node) -> None:
    node.add("live")
    (Path(node.data_dir) / "net" / "10.1.2.2").write_bytes(b"")
    node.sweep(3)
    assert (node.held(), node.collector.reservations_removed) == ({""}, 0)


def test_the_file_of_a_running_pod_is_made_again_and_nobody_gets_its_address_meanwhile(node: Node) -> None:
    live = node.add("live")
    (Path(node.data_dir) / "net" / "10.1.2.2").unlink()
    for number in range(252):
        node.add(f"p{number}")
    with pytest.raises(Exception, match="no free address"):
        node.add("late")
    node.sweep(2)
    assert node.pools("", "net").holder(ip_address("10.1.2.2")) == live.owner
    assert node.collector.reservations_restored == 1
    node.sweep(2)
    assert node.collector.reservations_restored == 1


def test_a_removed_endpoint_is_not_reserved_again(node: Node) -> None:
    live = node.add("live")
    (Path(node.data_dir) / "net" / "10.1.2.2").unlink()
    node.sweep()
    node.looking = lambda: node.endpoints.remove(live.owner) and None
    node.sweep()
    assert node.held() == set()


def test_a_pool_that_cannot_be_read_stops_no_other(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.add("dead", network="one", alive=False)
    node.add("dead", network="two", alive=False)
    with (Path(node.data_dir) / "one" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        node.sweep(2)
    assert (node.held("one"), node.held("two"), node.collector.failures) == ({"dead"}, set(), 2)
    assert "network one: its reservations are not looked at" in caplog.text


def test_networks_the_agent_never_used_are_not_touched(node: Node) -> None:
    other = Path(node.data_dir) / "macvlan"
    other.mkdir(parents=True)
    (other / "192.0.2.7").write_bytes(b"somebody\r\neth0")
    node.add("live")
    node.sweep(3)
    assert (other / "192.0.2.7").exists()


def test_pools_are_found_again_through_endpoints_after_a_restart(node: Node, tmp_path: Path) -> None:
    node.add("dead", alive=False)
    node.endpoints.close()
    node.pools.close()
    again = Node(tmp_path)
    again.sweep(2)
    assert (again.removed, again.held()) == (["dead"], set())
    again.pools.close()
    again.endpoints.close()


def test_the_thread_goes_on_after_a_failed_look(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    failed = threading.Event()

    def fail_once() -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("no /proc today")

    node.looking = fail_once
    node.collector.start()
    with pytest.raises(RuntimeError, match="started already"):
        node.collector.start()
    deadline = time.monotonic() + 5
    while node.collector.sweeps < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    node.collector.stop()
    assert node.collector.sweeps >= 2
    assert node.collector.failures == 1
    assert "no /proc today" in caplog.text
    done = node.collector.sweeps
    time.sleep(0.05)
    assert node.collector.sweeps == done


def test_what_the_audit_finds_an_operator_can_release(node: Node) -> None:
    node.add("live")
    node.add("dead", alive=False)
    node.pools("", "net").reserve(Owner("net", "gone", "eth0"), SETS)
    found = {one.container_id: one for one in node.collector.audit()}
    assert {name: one.kind for name, one in found.items()} == {
        "dead": "leaked-endpoint",
        "gone": "leaked-reservation",
    }
    assert [row.container_id for row in node.collector.rows()] == ["live", "dead", "gone"]
    assert node.collector.release(found["dead"])
    assert node.collector.release(found["gone"])
    assert not node.collector.release(found["gone"]), "it is not so any more"
    invented = msgspec.structs.replace(found["dead"], container_id="live", address="10.1.2.2")
    assert not node.collector.release(invented), "alive"
    assert node.held() == {"live"}


def test_200_pods_vanish_at_once(node: Node) -> None:
    for number in range(200):
        node.add(f"c{number}", alive=number % 2 == 0)
    node.sweep(2)
    assert node.held() == {f"c{number}" for number in range(0, 200, 2)}
    assert node.collector.endpoints_removed == 100
    assert node.endpoints.holder("net", ip_interface("10.1.2.3/24").ip) is None
