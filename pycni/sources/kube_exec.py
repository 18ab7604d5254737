"""Credential plug-ins of a kubeconfig: a program prints an ExecCredential, which is used until it ends.

Life: ``Plugin.get`` runs the program when there is nothing valid in memory, ``forget`` is called after the API has
refused what it gave. The program gets KUBERNETES_EXEC_INFO as client-go gives it; what it prints on stdout is never
shown or logged. Format: client.authentication.k8s.io/v1 and v1beta1.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from pycni.errors import StoreError
from pycni.sources.kube_config import ExecSpec
from pycni.wire import typed

RUN_S = 60.0
"""Longest run of a plug-in."""
EARLY_S = 10.0
"""How long before its end a credential is replaced."""
MAX_OUTPUT = 1 << 20


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What a plug-in gave."""

    token: str = ""
    certificate: bytes = b""
    key: bytes = b""
    expires: float | None = None
    """Seconds since the epoch; None: for as long as this process lives."""

    def __repr__(self) -> str:
        return f"Credential(expires={self.expires})"


class _Status(msgspec.Struct, rename="camel"):
    token: str | None = None
    client_certificate_data: str | None = None
    client_key_data: str | None = None
    expiration_timestamp: str | None = None


class _Answer(msgspec.Struct, rename="camel"):
    api_version: str | None = None
    kind: str | None = None
    status: _Status | None = None


class Plugin:
    """One plug-in with what it gave last. One event loop."""

    def __init__(
        self, spec: ExecSpec, *, timeout_s: float = RUN_S, clock: Callable[[], float] = time.time
    ) -> None:
        self._spec = spec
        self._timeout_s = timeout_s
        self._clock = clock
        self._held: Credential | None = None
        self._lock = asyncio.Lock()
        self.runs = 0

    async def get(self) -> Credential:
        """A credential that is valid now. Raises StoreError when the plug-in has none."""
        async with self._lock:
            held = self._held
            if held is None or (held.expires is not None and held.expires - EARLY_S <= self._clock()):
                self._held = held = decode_credential(self._spec, await self._run())
            return held

    def forget(self) -> None:
        """The API has refused the credential: run the plug-in again."""
        self._held = None

    async def _run(self) -> bytes:
        """What the plug-in prints."""
        spec = self._spec
        self.runs += 1
        info = {"kind": "ExecCredential", "apiVersion": spec.api_version, "spec": {"interactive": False}}
        if spec.cluster_info is not None:
            info["spec"] = {"interactive": False, "cluster": spec.cluster_info}
        environ = {**os.environ, **dict(spec.env), "KUBERNETES_EXEC_INFO": msgspec.json.encode(info).decode()}
        try:
            process = await asyncio.create_subprocess_exec(
                spec.command,
                *spec.args,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=environ,
                start_new_session=True,
            )
        except OSError as exc:
            hint = f"; {spec.install_hint}" if spec.install_hint else ""
            raise StoreError(f"{_name(spec)}: cannot be run: {exc.strerror}{hint}") from None
        try:
            async with asyncio.timeout(self._timeout_s):
                output, errors = await process.communicate()
        except TimeoutError:
            raise StoreError(f"{_name(spec)}: no answer within {self._timeout_s:.0f} s") from None
        finally:
            await _end(process)
        if process.returncode:
            said = errors[-300:].decode("utf-8", "backslashreplace").strip()
            raise StoreError(f"{_name(spec)}: exit code {process.returncode}: {said}")
        if len(output) > MAX_OUTPUT:
            raise StoreError(f"{_name(spec)}: prints more than {MAX_OUTPUT} bytes")
        return output


def decode_credential(spec: ExecSpec, output: bytes) -> Credential:
    """What a plug-in printed. Raises StoreError, without showing any of it."""
    try:
        answer = typed.decode(output, _Answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        raise StoreError(f"{_name(spec)}: prints no ExecCredential") from None
    if answer.kind != "ExecCredential" or answer.api_version != spec.api_version:
        raise StoreError(f"{_name(spec)}: prints no ExecCredential of {spec.api_version}")
    status = answer.status or _Status()
    token = (status.token or "").strip()
    certificate, key = (
        (status.client_certificate_data or "").encode(),
        (status.client_key_data or "").encode(),
    )
    if not token and not certificate:
        raise StoreError(f"{_name(spec)}: gives neither a token nor a certificate")
    if bool(certificate) != bool(key):
        raise StoreError(f"{_name(spec)}: certificate and key go together")
    if not token.isascii() or not token.isprintable():
        raise StoreError(f"{_name(spec)}: the token has characters no header can have")
    expires = None
    if status.expiration_timestamp:
        try:
            found = datetime.fromisoformat(status.expiration_timestamp)
            expires = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise StoreError(f"{_name(spec)}: expirationTimestamp is no RFC 3339 time") from None
    return Credential(token=token, certificate=certificate, key=key, expires=expires)


def _name(spec: ExecSpec) -> str:
    return f"credential plug-in {spec.command}"


async def _end(process: asyncio.subprocess.Process) -> None:
    """Nothing of the plug-in outlives the call: it has a process group of its own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()
