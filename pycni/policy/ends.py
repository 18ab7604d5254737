"""Who is meant by the two ends of a connection that somebody asks about. Pure.

Life of a question: texts as people type them (a pod, ``namespace/name``, an address, a Service, a node) become ways:
pairs of addresses of one family with a protocol and a port, after translation. A Service becomes its endpoints, each a
way of its own, because policies are about pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple, Protocol

from pycni.errors import PycniError
from pycni.model.family import show
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NODE,
    POD,
    PROTOCOL_NAMES,
    PROTOCOLS,
    SERVICE,
    EndpointSlice,
    KubeNode,
    Pod,
    Service,
    SliceEndpoint,
)

COMPLETED = frozenset({"Succeeded", "Failed"})
ICMP = {4: 1, 16: 58}
"""Protocol number by length of addresses."""
_ICMP_NAMES = frozenset({"icmp", "icmpv6", "ping"})
ANY_ICMP = -1


class Objects(Protocol):
    """The part of ``store.Snapshot`` that is needed here."""

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by key."""


class AskError(PycniError):
    """A question that makes no sense (``status`` 400), or is about what is not there (404)."""

    def __init__(self, text: str, status: int = 404) -> None:
        self.status = status
        super().__init__(text)


class End(NamedTuple):
    """One end of a connection."""

    address: bytes
    pod: str = ""
    """``namespace/name``; "": no pod's address."""
    node: str = ""
    """Where the pod runs."""
    sender: str = ""
    """The node that sends this itself."""

    @property
    def text(self) -> str:
        """``a/x (10.0.0.1)``, ``node n1 (192.0.2.1)`` or the address."""
        name = self.pod or (f"node {self.sender}" if self.sender else "")
        return f"{name} ({show(self.address)})" if name else show(self.address)


class Way(NamedTuple):
    """One connection, as policies see it."""

    source: End
    destination: End
    protocol: int
    port: int
    """0 where there are none."""
    through: str = ""
    """``Service a/x port 80`` it was translated by."""


class _Target(NamedTuple):
    end: End
    port: int
    through: str = ""


def protocol_number(text: str) -> int:
    """By name or number; ``ANY_ICMP`` stands for the one of the addresses' family. Raises AskError."""
    number = PROTOCOLS.get(text.upper())
    if number is not None:
        return number
    if text.lower() in _ICMP_NAMES:
        return ANY_ICMP
    if text.isdecimal() and int(text) < 256:
        return int(text)
    raise AskError(f"protocol {text!r}: expected TCP, UDP, SCTP, ICMP or a number below 256", 400)


def ways(objects: Objects, source: str, destination: str, port: str, protocol: str = "TCP") -> list[Way]:
    """All connections a question is about, in the order of addresses. Raises AskError."""
    number = protocol_number(protocol or "TCP")
    has_ports = number in PROTOCOL_NAMES
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise AskError(f"port {port!r}: expected a number from 1 to 65535", 400)
    if has_ports and not port:
        raise AskError(f"port: {PROTOCOL_NAMES[number]} needs one", 400)
    cluster = _Cluster(objects)
    sources = cluster.named(source) or cluster.node(source)
    if not sources:
        raise AskError(cluster.unknown(source, "a pod, an address or a node"))
    targets = cluster.targets(destination, int(port) if has_ports else 0, number)
    found = [
        Way(
            one,
            target.end,
            ICMP[len(one.address)] if number == ANY_ICMP else number,
            target.port,
            target.through,
        )
        for target in targets
        for one in sources
        if len(one.address) == len(target.end.address)
    ]
    if not found:
        raise AskError(f"{source} and {destination} have no address family in common", 400)
    return found


def pod_named(objects: Objects, text: str) -> Pod:
    """A pod by its key, by a name that only one has, or by an address. Raises AskError."""
    pods: Mapping[str, Pod] = objects.of(POD)
    if text in pods:
        return pods[text]
    cluster = _Cluster(objects)
    found = cluster.named(text)
    if not found or not found[0].pod:
        raise AskError(cluster.unknown(text, "a pod"))
    return pods[found[0].pod]


def addresses(pod: Pod) -> Iterator[bytes]:
    """Of a pod, packed."""
    return (ip_address(ip).packed for ip in pod.ips)


