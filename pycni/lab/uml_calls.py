"""Calls and errors between a lab and a guest as JSON. Pure.

Life: the driver encodes a ``Call``; the guest's command server runs it and answers with a value, or with a failure that
``raise_failure`` turns back into the error it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import msgspec

from pycni.errors import KernelError
from pycni.lab.checks import Check
from pycni.lab.probe import Doors
from pycni.lab.stations import Host
from pycni.lab.topology import LabError, LabSpec
from pycni.wire import typed


class GuestConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is told when it starts, in a file."""

    spec: LabSpec
    index: int
    shared: str
    """Folder that machine and guest have in common, at the same path."""
    visible: tuple[str, ...]
    """Further folders a guest needs although they may lie where it has a file system of its own."""
    modules: str
    """Folder with the kernel's modules."""
    address: str
    """Of the command server, with the prefix length."""
    port: int
    up: str
    """File to make once the command server takes requests."""


class Command(msgspec.Struct, frozen=True, kw_only=True, tag="exec", tag_field="op"):
    """Run a program."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    netns: str
    """Path of the namespace it runs in; "" for the guest's own."""
    window: tuple[int, int] | None
    """Rows and columns of the terminal it gets; None for three pipes."""
    client: int
    """Pid of the client, by which ``signal_for`` finds the program."""


class Call(msgspec.Struct, frozen=True, kw_only=True, tag="call", tag_field="op"):
    """Run a function of ``inside``."""

    function: str
    arguments: Sequence[Any]


class Probe(msgspec.Struct, frozen=True, kw_only=True, tag="probe", tag_field="op"):
    """Open probes for these hosts. Answered by their Doors; then for every Round by a list of reasons."""

    hosts: tuple[Host, ...]
    timeout: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Checks to try; ``others`` are the hosts of other kernels."""

    others: Doors
    checks: tuple[Check, ...]


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag="ping", tag_field="op"):
    """Send pings. Every Wait is answered by a bool, the end of the requests by a TrafficReport."""

    namespace: str
    """Path."""
    address: str
    interval: float


class Wait(msgspec.Struct, frozen=True, kw_only=True):
    """Wait for so many more answers; 0: stop and report."""

    count: int
    timeout: float


class Observe(msgspec.Struct, frozen=True, kw_only=True, tag="observe", tag_field="op"):
    """Watch for a trace. Answered by lines as an agent's ``/trace/watch`` has them, one a value, until it is over."""

    node: str
    order: Mapping[str, Any]
    """``tracing.eyes.Order``, as JSON has it."""
    namespaces: Mapping[str, str]
    """By space; names below /run/netns, "" for the guest's own."""


Request = Command | Call | Probe | Ping | Observe


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error on its way home."""

    kind: str
    text: str
    errno: int = 0
    operation: str = ""
    obj: str = ""
    detail: str = ""


def failure(exc: BaseException) -> Failure:
    """An error as a value."""
    match exc:
        case KernelError():
            return Failure(
                kind="KernelError",
                text=str(exc),
                errno=exc.errno,
                operation=exc.operation,
                obj=exc.obj,
                detail=exc.detail,
            )
        case OSError():
            return Failure(kind="OSError", text=exc.strerror or str(exc), errno=exc.errno or 0)
        case LabError():
            return Failure(kind="LabError", text=str(exc))
        case _:
            return Failure(kind="LabError", text=f"{type(exc).__name__}: {exc}")


def raise_failure(raw: bytes) -> NoReturn:
    """Raise the error a guest had: KernelError, OSError, LabError."""
    found = typed.decode(raw, Failure)
    if found.kind == "KernelError":
        raise KernelError(found.errno, found.operation, found.obj, found.detail)
    if found.kind == "OSError":
        raise OSError(found.errno, found.text)
    raise LabError(found.text)
