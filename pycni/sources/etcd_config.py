"""How to reach etcd: endpoints, credentials and the time limits, checked before anything is dialled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from pycni.errors import ConfigError

OBJ = "etcd settings"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")


class Endpoint(NamedTuple):
    """One client URL of etcd."""

    url: str
    target: str
    """gRPC name: ``ipv4:192.0.2.1:2379``, ``ipv6:[::1]:2379`` or ``dns:///host:2379``."""
    tls: bool


class EtcdConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of a client, flannel's meanings. Files are PEM; times are seconds."""

    endpoints: tuple[str, ...] = ("http://127.0.0.1:2379",)
    cafile: str = ""
    """Who has signed the servers' certificates; empty: the system's authorities."""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: str = ""
    call_timeout_s: float = 5.0
    """Limit of one request. An election takes one to two seconds."""
    dial_timeout_s: float = 3.0
    """Limit for finding an endpoint that answers."""
    dial_stagger_s: float = 0.25
    """Head start of an endpoint before the next one is tried beside it: what a dead endpoint costs."""

    def __repr__(self) -> str:
        """Without the password."""
        user = f", username={self.username!r}" if self.username else ""
        return f"EtcdConfig(endpoints={self.endpoints!r}, certfile={self.certfile!r}{user})"

    def check(self) -> tuple[Endpoint, ...]:
        """The endpoints, parsed. Raises ConfigError at the first contradiction."""
        if not self.endpoints:
            raise ConfigError(OBJ, "endpoints", self.endpoints, "at least one is needed")
        secure = bool(self.cafile or self.certfile)
        endpoints = tuple(parse_endpoint(url, "https" if secure else "http") for url in self.endpoints)
        if bool(self.certfile) != bool(self.keyfile):
            raise ConfigError(OBJ, "certfile", self.certfile, "certfile and keyfile go together")
        if bool(self.username) != bool(self.password):
            raise ConfigError(OBJ, "username", self.username, "username and password go together")
        for endpoint in endpoints:
            if secure and not endpoint.tls:
                raise ConfigError(
                    OBJ, "endpoints", endpoint.url, "certificates are given: write it with https://"
                )
        return endpoints

    def files(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Contents of CA, certificate and key, None for those not given. Raises ConfigError."""
        names = (("cafile", self.cafile), ("certfile", self.certfile), ("keyfile", self.keyfile))
        return tuple(_read(field, path) for field, path in names)  # type: ignore[return-value]  # three of them


def parse_endpoint(url: str, scheme: str = "http") -> Endpoint:
    """``http://host:port`` or ``https://host:port``; ``scheme`` is meant when there is none."""
    bad = ConfigError(OBJ, "endpoints", url, "expected http://HOST:PORT or https://HOST:PORT")
    try:
        parts = urlsplit(url if "://" in url else f"{scheme}://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise bad from None
    if parts.scheme not in ("http", "https") or not host or not port:
        raise bad
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise bad
    return Endpoint(url, _target(host, port, bad), parts.scheme == "https")


def _target(host: str, port: int, bad: ConfigError) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        if not _HOST.fullmatch(host):
            raise bad from None
        return f"dns:///{host}:{port}"
    return f"ipv4:{address}:{port}" if address.version == 4 else f"ipv6:[{address}]:{port}"


def _read(field: str, path: str) -> bytes | None:
    if not path:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as exc:
        raise ConfigError(OBJ, field, path, exc.strerror or str(exc)) from exc
    if b"-----BEGIN" not in data:
        raise ConfigError(OBJ, field, path, "expected a PEM file")
    return data


def split_endpoints(text: str) -> Sequence[str]:
    """A comma-separated list as in ``--etcd-endpoints``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
