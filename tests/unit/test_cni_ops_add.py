"""ADD: the result, the record before the kernel, and nothing half made."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks
from pycni.errors import CniError, KernelError, PycniError
from pycni.model.cni import VERSIONS
from pycni.model.endpoint import Endpoint, Owner
from tests.unit.cni_fakes import Node, error
from tests.wire.cni_cases import CASES, conf, environment_of

V4, V6 = ip_network("10.1.2.0/24"), ip_network("fd00:1:2::/64")
OWNER = Owner("net", "c1", "eth0")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path, V4)
    yield made
    made.close()


def delegated(**keys: Any) -> bytes:
    return conf(ipam={"type": "ipam-fake"}, **keys)


def test_the_result_names_bridge_host_end_and_pod(node: Node) -> None:
    fd = node.namespaces.make()
    result = node.add(conf(), fd)
    bridge, host, pod = result["interfaces"]
    assert bridge["name"] == "cni0"
    assert host["name"].startswith("veth")
    assert (pod["name"], pod["sandbox"], pod["mtu"]) == ("eth0", f"/run/netns/{fd}", 1450)
    assert result["ips"] == [{"address": "10.1.2.2/24", "gateway": "10.1.2.1", "interface": 2}]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.1.2.1"}]
    assert node.reserved() == {"10.1.2.2": ("c1", "eth0")}


def test_a_dual_stack_node_gives_one_address_per_family(tmp_path: Path) -> None:
    node = Node(tmp_path, V4, V6)
    result = node.add(conf(), node.namespaces.make())
    assert [item["address"] for item in result["ips"]] == ["10.1.2.2/24", "fd00:1:2::2/64"]
    node.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_gets_its_answer(node: Node, version: str) -> None:
    result = node.add(conf(cniVersion=version), node.namespaces.make())
    assert result["cniVersion"] == version
    assert ("ip4" in result) == (version < "0.3")


def test_the_endpoint_is_on_record_before_the_kernel_is_touched(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Endpoint | None] = []
    attach = node.pods.attach

    def watched(*args: Any) -> Any:
        seen.append(node.endpoints.get(OWNER))
        assert node.reserved()
        return attach(*args)

    monkeypatch.setattr(node.pods, "attach", watched)
    fd = node.namespaces.make()
    stdin = conf(keyA=["kept"])
    node.add(stdin, fd, ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=p;K8S_POD_UID=u")
    pending, ready = seen[0], node.endpoints.get(OWNER)
    assert pending is not None
    assert ready is not None
    assert (pending.state, ready.state) == ("pending", "ready")
    assert ready.addresses == pending.addresses == (ip_interface("10.1.2.2/24"),)
    assert (ready.pod_namespace, ready.pod_name, ready.pod_uid) == ("ns", "p", "u")
    assert (ready.netns, ready.netns_inode, ready.boot_id) == (f"/run/netns/{fd}", 1000 + fd, "boot")
    assert ready.data_dir == str(node.folder / "networks")
    assert ready.conf == stdin
    assert len(ready.mac.split(":")) == 6


def test_policy_is_in_place_before_add_returns(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    assert node.gate.admitted[OWNER].addresses == (ip_interface("10.1.2.2/24"),)


def test_a_result_of_earlier_plugins_is_kept_and_ours_added(node: Node) -> None:
    previous = {
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": "/x"}],
        "ips": [{"address": "192.0.2.5/24", "interface": 0}],
        "routes": [{"dst": "192.0.2.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
    }
    result = node.add(conf(cniVersion="1.0.0", prevResult=previous), node.namespaces.make())
    assert next(item["name"] for item in result["interfaces"]) == "net1"
    assert [(item["address"], item["interface"]) for item in result["ips"]] == [
        ("192.0.2.5/24", 0),
        ("10.1.2.2/24", 3),
    ]
    assert result["routes"][0] == {"dst": "192.0.2.0/24"}
    assert result["dns"] == {"nameservers": ["192.0.2.53"]}
    recorded = node.endpoints.get(OWNER)
    assert recorded is not None
    assert "prevResult" not in json.loads(recorded.conf)


def test_the_file_named_by_resolv_conf_becomes_the_results_dns(node: Node) -> None:
    file = node.folder / "resolv.conf"
    file.write_text("# x\nnameserver 10.0.0.53\nsearch a b\ndomain c\noptions ndots:5 rotate\n\nnameserver\n")
    stdin = conf(ipam={"subnet": "10.9.0.0/24", "resolvConf": str(file)})
    dns = {
        "nameservers": ["10.0.0.53"],
        "domain": "c",
        "search": ["a", "b"],
        "options": ["ndots:5", "rotate"],
    }
    assert node.add(stdin, node.namespaces.make())["dns"] == dns


def test_a_missing_resolv_conf_is_an_io_failure_and_leaves_nothing(node: Node) -> None:
    answer = node.call(
        "ADD", conf(ipam={"subnet": "10.9.0.0/24", "resolvConf": "/none"}), node.namespaces.make()
    )
    assert (error(answer)["code"], node.clean) == (5, True)


def test_layer_2_only_needs_no_address_and_a_version_that_can_say_so(node: Node) -> None:
    keys = {"ipam": {}, "isGateway": False}
    result = node.add(conf(**keys), node.namespaces.make())
    assert "ips" not in result
    assert node.reserved() == {}
    answer = node.call("ADD", conf(cniVersion="0.2.0", **keys), node.namespaces.make(), CONTAINERID="c2")
    assert (error(answer)["code"], len(node.pods.attached)) == (7, 1)


def test_requested_addresses_are_given_or_refused(node: Node) -> None:
    result = node.add(conf(runtimeConfig={"ips": ["10.1.2.77"]}), node.namespaces.make())
    assert result["ips"][0]["address"] == "10.1.2.77/24"
    taken = node.call(
        "ADD", conf(runtimeConfig={"ips": ["10.1.2.77"]}), node.namespaces.make(), CONTAINERID="c2"
    )
    assert error(taken)["code"] == 7
    assert "10.1.2.77" in error(taken)["msg"]
    outside = node.call("ADD", conf(), node.namespaces.make(), CONTAINERID="c3", ARGS="IP=10.5.5.5")
    assert error(outside)["code"] == 7
    assert list(node.reserved()) == ["10.1.2.77"]


# refusals


def test_without_a_pod_network_add_is_to_be_tried_again(node: Node) -> None:
    node.podnet, node.reason = None, "waiting for etcd at 10.0.0.1"
    answer = error(node.call("ADD", conf(), node.namespaces.make()))
    assert (answer["code"], answer["msg"]) == (11, "not ready: waiting for etcd at 10.0.0.1")
    assert node.clean


def test_an_attachment_that_needs_nothing_of_the_pod_network_does_not_wait_for_it(node: Node) -> None:
    node.podnet = None
    assert node.add(conf(mtu=1400, ipam={"subnet": "10.9.0.0/24"}), node.namespaces.make())["ips"]
    answer = node.call("ADD", conf(ipam={"subnet": "10.9.0.0/24"}), node.namespaces.make(), CONTAINERID="c2")
    assert error(answer)["code"] == 11


def test_a_namespace_that_is_gone_is_an_unknown_container(node: Node) -> None:
    answer = error(node.call("ADD", conf(), None, NETNS="/run/netns/gone"))
    assert (answer["code"], "/run/netns/gone" in answer["msg"]) == (3, True)


def test_a_file_that_is_no_namespace_is_a_bad_variable(node: Node, tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        answer = error(node.call("ADD", conf(), file.fileno()))
    assert (answer["code"], "CNI_NETNS" in answer["msg"]) == (4, True)


def test_the_nodes_own_namespace_is_refused_unless_insisted_on(node: Node) -> None:
    fd = node.namespaces.make()
    node.namespaces.node = fd
    assert error(node.call("ADD", conf(), fd))["code"] == CniError.OWN_NETNS
    assert node.clean
    assert node.add(conf(), fd, NETNS_OVERRIDE="TRUE")


def test_a_second_add_without_del_is_refused_and_changes_nothing(node: Node) -> None:
    fd = node.namespaces.make()
    node.add(conf(), fd)
    before = node.endpoints.get(OWNER)
    answer = error(node.call("ADD", conf(), fd))
    assert (answer["code"], "eth0" in answer["msg"]) == (100, True)
    assert node.endpoints.get(OWNER) == before
    assert node.reserved() == {"10.1.2.2": ("c1", "eth0")}
    assert len(node.pods.attached) == 1
    assert OWNER in node.gate.admitted


def test_an_interface_somebody_else_made_is_left_alone(node: Node) -> None:
    fd = node.namespaces.make()
    node.namespaces.interfaces[fd].add("eth0")
    assert error(node.call("ADD", conf(), fd))["code"] == 100
    assert "eth0" in node.namespaces.interfaces[fd]
    assert node.clean


def test_an_interface_that_appears_meanwhile_is_left_alone(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    fd = node.namespaces.make()
    monkeypatch.setattr(node.namespaces, "has_interface", lambda *_: False)
    node.namespaces.interfaces[fd].add("eth0")
    assert error(node.call("ADD", conf(), fd))["code"] == 100
    assert "eth0" in node.namespaces.interfaces[fd]
    assert node.clean


def test_an_exhausted_range_is_to_be_tried_again(node: Node) -> None:
    stdin = conf(ipam={"subnet": "10.9.0.0/30"})
    node.add(stdin, node.namespaces.make())
    answer = error(node.call("ADD", stdin, node.namespaces.make(), CONTAINERID="c2"))
    assert (answer["code"], "10.9.0" in answer["msg"]) == (11, True)
    assert len(node.endpoints.all()) == 1


# failures on the way

FAILURES = [
    ("attach", KernelError(12, "create interface", "eth0"), 11),
    ("attach", KernelError(95, "create interface", "eth0", "no veth here"), 999),
    ("attach", OSError(28, "No space left"), 5),
    ("attach", ZeroDivisionError("bug"), 999),
    ("gate", PycniError("policy is broken"), 999),
    ("gate", ZeroDivisionError("bug"), 999),
    ("attached", PycniError("no programs"), 999),
]


@pytest.mark.parametrize(("where", "exc", "code"), FAILURES, ids=str)
def test_a_failure_takes_everything_back(node: Node, where: str, exc: Exception, code: int) -> None:
    fd = node.namespaces.make()
    if where == "gate":
        node.gate.fail = exc
    elif where == "attached":
        node.gate.fail_attached = exc
    else:
        node.pods.fail[where] = exc
    answer = error(node.call("ADD", conf(), fd))
    assert answer["code"] == code
    assert "\n" not in answer["msg"]
    assert node.clean
    assert node.namespaces.interfaces[fd] == {"lo"}
    node.gate.fail = node.gate.fail_attached = None
    assert node.add(conf(), fd)["ips"]


def test_a_gate_lets_the_pod_in_before_it_has_a_device(node: Node) -> None:
    seen: list[bool] = []
    attach = node.pods.attach

    def noting(plan: AttachPlan, netns_fd: int) -> AttachedLinks:
        seen.append(OWNER in node.gate.admitted and not node.gate.attachments)
        return attach(plan, netns_fd)

    node.pods.attach = noting  # type: ignore[method-assign]
    node.add(conf(), node.namespaces.make())
    assert seen == [True]
    assert [item.owner for item in node.gate.attachments] == [OWNER]


@pytest.mark.parametrize("times", [1, 2], ids=["pending", "ready"])
def test_a_record_that_cannot_be_written_takes_everything_back(
    node: Node, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    put, calls = node.endpoints.put, []

    def failing(endpoint: Endpoint) -> None:
        calls.append(endpoint)
        if len(calls) == times:
            raise OSError(28, "No space left on device")
        put(endpoint)

    monkeypatch.setattr(node.endpoints, "put", failing)
    assert error(node.call("ADD", conf(), node.namespaces.make()))["code"] == 5
    assert node.clean


def test_a_failed_removal_of_a_failed_add_is_left_to_the_collector(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.gate.fail = PycniError("no policy")
    node.pods.fail["detach"] = KernelError(16, "cut off", "veth")
    with caplog.at_level(logging.ERROR):
        assert error(node.call("ADD", conf(), node.namespaces.make()))["msg"] == "no policy"
    left = node.endpoints.get(OWNER)
    assert left is not None
    assert left.state == "dying"
    assert node.reserved(), "its address must not be given away while it may be reachable"
    assert "taken back" in caplog.text
    node.ops.remove(left)
    assert node.clean


def test_settings_that_contradict_each_other_are_invalid_configuration(node: Node) -> None:
    answer = error(node.call("ADD", conf(bridge="a-long-bridge", vlan=4000), node.namespaces.make()))
    assert answer["code"] == 7
    assert node.clean


# what an earlier agent left


def test_an_add_that_was_killed_is_done_anew_with_the_same_address(node: Node) -> None:
    fd = node.namespaces.make()
    first = node.add(conf(), fd)
    left = node.endpoints.get(OWNER)
    assert left is not None
    node.restart()
    other = node.namespaces.make()
    second = node.add(conf(), other)
    assert second["ips"] == first["ips"]
    assert len(node.pods.attached) == 1
    assert "eth0" not in node.namespaces.interfaces[fd]


def test_after_a_restart_what_was_half_made_is_taken_back_and_the_rest_kept(node: Node) -> None:
    node.add(conf(), node.namespaces.make())
    node.add(conf(), node.namespaces.make(), CONTAINERID="c2")
    node.add(conf(), node.namespaces.make(), CONTAINERID="c3")
    for container, state in (("c2", "pending"), ("c3", "dying")):
        endpoint = node.endpoints.get(Owner("net", container, "eth0"))
        assert endpoint is not None
        fields = {name: getattr(endpoint, name) for name in endpoint.__struct_fields__}
        node.endpoints.put(Endpoint(**(fields | {"state": state})))
    node.restart()
    node.ops.resume()
    assert [endpoint.container_id for endpoint in node.endpoints.all()] == ["c1"]
    assert list(node.reserved().values()) == [("c1", "eth0")]
    assert len(node.pods.attached) == 1


def test_a_restarted_agent_compiles_the_same_plans(node: Node) -> None:
    node.plugin.answers(
        "ADD",
        {"ips": [{"address": "10.7.0.9/24", "gateway": "10.7.0.254"}], "routes": [{"dst": "10.8.0.0/16"}]},
    )
    node.add(
        conf(runtimeConfig={"portMappings": [{"hostPort": 80, "containerPort": 8080}]}),
        node.namespaces.make(),
    )
    node.add(delegated(), node.namespaces.make(), CONTAINERID="c2")
    custom = {"subnet": "10.9.0.0/24", "gateway": "10.9.0.254", "routes": [{"dst": "10.0.0.0/8"}]}
    node.add(conf(ipam=custom), node.namespaces.make(), CONTAINERID="c3")
    made = {plan.host: plan for plan, _ in node.pods.attached.values()}
    node.restart()
    assert node.ops.adopt() == ["a bridge"]
    assert {plan.host: plan for plan in node.pods.resynced} == made


def test_a_record_without_a_plan_does_not_stop_the_others(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.add(conf(), node.namespaces.make())
    node.endpoints.put(Endpoint(network="net", container_id="c9", ifname="eth0", state="ready", conf=b"{"))
    node.ops.adopt()
    assert [plan.owner for plan in node.pods.resynced] == [OWNER]
    assert "c9" in caplog.text


# delegated IPAM


def test_a_delegate_gets_what_we_got_and_its_answer_is_used(node: Node) -> None:
    node.plugin.answers(
        "ADD",
        {
            "cniVersion": "1.1.0",
            "ips": [{"address": "10.7.0.9/24", "gateway": "10.7.0.254"}, {"address": "fd07::9/64"}],
            "routes": [{"dst": "10.8.0.0/16"}],
            "dns": {"nameservers": ["10.7.0.53"]},
        },
    )
    fd = node.namespaces.make()
    stdin = delegated(odd={"kept": [1.5]})
    result = node.add(stdin, fd, ARGS="IgnoreUnknown=1;X=a b")
    assert node.plugin.stdin("ADD") == stdin
    env = node.plugin.env("ADD")
    assert (env["CNI_COMMAND"], env["CNI_CONTAINERID"], env["CNI_IFNAME"]) == ("ADD", "c1", "eth0")
    assert (env["CNI_NETNS"], env["CNI_ARGS"]) == (f"/run/netns/{fd}", "IgnoreUnknown=1;X=a b")
    assert [(item["address"], item["gateway"]) for item in result["ips"]] == [
        ("10.7.0.9/24", "10.7.0.254"),
        ("fd07::9/64", "fd07::1"),
    ]
    assert {"dst": "10.8.0.0/16", "gw": "10.7.0.254"} in result["routes"]
    assert result["dns"] == {"nameservers": ["10.7.0.53"]}
    assert node.reserved() == {}
    recorded = node.endpoints.get(OWNER)
    assert recorded is not None
    assert recorded.data_dir == ""


def test_an_old_delegates_shape_is_understood(node: Node) -> None:
    node.plugin.answers("ADD", {"ip4": {"ip": "10.7.0.9/24", "routes": [{"dst": "0.0.0.0/0"}]}})
    result = node.add(delegated(cniVersion="0.2.0"), node.namespaces.make())
    assert result["ip4"]["ip"] == "10.7.0.9/24"


@pytest.mark.parametrize(
    ("output", "exit_code", "code", "words"),
    [
        ({"code": 11, "msg": "no lease", "details": "dhcp"}, 1, 11, ("ipam-fake", "no lease", "dhcp")),
        ({"code": 104, "msg": "pool full"}, 3, 104, ("pool full",)),
        ("panic: oops", 2, 999, ("exit code 2", "panic: oops")),
        ("", 1, 999, ("exit code 1",)),
        ("[]", 1, 999, ("exit code 1",)),
        ('{"code": "x"}', 1, 999, ()),
        ("no json", 0, 6, ("ipam-fake",)),
        ({"ips": []}, 0, 7, ("no address",)),
        ({"ips": [{"address": "x"}]}, 0, 7, ("ipam-fake", "address")),
        ({}, 0, 7, ("no address",)),
    ],
)
def test_a_failing_delegate_is_told_del_and_its_error_is_passed_on(
    node: Node, output: object, exit_code: int, code: int, words: tuple[str, ...]
) -> None:
    node.plugin.answers("ADD", output, exit_code)
    answer = error(node.call("ADD", delegated(), node.namespaces.make()))
    assert answer["code"] == code
    for word in words:
        assert word in answer["msg"] + answer.get("details", "")
    assert node.plugin.calls == ["ADD", "DEL"]
    assert node.clean


def test_a_delegate_killed_by_a_signal_is_named(node: Node) -> None:
    node.plugin.runs("ADD", "kill -9 $$")
    answer = error(node.call("ADD", delegated(), node.namespaces.make()))
    assert (answer["code"], "signal 9" in answer["msg"]) == (999, True)


def test_a_delegate_that_hangs_is_given_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node.delegates, "_timeout_s", 0.1)
    node.plugin.runs("ADD", "exec sleep 30")
    answer = error(node.call("ADD", delegated(), node.namespaces.make()))
    assert (answer["code"], "0.1 s" in answer["msg"]) == (11, True)


def test_a_kernel_failure_after_a_delegate_gives_its_address_back(node: Node) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    node.pods.fail["attach"] = KernelError(12, "create interface", "eth0")
    assert error(node.call("ADD", delegated(), node.namespaces.make()))["code"] == 11
    assert node.plugin.calls == ["ADD", "DEL"]
    assert node.clean


def test_a_missing_delegate_is_named_with_the_path(node: Node) -> None:
    answer = error(node.call("ADD", conf(ipam={"type": "no-such"}), node.namespaces.make(), PATH="/a:/b"))
    assert answer["code"] == 7
    assert "no-such" in answer["msg"]
    assert "/a:/b" in answer["details"]


def test_what_a_delegate_says_on_stderr_is_logged(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.plugin.answers("ADD", {"ips": [{"address": "10.7.0.9/24"}]})
    node.plugin.runs("ADD", "echo careful >&2")
    node.add(delegated(), node.namespaces.make())
    assert "careful" in caplog.text


# many at once


def test_many_containers_at_once_get_addresses_of_their_own(node: Node) -> None:
    fds = [node.namespaces.make() for _ in range(40)]
    results: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append(node.add(conf(), fds[i], CONTAINERID=f"x{i}")))
        for i in range(40)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({item["ips"][0]["address"] for item in results}) == 40
    assert node.ops.busy() == frozenset()


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.command == "ADD"], ids=lambda case: case.label
)
def test_malformed_calls_leave_nothing(node: Node, case: Any) -> None:
    fd = node.namespaces.make()
    answer = error(node.ops.handle(environment_of(case), case.stdin, fd))
    assert answer["code"] == case.code
    assert node.clean
    assert node.pods.seen == []
    assert node.errors == [("ADD", case.code)]
