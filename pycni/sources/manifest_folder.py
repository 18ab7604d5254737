"""A folder of Kubernetes manifests, looked at as a whole: which objects are in it now, and what is wrong with it.

Life: ``ManifestFolder.look`` is called after every wake-up; it reads only files that changed and gives all objects by
kind. A file that makes no sense keeps the objects it had; a file that is being written is left for the next look.
Policies fail closed: those of a file that makes no sense that were not in it before count nevertheless, and one that
makes no sense itself has a stand-in that denies (``wire/kube_policy_standin``).
Of an object in two files the one in the file whose name sorts first counts (in one file: the first document).
Every problem is told once, when it appears, and again when it changed in between.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from pycni.errors import ConfigError
from pycni.wire.kube import KubeObject, from_mapping
from pycni.wire.kube_policy_standin import STOOD_IN, of_document
from pycni.wire.manifest import SUFFIXES, documents

NUMBER_FILE = ".generation"
"""Hidden, so no manifest: the number of the last change, put into place behind it."""
SETTLE_S = 0.05
"""How long a file nobody has announced as finished must stay as it is before it is read."""
OLD_S = 1.0
"""A file last written longer ago than this is finished, whoever wrote it."""

Objects = dict[str, dict[str, KubeObject]]
"""Kind -> key -> object."""
Stamp = tuple[int, int, int, int]
"""Device, inode, size and time of change (ns): another stamp, another content."""


class Listing(NamedTuple):
    """One look."""

    objects: Objects
    news: tuple[str, ...]
    """Problems that were not there at the last look, one line each."""
    pending: bool
    """A file is not finished: look again after ``SETTLE_S``."""
    broken: Mapping[str, str] = {}
    """Files that make no sense, and why."""


class _File(msgspec.Struct):
    stamp: Stamp | None = None
    """Of the content that was read last, good or not; None: never read."""
    objects: dict[tuple[str, str], KubeObject] = msgspec.field(default_factory=dict)
    """(kind, key) -> object, of the last good content, and policies of a later one that is not good."""
    provisional: frozenset[tuple[str, str]] = frozenset()
    """The latter."""
    problems: tuple[str, ...] = ()
    broken: str = ""
    """Why the content that was read last makes no sense."""
    seen: Stamp | None = None
    """Of a content that is not read yet, and since when (monotonic seconds) it has been so."""
    since: float = 0.0


class ManifestFolder:
    """What is known of a folder. Blocking; one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, _File] = {}
        self._told: frozenset[str] = frozenset()

    @property
    def known(self) -> bool:
        """Whether it has been looked at and had manifests in it."""
        return bool(self._files)

    def look(self, finished: Collection[str] = (), unfinished: Collection[str] = ()) -> Listing:
        """All objects there are. ``finished``: names known to be written completely; ``unfinished``: being written.

        Raises OSError when the folder cannot be listed.
        """
        stamps = self._stamps()
        for name in self._files.keys() - stamps.keys():
            del self._files[name]
        now, pending = time.monotonic(), False
        for name, stamp in stamps.items():
            file = self._files.setdefault(name, _File())
            if stamp == file.stamp:
                file.seen = None
            elif name not in unfinished and (name in finished or self._settled(file, stamp, now)):
                self._read(name, file, stamp)
            else:
                pending = True
        objects, doubles = self._merge()
        problems = [line for name in sorted(self._files) for line in self._files[name].problems] + doubles
        news = tuple(line for line in problems if line not in self._told)
        self._told = frozenset(problems)
        broken = {name: file.broken for name, file in self._files.items() if file.broken}
        return Listing(objects, news, pending, broken)

    def _stamps(self) -> dict[str, Stamp]:
        """Manifest files by name. Hidden files and those of editors are not manifests."""
        found = {}
        for name in os.listdir(self.folder):
            if name.startswith((".", "#")) or not name.endswith(SUFFIXES):
                continue
            try:
                status = os.stat(self.folder / name)
            except FileNotFoundError:
                continue  # gone meanwhile, or a link to nothing
            if stat.S_ISREG(status.st_mode):
                found[name] = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        return found

    @staticmethod
    def _settled(file: _File, stamp: Stamp, now: float) -> bool:
        if time.time() - stamp[3] / 1e9 > OLD_S:
            return True
        if file.seen != stamp:
            file.seen, file.since = stamp, now
        return now - file.since >= SETTLE_S

    def _read(self, name: str, file: _File, stamp: Stamp) -> None:
        """Take a file's content; when something is wrong with it the objects stay what they were."""
        file.stamp, file.seen = stamp, None
        kept = (
            f"; its last good content ({len(file.objects)} objects) stays"
            if file.objects.keys() - file.provisional
            else ""
        )
        try:
            raw = (self.folder / name).read_bytes()
        except FileNotFoundError:
            file.stamp = None
            return
        except OSError as exc:
            file.stamp = None
            file.problems = (f"{name} cannot be read: {exc.strerror}{kept}",)
            return
        content = read(name, raw)
        if content.error is None:
            file.objects, file.problems, file.broken = content.objects, content.problems, ""
            file.provisional = frozenset()
            return
        file.broken = str(content.error)
        file.problems = (f"{content.error}{kept}",)
        # A stand-in gives way to a newer one, and to nothing less than a good content.
        held = {key: item for key, item in file.objects.items() if key not in file.provisional}
        new = {key: item for key, item in content.objects.items() if key[0] in STOOD_IN and key not in held}
        file.objects, file.provisional = {**held, **new}, frozenset(new)

    def _merge(self) -> tuple[Objects, list[str]]:
        objects: Objects = {}
        owners: dict[tuple[str, str], str] = {}
        doubles = []
        for name in sorted(self._files):
            for (kind, key), item in self._files[name].objects.items():
                owner = owners.setdefault((kind, key), name)
                if owner == name:
                    objects.setdefault(kind, {})[key] = item
                else:
                    doubles.append(f"{name}: {kind} {key} is in {owner} already: that one counts")
        return objects, doubles


class Content(NamedTuple):
    """What is in a file."""

    objects: dict[tuple[str, str], KubeObject]
    """By kind and key; policies that make no sense by their stand-ins."""
    problems: tuple[str, ...]
    """What is odd about it."""
    error: ConfigError | None
    """The first thing that makes no sense."""


def read(name: str, raw: bytes) -> Content:
    """A file's content, as far as it makes sense."""
    found: dict[tuple[str, str], KubeObject] = {}
    problems = []
    error: ConfigError | None = None
    try:
        for number, value in documents(name, raw):
            try:
                decoded = decode(name, number, value)
            except ConfigError as exc:
                error = error or exc
                instead = of_document(value)
                decoded = None if instead is None else (str(value["kind"]), instead)
            if decoded is None:
                continue
            kind, item = decoded
            if (kind, item.meta.key) in found:
                problems.append(
                    f"{name} document {number}: {kind} {item.meta.key} is in it twice: the first counts"
                )
            else:
                found[kind, item.meta.key] = item
    except ConfigError as exc:
        error = error or exc
    return Content(found, tuple(problems), error)


def decode(file: str, number: int, value: Mapping[str, object]) -> tuple[str, KubeObject] | None:
    """One document as an object, None for a kind we do not use. Raises ConfigError naming file and document too."""
    try:
        return from_mapping(value)
    except ConfigError as exc:
        raise ConfigError(f"{file} document {number}: {exc.obj}", exc.field, exc.value, exc.reason) from exc
