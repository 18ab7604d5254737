"""Labels and ports of pods as words of a command: ``app=web,tier-`` and ``http:80,53/UDP``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pycni.lab.apply_settle import bare
from pycni.lab.objects import Mappings
from pycni.lab.topology import LabError
from pycni.model.kube import PROTOCOLS


def label_changes(words: Sequence[str]) -> dict[str, str | None]:
    """``KEY=VALUE`` sets a label, ``KEY-`` takes it away (None). Raises LabError."""
    found: dict[str, str | None] = {}
    for word in words:
        key, equals, value = word.partition("=")
        gone = not equals and key.endswith("-")
        if not key.strip("-") or not (equals or gone):
            raise LabError(f"label {word!r}: expected KEY=VALUE, or KEY- to take it away", usage=True)
        found[key.removesuffix("-") if gone else key] = None if gone else value
    return found


def labels(text: str) -> dict[str, str]:
    """``app=web,tier=front``. Raises LabError."""
    found = label_changes([word for word in text.split(",") if word])
    if missing := [key for key, value in found.items() if value is None]:
        raise LabError(f"label {missing[0]!r} of a new pod has no value", usage=True)
    return {key: value for key, value in found.items() if value is not None}


def ports(text: str) -> list[dict[str, Any]]:
    """``http:80,53/UDP``: entries of a container's ports. Raises LabError."""
    found = []
    for word in filter(None, text.split(",")):
        name, colon, rest = word.rpartition(":")
        number, _slash, protocol = rest.partition("/")
        protocol = (protocol or "TCP").upper()
        if not number.isdigit() or protocol not in PROTOCOLS or (colon and not name):
            raise LabError(f"port {word!r}: expected [NAME:]NUMBER[/TCP|UDP|SCTP]", usage=True)
        entry: dict[str, Any] = {"containerPort": int(number), "protocol": protocol}
        found.append({"name": name, **entry} if name else entry)
    return found


def manifest_of(name: str, given_labels: str, given_ports: str) -> Mappings:
    """A pod by the lab's name for it, with these labels (else ``pod=NAME``) and ports. Raises LabError."""
    value = bare(name)
    wanted: Mapping[str, str] = labels(given_labels) or value["metadata"]["labels"]
    return {
        **value,
        "metadata": {**value["metadata"], "labels": dict(wanted)},
        "spec": {"containers": [{"name": "pod", "ports": ports(given_ports)}]},
    }
