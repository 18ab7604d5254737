"""The part of a container runtime that speaks CNI: runs real plugin executables as libcni does.

Life of an attachment: ``add`` runs the chain in order, each plugin on its execution configuration and the result of
the one before; the last result goes into the cache, from where ``delete`` (reverse order) and ``check`` hand it to
the plugins as prevResult; a failed ``add`` is followed by a DEL, as containerd and CRI-O do. Every call is measured
and returned.

Source: CNI specification 1.1.0 section 3; libcni's behaviour and its ``cniCacheV1`` files.
"""

from __future__ import annotations

import base64
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from pycni.errors import CniError
from pycni.lab.conflist import NetworkList, execution_conf, list_name, parse_list, version_key

DEFAULT_PATH = ("/opt/cni/bin", "/usr/lib/cni")
PLUGIN_TIMEOUT_S = 60.0
_ETXTBSY_TRIES = 5


class PluginError(CniError):
    """A plugin ended with an error. ``code``, ``msg`` and ``details`` are the plugin's own."""

    def __init__(self, call: Call, code: int, msg: str, details: str = "") -> None:
        super().__init__(code, msg, details)
        self.call = call

    def __str__(self) -> str:
        """Plugin and command first: chains have several."""
        text = f"{self.call.plugin} {self.call.command} failed with code {self.code}: {self.msg}"
        return f"{text}: {self.details}" if self.details else text


class Call(NamedTuple):
    """One run of a plugin."""

    plugin: str
    command: str
    seconds: float
    """From before the process was started until it was reaped."""
    exit_code: int
    stdout: bytes
    stderr: bytes


class Outcome(NamedTuple):
    """What one operation on the list gave."""

    result: dict[str, Any] | None
    """The CNI result of ADD in the list's version, None for the other operations."""
    calls: tuple[Call, ...]

    @property
    def seconds(self) -> float:
        """Time spent in plugins."""
        return sum(call.seconds for call in self.calls)


class Attachment(NamedTuple):
    """One container's interface on the network, with what the runtime passes along."""

    container_id: str
    netns: str
    """Path; empty when the namespace is gone."""
    ifname: str = "eth0"
    cni_args: Mapping[str, str] = {}
    capability_args: Mapping[str, Any] = {}


class CachedAttachment(NamedTuple):
    """An entry of the cache."""

    attachment: Attachment
    config: bytes
    result: dict[str, Any] | None


