"""Manifest files: the bytes of a .yaml, .yml or .json file as numbered objects, and EndpointSlices back. Pure.

Life: ``documents`` takes a whole file; the manifest source and ``lab apply`` turn each mapping into an object by
``wire/kube.from_mapping``. A ``kind: List`` (or ``ServiceList`` ...) counts as its items. YAML is read as the
Kubernetes tools read it: dates stay text. Errors name file and document.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
import yaml

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES, EndpointSlice, SliceEndpoint

SUFFIXES = (".yaml", ".yml", ".json")
TRIGGERED = "endpoints.kubernetes.io/last-change-trigger-time"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """The safe loader without dates: the API's timestamps are strings."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # PyYAML's own name
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in _Base.yaml_implicit_resolvers.items()
    }


class Document(NamedTuple):
    """One object of a file."""

    number: int
    """Of its document in the file, from 1; items of a list share it."""
    value: dict[str, Any]


def documents(file: str, raw: bytes) -> Iterator[Document]:
    """The objects of a file in order; empty documents are left out.

    ``file`` is for errors, and its suffix says what it is (without one of ``SUFFIXES``: YAML, which JSON is a part
    of). Raises ConfigError where the first thing is wrong; what came before has been yielded.
    """
    for number, value in enumerate(_values(file, raw), 1):
        if value is not None:
            yield from _flat(file, number, value)


def _values(file: str, raw: bytes) -> Iterator[Any]:
    number = 1
    try:
        if file.endswith(".json") and raw.strip():
            yield msgspec.json.decode(raw)
            return
        for value in yaml.load_all(raw, Loader=_Loader):
            yield value
            number += 1
    except msgspec.DecodeError as exc:
        raise ConfigError(file, "document 1", _excerpt(raw), f"is not JSON: {exc}") from exc
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        mark = getattr(exc, "problem_mark", None)
        before = raw.decode(errors="replace").split("\n")[: mark.line + 1] if mark else []
        line = [text for text in before if text.strip()][-1:]
        where = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(exc, "problem", None) or getattr(exc, "reason", None) or str(exc)
        raise ConfigError(
            file, f"document {number}", line[0] if line else _excerpt(raw), f"is not YAML: {problem}{where}"
        ) from exc


def _flat(file: str, number: int, value: Any) -> Iterator[Document]:
    place = f"{file} document {number}"
    if not isinstance(value, dict):
        raise ConfigError(place, "document", value, "expected an object")
    kind = value.get("kind")
    if not isinstance(kind, str) or not kind:
        raise ConfigError(place, "kind", kind, "expected the kind of an object")
    if not kind.endswith("List") or "items" not in value:
        yield Document(number, value)
        return
    items = value["items"]
    if items is not None and not isinstance(items, list):
        raise ConfigError(place, "items", items, "expected a list")
    for item in items or ():
        # Lists of one kind, as the API gives them, do not repeat it in every item.
        head = {"apiVersion": value.get("apiVersion"), "kind": kind.removesuffix("List")}
        named = {**head, **item} if isinstance(item, dict) else item
        yield from _flat(file, number, named)


def _excerpt(raw: bytes) -> str:
    return raw[:60].decode(errors="replace")


def encode_slice(item: EndpointSlice) -> dict[str, Any]:
    """An EndpointSlice as its mapping in the API; ``changed`` becomes the trigger-time annotation."""
    metadata: dict[str, Any] = {"name": item.meta.name, "namespace": item.meta.namespace}
    if item.meta.labels:
        metadata["labels"] = dict(item.meta.labels)
    if item.changed:
        metadata["annotations"] = {TRIGGERED: datetime.fromtimestamp(item.changed, UTC).isoformat()}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": "IPv4" if item.family is Family.V4 else "IPv6",
        "ports": [
            {
                "name": port.name,
                "protocol": PROTOCOL_NAMES[port.protocol],
                **({"port": port.port} if port.port else {}),
            }
            for port in item.ports
        ],
        "endpoints": [_encode_endpoint(endpoint) for endpoint in item.endpoints],
    }


def _encode_endpoint(endpoint: SliceEndpoint) -> dict[str, Any]:
    value: dict[str, Any] = {
        "addresses": [endpoint.address],
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
    }
    texts = {"hostname": endpoint.hostname, "nodeName": endpoint.node, "zone": endpoint.zone}
    value |= {name: text for name, text in texts.items() if text}
    if endpoint.pod:
        namespace, _slash, name = endpoint.pod.partition("/")
        value["targetRef"] = {"kind": "Pod", "namespace": namespace, "name": name}
    hints: dict[str, Any] = {}
    if endpoint.hint_zones:
        hints["forZones"] = [{"name": zone} for zone in endpoint.hint_zones]
    if endpoint.hint_nodes:
        hints["forNodes"] = [{"name": node} for node in endpoint.hint_nodes]
    return {**value, "hints": hints} if hints else value
