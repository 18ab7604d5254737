"""UDP clients that keep their port find another endpoint when theirs goes, and the first one when it comes."""

from __future__ import annotations

import contextlib
import os
import socket

import pytest

from pycni.kernel import netns
from tests.proxy.agent import piece, service
from tests.proxy.topology import NODE, PODS
from tests.waiting import wait_for

pytestmark = pytest.mark.root

A, B = PODS["a"], PODS["b"]
VIPS = ("10.96.0.20", "fd00:96::20")
PORT, NODE_PORT = 80, 30053
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


class Client:
    """One UDP socket in a namespace that always sends from the same port."""

    def __init__(self, file, address, port):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        fd = netns.open_netns(file)
        try:
            self._sock = netns.run_in(fd, lambda: socket.socket(family, socket.SOCK_DGRAM))
        finally:
            os.close(fd)
        self._sock.settimeout(0.3)
        self._target = (address, port)

    def ask(self):
        """Who answers; "" for nobody."""
        try:
            self._sock.sendto(b"?\n", self._target)
            return self._sock.recv(2048).decode().split()[0]
        except (TimeoutError, ConnectionRefusedError, PermissionError):
            return ""

    def close(self):
        self._sock.close()


@pytest.fixture
def client(spaces):
    with contextlib.ExitStack() as stack:

        def make(role, address, port=PORT):
            made = Client(spaces.path(role), address, port)
            stack.callback(made.close)
            return made

        yield make


def dns(family, *pods, **spec):
    vip = VIPS[family]
    return service("dns", vip, PORT, "UDP", **spec), piece(
        "dns", *(pod[family] for pod in pods), port=PORT, protocol="UDP"
    )


@FAMILIES
def test_a_client_of_an_endpoint_that_goes_is_led_to_another(node, traffic, client, family):
    node.put(*dns(family, A))
    node.start()
    other = client("c", B[family])
    asking = client("c", VIPS[family])
    assert (asking.ask(), other.ask()) == ("a", "b")
    node.put(*dns(family, B))
    node.programmed("dns", B[family])
    wait_for(lambda: asking.ask() == "b", "an answer of b", 5)
    node.put(*dns(family, A, B))
    node.programmed("dns", A[family], B[family])
    assert {asking.ask() for _ in range(5)} == {"b"}, "an endpoint more moves nobody"
    assert node.said().count("led to endpoints that are gone") == 1


@FAMILIES
def test_a_client_that_asked_while_there_was_nobody_gets_the_first_endpoint(node, traffic, client, family):
    node.put(*dns(family))
    node.start()
    asking = client("c", VIPS[family])
    assert [asking.ask() for _ in range(3)] == ["", "", ""]
    node.put(*dns(family, A))
    node.programmed("dns", A[family])
    wait_for(lambda: asking.ask() == "a", "an answer of a", 5)


@FAMILIES
def test_a_client_that_asked_before_the_service_existed_gets_it(node, traffic, client, family):
    node.start()
    asking = client("c", VIPS[family])
    assert [asking.ask() for _ in range(3)] == ["", "", ""]
    node.put(*dns(family, A))
    node.programmed("dns", A[family])
    wait_for(lambda: asking.ask() == "a", "an answer of a", 5)


@FAMILIES
def test_what_changed_while_the_agent_was_away_counts_too(node, traffic, client, family):
    node.put(*dns(family, A))
    node.start()
    asking = client("c", VIPS[family])
    assert asking.ask() == "a"
    node.stop()
    node.put(*dns(family, B))
    node.start()
    node.programmed("dns", B[family])
    wait_for(lambda: asking.ask() == "b", "an answer of b", 5)


@FAMILIES
def test_clients_of_node_ports_are_led_away_as_well(node, traffic, client, family):
    node.put(*dns(family, A, node_port=NODE_PORT))
    node.start()
    asking = client("out", NODE[family], NODE_PORT)
    assert asking.ask() == "a"
    node.put(*dns(family, B, node_port=NODE_PORT))
    node.programmed("dns", B[family])
    wait_for(lambda: asking.ask() == "b", "an answer of b", 5)
