"""Kubernetes objects from JSON and YAML documents: what the API's lists and watches say, as our structs.

Life: a source hands over a response body (``decode_list``), a line of a watch (``decode_event``) or a document of a
manifest (``from_mapping``, ``decode_object``) and puts the result into the store. Only the fields used are decoded.

Two kinds of wrong input are told apart. One object that makes no sense is skipped and comes back as ``Skipped``, with
a ConfigError naming object, field and value: the rest of its listing is good. A body that is no list, event or object
at all raises ConfigError. Nothing else is ever raised, whatever the bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from pycni.errors import ConfigError
from pycni.model.kube import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.wire import kube_convert, kube_policy_cluster
from pycni.wire.gojson import shorten
from pycni.wire.kube_convert import (
    ANNOTATION_PREFIXES,
    CLUSTER_WIDE,
    KubeObject,
    object_key,
    object_name,
)
from pycni.wire.kube_policy_standin import STOOD_IN, stand_in
from pycni.wire.kube_policy_types import WireClusterNetworkPolicy, WireNetworkPolicy, WirePolicy
from pycni.wire.kube_types import (
    Wire,
    WireEvent,
    WireHead,
    WireListMeta,
    WireNamespace,
    WireNode,
    WireObject,
    WirePod,
    WireService,
    WireSlice,
    WireStatus,
)

__all__ = [
    "ANNOTATION_PREFIXES",
    "API_VERSIONS",
    "CLUSTER_WIDE",
    "Event",
    "KubeObject",
    "ListPage",
    "Skipped",
    "Status",
    "decode_event",
    "decode_list",
    "decode_object",
    "decode_status",
    "from_mapping",
]

W = TypeVar("W", bound=WireObject | WirePolicy)

API_VERSIONS: Mapping[str, str] = {
    SERVICE: "v1",
    ENDPOINT_SLICE: "discovery.k8s.io/v1",
    NODE: "v1",
    POD: "v1",
    NAMESPACE: "v1",
    NETWORK_POLICY: "networking.k8s.io/v1",
    CLUSTER_NETWORK_POLICY: "policy.networking.k8s.io/v1alpha2",
}
"""The kinds we know and the version of each that we read."""

CONVERTERS: Mapping[str, Callable[[Any], KubeObject | None]] = {
    **kube_convert.CONVERTERS,
    **kube_policy_cluster.CONVERTERS,
}
"""By kind: from what was decoded to our structs."""

_BROKEN = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError, OverflowError)
"""All that decoding foreign bytes raises."""
_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")


class Skipped(NamedTuple):
    """An object that makes no sense."""

    key: str
    """Key in the store; "" when not even the name can be read."""
    error: ConfigError
    stand_in: KubeObject | None = None
    """What to keep in its place when nothing better is known; policies only (``kube_policy_standin``)."""


class ListPage(NamedTuple):
    """One page of a listing."""

    items: list[KubeObject]
    resource_version: str
    """Where a watch can go on from; of the last page's list."""
    continue_token: str
    """"" on the last page."""
    skipped: list[Skipped]


class Status(NamedTuple):
    """The API's answer in place of an object."""

    code: int
    reason: str
    """``Expired``, ``TooManyRequests``, ... ("" when not given)."""
    message: str
    retry_after_s: float = 0.0
    """Seconds the server wants to be left alone; 0.0: it does not say."""


class Event(NamedTuple):
    """One line of a watch. Only fields fitting ``type`` are set."""

    type: str
    """ADDED, MODIFIED, DELETED, BOOKMARK or ERROR."""
    key: str
    """Key in the store of the object it is about."""
    object: KubeObject | None
    """None for BOOKMARK, ERROR, for what was skipped, and for valid objects that are of no concern (FQDN slices)."""
    resource_version: str
    """Where a broken watch can go on from; "" for ERROR."""
    status: Status | None = None
    """ERROR: what happened."""
    skipped: Skipped | None = None


class _List(Wire, Generic[W]):
    metadata: WireListMeta | None = None
    items: list[W | None] | None = None


class _RawList(Wire):
    metadata: WireListMeta | None = None
    items: list[msgspec.Raw] | None = None


class _OnlyMeta(Wire):
    metadata: WireListMeta | None = None


