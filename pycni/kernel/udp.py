"""The udp backend's device and its networks: read, made, changed in place.

The device is a TUN device that stays when its forwarder dies, with routes and addresses; it has no carrier then. What
it is to forward to whom is the forwarder's own memory: a new one is told everything.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pycni.errors import KernelError
from pycni.kernel import udp_forwarder
from pycni.kernel.netlink import NetlinkSocket
from pycni.kernel.tunnel import Lost, PutSysctl, find, mtu_of, need_kind, own_addresses, settle
from pycni.model.fabric import UDP, UDP_DEVICE, UdpLink
from pycni.model.udp import UdpKey, UdpPeer, UdpSecrets, udp_text
from pycni.wire import forwarder as wire
from pycni.wire import rtlink

log = logging.getLogger("pycni.kernel")

Home = Callable[[Callable[[], Any]], Any]
"""Runs a function in the namespace of the device."""


class Udp:
    """Driver of the forwarder's device. One thread at a time."""

    table, label = "udp", "forwarding"

    def __init__(self, home: Home) -> None:
        self.secrets: UdpSecrets | None = None
        """Given before the device is wanted."""
        self.counters: Mapping[str, int] = {}
        """What the forwarder counted, as of the last reading."""
        self._home = home

    def close(self) -> None:
        """Nothing is open between calls."""

    # devices

    def owns(self, link: rtlink.Link) -> bool:
        """The one TUN device of this name."""
        return link.kind == UDP and link.name == UDP_DEVICE

    def read(
        self, sock: NetlinkSocket, links: Sequence[rtlink.Link]
    ) -> tuple[dict[str, UdpLink], dict[UdpKey, UdpPeer]]:
        """Devices with what is forwarded. One that nobody serves has no port: unlike any wanted one.

        Raises KernelError.
        """
        counters: Mapping[str, int] = {}
        devices: dict[str, UdpLink] = {}
        entries: dict[UdpKey, UdpPeer] = {}
        for link in links:
            state = self._state(link.name) or wire.State()
            counters = state.counters
            devices[link.name] = UdpLink(
                name=link.name,
                port=state.port,
                mtu=mtu_of(link),
                local=state.local,
                public=state.public,
                psk=state.psk,
                addresses=tuple(sorted(own_addresses(sock, link.ifindex))),
            )
            for entry in state.entries:
                key = UdpKey(link.name, entry.network, entry.prefix_len)
                entries[key] = UdpPeer(entry.endpoint, entry.port)
        self.counters = counters
        return devices, entries

    def ensure(
        self, sock: NetlinkSocket, desired: UdpLink, actual: UdpLink | None, put_sysctl: PutSysctl
    ) -> Lost:
        """Make the device what it should be; returns what has to be replayed on it. Raises KernelError."""
        folder = self._need_secrets(desired.name).folder
        if self._state(desired.name) is None:
            if actual is not None:
                why = udp_forwarder.last_words(folder, desired.name)
                log.warning("%s had no forwarder: one is started%s", desired.name, f" ({why})" if why else "")
            _need_name(sock, desired.name)
            self._home(lambda: udp_forwarder.start(folder, desired.name))
        link = find(sock, desired.name)
        self._configure(desired)
        settle(sock, desired, link, (), put_sysctl, what=f"{desired.name} mtu {desired.mtu}")
        return Lost.EVERYTHING if actual is None else Lost.NOTHING

    def _state(self, name: str) -> wire.State | None:
        """What the forwarder says; None when there is none, or one of another version, which is ended."""
        if self.secrets is None:  # a device of an earlier life, which this network does not want
            return None
        folder = self.secrets.folder
        try:
            state = udp_forwarder.read(folder, name)
            if state.version != wire.VERSION:
                udp_forwarder.send(folder, name, [wire.Quit()])
                return None
        except KernelError as exc:
            if exc.errno in udp_forwarder.NOBODY:
                return None
            raise
        return state

    def _configure(self, desired: UdpLink) -> None:
        secrets = self._need_secrets(desired.name)
        psk = secrets.psk.value if secrets.psk is not None else None
        if wire.fingerprint(psk) != desired.psk:
            raise KernelError(errno.EKEYREJECTED, "configure forwarder", desired.name, "not the key we have")
        request = wire.Configure(desired.port, desired.local, desired.public, psk, desired.mtu)
        [state] = udp_forwarder.send(secrets.folder, desired.name, [request])
        _check(state, "configure forwarder", desired.name)

    # networks

    def put(self, entries: Mapping[UdpKey, UdpPeer]) -> dict[UdpKey, KernelError]:
        """Make or change networks; returns what failed."""
        return self._tell(
            entries,
            lambda keys: wire.Put(
                tuple(wire.Entry(key.network, key.prefix_len, *entries[key]) for key in keys)
            ),
        )

    def remove(self, keys: Iterable[UdpKey]) -> dict[UdpKey, KernelError]:
        """Remove networks; missing ones, and those of a device that is gone, are success. Returns what failed."""
        failed = self._tell(
            keys, lambda some: wire.Remove(tuple(wire.Entry(key.network, key.prefix_len) for key in some))
        )
        return {key: error for key, error in failed.items() if error.errno not in udp_forwarder.NOBODY}

    def text(self, key: UdpKey, value: UdpPeer) -> str:
        """A network in words."""
        return udp_text(key, value)

    def _tell(
        self, keys: Iterable[UdpKey], request: Callable[[Sequence[UdpKey]], wire.Request]
    ) -> dict[UdpKey, KernelError]:
        """All networks of a device at once; returns what failed."""
        keys = list(keys)
        failed: dict[UdpKey, KernelError] = {}
        for name in dict.fromkeys(key.device for key in keys):
            some = [key for key in keys if key.device == name]
            try:
                [state] = udp_forwarder.send(self._need_secrets(name).folder, name, [request(some)])
                _check(state, "set forwarding", name)
            except KernelError as exc:
                failed |= dict.fromkeys(some, exc)
        return failed

    def _need_secrets(self, name: str) -> UdpSecrets:
        if self.secrets is None:
            raise KernelError(errno.ENOKEY, "configure forwarder", name, "nothing was said of its folder")
        return self.secrets


def _check(state: wire.State, operation: str, name: str) -> None:
    if state.error:
        raise KernelError(state.errno or errno.EIO, operation, name, state.error)


def _need_name(sock: NetlinkSocket, name: str) -> None:
    """Raise KernelError when a device of another kind has the name."""
    try:
        need_kind(find(sock, name), UDP)
    except KernelError as exc:
        if exc.errno != errno.ENODEV:
            raise
