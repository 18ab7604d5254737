"""The parts of the agent that can be switched on, as dotted names so that what is off is never imported.

A component is a class constructed with the agent's ``Context`` (see ``agent.main``) and an eternal coroutine
``run()``. The table is the only place that knows them.
"""

from __future__ import annotations

from collections.abc import Mapping

COMPONENTS: Mapping[str, str] = {
    "network": "pycni.agent.network:NetworkComponent",
    "proxy": "pycni_proxy.component:ProxyComponent",
    "policy": "pycni.policy.component:PolicyComponent",
    "bgp": "pycni_bgp.component:BgpComponent",
}