class CniRuntime:
    """Runs the plugins of one network list. Threads may use one object for different containers at once."""

    def __init__(
        self,
        network: NetworkList,
        *,
        cache_dir: str | Path,
        path: Sequence[str] = DEFAULT_PATH,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        timeout: float = PLUGIN_TIMEOUT_S,
    ) -> None:
        """``prefix`` is put before each executable (to enter a node's namespace), ``environment`` added to ours."""
        self.network = network
        self.path = tuple(path)
        self.prefix = tuple(prefix)
        self.timeout = timeout
        self._results = Path(cache_dir) / "results"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
        self._environment = {**inherited, **(environment or {})}

    # operations on the list

    def add(self, attachment: Attachment, *, undo: bool = True) -> Outcome:
        """ADD by every plugin in order. ``undo``: after a failure DEL is sent before the error is raised."""
        calls: list[Call] = []
        result: dict[str, Any] | None = None
        try:
            for plugin in self.network.plugins:
                call = self._call("ADD", plugin, attachment, prev_result=result)
                calls.append(call)
                result = _result_of(call, self.network.version)
        except CniError as exc:
            if undo:
                self._undo(attachment, exc)
            raise
        assert result is not None, "a list has at least one plugin"
        self._cache_put(attachment, result)
        return Outcome(result, tuple(calls))

    def delete(self, attachment: Attachment) -> Outcome:
        """DEL in reverse order with the cached result; the first error ends it and leaves the cache for another try."""
        cached = self._cache_get(attachment.container_id, attachment.ifname)
        previous = None
        if cached is not None:
            if version_key(self.network.version) >= (0, 4, 0):
                previous = cached.result
            attachment = attachment._replace(
                cni_args=attachment.cni_args or cached.attachment.cni_args,
                capability_args=attachment.capability_args or cached.attachment.capability_args,
            )
        calls = [
            self._call("DEL", plugin, attachment, prev_result=previous)
            for plugin in reversed(self.network.plugins)
        ]
        self.cache_file(attachment.container_id, attachment.ifname).unlink(missing_ok=True)
        return Outcome(None, tuple(calls))

    def check(self, attachment: Attachment) -> Outcome:
        """CHECK by every plugin in order against the cached result."""
        if version_key(self.network.version) < (0, 4, 0):
            raise CniError(
                CniError.INCOMPATIBLE_VERSION,
                f"network {self.network.name}: CHECK needs version 0.4.0 or newer",
            )
        if self.network.disable_check:
            return Outcome(None, ())
        cached = self._cache_get(attachment.container_id, attachment.ifname)
        if cached is None or cached.result is None:
            raise CniError(
                CniError.UNKNOWN_CONTAINER,
                f"network {self.network.name}: no cached result for {attachment.container_id} {attachment.ifname}",
            )
        return Outcome(
            None,
            tuple(
                self._call("CHECK", plugin, attachment, prev_result=cached.result)
                for plugin in self.network.plugins
            ),
        )

    def gc(self, valid: Sequence[tuple[str, str]]) -> Outcome:
        """DEL every cached attachment that is not in ``valid`` ((container id, interface)), then GC every plugin.

        Everything is tried; errors are raised together.
        """
        if self.network.disable_gc:
            return Outcome(None, ())
        calls: list[Call] = []
        errors: list[Exception] = []
        keep = set(valid)
        for cached in self.cached():
            if (cached.attachment.container_id, cached.attachment.ifname) in keep:
                continue
            try:
                calls += self.delete(cached.attachment).calls
            except CniError as exc:
                errors.append(exc)
        if version_key(self.network.version) >= (1, 1, 0):
            for plugin in self.network.plugins:
                try:
                    calls.append(self._call("GC", plugin, None, valid_attachments=valid))
                except CniError as exc:
                    errors.append(exc)
        if errors:
            raise ExceptionGroup(f"GC of network {self.network.name}", errors)
        return Outcome(None, tuple(calls))

    def status(self) -> Outcome:
        """STATUS by every plugin; the first error is raised. Nothing is sent before version 1.1.0."""
        if version_key(self.network.version) < (1, 1, 0):
            return Outcome(None, ())
        return Outcome(None, tuple(self._call("STATUS", plugin, None) for plugin in self.network.plugins))

    def versions(self, plugin_type: str) -> tuple[str, ...]:
        """What a plugin answers to VERSION: the specification versions it supports."""
        environment = {
            "CNI_COMMAND": "VERSION",
            "CNI_NETNS": "dummy",
            "CNI_IFNAME": "dummy",
            "CNI_PATH": "dummy",
        }
        call = self._exec(plugin_type, "VERSION", environment, msgspec.json.encode({"cniVersion": "1.1.0"}))
        return tuple(_decode(call).get("supportedVersions", ()))

    def validate(self) -> None:
        """Refuse a list whose version one of its plugins does not speak (libcni's ValidateNetworkList)."""
        for plugin in self.network.plugins:
            spoken = self.versions(plugin["type"])
            if self.network.version not in spoken:
                raise CniError(
                    CniError.INCOMPATIBLE_VERSION,
                    f"network {self.network.name}: plugin {plugin['type']} does not speak {self.network.version}",
                    f"it speaks {', '.join(spoken)}",
                )

    def find(self, plugin_type: str) -> str:
        """The executable of a plugin: the first of that name in CNI_PATH."""
        for folder in self.path:
            candidate = f"{folder}/{plugin_type}"
            if os.path.isfile(candidate):
                return candidate
        raise CniError(
            CniError.INVALID_NETWORK_CONFIG,
            f"network {self.network.name}: no plugin {plugin_type!r} in {':'.join(self.path)}",
        )

    # cache

    def cache_file(self, container_id: str, ifname: str) -> Path:
        """Where an attachment's result is kept."""
        return self._results / f"{self.network.name}-{container_id}-{ifname}"

    def cached(self) -> list[CachedAttachment]:
        """Every readable entry of this network."""
        if not self._results.is_dir():
            return []
        entries = (
            _read_cache(file) for file in sorted(self._results.iterdir()) if not file.name.startswith(".")
        )
        return [entry for network, entry in filter(None, entries) if network == self.network.name]

    def _cache_get(self, container_id: str, ifname: str) -> CachedAttachment | None:
        found = _read_cache(self.cache_file(container_id, ifname))
        return found[1] if found else None

    def _cache_put(self, attachment: Attachment, result: Mapping[str, Any]) -> None:
        self._results.mkdir(mode=0o700, parents=True, exist_ok=True)
        value = {
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "config": base64.b64encode(self.network.raw).decode(),
            "ifName": attachment.ifname,
            "networkName": self.network.name,
            "netns": attachment.netns,
            "cniArgs": [list(item) for item in attachment.cni_args.items()],
            "capabilityArgs": dict(attachment.capability_args),
            "result": result,
        }
        file = self.cache_file(attachment.container_id, attachment.ifname)
        temporary = file.with_name(f".{file.name}.{os.getpid()}")
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(msgspec.json.encode(value))
        temporary.rename(file)

    # one plugin

    def _undo(self, attachment: Attachment, cause: CniError) -> None:
        try:
            self.delete(attachment)
        except CniError as exc:
            cause.add_note(f"and the DEL after it: {exc}")

    def _call(
        self,
        command: str,
        plugin: Mapping[str, Any],
        attachment: Attachment | None,
        *,
        prev_result: Mapping[str, Any] | None = None,
        valid_attachments: Sequence[tuple[str, str]] | None = None,
    ) -> Call:
        stdin = execution_conf(
            self.network,
            plugin,
            prev_result=prev_result,
            capability_args=attachment.capability_args if attachment else None,
            valid_attachments=valid_attachments,
        )
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": attachment.container_id if attachment else "",
            "CNI_NETNS": attachment.netns if attachment else "",
            "CNI_IFNAME": attachment.ifname if attachment else "",
            "CNI_ARGS": ";".join(f"{k}={v}" for k, v in attachment.cni_args.items()) if attachment else "",
            "CNI_PATH": ":".join(self.path),
        }
        return self._exec(plugin["type"], command, environment, stdin)

    def _exec(self, plugin_type: str, command: str, environment: Mapping[str, str], stdin: bytes) -> Call:
        """Run the executable; a non-zero exit becomes a PluginError."""
        argv = [*self.prefix, self.find(plugin_type)]
        started = time.perf_counter()
        try:
            done = _run(argv, stdin, {**self._environment, **environment}, self.timeout)
        except subprocess.TimeoutExpired as exc:
            raise CniError(
                CniError.TRY_AGAIN_LATER, f"{plugin_type} {command}: no end after {self.timeout:g} s"
            ) from exc
        seconds = time.perf_counter() - started
        call = Call(plugin_type, command, seconds, done.returncode, done.stdout, done.stderr)
        if call.exit_code:
            raise _plugin_error(call)
        return call


