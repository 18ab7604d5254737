"""Where objects of Kubernetes come from, for all components that want any: one source, each kind listed once.

Life: components say what they need (``Needs``) while they are wired; then ``make`` gives the one task that brings it
into the store: a watched folder of manifests, else the Kubernetes API.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from pycni.agent.observe import follow_kube
from pycni.agent.process import Context, Tasks
from pycni.errors import ConfigError

if TYPE_CHECKING:
    from pycni.sources.kube import KubeSource, Selection
    from pycni.sources.kube_client import KubeClient
    from pycni.sources.manifests import ManifestSource
    from pycni.store import Store

log = logging.getLogger("pycni.agent")


class Needs:
    """Which objects the components of this process want."""

    def __init__(self) -> None:
        self.selections: dict[str, Selection] = {}
        self.derive_slices = False
        """In a folder of manifests: EndpointSlices from Services and Pods."""
        self.sources: Sources | None = None
        """Once they are made."""

    def add(self, *selections: Selection) -> None:
        """A kind that somebody wants whole is followed whole. Raises ConfigError for two different parts of one."""
        for item in selections:
            held = self.selections.setdefault(item.kind, item)
            if held == item or held == type(item)(item.kind):
                continue
            if item != type(item)(item.kind):
                raise ConfigError("components", item.kind, item, f"another part of the agent wants {held}")
            self.selections[item.kind] = item

    def malformed(self) -> Mapping[str, str]:
        """What makes no sense: ``kind key`` or ``file name`` -> why."""
        return {} if self.sources is None else self.sources.malformed()


class Sources:
    """What was made."""

    def __init__(self, kube: KubeSource | None, folder: ManifestSource | None) -> None:
        self.kube = kube
        self.folder = folder

    def malformed(self) -> Mapping[str, str]:
        """What makes no sense: ``kind key`` or ``file name`` -> why."""
        if self.kube is not None:
            return self.kube.malformed
        return self.folder.malformed() if self.folder is not None else {}


def make(context: Context, store: Store, client: KubeClient | None, needs: Needs) -> tuple[Sources, Tasks]:
    """The source and its task; nothing when nothing is needed."""
    settings = context.settings
    if not needs.selections:
        return Sources(None, None), {}
    if settings.manifest_dir:
        from pycni.sources.manifests import ManifestSource  # noqa: PLC0415

        folder = ManifestSource(settings.manifest_dir, derive_slices=needs.derive_slices)
        return Sources(None, folder), {"manifests": folder.run(store)}
    assert client is not None, "objects come from the API, so there is a client"
    from pycni.sources.kube import KubeSource  # noqa: PLC0415

    source = KubeSource(client, list(needs.selections.values()))
    follow_kube(context.metrics, "pycni_kube", source.followers)

    def trouble() -> str:
        # Once everything was listed, an API that is away harms nothing: no reason to call the node unready.
        listed = store.snapshot().listed
        return "" if listed.issuperset(source.followers) else source.waiting

    context.health.set("kubernetes", ok=True)
    context.health.ask("kubernetes", trouble)
    kinds = ", ".join(sorted(needs.selections))
    log.info("objects of Kubernetes (%s) come from %s", kinds, client.server)
    tasks: dict[str, Coroutine[Any, Any, object]] = {"kubernetes": source.run(store)}
    return Sources(source, None), tasks
