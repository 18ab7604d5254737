"""Callers of the CNI executable that behave as kubelet and its runtimes do, and a ledger of what they were given.

Life of a pod slot (a network namespace used again and again): ADD; on any error DEL until one succeeds, then ADD again,
sometimes as another container; a pod that came up is looked at from inside, before its DEL once more; DEL in
the shapes runtimes send it: twice, both at once, without namespace, without prevResult. An address counts as held from
the ADD's answer until just before the first DEL is sent, so nobody else may be given it meanwhile.
"""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address, ip_interface
from pathlib import Path
from typing import Any, NamedTuple

from pycni.kernel import netns
from pycni.lab import icmp
from pycni.model.family import Family
from tests.cni.node import AgentNode

_LOCAL = re.compile(r"\|-- ([0-9.]+)\n(?: +/\d+ [^\n]*\n)*? +/32 host LOCAL")


class Slot(NamedTuple):
    """A pod namespace with the configuration of the pods in it."""

    name: str
    conf: dict[str, Any]

    @property
    def path(self) -> str:
        return netns.path(self.name)


class Pod(NamedTuple):
    """A container that is up."""

    slot: Slot
    container: str
    result: dict[str, Any]

    @property
    def addresses(self) -> set[str]:
        return {str(ip_interface(ip["address"]).ip) for ip in self.result["ips"]}


def addresses_in(name: str) -> set[str]:
    """Addresses configured in a namespace, loopback and link-local ones left out."""

    def read() -> set[str]:
        found = set(_LOCAL.findall(Path("/proc/thread-self/net/fib_trie").read_text()))
        for line in Path("/proc/thread-self/net/if_inet6").read_text().splitlines():
            found.add(str(IPv6Address(bytes.fromhex(line[:32]))))
        return {text for text in found if not text.startswith(("127.", "fe80:")) and text != "::1"}

    fd = netns.open_netns(netns.path(name))
    try:
        return netns.run_in(fd, read)
    finally:
        os.close(fd)


def reaches_gateways(pod: Pod) -> bool:
    """Whether the pod gets an answer from each of its gateways within two seconds."""
    fd = netns.open_netns(pod.slot.path)
    try:
        return all(_answers(fd, ip["gateway"]) for ip in pod.result["ips"])
    finally:
        os.close(fd)


def _answers(fd: int, address: str) -> bool:
    family = Family.V6 if ":" in address else Family.V4
    kind, protocol = (socket.AF_INET6, icmp.ICMP6) if family is Family.V6 else (socket.AF_INET, icmp.ICMP)
    with netns.run_in(fd, lambda: socket.socket(kind, socket.SOCK_RAW, protocol)) as sock:
        sock.settimeout(2)
        on = () if family is Family.V4 else (0, netns.run_in(fd, lambda: socket.if_nametoindex("eth0")))
        sock.sendto(icmp.echo_request(family, 7, 1, b"alive?"), (address, 0, *on))
        end = time.monotonic() + 2
        while time.monotonic() < end:
            try:
                packet, sender = sock.recvfrom(2048)
            except TimeoutError:
                return False
            found = icmp.parse(family, packet, sender[0])
            if isinstance(found, icmp.Echo) and found.payload == b"alive?":
                return True
    return False


