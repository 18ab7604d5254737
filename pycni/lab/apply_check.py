"""Manifests checked and completed before anything of them is carried out. Pure.

Life: ``checked`` takes the documents of ``lab apply`` and the objects there are, and returns what has to become of
them: the objects to store, the pods to make, the pods to end. It raises at the first thing that cannot be, so that a
wrong manifest changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pycni.errors import ConfigError
from pycni.lab import topology, workloads
from pycni.lab.admission import admit
from pycni.lab.objects import Key, Mappings, decoded, key_of
from pycni.lab.topology import LabError
from pycni.model.family import Family
from pycni.model.kube import NAMESPACE, NODE, POD, SERVICE
from pycni.wire.kube import API_VERSIONS, CLUSTER_WIDE

SPACES = ("default", "kube-system")
"""The lab's own namespaces."""
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class Intent(NamedTuple):
    """What a manifest calls for."""

    objects: dict[Key, Mappings]
    """Everything there shall be but the pods to be made."""
    new: list[Mappings]
    """Pods to make."""
    ended: list[Key]
    """Pods to end."""
    told: list[str]
    """What becomes of each document, one line each."""


def checked(
    documents: Sequence[tuple[str, Mapping[str, Any]]],
    objects: Mapping[Key, Mappings],
    families: Sequence[Family],
) -> Intent:
    """``documents``: (where it stands, mapping). Raises ConfigError naming place, object, field and value."""
    after = dict(objects)
    new: list[Mappings] = []
    ended: list[Key] = []
    told: list[str] = []
    seen: dict[Key, str] = {}
    for place, document in documents:
        try:
            value = _named(document)
            key = key_of(value)
            if seen.setdefault(key, place) != place:
                raise ConfigError(str(key), "metadata.name", key.name, f"is in {seen[key]} too")
            if key.kind == POD and key not in after:
                new.append(_pod(value, after))
            else:
                after[key] = _admitted(key, value, after, families)
        except ConfigError as exc:
            raise ConfigError(f"{place}: {exc.obj}", exc.field, exc.value, exc.reason) from exc
        same = objects.get(key) == after.get(key, {})
        told.append(f"{key} {'unchanged' if same else 'configured' if key in objects else 'created'}")
    _namespaces([*seen, *(key_of(pod) for pod in new)], after)
    _room_for(after, new)
    for key in seen:
        if key.kind in workloads.KINDS:
            plan = workloads.plan(after[key], {**after, **{key_of(pod): pod for pod in new}})
            new += plan.new
            ended += plan.ended
    return Intent(after, new, ended, told)


def _named(document: Mapping[str, Any]) -> Mappings:
    """A copy whose metadata has name, namespace and labels of the right kinds. Raises ConfigError."""
    value = dict(document)
    kind = value.get("kind")
    known = (*API_VERSIONS, *workloads.KINDS)
    if kind not in known:
        raise ConfigError("object", "kind", kind, f"the lab knows {', '.join(known)}")
    meta = value.get("metadata")
    if not isinstance(meta, dict):
        raise ConfigError(str(kind), "metadata", meta, "expected an object with a name")
    name, space = meta.get("name"), meta.get("namespace")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            str(kind), "metadata.name", name, "expected a name of letters, digits, dots and dashes"
        )
    value["metadata"] = meta = dict(meta)
    if kind in CLUSTER_WIDE:
        meta.pop("namespace", None)
    elif space is None:
        meta["namespace"] = "default"
    elif not isinstance(space, str) or not _NAME.fullmatch(space) or "." in space:
        raise ConfigError(f"{kind} {name}", "metadata.namespace", space, "expected the name of a namespace")
    obj = str(key_of(value))
    if kind in workloads.KINDS:
        workloads.check(obj, value)
        decoded(workloads.sample(value))
    else:
        decoded(value)
    for field in ("uid", "resourceVersion", "managedFields", "generation"):
        meta.pop(field, None)
    return value


def _admitted(
    key: Key, value: Mappings, objects: Mapping[Key, Mappings], families: Sequence[Family]
) -> Mappings:
    """The object as it is to be stored. Raises ConfigError."""
    before = objects.get(key, {})
    if key.kind == NODE:
        if not before:
            there = ", ".join(other.name for other in objects if other.kind == NODE)
            raise ConfigError(str(key), "metadata.name", key.name, f"the lab has {there}")
        return {**before, "metadata": _merged(before, value)}
    if key.kind == POD:
        return _same_pod(key, value, before)
    if key.kind == SERVICE:
        value = admit(value, objects, families)
    if key.kind == NAMESPACE:
        value = {**value, "metadata": _space_meta(value["metadata"])}
    created = before.get("metadata", {}).get("creationTimestamp")
    return {**value, "metadata": {**value["metadata"], "creationTimestamp": created}} if created else value


