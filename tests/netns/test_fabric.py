"""The fabric driver on the real kernel: what it applies is what it and ip(8) read back."""

from __future__ import annotations

import os
import re
import select
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from pycni.kernel import netns as namespaces
from pycni.kernel import sysctl, vtep
from pycni.kernel.fabric import FabricDriver
from pycni.model.fabric import FabricState, VxlanLink
from pycni.model.family import Family
from pycni.model.tables import FdbEntry, FdbKey, Neighbour, NeighbourKey, Route, RouteKey
from pycni.wire import rtlink


def v4(text: str) -> bytes:
    return bytes(int(part) for part in text.split("."))


def v6(text: str) -> bytes:
    import ipaddress

    return ipaddress.ip_address(text).packed


MAC = b"\x02\x00\x00\x00\x00\x01"
V4 = VxlanLink(
    name="flannel.1", vni=1, port=8472, parent="eth0", local=v4("192.168.1.1"), mac=MAC, mtu=1450,
    addresses=((v4("10.244.0.0"), 32),),
)  # fmt: skip
V6 = VxlanLink(
    name="flannel-v6.1", vni=1, port=8472, parent="eth0", local=v6("fd00:1::1"), mac=MAC, mtu=1430,
    addresses=((v6("fd00:244::"), 128),),
)  # fmt: skip


def peer(link: VxlanLink, number: int) -> dict[str, dict[Any, Any]]:
    """The three entries of one remote lease."""
    family = Family.of_packed(link.local)
    mac = bytes([2, 0, 0, 0, 1, number])
    if family is Family.V4:
        subnet, remote, length = v4(f"10.244.{number}.0"), v4(f"192.168.1.{number}"), 24
    else:
        subnet, remote, length = v6(f"fd00:244:0:{number}::"), v6(f"fd00:1::{number}"), 64
    return {
        "routes": {RouteKey(family, 254, subnet, length, 0): Route(subnet, link.name, onlink=True)},
        "neighbours": {NeighbourKey(link.name, subnet): Neighbour(mac)},
        "fdb": {FdbKey(link.name, mac): FdbEntry(remote)},
    }


def state(*links: VxlanLink, peers: range = range(2, 5)) -> FabricState:
    tables: dict[str, dict[Any, Any]] = {"routes": {}, "neighbours": {}, "fdb": {}}
    for link in links:
        for number in peers:
            for table, entries in peer(link, number).items():
                tables[table].update(entries)
    return FabricState(links={link.name: link for link in links}, **tables)


