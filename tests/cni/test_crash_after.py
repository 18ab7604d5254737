"""What an agent finds when it starts: a reboot, lost and torn records, reservations without an owner. All comes right."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.kernel import netns
from tests.cni.callers import Pod, Slot, addresses_in, reaches_gateways
from tests.cni.node import AgentNode
from tests.cni.remains import NET, OPTIONS, TIGHT, leftovers, sh, until

MAPPED = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]}
NUMBERS = itertools.count()
Attach = Callable[..., Pod]


@pytest.fixture
def attach(quick: AgentNode) -> Iterator[Attach]:
    """Attaches pods in namespaces of their own; afterwards they are ended and nothing may be left."""
    pods: list[Pod] = []

    def make(conf: dict[str, Any] | None = None) -> Pod:
        number = next(NUMBERS)
        slot = Slot(f"{quick.name}a{number}", conf or NET)
        netns.create(slot.name)
        pods.append(Pod(slot, f"a{number}", {"ips": []}))
        code, result = quick.cni("ADD", slot.conf, CONTAINERID=f"a{number}", NETNS=slot.path, IFNAME="eth0")
        assert code == 0, result
        pods[-1] = Pod(slot, f"a{number}", result)
        return pods[-1]

    try:
        yield make
        for pod in pods:
            assert delete(quick, pod) == (0, None)
        until(lambda: not any(leftovers(quick).values()), lambda: leftovers(quick))
        assert "Traceback" not in (quick.folder / "pycnid.log").read_text()
    finally:
        for pod in pods:
            if os.path.exists(pod.slot.path):
                netns.delete(pod.slot.name)


def delete(node: AgentNode, pod: Pod) -> tuple[int, Any]:
    """DEL with nothing but names."""
    return node.cni("DEL", pod.slot.conf, CONTAINERID=pod.container, NETNS="", IFNAME="eth0")


def record(node: AgentNode, pod: Pod) -> Path:
    """The file of a pod's endpoint."""
    (found,) = (node.folder / "state" / "endpoints").glob(f"{pod.slot.conf['name']}-{pod.container}-*.json")
    return found


def said(node: AgentNode, since: int) -> str:
    return (node.folder / "pycnid.log").read_text()[since:]


def length(node: AgentNode) -> int:
    return len((node.folder / "pycnid.log").read_text())


@pytest.mark.parametrize("state", ["ready", "pending", "dying"])
def test_after_a_reboot_everything_is_freed_without_any_call(
    quick: AgentNode, attach: Attach, state: str
) -> None:
    pods = [attach(), attach(TIGHT), attach({**NET, "ipMasq": True, "runtimeConfig": MAPPED})]
    quick.kill_agent()
    for pod in pods:
        file = record(quick, pod)
        known = json.loads(file.read_text())
        file.write_text(json.dumps({**known, "boot_id": "another", "state": state}).ljust(4000))
        netns.delete(pod.slot.name)
    sh(quick, "nft flush ruleset; ip link del cni0; ip link del cni77; ip link del flannel.1")
    since = length(quick)
    quick.start_agent(*OPTIONS)
    until(lambda: not any(leftovers(quick).values()), lambda: leftovers(quick))
    text = said(quick, since)
    for pod in pods:
        assert (
            len(
                re.findall(
                    rf"(removing|left {state}).*\b{pod.container}\b|\b{pod.container}\b.*(removing)", text
                )
            )
            == 1
        ), text
    if state == "ready":
        assert text.count("it is of boot 'another' and its namespace is not there") == len(pods)
    assert reaches_gateways(attach())


def test_a_pod_that_lives_is_never_collected_whatever_is_lost(quick: AgentNode, attach: Attach) -> None:
    bare, unreserved, reborn, lost_both = attach(), attach(TIGHT), attach(), attach(TIGHT)
    quick.kill_agent()
    record(quick, bare).unlink()
    record(quick, lost_both).unlink()
    for address in unreserved.addresses | lost_both.addresses:
        (quick.ipam / "tight" / address).unlink()
    known = json.loads(record(quick, reborn).read_text())
    record(quick, reborn).write_text(json.dumps({**known, "boot_id": "another"}).ljust(2048))
    quick.start_agent(*OPTIONS)
    until(lambda: unreserved.addresses <= quick.reservations("tight"), lambda: leftovers(quick))
    time.sleep(1.5)
    assert bare.addresses | reborn.addresses <= quick.reservations("net")
    for pod in (bare, unreserved, reborn, lost_both):
        assert addresses_in(pod.slot.name) == pod.addresses
        assert reaches_gateways(pod)
    # Ended by name alone, also the one of which no file was left (the fixture does it and looks).


