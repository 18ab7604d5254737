"""The backends there are, as dotted names so that one is imported only when the network asks for it."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from pycni.backends.base import Backend
from pycni.errors import ConfigError

BACKENDS: Mapping[str, str] = {
    "vxlan": "pycni.backends.vxlan:Vxlan",
    "host-gw": "pycni.backends.hostgw:HostGw",
    "ipip": "pycni.backends.ipip:Ipip",
    "wireguard": "pycni.backends.wireguard:Wireguard",
    "bgp": "pycni.backends.bgp:Bgp",
    "udp": "pycni.backends.udp:Udp",
    "extension": "pycni.backends.extension:Extension",
    "alloc": "pycni.backends.alloc:Alloc",
}
"""``Backend.Type`` -> module:class. The only place that knows them."""


@functools.cache
def backend(name: str) -> Backend:
    """The one object of that type. Raises ConfigError naming those there are."""
    if name not in BACKENDS:
        raise ConfigError("net-conf", "Backend.Type", name, f"expected one of {', '.join(BACKENDS)}")
    module, _, attribute = BACKENDS[name].partition(":")
    made: Backend = getattr(importlib.import_module(module), attribute)()
    return made
