"""One directory, two programs: the reference plugin host-local and our pool honour and release each other's work."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pycni.errors import IpamError
from pycni.ipam.pool import Ipam
from pycni.model.cni import AddressRange
from pycni.model.endpoint import Owner

PLUGIN = "/usr/lib/cni/host-local"

FAMILIES = [
    pytest.param(("10.1.2.0/29",), id="v4"),
    pytest.param(("fd00:1::/125",), id="v6"),
    pytest.param(("10.1.2.0/29", "fd00:1::/125"), id="dual"),
]


def ranges(subnets: tuple[str, ...]) -> tuple[tuple[AddressRange, ...], ...]:
    """As host-local fills in its defaults: from the second address to the last that is no broadcast."""
    nets = [ip_network(subnet) for subnet in subnets]
    return tuple(
        (
            AddressRange(
                subnet=net, start=net[1], end=net[-2] if net.version == 4 else net[-1], gateway=net[1]
            ),
        )
        for net in nets
    )


class HostLocal:
    """Runs the plugin on the directory."""

    def __init__(self, data_dir: Path, subnets: tuple[str, ...]) -> None:
        ipam = {
            "type": "host-local",
            "dataDir": str(data_dir),
            "ranges": [[{"subnet": subnet}] for subnet in subnets],
        }
        self.conf = json.dumps(
            {"cniVersion": "1.0.0", "name": "net", "type": "bridge", "ipam": ipam}
        ).encode()

    def run(self, command: str, container: str, ifname: str = "eth0", args: str = "") -> dict[str, Any]:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": container,
            "CNI_IFNAME": ifname,
            "CNI_NETNS": "/proc/self/ns/net",
            "CNI_PATH": "/usr/lib/cni",
            "CNI_ARGS": args,
        }
        done = subprocess.run(
            [PLUGIN], input=self.conf, env=environment, capture_output=True, check=False, timeout=20
        )
        found: dict[str, Any] = json.loads(done.stdout or b"{}")
        found["exit"] = done.returncode
        return found

    def add(self, container: str, **kwargs: str) -> list[str]:
        found = self.run("ADD", container, **kwargs)
        assert found["exit"] == 0, found
        return [ip["address"] for ip in found["ips"]]


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Ipam]:
    pool = Ipam(str(tmp_path), "net")
    yield pool
    pool.close()


@pytest.mark.parametrize("subnets", FAMILIES)
def test_taking_turns_we_go_round_together_and_never_meet(
    tmp_path: Path, ours: Ipam, subnets: tuple[str, ...]
) -> None:
    theirs, sets = HostLocal(tmp_path, subnets), ranges(subnets)
    seen: list[list[str]] = []
    for turn in range(4):
        if turn % 2:
            seen.append([str(made.address) for made in ours.reserve(Owner("net", f"c{turn}", "eth0"), sets)])
        else:
            seen.append(theirs.add(f"c{turn}"))
    nets = [ip_network(subnet) for subnet in subnets]
    assert seen == [[f"{net[turn + 2]}/{net.prefixlen}" for net in nets] for turn in range(4)]


@pytest.mark.parametrize("subnets", FAMILIES)
def test_the_same_ranges_are_exhausted_at_the_same_address(
    tmp_path: Path, ours: Ipam, subnets: tuple[str, ...]
) -> None:
    theirs, sets = HostLocal(tmp_path, subnets), ranges(subnets)
    first = 0
    while theirs.run("ADD", f"c{first}")["exit"] == 0:
        first += 1
    with pytest.raises(IpamError) as caught:
        ours.reserve(Owner("net", "late", "eth0"), sets)
    assert caught.value.exhausted
    assert len(ours.owners()) >= first
    assert all(status.free == 0 for status in ours.status(sets)[:1])


@pytest.mark.parametrize("subnets", FAMILIES)
def test_we_release_what_host_local_reserved(tmp_path: Path, ours: Ipam, subnets: tuple[str, ...]) -> None:
    theirs = HostLocal(tmp_path, subnets)
    addresses = theirs.add("abc")
    assert ours.owners().keys() == {Owner("net", "abc", "eth0")}
    assert ours.reserve(Owner("net", "abc", "eth0"), ranges(subnets))[0].address == ip_interface(addresses[0])
    released = ours.release(Owner("net", "abc", "eth0"))
    assert {str(address) for address in released} == {address.split("/")[0] for address in addresses}
    assert theirs.run("CHECK", "abc")["exit"] != 0


@pytest.mark.parametrize("subnets", FAMILIES)
def test_host_local_releases_what_we_reserved(tmp_path: Path, ours: Ipam, subnets: tuple[str, ...]) -> None:
    theirs = HostLocal(tmp_path, subnets)
    who = Owner("net", "abc", "eth0")
    before = ours.reserve(who, ranges(subnets))
    assert theirs.run("CHECK", "abc")["exit"] == 0, "host-local finds it as its own"
    assert theirs.run("DEL", "abc")["exit"] == 0
    assert ours.addresses(who) == ()
    assert ours.reserve(who, ranges(subnets)) != before


def test_host_local_refuses_an_address_we_gave(tmp_path: Path, ours: Ipam) -> None:
    ours.reserve(Owner("net", "abc", "eth0"), ranges(("10.1.2.0/29",)), [ip_address("10.1.2.5")])
    found = HostLocal(tmp_path, ("10.1.2.0/29",)).run("ADD", "x", args="IP=10.1.2.5")
    assert found["exit"] == 1
    assert "10.1.2.5" in found["msg"]


def test_a_release_by_host_local_is_seen_at_once_although_the_file_is_made_anew(
    tmp_path: Path, ours: Ipam
) -> None:
    theirs = HostLocal(tmp_path, ("10.1.2.0/30",))
    sets = ranges(("10.1.2.0/30",))
    for turn in range(5):
        ours.reserve(Owner("net", f"ours{turn}", "eth0"), sets)
        assert theirs.run("DEL", f"ours{turn}")["exit"] == 0
        theirs.add(f"theirs{turn}")
        assert ours.holder(ip_address("10.1.2.2")) == Owner("net", f"theirs{turn}", "eth0")
        assert ours.release(Owner("net", f"theirs{turn}", "eth0")) == (ip_address("10.1.2.2"),)


def test_both_at_once_never_hand_out_an_address_twice(tmp_path: Path, ours: Ipam) -> None:
    subnets = ("10.1.2.0/24",)
    theirs, sets = HostLocal(tmp_path, subnets), ranges(subnets)
    seen: list[str] = []

    def run_theirs(start: int) -> None:
        for number in range(12):
            seen.extend(theirs.add(f"t{start}.{number}"))
            if number % 3 == 0:
                address = seen and theirs.run("DEL", f"t{start}.{number}")
                assert address

    def run_ours() -> None:
        for number in range(60):
            who = Owner("net", f"o{number}", "eth0")
            seen.append(str(ours.reserve(who, sets)[0].address))
            if number % 3 == 0:
                ours.release(who)

    threads = [threading.Thread(target=run_theirs, args=(start,)) for start in range(2)]
    threads.append(threading.Thread(target=run_ours))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 84
    assert len(set(seen)) == 84, "round robin over 253 addresses: none may come twice, released or not"
    assert len(ours.owners()) == 84 - 8 - 20
    named = {name for name in (entry.name for entry in (tmp_path / "net").iterdir()) if name[0].isdigit()}
    assert named == {str(address) for held in ours.owners().values() for address in held}