def test_a_reservation_whose_pod_is_gone_without_any_record_is_freed(
    quick: AgentNode, attach: Attach
) -> None:
    pod = attach()
    quick.kill_agent()
    record(quick, pod).unlink()
    netns.delete(pod.slot.name)
    since = length(quick)
    quick.start_agent(*OPTIONS)
    assert quick.cni("STATUS", NET) == (0, None)  # only networks somebody uses are looked at
    until(lambda: not quick.reservations("net"), lambda: leftovers(quick))
    assert said(quick, since).count("discarded the reservation") == len(pod.addresses)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda raw: raw[: len(raw.rstrip()) // 2],
    "zeroes": lambda raw: bytes(len(raw)),
    "noise": lambda raw: bytes(255 - byte for byte in raw),
    "an array": lambda _: b"[]",
    "another version": lambda raw: raw.replace(b'"version":1', b'"version":9'),
    "a bad address": lambda raw: re.sub(rb'"addresses":\["[^"]*"', b'"addresses":["10.0.0.300/24"', raw),
    "another owner": lambda raw: raw.replace(b'"ifname":"eth0"', b'"ifname":"eth9"'),
    "conf is not JSON": lambda raw: re.sub(rb'"conf":"[^"]*"', b'"conf":"e30="', raw),
    "a bad host link": lambda raw: re.sub(rb'"host_ifname":"[^"]*"', b'"host_ifname":"../x"', raw),
}


def test_damaged_records_are_put_aside_and_their_pods_live_on(quick: AgentNode, attach: Attach) -> None:
    pods = {what: attach(TIGHT) for what in DAMAGE}
    quick.kill_agent()
    for what, damage in DAMAGE.items():
        file = record(quick, pods[what])
        before = file.read_bytes()
        file.write_bytes(damage(before))
        assert file.read_bytes() != before
    folder = quick.folder / "state" / "endpoints"
    (folder / "x.next").write_bytes(b"{")
    (folder / "y.json").mkdir()
    (folder / "z.json").symlink_to("/nonexistent")
    (folder / "README").write_text("by hand")
    since = length(quick)
    quick.start_agent(*OPTIONS)
    new = attach(TIGHT)
    assert not any(new.addresses & pod.addresses for pod in pods.values())
    time.sleep(1.0)
    for what, pod in pods.items():
        assert addresses_in(pod.slot.name) == pod.addresses, what
        assert pod.addresses <= quick.reservations("tight"), what
        assert reaches_gateways(pod), what
    assert len(list(folder.glob("*.bad"))) >= 8
    for name in ("empty", "zeroes"):
        assert (
            len([line for line in said(quick, since).splitlines() if f"-{pods[name].container}-" in line])
            == 1
        )
    for file in folder.iterdir():
        if file.suffix == ".bad" or file.name in ("README", "y.json", "z.json"):
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()


def test_torn_files_of_the_ipam_stop_nothing(quick: AgentNode, attach: Attach) -> None:
    pod = attach(TIGHT)
    (address,) = pod.addresses
    quick.kill_agent()
    folder = quick.ipam / "tight"
    (folder / address).write_bytes(b"")
    (folder / "10.77.0.20").write_bytes(b"")
    (folder / "10.77.0.21").write_bytes(b"\xff\xfe\0\0")
    (folder / "10.77.0.22").mkdir()
    (folder / "10.77.0.23").symlink_to("/nonexistent")
    (folder / "last_reserved_ip.0").write_bytes(b"\0\0\0\xff10.77.0")
    (folder / "10.77.0.999").write_text("x")
    (folder / "lock").unlink()
    quick.start_agent(*OPTIONS)
    others = [attach(TIGHT) for _ in range(8)]
    given = {address for other in others for address in other.addresses}
    assert len(given) == 8
    assert not given & {address, *(f"10.77.0.{n}" for n in range(20, 24))}
    assert reaches_gateways(pod)
    (folder / "10.77.0.22").rmdir()
    (folder / "10.77.0.23").unlink()
    (folder / "10.77.0.999").unlink()
    # Torn ones with nobody behind them go by themselves.
    until(lambda: not {"10.77.0.20", "10.77.0.21"} & quick.reservations("tight"), lambda: leftovers(quick))
    assert addresses_in(pod.slot.name) == {address}
    assert address in quick.reservations("tight")
