"""The probes see what packets see: real namespaces, hand-broken paths."""

from __future__ import annotations

import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pycni.kernel import netns as kernel_netns
from pycni.lab import netns
from pycni.lab.checks import Check
from pycni.lab.matrix import plan
from pycni.lab.probe import KINDS, Prober
from pycni.lab.stations import Host
from pycni.lab.topology import LabSpec, fabric_namespace, node_name, node_namespace, underlay_addresses
from pycni.lab.traffic import Traffic
from pycni.model.family import Family

FOUND = dict[tuple[str, str, str, str], str]


def hosts(spec: LabSpec, mtu: int = 1500) -> list[Host]:
    return [
        Host(
            node_name(index),
            kernel_netns.path(node_namespace(spec.name, node_name(index))),
            {family: str(address.ip) for family, address in underlay_addresses(spec, index).items()},
            mtu,
        )
        for index in range(1, spec.nodes + 1)
    ]


def run(spec: LabSpec, node: int, *words: str) -> None:
    subprocess.run(
        kernel_netns.exec_prefix(node_namespace(spec.name, node_name(node))) + list(words),
        check=True,
        capture_output=True,
    )


def failures(ends: list[Host], timeout: float = 1.0) -> FOUND:
    """(from, to, family, kind) -> reason of every failed check between the hosts, the first one being no pod."""
    checks = plan(ends[:1], ends[1:])
    with Prober(ends, timeout) as prober:
        reasons = prober.run(checks)
    assert list(reasons) == checks, "every check has an outcome, in the order asked"
    return {
        (check.source, check.target, check.family.label, check.kind): reason
        for check, reason in reasons.items()
        if reason
    }


def pairs(found: FOUND) -> set[tuple[str, str]]:
    return {key[:2] for key in found}


def test_a_sound_network_passes_in_every_kind_and_family(wired: LabSpec) -> None:
    assert failures(hosts(wired), timeout=2) == {}


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_dropped_udp_fails_udp_alone_to_and_from_that_node(wired: LabSpec, family: Family) -> None:
    protocol = "ipv4" if family is Family.V4 else "ipv6"
    rules = (
        "add table inet broken; add chain inet broken i { type filter hook input priority 0; };"
        f"add rule inet broken i meta nfproto {protocol} meta l4proto udp drop"
    )
    run(wired, 2, "nft", rules)
    found = failures(hosts(wired))
    assert pairs(found) == {("node1", "node2"), ("node2", "node1"), ("node2", "node3"), ("node3", "node2")}
    assert {key[2:] for key in found} == {(family.label, "udp")}
    assert set(found.values()) == {"no answer within 1 s"}


def test_a_smaller_mtu_on_the_way_fails_only_full_packets(wired: LabSpec) -> None:
    with netns.socket_in(fabric_namespace(wired.name)):
        subprocess.run(
            [
                *kernel_netns.exec_prefix(fabric_namespace(wired.name)),
                "ip",
                "link",
                "set",
                "node3",
                "mtu",
                "1400",
            ],
            check=True,
        )
    found = failures(hosts(wired))
    assert {key[3] for key in found} == {"mtu"}
    assert pairs(found) == {("node1", "node3"), ("node3", "node1"), ("node2", "node3"), ("node3", "node2")}


def test_an_interface_smaller_than_promised_is_told_at_once(wired: LabSpec) -> None:
    run(wired, 3, "ip", "link", "set", "eth0", "mtu", "1400")
    found = failures(hosts(wired))
    assert found["node3", "node1", "ipv4", "mtu"] == "cannot send: Message too long"
    assert found["node3", "node1", "ipv6", "mtu"] == "cannot send: Message too long"


def test_a_missing_route_names_itself(wired: LabSpec) -> None:
    run(wired, 2, "ip", "route", "del", "172.20.0.0/16")
    found = failures(hosts(wired))
    assert found["node2", "node3", "ipv4", "udp"] == "cannot send: Network is unreachable"
    assert found["node2", "node3", "ipv4", "tcp"] == "Network is unreachable"
    assert {key[2] for key in found} == {"ipv4"}


@pytest.mark.parametrize(
    ("reject", "reason"),
    [
        pytest.param("reject with icmpx type port-unreachable", "port unreachable", id="port"),
        pytest.param("reject with icmpx type admin-prohibited", "prohibited by a filter", id="prohibited"),
    ],
)
def test_an_icmp_error_is_the_reason_and_ends_the_wait(wired: LabSpec, reject: str, reason: str) -> None:
    rules = (
        "add table inet broken; add chain inet broken i { type filter hook input priority 0; };"
        f"add rule inet broken i meta l4proto udp {reject}"
    )
    run(wired, 3, "nft", rules)
    check = Check("node2", "node3", Family.V4, "udp")
    started = time.monotonic()
    with Prober(hosts(wired), timeout=30) as prober:
        assert prober.run([check]) == {check: f"172.20.0.3 says: {reason}"}
    assert time.monotonic() - started < 15


