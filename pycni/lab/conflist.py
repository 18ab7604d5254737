"""A network configuration list as a container runtime reads it, and what each plugin gets of it. Pure.

Life: ``parse_list`` turns the file into a ``NetworkList`` whose version is the newest that the list offers and this
runtime speaks (CNI specification 1.1.0, section 1); for each call ``execution_conf`` derives the object that goes
to a plugin's standard input (section 3, "Deriving execution configuration from plugin configuration").
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pycni.errors import ConfigError

NEWEST = "1.1.0"
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class NetworkList(msgspec.Struct, frozen=True, kw_only=True):
    """A list, checked as far as a runtime has to; plugin objects stay as they are."""

    name: str
    version: str
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False
    raw: bytes = b""
    """The file as it was read; libcni keeps it in its cache."""


def version_key(version: str) -> tuple[int, ...]:
    """A version as numbers that compare."""
    if not _VERSION.fullmatch(version):
        raise ConfigError("conflist", "cniVersion", version, "not of the form 1.0.0")
    return tuple(int(part) for part in version.split("."))


def parse_list(raw: bytes, folder_plugins: Sequence[bytes] = ()) -> NetworkList:
    """Decode a .conflist. ``folder_plugins`` are the files of ``<confdir>/<name>/*.conf`` (specification 1.1.0)."""
    name = list_name(raw)
    listing = _object(f"conflist {name}", raw)
    plugins = listing.get("plugins", [])
    if not isinstance(plugins, list):
        raise ConfigError(f"conflist {name}", "plugins", plugins, "must be a list")
    if not _flag(name, listing, "loadOnlyInlinedPlugins"):
        plugins = [*plugins, *(_object(f"conflist {name}: plugin file", item) for item in folder_plugins)]
    if not plugins:
        raise ConfigError(f"conflist {name}", "plugins", plugins, "has no plugin")
    for index, plugin in enumerate(plugins):
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ConfigError(
                f"conflist {name}", f"plugins[{index}].type", kind, "must be an executable's name"
            )
    return NetworkList(
        name=name,
        version=negotiate(name, listing.get("cniVersion", ""), listing.get("cniVersions", [])),
        plugins=tuple(plugins),
        disable_check=_flag(name, listing, "disableCheck"),
        disable_gc=_flag(name, listing, "disableGC"),
        raw=raw,
    )


def list_name(raw: bytes) -> str:
    """The ``name`` of a .conflist."""
    name = _object("conflist", raw).get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError("conflist", "name", name, "must match [a-zA-Z0-9][a-zA-Z0-9_.-]*")
    return name


def negotiate(name: str, single: object, several: object) -> str:
    """The newest version among ``cniVersion`` and ``cniVersions`` that is not newer than this runtime."""
    if not isinstance(single, str) or not isinstance(several, list):
        raise ConfigError(f"conflist {name}", "cniVersion", single, "must be a string, cniVersions a list")
    offered = [*several, *([single] if single else [])]
    spoken = [item for item in offered if version_key(str(item)) <= version_key(NEWEST)]
    if not offered:
        return "0.1.0"
    if not spoken:
        raise ConfigError(f"conflist {name}", "cniVersions", offered, f"none is {NEWEST} or older")
    return max((str(item) for item in spoken), key=version_key)


def runtime_config(plugin: Mapping[str, Any], capability_args: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of those capabilities that the plugin declares."""
    declared = plugin.get("capabilities") or {}
    return {key: value for key, value in capability_args.items() if declared.get(key) is True}


def execution_conf(
    network: NetworkList,
    plugin: Mapping[str, Any],
    *,
    prev_result: Mapping[str, Any] | None = None,
    capability_args: Mapping[str, Any] | None = None,
    valid_attachments: Sequence[tuple[str, str]] | None = None,
) -> bytes:
    """Standard input of one plugin. ``valid_attachments``: (container id, interface) for GC, else None."""
    conf = {key: value for key, value in plugin.items() if key != "capabilities"}
    conf |= {"name": network.name, "cniVersion": network.version}
    if prev_result is not None:
        conf["prevResult"] = prev_result
    arguments = runtime_config(plugin, capability_args or {})
    if arguments:
        conf["runtimeConfig"] = arguments
    if valid_attachments is not None:
        named = [{"containerID": container, "ifname": ifname} for container, ifname in valid_attachments]
        # libcni writes the second, older key too (containernetworking/cni#1103).
        conf |= {"cni.dev/valid-attachments": named, "cni.dev/attachments": named}
    return msgspec.json.encode(conf)


def _object(where: str, raw: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError as exc:
        raise ConfigError(where, "content", raw[:80], f"is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise ConfigError(where, "content", value, "must be an object")
    return value


def _flag(name: str, listing: Mapping[str, Any], key: str) -> bool:
    value = listing.get(key, False)
    if isinstance(value, str) and value.lower() in {"true", "false"}:
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ConfigError(f"conflist {name}", key, value, "must be true or false")
    return value
