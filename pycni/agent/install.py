"""Putting the CNI plugin on a host, and taking exactly that away again.

Life: ``install`` plans every file (shim, conflist, on demand an interpreter), refuses what would overwrite somebody
else's work, writes the manifest ``<bin dir>/.pycni/installed.json`` first, then the files in the order in which they
need each other, the conflist last: from that moment on a runtime calls the shim. Each file is written beside its
place, synced and renamed over it, so a shim being executed is never half-written (and never "text file busy").
``uninstall`` goes by the manifest, in reverse; a file that somebody changed meanwhile is left where it is.
"""

from __future__ import annotations

import hashlib
import json
import marshal
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pycni.agent import bundle
from pycni.agent.settings_kinds import SOCKET_PATH
from pycni.errors import ConfigError, PycniError

SHIM = "pycni"
CONFLIST = "10-pycni.conflist"
PRIVATE = ".pycni"
"""Our folder in the CNI binaries' folder: manifest and interpreters. Runtimes look for executables by name only."""

SAVED = ".pycni-saved"
"""Appended to configurations put aside; runtimes read .conf, .conflist and .json only."""

_CONF_SUFFIXES = (".conf", ".conflist", ".json")
_SHEBANG_MAX = 127
"""Bytes of a #! line that every kernel reads (BINPRM_BUF_SIZE was 128 before Linux 5.1)."""

_KEEP_OLD_SECONDS = 600.0
"""An interpreter that was replaced stays that long: shims that run may still load modules from it."""


class InstallError(PycniError):
    """The host is not as it has to be; nothing was changed, or the text says what was."""


class Options(NamedTuple):
    """What ``install-cni`` was asked for. Folders are as this process sees them."""

    bin_dir: Path
    conf_dir: Path
    socket: str = "/run/pycni/cni.sock"
    network_name: str = "pycni"
    conflist: Path | None = None
    """Own configuration list instead of the built-in one."""
    interpreter: str = ""
    """Python to bundle; "": the shim uses the host's /usr/bin/python3."""
    host_bin_dir: str = ""
    """``bin_dir`` as the host's runtime sees it, when this process has it mounted elsewhere."""
    force: bool = False
    exclusive: bool = False
    """Put other configurations aside."""


class _Plan(NamedTuple):
    shim: bytes
    conflist: bytes
    interpreter_name: str
    interpreter: list[bundle.File]


def install(options: Options) -> list[str]:
    """Install; returns one line per thing done or worth knowing. Errors: ``InstallError``, ``ConfigError``, OSError."""
    plan = _plan(options)
    before = _read_manifest(options.bin_dir)
    _refuse_foreign(options, before)
    done: list[str] = []
    for folder in (options.bin_dir / PRIVATE, options.conf_dir):
        folder.mkdir(parents=True, exist_ok=True)
    moved = dict(before.get("moved", {}))
    if options.force:
        moved |= _put_aside_edited(options, before, done)
    if options.exclusive:
        moved |= _plan_exclusive(options)
    manifest = {
        # The digests of before stay on record: killed in the middle, the next run must still know the old files.
        "bin": {SHIM: [_digest(plan.shim), *before.get("bin", {}).get(SHIM, [])[:3]]},
        "conf": {CONFLIST: [_digest(plan.conflist), *before.get("conf", {}).get(CONFLIST, [])[:3]]},
        "interpreter": plan.interpreter_name,
        "moved": moved,
    }
    _write(_manifest_path(options.bin_dir), json.dumps(manifest, indent=1).encode() + b"\n", 0o644)
    if plan.interpreter:
        done.append(_write_interpreter(options.bin_dir / PRIVATE / plan.interpreter_name, plan.interpreter))
    _drop_old_interpreters(options.bin_dir / PRIVATE, plan.interpreter_name, before.get("interpreter", ""))
    _write(options.bin_dir / SHIM, plan.shim, 0o755)
    done.append(f"wrote {options.bin_dir / SHIM}")
    _write(options.conf_dir / CONFLIST, plan.conflist, 0o644)
    done.append(f"wrote {options.conf_dir / CONFLIST}")
    for name, target in moved.items():
        if (options.conf_dir / name).exists() and name != CONFLIST:
            os.rename(options.conf_dir / name, options.conf_dir / target)
            done.append(f"put {options.conf_dir / name} aside as {target}")
    done += [
        f"warning: {options.conf_dir / name} sorts before {CONFLIST}: runtimes use it and not pycni"
        " (remove it, or install with --exclusive)"
        for name in _configurations(options.conf_dir)
        if name < CONFLIST
    ]
    return done