def test_changed_bytes_are_noticed(wired: LabSpec) -> None:
    rules = (
        "add table inet broken; add chain inet broken i { type filter hook prerouting priority 0; };"
        "add rule inet broken i ip saddr 172.20.0.1 udp length > 900 @th,4000,16 set 0xbeef"
    )
    run(wired, 2, "nft", rules)
    found = failures(hosts(wired))
    assert found["node1", "node2", "ipv4", "udp"].startswith("answer differs from what was sent at byte ")
    assert {key[3] for key in found} == {"udp"}


def test_a_host_without_its_namespace_or_address_fails_and_the_rest_is_checked(wired: LabSpec) -> None:
    first, second, third = hosts(wired)
    gone = third._replace(namespace="/run/netns/pyt-no-such")
    moved = second._replace(addresses={Family.V4: "172.20.0.99", Family.V6: second.addresses[Family.V6]})
    found = failures([first, moved, gone])
    assert found["node1", "node3", "ipv4", "ping"].startswith(
        "node3 172.20.0.3 is not usable: open network namespace"
    )
    assert (
        found["node1", "node2", "ipv4", "tcp"]
        == "node2 172.20.0.99 is not usable: Cannot assign requested address"
    )
    assert ("node1", "node2", "ipv6", "tcp") not in found


def test_a_run_leaves_no_sockets_behind(wired: LabSpec) -> None:
    failures(hosts(wired))
    for index in (1, 2, 3):
        words = kernel_netns.exec_prefix(node_namespace(wired.name, node_name(index)))
        listed = subprocess.run([*words, "ss", "-Haun"], capture_output=True, text=True, check=True)
        listed_tcp = subprocess.run([*words, "ss", "-Hatn"], capture_output=True, text=True, check=True)
        assert (listed.stdout, listed_tcp.stdout) == ("", "")


def test_a_prober_can_run_again_and_sees_the_change(wired: LabSpec) -> None:
    ends = hosts(wired)
    check = Check("node1", "node2", Family.V4, "ping")
    with Prober(ends, 0.5) as prober:
        assert prober.run([check]) == {check: ""}
        run(wired, 2, "ip", "link", "set", "eth0", "down")
        assert prober.run([check]) == {check: "no answer within 0.5 s"}
        run(wired, 2, "ip", "link", "set", "eth0", "up")
        # The neighbour may be asked for anew first, which a busy machine can delay past one probe's patience.
        assert any(prober.run([check]) == {check: ""} for _ in range(10))


def test_probers_that_know_each_others_doors_check_across(wired: LabSpec) -> None:
    here, there, gone = hosts(wired)
    gone = gone._replace(namespace="/run/netns/pyt-no-such")
    checks = [
        Check("node1", name, family, kind)
        for name in ("node2", "node3")
        for family in Family
        for kind in KINDS
    ]
    read, write = os.pipe()
    with Prober([here], 2) as asking, Prober([there, gone], 2) as serving, ThreadPoolExecutor(1) as pool:
        asking.meet(serving.doors())
        answering = pool.submit(serving.serve, read)
        reasons = asking.run(checks)
        os.close(write)
        answering.result(5)
        os.close(read)
    found = {check.target: reasons[check] for check in checks}
    assert {check.target for check in checks if not reasons[check]} == {"node2"}
    assert found["node2"] == ""
    assert found["node3"].startswith("node3 fd20::3 is not usable: open network namespace")


@pytest.mark.parametrize("family", list(Family), ids=lambda family: family.label)
def test_traffic_counts_exactly_what_is_lost(wired: LabSpec, family: Family) -> None:
    first, second, _third = hosts(wired)
    with Traffic(first.namespace, second.addresses[family], 0.002) as traffic:
        assert traffic.wait_answered(20)
    calm = traffic.report()
    assert calm.lost == 0
    assert calm.sent >= 20
    protocol = "ip protocol icmp" if family is Family.V4 else "ip6 nexthdr icmpv6 icmpv6 type echo-request"
    rules = (
        "add table inet broken; add chain inet broken i { type filter hook input priority 0; };"
        f"add rule inet broken i {protocol} numgen inc mod 4 == 0 drop"
    )
    run(wired, 2, "nft", rules)
    with Traffic(first.namespace, second.addresses[family], 0.002) as traffic:
        assert traffic.wait_answered(60)
    lossy = traffic.report()
    assert lossy.lost == pytest.approx(lossy.sent / 4, abs=2)
