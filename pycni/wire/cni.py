"""A CNI call's outer shape: environment variables, gates, errors (CNI specification 1.1.0, sections 2 and 5).

Life of a call: ``parse_request`` checks the CNI_* variables an operation needs; ``open_conf`` reads stdin as a
JSON object and passes the gates every operation has (network name, protocol version); ``wire/cniconf`` decodes
the rest; ``wire/cniresult`` writes what ADD answers; ``encode_error`` writes any failure. Codes and the order
of the checks are those of the reference skeleton (containernetworking/cni pkg/skel), CNI_PATH excepted: it is
demanded where the specification demands it (GC, and whenever a plugin is delegated to).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from pycni.errors import CniError
from pycni.model.cni import VERSIONS, Command, Request

NEWEST = VERSIONS[-1]
COMMANDS: tuple[str, ...] = get_args(Command)

_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
    "VERSION": (),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,2}")
_FIRST_VERSION = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
MAX_IFNAME = 15
"""IFNAMSIZ - 1 (include/uapi/linux/if.h)."""
MAX_SHOWN = 200
KNOWN_ARGS = frozenset(
    {
        "IgnoreUnknown",
        "IP",
        "MAC",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_UID",
        "K8S_POD_INFRA_CONTAINER_ID",
    }
)


def show(value: object) -> str:
    """A foreign value for a message: as JSON, one line, cut at 200 characters."""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, RecursionError):
        text = ascii(value)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def parse_request(environment: Mapping[str, str], stdin: bytes) -> Request:
    """Check the variables of one call. CniError 4 names every variable that is missing or wrong."""
    command = environment.get("CNI_COMMAND", "")
    if not command:
        raise CniError(CniError.BAD_ENVIRONMENT, "required env variables [CNI_COMMAND] missing")
    if command not in _REQUIRED:
        supported = ", ".join(COMMANDS)
        raise CniError(
            CniError.BAD_ENVIRONMENT, f"unknown CNI_COMMAND={show(command)}", f"known: {supported}"
        )
    required = _REQUIRED[command]
    container_id, ifname = environment.get("CNI_CONTAINERID", ""), environment.get("CNI_IFNAME", "")
    if container_id and "CNI_CONTAINERID" in required and not _NAME.fullmatch(container_id):
        raise CniError(
            CniError.BAD_ENVIRONMENT,
            f"invalid characters in CNI_CONTAINERID={show(container_id)}",
            "expected a letter or digit, then letters, digits, '_', '.' or '-'",
        )
    if ifname and "CNI_IFNAME" in required and (reason := ifname_fault(ifname)):
        raise CniError(CniError.BAD_ENVIRONMENT, f"invalid CNI_IFNAME={show(ifname)}", reason)
    missing = [name for name in required if not environment.get(name)]
    if missing:
        raise CniError(CniError.BAD_ENVIRONMENT, f"required env variables [{','.join(missing)}] missing")
    return Request(
        command=command,  # type: ignore[arg-type]  # one of _REQUIRED's keys
        container_id=container_id,
        netns=environment.get("CNI_NETNS", ""),
        ifname=ifname,
        args=parse_args(environment.get("CNI_ARGS", ""), strict=command in {"ADD", "CHECK"}),
        path=tuple(part for part in environment.get("CNI_PATH", "").split(":") if part),
        environment={key: value for key, value in environment.items() if key.startswith("CNI_")},
        stdin=stdin,
    )


def ifname_fault(name: str) -> str:
    """Why the kernel would not take the name for an interface, "" when it would (dev_valid_name).

    ``%`` is refused as well: the kernel reads it as a template and picks another name (dev_alloc_name).
    """
    if len(name.encode("utf-8", "surrogateescape")) > MAX_IFNAME:
        return f"longer than {MAX_IFNAME} bytes"
    if name in {".", ".."}:
        return "'.' and '..' are no interface names"
    if any(char in "/:%" or char.isspace() for char in name):
        return "contains '/', ':', '%' or white space"
    return ""


def parse_args(text: str, *, strict: bool) -> dict[str, str]:
    """CNI_ARGS ("K=V;K=V") as a mapping.

    Strict, a part that is no pair is CniError 4, and so is a key nobody here knows unless IgnoreUnknown is true
    (1 or true in any case, as in the reference's LoadArgs). Otherwise only what can be understood is taken.
    """
    args: dict[str, str] = {}
    for pair in text.split(";"):
        key, equals, value = pair.partition("=")
        if equals and key:
            args[key] = value
        elif pair and strict:
            raise CniError(CniError.BAD_ENVIRONMENT, f"CNI_ARGS: {show(pair)} is not of the form KEY=VALUE")
    ignore = args.get("IgnoreUnknown", "0").lower()
    if strict and ignore not in {"0", "1", "true", "false"}:
        value = show(args["IgnoreUnknown"])
        raise CniError(
            CniError.BAD_ENVIRONMENT, f"CNI_ARGS: IgnoreUnknown={value}: expected 1, true, 0 or false"
        )
    unknown = sorted(args.keys() - KNOWN_ARGS)
    if strict and unknown and ignore not in {"1", "true"}:
        pairs = ";".join(f"{key}={args[key]}" for key in unknown)
        raise CniError(
            CniError.BAD_ENVIRONMENT, f"CNI_ARGS: unknown {show(pairs)}", "IgnoreUnknown=1 allows them"
        )
    return args


def decode_object(stdin: bytes) -> dict[str, Any]:
    """Stdin as a JSON object. CniError 6 when it is none.

    As Go's encoding/json does: a repeated key's last value wins, null counts as {}, bytes that are no UTF-8 become
    U+FFFD.
    """
    try:
        try:
            value = msgspec.json.decode(stdin)
        except UnicodeDecodeError:
            value = msgspec.json.decode(stdin.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as exc:
        shown = stdin[:60].decode("ascii", "backslashreplace")
        reason = f"{exc}; {len(stdin)} bytes starting with {shown!r}"
        raise CniError(CniError.DECODE_FAILURE, "network configuration is not JSON", reason) from exc
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CniError(
            CniError.DECODE_FAILURE, f"network configuration={show(value)}: expected a JSON object"
        )
    return value


def open_conf(request: Request) -> tuple[dict[str, Any], str]:
    """The gates of stdin: the decoded object and its protocol version (missing: 0.1.0).

    CniError 6 for what is no JSON object or has a name or version of another type, 7 for a missing or invalid
    ``name``, 1 for a version that is not ours or that does not have the operation yet.
    """
    raw = decode_object(request.stdin)
    name = raw.get("name")
    if name is not None and not isinstance(name, str):
        raise CniError(CniError.DECODE_FAILURE, f"name={show(name)}: expected a string")
    if not name:
        raise CniError(CniError.INVALID_NETWORK_CONFIG, "missing network name", "the key name is required")
    if not _NAME.fullmatch(name):
        raise CniError(
            CniError.INVALID_NETWORK_CONFIG,
            f"invalid characters found in network name={show(name)}",
            "expected a letter or digit, then letters, digits, '_', '.' or '-'",
        )
    version = raw.get("cniVersion")
    if version is not None and not isinstance(version, str):
        raise CniError(CniError.DECODE_FAILURE, f"cniVersion={show(version)}: expected a string")
    return raw, _checked_version(version or VERSIONS[0], request.command)


def _checked_version(version: str, command: str) -> str:
    first = _FIRST_VERSION.get(command)
    if first is not None:
        if not _VERSION.fullmatch(version):
            raise CniError(CniError.DECODE_FAILURE, f"cniVersion={show(version)}: not a version number")
        if _numbers(version) < _numbers(first):
            msg = f"cniVersion={show(version)} does not allow {command}"
            raise CniError(CniError.INCOMPATIBLE_VERSION, msg, f"{command} came with {first}")
    if version not in VERSIONS:
        details = f"config is {show(version)}, plugin supports {', '.join(VERSIONS)}"
        raise CniError(CniError.INCOMPATIBLE_VERSION, f"incompatible cniVersion={show(version)}", details)
    return version


def _numbers(version: str) -> tuple[int, ...]:
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


def at_least(version: str, first: str) -> bool:
    """Whether a supported version is ``first`` or newer."""
    return VERSIONS.index(version) >= VERSIONS.index(first)


def answer_version(stdin: bytes) -> str:
    """The version to answer a call in, also when the call cannot be read: its own when supported, else 1.1.0."""
    try:
        version = decode_object(stdin).get("cniVersion") or VERSIONS[0]
    except CniError:
        return NEWEST
    return version if isinstance(version, str) and version in VERSIONS else NEWEST


def encode_error(err: CniError, version: str) -> bytes:
    """The error object (section 5, "Error"); text that is not Unicode is shown with replacement characters."""
    document: dict[str, Any] = {"cniVersion": version, "code": err.code, "msg": _printable(err.msg)}
    if err.details:
        document["details"] = _printable(err.details)
    return msgspec.json.encode(document) + b"\n"


def encode_versions(version: str) -> bytes:
    """The answer to VERSION (section 5, "Version")."""
    return msgspec.json.encode({"cniVersion": version, "supportedVersions": VERSIONS}) + b"\n"


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
