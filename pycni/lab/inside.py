"""What a lab does inside its nodes: plain functions that look at or change the kernel they run on.

Life of a call: the driver names the function and its arguments; for a node that is a namespace the function runs in
the caller's own process, for one with a kernel of its own it runs there, and arguments and result cross as JSON. That
is why both are simple values only. ``namespace`` is a name below /run/netns; "" is the node itself where it needs none.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any

from pycni.errors import PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab import netns, processes
from pycni.lab.ask import ask
from pycni.model.tables import ROUTE_PROTOCOL
from pycni.wire import rtnl

RTPROT_BOOT, RTPROT_BIRD = 3, 12
LEARNED_PROTOCOL = 113
"""Of routes the agent itself learned by BGP."""

HTTP_TIMEOUT_S = 2.0


def http(namespace: str, host: str, port: int, target: str, body: str = "") -> tuple[int, str]:
    """One HTTP request from inside a namespace (POST when there is a body): status and body of the answer.

    Raises OSError, KernelError.
    """
    method = "POST" if body else "GET"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with netns.inside(namespace, partial(socket.socket, family)) as sock:
        sock.settimeout(HTTP_TIMEOUT_S)
        sock.connect((host, port))
        shown = f"[{host}]" if ":" in host else host
        content = body.encode()
        head = f"{method} {target} HTTP/1.0\r\nHost: {shown}:{port}\r\nContent-Length: {len(content)}\r\n\r\n"
        sock.sendall(head.encode() + content)
        answer = b""
        while chunk := sock.recv(65536):
            answer += chunk
    first, _line, rest = answer.partition(b"\r\n")
    words = first.split()
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"no HTTP answer from {shown}:{port}")
    return int(words[1]), rest.partition(b"\r\n\r\n")[2].decode(errors="replace")


def routes(namespace: str, families: Sequence[int]) -> list[str]:
    """Destinations ("10.244.1.0/24") of the routes an agent, its BGP engine or commands of backend extension made.

    Raises KernelError.
    """
    with netns.socket_in(namespace) as sock:
        found = [
            rtnl.parse_route(message)
            for family in families
            for protocol in (ROUTE_PROTOCOL, LEARNED_PROTOCOL, RTPROT_BIRD, RTPROT_BOOT)
            for message in sock.dump(rtnl.dump_routes(family, protocol=protocol))
        ]
    return [f"{ip_address(route.destination)}/{route.prefix_len}" for route in found]


def mtu_of(namespace: str, link: str) -> int:
    """MTU of a link, 0 when there is no such link or namespace."""
    return netns.mtu_of(namespace, link)


def make_namespace(namespace: str) -> str:
    """Make a namespace; returns its file. Raises KernelError (EEXIST)."""
    return kernel_netns.create(namespace)


def set_loopback_up(namespace: str) -> None:
    """Give a namespace what no network at all still has. Raises KernelError."""
    with netns.socket_in(namespace) as sock:
        netns.bring_up(sock, "lo")


def end_processes(namespace: str) -> str:
    """End what runs in a namespace; returns its file, "" when there is no such namespace. Raises LabError."""
    processes.end(lambda: processes.inside(netns.inodes([namespace])))
    return kernel_netns.path(namespace) if netns.exists(namespace) else ""


def delete_namespace(namespace: str) -> None:
    """Remove a namespace, there or not. Raises KernelError."""
    kernel_netns.delete(namespace)


def readiness(namespace: str, port: int) -> tuple[bool, str]:
    """Whether the agent there says it is ready, and if not, why."""
    try:
        status, body = http(namespace, "127.0.0.1", port, "/readyz")
    except (OSError, PycniError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        return False, f"agent does not answer: {reason}"
    return status == 200, "" if status == 200 else " ".join(body.split("\n")).strip()


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(http, readiness, routes, mtu_of, ask),
        *(make_namespace, set_loopback_up, end_processes, delete_namespace),
    )
}
