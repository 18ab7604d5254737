"""Running a delegated IPAM plugin (CNI specification 1.1.0, section 4).

The executable is looked up in CNI_PATH and gets the environment and stdin our own caller sent, whole and unchanged. Its
result comes back decoded, its error as a ``CniError`` with its own code that says which plugin it was; what it prints
on stderr goes to our log. Nothing is kept between calls but which versions a plugin file said it speaks.
"""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import time
from collections.abc import Mapping, Sequence

from pycni.errors import CniError
from pycni.model.cni import CniResult, Request
from pycni.wire.cni import decode_object, encode_versions, show
from pycni.wire.cniresult import decode_result

log = logging.getLogger("pycni.cni")

TIMEOUT_S = 60.0
"""For one run; a DHCP client may need long, the shim waits longer than this."""
BUSY_TRIES, BUSY_PAUSE_S = 10, 0.1
"""A plugin file that is just being installed (ETXTBSY)."""
MAX_SHOWN = 300
NOT_AN_OPERATION = frozenset(
    {CniError.INCOMPATIBLE_VERSION, CniError.UNKNOWN_CONTAINER, CniError.BAD_ENVIRONMENT}
)
"""Codes by which plugins answer an operation they do not have: 1 (newer skeletons, operation or version), 4 (unknown
CNI_COMMAND) and 3 ("missing containerID": skeletons before 1.1.0 check that first)."""


class Delegates:
    """Runs plugins. Thread-safe. ``fallback_path`` stands for a missing CNI_PATH (removals the agent decides on)."""

    def __init__(
        self, *, timeout_s: float = TIMEOUT_S, fallback_path: Sequence[str] = ("/opt/cni/bin",)
    ) -> None:
        self._timeout_s = timeout_s
        self._fallback_path = tuple(fallback_path)
        self._versions: dict[tuple[str, int, int], frozenset[str]] = {}

    def add(self, plugin: str, request: Request, version: str) -> CniResult:
        """ADD; the result has the addresses to use. CniError of the plugin, or 11 when it hangs."""
        output = self._run(plugin, "ADD", request)
        try:
            return decode_result(output, version)
        except CniError as exc:
            raise CniError(
                exc.code, f"ipam plugin {plugin} printed no result: {exc.msg}", exc.details
            ) from exc

    def delete(self, plugin: str, request: Request) -> None:
        """DEL."""
        self._run(plugin, "DEL", request)

    def check(self, plugin: str, request: Request) -> None:
        """CHECK."""
        self._run(plugin, "CHECK", request)

    def collect(self, plugin: str, request: Request) -> None:
        """GC; a plugin that does not have the operation has nothing to do."""
        try:
            self._run(plugin, "GC", request)
        except CniError as err:
            if err.code not in NOT_AN_OPERATION:
                raise
            log.info("ipam plugin %s does not know GC (%s): its reservations go by DEL alone", plugin, err)

    def status(self, plugin: str, request: Request, version: str) -> None:
        """STATUS. CniError 50 or 51 when the plugin cannot serve ADD.

        Most IPAM plugins do not have the operation (host-local, dhcp and static 1.9 among them); that says nothing
        about their readiness, so it is enough then that they speak the configuration's version at all.
        """
        try:
            self._run(plugin, "STATUS", request)
        except CniError as err:
            if err.code in {CniError.UNAVAILABLE, CniError.LIMITED_CONNECTIVITY}:
                raise
            if err.code not in NOT_AN_OPERATION:
                raise CniError(CniError.UNAVAILABLE, err.msg, err.details) from err
            spoken = self._spoken(plugin, request)
            if version not in spoken:
                msg = f"ipam plugin {plugin} does not speak cniVersion={version}"
                raise CniError(CniError.UNAVAILABLE, msg, f"it speaks {', '.join(sorted(spoken))}") from err

    def _spoken(self, plugin: str, request: Request) -> frozenset[str]:
        """Versions the plugin supports, asked once per plugin file."""
        path = self._find(plugin, request)
        found = os.stat(path)
        key = (path, found.st_ino, found.st_mtime_ns)
        if key not in self._versions:
            asked = Request(command="VERSION", path=request.path, stdin=encode_versions("1.1.0"))
            supported = decode_object(self._run(plugin, "VERSION", asked)).get("supportedVersions")
            self._versions[key] = frozenset(map(str, supported if isinstance(supported, list) else ()))
        return self._versions[key]

    def _find(self, plugin: str, request: Request) -> str:
        folders = request.path or self._fallback_path
        for folder in folders:
            path = f"{folder}/{plugin}"
            if os.path.isfile(path) and os.access(path, os.X_OK):
                return path
        msg = f"ipam.type={show(plugin)}: no such plugin"
        raise CniError(CniError.INVALID_NETWORK_CONFIG, msg, f"CNI_PATH is {':'.join(folders)}")

    def _run(self, plugin: str, command: str, request: Request) -> bytes:
        """Run once; stdout when it succeeds."""
        path = self._find(plugin, request)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
        environment |= {
            "CNI_PATH": ":".join(self._fallback_path),
            **request.environment,
            "CNI_COMMAND": command,
        }
        started = time.monotonic()
        try:
            done = _execute(path, environment, request.stdin, self._timeout_s)
        except subprocess.TimeoutExpired as exc:
            msg = f"ipam plugin {plugin} did not answer {command} within {self._timeout_s:g} s"
            raise CniError(CniError.TRY_AGAIN_LATER, msg, path) from exc
        except OSError as exc:
            raise CniError(CniError.IO_FAILURE, f"ipam plugin {plugin} cannot be run", str(exc)) from exc
        took = time.monotonic() - started
        if done.stderr:
            log.warning("ipam plugin %s %s: %s", plugin, command, _text(done.stderr))
        log.debug("ipam plugin %s %s: exit code %d after %.3f s", plugin, command, done.returncode, took)
        if done.returncode:
            raise _error(plugin, command, done)
        return done.stdout


def _execute(
    path: str, environment: Mapping[str, str], stdin: bytes, timeout_s: float
) -> subprocess.CompletedProcess[bytes]:
    for attempt in range(BUSY_TRIES):
        try:
            return subprocess.run(
                [path], input=stdin, env=environment, capture_output=True, timeout=timeout_s, check=False
            )
        except OSError as exc:
            if exc.errno != errno.ETXTBSY or attempt == BUSY_TRIES - 1:
                raise
            time.sleep(BUSY_PAUSE_S)
    raise AssertionError


def _error(plugin: str, command: str, done: subprocess.CompletedProcess[bytes]) -> CniError:
    """The error object a plugin printed, or what else can be said about its end."""
    try:
        printed = decode_object(done.stdout)
        code, msg, details = (printed.get(key) for key in ("code", "msg", "details"))
    except CniError:
        code = None
    if isinstance(code, int) and code > 0:
        return CniError(code, f"ipam plugin {plugin} {command}: {msg or 'failed'}", str(details or ""))
    end = f"exit code {done.returncode}" if done.returncode > 0 else f"signal {-done.returncode}"
    said = _text(done.stdout or done.stderr) or "nothing"
    return CniError(
        CniError.INTERNAL,
        f"ipam plugin {plugin} {command}: {end} without an error object",
        f"it said: {said}",
    )


def _text(data: bytes) -> str:
    text = " ".join(data.decode("utf-8", "replace").split())
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."
