"""bgp: no overlay; the routes to the peers' subnets come from the component ``bgp``.

For networks whose nodes speak BGP among themselves and, where wanted, with the fabric's routers. Leases are taken and
kept as for every backend, and without Kubernetes they are how nodes know whom to speak with. What a network of type
``alloc`` leaves open is settled here: a node whose agent runs without the component is not ready, and says why.
"""

from __future__ import annotations

from pycni.backends.alloc import Alloc

COMPONENT = "bgp"
"""Who makes the routes: a name in the setting ``components``."""


class Bgp(Alloc):
    """``Backend.Type`` "bgp"."""

    name = "bgp"
