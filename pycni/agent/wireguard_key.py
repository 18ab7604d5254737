"""This node's WireGuard key: made once, kept in a file of ours alone, changed by rotation, never in a log.

Life: ``<state-dir>/wireguard.key`` holds the private key as ``wg genkey`` writes it, mode 0600. Its public half goes
into our lease; a node that loses the file makes a new key and publishes that.

Rotation: ``begin`` puts the following key beside, into ``wireguard.key.next``. From then on its public half is what we
publish, while the device goes on with the key in force. As soon as our lease says the following one, ``keys`` makes it
the one in force. So nothing changes while nobody can be told, and whatever ends us in between is gone on with by the
next life. All functions block.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import NamedTuple

from pycni.errors import ConfigError
from pycni.model.wireguard import Secret, WireguardSecrets, key_text, parse_key

log = logging.getLogger("pycni.network")

KEY_FILE, NEXT_FILE, SOCKETS = "wireguard.key", "wireguard.key.next", "wireguard"


class Keys(NamedTuple):
    """What is in force, and what follows."""

    secrets: WireguardSecrets
    following: bytes
    """Public half of the following key; b"" while none is to follow."""
    made: float
    """When the key in force was made, in seconds since the epoch."""


def keys(state_dir: str, psk: Secret | None, published: bytes) -> Keys:
    """Our keys, made when there are none. Raises ConfigError naming the file, never what is in it.

    ``published``: the public key our lease says, as far as known; is it the following one's, that is in force.
    """
    path = os.path.join(state_dir, KEY_FILE)
    beside = os.path.join(state_dir, NEXT_FILE)
    try:
        following = _read(beside)
        if following is not None and public_key(following) == published:
            os.rename(beside, path)
            log.info("%s: WireGuard key %s is in force", path, key_text(published))
            following = None
        private = _read(path) or _make(path)
        made = os.stat(path).st_mtime
    except OSError as error:
        raise ConfigError("wireguard key", "file", path, error.strerror or str(error)) from None
    secrets = WireguardSecrets(
        public_key=public_key(private), private_key=private, psk=psk, folder=os.path.join(state_dir, SOCKETS)
    )
    return Keys(secrets, public_key(following) if following is not None else b"", made)


def begin(state_dir: str) -> bytes:
    """Have a new key follow, unless one is to follow already; its public half. Raises ConfigError."""
    path = os.path.join(state_dir, NEXT_FILE)
    try:
        return public_key(_read(path) or _make(path))
    except OSError as error:
        raise ConfigError("wireguard key", "file", path, error.strerror or str(error)) from None


def public_key(private: Secret) -> bytes:
    """The public half (X25519, RFC 7748). Raises ConfigError without the library."""
    # Takes a while to import, and only nodes of such networks need it.
    try:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey  # noqa: PLC0415
    except ImportError:
        reason = "needs the Python package cryptography: install pycni[wireguard]"
        raise ConfigError("net-conf", "Backend.Type", "wireguard", reason) from None
    raw = serialization.Encoding.Raw, serialization.PublicFormat.Raw
    return X25519PrivateKey.from_private_bytes(private.value).public_key().public_bytes(*raw)


def _read(path: str) -> Secret | None:
    """The key in the file; None without a file. A file that others may read is shut, and that is said."""
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            text = file.read(1024).decode("ascii", "replace").strip()
            if mode & 0o077:
                os.fchmod(file.fileno(), 0o600)
                log.warning("%s was readable by others (mode %o): consider a new key", path, mode)
    except FileNotFoundError:
        return None
    key = parse_key(text)
    if key is None:
        raise ConfigError(
            "wireguard key", "file", path, "holds no key: restore it, or remove it for a new one"
        )
    return Secret(key)


def _make(path: str) -> Secret:
    """A new key, in the file before anybody uses it."""
    # RFC 7748 section 5: 32 random bytes, with these bits fixed.
    raw = bytearray(os.urandom(32))
    raw[0] &= 0xF8
    raw[31] = raw[31] & 0x7F | 0x40
    private = Secret(bytes(raw))
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", mode=0o755, exist_ok=True)
    part = os.path.join(folder, f".{name}.part")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, key_text(private.value).encode() + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(part, path)
    log.info("%s: new WireGuard key, public half %s", path, key_text(public_key(private)))
    return private
