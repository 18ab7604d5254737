"""CHECK and STATUS."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from pycni.errors import KernelError
from tests.unit.cni_fakes import Node, error
from tests.wire.cni_cases import conf

V4 = ip_network("10.1.2.0/24")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, V4)
    yield made
    made.close()


def delegated(**keys: Any) -> bytes:
    return conf(ipam={"type": "ipam-fake"}, **keys)


def faults(node: Node, stdin: bytes, fd: int) -> str:
    answer = error(node.call("CHECK", stdin, fd))
    assert answer["code"] == 101
    details: str = answer["details"]
    return details


def test_check_right_after_add_finds_nothing_and_prints_nothing(node: Node) -> None:
    for version in ("0.4.0", "1.0.0", "1.1.0"):
        fd = node.namespaces.make()
        result = node.add(conf(cniVersion=version), fd, CONTAINERID=version)
        assert node.call("CHECK", conf(cniVersion=version, prevResult=result), fd, CONTAINERID=version) == (
            0,
            b"",
        )


def test_check_needs_prev_result(node: Node) -> None:
    answer = error(node.call("CHECK", conf(), node.namespaces.make()))
    assert (answer["code"], "prevResult" in answer["msg"]) == (7, True)


def test_check_tolerates_what_later_plugins_added(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    result["interfaces"].append({"name": "ifb0"})
    result["ips"].append({"address": "192.0.2.9/32", "interface": 3})
    result["routes"].append({"dst": "192.0.2.0/24"})
    result["interfaces"][2]["mac"] = "02:00:00:00:00:99"
    assert node.call("CHECK", conf(prevResult=result), fd) == (0, b"")


def test_check_reports_what_the_kernel_lacks(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    node.pods.faults = ["route default is missing"]
    assert "route default is missing" in faults(node, conf(prevResult=result), fd)
    node.pods.attached.clear()
    assert "eth0 is missing" in faults(node, conf(prevResult=result), fd)


def test_check_reports_a_lost_reservation(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    (node.folder / "networks" / "net" / "10.1.2.2").unlink()
    assert "no address is reserved" in faults(node, conf(prevResult=result), fd)


def test_check_reports_a_result_that_lacks_our_address(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    result["ips"] = []
    assert "10.1.2.2" in faults(node, conf(prevResult=result), fd)


def test_check_reports_another_sandbox(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    result["interfaces"][2]["sandbox"] = "/run/netns/else"
    assert "/run/netns/else" in faults(node, conf(prevResult=result), fd)


def test_check_without_a_record_believes_prev_result(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    for file in (node.folder / "state" / "endpoints").iterdir():
        file.unlink()
    node.restart()
    assert node.call("CHECK", conf(prevResult=result), fd) == (0, b"")
    result["ips"][0]["address"] = "10.1.2.99/24"
    assert "10.1.2.99" in faults(node, conf(prevResult=result), fd)


def test_check_of_a_dying_attachment_fails(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    node.pods.fail["detach"] = KernelError(16, "cut off", "x")
    node.call("DEL", conf(), fd)
    assert "dying" in faults(node, conf(prevResult=result), fd)


def test_check_without_namespace_or_network(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    assert error(node.call("CHECK", conf(prevResult=result), None, NETNS="/gone"))["code"] == 3
    node.podnet = None
    assert error(node.call("CHECK", conf(prevResult=result), fd))["code"] == 11


def test_check_asks_the_delegate(node: Node) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    fd = node.namespaces.make()
    result = node.add(delegated(), fd)
    stdin = delegated(prevResult=result)
    assert node.call("CHECK", stdin, fd) == (0, b"")
    assert node.plugin.stdin("CHECK") == stdin
    node.plugin.answers("CHECK", {"code": 105, "msg": "not mine"}, 1)
    assert error(node.call("CHECK", stdin, fd))["code"] == 105


# STATUS


def status(node: Node, stdin: bytes) -> tuple[int, bytes]:
    return node.call("STATUS", stdin, CONTAINERID="", IFNAME="")


def test_status_of_a_ready_node_is_silent(node: Node) -> None:
    assert status(node, conf()) == (0, b"")
    assert node.call("STATUS", conf(), CONTAINERID="", IFNAME="", PATH="") == (0, b"")


def test_status_says_why_not(node: Node) -> None:
    node.reason = "the lease has ended"
    answer = error(status(node, conf()))
    assert (answer["code"], answer["msg"]) == (50, "not ready: the lease has ended")
    node.podnet, node.reason = None, ""
    assert error(status(node, conf()))["code"] == 50


def test_status_reports_exhaustion_until_an_address_is_free(node: Node) -> None:
    stdin = conf(ipam={"subnet": "10.9.0.0/30"})
    assert status(node, stdin) == (0, b"")
    node.add(stdin, node.namespaces.make())
    answer = error(status(node, stdin))
    assert (answer["code"], "10.9.0.1-10.9.0.2" in answer["msg"]) == (50, True)
    node.pods.slow = True
    node.call("DEL", stdin)
    assert status(node, stdin) == (0, b""), "its address is about to be free"
    node.pods.finish()
    assert status(node, stdin) == (0, b"")


def test_status_of_a_node_whose_lease_is_full(tmp_path: Path) -> None:
    node = Node(tmp_path, ip_network("10.1.2.0/29"))
    for index in range(5):
        node.add(conf(), node.namespaces.make(), CONTAINERID=f"c{index}")
    assert error(status(node, conf()))["code"] == 50
    node.close()


def test_layer_2_only_has_no_addresses_to_run_out_of(node: Node) -> None:
    assert status(node, conf(ipam={}, isGateway=False)) == (0, b"")


@pytest.mark.parametrize("code", [50, 51])
def test_a_delegates_unreadiness_is_passed_on(node: Node, code: int) -> None:
    node.plugin.answers("STATUS", {"code": code, "msg": "pool empty"}, 1)
    assert error(status(node, delegated()))["code"] == code


@pytest.mark.parametrize("code", [1, 3, 4])
@pytest.mark.parametrize(("versions", "expected"), [(["1.0.0", "1.1.0"], 0), (["1.0.0"], 50)])
def test_a_delegate_without_status_counts_by_its_versions(
    node: Node, code: int, versions: list[str], expected: int
) -> None:
    node.plugin.answers("STATUS", {"code": code, "msg": "unknown CNI_COMMAND"}, 1)
    node.plugin.answers("VERSION", {"cniVersion": "1.1.0", "supportedVersions": versions})
    for _ in range(2):
        answer = status(node, delegated())
        assert (error(answer)["code"] if answer[0] else 0) == expected
    assert node.plugin.calls.count("VERSION") == 1, "asked once"


def test_another_error_of_a_delegate_means_unavailable(node: Node) -> None:
    node.plugin.answers("STATUS", {"code": 999, "msg": "broken"}, 1)
    assert error(status(node, delegated()))["code"] == 50


def test_a_missing_delegate_makes_the_node_unavailable(node: Node) -> None:
    answer = error(status(node, conf(ipam={"type": "none"})))
    assert (answer["code"], "none" in answer["msg"]) == (50, True)


def test_version_through_the_agent(node: Node) -> None:
    code, output = node.call("VERSION", b'{"cniVersion":"0.4.0"}', CONTAINERID="", IFNAME="", PATH="")
    assert code == 0
    assert output.startswith(b'{"cniVersion":"0.4.0","supportedVersions":["0.1.0"')
