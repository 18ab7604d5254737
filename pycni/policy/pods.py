"""Pods of this node as its own records have them, laid over what the cluster says of them.

Kubernetes' API learns a pod's addresses only after its ADD has returned, forgets a pod deleted by force while it still
runs, and may show a pod of an earlier life under the same name or address. This node knows better: who has which
address here is in the record of the attachment, from before the first packet until the pod is cut off. So policies are
compiled from ``Overlay``: objects as the store has them, with the addresses of this node's pods corrected.

Life: ``LocalPods`` hears of every attachment from ``EndpointStore`` and from the gate; ``take`` says what changed since
the last pass. Any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from pycni.attach.names import names
from pycni.ipam.endpoints import EndpointStore
from pycni.model.attachment import AttachmentKind
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.kube import POD, Pod
from pycni.policy.base import LocalPod


class Attachment(NamedTuple):
    """What matters of an attachment on record."""

    owner: Owner
    key: str
    """``namespace/name`` of the pod; "" when the runtime did not tell."""
    namespace: str
    uid: str
    """"" when the runtime did not tell."""
    addresses: tuple[tuple[str, bytes], ...]
    """As canonical text and packed."""
    ifname: str
    mac: bytes
    state: str
    """``pending``, ``ready`` or ``dying``."""
    routed: bool = False
    """Its host end is on no bridge: packets by it are the node's to route."""

    def fits(self, pod: Pod) -> bool:
        """Whether it is this pod's."""
        return self.key == pod.meta.key and (not self.uid or not pod.meta.uid or self.uid == pod.meta.uid)


class Moved(NamedTuple):
    """What changed."""

    keys: set[str]
    """Of pods with other records."""
    addresses: set[bytes]
    """With other holders."""


class LocalPods:
    """Attachments by owner, pod and address."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._lock = threading.Lock()
        self._records: dict[Owner, Attachment] = {}
        self._by_pod: dict[str, tuple[Attachment, ...]] = {}
        self._by_address: dict[str, tuple[Attachment, ...]] = {}
        """The last one holds it."""
        self._holders: dict[bytes, Attachment] = {}
        self._moved = Moved(set(), set())

    def follow(self, endpoints: EndpointStore, changed: Callable[[], None]) -> None:
        """Take over all records of a store, now and as they change. ``changed`` comes on any thread."""

        def note(before: Endpoint | None, after: Endpoint | None) -> None:
            if (after is not None and self.put(after)) or (
                after is None and before is not None and self.remove(before.owner)
            ):
                changed()

        endpoints.subscribe(note, replay=True)

    def put(self, endpoint: Endpoint) -> bool:
        """Remember an attachment. Returns whether that was news."""
        new = _attachment(endpoint)
        with self._lock:
            old = self._records.get(new.owner)
            if old == new:
                return False
            if old is not None:
                self._forget(old)
            elif new.state == "dying":
                return False  # it is cut off: ``remove`` came before
            self._records[new.owner] = new
            if new.key:
                self._by_pod[new.key] = (*self._by_pod.get(new.key, ()), new)
            for text, _ in new.addresses:
                held = self._by_address.get(text, ())
                self._by_address[text] = (new, *held) if new.state == "dying" else (*held, new)
            self._note(new)
        return True

    def remove(self, owner: Owner) -> bool:
        """Forget an attachment. Returns whether it was known."""
        with self._lock:
            old = self._records.pop(owner, None)
            if old is not None:
                self._forget(old)
        return old is not None

    def take(self) -> Moved:
        """What changed since the last call."""
        with self._lock:
            found, self._moved = self._moved, Moved(set(), set())
        return found

    def put_back(self, moved: Moved) -> None:
        """Report it again with the next ``take``: its pass failed."""
        with self._lock:
            self._moved.keys.update(moved.keys)
            self._moved.addresses.update(moved.addresses)

    def holders(self) -> dict[bytes, Attachment]:
        """Who has which address here; an attachment that was recorded anew is another object."""
        with self._lock:
            return dict(self._holders)

    def pods(self) -> tuple[LocalPod, ...]:
        """Those that have their devices, for what serves pods one by one."""
        with self._lock:
            return tuple(local_pod(item) for item in self._records.values() if item.state == "ready")

    def corrected(self, pod: Pod) -> Pod:
        """A pod of the cluster with the addresses it has by this node's records."""
        if pod.host_network or self._know_nothing_of(pod):
            return pod
        mine = [item for item in self._by_pod.get(pod.meta.key, ()) if item.fits(pod)]
        ips = tuple(text for text in pod.ips if self._leaves(text, pod))
        if not mine:
            return pod if len(ips) == len(pod.ips) else msgspec.structs.replace(pod, ips=ips)
        here = (text for item in mine for text, _ in item.addresses if self._leaves(text, pod))
        ips = tuple(dict.fromkeys((*ips, *here)))
        if (ips, pod.node) == (pod.ips, self._node):
            return pod
        return msgspec.structs.replace(pod, ips=ips, node=self._node)

    def _know_nothing_of(self, pod: Pod) -> bool:
        """As of nearly every pod: those of other nodes."""
        return self._by_address.keys().isdisjoint(pod.ips) and pod.meta.key not in self._by_pod

    def _leaves(self, text: str, pod: Pod) -> bool:
        """Whether the records leave the pod this address."""
        held = self._by_address.get(text)
        return not held or held[-1].fits(pod)

    def _forget(self, old: Attachment) -> None:
        _without(self._by_pod, old.key, old)
        for text, _ in old.addresses:
            _without(self._by_address, text, old)
        self._note(old)

    def _note(self, item: Attachment) -> None:
        if item.key:
            self._moved.keys.add(item.key)
        for text, packed in item.addresses:
            self._moved.addresses.add(packed)
            held = self._by_address.get(text)
            if held:
                self._holders[packed] = held[-1]
            else:
                self._holders.pop(packed, None)


