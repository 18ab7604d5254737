"""Pods held to their own addresses: a node with three of them, one of which sends what it likes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from pycni.kernel import netns as namespaces
from pycni.policy.base import LocalPod
from pycni.policy.spoof import Guard
from tests.netns import frames as f
from tests.netns.podenv import Env, Pod


class CheckedPods:
    """The pods a, b and c, all checked, a wire at a, and catchers of what it sends: one at b."""

    def __init__(self, env: Env, pods: Iterable[Pod], local: Callable[[Pod], LocalPod]) -> None:
        self.env = env
        self.a, self.b, self.c = pods
        self.guard = Guard()
        self.guard.apply([local(pod) for pod in (self.a, self.b, self.c)])
        self._wires = ExitStack()
        self._wires.callback(self.guard.close)
        self._sender = self._wires.enter_context(self.a.inside(lambda: f.wire("eth0")))
        self.catchers: dict[str, Any] = {}
        self.catch("b", self.b.inside)

    def catch(self, name: str, inside: Callable[[Callable[[], Any]], Any], device: str = "eth0") -> None:
        """Another catcher, on a device of the namespace that ``inside`` works in."""
        self.catchers[name] = self._wires.enter_context(f.catching(inside, device))

    def close(self) -> None:
        self._wires.close()

    def counts(self) -> dict[str, int]:
        return {item.policy: item.packets for item in self.guard.denied()}

    def send(self, frame: bytes) -> None:
        self._sender.send(frame.ljust(60, b"\0"))


@contextlib.contextmanager
def guards_in(space: str) -> Iterator[Callable[[], Guard]]:
    """Makes guards in one namespace."""
    with ExitStack() as made:
        fd = namespaces.open_netns(namespaces.path(space))
        made.callback(os.close, fd)

        def make() -> Guard:
            guard = namespaces.run_in(fd, Guard)
            made.callback(guard.close)
            return guard

        yield make
