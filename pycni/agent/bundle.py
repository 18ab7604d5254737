"""The smallest Python that runs the shim, for hosts that have none.

Life: the interpreter to copy is asked for the modules the shim can need, compiled by itself; its loader is asked for
the shared libraries. All of it becomes ``File``s below one folder: the executable, made to use its own loader and
libraries (``wire.interp``), the libraries and the few modules. ``install`` writes them. Nothing of the host is used at
run time but its kernel.

    bin/python3   lib/<loader and libraries>   lib/python3.11/{os.pyc, encodings/..., json/..., lib-dynload/}
"""

from __future__ import annotations

import marshal
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

from pycni.errors import PycniError
from pycni.wire import interp

SHIM_MODULES = ("posix", "_socket", "json", "encodings.ascii", "encodings.latin_1")
"""What the shim can import. json: only for error messages; the codecs: for hosts with such a locale."""

# Runs in the interpreter to copy. Answers with marshal: a tuple (major, minor), a mapping from the relative path of a
# compiled module to its content, a tuple of extension modules' paths. os is frozen into the interpreter, yet its file
# is how the interpreter finds its library (Modules/getpath.py, STDLIB_LANDMARKS).
_ASK = """
import sys
for name in sys.argv[1:]:
    __import__(name)
modules = dict(sys.modules)
import os, marshal, importlib.util
modules["os"] = os
code, extensions = {}, []
for name, module in modules.items():
    path = getattr(module, "__file__", None) or ""
    if name != "os" and getattr(module.__spec__, "origin", "") == "frozen":
        continue
    if path.endswith(".so"):
        extensions.append(path)
    elif path and name != "__main__":
        with open(path, "rb") as file:
            compiled = compile(file.read(), "<bundled>/" + name, "exec", dont_inherit=True, optimize=2)
        place = name.replace(".", "/") + ("/__init__.pyc" if hasattr(module, "__path__") else ".pyc")
        code[place] = importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(compiled)
sys.stdout.buffer.write(marshal.dumps((sys.version_info[:2], code, tuple(extensions)), 2))
"""


class File(NamedTuple):
    """A file of the bundle, its path relative to the bundle's folder."""

    path: str
    content: bytes
    mode: int = 0o644


class BundleError(PycniError):
    """This interpreter cannot be bundled."""


class _Told(NamedTuple):
    version: tuple[int, int]
    modules: dict[str, bytes]
    extensions: tuple[str, ...]


def collect(python: str, folder: str) -> list[File]:
    """The bundle of an interpreter, for the absolute ``folder`` at which the host will see it.

    Errors: ``BundleError`` when the interpreter does not run, is linked statically or is no 64-bit ELF file.
    """
    executable = os.path.realpath(python)
    told = _ask(executable)
    try:
        image = Path(executable).read_bytes()
        loader = interp.interpreter(image)
        loader_name = os.path.basename(loader)
        relocated = interp.relocated(image, f"{folder}/lib/{loader_name}", f"{folder}/lib")
        libraries = _libraries(loader, executable, *told.extensions)
        stdlib = f"lib/python{told.version[0]}.{told.version[1]}"
        # Without the folder lib-dynload the interpreter complains on stderr at every start.
        files = [
            File("bin/python3", relocated, 0o755),
            File(f"lib/{loader_name}", Path(loader).read_bytes(), 0o755),
            File(f"{stdlib}/lib-dynload/README", b"Extension modules of the bundled interpreter.\n"),
        ]
        files += [File(f"lib/{name}", _library(path)) for name, path in libraries.items()]
        files += [File(f"{stdlib}/{path}", content) for path, content in told.modules.items()]
        files += [
            File(f"{stdlib}/lib-dynload/{os.path.basename(path)}", _library(path)) for path in told.extensions
        ]
    except (OSError, ValueError) as exc:
        raise BundleError(f"{executable} cannot be bundled: {exc}") from exc
    return sorted(files)


def _library(path: str) -> bytes:
    return interp.without_runpath(Path(path).read_bytes())


def _ask(executable: str) -> _Told:
    command = [executable, "-IS", "-c", _ASK, *SHIM_MODULES]
    try:
        done = subprocess.run(command, capture_output=True, check=True, timeout=60)
        # The answer comes from the interpreter that is about to be copied into the host.
        version, modules, extensions = marshal.loads(done.stdout)  # noqa: S302
    except subprocess.CalledProcessError as exc:
        raise BundleError(f"{executable} does not run: {exc.stderr.decode(errors='replace')[-200:]}") from exc
    except (OSError, subprocess.SubprocessError, ValueError, EOFError, TypeError) as exc:
        raise BundleError(f"{executable} does not run: {exc}") from exc
    return _Told(version, modules, extensions)


def _libraries(loader: str, *objects: str) -> dict[str, str]:
    """Shared libraries by the name they are asked for, as the loader resolves them (ld.so(8), --list)."""
    found: dict[str, str] = {}
    for path in objects:
        try:
            done = subprocess.run(
                [loader, "--list", path], capture_output=True, check=True, timeout=60, text=True
            )
        except (OSError, subprocess.SubprocessError) as exc:
            raise BundleError(f"{loader} --list {path}: {exc}") from exc
        for line in done.stdout.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            place = rest.partition(" (")[0]
            if arrow and os.path.basename(name) != os.path.basename(loader):
                if not place.startswith("/"):
                    raise BundleError(f"{path} needs {name}, which is {place or 'not found'}")
                found[os.path.basename(name)] = place
    return found
