"""What a trace does inside a lab's node: reading namespaces and sending a probe. See ``inside`` for how it gets there.

``namespaces`` are names below /run/netns by the space they are; "" is the node itself where it needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec

from pycni.agent.trace_watch import Places, Running
from pycni.kernel import spacestate
from pycni.kernel.capture import Enter
from pycni.lab import netns
from pycni.model.space import SpaceState
from pycni.trace.model import Flow
from pycni.tracing.eyes import Launched, Order
from pycni.tracing.local import LocalNode
from pycni.tracing.speech import Watch

T = TypeVar("T")
_places = Places()


def space_states(namespaces: Mapping[str, str], wireguard: str = "") -> dict[str, SpaceState]:
    """The states of namespaces, by space. ``wireguard``: folder of wireguard-go's sockets. Raises KernelError."""
    read = partial(spacestate.read, wireguard=wireguard)
    return {space: netns.inside(name, read) for space, name in namespaces.items()}


def launch(
    namespaces: Mapping[str, str], space: str, flow: Mapping[str, Any], token: int, size: int
) -> Launched:
    """Send one probe from a space. ``flow``: as JSON has it. Raises KernelError, OSError."""
    node = LocalNode("", {name: enter(where) for name, where in namespaces.items()})
    more = (size,) if size else ()
    return node.send(space, msgspec.convert(flow, Flow), token, *more)


def watch(node: str, order: Mapping[str, Any], namespaces: Mapping[str, str]) -> Running:
    """Begin to watch. ``order``: as JSON has it. Raises RefusedError, KernelError, OSError."""
    spaces = {name: enter(where) for name, where in namespaces.items()}
    return Running(_places, LocalNode(node, spaces), Watch(order=msgspec.convert(order, Order)))


def enter(namespace: str) -> Enter:
    """How to run something in a namespace."""

    def run(function: Callable[[], T]) -> T:
        return netns.inside(namespace, function)

    return run


CALLS: dict[str, Callable[..., Any]] = {item.__name__: item for item in (space_states, launch)}
