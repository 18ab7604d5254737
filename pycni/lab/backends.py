"""What a lab has to know of each backend to build a network of it. Pure.

Life: ``problem`` says why a specification cannot be built, ``net_conf`` is what goes into the network's
configuration, and the rest of the lab asks ``of`` what a backend needs of the nodes' kernel and what has to be waited
for. The backends themselves are the agents' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pycni.backends import table
from pycni.backends.base import IPV6_MIN_MTU
from pycni.lab import extension
from pycni.lab.attachments import ATTACHMENTS
from pycni.model.family import Family

if TYPE_CHECKING:
    from pycni.lab.topology import LabSpec

FAMILY_CHOICES = ("ipv4", "ipv6", "dual")
MIN_MTU = 1350
"""The smallest underlay MTU that leaves IPv6 its minimum of 1280 bytes (RFC 8200 section 5) inside VXLAN."""
MAX_MTU = 65000


class LabBackend(NamedTuple):
    """One backend as a lab sees it."""

    families: tuple[str, ...] = FAMILY_CHOICES
    """Values of ``--family`` it can carry."""
    link: str = ""
    """Kind of network device the nodes' kernel has to have; "" for none that any kernel lacks."""
    program: str = ""
    """What does the work where the kernel has no such device; "" when nothing does."""
    guests: str = ""
    """Why User-Mode Linux guests cannot have it."""
    greets: bool = False
    """Peers agree on keys when the first packet comes, for which the lab does not let both begin at once."""
    routes: bool = True
    """It makes routes between nodes; else something else has to (``--bgp``)."""
    engine: str = "none"
    """``--bgp`` where nothing is said."""


_STRICT = "takes from a peer its pods' addresses only, and pods of guests, which have no nftables, are not masqueraded"
BACKENDS: Mapping[str, LabBackend] = {
    "vxlan": LabBackend(),
    "host-gw": LabBackend(),
    "wireguard": LabBackend(link="wireguard", program="wireguard-go", greets=True, guests=_STRICT),
    "ipip": LabBackend(families=("ipv4",), link="ipip"),
    "udp": LabBackend(greets=True, guests=_STRICT),
    "extension": LabBackend(),
    "bgp": LabBackend(routes=False, engine="exabgp"),
    "alloc": LabBackend(routes=False),
}
"""By ``Backend.Type``."""


def of(name: str) -> LabBackend:
    """What a lab knows of a backend that ``problem`` has nothing against."""
    return BACKENDS[name]


def problem(spec: LabSpec) -> str:
    """Why the backend cannot be had with the other flags, naming flag and value; "" when it can."""
    name = spec.backend
    if name not in BACKENDS:
        return f"--backend {name!r}: not one of {', '.join(BACKENDS)}"
    found = BACKENDS[name]
    if spec.family not in FAMILY_CHOICES:
        return f"--family {spec.family!r}: not one of {', '.join(FAMILY_CHOICES)}"
    if spec.family not in found.families:
        return f"--family {spec.family!r}: backend {name} carries {' and '.join(found.families)} only"
    if spec.driver == "uml" and found.guests:
        return f"--driver {spec.driver!r}: not with backend {name}, which {found.guests}"
    if not found.routes and spec.bgp == "none" and not ATTACHMENTS[spec.attach].underlay:
        return f"--backend {name!r}: makes no routes between nodes; take --bgp too"
    if "Type" in spec.backend_conf:
        return f"--backend-conf Type {spec.backend_conf['Type']!r}: this is what --backend says"
    least = MIN_MTU
    if spec.family != "ipv4":
        least = max(least, IPV6_MIN_MTU + table.backend(name).overhead(Family.V6))
    if not least <= spec.mtu <= MAX_MTU:
        return f"--mtu {spec.mtu}: must be {least} to {MAX_MTU} bytes"
    return ""


def net_conf(spec: LabSpec) -> dict[str, Any]:
    """The object ``Backend`` of net-conf.json. Without commands ``extension`` gets those of our example."""
    keys = spec.backend_conf
    if spec.backend == "extension" and not any(key.endswith("Command") for key in keys):
        keys = {**extension.example(spec.family, spec.mtu), **keys}
    return {"Type": spec.backend, **keys}
