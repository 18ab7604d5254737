"""Which parts the agent has and who knows whom: the only place that sees all of them.

Life: ``wire`` is called once, on the event loop, when health and metrics are up. It makes the parts bottom-up, pushes
what has to be taken down onto the context's exits (so the CNI server, made last, is stopped first) and returns the
tasks. Implementations are imported here and not at the top: the command line must not pay for them.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from pycni.agent.components import COMPONENTS
from pycni.agent.process import Context, Tasks
from pycni.agent.settings_file import password

if TYPE_CHECKING:
    from pycni.sources.etcd import EtcdClient
    from pycni.sources.leases import LeaseSource

log = logging.getLogger("pycni.agent")


async def wire(context: Context) -> Tasks:
    """Make every part that is switched on. Errors: ``ConfigError`` for settings this node cannot have."""
    from pycni.agent import underlay  # noqa: PLC0415
    from pycni.store import Store  # noqa: PLC0415

    settings = context.settings
    # Refused here, before anything waits for etcd; the network component looks again, with the network's families.
    await asyncio.to_thread(underlay.detect, settings)
    store = Store()
    tasks: dict[str, Coroutine[Any, Any, object]] = {}
    for name in settings.components:
        module, _, attribute = COMPONENTS[name].partition(":")
        component = getattr(importlib.import_module(module), attribute)
        tasks[name] = component
    return tasks
