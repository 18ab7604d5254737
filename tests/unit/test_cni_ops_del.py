"""DEL, the collector's removals and GC: always right, whatever is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pycni.agent import cni_addresses, cni_ops
from pycni.errors import KernelError, PycniError
from pycni.model.endpoint import Owner
from tests.unit.cni_fakes import Node, error
from tests.wire.cni_cases import conf

V4 = ip_network("10.1.2.0/24")
OWNER = Owner("net", "c1", "eth0")
VALID = "cni.dev/valid-attachments"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, V4)
    yield made
    made.close()


def delegated(**keys: Any) -> bytes:
    return conf(ipam={"type": "ipam-fake"}, **keys)


def gc(node: Node, *valid: tuple[str, str], **keys: Any) -> tuple[int, bytes]:
    named = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
    return node.call("GC", conf(**{VALID: named}, **keys), CONTAINERID="", NETNS="", IFNAME="")


def previous(result: dict[str, Any]) -> bytes:
    return conf(prevResult=result)


@pytest.mark.parametrize("with_namespace", [True, False], ids=["netns", "no netns"])
@pytest.mark.parametrize("with_result", [True, False], ids=["prevResult", "no prevResult"])
def test_del_takes_everything_away_and_prints_nothing(
    node: Node, with_namespace: bool, with_result: bool
) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    stdin = previous(result) if with_result else conf()
    for _ in range(2):
        assert node.call("DEL", stdin, fd if with_namespace else None) == (0, b"")
        assert node.clean
        assert node.namespaces.interfaces[fd] == {"lo"}


def test_del_of_what_never_was_is_success(node: Node) -> None:
    assert node.call("DEL", conf(), node.namespaces.make()) == (0, b"")
    assert node.call("DEL", conf(ipam={"subnet": "10.9.0.0/24"}), None) == (0, b"")
    assert node.clean


def test_del_after_the_agent_was_replaced(node: Node) -> None:
    fd = node.namespaces.make()
    node.add(conf(), fd)
    node.restart()
    assert node.call("DEL", conf()) == (0, b"")
    assert node.clean


def test_del_after_a_reboot_releases_what_the_old_boot_reserved(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    node.pods.attached.clear()
    node.restart()
    node.ops._boot_id = "another"
    assert node.call("DEL", conf()) == (0, b"")
    assert node.clean


def test_del_with_a_corrupt_record_still_releases(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    for file in (node.folder / "state" / "endpoints").iterdir():
        file.write_bytes(b"\0garbage")
    node.restart()
    assert node.endpoints.get(OWNER) is None
    assert node.call("DEL", conf()) == (0, b"")
    assert node.reserved() == {}
    assert not node.pods.attached


def test_del_with_the_record_lost_and_a_configuration_changed_beyond_use(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    assert node.call("DEL", conf(mtu="x", hairpinMode=7, ipam={"ranges": 5})) == (0, b"")
    assert node.clean


def test_del_finds_a_reservation_made_in_another_directory(node: Node) -> None:
    other = str(node.folder / "other")
    node.add(conf(ipam={"subnet": "10.9.0.0/24", "dataDir": other}), node.namespaces.make())
    assert node.pools(other, "net").owners()
    assert node.call("DEL", conf()) == (0, b"")
    assert not node.pools(other, "net").owners()


def test_a_record_whose_configuration_is_unreadable_still_says_where_its_addresses_are(node: Node) -> None:
    other = str(node.folder / "other")
    node.add(conf(ipam={"subnet": "10.9.0.0/24", "dataDir": other}), node.namespaces.make())
    endpoint = node.endpoints.get(OWNER)
    assert endpoint is not None
    node.endpoints.put(msgspec.structs.replace(endpoint, conf=b"{"))
    assert node.call("DEL", conf()) == (0, b"")
    assert not node.pools(other, "net").owners()
    assert node.clean


def test_a_pod_another_plugin_attached_is_taken_over_by_del(node: Node) -> None:
    """A node that moved from flannel: host-local's reservation, a veth we did not make, no record."""
    fd = node.namespaces.make()
    node.namespaces.interfaces[fd].add("eth0")
    folder = node.folder / "networks" / "net"
    folder.mkdir(parents=True)
    (folder / "10.1.2.9").write_text("c1\r\neth0")
    assert node.call("DEL", conf(), fd) == (0, b"")
    assert node.namespaces.interfaces[fd] == {"lo"}
    assert not (folder / "10.1.2.9").exists()


