"""Everything about an attachment that follows from its owner alone: device names, MACs, alias.

Life: nothing here is stored. ADD, DEL, CHECK and the collector each derive the same names from the owner
(network, container id, interface name), so that DEL finds what ADD made without any record of it.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

from pycni.model.endpoint import Owner
from pycni.model.tables import LINK_ALIAS

ALIAS_LIMIT = 255
"""Bytes of IFLA_IFALIAS the kernel accepts (IFALIASZ less the terminating zero, include/uapi/linux/if.h)."""
NAME_LIMIT = 15
"""Characters of a device name (IFNAMSIZ less the terminating zero)."""
HOST_PREFIX = "veth"
SHAPER_PREFIX = "pcbw"


class Names(NamedTuple):
    """Names and addresses of one attachment's devices."""

    host: str
    """Host end of the veth pair: ``veth`` and 44 bits of the owner's digest."""
    shaper: str
    """Device that shapes what the pod sends, when its bandwidth is limited: same digest, other prefix."""
    mac: bytes
    """The pod interface's MAC: locally administered, stable over DEL and ADD of the same owner."""
    host_mac: bytes
    """The host end's MAC. Set on purpose: tools rewrite random ones they find on new devices."""
    alias: str
    """``pycni:<network>:<container id>:<ifname>``, shortened to what the kernel stores."""


@lru_cache(maxsize=1024)
def names(owner: Owner) -> Names:
    """Names of one attachment."""
    digest = hashlib.sha256("\0".join(owner).encode()).digest()
    suffix = digest.hex()[: NAME_LIMIT - len(HOST_PREFIX)]
    return Names(
        HOST_PREFIX + suffix,
        SHAPER_PREFIX + suffix,
        local_mac(digest[8:14]),
        local_mac(digest[14:20]),
        alias(owner),
    )


def host_ifname(owner: Owner) -> str:
    """Name of the veth's host end."""
    return names(owner).host


def shaper_of(host: str) -> str:
    """Name of the shaping device that belongs to a veth's host end."""
    return SHAPER_PREFIX + host[len(HOST_PREFIX) :]


def local_mac(seed: bytes) -> bytes:
    """A locally administered unicast MAC (IEEE 802 section 8.4) from six bytes."""
    return bytes((seed[0] & 0xFC | 0x02,)) + seed[1:6]


def alias(owner: Owner) -> str:
    """The alias of an attachment's devices, cut from the right at what the kernel stores."""
    text = f"{LINK_ALIAS}:{owner.network}:{owner.container_id}:{owner.ifname}"
    return text.encode()[:ALIAS_LIMIT].decode(errors="ignore")


def owner_of(text: str) -> Owner | None:
    """The owner an alias names; None when it is not one of ours or was shortened.

    A name that does not follow from the owner it yields is not evidence: compare ``host_ifname``.
    """
    parts = text.split(":")
    if len(parts) != 4 or parts[0] != LINK_ALIAS or len(text.encode()) >= ALIAS_LIMIT:
        return None
    return Owner(*parts[1:])
