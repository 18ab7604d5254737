"""What this node knows of each attachment, kept over restarts of the agent: one JSON file per endpoint.

Life: CNI ADD puts an endpoint (``pending``, then ``ready``) and DEL puts it (``dying``) and removes it; the store
loads all of them when the agent starts. The first `put` of an endpoint writes a temporary file and renames it, so
a file under its final name is whole. Later ones rewrite the file in place with one write of the length it has
(padded with blanks, which JSON ignores): the kernel copies one page into its cache without heeding signals, so a
killed process leaves the old record or the new one. A record that has outgrown its page is written beside the old
one and takes its name after that is removed; loading adopts it should it have been interrupted in between.

Why not always rename: renaming onto an existing file, like truncating it, makes ext4 flush data first
(``auto_da_alloc``), more than a millisecond where this takes a few microseconds. No fsync: endpoints do not
outlive a boot, and within one the page cache survives the process.

What cannot be read or decoded is renamed to ``*.bad`` and logged. Its addresses stay reserved in the IPAM files,
which name the owner: DEL releases them from there, and the collector judges them as reservations without endpoint.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import ipaddress
import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Literal

import msgspec

from pycni.model.attachment import AttachmentKind
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Address

log = logging.getLogger("pycni.ipam")

FOLDER = "endpoints"
PAGE_BYTES = 4096
SUFFIX = ".json"
NEXT_SUFFIX = ".next"
BAD_SUFFIX = ".bad"
UNREADABLE = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EIO, errno.EACCES, errno.EPERM})
"""Faults of one record, put aside as a malformed one is; any other is the node's and ends the loading."""

