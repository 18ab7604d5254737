"""Sysctls and the checksum offload, read and set inside a namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pycni.errors import KernelError
from pycni.kernel import ethtool, sysctl
from pycni.kernel import netns as namespaces

Inside = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def inside(netns: str) -> Iterator[Inside]:
    fd = namespaces.open_netns(namespaces.path(netns))
    yield lambda fn: namespaces.run_in(fd, fn)
    os.close(fd)


def test_a_switch_is_set_in_the_threads_namespace_only(inside: Inside) -> None:
    name = "net.ipv4.conf.all.arp_announce"
    outside = sysctl.get(name)
    wanted = (int(outside) + 1) % 3
    assert inside(lambda: sysctl.put(name, wanted)) is True
    assert inside(lambda: sysctl.get(name)) == str(wanted)
    assert inside(lambda: sysctl.put(name, wanted)) is False
    assert sysctl.get(name) == outside


def test_a_device_name_with_dots_is_written_with_slashes(netns: str, inside: Inside) -> None:
    subprocess.run(["ip", "-n", netns, "link", "add", "flannel.1", "type", "bridge"], check=True)
    assert inside(lambda: sysctl.put("net/ipv4/conf/flannel.1/rp_filter", 2)) is True
    assert inside(lambda: sysctl.get("net/ipv4/conf/flannel.1/rp_filter")) == "2"


def test_unknown_switches_and_bad_values_are_named(inside: Inside) -> None:
    with pytest.raises(KernelError, match=r"read sysctl net\.ipv4\.no_such: ENOENT"):
        sysctl.get("net.ipv4.no_such")
    with pytest.raises(KernelError, match=r"set sysctl to many net\.ipv4\.ip_forward: EINVAL"):
        inside(lambda: sysctl.put("net.ipv4.ip_forward", "many"))


def test_the_checksum_offload_is_switched_as_ethtool_shows_it(netns: str, inside: Inside) -> None:
    subprocess.run(
        ["ip", "-n", netns, *"link add v0 type vxlan id 5 dstport 4789 local 127.0.0.1 dev lo".split()],
        check=True,
    )

    def shown() -> str:
        words = [*namespaces.exec_prefix(netns), "ethtool", "-k", "v0"]
        listing = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return next(line.split()[1] for line in listing.splitlines() if "tx-checksum-ip-generic" in line)

    assert inside(lambda: ethtool.tx_checksum("v0")) is True
    assert shown() == "on"
    assert inside(lambda: ethtool.set_tx_checksum("v0", on=False)) is True
    assert shown() == "off"
    assert inside(lambda: ethtool.set_tx_checksum("v0", on=False)) is False
    assert inside(lambda: ethtool.tx_checksum("v0")) is False
    assert inside(lambda: ethtool.set_tx_checksum("v0", on=True)) is True
    assert shown() == "on"


@pytest.mark.parametrize(
    ("device", "words"),
    [("nothere", "ethtool nothere: ENODEV"), ("a-name-of-16-byt", "ethtool a-name-of-16-byt: EINVAL")],
    ids=["missing", "too long"],
)
def test_a_device_that_cannot_be_is_named(inside: Inside, device: str, words: str) -> None:
    with pytest.raises(KernelError, match=words):
        inside(lambda: ethtool.tx_checksum(device))
