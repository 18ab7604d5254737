"""Who is meant by the two ends of a trace, as people type them. Pure.

    SRC   a pod (``web-1``, ``shop/web-1``), a node (``node1``, ``node/node1``), an address of one
    DST   the same, a Service (``shop/web``, ``svc/shop/web``, ``web``), any address; with ``:PORT`` behind

A name that several things have is the pod's, then the node's, then the Service's; prefixes tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from pycni.errors import PycniError
from pycni.model.family import Family
from pycni.model.kube import PROTOCOLS, SERVICE, Service
from pycni.model.space import NODE, World
from pycni.trace import lookup
from pycni.trace.cluster import Objects
from pycni.trace.lookup import Query
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow

PROTOCOL = {"tcp": TCP, "udp": UDP, "icmp": ICMP}
HIGH_PORT = 40000
"""Source port of a prediction; a probe chooses a fresh one."""
_TRACEROUTE = 33434
"""Destination port of a UDP probe when none is given."""


class QuestionError(PycniError):
    """What was asked makes no sense, or names nothing there is."""

    usage = True


class Question(NamedTuple):
    """One trace to make."""

    node: str
    space: str
    """Where the packet begins."""
    flow: Flow
    words: str


def ask(world: World, objects: Objects, source: str, target: str, protocol: str = "") -> Question:
    """The first family both ends have. Raises QuestionError naming the end that cannot be found."""
    host, port = split(target)
    begin = _source(world, source)
    if begin[0] in world.silent:
        raise QuestionError(f"{source} is on {begin[0]}, of which nothing is known: {world.silent[begin[0]]}")
    families = {Family.of_packed(address): address for address in reversed(begin[2])}
    ends = [address for address in _target(world, objects, host) if Family.of_packed(address) in families]
    if not ends:
        raise QuestionError(f"{source} and {target} have no address family in common")
    number = _protocol(protocol, port, ends[0], objects)
    if number in {TCP, UDP} and not port:
        port = _default_port(objects, ends[0], number)
    own = families[Family.of_packed(ends[0])]
    if begin[1] == NODE and not _address(source):
        own = _chosen(world, begin[0], ends[0]) or own
    echo = number in {ICMP, ICMPV6}
    flow = Flow(
        protocol=number,
        source=own,
        destination=ends[0],
        source_port=HIGH_PORT,
        destination_port=0 if echo else port,
    )
    return Question(begin[0], begin[1], flow, f"{source} to {target}")


def split(target: str) -> tuple[str, int]:
    """Host and port (0: none) of ``host:80``, ``[fd00::1]:80``, ``fd00::1``. Raises QuestionError."""
    if target.startswith("["):
        host, _, rest = target[1:].partition("]")
        port = rest.removeprefix(":")
    elif target.count(":") > 1:
        host, port = target, ""
    else:
        host, _, port = target.partition(":")
    if port and not (port.isdecimal() and 0 < int(port) < 65536):
        raise QuestionError(f"{target!r}: expected a port from 1 to 65535, not {port!r}")
    return host, int(port or 0)


def _protocol(text: str, port: int, target: bytes, objects: Objects) -> int:
    if text and text not in PROTOCOL:
        raise QuestionError(f"--proto {text!r}: expected tcp, udp or icmp")
    served = _service_at(objects, target)
    usual = "tcp" if port or served is not None else "icmp"
    number = PROTOCOL[text or usual]
    return ICMPV6 if number == ICMP and len(target) == 16 else number


def _default_port(objects: Objects, target: bytes, number: int) -> int:
    """A Service's first port of that protocol; else one that every traceroute uses."""
    service = _service_at(objects, target)
    for port in service.ports if service is not None else ():
        if port.protocol == number:
            return port.port
    return 80 if number == PROTOCOLS["TCP"] else _TRACEROUTE


def _service_at(objects: Objects, address: bytes) -> Service | None:
    text = str(ip_address(address))
    services: Iterable[Service] = objects.of(SERVICE).values()
    return next((item for item in services if text in item.cluster_ips), None)


def _source(world: World, text: str) -> tuple[str, str, tuple[bytes, ...]]:
    """Node, space and addresses."""
    pod = _pod(world, text)
    if pod is not None:
        return pod
    name = text.removeprefix("node/")
    if name in world.nodes:
        return name, NODE, world.nodes[name].addresses
    address = _address(text)
    owner = world.owner(address) if address else None
    if owner is None:
        raise QuestionError(f"{text!r}: no pod, node or address of one{_unknown(world)}")
    return owner[0], owner[1], (address,)


def _chosen(world: World, node: str, destination: bytes) -> bytes:
    """The source address the kernel of a node takes for a destination (inet_select_addr); empty: it cannot tell."""
    state = world.nodes[node].actual.get(NODE)
    found = lookup.route(state, Query(destination)) if state is not None else None
    if state is None or found is None:
        return b""
    same = [item.address for item in state.of(found.device) if len(item.address) == len(destination)]
    return found.source or next((item for item in same if item[:2] != b"\xfe\x80"), b"")


def _pod(world: World, text: str) -> tuple[str, str, tuple[bytes, ...]] | None:
    found = [pod for pod in world.pods.values() if text in _names(pod.name)]
    if len(found) > 1:
        raise QuestionError(
            f"{text!r}: pods {' and '.join(sorted(pod.name for pod in found))} have this name"
        )
    if not found:
        return None
    return found[0].node, found[0].name, found[0].addresses


def _names(key: str) -> set[str]:
    """How a pod may be called: ``a/x``, ``x``, ``x.a`` (as in labs), ``pod/...``."""
    namespace, _, name = key.partition("/")
    names = {key, name, f"{name}.{namespace}"}
    return names | {f"pod/{item}" for item in names}


def _target(world: World, objects: Objects, text: str) -> list[bytes]:
    """Addresses, the cluster's first family first."""
    pod = _pod(world, text)
    if pod is not None:
        return list(pod[2])
    name = text.removeprefix("node/")
    if name in world.nodes:
        return list(world.nodes[name].addresses)
    address = _address(text)
    if address:
        return [address]
    service = _service(objects, text)
    if service is None:
        raise QuestionError(f"{text!r}: no pod, node, Service or address{_unknown(world)}")
    found = [_address(item) for item in service.cluster_ips]
    if not any(found):
        raise QuestionError(f"Service {service.meta.key} is headless: name one of its pods")
    return [item for item in found if item]


def _unknown(world: World) -> str:
    """Where it might be after all."""
    return f"; nothing is known of {', '.join(sorted(world.silent))}" if world.silent else ""


def _service(objects: Objects, text: str) -> Service | None:
    name = text.removeprefix("svc/").removeprefix("service/")
    services = objects.of(SERVICE)
    found = [
        key for key in services if name in {key, key.partition("/")[2], ".".join(reversed(key.split("/")))}
    ]
    if len(found) > 1:
        raise QuestionError(f"{text!r}: Services {' and '.join(sorted(found))} have this name")
    wanted: Service | None = services[found[0]] if found else None
    return wanted


def _address(text: str) -> bytes:
    try:
        return ip_address(text).packed
    except ValueError:
        return b""
