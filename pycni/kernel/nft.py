"""nftables transactions in nft(8)'s own language, through the libnftables bindings.

Life of a transaction: a caller's pure code renders text; ``Nft.run`` hands all of it to the kernel as one
batch, which takes effect as a whole or not at all; a refusal comes back as ``KernelError`` with nft's words.

A context owns a netlink socket that stays in the network namespace of the thread that made it (seen with
libnftables 1.0.6): make one ``Nft`` inside a namespace (``netns.run_in``) and use it from any thread later.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from types import TracebackType
from typing import Any, Self

import msgspec
import nftables

from pycni.errors import KernelError
from pycni.kernel.netlink import NETLINK_NETFILTER

_ERRNO_BY_TEXT = {os.strerror(number): number for number in errno.errorcode}
_LIBRARY = threading.Lock()
"""One thread in libnftables at a time, whatever the context: 1.0.6 keeps state of the whole process (strtok(3) where it
writes JSON: two listings at once end the process by an assertion; reference counts of symbol tables)."""


class Nft:
    """One libnftables context; every method may be called from any thread."""

    def __init__(self, *, handles: bool = False) -> None:
        """Open a context in the calling thread's network namespace.

        ``handles``: ``query`` shows the handles of rules, and no counters' values.
        Raises KernelError (EPROTONOSUPPORT: a kernel without nftables, where libnftables would end the process).
        """
        try:
            socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER).close()
        except OSError as exc:
            raise KernelError(
                exc.errno or errno.EIO, "open nftables", detail="is it in this kernel?"
            ) from exc
        with _LIBRARY:
            self._context: nftables.Nftables | None = nftables.Nftables()
            self._context.set_handle_output(handles)
        self._handles = handles

    def run(self, text: str) -> None:
        """Execute commands as one transaction.

        ``text`` is nft's language, lines separated by newlines or semicolons. Raises KernelError: ``errno``
        as the kernel gave it, EINVAL when nft itself refused the text; ``detail`` is nft's message with the
        line it is about. Nothing has changed then.
        """
        self._execute(text)

    def query(self, text: str) -> str:
        """Output of commands such as ``list table inet t``. Raises KernelError (ENOENT: no such object)."""
        return self._execute(text)

    def listing(self, text: str) -> list[dict[str, Any]]:
        """Objects of a ``list ...`` command as libnftables-json(5) has them, without counters' values.

        Raises KernelError (ENOENT: no such object).
        """
        found = msgspec.json.decode(self._execute(text, json=True) or '{"nftables":[]}')
        return [item for item in found["nftables"] if "metainfo" not in item]

    def exists(self, family: str, table: str) -> bool:
        """Whether the table exists."""
        try:
            self._execute(f"list table {family} {table}")
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def knows(self, family: str) -> bool:
        """Whether this kernel has tables of a family: each is a choice of its own when a kernel is built.

        Raises KernelError for any other trouble.
        """
        name = f"pycni_try_{os.getpid()}"
        try:
            self._execute(f"add table {family} {name}; delete table {family} {name}")
        except KernelError as error:
            if error.errno == errno.EOPNOTSUPP:
                return False
            raise
        return True

    def close(self) -> None:
        """Free the context; further use raises KernelError EBADF."""
        with _LIBRARY:
            self._context = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _execute(self, text: str, *, json: bool = False) -> str:
        with _LIBRARY:
            if self._context is None:
                raise KernelError(errno.EBADF, "nft transaction", detail="the context is closed")
            self._context.set_json_output(json)
            self._context.set_stateless_output(json or self._handles)
            code, output, messages = self._context.cmd(text)
            if code != 0 and "\n" in text.strip():
                code, output, messages = _from_file(self._context, text)
        if code != 0:
            number, detail = parse_messages(messages)
            raise KernelError(number, "nft transaction", _first_words(text), detail)
        return str(output)


def _from_file(context: nftables.Nftables, text: str) -> tuple[int, str, str]:
    """Try a refused transaction again as a file: only then libnftables 1.0.6 shows the line an error is about.

    (Of a buffer it shows the first line, and files take four times as long.) Nothing had changed, so success counts.
    """
    fd = os.memfd_create("nft", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "w") as file:
            file.write(text)
        found: tuple[int, str, str] = context.cmd_from_file(f"/proc/self/fd/{fd}")
        return found
    finally:
        os.close(fd)


def parse_messages(messages: str) -> tuple[int, str]:
    """Errno and one-line detail of nft's error output.

    nft prints ``Error: <text>``, the line in question and a marker under the place; what the kernel refused
    reads ``Could not process rule: <strerror>``. The first error counts, later ones follow from it.
    """
    lines = messages.splitlines()
    for index, line in enumerate(lines):
        _, found, reason = line.partition("Error: ")
        if not found:
            continue
        number = next(
            (_ERRNO_BY_TEXT[part] for part in reversed(reason.split(": ")) if part in _ERRNO_BY_TEXT),
            errno.EINVAL,
        )
        about = lines[index + 1].strip() if index + 1 < len(lines) else ""
        if len(about) > 200:
            about = _around(about, lines[index + 2] if index + 2 < len(lines) else "")
        return number, f"{reason} in: {about}" if about else reason
    return errno.EINVAL, messages.strip()[:400] or "nft gave no reason"


def _around(line: str, marker: str) -> str:
    """The part of a long line that the ``^^^`` under it points to."""
    start = max(marker.find("^") - 80, 0)
    return f"...{line[start : start + 200]}..."


def _first_words(text: str) -> str:
    """The head of a transaction, to name it in an error."""
    head = " ".join(text.split())
    return head if len(head) <= 60 else head[:57] + "..."
