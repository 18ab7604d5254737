"""The Kubernetes objects of a lab: one file each in the folder that every agent watches.

Life: ``lab apply`` changes a ``Changes`` and ``Objects.write`` puts it into the folder: each file whole or not at all,
in an order in which an agent that looks in between sees no Service without its endpoints, and behind all of them the
change's number, by which agents tell how far they are. What is in the folder is what the lab has; there is no other
record of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pycni.lab.topology import LabError
from pycni.model.kube import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.sources.manifest_folder import NUMBER_FILE
from pycni.wire.kube import CLUSTER_WIDE, KubeObject, from_mapping

Mappings = dict[str, Any]
"""An object as in the API's JSON."""

_FIRST = (NAMESPACE, NODE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY, POD, ENDPOINT_SLICE)
_LAST = (SERVICE,)


class Key(NamedTuple):
    """Which object."""

    kind: str
    namespace: str
    """"" for cluster-wide objects."""
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def key_of(value: Mapping[str, Any]) -> Key:
    """Key of an object whose name is known to be there."""
    kind, meta = value["kind"], value["metadata"]
    return Key(kind, "" if kind in CLUSTER_WIDE else meta.get("namespace") or "default", meta["name"])


def decoded(value: Mapping[str, Any]) -> KubeObject | None:
    """The object as the agents decode it, None for kinds they do not know. Raises ConfigError."""
    found = from_mapping(value)
    return None if found is None else found[1]


class Objects:
    """The folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold it alone, waiting for others to finish; a crash frees it. Raises LabError when the lab is gone."""
        file = self.folder.parent / "objects.lock"
        try:
            fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as exc:
            raise LabError(f"the lab of {self.folder.parent} has been taken down") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def load(self) -> dict[Key, Mappings]:
        """All objects, sorted by key. Raises LabError naming a file that cannot be read."""
        found: dict[Key, Mappings] = {}
        for file in sorted(self.folder.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                try:
                    value = msgspec.json.decode(file.read_bytes())
                    found[key_of(value)] = value
                except (msgspec.MsgspecError, KeyError, TypeError, AttributeError) as exc:
                    raise LabError(f"{file} is damaged: {exc!r}") from exc
        return dict(sorted(found.items()))

    def number(self) -> int:
        """Of the last change; 0 before the first."""
        try:
            return int((self.folder / NUMBER_FILE).read_text())
        except FileNotFoundError:
            return 0

    def write(self, before: Mapping[Key, Mappings], after: Mapping[Key, Mappings]) -> int:
        """Make the folder what ``after`` says where that differs from ``before``; returns the change's number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        changed = [key for key, value in after.items() if before.get(key) != value]
        for key in sorted(changed, key=lambda key: (key.kind in _LAST, key.kind not in _FIRST, key)):
            self._put(key, after[key])
        gone = [key for key in before if key not in after]
        for key in sorted(gone, key=lambda key: (key.kind not in _LAST, key)):
            self._file(key).unlink(missing_ok=True)
        number = self.number()
        if changed or gone:
            number += 1
            _replace(self.folder / NUMBER_FILE, f"{number}\n".encode())
        return number

    def _put(self, key: Key, value: Mappings) -> None:
        _replace(self._file(key), msgspec.json.format(msgspec.json.encode(value)) + b"\n")

    def _file(self, key: Key) -> Path:
        return self.folder / ".".join([key.kind.lower(), *filter(None, key[1:]), "json"])


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.rename(file)
