"""Asks other nodes' agents through the pod network whether they can be reached, and finds a broken checksum offload.

Every agent answers at the base address of its node's subnet, so that questions take the way pods' packets take, with
every backend: it is the address of the devices between nodes; where the backend has none, a local route makes it the
node's (``kernel/probe_address``).

Some network cards and hypervisors fill in the checksum of a packet inside VXLAN wrongly: UDP and TCP between nodes
stall while pings work (field trouble for years; the cure is ``ethtool -K flannel.1 tx-checksum-ip-generic off``).
So two datagrams go to a peer: one with a checksum, which the device leaves to what is below it, and
one without any (``SO_NO_CHECK``, RFC 6936 for IPv6). Answers carry none. When only the second one is answered, several
times in a row, the offload is suspected: it is switched off (the first must be answered then), on (not), and, that
being the proof, off for good. When switching it off does not help it is not to blame and stays on.

Life: ``VtepProber.update`` says who we are and who the peers are; ``run`` asks some of them per interval in turn, so
that each is asked once a minute, but no more than ``AT_ONCE`` at a time. One that answered before and does not now is
asked again soon, and is unreachable when it does not answer then either. Only agents of this project answer, and only
to such addresses of known peers, with as many bytes as they were sent. A peer that never answered may run something
else: nothing is concluded from its silence.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Container, Mapping
from itertools import chain, islice
from typing import NamedTuple, NoReturn

from pycni.agent.vtep_probe_end import Answers, End
from pycni.errors import KernelError
from pycni.model.family import Address, Family
from pycni.view.fabric import PeerKey

log = logging.getLogger("pycni.probe")

ROUND_S = 60.0
"""So long it takes to ask every peer once, while they are not too many for that."""
AT_ONCE = 50
"""Most peers asked in one interval."""
LOSSES = 2
"""Questions in a row without an answer that make a peer unreachable which answered before."""

Localise = Callable[[Collection[bytes]], Awaitable[None]]
"""Makes exactly these addresses, that no device has, this node's. Raises KernelError."""
Switch = Callable[[str, bool], Awaitable[bool]]
"""Switches ``tx-checksum-ip-generic`` of a device; returns whether that changed anything. Raises KernelError."""


class Vtep(NamedTuple):
    """Our end of the pod network in one family."""

    device: str
    """The VXLAN device; "" when there is none."""
    address: Address
    lone: bool = False
    """No device has the address."""


class PeerProbe(NamedTuple):
    """What is known of a peer through the pod network. Times are the loop's, in seconds."""

    reachable: bool | None
    """None: it never answered, so it may not be one of ours."""
    rtt_s: float | None
    asked: float
    answered: float | None
    """When it last answered."""


async def _nothing(_addresses: Collection[bytes]) -> None:
    """Addresses are not looked after."""


