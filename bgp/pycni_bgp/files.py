"""Files with secrets in them, and the one that says that the node is drained."""

from __future__ import annotations

import contextlib
import os

from pycni.errors import ConfigError


def write_private(path: str, text: str) -> None:
    """Write a file only its owner can read: beside its place, then renamed. Makes the folder.

    Raises ConfigError when that cannot be.
    """
    new = f"{path}.new"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(new, path)
    except OSError as error:
        raise ConfigError("bgp", "folder", os.path.dirname(path), error.strerror or str(error)) from error


class Drained:
    """Whether an operator had this node drained; a file keeps it."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, "drained")
        self.on = os.path.exists(self._path)

    def set(self, *, on: bool) -> None:
        """Note it. Raises ConfigError when it cannot be kept."""
        if on:
            write_private(self._path, "")
        else:
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._path)
            except OSError as error:
                raise ConfigError("bgp", "drained", self._path, error.strerror or str(error)) from error
        self.on = on
