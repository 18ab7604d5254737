"""Where settings come from: the command line, the environment and the configuration file.

Each source becomes a list of ``Given``; nothing is judged here except what cannot be named at all: unknown
settings, missing values, files that cannot be read. All problems are collected. Flannel's flags that mean nothing
here are either ignored with a warning (they tune what pycni does not have) or refused with the reason (the
network would not be what was asked for).
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pycni.agent.settings import ALIASES, BY_NAME, TABLE, Given, Settings, SettingsError, resolve
from pycni.agent.settings_kinds import BOOLEAN, Words
from pycni.errors import ConfigError

_NO_IPTABLES = "pycni programs nftables and repairs it at once; nothing to set"

IGNORED: Mapping[str, str] = {
    "iptables-resync": _NO_IPTABLES,
    "iptables-forward-rules": _NO_IPTABLES,
    "vmodule": "use log-level",
    "log_backtrace_at": "use log-level",
}
"""Flannel's flags that are accepted, do nothing and cause one warning."""

REFUSED: Mapping[str, str] = {
    "ip-blackhole-route": "no blackhole route is made for the node's subnet",
}
"""Flannel's flags that ask for something pycni does not do. Switched off (=false) they are accepted."""

_FLANNEL_BOOLEANS = frozenset({"iptables-forward-rules", "ip-blackhole-route"})

# Variables Kubernetes makes for every Service of a namespace; one called "pycnid" must not stop the agent.
_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=.*|\w+_PORT=\w+://.*"
)

_FILE_LIMIT = 1 << 20


class Loaded(NamedTuple):
    """Settings and what is worth a warning once logging works."""

    settings: Settings
    warnings: tuple[str, ...]


class _Reader:
    """Collects what sources give, problems and warnings."""

    def __init__(self) -> None:
        self.problems: list[ConfigError] = []
        self.warnings: list[str] = []

    def known(self, name: str, words: Words, where: str) -> bool:
        """Whether the name is one of our settings; else it is judged here."""
        if name in BY_NAME:
            return True
        if name in IGNORED:
            self.warnings.append(f"{where}: {name} is ignored: {IGNORED[name]}")
        elif name in REFUSED:
            off = name in _FLANNEL_BOOLEANS and _is_false(words)
            if not off and any(words):
                self.problems.append(ConfigError(where, name, words[-1], REFUSED[name]))
        else:
            meant = _meant(name)
            secret = meant in BY_NAME and BY_NAME[meant].secret
            reason = f"unknown setting; is {meant} meant?" if meant else "unknown setting"
            self.problems.append(ConfigError(where, name, "(hidden)" if secret else words[-1], reason))
        return False


def load(argv: Sequence[str], environment: Mapping[str, str], hostname: str | None = None) -> Loaded:
    """Settings from flags (without the program's name), environment and the file that ``config`` names.

    ``hostname``: the default of node-name; None asks the kernel. Errors: ``SettingsError`` with all problems.
    """
    reader = _Reader()
    flags, config = from_flags(argv, reader)
    variables, config_variable = from_environment(environment, reader)
    config = config or config_variable
    file = from_file(config, reader) if config else []
    try:
        settings = resolve([flags, variables, file], socket.gethostname() if hostname is None else hostname)
    except SettingsError as exc:
        raise SettingsError([*reader.problems, *exc.problems]) from None
    problems = reader.problems + _unreadable_files(settings)
    if problems:
        raise SettingsError(problems)
    if any(given.name == "etcd-password" for given in flags):
        reader.warnings.append(
            "flag etcd-password shows in the process list: use PYCNID_ETCD_PASSWORD or --etcd-password-file"
        )
    return Loaded(settings, tuple(dict.fromkeys(reader.warnings)))


