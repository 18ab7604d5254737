"""Node objects on their way into the store as leases: what every node's flannel annotations say.

Kind "lease": key = the record name flannel's etcd mode would use, value = ``Lease`` (our own included). A node that is
not managed, or whose annotations make no sense, has no lease; one that had a readable lease keeps it until its
annotations make sense again or it goes. Of two nodes with one subnet the older object counts.

When a listing lacks *our own* node though we hold a lease, the API has lost its data rather than its nodes: for
``grace_s`` leases are only added, and without an earlier listing they do not count as listed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.kube import KubeNode
from pycni.model.lease import Lease, LeaseAttrs
from pycni.store import Store
from pycni.wire.kube_flannel import Names, decode_node_lease

log = logging.getLogger("pycni.leases")
LEASE = "lease"


class NodeLeases:
    """A ``sources.kube.Sink``. One event loop.

    ``on_own`` is called with our own node object whenever it was seen, None when it does not exist.
    """

    def __init__(self, own_name: str, names: Names, *, grace_s: float) -> None:
        self.store = Store()
        self.own_attrs: LeaseAttrs | None = None
        """What our own lease says, whatever our annotations do (an overwritten address is for others)."""
        self.malformed: dict[str, str] = {}
        """Node name -> why it has no lease."""
        self.expected = False
        """Whether an earlier life held a lease, so that our node should exist."""
        self.on_own: Callable[[KubeNode | None], None] = lambda _node: None
        self._own_name = own_name
        self._names = names
        self._grace_s = grace_s
        self._families: Sequence[Family] = ()
        self._nodes: dict[str, KubeNode] = {}
        self._leases: dict[str, Lease] = {}
        """Readable ones by node name."""
        self._claims: dict[str, set[str]] = {}
        """Names of the nodes that claim a key."""
        self._heard = False
        self._graced = False
        self._timer: asyncio.TimerHandle | None = None

    def use(self, families: Sequence[Family]) -> None:
        """Which families the network has: known from the net-conf, and maybe changed with it."""
        if families != self._families:
            self._families = families
            self._forget_leases()
            for node in self._nodes.values():
                self._read(node)
            self._publish()

    def own_changed(self, attrs: LeaseAttrs) -> None:
        """Our own lease says something else."""
        self.own_attrs = attrs
        if self._own_name in self._nodes:
            self._publish(self._read(self._nodes[self._own_name]))

    def close(self) -> None:
        """Cancel what is planned."""
        if self._timer is not None:
            self._timer.cancel()

    # --- sink -------------------------------------------------------------------------------------------------

    def listed(self, objects: dict[str, Any], unreadable: Mapping[str, Any]) -> None:
        """All nodes."""
        objects |= {name: self._nodes[name] for name in unreadable if name in self._nodes}
        for name in self._nodes:
            if name not in objects:
                self._set(name, None)
                self.malformed.pop(name, None)
        self._nodes = objects
        self._heard = True
        for node in objects.values():
            self._read(node)
        self._watch_own()
        self._publish()
        self.on_own(objects.get(self._own_name))

    def changed(self, key: str, value: Any) -> None:
        """One node."""
        if value is not None and value == self._nodes.get(key):
            return  # a heartbeat
        if value is None:
            self._nodes.pop(key, None)
            self.malformed.pop(key, None)
            touched = self._set(key, None)
        else:
            self._nodes[key] = value
            touched = self._read(value)
        if key == self._own_name:
            if value is not None:
                self._watch_own()
            self.on_own(value)
        self._publish(touched)

    def unreadable(self, key: str, stand_in: Any) -> None:
        """A node that makes no sense now stays what it was."""

    # --- inside -----------------------------------------------------------------------------------------------

    def _read(self, node: KubeNode) -> set[str]:
        """Take a node's lease from its annotations; the keys that may have changed."""
        name = node.meta.name
        if not self._families:
            return set()
        try:
            lease = decode_node_lease(node, self._names, self._families)
        except ConfigError as exc:
            if self.malformed.get(name) != str(exc):
                self.malformed[name] = str(exc)
                log.warning("no lease: %s", exc)
            return set()
        self.malformed.pop(name, None)
        if lease is not None and name == self._own_name and self.own_attrs is not None:
            lease = Lease(subnet=lease.subnet, subnet6=lease.subnet6, attrs=self.own_attrs)
        return self._set(name, lease)

    def _set(self, name: str, lease: Lease | None) -> set[str]:
        """Remember a node's lease; the keys that may have changed."""
        held = self._leases.pop(name, None)
        if held is not None:
            self._claims[held.key].discard(name)
        if lease is not None:
            self._leases[name] = lease
            self._claims.setdefault(lease.key, set()).add(name)
        return {each.key for each in (held, lease) if each is not None}

    def _forget_leases(self) -> None:
        self._leases = {}
        self._claims = {}

    def _of_key(self, key: str) -> Lease | None:
        """The lease of a key: of several nodes that claim it the oldest has it."""
        claims = self._claims.get(key)
        if not claims:
            return None
        return self._leases[min(claims, key=lambda name: (self._nodes[name].meta.created, name))]

    def _publish(self, keys: set[str] | None = None) -> None:
        """Have the store say what we know, about some keys or (None) altogether."""
        if not self._heard or not self._families:
            return
        if self._timer is None and keys is None:
            known = {key: self._of_key(key) for key in self._claims}
            self.store.replace(LEASE, {key: lease for key, lease in known.items() if lease is not None})
            return
        for key in self._claims if keys is None else keys:
            lease = self._of_key(key)
            if lease is not None:
                self.store.put(LEASE, key, lease)
            elif self._timer is None:
                self.store.delete(LEASE, key)

    def _watch_own(self) -> None:
        """Start the grace when our own node is missing, end it when it is back."""
        missing = self._own_name not in self._nodes and (self.expected or self.own_attrs is not None)
        if not missing:
            graced, self._graced = self._timer is not None, False
            self.close()
            self._timer = None
            if graced:
                self._publish()
        elif not self._graced:
            self._graced = True
            text = "node %s does not exist though it has a lease: for %.0f s no lease is forgotten"
            log.warning(text, self._own_name, self._grace_s)
            self._timer = asyncio.get_running_loop().call_later(self._grace_s, self._grace_over)

    def _grace_over(self) -> None:
        self._timer = None
        self._publish()
