"""Telling a node's pod server (``serve``) what to serve, and starting it when nobody is at work.

Life: one ``tell`` per change and node: the configuration is written, the answer waited for. A server that does not
answer is taken for dead and another one started; if it was only slow, the new one sees its lock and ends.
"""

from __future__ import annotations

import sys
import time
from typing import TypeVar

import msgspec

from pycni.lab import processes
from pycni.lab.node import LabNode
from pycni.lab.serve import CONFIG, STATE, ServeConfig, ServedPod, ServeState
from pycni.lab.topology import LabError
from pycni.wire import typed

PATIENCE_S = 2.0
"""After which a server that has answered before is taken for dead."""
START_S = 20.0
POLL_S = 0.002

T = TypeVar("T", ServeConfig, ServeState)


def tell(node: LabNode, pods: tuple[ServedPod, ...]) -> list[str]:
    """Serve exactly these pods of a node; returns what cannot be served. Raises LabError when no server starts."""
    before = _read(node, CONFIG, ServeConfig)
    if before is None and not pods:
        return []
    number = before.number + 1 if before is not None else 1
    temporary = node.folder / f".{CONFIG}"
    temporary.write_bytes(msgspec.json.encode(ServeConfig(number=number, pods=pods)))
    temporary.rename(node.folder / CONFIG)
    known = _read(node, STATE, ServeState) is not None
    answer = _answer(node, number, PATIENCE_S) if known else None
    if answer is None:
        words = [*node.prefix(), sys.executable, "-P", "-m", "pycni.lab.serve", str(node.folder)]
        processes.spawn(words, node.folder / "serve.log", processes.environment(node.spec.name))
        answer = _answer(node, number, START_S)
    if answer is None:
        raise LabError(
            f"the servers in the pods of {node.name} do not start; see {node.folder / 'serve.log'}"
        )
    return list(answer.problems)


def _answer(node: LabNode, number: int, patience: float) -> ServeState | None:
    deadline = time.monotonic() + patience
    while (state := _read(node, STATE, ServeState)) is None or state.number != number:
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)
    return state


def _read(node: LabNode, name: str, kind: type[T]) -> T | None:
    try:
        return typed.decode((node.folder / name).read_bytes(), kind)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
