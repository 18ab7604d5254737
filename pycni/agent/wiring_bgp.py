"""BGP's side of the agent, wired: what it is made from, and the component, known by its dotted name only.

Life: ``make`` is called by ``wiring`` on the event loop. Without a folder of manifests or a way to the Kubernetes API
nothing is announced but the pods' subnets, and the nodes are those of the leases.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from pycni.agent.components import COMPONENTS
from pycni.agent.httpd import AsyncHandler
from pycni.agent.process import Context, Tasks
from pycni.agent.settings import Settings
from pycni.agent.wiring_proxy import NOT_HEADLESS
from pycni.model.kube import ENDPOINT_SLICE, NODE, SERVICE

if TYPE_CHECKING:
    from pycni.agent.wiring_sources import Needs
    from pycni.model.podnet import PodNetwork
    from pycni.store import Store


def follows_objects(settings: Settings) -> bool:
    """Whether there is anything to read Services and Nodes from."""
    named = settings.manifest_dir or settings.kubeconfig or settings.kube_api_url
    return bool(named or "KUBERNETES_SERVICE_HOST" in os.environ)


async def make(
    context: Context, store: Store, needs: Needs, podnet: Callable[[], PodNetwork | None] | None
) -> tuple[Tasks, dict[str, AsyncHandler]]:
    """The tasks, and what the control socket answers. Raises ConfigError."""
    from pycni.sources.kube import Selection  # noqa: PLC0415

    objects = follows_objects(context.settings)
    if objects:
        needs.add(Selection(SERVICE), Selection(ENDPOINT_SLICE, labels=NOT_HEADLESS), Selection(NODE))
        needs.derive_slices = True
    module, _, attribute = COMPONENTS["bgp"].partition(":")
    kind = getattr(await asyncio.to_thread(importlib.import_module, module), attribute)
    component = kind(
        context.settings,
        store,
        health=context.health,
        metrics=context.metrics,
        podnet=podnet,
        objects=objects,
    )
    return {"bgp": component.run()}, component.routes()