def uninstall(bin_dir: Path, conf_dir: Path) -> list[str]:
    """Take away what the manifest lists; returns one line per thing done. Nothing installed: an empty list."""
    manifest = _read_manifest(bin_dir)
    done: list[str] = []
    for folder, names in ((conf_dir, manifest.get("conf", {})), (bin_dir, manifest.get("bin", {}))):
        for name, digests in names.items():
            path = folder / name
            found = _current(path)
            if found is not None and found not in digests:
                done.append(f"warning: {path} was changed since it was installed and stays")
            elif found is not None:
                path.unlink()
                done.append(f"removed {path}")
    for name, target in manifest.get("moved", {}).items():
        if (conf_dir / target).exists() and not (conf_dir / name).exists():
            os.rename(conf_dir / target, conf_dir / name)
            done.append(f"put {conf_dir / name} back")
    private = bin_dir / PRIVATE
    for path in _interpreters(private):
        shutil.rmtree(path)
        done.append(f"removed {path}")
    if manifest:
        _manifest_path(bin_dir).unlink()
        left = [path.name for path in private.iterdir()]
        if left:
            done.append(f"warning: {private} stays, it holds {', '.join(sorted(left))}")
        else:
            private.rmdir()
    return done


# --- planning: nothing is changed


def _plan(options: Options) -> _Plan:
    name, files, python = "", [], "/usr/bin/python3"
    host_dir = options.host_bin_dir or str(options.bin_dir.resolve())
    if options.interpreter:
        # The name depends on the content, so an upgrade never changes an interpreter that shims are running.
        seed = bundle.collect(options.interpreter, f"{host_dir}/{PRIVATE}")
        digest = _digest(b"".join(file.path.encode() + file.content for file in seed))[:12]
        name = f"python-{digest}"
        files = bundle.collect(options.interpreter, f"{host_dir}/{PRIVATE}/{name}")
        python = f"{host_dir}/{PRIVATE}/{name}/bin/python3"
    shim = precompile(render_shim(_source(SHIM).decode(), python, options.socket)).encode()
    content = options.conflist.read_bytes() if options.conflist else _source(CONFLIST)
    where = str(options.conflist or CONFLIST)
    return _Plan(shim, render_conflist(content, options.network_name, where), name, files)


def render_shim(text: str, python: str, socket: str) -> str:
    """The shim with another interpreter and another default socket. Errors: ``ConfigError``."""
    try:
        SOCKET_PATH.parse((socket,))
    except ValueError as exc:
        raise ConfigError("install-cni", "socket", socket, str(exc)) from None
    shebang = f"#!{python} -IS"
    if re.search(r"\s", python) or len(shebang) > _SHEBANG_MAX:
        raise ConfigError(
            "install-cni",
            "cni-bin-dir",
            python,
            f"no interpreter for a #! line (space, or over {_SHEBANG_MAX} bytes)",
        )
    text, lines = re.subn(r"\A#!.*", lambda _: shebang, text, count=1)
    text, constants = re.subn(
        r"^SOCKET = .*$", lambda _: f"SOCKET = {socket!r}", text, count=1, flags=re.MULTILINE
    )
    if not lines or not constants:
        raise InstallError("the shim has no #! line or no SOCKET constant: this installation is damaged")
    return text


def precompile(text: str) -> str:
    """The shim with its own byte code, for this process's version of Python; another version runs the source.

    Parsing the source is a seventh of what a call costs, and a module beside it would cost Python's import machinery.
    """
    tag = sys.implementation.cache_tag
    code = marshal.dumps(compile(text, SHIM, "exec", optimize=2, dont_inherit=True))
    if "'''" in text or text.endswith("\\"):
        raise InstallError("the shim's source does not fit into a raw string: this installation is damaged")
    return f"""{text.partition(chr(10))[0]}
# Written by `pycnid install-cni`. SOURCE is the plugin to read; COMPILED is the same for {tag}.
import marshal
import sys

COMPILED = {code!r}
SOURCE = r'''{text}'''

if sys.implementation.cache_tag == {tag!r}:
    exec(marshal.loads(COMPILED))
else:
    exec(compile(SOURCE, "pycni", "exec"))
"""