def from_flags(argv: Sequence[str], reader: _Reader) -> tuple[list[Given], str]:
    """Flags as Go's flag package takes them: ``-n v``, ``--n v``, ``--n=v``; a boolean needs no value.

    Returns what is given and the value of ``--config`` ("" without).
    """
    found: dict[str, list[str]] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        match = re.fullmatch(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", word, re.DOTALL)
        if match is None:
            reader.problems.append(
                ConfigError("command line", "argument", word, "not a flag (write --name=value)")
            )
            continue
        name, value = ALIASES.get(match[1], match[1]), match[2]
        is_bool = name in _FLANNEL_BOOLEANS or (name in BY_NAME and BY_NAME[name].kind.is_bool)
        if value is None and is_bool:
            value = "true"
        elif value is None:
            known = name == "config" or name in BY_NAME or name in IGNORED or name in REFUSED
            if known and not words:
                reader.problems.append(ConfigError("flag", name, "", "needs a value"))
                continue
            # An unknown flag takes the next word along unless that looks like a flag itself.
            value = words.pop(0) if words and (known or not words[0].startswith("-")) else ""
        found.setdefault(name, []).append(value)
    config = found.pop("config", [""])[-1]
    return [
        Given(name, tuple(values), "flag")
        for name, values in found.items()
        if reader.known(name, tuple(values), "flag")
    ], config


def from_environment(environment: Mapping[str, str], reader: _Reader) -> tuple[list[Given], str]:
    """PYCNID_* and, for flannel's names, FLANNELD_*; empty variables count as not given (as in flannel)."""
    given: list[Given] = []
    taken = {"PYCNID_CONFIG"}
    for row in TABLE:
        taken.update(row.variables)
        variable = next((name for name in row.variables if environment.get(name)), None)
        if variable is not None:
            given.append(Given(row.name, (environment[variable],), f"environment {variable}"))
    for variable, value in sorted(environment.items()):
        prefix, _, rest = variable.partition("_")
        if prefix not in ("PYCNID", "FLANNELD") or variable in taken or not value:
            continue
        name = _shown(rest.lower().replace("_", "-"))
        name = name if name != "log-backtrace-at" else "log_backtrace_at"
        where = f"environment {_shown(variable)}"
        if name in IGNORED or name in REFUSED:
            reader.known(name, (value,), where)
        elif prefix == "FLANNELD":
            reader.warnings.append(f"{where} is ignored: pycni has no setting {name}")
        elif not _SERVICE_LINK.fullmatch(f"{variable}={value}"):
            reader.known(name, (value,), where)
    return given, environment.get("PYCNID_CONFIG", "")


def from_file(path: str, reader: _Reader) -> list[Given]:
    """Settings of a TOML or JSON file: one key per setting, dashes or underscores, lists where several are allowed."""
    try:
        content = _read(path)
        table = _decode(content)
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        reader.problems.append(ConfigError("flag", "config", path, reason))
        return []
    given: list[Given] = []
    where = _shown(path)
    for key, value in table.items():
        name = _shown(key if key in IGNORED else key.replace("_", "-"))
        name = ALIASES.get(name, name)
        try:
            words = _words(value, many=name not in BY_NAME or BY_NAME[name].kind.many)
        except ValueError as exc:
            reader.problems.append(ConfigError(where, name, value, str(exc)))
            continue
        if reader.known(name, words, where) and (words != ("",) or name == "etcd-password"):
            given.append(Given(name, words, where))
    doubled = sorted({item.name for item in given if [other.name for other in given].count(item.name) > 1})
    reader.problems += [
        ConfigError(where, name, "", "given twice, with dash and underscore") for name in doubled
    ]
    return given


def _read(path: str) -> str:
    with Path(path).open("rb") as file:
        raw = file.read(_FILE_LIMIT + 1)
    if len(raw) > _FILE_LIMIT:
        raise ValueError(f"longer than {_FILE_LIMIT} bytes")
    return raw.decode()


def _decode(content: str) -> dict[str, Any]:
    if content.lstrip().startswith("{"):
        try:
            table = json.loads(content)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        assert isinstance(table, dict)
        return table
    import tomllib  # noqa: PLC0415 - most agents have no file

    try:
        return tomllib.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _words(value: object, *, many: bool) -> Words:
    """The words of a value in a file: what one would have typed as a flag."""
    if isinstance(value, bool):
        return ("true" if value else "false",)
    if isinstance(value, int | str):
        return (str(value),)
    if isinstance(value, list) and many:
        items = [_words(item, many=False)[0] for item in value]
        return tuple(items) or ("",)
    raise ValueError(f"a {type(value).__name__} is not allowed here")


def _shown(text: str) -> str:
    """Foreign text fit for a line of an error."""
    return text if text.isprintable() else repr(text)[1:-1]


def _is_false(words: Words) -> bool:
    try:
        return BOOLEAN.parse(words) is False
    except ValueError:
        return False


def _meant(name: str) -> str:
    """The known setting that was probably meant, or ""."""
    import difflib  # noqa: PLC0415 - only for mistakes

    return next(iter(difflib.get_close_matches(name, [*BY_NAME, "config"], n=1)), "")


def _unreadable_files(settings: Settings) -> list[ConfigError]:
    problems = []
    for name in ("etcd-cafile", "etcd-certfile", "etcd-keyfile", "etcd-password-file"):
        path = getattr(settings, BY_NAME[name].field)
        if not path:
            continue
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            problems.append(ConfigError("settings", name, path, exc.strerror or str(exc)))
    return problems


def password(settings: Settings) -> str:
    """The password for etcd, from its setting or the first line of its file. Errors: ``SettingsError``."""
    path = settings.etcd_password_file
    if not path:
        return settings.etcd_password
    try:
        first = _read(path).partition("\n")[0].rstrip("\r")
    except (OSError, ValueError) as exc:
        raise SettingsError([ConfigError("settings", "etcd-password-file", path, str(exc))]) from exc
    if not first:
        raise SettingsError([ConfigError("settings", "etcd-password-file", path, "its first line is empty")])
    return first
