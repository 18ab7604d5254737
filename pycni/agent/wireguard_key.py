"""This node's WireGuard key: made once, kept in a file of ours alone, never in a log.

Life: ``<state-dir>/wireguard.key`` holds the private key as ``wg genkey`` writes it, mode 0600. Its public half goes
into our lease; a node that loses the file makes a new key and publishes that. All functions block.
"""

from __future__ import annotations

import contextlib
import logging
import os

from pycni.errors import ConfigError
from pycni.model.wireguard import Secret, WireguardSecrets, key_text, parse_key

log = logging.getLogger("pycni.network")

KEY_FILE, SOCKETS = "wireguard.key", "wireguard"


def secrets(state_dir: str, psk: Secret | None) -> WireguardSecrets:
    """Our keys, made when there are none. Raises ConfigError naming the file, never what is in it."""
    path = os.path.join(state_dir, KEY_FILE)
    try:
        private = _read(path) or _make(path)
    except OSError as error:
        raise ConfigError("wireguard key", "file", path, error.strerror or str(error)) from None
    return WireguardSecrets(
        public_key=public_key(private), private_key=private, psk=psk, folder=os.path.join(state_dir, SOCKETS)
    )


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
