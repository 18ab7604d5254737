"""How two forwarders agree on the keys of a session. Pure but for random numbers.

Both know one pre-shared key. Each session's keys come from a new pair of X25519 keys on either side and the pre-shared
key (RFC 7748, HKDF of RFC 5869), so no key is ever used by two lives of a program, a recorded session tells nothing to
who learns the pre-shared key later, and what was recorded earlier opens nothing now.

    hello   u8 1 | 3 zero | u32 index of the sender's session                  | 32 public key | 32 HMAC
    answer  u8 2 | 3 zero | u32 index of the sender's | u32 index in the hello | 32 public key | 32 HMAC

All numbers are little-endian. The HMAC (SHA-256, by a key derived from the pre-shared one) covers what kind of message
it is, the public addresses of who said hello and of who is to answer, the message, and in an answer the hello it is to:
a message that is sent back to its sender, or passed on to a third one, is none of theirs.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HELLO, ANSWER, DATA = 1, 2, 3
HELLO_HEAD, ANSWER_HEAD = struct.Struct("<B3xI"), struct.Struct("<B3xII")
KEY_BYTES = MAC_BYTES = 32
HELLO_BYTES = HELLO_HEAD.size + KEY_BYTES + MAC_BYTES
ANSWER_BYTES = ANSWER_HEAD.size + KEY_BYTES + MAC_BYTES

_NAME = b"pycni udp 1 "


class Keys(NamedTuple):
    """Ciphers of one session: AES-256-GCM, one key per direction."""

    send: AESGCM
    receive: AESGCM


class Pair(NamedTuple):
    """Who says hello to whom: public addresses, packed."""

    asking: bytes
    asked: bytes


class Opening(NamedTuple):
    """A hello of ours that waits for its answer."""

    mine: int
    """Index of the session it is to become."""
    private: X25519PrivateKey
    message: bytes


class Presence:
    """What is derived from the pre-shared key once."""

    def __init__(self, psk: bytes) -> None:
        self._psk = psk
        self._mac_key = _derive(psk, salt=b"", info=_NAME + b"handshake", length=32)

    def hello(self, index: int, pair: Pair) -> Opening:
        """The first message of a session, with a key of its own."""
        private = X25519PrivateKey.generate()
        body = HELLO_HEAD.pack(HELLO, index) + _public(private)
        return Opening(index, private, body + self._mac(b"hello", pair, body))

    def answer(self, hello: bytes, index: int, pair: Pair) -> tuple[bytes, Keys, int] | None:
        """Answer to a hello, the session's keys, the other side's index; None for a hello by another key."""
        body, mac = hello[:-MAC_BYTES], hello[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(b"hello", pair, body)):
            return None
        _, theirs = HELLO_HEAD.unpack_from(hello)
        private = X25519PrivateKey.generate()
        reply = ANSWER_HEAD.pack(ANSWER, index, theirs) + _public(private)
        reply += self._mac(b"answer", pair, hello + reply)
        secret = _exchange(private, body[HELLO_HEAD.size :])
        if secret is None:
            return None
        asking, asked = self._keys(secret, hello + reply)
        return reply, Keys(send=asked, receive=asking), theirs

    def finish(self, opening: Opening, answer: bytes, pair: Pair) -> tuple[Keys, int] | None:
        """The session's keys and the other side's index; None for an answer by another key."""
        body, mac = answer[:-MAC_BYTES], answer[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(b"answer", pair, opening.message + body)):
            return None
        _, theirs, _ = ANSWER_HEAD.unpack_from(answer)
        secret = _exchange(opening.private, body[ANSWER_HEAD.size :])
        if secret is None:
            return None
        asking, asked = self._keys(secret, opening.message + answer)
        return Keys(send=asking, receive=asked), theirs

    def _mac(self, kind: bytes, pair: Pair, body: bytes) -> bytes:
        ends = b"".join(len(address).to_bytes(1, "big") + address for address in pair)
        return hmac.digest(self._mac_key, kind + b"\0" + ends + body, "sha256")

    def _keys(self, secret: bytes, said: bytes) -> tuple[AESGCM, AESGCM]:
        """For who said hello to send by, and for who answered."""
        info = _NAME + b"data" + hashlib.sha256(said).digest()
        both = _derive(secret, salt=self._psk, info=info, length=64)
        return AESGCM(both[:32]), AESGCM(both[32:])


def _derive(secret: bytes, *, salt: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)


def _public(private: X25519PrivateKey) -> bytes:
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return private.public_key().public_bytes(*raw)


def _exchange(private: X25519PrivateKey, public: bytes) -> bytes | None:
    """The common secret; None for a key that makes none (RFC 7748 section 6.1)."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None
