"""A lab's nodes as a trace sees them: namespaces of this machine, read and watched directly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from pycni.kernel.capture import Enter
from pycni.lab import netns
from pycni.lab.run import Lab
from pycni.lab.trace_world import gather, pod_key
from pycni.model.space import NODE
from pycni.tracing.eyes import Gathered
from pycni.tracing.local import LocalNode

T = TypeVar("T")


class LabEyes:
    """See ``tracing.eyes.Eyes``."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def gather(self) -> Gathered:
        """See ``tracing.eyes.Eyes``. Raises LabError, KernelError."""
        return gather(self._lab)

    @property
    def nodes(self) -> Mapping[str, LocalNode]:
        """See ``tracing.eyes.Eyes``."""
        spaces: dict[str, dict[str, Enter]] = {
            node.name: {NODE: _enter(node.namespace)} for node in self._lab.nodes()
        }
        for pod in self._lab.pods():
            if pod.namespace and pod.network == "cluster":
                spaces[pod.node][pod_key(pod)] = _enter(pod.namespace)
        return {name: LocalNode(name, found) for name, found in spaces.items()}


def _enter(name: str) -> Enter:
    def run(function: Callable[[], T]) -> T:
        return netns.inside(name, function)

    return run
