"""Certificates of a lab whose agents listen for traces: an authority of its own, one pair per node, one for people.

Life: ``prepare`` is called for every node before its agent starts, makes the authority with the first one, and the
node's pair with its name and its addresses; all of it goes with the lab's folder. Made by openssl(1), the only program
every distribution has for it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pycni.lab.topology import LabError

PORT = 9475
DAYS = "30"
CURVE = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
TIMEOUT_S = 30.0


class Pair(NamedTuple):
    """PEM files."""

    certificate: str
    key: str
    authority: str


def prepare(lab_folder: Path, node: str, addresses: Sequence[str]) -> Pair:
    """The files of a node, made unless they are there. Raises LabError."""
    names = [f"DNS:{node}", *(f"IP:{address}" for address in addresses)]
    client(lab_folder)
    return _pair(_folder(lab_folder), node, f"subjectAltName={','.join(names)}")


def client(lab_folder: Path) -> Pair:
    """The files of who traces, made unless they are there. Raises LabError."""
    folder = _folder(lab_folder)
    if not (folder / "ca.crt").exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        words = ("-keyout", "ca.key", "-out", "ca.new", "-days", DAYS, "-subj", "/CN=pycni lab traces")
        _openssl(folder, "req", "-x509", *CURVE, *words)
        (folder / "ca.new").rename(folder / "ca.crt")
    return _pair(folder, "pycnictl", "extendedKeyUsage=clientAuth")


def _pair(folder: Path, name: str, extension: str) -> Pair:
    found = Pair(f"{folder}/{name}.crt", f"{folder}/{name}.key", f"{folder}/ca.crt")
    if not Path(found.certificate).exists():
        words = ("-keyout", found.key, "-out", f"{name}.new", "-days", DAYS, "-subj", f"/CN={name}")
        by = (
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-addext",
            "basicConstraints=CA:FALSE",
            "-addext",
            extension,
        )
        _openssl(folder, "req", "-x509", *CURVE, *words, *by)
        (folder / f"{name}.new").rename(found.certificate)
    return found


def _folder(lab_folder: Path) -> Path:
    return lab_folder / "trace"


def _openssl(folder: Path, *words: str) -> None:
    try:
        done = subprocess.run(
            ["openssl", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise LabError(f"--trace-tls: openssl cannot be run: {exc}") from exc
    if done.returncode:
        raise LabError(f"--trace-tls: openssl: {done.stderr.strip()[-300:]}")
