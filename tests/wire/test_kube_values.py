"""Single values of objects: whatever is quick about reading them says what reading them slowly says."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.wire import kube_values as read
from pycni.wire.kube import decode_list

PIECES = st.sampled_from(["0", "0", "0", "1", "ab", "100", "ffff"])
NUMBERS = st.lists(PIECES, min_size=8, max_size=8).map(lambda pieces: ipaddress.IPv6Address(":".join(pieces)))
TEXTS = st.lists(
    st.sampled_from(["", "", "0", "1", "f", "0a", "AB", "ffff", "1.2.3.4", "10000", " 1"]), max_size=9
)


def slowly(text: str, family: Family | None) -> str | None:
    """By the standard library alone; None: refused."""
    try:
        found: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found
    return None if family is not None and family.bits != found.max_prefixlen else str(found)


def quickly(text: str, family: Family | None) -> str | None:
    try:
        return read.address("Pod a/b", "status.podIPs", text, family)
    except ConfigError:
        return None


@settings(max_examples=400, deadline=None)
@given(NUMBERS, st.sampled_from([None, Family.V4, Family.V6]), st.sampled_from([str, lambda ip: ip.exploded]))
def test_an_address_is_read_as_the_standard_library_does(number, family, write):
    assert quickly(write(number), family) == slowly(write(number), family)


@settings(max_examples=400, deadline=None)
@given(TEXTS.map(":".join), st.sampled_from([None, Family.V6]))
@example("1:2:3:4:5:6:7::", None)
@example("1:2:3:4::6:7:8", None)
@example("1:2:3:4:5:6:7::8", None)
@example("1::2::3", None)
def test_so_is_what_is_hardly_one(text, family):
    assert quickly(text, family) == slowly(text, family)


@pytest.mark.parametrize(
    "text",
    ["fd00:12::5", "2001:db8:1:2:3:4:5:6", "1::", "1:2:3:4::7:8", "fe80::", "10.0.0.255"],
)
def test_most_addresses_never_become_objects(text, monkeypatch):
    monkeypatch.setattr(read, "ip_address", None)
    assert read.address("Pod a/b", "status.podIPs", text) == text


def test_pods_of_one_workload_share_their_labels_and_ports():
    pod = b'{"metadata":{"name":"%s","labels":{"app":"web","tier":null}},"spec":{"containers":[{"ports":[%s]}]}}'
    port = b'{"containerPort":80,"name":"http"}'
    items = b",".join(pod % (name, port) for name in (b"a", b"b"))
    one, other = decode_list("Pod", b'{"metadata":{"resourceVersion":"1"},"items":[%s]}' % items).items
    assert one.meta.labels == {"app": "web", "tier": ""}
    assert one.meta.labels is other.meta.labels
    assert one.ports is other.ports