def render_conflist(content: bytes, network: str, where: str) -> bytes:
    """The configuration list under another network name ("": its own). Errors: ``ConfigError``."""
    try:
        listing = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(where, "content", content[:80], f"not JSON: {exc}") from None
    plugins = listing.get("plugins") if isinstance(listing, dict) else None
    if not isinstance(plugins, list) or not any(
        isinstance(p, dict) and p.get("type") == SHIM for p in plugins
    ):
        raise ConfigError(where, "plugins", plugins, f"has no plugin of type {SHIM}")
    name = network or listing.get("name", "")
    if not isinstance(name, str) or re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", name) is None:
        raise ConfigError(where, "name", name, "must match [a-zA-Z0-9][a-zA-Z0-9_.-]*")
    if name == listing.get("name"):
        return content
    listing["name"] = name
    return json.dumps(listing, indent=2).encode() + b"\n"


def _source(name: str) -> bytes:
    """A file of cni-bin/: packaged beside this module, or in the repository."""
    here = Path(__file__).resolve().parent
    for path in (here / "data" / name, here.parents[1] / "cni-bin" / name):
        if path.is_file():
            return path.read_bytes()
    raise InstallError(f"{name} is neither in {here / 'data'} nor in {here.parents[1] / 'cni-bin'}")


def _refuse_foreign(options: Options, manifest: dict[str, Any]) -> None:
    if options.force:
        return
    for folder, name, kind in ((options.bin_dir, SHIM, "bin"), (options.conf_dir, CONFLIST, "conf")):
        found = _current(folder / name)
        ours = manifest.get(kind, {}).get(name, [])
        if found is not None and found not in ours:
            what = "was changed since it was installed" if ours else "exists and was not installed by pycni"
            raise InstallError(f"{folder / name} {what}: nothing done (--force puts it aside)")


def _put_aside_edited(options: Options, manifest: dict[str, Any], done: list[str]) -> dict[str, str]:
    """With --force: keep a foreign or edited file under another name."""
    kept = {}
    for folder, name, kind in ((options.bin_dir, SHIM, "bin"), (options.conf_dir, CONFLIST, "conf")):
        found = _current(folder / name)
        if found is None or found in manifest.get(kind, {}).get(name, []):
            continue
        shutil.copy2(folder / name, folder / (name + SAVED))
        done.append(f"kept the old {folder / name} as {name + SAVED}")
        if kind == "conf" and not manifest:
            kept[name] = name + SAVED
    return kept


def _plan_exclusive(options: Options) -> dict[str, str]:
    return {name: name + SAVED for name in _configurations(options.conf_dir) if name != CONFLIST}


def _configurations(conf_dir: Path) -> list[str]:
    return sorted(path.name for path in conf_dir.iterdir() if path.suffix in _CONF_SUFFIXES)


# --- files


def _manifest_path(bin_dir: Path) -> Path:
    return bin_dir / PRIVATE / "installed.json"


def _read_manifest(bin_dir: Path) -> dict[str, Any]:
    path = _manifest_path(bin_dir)
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise InstallError(f"{path}: {exc}: remove it by hand when its files are known") from None
    if not isinstance(found, dict) or not _plain(found):
        raise InstallError(f"{path}: not a manifest of pycni")
    return found


def _plain(manifest: dict[str, Any]) -> bool:
    """Whether a manifest names plain files only: nothing outside our two folders is ever touched."""
    parts = [manifest.get(key) for key in ("bin", "conf", "moved")]
    if not all(isinstance(part, dict) for part in parts):
        return False
    names = [name for part in parts if part for name in part] + list(manifest["moved"].values())
    return all(isinstance(name, str) and name and "/" not in name for name in names)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _current(path: Path) -> str | None:
    """Digest of what is there, None when nothing is."""
    try:
        return _digest(path.read_bytes())
    except FileNotFoundError:
        return None


def _write(path: Path, content: bytes, mode: int) -> None:
    """Replace a file in one step, durably."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_interpreter(place: Path, files: list[bundle.File]) -> str:
    size = sum(len(file.content) for file in files)
    text = f"wrote {place} ({len(files)} files, {size / 1e6:.1f} MB)"
    if place.is_dir():
        os.utime(place)
        return f"{place} is there already"
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        for file in files:
            path = temporary / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.content)
            path.chmod(file.mode)
        os.sync()
        os.rename(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return text


def _interpreters(private: Path) -> Iterator[Path]:
    if private.is_dir():
        yield from sorted(
            path for path in private.iterdir() if re.fullmatch(r"\.?python-[0-9a-f]{12}.*", path.name)
        )


def _drop_old_interpreters(private: Path, current: str, previous: str) -> None:
    for path in _interpreters(private):
        if path.name == current:
            continue
        if path.name == previous:
            os.utime(path)  # its time begins now
        elif time.time() - path.stat().st_mtime > _KEEP_OLD_SECONDS:
            shutil.rmtree(path)
