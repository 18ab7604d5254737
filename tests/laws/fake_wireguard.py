"""WireGuard in memory, spoken to in the kernel's messages or in wireguard-go's text.

As in the real one a network belongs to one peer: who gets it takes it from the other.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pycni.errors import KernelError
from pycni.model.wireguard import Secret
from pycni.wire import wireguard as wire
from pycni.wire.netlink import HEADER, Message, parse_attrs

FAMILY = 33


class FakeWireguard:
    """Devices by name: private key, port, and peers by public key. Stands where the generic netlink socket does."""

    def __init__(self) -> None:
        self.devices: dict[str, tuple[Secret | None, int, dict[bytes, wire.PeerInfo]]] = {}
        self.touched: list[bytes] = []
        """Public keys in the order they were set or removed."""
        self.fail_at: dict[int, int] = {}
        self._count = 0

    def request(self, msg: bytes, operation: str = "", obj: str = "") -> list[Message]:
        [error] = self.batch([msg])
        if error is not None:
            raise error
        return []

    def batch(self, msgs: Sequence[bytes], operation: str = "", obj: str = "") -> list[KernelError | None]:
        results: list[KernelError | None] = []
        for msg in msgs:
            code = self.fail_at.pop(self._count, 0) or self._set(Message(0, 0, 0, msg[HEADER.size :]))
            self._count += 1
            results.append(KernelError(code, operation, obj) if code else None)
        return results

    def dump(self, msg: bytes, operation: str = "", obj: str = "") -> list[Message]:
        name = self._name(Message(0, 0, 0, msg[HEADER.size :]))
        private, port, peers = self.devices.setdefault(name, (None, 0, {}))
        found = [wire.set_device(FAMILY, name, private or Secret(bytes(32)), port)]
        found += [wire.set_peer(FAMILY, name, peer, replace=False) for peer in peers.values()]
        return [Message(FAMILY, 0, 0, raw[HEADER.size :]) for raw in found]

    def close(self) -> None:
        """Nothing to close."""

    @staticmethod
    def _name(msg: Message) -> str:
        return parse_attrs(msg.payload, 4)[wire.A_IFNAME].rstrip(b"\0").decode()

    def _set(self, msg: Message) -> int:
        name = self._name(msg)
        private, port, peers = self.devices.get(name, (None, 0, {}))
        info = wire.parse_device([msg])
        if info.private_key is not None:
            private, port = info.private_key, info.port
        self.devices[name] = (private, port, peers)
        for item in wire._items(parse_attrs(msg.payload, 4).get(wire.A_PEERS, b"")):
            [peer] = info.peers
            flags = int.from_bytes(parse_attrs(item).get(wire.P_FLAGS, b""), "little")
            self.touched.append(peer.public_key)
            if flags & wire.F_REMOVE_ME:
                peers.pop(peer.public_key, None)
                continue
            if any(length > len(net) * 8 for net, length in peer.allowed):
                return errno.EINVAL
            for key, other in peers.items():
                kept = tuple(net for net in other.allowed if net not in peer.allowed)
                peers[key] = other._replace(allowed=kept)
            before = peers.get(peer.public_key)
            if before is not None and not flags & wire.F_REPLACE_ALLOWED:
                peer = peer._replace(allowed=tuple(sorted({*before.allowed, *peer.allowed})))
            peers[peer.public_key] = peer
        return 0
