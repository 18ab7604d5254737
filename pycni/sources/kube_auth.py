"""Credentials for the Kubernetes API, kept fresh: files are looked at before every use, plug-ins asked in time.

Life: one ``Access`` per API server. ``headers`` gives what a request carries, ``tls`` the context for a new connection
with a stamp: connections made under another stamp are not used for new requests (a client certificate is proved
once, when connecting). After a 401 ``refused`` says whether trying once more makes sense.

Service account tokens, client certificates and CAs are replaced under a running agent (every hour, by kubelet and by
cert-manager); a file that is unreadable at that moment leaves the last good content in force.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import ssl
from typing import TypeAlias

from pycni.errors import ConfigError, StoreError
from pycni.sources.kube_config import KubeConfig, Pem, Server, read_pem
from pycni.sources.kube_exec import Plugin
from pycni.sources.sparing import Sparing

log = logging.getLogger("pycni.kube")
Stamp: TypeAlias = tuple[object, ...]


class Access:
    """Where the API is and how to prove who we are."""

    def __init__(self, config: KubeConfig) -> None:
        self._config = config
        self._plugin = Plugin(config.plugin) if config.plugin is not None else None
        self._token = config.token
        self._token_stamp: object = None
        self._context: ssl.SSLContext | None = None
        self._context_stamp: Stamp = ()
        self._trouble = Sparing(log)

    def __repr__(self) -> str:
        return f"Access({self._config!r})"

    @property
    def server(self) -> Server:
        """Where the API is."""
        return self._config.server

    @property
    def server_name(self) -> str:
        """Name the server's certificate has to have."""
        return self._config.server_name or self._config.server.host

    async def headers(self) -> list[tuple[bytes, bytes]]:
        """What every request carries to prove who we are. Raises StoreError when there is nothing to be had."""
        token = self._file_token() if self._config.token_file else self._token
        if not token and self._plugin is not None:
            token = (await self._plugin.get()).token
        if token:
            return [(b"Authorization", b"Bearer " + token.encode())]
        if self._config.username:
            pair = base64.b64encode(f"{self._config.username}:{self._config.password}".encode())
            return [(b"Authorization", b"Basic " + pair)]
        return []

    def refused(self) -> bool:
        """The API does not know us (401). Whether the same request may be accepted now."""
        self._token_stamp = None
        if self._plugin is not None:
            self._plugin.forget()
        return self._plugin is not None or bool(self._config.token_file)

    async def tls(self) -> tuple[ssl.SSLContext | None, Stamp]:
        """Context for a new connection, None for plain HTTP, with its stamp. Raises StoreError."""
        config = self._config
        if not config.server.tls:
            return None, ()
        certificate, key = config.certificate, config.key
        if self._plugin is not None:
            given = await self._plugin.get()
            if given.certificate:
                certificate, key = Pem(data=given.certificate), Pem(data=given.key)
        stamp = tuple(_stamp(pem) for pem in (config.ca, certificate, key))
        if self._context is None or stamp != self._context_stamp:
            try:
                self._context = self._make_context(certificate, key)
                self._context_stamp = stamp
                self._trouble.over("the files of the Kubernetes API's credentials can be read again")
            except (ConfigError, ssl.SSLError, OSError) as exc:
                text = f"credentials for {config.server}: {_said(exc)}"
                if self._context is None:
                    raise StoreError(text) from None
                self._trouble.warn(f"{text}; going on with the last good ones")
        return self._context, self._context_stamp

    def _make_context(self, certificate: Pem | None, key: Pem | None) -> ssl.SSLContext:
        config = self._config
        obj = f"kube settings ({config.source})"
        if config.ca is not None:
            authorities = read_pem(obj, "certificate-authority", config.ca).decode("ascii", "ignore")
            context = ssl.create_default_context(cadata=authorities)
        else:
            context = ssl.create_default_context()
        if config.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        if certificate is not None and key is not None:
            pair = read_pem(obj, "client-certificate", certificate) + b"\n" + read_pem(obj, "client-key", key)
            _load_pair(context, pair)
        return context

    def _file_token(self) -> str:
        """The token of a file, read again when the file is another one."""
        path = self._config.token_file
        stamp = _stamp(Pem(path=path))
        if stamp != self._token_stamp or not self._token:
            try:
                with open(path, encoding="ascii") as file:
                    token = file.read(1 << 20).strip()
                if not token or not token.isprintable():
                    raise StoreError(f"token file {path}: expected one line with a token")
                self._token, self._token_stamp = token, stamp
            except (OSError, ValueError, StoreError) as exc:
                text = f"token file {path} cannot be read"
                if not self._token:
                    raise StoreError(text) from None
                kind = exc.strerror if isinstance(exc, OSError) else "no token in it"
                self._trouble.warn(f"{text} ({kind}); going on with the last good token")
        return self._token


def _stamp(pem: Pem | None) -> object:
    """Something that changes with the content."""
    if pem is None:
        return None
    if not pem.path:
        return hashlib.sha256(pem.data).digest()
    try:
        found = os.stat(pem.path)
    except OSError as exc:
        return exc.errno
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev


def _load_pair(context: ssl.SSLContext, pair: bytes) -> None:
    """Load a certificate and its key from memory; the ssl module takes files only, so one that is on no disk."""
    fd = os.memfd_create("pycni-client", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(pair)
        # An encrypted key would make OpenSSL ask the terminal.
        context.load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: b"")
    finally:
        os.close(fd)


def _said(exc: Exception) -> str:
    if isinstance(exc, ssl.SSLError):
        return f"client certificate or CA: {exc.reason or exc.strerror}"
    return str(exc)