def test_prev_result_alone_says_that_an_interface_is_ours(node: Node) -> None:
    fd = node.namespaces.make()
    node.namespaces.interfaces[fd].add("eth0")
    shown = {"interfaces": [{"name": "eth0", "sandbox": "/x"}]}
    assert node.call("DEL", conf(prevResult=shown), fd) == (0, b"")
    assert node.namespaces.interfaces[fd] == {"lo"}


def test_del_after_a_refused_add_leaves_the_other_networks_interface(node: Node) -> None:
    fd = node.namespaces.make()
    node.add(conf(name="first"), fd)
    assert error(node.call("ADD", conf(), fd))["code"] == 100
    assert node.call("DEL", conf(), fd) == (0, b"")
    assert node.namespaces.interfaces[fd] == {"lo", "eth0"}
    assert len(node.pods.attached) == 1


def test_del_in_the_nodes_own_namespace_cleans_by_record_and_then_refuses(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    own = node.namespaces.make()
    node.namespaces.interfaces[own].add("eth0")
    node.namespaces.node = own
    assert error(node.call("DEL", conf(), own))["code"] == 8
    assert node.clean
    assert "eth0" in node.namespaces.interfaces[own], "the node's own eth0"


def test_del_with_a_file_instead_of_a_namespace(node: Node, tmp_path: Path) -> None:
    node.add(conf(), node.namespaces.make())
    with (tmp_path / "x").open("wb") as file:
        assert node.call("DEL", conf(), file.fileno()) == (0, b"")
    assert node.clean


# in the background


def test_del_returns_when_the_pod_is_cut_off_and_releases_when_it_is_gone(node: Node) -> None:
    node.pods.slow = True
    node.add(conf(), node.namespaces.make())
    assert node.call("DEL", conf()) == (0, b"")
    assert not node.pods.attached
    assert node.reserved() == {"10.1.2.2": ("c1", "eth0")}
    endpoint = node.endpoints.get(OWNER)
    assert endpoint is not None
    assert endpoint.state == "dying"
    assert OWNER in node.ops.busy(), "the collector must keep off"
    assert not node.gate.admitted
    assert node.call("DEL", conf()) == (0, b"")
    node.pods.finish()
    assert node.clean
    assert node.ops.busy() == frozenset()


def test_an_agent_killed_in_between_finishes_the_removal_when_it_is_back(node: Node) -> None:
    node.pods.slow = True
    node.add(conf(), node.namespaces.make())
    node.call("DEL", conf())
    node.restart()
    assert node.reserved()
    node.ops.resume()
    assert node.clean


def test_an_add_in_the_same_place_waits_for_the_removal(node: Node) -> None:
    node.pods.slow = True
    fd = node.namespaces.make()
    node.add(conf(), fd)
    node.call("DEL", conf())
    assert node.add(conf(), fd)["ips"]
    node.call("DEL", conf())
    assert node.add(conf(), fd, CONTAINERID="c2")["ips"]
    assert [endpoint.container_id for endpoint in node.endpoints.all()] == ["c2"]


def test_an_exhausted_range_waits_for_the_removal(node: Node) -> None:
    node.pods.slow = True
    stdin = conf(ipam={"subnet": "10.9.0.0/30"})
    node.add(stdin, node.namespaces.make())
    node.call("DEL", stdin)
    assert node.add(stdin, node.namespaces.make(), CONTAINERID="c2")["ips"][0]["address"] == "10.9.0.2/30"


def test_waiting_ends_although_others_come_and_go(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removals that end all the time are no reason to wait for ever for one that does not concern us."""
    monkeypatch.setattr(cni_ops, "INTERFACE_WAIT_S", 0.05)
    monkeypatch.setattr(cni_addresses, "EXHAUSTED_WAIT_S", 0.05)
    fd, stdin = node.namespaces.make(), conf(ipam={"subnet": "10.9.0.0/30"})
    node.add(stdin, fd)
    monkeypatch.setattr(node.ops._pending, "wait_any", lambda _timeout: True)
    monkeypatch.setattr(node.ops._addresses, "_removal_ended", lambda _timeout: True)
    assert error(node.call("ADD", stdin, fd, CONTAINERID="c2"))["code"] == 100
    assert error(node.call("ADD", stdin, node.namespaces.make(), CONTAINERID="c2"))["code"] == 11


def test_a_removal_that_does_not_end_refuses_the_next_add_of_the_same(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node.ops._pending, "wait", lambda _owner: False)
    assert error(node.call("ADD", conf(), node.namespaces.make()))["code"] == 11


def test_a_release_that_fails_leaves_the_endpoint_to_the_collector(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    node.pods.slow = True
    node.add(conf(), node.namespaces.make())
    node.call("DEL", conf())
    pool = node.pools("", "net")

    def refuse(_owner: Owner) -> tuple[()]:
        raise PycniError("read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(pool, "release", refuse)
        node.pods.finish()
    left = node.endpoints.get(OWNER)
    assert left is not None
    assert left.state == "dying"
    assert node.ops.busy() == frozenset()
    node.ops.remove(left)
    assert node.clean


# errors


def test_a_pod_that_cannot_be_cut_off_keeps_its_address_and_del_says_so(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    node.pods.fail["detach"] = KernelError(16, "cut off", "veth1")
    assert error(node.call("DEL", conf()))["code"] == 11
    assert node.reserved()
    assert node.gate.admitted, "it may still send, so it stays judged"
    assert node.call("DEL", conf()) == (0, b"")
    assert not node.gate.admitted
    assert node.clean


def test_several_errors_are_reported_together(node: Node) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    node.add(delegated(), node.namespaces.make())
    node.gate.fail_gone = PycniError("policy says no")
    node.plugin.answers("DEL", {"code": 104, "msg": "pool is closed"}, 1)
    answer = error(node.call("DEL", delegated()))
    assert (answer["code"], answer["msg"]) == (999, "2 errors")
    assert "policy says no" in answer["details"]
    assert "pool is closed" in answer["details"]
    assert not node.pods.attached


# delegates


@pytest.mark.parametrize("attached", [True, False])
def test_a_delegate_is_told_del_without_a_namespace_too(node: Node, attached: bool) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    if attached:
        node.add(delegated(), node.namespaces.make())
    stdin = delegated(odd=1)
    assert node.call("DEL", stdin) == (0, b"")
    assert node.plugin.calls[-1] == "DEL"
    assert node.plugin.stdin("DEL") == stdin
    assert "CNI_NETNS" not in node.plugin.env("DEL")
    assert node.clean


def test_a_delegate_of_the_time_of_add_is_told_when_the_configuration_has_changed(node: Node) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    node.add(delegated(), node.namespaces.make())
    assert node.call("DEL", conf()) == (0, b"")
    assert node.plugin.calls == ["ADD", "DEL"]


def test_the_collector_tells_the_delegate_from_the_record_alone(node: Node) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    node.add(delegated(), node.namespaces.make())
    left = node.endpoints.get(OWNER)
    assert left is not None
    node.ops.remove(left)
    env = node.plugin.env("DEL")
    assert (env["CNI_CONTAINERID"], env["CNI_IFNAME"], env.get("CNI_NETNS", "")) == ("c1", "eth0", "")
    assert env["CNI_PATH"] == str(node.plugin.folder)
    assert node.clean


def test_the_collector_leaves_an_endpoint_that_has_changed(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    old = node.endpoints.get(OWNER)
    assert old is not None
    node.call("DEL", conf())
    node.add(conf(), node.namespaces.make())
    node.ops.remove(old)
    assert len(node.pods.attached) == 1


# GC


def test_gc_removes_what_is_not_named(node: Node) -> None:
    for container in ("a", "b", "c"):
        node.add(conf(), node.namespaces.make(), CONTAINERID=container)
    node.add(conf(name="other"), node.namespaces.make(), CONTAINERID="a")
    node.add(conf(), node.namespaces.make(), CONTAINERID="a", IFNAME="net1")
    assert gc(node, ("b", "eth0"), ("a", "net1"), ("unknown", "eth0")) == (0, b"")
    left = {tuple(endpoint.owner) for endpoint in node.endpoints.all()}
    assert left == {("net", "b", "eth0"), ("net", "a", "net1"), ("other", "a", "eth0")}
    assert set(node.reserved().values()) == {("b", "eth0"), ("a", "net1")}
    assert len(node.pods.attached) == 3


def test_gc_frees_reservations_without_an_endpoint(node: Node) -> None:
    folder = node.folder / "networks" / "net"
    folder.mkdir(parents=True)
    (folder / "10.1.2.9").write_text("gone\r\neth0")
    (folder / "10.1.2.10").write_text("valid\r\neth0")
    assert gc(node, ("valid", "eth0")) == (0, b"")
    assert node.reserved() == {"10.1.2.10": ("valid", "eth0")}


def test_gc_waits_until_what_it_removed_is_gone(node: Node) -> None:
    node.pods.slow = True
    for container in ("a", "b"):
        node.add(conf(), node.namespaces.make(), CONTAINERID=container)
    assert gc(node) == (0, b"")
    assert node.clean


def test_gc_goes_on_after_errors_and_reports_them(node: Node) -> None:
    for container in ("a", "b", "c"):
        node.add(conf(), node.namespaces.make(), CONTAINERID=container)
    node.pods.fail["detach"] = KernelError(16, "cut off", "veth1")
    answer = error(gc(node))
    assert answer["code"] == 11
    assert len(node.endpoints.all()) == 1
    assert gc(node) == (0, b"")
    assert node.clean


def test_gc_keeps_off_what_is_under_way_or_newer(node: Node) -> None:
    node.add(conf(), node.namespaces.make(), CONTAINERID="a")
    hold, begun = threading.Event(), threading.Event()
    attach = node.pods.attach

    def slow(*args: Any) -> Any:
        begun.set()
        hold.wait(5)
        return attach(*args)

    node.pods.attach = slow  # type: ignore[method-assign]
    fd = node.namespaces.make()
    thread = threading.Thread(target=node.add, args=(conf(), fd), kwargs={"CONTAINERID": "b"})
    thread.start()
    begun.wait(5)
    assert gc(node) == (0, b"")
    hold.set()
    thread.join()
    assert [endpoint.container_id for endpoint in node.endpoints.all()] == ["b"]


def test_gc_spares_an_attachment_made_after_it_began(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    node.add(conf(), node.namespaces.make(), CONTAINERID="a")
    listed = node.endpoints.all

    def replaced_meanwhile() -> Any:
        before = listed()
        monkeypatch.undo()
        node.call("DEL", conf(), CONTAINERID="a")
        node.add(conf(), node.namespaces.make(), CONTAINERID="a")
        return before

    monkeypatch.setattr(node.endpoints, "all", replaced_meanwhile)
    assert gc(node) == (0, b"")
    assert [endpoint.container_id for endpoint in node.endpoints.all()] == ["a"]


def test_gc_tells_delegates_del_for_each_and_gc_for_all(node: Node) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    node.add(delegated(), node.namespaces.make())
    named = {VALID: [], "cni.dev/attachments": []}
    stdin = delegated(**named)
    assert node.call("GC", stdin, CONTAINERID="", IFNAME="") == (0, b"")
    assert node.plugin.calls == ["ADD", "DEL", "GC"]
    assert node.plugin.stdin("GC") == stdin
    assert node.clean


@pytest.mark.parametrize(("code", "reported"), [(1, 0), (3, 0), (4, 0), (11, 1), (999, 1)])
def test_a_delegate_without_gc_is_fine_and_a_failing_one_is_reported(
    node: Node, code: int, reported: int
) -> None:
    node.plugin.answers("GC", {"code": code, "msg": "no"}, 1)
    answer = node.call("GC", delegated(**{VALID: []}), CONTAINERID="", IFNAME="")
    assert answer[0] == reported
    if reported:
        assert error(answer)["code"] == code


def test_calls_on_one_container_come_one_after_another(node: Node) -> None:
    active, most = [0], [0]
    attach = node.pods.attach

    def watched(*args: Any) -> Any:
        active[0] += 1
        most[0] = max(most[0], active[0])
        time.sleep(0.01)
        active[0] -= 1
        return attach(*args)

    node.pods.attach = watched  # type: ignore[method-assign]
    fd = node.namespaces.make()
    threads = [
        threading.Thread(target=node.add, args=(conf(), fd), kwargs={"IFNAME": f"eth{i}"}) for i in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert len(node.endpoints.all()) == 5
