"""What a Service's ports may be translated to, whichever endpoint is chosen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import NamedTuple

from pycni.model.kube import ENDPOINT_SLICE, SERVICE, EndpointSlice, Service
from pycni.trace.cluster import Objects


class End(NamedTuple):
    """An endpoint's address and port."""

    address: bytes
    port: int


def behind(objects: Objects, address: bytes) -> dict[tuple[int, int], Sequence[End]]:
    """By protocol and port of the Service that has an address; {}: no Service has it."""
    text = str(ip_address(address))
    services: Mapping[str, Service] = objects.of(SERVICE)
    slices: Mapping[str, EndpointSlice] = objects.of(ENDPOINT_SLICE)
    found: dict[tuple[int, int], Sequence[End]] = {}
    for key, service in services.items():
        owned = {*service.cluster_ips, *service.external_ips, *(item.ip for item in service.ingress)}
        if text not in {str(item) for item in owned}:
            continue
        for port in service.ports:
            found[port.protocol, port.port] = [
                End(ip_address(endpoint.address).packed, number.port or port.port)
                for piece in slices.values()
                if piece.service == key
                for number in piece.ports
                if (number.name, number.protocol) == (port.name, port.protocol)
                for endpoint in piece.endpoints
            ]
    return found
