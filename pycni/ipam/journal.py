"""Reservations on disk, exactly as the reference plugin host-local keeps them, so that both can share a directory.

    <dataDir>/<network>/10.1.2.3             container id, CR, LF, ifname (IPv6 names keep their colons)
    <dataDir>/<network>/last_reserved_ip.0   10.1.2.3: the last address handed out from range set 0
    <dataDir>/<network>/lock                 flock(2) exclusive around every look and change

Life: `Journal.locked` takes the lock; `Journal.moved` tells whether anybody else has changed the directory since
we last sealed it; `Journal.read` lists it; `create`, `delete` and `set_last` change it; `seal` marks the
directory as known. A reservation is created with O_EXCL, so that whatever an index in memory believes, a file
that exists is never overwritten.

Sealing: the kernel stamps a directory's mtime with a clock that may stand still for milliseconds, so comparing
mtimes alone could miss a change made in the same tick as ours. `seal` therefore sets the mtime itself to the
fine-grained current time: any later change by anybody puts another value there. A filesystem that cannot
store the value never counts as known, which costs a listing per operation and nothing else.

No fsync: a reservation means something only as long as the pod's network namespace exists, hence never longer
than one boot, and within a boot the page cache survives a killed process. After a power loss files may be empty or
missing; no pod is there to own them, and the collector removes them.

The file of the last address is rewritten in place: truncating it first makes ext4 flush it on close
(``auto_da_alloc``), which costs a millisecond.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

from pycni.errors import ConfigError, IpamError
from pycni.model.family import Address

LAST_PREFIX = "last_reserved_ip."
LOCK_NAME = "lock"
MAX_FILE_BYTES = 4096
UNREADABLE = frozenset({errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.EIO, errno.EACCES, errno.EPERM})
"""One such file does not stop the others: its address counts as taken, its owner as unknown."""

log = logging.getLogger("pycni.ipam")


class Entry(NamedTuple):
    """What one reservation's file says. Both empty: the file is empty or torn, its owner unknown.

    An empty ``ifname`` alone is how host-local before 0.7 wrote them.
    """

    container_id: str
    ifname: str


class Listing(NamedTuple):
    """A whole directory: owners by address and the last reserved address by number of its range set."""

    entries: dict[Address, Entry]
    last: dict[int, Address]


class Stamp(NamedTuple):
    """What identifies a state of the directory."""

    device: int
    inode: int
    mtime_ns: int


class Journal:
    """The directory of one network. Not thread-safe: its user holds a lock of its own (see ``ipam/pool``)."""

    def __init__(self, data_dir: str, network: str, *, lock_timeout_s: float = 10.0) -> None:
        """``lock_timeout_s``: how long to wait for another process that holds the directory's lock.

        Raises ConfigError when the network's name cannot be a directory's.
        """
        if not network or network in (".", "..") or "/" in network or "\0" in network:
            raise ConfigError("network configuration", "name", network, "must be usable as a file name")
        self.path = os.path.join(data_dir, network)
        self._lock_timeout_s = lock_timeout_s
        self._dir_fd = -1
        self._lock_fd = -1
        self._sealed: Stamp | None = None
        self._now: Stamp | None = None
        self._odd_names: dict[Address, str] = {}

    def close(self) -> None:
        """Give back the descriptors; the journal opens itself again when it is used."""
        for fd in (self._lock_fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self._lock_fd = self._dir_fd = -1
        self._sealed = None

    def exists(self) -> bool:
        """Whether the directory is there (nothing was ever reserved when it is not)."""
        return os.path.isdir(self.path)

    @contextlib.contextmanager
    def locked(self, timeout_s: float | None = None) -> Iterator[None]:
        """Hold the directory's lock, creating directory and lock file when missing.

        Raises IpamError when somebody else keeps the lock for longer than the timeout, or on any I/O error.
        """
        self._acquire(self._lock_timeout_s if timeout_s is None else timeout_s)
        try:
            yield
        finally:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def moved(self) -> bool:
        """Whether the directory, as found when the lock was taken, is another than the one last sealed."""
        return self._sealed is None or self._now != self._sealed

    def moved_now(self) -> bool:
        """The same question asked at this moment, without the lock: a hint."""
        try:
            found = os.stat(self.path)
        except OSError:
            return True
        return self._sealed != Stamp(found.st_dev, found.st_ino, found.st_mtime_ns)

    def read(self) -> Listing:
        """Every reservation and every round-robin position. Call under the lock, then `seal`."""
        listing = Listing({}, {})
        odd: dict[Address, str] = {}
        with self._explained("list", ""):
            names = os.listdir(self._dir_fd)
        for name in names:
            if name.startswith(LAST_PREFIX):
                self._read_last(name, listing.last)
                continue
            address = _address(name)
            content = None if address is None else self._content(name)
            if address is None or content is None:
                continue
            if str(address) == name:
                listing.entries[address] = _entry(content)
            else:
                odd[address] = name
                listing.entries.setdefault(address, _entry(content))
        self._odd_names = {address: name for address, name in odd.items() if str(address) not in names}
        return listing

    def create(self, address: Address, entry: Entry) -> bool:
        """Reserve one address; False when its file exists. On an error nothing is left behind."""
        name = str(address)
        if address in self._odd_names:
            return False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with self._explained("create", name):
            try:
                fd = os.open(name, flags, 0o600, dir_fd=self._dir_fd)
            except FileExistsError:
                return False
            try:
                content = _content_of(entry)
                written = os.write(fd, content)
                if written != len(content):
                    raise OSError(f"wrote {written} of {len(content)} bytes")
            except BaseException:
                os.unlink(name, dir_fd=self._dir_fd)
                raise
            finally:
                os.close(fd)
        return True

    def delete(self, address: Address) -> bool:
        """Free one address; False when it had no file."""
        name = self._odd_names.get(address, str(address))
        with self._explained("remove", name):
            try:
                os.unlink(name, dir_fd=self._dir_fd)
            except FileNotFoundError:
                return False
        self._odd_names.pop(address, None)
        return True

    def set_last(self, index: int, address: Address) -> None:
        """Remember the last address handed out from range set ``index``."""
        name = f"{LAST_PREFIX}{index}"
        text = str(address).encode()
        with self._explained("write", name):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=self._dir_fd)
            try:
                os.pwrite(fd, text, 0)
                if os.fstat(fd).st_size != len(text):
                    os.ftruncate(fd, len(text))
            finally:
                os.close(fd)

    def seal(self) -> None:
        """Take the directory's present state as known. Call under the lock, after `read` or own changes."""
        wanted = time.time_ns()
        self._sealed = None
        try:
            os.utime(self._dir_fd, ns=(wanted, wanted))
            found = os.fstat(self._dir_fd)
        except OSError as exc:  # costs the next operation a listing, nothing else
            log.debug("%s: cannot be stamped: %s", self.path, exc)
            return
        if found.st_mtime_ns == wanted:
            self._sealed = self._now = Stamp(found.st_dev, found.st_ino, wanted)

    def unseal(self) -> None:
        """Take the directory's state as unknown: changes are being made."""
        self._sealed = None

    def _acquire(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        pause_s = 0.0005
        while True:
            with self._explained("lock", LOCK_NAME):
                if self._lock_fd < 0:
                    self._open()
                try:
                    fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise IpamError(
                            f"{self.path}/{LOCK_NAME}: held by another process for more than {timeout_s:g} s"
                        ) from None
                    time.sleep(pause_s)
                    pause_s = min(pause_s * 2, 0.01)
                    continue
                if self._still_there():
                    return
                self.close()

    def _open(self) -> None:
        os.makedirs(self.path, 0o755, exist_ok=True)
        self._dir_fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self._lock_fd = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self._dir_fd)

    def _still_there(self) -> bool:
        """Whether directory and lock file are still those we hold: somebody may have removed them meanwhile."""
        try:
            folder = os.stat(self.path)
            lock = os.stat(LOCK_NAME, dir_fd=self._dir_fd)
        except FileNotFoundError:
            return False
        held = os.fstat(self._dir_fd)
        self._now = Stamp(folder.st_dev, folder.st_ino, folder.st_mtime_ns)
        return os.path.samestat(folder, held) and os.path.samestat(lock, os.fstat(self._lock_fd))

    def _content(self, name: str) -> bytes | None:
        """What a file says; None when it has vanished, nothing when it cannot be read."""
        with self._explained("read", name):
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._dir_fd)
                try:
                    return os.read(fd, MAX_FILE_BYTES)
                finally:
                    os.close(fd)
            except FileNotFoundError:
                return None
            except OSError as exc:
                if exc.errno not in UNREADABLE:
                    raise
                log.warning("%s/%s: taken by an unknown owner: %s", self.path, name, exc.strerror)
                return b""

    def _read_last(self, name: str, last: dict[int, Address]) -> None:
        """Read one round-robin position; an unreadable one only makes the round begin anew."""
        index = name[len(LAST_PREFIX) :]
        address = _address((self._content(name) or b"").decode("ascii", "replace").strip())
        if index.isdecimal() and address is not None:
            last[int(index)] = address

    @contextlib.contextmanager
    def _explained(self, operation: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            where = os.path.join(self.path, name) if name else self.path
            raise IpamError(f"cannot {operation} {where}: {exc.strerror or exc}") from exc


def _address(name: str) -> Address | None:
    """The address a file is named after, None for any other file."""
    if not name or name[0] not in "0123456789abcdefABCDEF:" or "%" in name:
        return None
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _entry(content: bytes) -> Entry:
    container_id, _, ifname = content.strip(b" \t\r\n\0").decode("utf-8", "replace").partition("\r\n")
    return Entry(container_id.strip(), ifname.strip())


def _content_of(entry: Entry) -> bytes:
    if not entry.ifname:
        return entry.container_id.encode()
    return f"{entry.container_id}\r\n{entry.ifname}".encode()
