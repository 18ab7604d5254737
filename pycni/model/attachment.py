"""How a pod's interface is joined to its node: the configuration key ``attachment``."""

from __future__ import annotations

import enum


class AttachmentKind(enum.StrEnum):
    """Kinds of attachment; the value is the key's."""

    BRIDGE = "bridge"
    """A veth pair whose host end is a port of the node's bridge: pods of a node share a segment."""
    PTP = "ptp"
    """A veth pair between pod and node alone: the pod has a host prefix, the node a route to it."""
    MACVLAN = "macvlan"
    """A macvlan child of the node's uplink, with a leg to the node beside it."""
    IPVLAN = "ipvlan"
    """An ipvlan child of the node's uplink, with a leg to the node beside it."""
