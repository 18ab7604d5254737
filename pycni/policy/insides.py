"""All pods of this node whose policies are enforced inside them (``inside``).

Life: the gate tells of a pod before it has a device (``admit``: its table is there and closed), when it has one
(``attached``) and when it is cut off (``gone``); after a restart ``follow`` finds the pods on record again. The engine
tells of rows that changed (``note``), and each pass has them brought into the pods they are about (``bring``). A pod
that cannot be brought there keeps what it has, closed if it is new; it is named in ``problems`` and tried again by the
next pass. Changes that somebody makes inside a pod wake ``fileno`` up.

Any thread; the component's lock is held for ``bring``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pycni.attach.names import names
from pycni.errors import ConfigError, KernelError
from pycni.kernel.podspace import open_pod
from pycni.model.attachment import AttachmentKind
from pycni.model.endpoint import Endpoint, Owner
from pycni.policy.base import Denied
from pycni.policy.inside import Inside, Place
from pycni.policy.inside_drops import InsideDrops
from pycni.policy.pods import Attachment
from pycni.policy.spoof_rules import link_local
from pycni.view.policies import PolicyView
from pycni.view.policy_stages import RowDiff

log = logging.getLogger("pycni.policy")

KINDS = frozenset({AttachmentKind.MACVLAN, AttachmentKind.IPVLAN})
"""Attachments whose packets pass the node's tables by."""
KEY_FILE = "inside.key"
KEY_BYTES = 32


def is_inside(endpoint: Endpoint) -> bool:
    """Whether policies of an attachment are enforced inside the pod."""
    return endpoint.attachment in KINDS


def place_of(endpoint: Endpoint) -> Place:
    """Of an endpoint. An ipvlan child has its parent's MAC, and a link-local address of its own."""
    mac = bytes.fromhex(endpoint.mac.replace(":", ""))
    own = names(endpoint.owner).mac if endpoint.attachment is AttachmentKind.IPVLAN else mac
    addresses = tuple(item.ip.packed for item in endpoint.addresses)
    named = endpoint.pod_namespace and endpoint.pod_name
    pod = f"{endpoint.pod_namespace}/{endpoint.pod_name}" if named else ""
    return Place(endpoint.owner, addresses, mac, link_local(own) if own else b"", pod)