class Overlay:
    """A store's contents (``store.Objects``) with corrected pods."""

    def __init__(self, objects: Any, pods: LocalPods) -> None:
        """``objects``: ``store.Current`` or ``store.Snapshot``."""
        self._objects = objects
        self._pods = pods

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind by key."""
        found: Mapping[str, Any] = self._objects.of(kind)
        return _Pods(found, self._pods) if kind == POD else found

    def frozen(self) -> Overlay:
        """The contents at one moment; records are as they are at each look, which ``take`` makes up for."""
        return Overlay(self._objects.frozen(), self._pods)


class _Pods(Mapping[str, Any]):
    def __init__(self, objects: Mapping[str, Pod], pods: LocalPods) -> None:
        self._objects = objects
        self._pods = pods

    def __getitem__(self, key: str) -> Pod:
        return self._pods.corrected(self._objects[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._objects)

    def __len__(self) -> int:
        return len(self._objects)


def local_pod(item: Attachment) -> LocalPod:
    """For what serves pods one by one."""
    key = item.key or item.owner.container_id
    return LocalPod(key, item.ifname, item.mac, tuple(packed for _, packed in item.addresses), item.routed)


def local_pod_of(endpoint: Endpoint) -> LocalPod:
    """The same of an endpoint."""
    return local_pod(_attachment(endpoint))


def addresses_of(endpoint: Endpoint) -> tuple[bytes, ...]:
    """Packed."""
    return tuple(item.ip.packed for item in endpoint.addresses)


def _sending_mac(endpoint: Endpoint) -> bytes:
    """What a pod sends to its node with: ipvlan children have their uplink's MAC, legs beside them one of their own."""
    if endpoint.attachment is AttachmentKind.IPVLAN:
        return names(endpoint.owner).mac
    return bytes.fromhex(endpoint.mac.replace(":", ""))


def _attachment(endpoint: Endpoint) -> Attachment:
    named = endpoint.pod_namespace and endpoint.pod_name
    return Attachment(
        endpoint.owner,
        f"{endpoint.pod_namespace}/{endpoint.pod_name}" if named else "",
        endpoint.pod_namespace,
        endpoint.pod_uid,
        tuple((str(item.ip), item.ip.packed) for item in endpoint.addresses),
        endpoint.host_ifname,
        _sending_mac(endpoint),
        endpoint.state,
        endpoint.attachment is not AttachmentKind.BRIDGE,
    )


def _without(table: dict[str, tuple[Attachment, ...]], key: str, item: Attachment) -> None:
    left = tuple(each for each in table.get(key, ()) if each is not item)
    if left:
        table[key] = left
    else:
        table.pop(key, None)