Change = Callable[[Endpoint | None, Endpoint | None], None]
"""Called with an endpoint before and after a change; None: it was not there, it is gone."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """An endpoint as stored; addresses as text because a union of custom types has no JSON form."""

    version: Literal[1] = 1
    network: str
    container_id: str
    ifname: str
    state: Literal["pending", "ready", "dying"]
    netns: str = ""
    netns_inode: int = 0
    boot_id: str = ""
    attachment: AttachmentKind = AttachmentKind.BRIDGE
    host_ifname: str = ""
    mac: str = ""
    addresses: tuple[str, ...] = ()
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    data_dir: str = ""
    created: float = 0.0
    conf: bytes = b""


_SAME_FIELDS = tuple(name for name in _Record.__struct_fields__ if name not in ("version", "addresses"))
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_Record)


class EndpointStore:
    """Every endpoint of this node, by owner and by address. Thread-safe; one process per folder."""

    def __init__(self, state_dir: str) -> None:
        """Load ``<state_dir>/endpoints``, making it when missing. Raises OSError when that is impossible."""
        self.path = os.path.join(state_dir, FOLDER)
        self.quarantined = 0
        """How many files were put aside when loading."""
        self._lock = threading.RLock()
        self._endpoints: dict[Owner, Endpoint] = {}
        self._holders: dict[tuple[str, Address], Owner] = {}
        self._sizes: dict[Owner, int] = {}
        self._subscribers: list[Change] = []
        os.makedirs(self.path, 0o700, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back the folder's descriptor; the store must not be used afterwards."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def put(self, endpoint: Endpoint) -> None:
        """Store one endpoint, replacing the owner's former one. Raises OSError when it cannot be written."""
        owner = endpoint.owner
        content = _encode(endpoint)
        with self._lock:
            before = self._endpoints.get(owner)
            if before == endpoint:
                return
            self._write(owner, content)
            self._index(before, endpoint)
            self._notify(before, endpoint)

    def get(self, owner: Owner) -> Endpoint | None:
        """The owner's endpoint."""
        return self._endpoints.get(owner)

    def remove(self, owner: Owner) -> Endpoint | None:
        """Forget an endpoint and return it; None when it was not known. Raises OSError when its file stays."""
        with self._lock:
            before = self._endpoints.get(owner)
            if before is None:
                return None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_file_name(owner) + SUFFIX, dir_fd=self._fd)
            self._sizes.pop(owner, None)
            self._index(before, None)
            self._notify(before, None)
            return before

    def all(self) -> tuple[Endpoint, ...]:
        """Every endpoint, in no particular order."""
        with self._lock:
            return tuple(self._endpoints.values())

    def holder(self, network: str, address: Address) -> Owner | None:
        """Whose endpoint has this address."""
        return self._holders.get((network, address))

    def in_use(self, owner: Owner, address: Address) -> bool:
        """Whether another owner's endpoint in the same network has this address (`pool.InUse`)."""
        holder = self._holders.get((owner.network, address))
        return holder is not None and holder != owner

    def subscribe(self, callback: Change, *, replay: bool = False) -> Callable[[], None]:
        """Have changes reported, in their order, on the thread that makes them; returns how to end it.

        ``replay`` reports every present endpoint first. The callback runs under the store's lock: it may read the
        store, must be quick and must not wait for other threads. What it raises is logged and changes nothing.
        """
        with self._lock:
            if replay:
                for endpoint in tuple(self._endpoints.values()):
                    callback(None, endpoint)
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    def _index(self, before: Endpoint | None, after: Endpoint | None) -> None:
        if before is not None:
            for interface in before.addresses:
                key = (before.network, interface.ip)
                if self._holders.get(key) == before.owner:
                    del self._holders[key]
            if after is None:
                del self._endpoints[before.owner]
        if after is not None:
            self._endpoints[after.owner] = after
            for interface in after.addresses:
                self._holders[after.network, interface.ip] = after.owner

    def _notify(self, before: Endpoint | None, after: Endpoint | None) -> None:
        for callback in tuple(self._subscribers):
            try:
                callback(before, after)
            except Exception:
                changed = after if after is not None else before
                owner = None if changed is None else changed.owner
                log.exception("endpoint %s: a follower of changes failed", owner)

    def _write(self, owner: Owner, content: bytes) -> None:
        name = _file_name(owner)
        size = self._sizes.get(owner)
        if size is not None and len(content) <= size <= PAGE_BYTES:
            content = content.ljust(size)
            with contextlib.suppress(FileNotFoundError):
                self._store(name + SUFFIX, content, os.O_WRONLY)
                return
        elif size is None and len(content) < PAGE_BYTES:
            # Room to grow: "pending" becomes "ready" with addresses and the same file is used again.
            content = content.ljust(min(PAGE_BYTES, -(-len(content) // 512) * 512 + 512))
        self._store(name + NEXT_SUFFIX, content, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        if size is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name + SUFFIX, dir_fd=self._fd)
        os.rename(name + NEXT_SUFFIX, name + SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        self._sizes[owner] = len(content)

    def _store(self, name: str, content: bytes, flags: int) -> None:
        fd = os.open(name, flags | os.O_NOFOLLOW, 0o600, dir_fd=self._fd)
        try:
            written = os.pwrite(fd, content, 0)
            if written != len(content):
                raise OSError(f"{self.path}/{name}: wrote {written} of {len(content)} bytes")
        finally:
            os.close(fd)

    def _load(self) -> None:
        names = set(os.listdir(self._fd))
        for name in sorted(name for name in names if name.endswith(NEXT_SUFFIX)):
            self._adopt(name, names)
        for name in sorted(name for name in names if name.endswith(SUFFIX)):
            endpoint, reason, size = self._read(name)
            if endpoint is not None and _file_name(endpoint.owner) + SUFFIX != name:
                reason, endpoint = f"it is the record of {endpoint.owner}", None
            if endpoint is None:
                self._put_aside(name, reason)
            else:
                self._sizes[endpoint.owner] = size
                self._index(None, endpoint)

    def _adopt(self, name: str, names: set[str]) -> None:
        """A record that was being written when the process ended: finish it if it had replaced the old one."""
        final = name[: -len(NEXT_SUFFIX)] + SUFFIX
        if final not in names and self._read(name)[0] is not None:
            os.rename(name, final, src_dir_fd=self._fd, dst_dir_fd=self._fd)
            names.add(final)
            return
        try:
            os.unlink(name, dir_fd=self._fd)
        except IsADirectoryError as exc:
            self._put_aside(name, str(exc.strerror))

    def _put_aside(self, name: str, reason: str) -> None:
        os.rename(name, name + BAD_SUFFIX, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        self.quarantined += 1
        log.error(
            "%s/%s: not an endpoint record (%s): renamed to *%s; its addresses stay reserved until DEL or the"
            " collector releases them",
            self.path,
            name,
            reason,
            BAD_SUFFIX,
        )

    def _read(self, name: str) -> tuple[Endpoint | None, str, int]:
        """The endpoint of a file, or None and why there is none; and the file's size in bytes."""
        try:
            # A FIFO would be waited for without O_NONBLOCK.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._fd)
            try:
                content = b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
            finally:
                os.close(fd)
        except OSError as exc:
            if exc.errno not in UNREADABLE:
                raise
            return None, f"it cannot be read: {exc.strerror}", 0
        return *_try_decode(content), len(content)


def _encode(endpoint: Endpoint) -> bytes:
    fields = {name: getattr(endpoint, name) for name in _SAME_FIELDS}
    return _encoder.encode(_Record(addresses=tuple(map(str, endpoint.addresses)), **fields))


def _try_decode(content: bytes) -> tuple[Endpoint | None, str]:
    """The endpoint, or None and why there is none."""
    try:
        record = _decoder.decode(content)
        addresses = tuple(map(ipaddress.ip_interface, record.addresses))
    except (msgspec.MsgspecError, ValueError) as exc:
        return None, str(exc) if content.strip(b"\0 \n") else "it is empty"
    fields = {name: getattr(record, name) for name in _SAME_FIELDS}
    return Endpoint(addresses=addresses, **fields), ""


def _file_name(owner: Owner) -> str:
    """Readable, without surprises for a shell, and unique by a hash of the whole identity."""
    readable = re.sub(
        r"[^A-Za-z0-9_.-]", "_", f"{owner.network[:40]}-{owner.container_id[:64]}-{owner.ifname[:20]}"
    )
    digest = hashlib.sha256("\0".join(owner).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{readable.lstrip('.')}-{digest}"