class VtepProber:
    """Asks and answers. One event loop."""

    def __init__(
        self,
        port: int,
        switch: Switch,
        *,
        interval_s: float = 10.0,
        timeout_s: float = 1.0,
        rounds: int = 3,
        first_s: float = 1.0,
        first_peers: int = 5,
        at_once: int = 5,
        localise: Localise = _nothing,
    ) -> None:
        """``rounds``: how often the fault must show before it is acted upon. The first few peers are asked faster.

        ``at_once``: so many peers are asked per interval at least.
        """
        self._port = port
        self._switch = switch
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._rounds = rounds
        self._first_s = first_s
        self._hurry = first_peers
        self._at_once = at_once
        self._localise = localise
        self._local_trouble = ""
        self._tunnelled: Container[PeerKey] | None = None
        self._losses: dict[PeerKey, int] = {}
        self._accusing = asyncio.Lock()
        self._own: Mapping[Family, Vtep] = {}
        self._peers: Mapping[PeerKey, Address] = {}
        self._ends: dict[Family, End] = {}
        self._asked: dict[PeerKey, None] = {}
        self._allowed: frozenset[str] | None = None
        self._innocent: set[str] = set()
        self.faulty: set[str] = set()
        """Devices whose offload was proven wrong and is off."""
        self.faults = 0
        """Times a fault was proven."""
        self.observe: Callable[[float | None], None] = lambda _rtt_s: None
        """Told of every round: its round trip time in seconds, None when nothing was answered."""
        self.peers: dict[PeerKey, PeerProbe] = {}
        """Results, for status and metrics."""

    def update(
        self,
        own: Mapping[Family, Vtep],
        peers: Mapping[PeerKey, Address],
        tunnelled: Container[PeerKey] | None = None,
    ) -> None:
        """Who we are and whom to ask: addresses by peer. ``tunnelled``: those reached by VXLAN; None: all.

        They may be ones that their owner keeps changing, with a call here after each change.
        """
        self._own, self._peers, self._tunnelled = own, peers, tunnelled
        self._allowed = None

    async def run(self) -> NoReturn:
        """Ask all peers in turn, for ever."""
        try:
            while True:
                doubted = [key for key, losses in self._losses.items() if losses < LOSSES]
                hurry = self._hurry > 0 or doubted
                await asyncio.sleep(self._first_s if hurry else self._interval_s)
                self._forget()
                await self._open()
                keys = [key for key in doubted if key in self._peers][:AT_ONCE] or self._turn()
                self._hurry -= len(keys)
                await asyncio.gather(*map(self.probe, keys))
        finally:
            for end in self._ends.values():
                end.close()
            self._ends.clear()

    async def reassert(self) -> None:
        """Switch the offload off again where it was proven wrong (a device made anew has it on)."""
        for device in sorted(self.faulty):
            try:
                if await self._switch(device, False):
                    log.warning("%s: checksum offload switched off again", device)
            except KernelError as error:
                log.warning("%s: checksum offload: %s", device, error)

    async def probe(self, key: PeerKey) -> None:
        """Ask one peer, note the result, act on a proven fault."""
        end, address = self._ends.get(key[1]), self._peers.get(key)
        if end is None or address is None:
            return
        answers = await end.ask(str(address), self._timeout_s)
        own = self._own.get(key[1])
        if own is None:
            return  # while it was waited for an answer, the network got another backend
        self._note(key, answers)
        device = own.device
        if answers.checked is not None or answers.unchecked is None or not self._blames(key, device):
            return
        async with self._accusing:
            if self._blames(key, device):
                await self._accuse(key, end, str(address), device)

    def _blames(self, key: PeerKey, device: str) -> bool:
        """Whether the offload of the device may be at fault for what is lost on the way to a peer."""
        tunnelled = self._tunnelled is None or key in self._tunnelled
        return bool(device) and tunnelled and device not in self._innocent

    async def _accuse(self, key: PeerKey, end: End, address: str, device: str) -> None:
        """Only the datagram without checksum came through: see whether that follows the offload, both ways."""
        try:
            if not await self._lost(end, address) or not await self._switch(device, False):
                return  # it was chance; or the offload is off and something else loses the packets
            helps = await self._heard(end, address)
            await self._switch(device, True)
            if not helps:
                self._innocent.add(device)
                log.warning(
                    "%s: peer %s gets datagrams without checksum only; the offload is not the reason",
                    device,
                    key[0],
                )
            elif await self._lost(end, address):
                await self._switch(device, False)
                self.faulty.add(device)
                self.faults += 1
                log.error(
                    "%s: the network below computes checksums of packets inside VXLAN wrongly (shown by peer %s): "
                    "tx-checksum-ip-generic is off now",
                    device,
                    key[0],
                )
        except KernelError as error:
            log.warning("%s: checksum offload: %s", device, error)

    async def _lost(self, end: End, address: str) -> bool:
        """Whether round after round only the datagram without checksum is answered."""
        for _ in range(self._rounds):
            answers = await end.ask(address, self._timeout_s)
            if answers.checked is not None or answers.unchecked is None:
                return False
        return True

    async def _heard(self, end: End, address: str) -> bool:
        """Whether round after round the datagram with a checksum is answered."""
        for _ in range(self._rounds):
            if (await end.ask(address, self._timeout_s)).checked is None:
                return False
        return True

    def _note(self, key: PeerKey, answers: Answers) -> None:
        now = asyncio.get_running_loop().time()
        before = self.peers.get(key)
        times = [rtt for rtt in answers if rtt is not None]
        self.observe(min(times, default=None))
        if times:
            self._losses.pop(key, None)
            if before is not None and before.reachable is False:
                log.info("peer %s: reachable through the pod network again (%s)", key[0], key[1].label)
            self.peers[key] = PeerProbe(True, min(times), now, now)
        elif before is None or before.answered is None:
            self.peers[key] = PeerProbe(None, None, now, None)
        elif self._lost_again(key) < LOSSES:
            self.peers[key] = before._replace(asked=now)
        else:
            if before.reachable:
                log.warning("peer %s: no answer through the pod network any more (%s)", key[0], key[1].label)
            self.peers[key] = PeerProbe(False, None, now, before.answered)

    def _lost_again(self, key: PeerKey) -> int:
        """How often a peer did not answer, now too."""
        self._losses[key] = found = min(self._losses.get(key, 0) + 1, LOSSES)
        return found

    def _forget(self) -> None:
        """Drop what is known of peers that are gone."""
        for gone in self._losses.keys() - self._peers.keys():
            del self._losses[gone]
        for gone in self._asked.keys() - self._peers.keys():
            del self._asked[gone]
            self.peers.pop(gone, None)

    def _may_ask(self, source: str) -> bool:
        """Whether an address is one a known peer asks from."""
        if self._allowed is None:
            self._allowed = frozenset(str(address) for address in self._peers.values())
        return source in self._allowed

    def _turn(self) -> list[PeerKey]:
        """The peers whose turn it is: never asked before, else longest ago."""
        wanted = max(self._at_once, math.ceil(len(self._peers) * self._interval_s / ROUND_S))
        number = min(len(self._peers), wanted, AT_ONCE)
        fresh = (key for key in self._peers if key not in self._asked)
        keys = list(islice(chain(fresh, tuple(self._asked)), number))
        for key in keys:
            self._asked.pop(key, None)
            self._asked[key] = None
        return keys

    async def _open(self) -> None:
        """Have sockets on our present addresses, and the addresses."""
        lone = [own.address.packed for own in self._own.values() if own.lone]
        try:
            await self._localise(lone)
        except KernelError as error:
            if self._local_trouble != str(error):
                log.warning("peers cannot ask this node: %s", error)
            self._local_trouble = str(error)
        else:
            self._local_trouble = ""
        for family, end in list(self._ends.items()):
            if self._own.get(family) is None or end.address != self._own[family].address:
                end.close()
                del self._ends[family]
        for family, own in self._own.items():
            if family not in self._ends:
                try:
                    self._ends[family] = await End.open(own.address, self._port, self._may_ask)
                except OSError as error:
                    log.warning("probe socket on %s port %d: %s", own.address, self._port, error)
