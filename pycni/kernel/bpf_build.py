"""Compiled eBPF programs by content: C source in, instructions out, from the disk when they were compiled before.

Life: ``build`` hashes source, flags, functions, kernel release and machine. A file of that name in the cache is the
answer (a millisecond, no bcc, no headers). Otherwise a child process compiles (``bpf_bcc``) against a folder of kernel
headers, and the outcome is written to the cache under a temporary name and renamed. The agent itself never holds LLVM.

Debian splits its headers into two packages that refer to each other by absolute paths; bcc wants them in one folder
(BCC_KERNEL_SOURCE), which is made of symbolic links once per version.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from pycni.errors import PycniError

CACHE = "/var/cache/pycni/bpf"
FORMAT = 1
"""Part of every hash: raised when the outcome's form changes."""
COMPILE_S = 120.0
SOURCES = "/usr/src"
_LD_IMM64, _PSEUDO_MAP = 0x18, frozenset({1, 2})
"""Descriptor of a map, and the address of the value of an array's first row (BPF_PSEUDO_MAP_FD, _VALUE)."""

Code = Mapping[str, bytes]
"""Instructions by function; maps are numbers in LD_IMM64 instructions."""


class BuildError(PycniError):
    """A program cannot be compiled here: bcc or headers are missing, or the compiler refuses the source."""


def missing(cache: str = CACHE) -> str:
    """What this machine lacks for compiling, in one sentence; "" when it can. Changes nothing, imports nothing."""
    if importlib.util.find_spec("bcc") is None:
        return "the Python package bcc is not installed (Debian: python3-bpfcc)"
    if not headers_found(cache):
        return "no kernel headers are installed (Debian: linux-headers-cloud-amd64 or linux-headers-amd64)"
    return ""


def digest(source: str, functions: Sequence[str], flags: Sequence[str] = ()) -> str:
    """Name of a build: 64 hexadecimal digits of everything that decides its outcome."""
    about = [FORMAT, source, sorted(functions), list(flags), platform.release(), platform.machine()]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def cached(name: str, cache: str = CACHE) -> Code | None:
    """A build by its digest; None when it is not on disk or not whole."""
    try:
        with open(os.path.join(cache, f"{name}.json"), "rb") as file:
            content = json.load(file)
        return {function: bytes.fromhex(code) for function, code in content.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return None


def kernel() -> tuple[int, ...]:
    """Version of the running kernel, two numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])


def lacking(
    oldest: tuple[int, ...], source: str, functions: Sequence[str], flags: Sequence[str], cache: str
) -> str:
    """Why a source cannot be run here, in one line; "" when it can. ``oldest``: kernel, two numbers."""
    if kernel() < oldest:
        return f"kernel {platform.release()} is older than {'.'.join(map(str, oldest))}"
    return "" if cached(digest(source, functions, flags), cache) is not None else missing(cache)


def build(source: str, functions: Sequence[str], flags: Sequence[str] = (), cache: str = CACHE) -> Code:
    """Instructions of the functions of a C source. Raises BuildError, OSError (the cache cannot be written)."""
    name = digest(source, functions, flags)
    code = cached(name, cache)
    if code is not None:
        return code
    lack = missing(cache)
    if lack:
        raise BuildError(f"compiling eBPF programs: {lack}")
    os.makedirs(cache, mode=0o755, exist_ok=True)
    raw = _compile(source, functions, flags, headers(cache))
    target = os.path.join(cache, f"{name}.json")
    handle, temporary = tempfile.mkstemp(prefix=".new-", dir=cache)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
        os.rename(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    code = cached(name, cache)
    if code is None or set(code) != set(functions):
        raise BuildError(f"compiling eBPF programs: the compiler's answer is not whole ({target})")
    return code


def relocate(code: bytes, maps: Sequence[int]) -> bytes:
    """Put descriptors in the place of the numbers of maps. Raises BuildError for a number without a map."""
    out = bytearray(code)
    for at in range(0, len(out), 8):
        if out[at] == _LD_IMM64 and out[at + 1] >> 4 in _PSEUDO_MAP:
            number = int.from_bytes(out[at + 4 : at + 8], sys.byteorder)
            if number >= len(maps):
                raise BuildError(f"instruction {at // 8} names map {number} of {len(maps)}")
            out[at + 4 : at + 8] = maps[number].to_bytes(4, sys.byteorder)
    return bytes(out)


def maps_used(code: bytes) -> frozenset[int]:
    """Numbers of the maps a function's instructions refer to."""
    return frozenset(
        int.from_bytes(code[at + 4 : at + 8], sys.byteorder)
        for at in range(0, len(code), 8)
        if code[at] == _LD_IMM64 and code[at + 1] >> 4 in _PSEUDO_MAP
    )


def headers_found(cache: str = CACHE) -> bool:
    """Whether there are kernel headers to compile against."""
    return bool(_running() or _pairs() or glob.glob(os.path.join(cache, "headers-*")))


def headers(cache: str = CACHE) -> str:
    """Folder of kernel headers, made of links when need be. Raises BuildError, OSError."""
    folder = _running()
    if folder:
        return folder
    pairs = _pairs()
    if not pairs:
        made = sorted(glob.glob(os.path.join(cache, "headers-*")))
        if made:
            return made[-1]
        raise BuildError("no kernel headers")
    common, own = pairs[0]
    target = os.path.join(cache, f"headers-{os.path.basename(own)}")
    if os.path.isdir(target):
        return target
    temporary = tempfile.mkdtemp(prefix=".headers-", dir=cache)
    try:
        merged = os.path.join(temporary, "all")
        subprocess.run(["cp", "-as", common, merged], check=True, capture_output=True)
        subprocess.run(["cp", "-asf", f"{own}/.", merged], check=True, capture_output=True)
        with contextlib.suppress(OSError):  # somebody else was faster
            os.rename(merged, target)
    except subprocess.CalledProcessError as exc:
        raise BuildError(f"linking kernel headers: {exc.stderr.decode(errors='replace').strip()}") from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _running() -> str:
    """Headers of the running kernel where its packages put them, complete in one folder."""
    folder = f"/lib/modules/{platform.release()}/build"
    return folder if os.path.exists(f"{folder}/include/linux/kconfig.h") else ""


def _pairs() -> list[tuple[str, str]]:
    """(common, own) folders of Debian's header packages, the best match for this kernel first."""
    found = []
    release = platform.release()
    for common in glob.glob(f"{SOURCES}/linux-headers-*-common"):
        version = common.removesuffix("-common")
        found += [
            (release in own, "cloud" in own, own, common)
            for own in glob.glob(f"{version}-*")
            if own != common and not own.endswith("-common-rt") and os.path.isdir(f"{own}/include")
        ]
    return [(common, own) for _, _, own, common in sorted(found, reverse=True)]


def _compile(source: str, functions: Sequence[str], flags: Sequence[str], folder: str) -> bytes:
    request = json.dumps({"source": source, "functions": list(functions), "flags": list(flags)}).encode()
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = dict(os.environ, BCC_KERNEL_SOURCE=folder, PYTHONPATH=root)
    command = [sys.executable, "-m", "pycni.kernel.bpf_bcc"]
    try:
        done = subprocess.run(
            command, input=request, env=environment, capture_output=True, timeout=COMPILE_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise BuildError(f"compiling eBPF programs: no answer within {COMPILE_S:.0f} s") from exc
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if "error" in line] or lines[-3:]
        raise BuildError(f"compiling eBPF programs: {'; '.join(errors[:4]) or 'the compiler ended silently'}")
    return done.stdout