def _same_pod(key: Key, value: Mappings, before: Mappings) -> Mappings:
    """A pod that is there: its labels and annotations may change, nothing else."""
    spec = value.get("spec") or {}
    for field, wanted in spec.items():
        if before["spec"].get(field) != wanted:
            raise ConfigError(str(key), f"spec.{field}", wanted, "cannot be changed: delete the pod first")
    return {**before, "metadata": _merged(before, value)}


def _merged(before: Mappings, value: Mappings) -> dict[str, Any]:
    meta = dict(before["metadata"])
    for field in ("labels", "annotations"):
        extra = value["metadata"].get(field)
        if extra:
            meta[field] = {**(meta.get(field) or {}), **extra}
    return meta


def relabelled(value: Mappings, changes: Mapping[str, str | None]) -> Mappings:
    """An object with labels set, or taken away where the value is None. Raises ConfigError."""
    labels = dict(value["metadata"].get("labels") or {})
    for name, text in changes.items():
        if text is None:
            labels.pop(name, None)
        else:
            labels[name] = text
    meta = {**value["metadata"], "labels": labels}
    changed = {**value, "metadata": _space_meta(meta) if value["kind"] == NAMESPACE else meta}
    decoded(changed)
    return changed


def _pod(value: Mappings, objects: Mapping[Key, Mappings]) -> Mappings:
    """A pod to be made. Raises ConfigError for what a lab cannot make."""
    key = key_of(value)
    spec = value.get("spec") or {}
    try:
        topology.check_pod_name(topology.pod_name(key.namespace, key.name))
    except LabError as exc:
        raise ConfigError(str(key), "metadata.name", key.name, str(exc)) from exc
    nodes = [other.name for other in objects if other.kind == NODE]
    if spec.get("nodeName") and spec["nodeName"] not in nodes:
        raise ConfigError(str(key), "spec.nodeName", spec["nodeName"], f"the lab has {', '.join(nodes)}")
    if spec.get("hostNetwork"):
        raise ConfigError(
            str(key), "spec.hostNetwork", spec["hostNetwork"], "the lab's pods have their own network"
        )
    return value


def _namespaces(keys: Iterable[Key], after: dict[Key, Mappings]) -> None:
    """Namespaces that are named and not there come into being."""
    for key in keys:
        space = Key(NAMESPACE, "", key.namespace)
        if key.namespace and space not in after:
            after[space] = namespace(key.namespace)


def namespace(name: str) -> Mappings:
    """A Namespace as the API server makes it."""
    return {"apiVersion": "v1", "kind": NAMESPACE, "metadata": _space_meta({"name": name})}


def _space_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    labels = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": meta["name"]}
    return {**meta, "labels": labels}


def _room_for(after: Mapping[Key, Mappings], new: Iterable[Mappings]) -> None:
    """Pods of one lab must differ in the lab's names for them."""
    taken = {topology.pod_name(key.namespace, key.name) for key in after if key.kind == POD}
    for pod in new:
        key = key_of(pod)
        if topology.pod_name(key.namespace, key.name) in taken:
            raise ConfigError(str(key), "metadata.name", key.name, "is there already")


def check_there(key: Key, objects: Mapping[Key, Mappings]) -> None:
    """Raises LabError when an object is not there."""
    if key not in objects:
        there = ", ".join(str(other) for other in objects if other.kind == key.kind) or f"no {key.kind}"
        raise LabError(f"there is no {key}; there is: {there}", usage=True)


def with_belongings(key: Key, objects: Mapping[Key, Mappings]) -> list[Key]:
    """An object and what goes with it. Raises LabError when it is not there or not to be deleted."""
    check_there(key, objects)
    if key.kind == NODE or (key.kind == NAMESPACE and key.name in SPACES):
        raise LabError(f"{key} belongs to the lab and cannot be deleted", usage=True)
    if key.kind == NAMESPACE:
        return [*(other for other in objects if other.namespace == key.name), key]
    return [key, *workloads.owned(key, objects)]
