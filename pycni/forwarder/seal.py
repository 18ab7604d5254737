"""Encrypted sessions with the peers: which keys are in use, what was received already, when new ones are due. Pure but
for random numbers; the clock is handed in.

    data    u8 3 | 3 zero | u32 index of the receiver's session | u64 counter | AES-256-GCM of the packet, 16 bytes more

The header is authenticated too. The counter is the nonce: it starts at 0 in every session and never repeats, as a key
belongs to one session (``handshake``) and that to one life of the program. Received counters are kept in a window.

Life of a session: the first packet to a peer waits while a hello is out. Who answered sends by a session only once
something authentic came by it, so a hello somebody recorded changes nothing. After ``REKEY_S`` the next packet brings a
new session about, and the old one is used until that stands; after ``REJECT_S`` nothing of it counts any more. A peer
that lost its memory does not know the index it is sent: it says hello itself.
"""

from __future__ import annotations

import os
import struct
from collections import Counter, deque
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag

from pycni.forwarder.handshake import (
    ANSWER,
    ANSWER_BYTES,
    ANSWER_HEAD,
    DATA,
    HELLO,
    HELLO_BYTES,
    Keys,
    Opening,
    Pair,
    Presence,
)

HEAD = struct.Struct("<B3xIQ")
NONCE = struct.Struct("<4xQ")
TAG_BYTES = 16
WINDOW = 2048
"""How far behind the newest counter one may come."""
LAST_COUNTER = 1 << 48
REKEY_S, REJECT_S = 120.0, 300.0
HELLO_S = (0.25, 0.5, 1.0, 2.0, 4.0, 5.0)
"""Between one hello and the next; the last one goes on."""
GIVE_UP_S = 30.0
WAITING = 128
"""Packets that wait for a session, per peer."""
ANSWERS, ANSWERS_PER_S = 10.0, 5.0
"""How many hellos of one peer are answered at once, and later."""
UNPROVEN = 4
"""Answered sessions of one peer that nothing came by yet."""
DEAF_S = 3.0
"""Without anything authentic for so long, a session unknown to us means that the peer has other sessions than we."""
_MASK = (1 << WINDOW) - 1


class Session:
    """Keys of one session and where its counters are."""

    __slots__ = ("asked", "began", "highest", "keys", "mine", "proven", "seen", "sent", "theirs")

    def __init__(self, keys: Keys, mine: int, theirs: int, began: float, *, asked: bool) -> None:
        self.keys = keys
        self.mine, self.theirs = mine, theirs
        """The index this side, and the other, finds it by."""
        self.began = began
        self.asked = asked
        """Whether the hello was ours."""
        self.proven = asked
        """Whether the other side has shown that it has the keys."""
        self.sent = 0
        self.highest, self.seen = -1, 0
        """Newest counter received; bit n says whether the one n before it was."""

    def is_new(self, counter: int) -> bool:
        """Whether a counter was not received yet and is not too old."""
        behind = self.highest - counter
        return behind < 0 or (behind < WINDOW and not self.seen >> behind & 1)

    def note(self, counter: int) -> None:
        """An authentic packet had this counter."""
        ahead = counter - self.highest
        if ahead > 0:
            self.seen = (self.seen << ahead & _MASK | 1) if ahead < WINDOW else 1
            self.highest = counter
        else:
            self.seen |= 1 << -ahead