_ITEMS: Mapping[str, msgspec.json.Decoder[Any]] = {
    SERVICE: msgspec.json.Decoder(WireService),
    ENDPOINT_SLICE: msgspec.json.Decoder(WireSlice),
    NODE: msgspec.json.Decoder(WireNode),
    POD: msgspec.json.Decoder(WirePod),
    NAMESPACE: msgspec.json.Decoder(WireNamespace),
    NETWORK_POLICY: msgspec.json.Decoder(WireNetworkPolicy),
    CLUSTER_NETWORK_POLICY: msgspec.json.Decoder(WireClusterNetworkPolicy),
}
_LISTS: Mapping[str, msgspec.json.Decoder[Any]] = {
    SERVICE: msgspec.json.Decoder(_List[WireService]),
    ENDPOINT_SLICE: msgspec.json.Decoder(_List[WireSlice]),
    NODE: msgspec.json.Decoder(_List[WireNode]),
    POD: msgspec.json.Decoder(_List[WirePod]),
    NAMESPACE: msgspec.json.Decoder(_List[WireNamespace]),
    NETWORK_POLICY: msgspec.json.Decoder(_List[WireNetworkPolicy]),
    CLUSTER_NETWORK_POLICY: msgspec.json.Decoder(_List[WireClusterNetworkPolicy]),
}
_raw_list = msgspec.json.Decoder(_RawList)
_head = msgspec.json.Decoder(WireHead)
_event = msgspec.json.Decoder(WireEvent)
_status = msgspec.json.Decoder(WireStatus)
_only_meta = msgspec.json.Decoder(_OnlyMeta)


def decode_object(raw: bytes) -> tuple[str, KubeObject]:
    """An object of any of our kinds with its kind. Raises ConfigError, also for other kinds and FQDN slices."""
    head = _read(_head, raw, "object")
    kind = head.kind or ""
    _need_version(kind, head)
    found = _item(kind, raw)
    if found is None:
        raise ConfigError(object_name(kind, head.metadata), "addressType", "FQDN", "expected IPv4 or IPv6")
    return kind, found


def from_mapping(value: Mapping[str, Any]) -> tuple[str, KubeObject] | None:
    """A YAML document as its parser gives it; objects without namespace are in "default".

    None for kinds we do not know and for FQDN slices. Raises ConfigError.
    """
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in API_VERSIONS:
        return None
    try:
        raw = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as exc:
        reason = str(exc) or "too deeply nested"
        raise ConfigError(kind, "document", dict(value), reason) from None
    _need_version(kind, _read(_head, raw, kind))
    found = _item(kind, raw)
    return None if found is None else (kind, found)


def decode_list(kind: str, raw: bytes) -> ListPage:
    """The body of a list request for ``kind``. Raises ConfigError when it is no list."""
    items: list[KubeObject] = []
    skipped: list[Skipped] = []
    convert = CONVERTERS[kind]
    try:
        page = _LISTS[kind].decode(raw)
    except _BROKEN:
        # One bad object is no reason to lose the others: slowly, one after the other.
        page = _read(_raw_list, raw, f"list of {kind}")
        for each in page.items or ():
            try:
                found = _item(kind, bytes(each))
            except ConfigError as exc:
                skipped.append(Skipped(_key_of(kind, bytes(each)), exc, stand_in(kind, bytes(each))))
                continue
            if found is not None:
                items.append(found)
    else:
        for wire in page.items or ():
            try:
                found = None if wire is None else convert(wire)
            except ConfigError as exc:
                skipped.append(Skipped(object_key(kind, wire.metadata), exc, _stand_in(kind, wire)))
                continue
            if found is not None:
                items.append(found)
    if page.items is None and page.metadata is None:
        raise ConfigError(f"list of {kind}", "JSON", shorten(raw), "expected a list")
    meta = page.metadata or WireListMeta()
    return ListPage(items, meta.resource_version or "", meta.continue_ or "", skipped)


def decode_event(kind: str, line: bytes) -> Event:
    """One line of a watch for ``kind``. Raises ConfigError when it is no event; a bad object is ``skipped``.

    A BOOKMARK's object is a half-empty one (a pod's ``containers`` is null): only its resourceVersion is read.
    """
    obj = f"watch of {kind}"
    head = _read(_event, line, obj)
    body = bytes(head.object)
    if head.type in {"ADDED", "MODIFIED", "DELETED"}:
        return _object_event(kind, head.type, body)
    if head.type == "BOOKMARK":
        meta = _read(_only_meta, body, obj).metadata
        return Event(head.type, "", None, (meta.resource_version if meta is not None else None) or "")
    if head.type == "ERROR":
        return Event(head.type, "", None, "", status=decode_status(body))
    raise ConfigError(obj, "type", head.type, "expected ADDED, MODIFIED, DELETED, BOOKMARK or ERROR")


