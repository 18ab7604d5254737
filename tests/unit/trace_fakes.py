"""What tests of traces over agents share: certificates of all kinds, a listener, somebody who serves what is asked."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pycni.agent.trace_auth import CERT, Guard
from pycni.agent.trace_listen import Contexts, Files, TraceListener
from pycni.agent.trace_watch import Places, RefusedError, Running
from pycni.trace.model import Flow
from pycni.tracing.eyes import Order, Report
from pycni.tracing.speech import Watch

PATIENCE_S = 20.0
FLOW = Flow(protocol=1, source=b"\x0a\0\0\1", destination=b"\x0a\0\0\2")


class Pair(NamedTuple):
    certificate: str
    key: str


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._built(self._name, self._key, days=2).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file = str(folder / f"{name}.crt")
        Path(self.file).write_bytes(_pem(certificate.sign(self._key, hashes.SHA256())))

    def pair(self, name: str, *, dns: str = "", days: int = 1, server: bool | None = None) -> Pair:
        """``days`` negative: it has ended. ``server``: what it may be used for; None: both."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        built = self._built(subject, key, days=days).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), *([x509.DNSName(dns)] if dns else [])]
        built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if server is not None:
            use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
            built = built.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        found = Pair(str(self._folder / f"{name}.crt"), str(self._folder / f"{name}.key"))
        Path(found.certificate).write_bytes(_pem(built.sign(self._key, hashes.SHA256())))
        Path(found.key).write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return found

    def _built(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=3))
            .not_valid_after(now + dt.timedelta(days=days))
        )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class FakeWatching:
    """See ``eyes.Watching``: nothing comes but what is put into ``reports``."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._reports: list[Report] = []
        self.closed = False

    def put(self, report: Report) -> None:
        self._reports.append(report)
        self._write.send(b"x")

    def filenos(self) -> tuple[int, ...]:
        return (self._read.fileno(),)

    def drain(self) -> Report:
        with contextlib.suppress(BlockingIOError):
            self._read.recv(1)
        return self._reports.pop(0) if self._reports else Report()

    def close(self) -> None:
        self.closed = True
        self._read.close()
        self._write.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_found: object) -> None:
        self.close()


class FakeNode:
    """See ``eyes.NodeEyes``."""

    name, apart = "n1", False

    def __init__(self) -> None:
        self.watches: list[FakeWatching] = []

    def watch(self, _order: Order) -> FakeWatching:
        self.watches.append(FakeWatching())
        return self.watches[-1]


class FakeService:
    """What a listener needs of a ``TraceService``."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.places = Places()
        self.node = FakeNode()
        self.refuse: RefusedError | None = None

    def known(self) -> None:
        if self.refuse is not None:
            raise self.refuse

    def state(self, _known: object, query: str) -> bytes:
        self.asked.append(("state", query))
        return b'{"state":1}'

    def objects(self, _known: object, query: str) -> bytes:
        self.asked.append(("objects", query))
        return b"{}"

    def send(self, _known: object, raw: bytes) -> bytes:
        self.asked.append(("send", raw))
        return b"{}"

    def watch(self, _known: object, raw: bytes) -> Running:
        self.asked.append(("watch", raw))
        asked = Watch(order=Order(token=1, flow=FLOW, seconds=30.0))
        return Running(self.places, self.node, asked)  # type: ignore[arg-type]  # it sends nothing


@contextlib.contextmanager
def listening(
    server: Pair, authority: str, guard: Guard | None = None
) -> Iterator[tuple[TraceListener, FakeService]]:
    guard = guard or Guard({CERT})
    service = FakeService()
    contexts = Contexts(Files(*server, authority), required=guard.needs_certificate)
    listener = TraceListener(("127.0.0.1", 0), contexts, guard, service)  # type: ignore[arg-type]
    listener.start()
    try:
        yield listener, service
    finally:
        listener.stop()


def client_context(authority: str, pair: Pair | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority)
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.01)