class Channel:
    """All sessions with one peer. ``out`` is what is to be sent to it besides sealed packets."""

    def __init__(self, ring: Keyring, ours: bytes, theirs: bytes) -> None:
        """``ours`` and ``theirs``: public addresses, packed."""
        self.out: list[bytes] = []
        self._ring = ring
        self._to, self._from = Pair(ours, theirs), Pair(theirs, ours)
        self._current: Session | None = None
        self._sessions: dict[int, Session] = {}
        self._opening: Opening | None = None
        self._opened = self._next_hello = 0.0
        self._hellos = 0
        self._waiting: deque[bytes] = deque()
        self._heard = float("-inf")
        self._answers, self._answered = ANSWERS, float("-inf")

    def close(self) -> None:
        """Forget all keys."""
        for session in self._sessions.values():
            self._ring.forget(session.mine)
        self._sessions.clear()
        self._current = None
        self._drop_opening()
        self._ring.drops["no_session"] += len(self._waiting)
        self._waiting.clear()

    @property
    def opening(self) -> bool:
        """Whether a hello waits for its answer."""
        return self._opening is not None

    def text(self, now: float) -> str:
        """How it stands, in words."""
        current = self._current
        if current is not None and now - current.began < REJECT_S:
            return f"session since {now - current.began:.0f} s, {current.sent} packets sent"
        return f"{self._hellos} hellos without answer" if self._opening is not None else "no session"

    # sending

    def seal(self, packets: Sequence[bytes], now: float) -> list[bytes]:
        """Datagrams for these packets; none while there is no session, the packets wait then."""
        session = self._current
        if session is not None and now - session.began >= REJECT_S:
            session = None
        if session is None or now - session.began >= REKEY_S or session.sent >= LAST_COUNTER:
            self._open(now)
            if session is None or session.sent >= LAST_COUNTER:
                self._wait(packets)
                return []
        counter, theirs, encrypt = session.sent, session.theirs, session.keys.send.encrypt
        session.sent += len(packets)
        sealed = []
        for number, packet in enumerate(packets, counter):
            head = HEAD.pack(DATA, theirs, number)
            sealed.append(head + encrypt(NONCE.pack(number), packet, head))
        return sealed

    def tick(self, now: float) -> None:
        """Say hello again when it is time; forget what is too old."""
        for session in [
            each
            for each in self._sessions.values()
            if now - each.began >= (REJECT_S if each.proven else GIVE_UP_S)
        ]:
            self._forget(session)
        if self._opening is None or now < self._next_hello:
            return
        if now - self._opened >= GIVE_UP_S:
            self._drop_opening()
            self._ring.drops["no_session"] += len(self._waiting)
            self._waiting.clear()
            return
        self._say_hello(now)

    def _wait(self, packets: Sequence[bytes]) -> None:
        room = WAITING - len(self._waiting)
        self._waiting.extend(packets[:room])
        self._ring.drops["no_session"] += max(len(packets) - room, 0)

    def _open(self, now: float) -> None:
        """Have a new session, unless one is on its way."""
        if self._opening is None:
            self._opening = self._ring.presence.hello(self._ring.index(self), self._to)
            self._opened, self._hellos = now, 0
            self._say_hello(now)

    def _say_hello(self, now: float) -> None:
        assert self._opening is not None, "no hello to say"
        self.out.append(self._opening.message)
        self._next_hello = now + HELLO_S[min(self._hellos, len(HELLO_S) - 1)]
        self._hellos += 1

    def _drop_opening(self) -> None:
        if self._opening is not None:
            self._ring.forget(self._opening.mine)
            self._opening = None

    def _forget(self, session: Session) -> None:
        del self._sessions[session.mine]
        self._ring.forget(session.mine)
        if self._current is session:
            self._current = None

    # receiving

    def greeted(self, hello: bytes, now: float) -> None:
        """The peer says hello."""
        self._answers = min(ANSWERS, self._answers + (now - self._answered) * ANSWERS_PER_S)
        self._answered = now
        if self._answers < 1:
            self._ring.drops["too_many_hellos"] += 1
            return
        index = self._ring.index(self)
        found = self._ring.presence.answer(hello, index, self._from)
        if found is None:
            self._ring.forget(index)
            self._ring.drops["forged"] += 1
            return
        self._answers -= 1
        reply, keys, theirs = found
        unproven = [each for each in self._sessions.values() if not each.proven]
        if len(unproven) >= UNPROVEN:
            self._forget(min(unproven, key=lambda each: each.began))
        self._sessions[index] = Session(keys, index, theirs, now, asked=False)
        self.out.append(reply)

    def answered(self, index: int, answer: bytes, now: float) -> None:
        """The peer answers the hello that had this index."""
        opening = self._opening
        found = (
            self._ring.presence.finish(opening, answer, self._to)
            if opening is not None and opening.mine == index
            else None
        )
        if found is None:
            self._ring.drops["forged"] += 1
            return
        keys, theirs = found
        self._opening = None
        session = self._sessions[index] = Session(keys, index, theirs, now, asked=True)
        self._heard = now
        self._use(session, now)

    def unseal(self, index: int, datagram: bytes, now: float) -> bytes | None:
        """The packet in a datagram of the session with this index; None for one without, or that is not accepted."""
        session = self._sessions.get(index)
        _, _, counter = HEAD.unpack_from(datagram)
        if session is None or now - session.began >= REJECT_S:
            self.unknown(now)
            return None
        if not session.is_new(counter):
            self._ring.drops["replayed"] += 1
            return None
        try:
            packet = session.keys.receive.decrypt(
                NONCE.pack(counter), datagram[HEAD.size :], datagram[: HEAD.size]
            )
        except InvalidTag:
            self._ring.drops["forged"] += 1
            return None
        session.note(counter)
        self._heard = now
        if not session.proven:
            session.proven = True
            self._use(session, now)
        return packet or None

    def unknown(self, now: float) -> None:
        """Something came by a session that is not ours: the peer may not know that we lost it."""
        self._ring.drops["no_session"] += 1
        if self._current is None or now - self._heard > DEAF_S:
            self._open(now)

    def _use(self, session: Session, now: float) -> None:
        """Send by this session from now on, what waits first; at least a sign of life, which proves us."""
        if self._current is None or self._current.began <= session.began:
            self._current = session
        waiting = list(self._waiting) or ([b""] if session.asked else [])
        self._waiting.clear()
        if waiting:
            self.out += self.seal(waiting, now)


class Keyring:
    """What all channels share: the pre-shared key's derivatives, and who has which session."""

    def __init__(self, psk: bytes, drops: Counter[str]) -> None:
        self.presence = Presence(psk)
        self.drops = drops
        self._holders: dict[int, Channel] = {}

    def channel(self, ours: bytes, theirs: bytes) -> Channel:
        """With one peer; ``ours`` and ``theirs`` are public addresses, packed."""
        return Channel(self, ours, theirs)

    def index(self, holder: Channel) -> int:
        """A new index for a session."""
        while True:
            index = int.from_bytes(os.urandom(4), "little")
            if index not in self._holders:
                self._holders[index] = holder
                return index

    def forget(self, index: int) -> None:
        """An index is free again."""
        self._holders.pop(index, None)

    def receive(self, channel: Channel, datagram: bytes, now: float) -> bytes | None:
        """A datagram from a channel's peer; returns the packet in it, if there is one to be had."""
        kind, size = datagram[0] if datagram else 0, len(datagram)
        if kind == DATA and size >= HEAD.size + TAG_BYTES and not any(datagram[1:4]):
            index = HEAD.unpack_from(datagram)[1]
            if self._holders.get(index) is channel:
                return channel.unseal(index, datagram, now)
            channel.unknown(now)
        elif kind == HELLO and size == HELLO_BYTES:
            channel.greeted(datagram, now)
        elif kind == ANSWER and size == ANSWER_BYTES:
            channel.answered(ANSWER_HEAD.unpack_from(datagram)[2], datagram, now)
        else:
            self.drops["plain" if kind >> 4 in {4, 6} else "malformed"] += 1
        return None
