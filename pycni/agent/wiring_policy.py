"""The policies' side of the agent, wired: what they are made from, the component, who tells it of pods.

Life: ``make`` is called by ``wiring`` on the event loop. The component is known by its dotted name only.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from pycni.agent.components import COMPONENTS
from pycni.agent.httpd import AsyncHandler
from pycni.agent.process import Context, Tasks
from pycni.model.kube import NAMESPACE, POD
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY

if TYPE_CHECKING:
    from pycni.agent.cni_ports import EndpointGate
    from pycni.agent.wiring_sources import Needs
    from pycni.ipam.endpoints import EndpointStore
    from pycni.model.podnet import PodNetwork
    from pycni.store import Store


async def make(  # noqa: PLR0917 - the last two collect
    context: Context,
    store: Store,
    needs: Needs,
    podnet: Callable[[], PodNetwork | None] | None,
    listeners: list[Callable[[EndpointStore], None]],
    gates: list[EndpointGate],
) -> tuple[Tasks, dict[str, AsyncHandler]]:
    """The tasks, and what the control socket answers.

    ``podnet``: the pod network once it is known; None when this process attaches no pods. ``listeners`` gets who wants
    to know this node's pods, ``gates`` who has to let them in.
    """
    from pycni.sources.kube import Selection, own_node  # noqa: PLC0415

    settings = context.settings
    needs.add(
        *(Selection(kind) for kind in (NETWORK_POLICY, CLUSTER_NETWORK_POLICY, POD, NAMESPACE)),
        own_node(settings.node_name),
    )

    def exits() -> tuple[str, ...] | None:
        found = podnet() if podnet is not None else None
        return None if found is None else found.exits

    module, _, attribute = COMPONENTS["policy"].partition(":")
    kind = getattr(await asyncio.to_thread(importlib.import_module, module), attribute)
    component = kind(
        settings,
        store,
        health=context.health,
        metrics=context.metrics,
        recorded=podnet is not None,
        exits=exits if podnet is not None else None,
        malformed=needs.malformed,
    )
    listeners.append(component.follow_pods)
    gates.append(component.gate)
    return {"policy": component.run()}, component.routes()
