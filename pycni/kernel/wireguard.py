"""WireGuard devices and their peers: read, made, changed in place, peer by peer.

The kernel's WireGuard is configured by generic netlink, wireguard-go's by its socket; both take the same peers. Which
one a device has shows in its kind: ``wireguard``, or ``tun`` for wireguard-go. Key and port change in place; a change
of one peer touches no other, and a peer's networks are replaced as a whole only when one of them went.

A peer that moved (behind NAT) is followed by WireGuard itself, to where its last authentic packet came from. So
an endpoint that differs from the one set by us reads as ours once the peer was heard of.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pycni.errors import KernelError
from pycni.kernel import wireguard_go
from pycni.kernel.netlink import NETLINK_GENERIC, NetlinkSocket
from pycni.kernel.tunnel import Lost, PutSysctl, find, mtu_of, own_addresses, settle
from pycni.model.fabric import UDP_DEVICE, WIREGUARD, WIREGUARD_GO, WireguardLink
from pycni.model.wireguard import WireguardKey, WireguardPeer, WireguardSecrets, wireguard_text
from pycni.wire import rtlink
from pycni.wire import wireguard as wire
from pycni.wire.genl import family_request, parse_family
from pycni.wire.netlink import attr_u32

log = logging.getLogger("pycni.kernel")
T = TypeVar("T")

Home = Callable[[Callable[[], Any]], Any]
"""Runs a function in the namespace of the devices."""

_NOBODY = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE})


class Wireguard:
    """Driver of WireGuard devices. One thread at a time."""

    table, label = "wireguard", "WireGuard"

    def __init__(self, home: Home) -> None:
        self.secrets: WireguardSecrets | None = None
        """Given before devices are wanted, and again for another key (``take``)."""
        self._home = home
        self._sock: NetlinkSocket | None = None
        self._family = 0
        self._kinds: dict[str, str] = {}
        self._ports: dict[str, int] = {}
        self._set: dict[WireguardKey, WireguardPeer] = {}
        """Peers as we last set or read them."""

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def take(self, secrets: WireguardSecrets) -> None:
        """Go by these keys. A new private key is in the devices on return: peers are about to go by it.

        Sessions of the old one are still received by; what is sent waits for the next handshake. Where a device cannot
        be set, the pass that follows fails by it.
        """
        before, self.secrets = self.secrets, secrets
        if before is None or before.private_key == secrets.private_key:
            return
        for name, port in self._ports.items():
            try:
                self._set_device(name, port)
            except KernelError as exc:
                log.warning("%s keeps its old key for now: %s", name, exc)

    # devices

    def owns(self, link: rtlink.Link) -> bool:
        """WireGuard's devices, and the TUN devices of wireguard-go."""
        return link.kind == WIREGUARD or (link.kind == WIREGUARD_GO and link.name != UDP_DEVICE)

    def read(
        self, sock: NetlinkSocket, links: Sequence[rtlink.Link]
    ) -> tuple[dict[str, WireguardLink], dict[WireguardKey, WireguardPeer]]:
        """Devices with their peers. One that nobody serves any more has no key: unlike any wanted one.

        Raises KernelError.
        """
        devices: dict[str, WireguardLink] = {}
        peers: dict[WireguardKey, WireguardPeer] = {}
        for link in links:
            devices[link.name], found = self._read(sock, link)
            peers |= found
        return devices, peers

    def _read(
        self, sock: NetlinkSocket, link: rtlink.Link
    ) -> tuple[WireguardLink, dict[WireguardKey, WireguardPeer]]:
        self._kinds[link.name] = link.kind
        info = self._info(link.name)
        self._ports[link.name] = info.port
        secrets = self.secrets
        known = secrets is not None and info.private_key == secrets.private_key
        device = WireguardLink(
            name=link.name,
            public_key=secrets.public_key if secrets is not None and known else b"",
            port=info.port,
            mtu=mtu_of(link),
            addresses=tuple(sorted(own_addresses(sock, link.ifindex))),
        )
        peers = dict(self._peer(link.name, peer) for peer in info.peers)
        self._set = {key: peer for key, peer in self._set.items() if key.device != link.name} | peers
        return device, peers

    def ensure(
        self, sock: NetlinkSocket, desired: WireguardLink, actual: WireguardLink | None, put_sysctl: PutSysctl
    ) -> Lost:
        """Make the device what it should be; returns what has to be replayed on it. Raises KernelError."""
        if actual is not None and not actual.public_key and not self._served(desired.name):
            log.warning("%s is made again: nobody serves it", desired.name)
            sock.request(rtlink.del_link(name=desired.name), "delete link", desired.name)
            actual = None
        if actual is None:
            self._create(sock, desired)
        link = find(sock, desired.name)
        self._kinds[desired.name] = link.kind
        if actual is None or (actual.public_key, actual.port) != (desired.public_key, desired.port):
            self._configure(desired)
        what = f"{desired.name} listen-port {desired.port} mtu {desired.mtu}"
        settle(sock, desired, link, (), put_sysctl, what=what)
        return Lost.EVERYTHING if actual is None else Lost.NOTHING

    def _create(self, sock: NetlinkSocket, desired: WireguardLink) -> None:
        self._set = {key: peer for key, peer in self._set.items() if key.device != desired.name}
        message = rtlink.new_link(desired.name, WIREGUARD, attr_u32(rtlink.IFLA_MTU, desired.mtu))
        try:
            sock.request(message, "create link", desired.name)
        except KernelError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            folder = self._need_secrets(desired.name).folder
            self._home(lambda: wireguard_go.start(folder, desired.name))
            log.info("%s is served by %s: this kernel has no WireGuard", desired.name, wireguard_go.PROGRAM)

    def _configure(self, desired: WireguardLink) -> None:
        if self._need_secrets(desired.name).public_key != desired.public_key:
            raise KernelError(errno.EKEYREJECTED, "set WireGuard device", desired.name, "not the key we have")
        self._set_device(desired.name, desired.port)

    def _set_device(self, name: str, port: int) -> None:
        secrets = self._need_secrets(name)
        if self._kinds[name] == WIREGUARD:
            sock, family = self._netlink()
            message = wire.set_device(family, name, secrets.private_key, port)
            sock.request(message, "set WireGuard device", name)
        else:
            text = wire.set_device_text(secrets.private_key, port)
            [error] = wireguard_go.send(secrets.folder, name, [text])
            if error is not None:
                raise error
        self._ports[name] = port

    # peers

    def met(self) -> frozenset[WireguardKey]:
        """Peers that have agreed on a session with us, ever since they are there. Raises KernelError."""
        return frozenset(
            WireguardKey(name, peer.public_key)
            for name in self._kinds
            for peer in self._info(name).peers
            if peer.handshake
        )

    def put(self, peers: Mapping[WireguardKey, WireguardPeer]) -> dict[WireguardKey, KernelError]:
        """Make or change peers; returns what failed."""
        jobs: list[tuple[WireguardKey, tuple[wire.PeerInfo, bool]]] = []
        for key, peer in peers.items():
            earlier = self._set.get(key)
            replace = earlier is None or bool(set(earlier.allowed) - set(peer.allowed))
            jobs.append((key, (self._wanted(key, peer), replace)))
        self._greet(jobs)
        failed = self._put(jobs)
        self._set.update({key: peer for key, peer in peers.items() if key not in failed})
        return failed

    def _put(
        self, jobs: Sequence[tuple[WireguardKey, tuple[wire.PeerInfo, bool]]]
    ) -> dict[WireguardKey, KernelError]:
        return self._each(
            jobs,
            lambda family, key, job: wire.set_peer(family, key.device, job[0], replace=job[1]),
            lambda _key, job: wire.set_peer_text(job[0], replace=job[1]),
        )

    def _greet(self, jobs: Sequence[tuple[WireguardKey, tuple[wire.PeerInfo, bool]]]) -> None:
        """Have a node with a new key answered at once: its packets wait for a session, and it cannot begin one.

        A peer that takes over an earlier one's networks is first made with a keepalive, which has WireGuard send
        right now; setting it as it is wanted, as is done next, takes that away. What fails here fails there again.
        """
        if not self._set or all(key in self._set for key, _ in jobs):
            return
        taken: dict[tuple[str, tuple[bytes, int]], WireguardKey] = {
            (key.device, net): key for key, peer in self._set.items() for net in peer.allowed
        }
        heirs = []
        for key, (info, replace) in jobs:
            holders = {taken.get((key.device, net), key) for net in info.allowed}
            if key not in self._set and holders != {key} and not info.keepalive_s:
                heirs.append((key, (info._replace(keepalive_s=1), replace)))
        self._put(heirs)

    def remove(self, keys: Iterable[WireguardKey]) -> dict[WireguardKey, KernelError]:
        """Remove peers; missing ones, and those of a device that is gone, are success. Returns what failed."""
        doomed = [(key, None) for key in keys]
        failed = self._each(
            doomed,
            lambda family, key, _: wire.remove_peer(family, key.device, key.public_key),
            lambda key, _: wire.remove_peer_text(key.public_key),
        )
        for key, _ in doomed:
            if key not in failed:
                self._set.pop(key, None)
        gone = {*_NOBODY, errno.ENODEV}
        return {key: error for key, error in failed.items() if error.errno not in gone}

    def text(self, key: WireguardKey, value: WireguardPeer) -> str:
        """A peer in words, without secrets."""
        return wireguard_text(key, value)

    def _each(
        self,
        jobs: Sequence[tuple[WireguardKey, T]],
        packed: Callable[[int, WireguardKey, T], bytes],
        written: Callable[[WireguardKey, T], bytes],
    ) -> dict[WireguardKey, KernelError]:
        """One request per peer, in one go per device; returns what failed."""
        failed: dict[WireguardKey, KernelError] = {}
        for name in dict.fromkeys(key.device for key, _ in jobs):
            some = [(key, job) for key, job in jobs if key.device == name]
            try:
                if self._kinds.get(name) == WIREGUARD_GO:
                    folder = self._need_secrets(name).folder
                    results = wireguard_go.send(folder, name, [written(key, job) for key, job in some])
                else:
                    sock, family = self._netlink()
                    results = sock.batch([packed(family, key, job) for key, job in some])
            except KernelError as exc:
                results = [exc] * len(some)
            failed |= {key: error for (key, _), error in zip(some, results, strict=True) if error is not None}
        return failed

    def _wanted(self, key: WireguardKey, peer: WireguardPeer) -> wire.PeerInfo:
        secrets = self._need_secrets(key.device)
        return wire.PeerInfo(
            public_key=key.public_key,
            psk=secrets.psk if peer.psk else None,
            endpoint=peer.endpoint,
            port=peer.port,
            keepalive_s=peer.keepalive_s,
            allowed=peer.allowed,
        )

    def _peer(self, device: str, info: wire.PeerInfo) -> tuple[WireguardKey, WireguardPeer]:
        key = WireguardKey(device, info.public_key)
        psk = info.psk.fingerprint if info.psk is not None else ""
        endpoint, port = info.endpoint, info.port
        earlier = self._set.get(key)
        if earlier is not None and info.handshake:
            endpoint, port = earlier.endpoint, earlier.port
        return key, WireguardPeer(endpoint, port, info.allowed, info.keepalive_s, psk)

    def _info(self, name: str) -> wire.DeviceInfo:
        try:
            if self._kinds[name] == WIREGUARD:
                sock, family = self._netlink()
                return wire.parse_device(
                    sock.dump(wire.get_device(family, name), "read WireGuard device", name)
                )
            folder = self.secrets.folder if self.secrets is not None else ""
            return wireguard_go.read(folder, name)
        except KernelError as exc:
            if exc.errno not in {*_NOBODY, errno.ENODEV}:
                raise
            return wire.DeviceInfo(None, 0, ())

    def _served(self, name: str) -> bool:
        """Whether somebody answers for a device, whatever its key."""
        if self._kinds.get(name) == WIREGUARD:
            return True
        try:
            wireguard_go.read(self._need_secrets(name).folder, name)
        except KernelError as exc:
            if exc.errno in _NOBODY:
                return False
            raise
        return True

    def _netlink(self) -> tuple[NetlinkSocket, int]:
        """Socket and number of the family. Raises KernelError (ENOENT: the kernel has no WireGuard)."""
        if self._sock is None:
            self._sock = self._home(lambda: NetlinkSocket(NETLINK_GENERIC))
        if not self._family:
            operation = "find netlink family"
            [reply] = self._sock.request(family_request(wire.FAMILY_NAME), operation, wire.FAMILY_NAME)
            self._family = parse_family(reply)
        return self._sock, self._family

    def _need_secrets(self, name: str) -> WireguardSecrets:
        if self.secrets is None:
            raise KernelError(errno.ENOKEY, "set WireGuard device", name, "no key was given")
        return self.secrets
