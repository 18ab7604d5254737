"""The underlay of tests: a segment with a node, whose thread is the test's, and machines beside it.

switch (a bridge in a namespace)
  eth1  node   192.0.2.1/24  2001:db8::1/64
  far   other  192.0.2.2/24  2001:db8::2/64      the segment's router; another node
  peer  192.0.2.60/24  2001:db8::3c/64           a pod of another node
"""

from __future__ import annotations

import os
from collections.abc import Callable

from tests.netns.podenv import Pod, run

NODE, FAR, PEER = (
    ("192.0.2.1", "2001:db8::1"),
    ("192.0.2.2", "2001:db8::2"),
    ("192.0.2.60", "2001:db8::3c"),
)


class Segment:
    """The underlay: a bridge in a namespace of its own with whoever is on it. The calling thread is in the node's."""

    def __init__(self, make: Callable[[], str]) -> None:
        self._made = 0
        self.switch = Pod(make(), 0)
        self._make = make
        self.hosts: list[Pod] = [self.switch]
        self.switch.run("ip link add br0 type bridge mcast_snooping 0")
        self.switch.run("ip link set br0 up")
        run(f"ip link add eth1 type veth peer name p1 netns {self.switch.name}")
        self.switch.run("ip link set p1 master br0 up")
        run("sysctl -qw net.ipv6.conf.eth1.accept_dad=0")
        run("ip link set eth1 up")
        run(f"ip addr add {NODE[0]}/24 dev eth1")
        run(f"ip addr add {NODE[1]}/64 dev eth1 nodad")

    def host(self, addresses: tuple[str, str]) -> Pod:
        """A machine on the segment."""
        self._made += 1
        host = Pod(self._make(), 0)
        self.hosts.append(host)
        self.switch.run(f"ip link add h{self._made} type veth peer name eth0 netns {host.name}")
        self.switch.run(f"ip link set h{self._made} master br0 up")
        host.run("sysctl -qw net.ipv6.conf.eth0.accept_dad=0")
        host.run("ip link set lo up")
        host.run("ip link set eth0 up")
        host.run(f"ip addr add {addresses[0]}/24 dev eth0")
        host.run(f"ip addr add {addresses[1]}/64 dev eth0 nodad")
        host.v4, host.v6 = (lambda: addresses[0]), (lambda: addresses[1])  # type: ignore[method-assign]
        return host

    def close(self) -> None:
        for host in self.hosts:
            os.close(host.fd)