class _Cluster:
    """Lookups in the objects."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        pods: Mapping[str, Pod] = objects.of(POD)
        self._pods = {key: pod for key, pod in pods.items() if pod.phase not in COMPLETED}
        self._nodes: Mapping[str, KubeNode] = objects.of(NODE)
        self._services: Mapping[str, Service] = objects.of(SERVICE)

    def named(self, text: str) -> list[End]:
        """The ends an address or a pod's name means; none when it is no pod's. Raises AskError."""
        address = _packed(text)
        if address is not None:
            return [self.at(address)]
        pod = self._pod(text)
        if pod is None:
            return []
        if not pod.ips:
            raise AskError(f"pod {pod.meta.key} has no address yet")
        return [self._end(pod, address) for address in addresses(pod)]

    def node(self, text: str) -> list[End]:
        """A node as the sender."""
        name = text.removeprefix("node/")
        found = self._nodes.get(name)
        return [End(ip_address(ip).packed, sender=name) for ip in found.internal_ips] if found else []

    def targets(self, text: str, port: int, protocol: int) -> list[_Target]:
        """What a destination becomes by translation. Raises AskError."""
        address = _packed(text)
        service = None if address is None else self._with_address(show(address))
        if service is None and address is None and self._pod(text) is None:
            service = self._service(text)
        if service is not None:
            length = None if address is None else len(address)
            return list(self._endpoints(service, port, protocol, length))
        ends = self.named(text) or self.node(text)
        if not ends:
            raise AskError(self.unknown(text, "a pod, a Service, an address or a node"))
        return [_Target(end._replace(sender=""), port) for end in ends]

    def unknown(self, text: str, kinds: str) -> str:
        """What to say of a name nobody has."""
        if "/" in text:
            finished = self._objects.of(POD).get(text)
            if finished is not None:
                return f"pod {text} has ended ({finished.phase}): it has no address any more"
        return f"{text}: not {kinds} that this agent knows of"

    def at(self, address: bytes) -> End:
        """The end with an address: of several pods the one policies take it for."""
        text = show(address)
        claims = [pod for pod in self._pods.values() if not pod.host_network and text in pod.ips]
        if not claims:
            return End(address)
        return self._end(
            min(claims, key=lambda pod: (pod.meta.deleting, -pod.meta.created, pod.meta.key)), address
        )

    @staticmethod
    def _end(pod: Pod, address: bytes) -> End:
        if pod.host_network:
            return End(address, sender=pod.node)
        return End(address, pod.meta.key, pod.node)

    def _pod(self, text: str) -> Pod | None:
        key = _key(self._pods, text, "pods")
        return self._pods.get(key)

    def _service(self, text: str) -> Service | None:
        key = _key(self._services, text.removeprefix("svc/").removeprefix("service/"), "Services")
        return self._services.get(key)

    def _with_address(self, text: str) -> Service | None:
        for service in self._services.values():
            if text in service.cluster_ips or text in service.external_ips:
                return service
            if any(ingress.ip == text for ingress in service.ingress):
                return service
        return None

    def _endpoints(self, service: Service, port: int, protocol: int, length: int | None) -> Iterator[_Target]:
        """Ready ones, else those that still serve while they end."""
        key = service.meta.key
        spec = next((item for item in service.ports if (item.port, item.protocol) == (port, protocol)), None)
        headless = "None" in service.cluster_ips
        if spec is None and not headless:
            offered = ", ".join(f"{item.port}/{PROTOCOL_NAMES[item.protocol]}" for item in service.ports)
            wanted = f"{port}/{PROTOCOL_NAMES.get(protocol, protocol)}"
            raise AskError(f"Service {key} has no port {wanted}; it has {offered or 'none'}")
        slices = [item for item in self._objects.of(ENDPOINT_SLICE).values() if item.service == key]
        found: dict[tuple[bytes, int], None] = {}
        for usable in (_is_ready, _still_serves):
            for piece, endpoint in _endpoints(slices, usable):
                address = ip_address(endpoint.address).packed
                if length is not None and len(address) != length:
                    continue
                if headless:
                    found[address, port] = None
                elif spec is not None:
                    found.update(
                        dict.fromkeys(
                            (address, item.port)
                            for item in piece.ports
                            if item.port and (item.name, item.protocol) == (spec.name, spec.protocol)
                        )
                    )
            if found:
                break
        if not found:
            raise AskError(f"Service {key} has no endpoints that are ready: there is nobody to connect to")
        through = f"Service {key} port {port}"
        for address, number in sorted(found):
            yield _Target(self.at(address), number, through)


def _key(keys: Iterable[str], text: str, kind: str) -> str:
    """A key as it is, or the only one with a name. Raises AskError for a name that several have."""
    if "/" in text:
        return text
    found = sorted(key for key in keys if key.partition("/")[2] == text)
    if len(found) > 1:
        raise AskError(f"{text}: there are several {kind} of this name: {', '.join(found)}", 400)
    return found[0] if found else ""


def _endpoints(slices: Sequence[EndpointSlice], usable: Any) -> Iterable[tuple[EndpointSlice, SliceEndpoint]]:
    return ((piece, endpoint) for piece in slices for endpoint in piece.endpoints if usable(endpoint))


def _is_ready(endpoint: SliceEndpoint) -> bool:
    return endpoint.ready


def _still_serves(endpoint: SliceEndpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _packed(text: str) -> bytes | None:
    try:
        return ip_address(text.strip("[]")).packed
    except ValueError:
        return None
