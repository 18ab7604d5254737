"""Deployments and ReplicaSets of a lab: which pods they call for. Pure.

Life: ``lab apply`` checks a manifest by ``workload``; ``plan`` compares it with the pods there are and says which to
make and which to end; ``pod`` makes a Pod from the template. Pods are numbered (``web-1``, ``web-2`` ...), a new one
gets the first free number, and a changed template replaces all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from pycni.errors import ConfigError
from pycni.lab.objects import Key, Mappings, key_of

KINDS = ("Deployment", "ReplicaSet")
API_VERSION = "apps/v1"
MAX_REPLICAS = 500
_DIGEST = "pod-template-hash"


class Plan(NamedTuple):
    """What it takes to get from the pods there are to those called for."""

    new: list[Mappings]
    ended: list[Key]


def check(obj: str, value: Mappings) -> None:
    """Refuse what no pods can be made from. ``obj`` names it in errors. Raises ConfigError."""
    if value.get("apiVersion") != API_VERSION:
        raise ConfigError(obj, "apiVersion", value.get("apiVersion"), f"expected {API_VERSION}")
    spec = value.get("spec")
    if not isinstance(spec, dict):
        raise ConfigError(obj, "spec", spec, "expected an object")
    replicas = spec.get("replicas", 1)
    if not isinstance(replicas, int) or isinstance(replicas, bool) or not 0 <= replicas <= MAX_REPLICAS:
        raise ConfigError(obj, "spec.replicas", replicas, f"expected 0..{MAX_REPLICAS}")
    template = spec.get("template")
    if not isinstance(template, dict) or not isinstance(template.get("spec"), dict):
        raise ConfigError(obj, "spec.template", template, "expected a pod template with spec")
    meta = template.get("metadata") or {}
    labels = meta.get("labels") or {} if isinstance(meta, dict) else None
    if not isinstance(labels, dict):
        raise ConfigError(obj, "spec.template.metadata", meta, "expected an object with labels")
    selector = spec.get("selector")
    wanted = selector.get("matchLabels") if isinstance(selector, dict) else None
    if not isinstance(wanted, dict) or not wanted:
        raise ConfigError(obj, "spec.selector.matchLabels", wanted, "expected the labels of the template")
    if any(labels.get(name) != text for name, text in wanted.items()):
        raise ConfigError(
            obj, "spec.selector.matchLabels", wanted, f"does not select the template's labels {labels}"
        )


def plan(value: Mappings, objects: Mapping[Key, Mappings]) -> Plan:
    """What a workload (checked before) lacks and has too much of. Pods that are ending do not count."""
    owner = key_of(value)
    digest = _digest(value)
    mine = [key for key, pod in objects.items() if owner_of(pod) == owner and not is_ending(pod)]
    fresh = [key for key in mine if objects[key]["metadata"]["labels"].get(_DIGEST) == digest]
    wanted: int = value["spec"].get("replicas", 1)
    by_number = sorted(fresh, key=lambda key: (len(key.name), key.name))
    ended = [key for key in mine if key not in fresh] + by_number[wanted:]
    taken = {key.name for key in objects if key.kind == "Pod" and key.namespace == owner.namespace}
    names = _free_names(owner.name, taken, wanted - len(fresh))
    return Plan([_pod(value, name, digest) for name in names], ended)


def owned(owner: Key, objects: Mapping[Key, Mappings]) -> list[Key]:
    """The pods of a workload."""
    return [key for key, pod in objects.items() if owner_of(pod) == owner]


def owner_of(pod: Mappings) -> Key | None:
    """The workload a pod belongs to."""
    meta = pod["metadata"]
    for reference in meta.get("ownerReferences") or ():
        if pod["kind"] == "Pod" and reference["kind"] in KINDS:
            return Key(reference["kind"], meta["namespace"], reference["name"])
    return None


def is_ending(pod: Mappings) -> bool:
    """Whether a pod is being deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def _pod(value: Mappings, name: str, digest: str) -> Mappings:
    template: Mapping[str, Any] = value["spec"]["template"]
    owner = key_of(value)
    meta = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            **meta,
            "name": name,
            "namespace": owner.namespace,
            "labels": {**(meta.get("labels") or {}), _DIGEST: digest},
            "ownerReferences": [{"apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name}],
        },
        "spec": dict(template["spec"]),
    }


def sample(value: Mappings) -> Mappings:
    """A Pod as the template gives it, for checking it before any is made."""
    return _pod(value, f"{value['metadata']['name']}-1", _digest(value))


def _digest(value: Mappings) -> str:
    text = msgspec.json.encode(value["spec"]["template"], order="sorted")
    return hashlib.sha256(text).hexdigest()[:10]


def _free_names(base: str, taken: Iterable[str], count: int) -> list[str]:
    used, number = set(taken), 1
    names: list[str] = []
    while len(names) < count:
        if f"{base}-{number}" not in used:
            names.append(f"{base}-{number}")
        number += 1
    return names
