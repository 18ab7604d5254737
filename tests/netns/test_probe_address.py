"""Addresses that only agents ask each other at: made, taken away, and nobody else's touched."""

from __future__ import annotations

import subprocess
from ipaddress import ip_address

from pycni.kernel import probe_address
from pycni.kernel.remains import remove_network
from pycni.lab.netns import inside

FOUR, SIX = ip_address("10.5.1.0").packed, ip_address("fd00:5:0:1::").packed


def ip(space: str, *words: str) -> str:
    done = subprocess.run(["ip", "-n", space, *words], check=True, capture_output=True, text=True, timeout=20)
    return done.stdout


def there(space: str) -> list[str]:
    lines = ip(space, "-4", "route", "show", "table", "local", "proto", "115").splitlines()
    lines += ip(space, "-6", "route", "show", "table", "local", "proto", "115").splitlines()
    return [line.split()[1] for line in lines]


def test_exactly_the_wanted_addresses_answer(netns: str) -> None:
    ip(netns, "link", "set", "lo", "up")
    for wanted, shown in (
        ([FOUR, SIX], ["10.5.1.0", "fd00:5:0:1::"]),
        ([FOUR, SIX], ["10.5.1.0", "fd00:5:0:1::"]),
        ([SIX], ["fd00:5:0:1::"]),
        ([], []),
    ):
        inside(netns, lambda wanted=wanted: probe_address.keep(wanted))  # type: ignore[misc]
        assert there(netns) == shown


def test_an_address_of_a_device_is_left_to_it(netns: str) -> None:
    ip(netns, "link", "set", "lo", "up")
    ip(netns, "link", "add", "d0", "type", "veth", "peer", "name", "e0")
    ip(netns, "address", "add", "10.5.1.0/32", "dev", "d0")
    ip(netns, "link", "set", "d0", "up")
    before = ip(netns, "route", "show", "table", "local")
    inside(netns, lambda: probe_address.keep([FOUR]))
    assert ip(netns, "route", "show", "table", "local") == before
    inside(netns, lambda: probe_address.keep([]))
    assert ip(netns, "route", "show", "table", "local") == before


def test_a_clean_up_takes_them(netns: str) -> None:
    ip(netns, "link", "set", "lo", "up")
    inside(netns, lambda: probe_address.keep([FOUR, SIX]))
    inside(netns, remove_network)
    assert there(netns) == []