class Insides:
    """One per component, in the node's namespace."""

    def __init__(self, state_dir: str, *, senders: bool) -> None:
        """``senders``: pods are held to their own addresses."""
        self._state_dir = state_dir
        self._senders = senders
        self._lock = threading.RLock()
        self._pods: dict[Owner, Inside] = {}
        self._attached: set[Owner] = set()
        """Those that have their device."""
        self._records: dict[Owner, Endpoint] = {}
        """Pods on record that are to be found again."""
        self._troubles: dict[Owner, str] = {}
        self._key: bytes | None = None
        self._epoll = select.epoll()
        self._listening: set[InsideDrops] = set()

    def close(self) -> None:
        """Release sockets; pods stay as they are."""
        with self._lock:
            for inside in self._pods.values():
                inside.close()
            self._pods.clear()
            self._epoll.close()

    def fileno(self) -> int:
        """Readable when tables inside some pod were changed, by us too."""
        return self._epoll.fileno()

    def noticed(self) -> bool:
        """Take note of what ``fileno`` tells; whether there was anything."""
        with self._lock:
            if self._epoll.closed:
                return False
            return sum(inside.doubt() for inside in self._pods.values()) > 0

    # --- pods ------------------------------------------------------------------------------------------------------

    def admit(self, endpoint: Endpoint, netns_fd: int) -> None:
        """Have a pod's table in its namespace, closed. Raises KernelError, ConfigError."""
        with self._lock:
            self._drop(endpoint.owner)
            inside = self._make(endpoint, netns_fd)
            try:
                inside.shut()
            except BaseException:
                self._drop(endpoint.owner)
                raise

    def attached(self, endpoint: Endpoint) -> None:
        """The pod has its device: close the way past the table. Raises KernelError."""
        with self._lock:
            inside = self._pods.get(endpoint.owner)
            if inside is None:
                return
            inside.replace(place_of(endpoint))
            inside.guard()
            self._attached.add(endpoint.owner)

    def gone(self, owner: Owner) -> None:
        """The pod is cut off."""
        with self._lock:
            self._records.pop(owner, None)
            inside = self._pods.get(owner)
            if inside is None:
                return
            with contextlib.suppress(KernelError):  # the namespace may be on its way out
                inside.remove()
            self._drop(owner)

    def follow(self, endpoints: Iterable[Endpoint]) -> None:
        """Pods there are by the records; those not known yet are opened by the next ``bring``."""
        with self._lock:
            for endpoint in endpoints:
                if is_inside(endpoint) and endpoint.state == "ready" and endpoint.owner not in self._pods:
                    self._records[endpoint.owner] = endpoint

    def _drop(self, owner: Owner) -> None:
        inside = self._pods.pop(owner, None)
        self._attached.discard(owner)
        self._troubles.pop(owner, None)
        if inside is not None:
            for reader in self._listening:
                reader.remove(owner)
            self._epoll.unregister(inside.watch.fileno())
            inside.close()

    def _make(self, endpoint: Endpoint, fd: int) -> Inside:
        inside = Inside(place_of(endpoint), fd, self._secret(), senders=self._senders)
        self._pods[endpoint.owner] = inside
        self._epoll.register(inside.watch.fileno(), select.EPOLLIN)
        for reader in self._listening:
            reader.add(endpoint.owner, inside.drops)
        return inside

    def _found_again(self) -> None:
        for owner, endpoint in list(self._records.items()):
            fd = open_pod(endpoint.netns, endpoint.netns_inode)
            if fd is None:
                # Without its namespace there is nobody to enforce anything against: the collector sees to the rest.
                self._records.pop(owner)
                log.warning("%s: its namespace is not to be found: its policies are not looked after", owner)
                continue
            try:
                self._make(endpoint, fd)
                self._attached.add(owner)
                self._records.pop(owner)
            except KernelError as error:
                self._troubles[owner] = str(error)
            finally:
                os.close(fd)

    # --- passes ----------------------------------------------------------------------------------------------------

    def note(self, rows: Sequence[RowDiff], full: bool) -> None:
        """Rows of the view that changed; ``full``: anything may have."""
        with self._lock:
            for inside in self._pods.values():
                inside.note(rows, full=full)
                if full:
                    inside.distrust()

    def bring(self, view: PolicyView, holders: Mapping[bytes, Attachment]) -> int:
        """Bring what changed into the pods it is about; how many rows that were.

        ``holders``: who had which address when the view was made. A pod that came later stays closed.
        """
        changed = 0
        with self._lock:
            self._found_again()
            for owner, inside in self._pods.items():
                known = all(
                    address in holders and holders[address].owner == owner
                    for address in inside.place.addresses
                )
                if not (inside.pending and known):
                    continue
                try:
                    changed += inside.bring(view)
                    if owner in self._attached:
                        inside.guard()
                except KernelError as error:
                    inside.distrust()
                    self._troubles[owner] = str(error)
                else:
                    self._troubles.pop(owner, None)
        return changed

    def open(self, owner: Owner) -> bool:
        """Whether an attachment's policies are in its pod as far as is known."""
        with self._lock:
            inside = self._pods.get(owner)
            return inside is None or not inside.pending

    def pods(self) -> list[str]:
        """Keys of the pods there are, as far as the runtime told them."""
        with self._lock:
            return [inside.place.pod for inside in self._pods.values() if inside.place.pod]

    @property
    def problems(self) -> str:
        """What could not be programmed, in one line."""
        with self._lock:
            return "; ".join(
                f"{owner.container_id} {owner.ifname}: {text}" for owner, text in self._troubles.items()
            )

    @property
    def lacks(self) -> str:
        """Why packet sockets of pods are not held back; "" when they are."""
        with self._lock:
            return next((inside.lacks for inside in self._pods.values() if inside.lacks), "")

    def denied(self) -> list[Denied]:
        """What has been denied inside pods; those on their way out are left out."""
        found: list[Denied] = []
        with self._lock:
            for inside in self._pods.values():
                with contextlib.suppress(KernelError):
                    found += inside.denied()
        return found

    def drops(self) -> InsideDrops:
        """What is denied inside pods, live; also in those that come."""

        def closed(reader: InsideDrops) -> None:
            with self._lock:
                self._listening.discard(reader)

        reader = InsideDrops(closed)
        with self._lock:
            self._listening.add(reader)
            for owner, inside in self._pods.items():
                reader.add(owner, inside.drops)
        return reader

    def _secret(self) -> bytes:
        if self._key is None:
            self._key = load_key(self._state_dir)
        return self._key


def load_key(state_dir: str) -> bytes:
    """The node's key, made once and readable by root alone. Raises ConfigError."""
    path = Path(state_dir) / KEY_FILE
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    draft = path.with_name(f"{KEY_FILE}.{os.getpid()}.{threading.get_native_id()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(os.urandom(KEY_BYTES))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        return _read(path)
    except OSError as exc:
        raise ConfigError("settings", "state-dir", state_dir, exc.strerror or str(exc)) from exc
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    raw = path.read_bytes()
    if len(raw) != KEY_BYTES:
        raise ConfigError("state", KEY_FILE, str(path), f"{len(raw)} bytes, expected {KEY_BYTES}: remove it")
    return raw