@pytest.fixture
def run(netns: str) -> Iterator[Callable[..., str]]:
    def command(*words: str, check: bool = True) -> str:
        done = subprocess.run(
            [*namespaces.exec_prefix(netns), *words], capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise AssertionError(done.stderr)
        return done.stdout

    command("ip", "link", "set", "lo", "up")
    command("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
    command("ip", "addr", "add", "192.168.1.1/24", "dev", "eth0")
    command("ip", "addr", "add", "fd00:1::1/64", "dev", "eth0", "nodad")
    command("ip", "link", "set", "eth1", "up")
    command("ip", "link", "set", "eth0", "up")
    return command


@pytest.fixture
def inside(netns: str, run: Callable[..., str]) -> Iterator[Callable[[Callable[[], Any]], Any]]:
    fd = namespaces.open_netns(namespaces.path(netns))
    yield lambda fn: namespaces.run_in(fd, fn)
    os.close(fd)


@pytest.fixture
def driver(inside: Callable[[Callable[[], Any]], Any]) -> Iterator[FabricDriver]:
    made: FabricDriver = inside(FabricDriver)  # its calls come from outside, as a thread pool's would
    yield made
    made.close()


CASES = {"ipv4": state(V4), "ipv6": state(V6), "dual": state(V4, V6), "no peers": state(V4, peers=range(0))}


@pytest.mark.parametrize("desired", CASES.values(), ids=CASES)
def test_what_is_applied_is_read_back(driver: FabricDriver, desired: FabricState) -> None:
    assert driver.apply(desired, driver.read()) == []
    assert driver.read() == desired
    assert driver.apply(desired, desired) == []


@pytest.mark.parametrize("desired", CASES.values(), ids=CASES)
def test_everything_is_removed_again(
    driver: FabricDriver, run: Callable[..., str], desired: FabricState
) -> None:
    def shown() -> list[str]:
        """Routes and devices, without what the kernel adds and notes in its own time (fe80::/64, linkdown)."""
        routes = (run("ip", "route") + run("ip", "-6", "route")).replace("linkdown", "").splitlines()
        devices = [line.split()[0] for line in run("ip", "-br", "link").splitlines()]
        return [*(" ".join(line.split()) for line in routes if "fe80" not in line), *devices]

    before = shown()
    driver.apply(desired, driver.read())
    assert shown() != before
    assert driver.apply(FabricState(), driver.read()) == []
    assert shown() == before


def test_the_kernel_shows_what_flannel_would_have_made(driver: FabricDriver, run: Callable[..., str]) -> None:
    driver.apply(state(V4, peers=range(2, 3)), driver.read())
    assert "10.244.2.0/24 via 10.244.2.0 dev flannel.1 proto 112 onlink" in run("ip", "route")
    assert "10.244.2.0 dev flannel.1 lladdr 02:00:00:00:01:02 PERMANENT" in run("ip", "neigh")
    assert "02:00:00:00:01:02 dev flannel.1 dst 192.168.1.2 self permanent" in run("bridge", "fdb")
    device = run("ip", "-d", "link", "show", "flannel.1")
    assert re.search(r"vxlan id 1 local 192.168.1.1 dev eth0 .*dstport 8472 nolearning", device)
    assert "alias pycni" in device
    assert "fe80" not in run("ip", "-6", "addr", "show", "dev", "flannel.1")


@pytest.mark.parametrize("link", [V4, V6], ids=["ipv4", "ipv6"])
def test_a_peer_that_changed_is_changed_in_place(driver: FabricDriver, link: VxlanLink) -> None:
    first = state(link, peers=range(2, 4))
    driver.apply(first, driver.read())
    family = Family.of_packed(link.local)
    mac = b"\x02\x00\x00\x00\xff\xff"
    subnet = next(iter(first.neighbours)).address
    changed = msgspec.structs.replace(
        first,
        neighbours={**first.neighbours, NeighbourKey(link.name, subnet): Neighbour(mac)},
        fdb={**dict(list(first.fdb.items())[1:]), FdbKey(link.name, mac): FdbEntry(link.local)},
        routes={
            key: (route._replace(onlink=False, gateway=v4("192.168.1.9") if family is Family.V4 else v6("fd00:1::9"), device="eth0")
                  if key.destination == subnet else route)
            for key, route in first.routes.items()
        },
    )  # fmt: skip
    assert driver.apply(changed, first) == []
    assert driver.read() == changed


CHANGES = {
    "VNI": {"vni": 7},
    "UDP port": {"port": 4789},
    "underlay device": {"parent": "eth1"},
    "local address": {"local": v4("192.168.1.77")},
    "learning": {"learning": True},
    "GBP": {"gbp": True},
}


@pytest.mark.parametrize(("field", "change"), CHANGES.items(), ids=CHANGES)
def test_an_incompatible_device_is_made_again_with_its_entries(
    driver: FabricDriver,
    run: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    field: str,
    change: dict[str, Any],
) -> None:
    desired = state(V4)
    run("ip", "addr", "add", "192.168.1.77/24", "dev", "eth0")
    other = msgspec.structs.replace(desired, links={V4.name: msgspec.structs.replace(V4, **change)})
    driver.apply(other, driver.read())
    actual = driver.read()
    assert actual == other
    assert vtep.incompatible(V4, actual.links[V4.name]).startswith(f"{field} is ")
    assert driver.apply(desired, actual) == []
    assert f"flannel.1 is made again: {field} is " in caplog.text
    assert driver.read() == desired


@pytest.mark.parametrize("change", [{"mtu": 1300}, {"mac": b"\x02\x00\x00\x00\x00\x99"}], ids=["mtu", "mac"])
def test_mtu_and_mac_change_without_a_new_device(
    driver: FabricDriver, run: Callable[..., str], change: dict[str, Any]
) -> None:
    desired = state(V4)
    driver.apply(desired, driver.read())
    other = msgspec.structs.replace(desired, links={V4.name: msgspec.structs.replace(V4, **change)})
    before = run("ip", "-o", "link", "show", "flannel.1").split(":")[0]
    assert driver.apply(other, driver.read()) == []
    assert driver.read() == other
    assert run("ip", "-o", "link", "show", "flannel.1").split(":")[0] == before


def test_a_device_made_by_flannel_is_taken_over_without_a_gap(
    driver: FabricDriver, run: Callable[..., str]
) -> None:
    run(
        *"ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dev eth0 local 192.168.1.1 dstport 8472 nolearning".split()
    )
    run("ip", "link", "set", "flannel.1", "mtu", "1450", "up")
    run("ip", "addr", "add", "10.244.0.0/32", "dev", "flannel.1")
    run(*"ip neigh add 10.244.2.0 lladdr 02:00:00:00:01:02 dev flannel.1 nud permanent".split())
    run(*"bridge fdb add 02:00:00:00:01:02 dev flannel.1 dst 192.168.1.2 self permanent".split())
    run(*"ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink".split())
    run(*"ip route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink".split())
    before = run("ip", "-o", "link", "show", "flannel.1").split(":")[0]
    desired = state(V4)
    assert driver.apply(desired, driver.read(["flannel.1"])) == []
    assert driver.read() == desired
    assert run("ip", "-o", "link", "show", "flannel.1").split(":")[0] == before
    assert "10.244.99.0" not in run("ip", "route")


def test_foreign_routes_devices_and_neighbours_stay(driver: FabricDriver, run: Callable[..., str]) -> None:
    run(*"ip link add flannel.9 type vxlan id 9 dev eth0 dstport 4790".split())
    run(*"ip route add 10.99.0.0/16 via 192.168.1.200".split())
    run(*"ip neigh add 192.168.1.200 lladdr 02:00:00:00:09:09 dev eth0 nud permanent".split())
    driver.apply(state(V4), driver.read())
    driver.apply(FabricState(), driver.read())
    assert "10.99.0.0/16" in run("ip", "route")
    assert "192.168.1.200" in run("ip", "neigh")
    assert "flannel.9" in run("ip", "link")


def test_a_foreign_route_in_the_way_is_named_and_left(driver: FabricDriver, run: Callable[..., str]) -> None:
    run(*"ip route add 10.244.2.0/24 via 192.168.1.200".split())
    [failure] = driver.apply(state(V4), driver.read())
    assert "add route 10.244.2.0/24 via 10.244.2.0 dev flannel.1" in str(failure.error)
    assert "not ours" in str(failure.error)
    assert "10.244.2.0/24 via 192.168.1.200 dev eth0" in run("ip", "route")
    assert "10.244.3.0/24 via 10.244.3.0 dev flannel.1" in run("ip", "route")


def test_a_stale_memory_of_the_kernel_heals(driver: FabricDriver, run: Callable[..., str]) -> None:
    desired = state(V4)
    driver.apply(desired, driver.read())
    assert driver.apply(desired, FabricState(links=desired.links)) == []
    run("ip", "route", "del", "10.244.3.0/24")
    run("ip", "neigh", "del", "10.244.3.0", "dev", "flannel.1")
    assert driver.apply(FabricState(), desired) == []
    assert "flannel" not in run("ip", "route")


def test_a_vanished_underlay_is_named(driver: FabricDriver, run: Callable[..., str]) -> None:
    run("ip", "link", "del", "eth0")
    failures = driver.apply(state(V4, peers=range(2, 3)), driver.read())
    assert "find link eth0: ENODEV" in str(failures[0].error)


def test_two_route_metrics_of_ipv6_are_two_entries(driver: FabricDriver) -> None:
    key = RouteKey(Family.V6, 254, v6("fd00:77::"), 64, 0)
    desired = FabricState(
        routes={
            key: Route(v6("fd00:1::7"), "eth0"),
            key._replace(metric=50): Route(v6("fd00:1::8"), "eth0"),
        }
    )
    assert driver.apply(desired, driver.read()) == []
    assert driver.read() == desired
    changed = msgspec.structs.replace(desired, routes={**desired.routes, key: Route(v6("fd00:1::9"), "eth0")})
    assert driver.apply(changed, desired) == []
    assert driver.read() == changed


def test_a_link_of_another_kind_with_our_name_is_refused(
    driver: FabricDriver, run: Callable[..., str]
) -> None:
    run("ip", "link", "add", "flannel.1", "type", "bridge")
    failures = driver.apply(state(V4, peers=range(0)), driver.read(["flannel.1"]))
    assert "flannel.1" in str(failures[0].error)
    assert "bridge" in run("ip", "-d", "link", "show", "flannel.1")


def test_link_messages_decode_every_link(netns: str, run: Callable[..., str]) -> None:
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        with namespaces.socket_in(fd) as sock:
            names = {rtlink.parse_link(msg).name for msg in sock.dump(rtlink.dump_links())}
    finally:
        os.close(fd)
    assert names == {"lo", "eth0", "eth1"}


def test_a_foreign_route_that_leads_the_same_way_becomes_ours(
    driver: FabricDriver, run: Callable[..., str]
) -> None:
    """flannel's host-gw routes, before a takeover."""
    run(*"ip route add 10.244.2.0/24 via 192.168.1.2 dev eth0".split())
    run(*"ip -6 route add fd00:244:0:2::/64 via fd00:1::2 dev eth0".split())
    desired = FabricState(
        routes={
            RouteKey(Family.V4, 254, v4("10.244.2.0"), 24, 0): Route(v4("192.168.1.2"), "eth0"),
            RouteKey(Family.V6, 254, v6("fd00:244:0:2::"), 64, 0): Route(v6("fd00:1::2"), "eth0"),
        }
    )
    assert driver.apply(desired, driver.read()) == []
    assert driver.read() == desired
    assert run("ip", "route").count("10.244.2.0/24") == 1
    assert run("ip", "-6", "route").count("fd00:244:0:2::/64") == 1


def test_a_gateway_appended_by_another_tool_is_mended(driver: FabricDriver, run: Callable[..., str]) -> None:
    """NLM_F_APPEND turns our IPv6 route into a multipath one."""
    desired = state(V6, peers=range(2, 3))
    driver.apply(desired, driver.read())
    run(*"ip -6 route append fd00:244:0:2::/64 via fd00:244:0:9:: dev flannel-v6.1 onlink proto 112".split())
    actual = driver.read()
    assert actual != desired
    assert driver.apply(desired, actual) == []
    assert driver.read() == desired
    assert "nexthop" not in run("ip", "-6", "route")


def test_flooding_set_up_by_another_tool_is_removed_whole(
    driver: FabricDriver, run: Callable[..., str]
) -> None:
    desired = state(V4, peers=range(2, 3))
    driver.apply(desired, driver.read())
    for number in (7, 8, 9):
        run(
            *f"bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 192.168.1.{number} self permanent".split()
        )
    assert driver.apply(desired, driver.read()) == []
    assert "00:00:00:00:00:00" not in run("bridge", "fdb")
    assert driver.read() == desired


def test_removing_an_ipv6_route_leaves_the_one_of_another_metric(driver: FabricDriver) -> None:
    key = RouteKey(Family.V6, 254, v6("fd00:77::"), 64, 0)
    other = key._replace(metric=50)
    both = FabricState(routes=dict.fromkeys((key, other), Route(v6("fd00:1::7"), "eth0")))
    one = FabricState(routes={other: Route(v6("fd00:1::7"), "eth0")})
    driver.apply(both, driver.read())
    assert driver.apply(one, both) == []
    assert driver.read() == one


@pytest.mark.parametrize("family", list(Family), ids=["ipv4", "ipv6"])
def test_a_blackhole_becomes_a_route_and_back(driver: FabricDriver, family: Family) -> None:
    subnet, gateway = (
        (v4("10.77.0.0"), v4("192.168.1.7")) if family is Family.V4 else (v6("fd00:77::"), v6("fd00:1::7"))
    )
    key = RouteKey(family, 254, subnet, 48 if family is Family.V6 else 16, 0)
    values = [
        Route(None, None, kind="blackhole"),
        Route(gateway, "eth0"),
        Route(None, None, kind="blackhole"),
    ]
    actual = driver.read()
    for value in values:
        desired = FabricState(routes={key: value})
        assert driver.apply(desired, actual) == []
        actual = driver.read()
        assert actual == desired
    assert driver.apply(FabricState(), actual) == []
    assert driver.read() == FabricState()


DAMAGE = {
    "route deleted": "ip route del 10.244.3.0/24",
    "neighbour deleted": "ip neigh del 10.244.3.0 dev flannel.1",
    "forwarding entry deleted": "bridge fdb del 02:00:00:00:01:03 dev flannel.1 dst 192.168.1.3",
    "neighbour changed": "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:99:99 dev flannel.1 nud permanent",
    "neighbour no longer permanent": "ip neigh replace 10.244.3.0 lladdr 02:00:00:00:01:03 dev flannel.1 nud stale",
    "route changed": "ip route replace 10.244.3.0/24 via 10.244.9.0 dev flannel.1 onlink proto 112",
    "route made foreign": "ip route replace 10.244.3.0/24 via 10.244.3.0 dev flannel.1 onlink proto static",
    "device down": "ip link set flannel.1 down",
    "device deleted": "ip link del flannel.1",
    "MAC changed": "ip link set flannel.1 address 02:00:00:00:77:77",
    "MTU changed": "ip link set flannel.1 mtu 1400",
    "alias changed": "ip link set flannel.1 alias mine",
    "address deleted": "ip addr del 10.244.0.0/32 dev flannel.1",
    "address added": "ip addr add 10.7.7.7/32 dev flannel.1",
    "stray entry": "bridge fdb add 02:00:00:00:88:88 dev flannel.1 dst 192.168.1.88 self permanent",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_another_tool_did_is_undone(driver: FabricDriver, run: Callable[..., str], damage: str) -> None:
    desired = state(V4)
    driver.apply(desired, driver.read())
    run(*damage.split())
    actual = driver.read(desired.links.keys())
    assert actual != desired
    assert driver.apply(desired, actual) == []
    assert driver.read() == desired


def test_ipv6_switched_off_by_default_is_switched_on_for_the_device(
    driver: FabricDriver, run: Callable[..., str], inside: Callable[[Callable[[], Any]], Any]
) -> None:
    inside(lambda: sysctl.put("net.ipv6.conf.default.disable_ipv6", 1))
    assert driver.apply(state(V6), driver.read()) == []
    assert driver.read() == state(V6)
    assert inside(lambda: sysctl.get("net/ipv6/conf/flannel-v6.1/accept_ra")) == "0"
    assert inside(lambda: sysctl.get("net/ipv6/conf/eth0/accept_ra")) == "1"


def test_an_ip_command_sees_no_gap_while_the_gateway_changes(driver: FabricDriver, netns: str) -> None:
    """Replacement is announced as one change, never as a removal."""
    key = RouteKey(Family.V4, 254, v4("10.77.0.0"), 16, 0)
    first = FabricState(routes={key: Route(v4("192.168.1.7"), "eth0")})
    second = FabricState(routes={key: Route(v4("192.168.1.8"), "eth0")})
    driver.apply(first, driver.read())
    with subprocess.Popen(
        [*namespaces.exec_prefix(netns), "stdbuf", "-oL", "ip", "monitor", "route"],
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout is not None
        for number in range(100):  # until the first change is seen, so that the second one is as well
            driver.apply(second if number % 2 else first, first if number % 2 else second)
            if select.select([watching.stdout], [], [], 0.05)[0]:
                break
        driver.apply(FabricState(), second if number % 2 else first)
        lines = []
        for line in watching.stdout:
            lines.append(line)
            if line.startswith("Deleted"):
                break
        watching.kill()
    assert [line.startswith("Deleted") for line in lines] == [False] * (len(lines) - 1) + [True]
    assert len(lines) > 1