def decode_status(raw: bytes) -> Status:
    """A Status object, code 0 for anything else. Never raises: it is read when something is wrong already."""
    try:
        found = _status.decode(raw)
    except _BROKEN:
        return Status(0, "", shorten(raw))
    after = found.details.retry_after_seconds if found.details is not None else None
    return Status(
        found.code or 0, found.reason or "", found.message or "", float(min(max(after or 0, 0), 86400))
    )


def _object_event(kind: str, event: str, body: bytes) -> Event:
    try:
        wire = _ITEMS[kind].decode(body)
        key, version = (
            object_key(kind, wire.metadata),
            wire.metadata.resource_version if wire.metadata else None,
        )
        # What is gone has to be gone even if it never made sense.
        found = None if event == "DELETED" and key else CONVERTERS[kind](wire)
    except ConfigError as exc:
        return Event(event, key, None, version or "", skipped=Skipped(key, exc, stand_in(kind, body)))
    except _BROKEN as exc:
        problem = _problem(kind, body, exc)
        key = _key_of(kind, body)
        return Event(event, key, None, _version_of(body), skipped=Skipped(key, problem, stand_in(kind, body)))
    return Event(event, key, found, version or "")


def _stand_in(kind: str, wire: Any) -> KubeObject | None:
    """The same of what was decoded and makes no sense."""
    return stand_in(kind, msgspec.json.encode(wire)) if kind in STOOD_IN else None


def _item(kind: str, raw: bytes) -> KubeObject | None:
    try:
        wire = _ITEMS[kind].decode(raw)
    except _BROKEN as exc:
        raise _problem(kind, raw, exc) from None
    return CONVERTERS[kind](wire)


def _need_version(kind: str, head: WireHead) -> None:
    """Raise ConfigError for kinds and versions we do not read."""
    expected = API_VERSIONS.get(kind)
    if expected is None:
        raise ConfigError("object", "kind", kind, f"expected one of {', '.join(API_VERSIONS)}")
    if head.api_version != expected:
        obj = object_name(kind, head.metadata)
        raise ConfigError(obj, "apiVersion", head.api_version, f"expected {expected}")


def _read(decoder: msgspec.json.Decoder[Any], raw: bytes, obj: str) -> Any:
    try:
        return decoder.decode(raw)
    except _BROKEN as exc:
        raise ConfigError(obj, "JSON", shorten(raw), _reason(exc)) from None


def _problem(kind: str, raw: bytes, exc: Exception) -> ConfigError:
    """The error about an object of which a field has the wrong type: field and value found by the decoder's path."""
    message = _reason(exc)
    match = _PATH.search(message)
    try:
        tree = msgspec.json.decode(raw)
    except _BROKEN:
        return ConfigError(kind, "JSON", shorten(raw), message)
    obj = _name_of(kind, raw)
    if match is None:
        return ConfigError(obj, "JSON", shorten(raw), message)
    return ConfigError(obj, match[1] or "object", _at(tree, match[1]), message[: match.start()])


def _at(tree: Any, path: str) -> Any:
    """The value at a path of the decoder (``spec.ports[0].port``; ``[...]`` stands for any key of a map)."""
    for name, index in _STEP.findall(path):
        if index and isinstance(tree, list) and int(index) < len(tree):
            tree = tree[int(index)]
        elif name and isinstance(tree, dict) and name in tree:
            tree = tree[name]
        else:
            break
    return tree


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


def _name_of(kind: str, raw: bytes) -> str:
    """Name for errors of an object that does not decode."""
    try:
        return object_name(kind, _head.decode(raw).metadata)
    except _BROKEN:
        return kind


def _key_of(kind: str, raw: bytes) -> str:
    """Store key of an object that does not decode; "" when its metadata does not either."""
    try:
        return object_key(kind, _head.decode(raw).metadata)
    except _BROKEN:
        return ""


def _version_of(raw: bytes) -> str:
    """The resourceVersion of an object that does not decode."""
    try:
        meta = _only_meta.decode(raw).metadata
    except _BROKEN:
        return ""
    return (meta.resource_version if meta is not None else None) or ""
