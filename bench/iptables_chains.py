"""The layout of kube-proxy's iptables mode for the services of ``proxyload``, as iptables-restore text.

One rule per service in one list, a chain per service that picks an endpoint by chance, a chain per endpoint that
translates: what grows with the number of services, and why.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench.proxyload import ENDPOINTS, PORT, TARGET_PORT, endpoint, virtual


def lines(count: int, first: int = 1) -> Iterator[str]:
    """Rules for ``count`` services. Service ``first`` stands in the middle of the list: a fair place."""
    order = [number for number in range(1, count + 1) if number != first]
    order.insert(count // 2, first)
    yield "*nat"
    yield ":SERVICES - [0:0]"
    for number in order:
        yield f":SVC-{number} - [0:0]"
        for index in range(ENDPOINTS):
            yield f":SEP-{number}-{index} - [0:0]"
    yield "-A PREROUTING -j SERVICES"
    for number in order:
        yield f"-A SERVICES -d {virtual(number)}/32 -p tcp -m tcp --dport {PORT} -j SVC-{number}"
    for number in order:
        for index in range(ENDPOINTS):
            left = ENDPOINTS - index
            chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            yield f"-A SVC-{number} {chance}-j SEP-{number}-{index}"
            target = f"{endpoint(number, index)}:{TARGET_PORT}"
            yield f"-A SEP-{number}-{index} -p tcp -m tcp -j DNAT --to-destination {target}"
    yield "COMMIT"