def load_list(file: str | Path) -> NetworkList:
    """Read a .conflist and, unless it forbids it, the plugin objects of the folder named like its network."""
    file = Path(file)
    raw = file.read_bytes()
    folder = file.parent / list_name(raw)
    extra = sorted(folder.glob("*.conf")) if folder.is_dir() else []
    return parse_list(raw, [item.read_bytes() for item in extra])


def _run(
    argv: Sequence[str], stdin: bytes, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[bytes]:
    for attempt in range(_ETXTBSY_TRIES):
        try:
            return subprocess.run(
                argv, input=stdin, capture_output=True, env=environment, timeout=timeout, check=False
            )
        except OSError as exc:
            # The executable is being replaced at this moment (golang/go#22220 is why libcni retries).
            if exc.errno != 26 or attempt == _ETXTBSY_TRIES - 1:
                raise CniError(CniError.IO_FAILURE, f"cannot run {argv[-1]}", str(exc)) from exc
            time.sleep(0.1)
    raise AssertionError("unreachable")


def _plugin_error(call: Call) -> PluginError:
    """The error object of standard output; without one, what the process wrote to standard error."""
    try:
        error = msgspec.json.decode(call.stdout)
        return PluginError(call, int(error["code"]), str(error["msg"]), str(error.get("details", "")))
    except (msgspec.DecodeError, TypeError, KeyError, ValueError, AttributeError):
        said = (call.stderr or call.stdout).decode(errors="replace").strip()[-500:]
        return PluginError(call, CniError.INTERNAL, f"exit {call.exit_code} without an error object", said)


def _decode(call: Call) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(call.stdout)
    except msgspec.DecodeError as exc:
        raise PluginError(call, CniError.DECODE_FAILURE, "output is not JSON", str(exc)) from exc
    if not isinstance(value, dict):
        raise PluginError(call, CniError.DECODE_FAILURE, "output is not an object", repr(value)[:200])
    return value


def _result_of(call: Call, version: str) -> dict[str, Any]:
    result = _decode(call)
    result.setdefault("cniVersion", version)
    return result


def _read_cache(file: Path) -> tuple[str, CachedAttachment] | None:
    """An entry with its network's name; None when there is none or it is damaged (as libcni treats it)."""
    try:
        value = msgspec.json.decode(file.read_bytes())
        if value["kind"] != "cniCacheV1":
            return None
        attachment = Attachment(
            container_id=value["containerId"],
            netns=value.get("netns") or "",
            ifname=value["ifName"],
            cni_args=dict(value.get("cniArgs") or ()),
            capability_args=value.get("capabilityArgs") or {},
        )
        config = base64.b64decode(value["config"])
        return value["networkName"], CachedAttachment(attachment, config, value.get("result"))
    except (FileNotFoundError, msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None
