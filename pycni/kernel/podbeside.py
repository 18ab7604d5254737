"""Pods on a bridge and pods on links of their own in one subnet: how the former find the latter.

A network that changes its attachment has pods of both kinds for a while. A pod on the bridge asks its segment for the
address of any pod of the subnet; for those that are elsewhere on the node the bridge itself answers, one entry each
(``ip neigh show proxy``, protocol 114). The other way round routes do it. Without such a bridge none of this is there.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Collection

from pycni.attach.plan import AttachPlan, RoutedLeg
from pycni.errors import KernelError
from pycni.kernel import podcheck, sysctl
from pycni.kernel.podlink import PodSocket
from pycni.model.family import Family
from pycni.model.tables import POD_ROUTE_PROTOCOL
from pycni.wire import podlink as messages

_SWITCHES = {
    Family.V4: {"net/ipv4/neigh/{}/proxy_delay": 0},
    Family.V6: {"net/ipv6/conf/{}/proxy_ndp": 1, "net/ipv6/neigh/{}/proxy_delay": 0},
}
"""By default answers for others wait for up to 0.8 s, should there be a better one; IPv6 needs to be told at all."""


class PodsBeside:
    """Answers on bridges for pods on legs. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pods: dict[str, tuple[str, tuple[bytes, ...]]] = {}
        """Bridge and addresses by host end."""
        self._bridges: dict[str, int] = {}
        """Indexes of bridges that answer for all of their pods."""

    def add(self, plan: AttachPlan, sock: PodSocket) -> None:
        """Another pod on a leg. Raises KernelError."""
        bridge = self._note(plan)
        with self._lock:
            index = _index(bridge, sock)
            if index and self._bridges.get(bridge) == index:
                _answer(index, bridge, _addresses(plan), sock)
            elif index:
                self._answer_for_all(bridge, index, sock)

    def remove(self, plan: AttachPlan) -> None:
        """One less."""
        with self._lock:
            self._pods.pop(plan.host, None)

    def messages(self, plan: AttachPlan) -> list[bytes]:
        """What takes the answers for a pod away."""
        with self._lock:
            bridge, addresses = self._pods.get(plan.host, ("", ()))
            index = self._bridges.get(bridge, 0)
        if not index:
            return []
        return [
            messages.proxy_neighbour(index, address, protocol=POD_ROUTE_PROTOCOL, there=False)
            for address in addresses
        ]

    def bridge_used(self, name: str, sock: PodSocket) -> None:
        """A pod is on this bridge: it answers from now on. Raises KernelError."""
        with self._lock:
            if not any(bridge == name for bridge, _ in self._pods.values()):
                return
            index = _index(name, sock)
            if index and self._bridges.get(name) != index:
                self._answer_for_all(name, index, sock)

    def repair(self, plans: Collection[AttachPlan], sock: PodSocket) -> list[str]:
        """Have bridges answer for these pods and no others; says what was not so. Raises KernelError."""
        for plan in plans:
            self._note(plan)
        with self._lock:
            wanted: dict[tuple[int, bytes], str] = {}
            for name in {bridge for bridge, _ in self._pods.values()}:
                index = _index(name, sock)
                if index:
                    self._answer_for_all(name, index, sock, anew=False)
                    wanted |= {(index, address): name for address in self._all(name)}
            found = _found(sock)
            lost, stale = wanted.keys() - found, found - wanted.keys()
            for index, address in lost:
                _answer(index, wanted[index, address], (address,), sock)
            for index, address in stale:
                _no_answer(index, address, sock)
        return [f"{wanted[key]} did not answer for a pod beside it" for key in sorted(lost)] + [
            "a bridge answered for a pod that is gone" for _ in stale
        ]

    def _note(self, plan: AttachPlan) -> str:
        bridge = plan.link.bridge if isinstance(plan.link, RoutedLeg) else ""
        with self._lock:
            self._pods[plan.host] = (bridge, _addresses(plan))
        return bridge

    def _all(self, name: str) -> tuple[bytes, ...]:
        return tuple(
            item for bridge, addresses in self._pods.values() if bridge == name for item in addresses
        )

    def _answer_for_all(self, name: str, index: int, sock: PodSocket, *, anew: bool = True) -> None:
        """Switch answering on. ``anew``: the bridge has no entries of ours yet."""
        for family, switches in _SWITCHES.items():
            if any(len(address) * 8 == family.bits for address in self._all(name)):
                for switch, value in switches.items():
                    sysctl.put(switch.format(name), value)
        if anew:
            _answer(index, name, self._all(name), sock)
        self._bridges[name] = index


def _addresses(plan: AttachPlan) -> tuple[bytes, ...]:
    return tuple(item.address for item in plan.addresses)


def _index(name: str, sock: PodSocket) -> int:
    """A bridge's index; 0: there is none."""
    link = podcheck.find(sock, name) if name else None
    return link.ifindex if link is not None and link.kind == "bridge" else 0


def _answer(index: int, name: str, addresses: Collection[bytes], sock: PodSocket) -> None:
    msgs = [messages.proxy_neighbour(index, address, protocol=POD_ROUTE_PROTOCOL) for address in addresses]
    for error in sock.batch(msgs, "have a bridge answer for a pod", name):
        if error is not None:
            raise error


def _no_answer(index: int, address: bytes, sock: PodSocket) -> None:
    msg = messages.proxy_neighbour(index, address, protocol=POD_ROUTE_PROTOCOL, there=False)
    try:
        sock.request(msg, "remove an answer for a pod", f"ifindex {index}")
    except KernelError as error:
        if error.errno not in {errno.ENOENT, errno.ENODEV}:
            raise


def _found(sock: PodSocket) -> set[tuple[int, bytes]]:
    """Entries of ours, by device and address."""
    found = set()
    for family in (messages.AF_INET, messages.AF_INET6):
        for msg in sock.dump(messages.dump_proxies(family), "list answers for others"):
            index, address, protocol = messages.proxy_of(msg.payload)
            if protocol == POD_ROUTE_PROTOCOL:
                found.add((index, address))
    return found
