"""Which network namespaces' sockets are served: the node's own and those of its pods, or everybody's on a real host.

Nodes of a lab share one kernel and one control group tree, so every socket of the machine passes every node's
programs; they leave alone what is not in their map of namespace cookies. A pod's cookie is entered from
``EndpointStore`` changes, on the thread of the ADD and before it answers, so a pod's first connection is translated.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable

from pycni.errors import KernelError
from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import bpf_places
from pycni.kernel.bpf_map import BpfMap
from pycni.model.endpoint import Endpoint, Owner

log = logging.getLogger("pycni.proxy.ebpf")

EVERYBODY = 0
"""In place of a cookie: all namespaces of the machine."""
_YES = b"\1\0\0\0"


class Namespaces:
    """The map of served namespaces. Thread-safe."""

    def __init__(self, served: BpfMap, *, everybody: bool, own: int) -> None:
        """``own`` is the node's cookie. Takes over the map. Raises KernelError."""
        self._map = served
        self._lock = threading.Lock()
        self._everybody = everybody
        self._own = own
        self._paths: dict[Owner, tuple[str, int]] = {}
        self._extra: dict[str, int] = {}
        self._unsubscribe: Callable[[], None] = _nothing
        served.put(_key(EVERYBODY if everybody else own), _YES)

    def follow(self, endpoints: EndpointStore) -> None:
        """Serve the pods of this store, now and as they come and go; others are no longer served."""
        self._unsubscribe()
        self._unsubscribe = endpoints.subscribe(self._changed, replay=True)
        if self._everybody:
            return
        with self._lock:
            wanted = {self._own, *self._extra.values(), *(cookie for _, cookie in self._paths.values())}
            for key in self._map.items().keys() - {_key(cookie) for cookie in wanted}:
                self._map.delete(key)

    def add(self, file: str) -> int:
        """Serve one more namespace by its file; returns its cookie. Raises KernelError."""
        cookie = bpf_places.cookie_of(file)
        with self._lock:
            self._extra[file] = cookie
            self._map.put(_key(cookie), _YES)
        return cookie

    def paths(self) -> list[str]:
        """Files of the namespaces of pods that are served."""
        with self._lock:
            return [*self._extra, *(path for path, _ in self._paths.values())]

    def close(self) -> None:
        """Follow no more; what is in the map stays."""
        self._unsubscribe()
        self._unsubscribe = _nothing
        with self._lock:
            self._map.close()

    def _changed(self, before: Endpoint | None, after: Endpoint | None) -> None:
        endpoint = after or before
        if endpoint is None:
            return
        if after is None or after.state == "dying" or not after.netns:
            self._forget(endpoint.owner)
            return
        with self._lock:
            known = self._paths.get(endpoint.owner)
        if known is not None and known[0] == endpoint.netns:
            return
        try:
            cookie = bpf_places.cookie_of(endpoint.netns)
        except KernelError as error:
            # A namespace that went while the agent was down; a new pod's own ADD fails for the same reason.
            log.info("services are not translated in the sockets of %s: %s", endpoint.owner, error)
            return
        with self._lock:
            self._paths[endpoint.owner] = (endpoint.netns, cookie)
            if self._map.fd >= 0 and not self._everybody:
                self._map.put(_key(cookie), _YES)

    def _forget(self, owner: Owner) -> None:
        with self._lock:
            known = self._paths.pop(owner, None)
            if known is None or self._everybody or self._map.fd < 0:
                return
            # Another attachment of the same pod may still be there.
            if all(cookie != known[1] for _, cookie in self._paths.values()):
                self._map.delete(_key(known[1]))


def _key(cookie: int) -> bytes:
    return cookie.to_bytes(8, sys.byteorder)


def _nothing() -> None:
    """No subscription to end."""