class Callers:
    """Runs slots' lives on threads; everything wrong is a line in ``faults``."""

    def __init__(self, node: AgentNode, slots: list[Slot], seed: int) -> None:
        self.node, self.slots, self.seed = node, slots, seed
        self.up: dict[str, Pod] = {}
        """Slot name -> its pod."""
        self.seen: list[tuple[Slot, str]] = []
        """Every container there ever was."""
        self.done: Counter[str] = Counter()
        self.errors: Counter[tuple[str, int, str]] = Counter()
        self.faults: list[str] = []
        self._lock = threading.Lock()
        self._holders: dict[tuple[str, str], str] = {}

    def run(self, enough: Callable[[], bool], at_once: int) -> None:
        """Let all slots live until ``enough``; ``at_once`` callers at the same time."""
        with ThreadPoolExecutor(at_once) as pool:
            for future in [pool.submit(self._work, n, at_once, enough) for n in range(at_once)]:
                future.result()

    def remove(
        self, slot: Slot, container: str, result: dict[str, Any] | None, chance: random.Random
    ) -> None:
        """DEL until it succeeds, in a shape picked by chance."""
        with_result = {"prevResult": result} if result is not None and chance.random() < 0.7 else {}
        path = slot.path if chance.random() < 0.75 else ""
        times = chance.choice([1, 1, 2])
        conf = {**slot.conf, **with_result}
        if chance.random() < 0.15:
            with ThreadPoolExecutor(1) as twin:
                other = twin.submit(self._call, "DEL", conf, slot, container, path)
                self._call("DEL", conf, slot, container, path)
                other.result()
        end = time.monotonic() + 20
        while times:
            if self._call("DEL", conf, slot, container, path)[0] == 0:
                times -= 1
            elif time.monotonic() > end:
                self._fault(f"{container}: DEL does not succeed")
                return
            else:
                time.sleep(0.2)

    def _work(self, number: int, step: int, enough: Callable[[], bool]) -> None:
        chance = random.Random(f"{self.seed}-{number}")
        mine = self.slots[number::step]
        while not enough() and not self.faults:
            slot = chance.choice(mine)
            pod = self.up.get(slot.name)
            if pod is None:
                self.attach(slot, f"c{number}-{chance.getrandbits(40):x}", chance, enough)
            else:
                self.detach(pod, chance)

    def attach(self, slot: Slot, container: str, chance: random.Random, enough: Callable[[], bool]) -> None:
        """ADD until it succeeds or it is ``enough``."""
        while not enough():
            self.seen.append((slot, container))
            code, result = self._call("ADD", slot.conf, slot, container, slot.path)
            if code == 0:
                pod = Pod(slot, container, result)
                self._take(pod)
                self.up[slot.name] = pod
                self.look(pod, "after its ADD")
                return
            self.remove(slot, container, None, chance)
            if chance.random() < 0.5:
                container = f"{container[:16]}-{chance.getrandbits(16):x}"
            time.sleep(0.1)

    def detach(self, pod: Pod, chance: random.Random) -> None:
        """Look at a pod once more and end it."""
        self.look(pod, "before its DEL")
        with self._lock:
            for address in pod.addresses:
                del self._holders[pod.slot.conf["name"], address]
        del self.up[pod.slot.name]
        self.remove(pod.slot, pod.container, pod.result, chance)

    def look(self, pod: Pod, when: str) -> None:
        """The pod has what it was given, and works."""
        found = addresses_in(pod.slot.name)
        if found != pod.addresses:
            self._fault(f"{pod.container} {when}: was given {pod.addresses}, has {found}")
        elif not reaches_gateways(pod):
            self._fault(f"{pod.container} {when}: {pod.addresses} does not reach its gateway")

    def _take(self, pod: Pod) -> None:
        with self._lock:
            for address in pod.addresses:
                key = (pod.slot.conf["name"], address)
                if key in self._holders:
                    self.faults.append(f"{key} given to {pod.container} and {self._holders[key]}")
                self._holders[key] = pod.container

    def shared_addresses(self) -> list[str]:
        """Addresses that two namespaces of one network have at this moment."""
        first: dict[tuple[str, str], Slot] = {}
        shared = []
        for slot in self.slots:
            for address in addresses_in(slot.name):
                other = first.setdefault((slot.conf["name"], address), slot)
                # The first one is read again: it may have lost the address before this one got it.
                if other is not slot and address in addresses_in(other.name):
                    shared.append(f"{address} is in {other.name} and {slot.name}")
        return shared

    def _call(
        self, command: str, conf: dict[str, Any], slot: Slot, container: str, path: str
    ) -> tuple[int, Any]:
        code, answer = self.node.cni(command, conf, CONTAINERID=container, NETNS=path, IFNAME="eth0")
        with self._lock:
            if code == 0:
                self.done[command] += 1
            else:
                self.errors[command, answer["code"], answer["msg"].partition(":")[0]] += 1
        return code, answer

    def _fault(self, text: str) -> None:
        with self._lock:
            self.faults.append(text)
