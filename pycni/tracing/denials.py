"""What a node's policies by eBPF or XDP denied, as its agent tells it: these planes have no rules to trace.

Life: opened with a deep watch where the node has such a plane; each denial of the agent's ``/drops`` that is about the
probe becomes a note with the policy's name. An agent that does not answer is a note of kind ``limit``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import ip_address

import msgspec

from pycni.model.kube import PROTOCOLS
from pycni.model.space import NODE
from pycni.trace.model import Flow, Note
from pycni.tracing.ask import AskError, Door, Stream

TARGET = "/drops"
_NFTABLES = "nftables"
"""Denials by this plane: the rule that was met tells more."""


class _Row(msgspec.Struct, frozen=True):
    """One line of the answer; others of it (``listening``, ``lost``) have no policy."""

    policy: str = ""
    more: int = 0
    direction: str = ""
    by: str = ""
    protocol: str | int = ""
    source: str = ""
    source_port: int = 0
    destination: str = ""
    port: int = 0
    time: float = 0.0


_ROWS = msgspec.json.Decoder(_Row)
"""Made once: types must not be worked out by several threads at the same time."""


class Denials:
    """One watch of one agent."""

    def __init__(self, name: str, door: Door) -> None:
        """Ready when this returns. ``name``: of the node. Raises AskError."""
        self._name = name
        self._stream: Stream = door.follow(TARGET)
        try:
            self._stream.line()
        except BaseException:
            self._stream.close()
            raise

    def fileno(self) -> int:
        """To poll for reading."""
        return self._stream.fileno()

    def read(self, meant: Callable[[Flow], bool]) -> list[Note]:
        """Denials of flows that are meant, since the last call; never waits."""
        try:
            lines = self._stream.ready()
        except AskError:
            return []
        found = []
        for line in lines:
            try:
                row = _ROWS.decode(line)
            except msgspec.DecodeError:
                continue
            flow = _flow(row) if row.policy and row.by != _NFTABLES else None
            if flow is not None and meant(flow):
                found.append(self._note(row, flow))
        return found

    def close(self) -> None:
        """Harmless twice."""
        self._stream.close()

    def _note(self, row: _Row, flow: Flow) -> Note:
        more = f" and {row.more} more" if row.more else ""
        return Note(
            node=self._name,
            space=NODE,
            time_ns=int(row.time * 1e9) or time.time_ns(),
            kind="drop",
            place=f"pycni policies by {row.by}",
            detail=f"{row.direction} is denied by {row.policy}{more}",
            verdict="policy",
            flow=flow,
        )


def _flow(row: _Row) -> Flow | None:
    """None: nothing that can be compared."""
    number = str(row.protocol)
    try:
        protocol = PROTOCOLS[number] if number in PROTOCOLS else int(number)
        source, destination = ip_address(row.source).packed, ip_address(row.destination).packed
    except ValueError:
        return None
    return Flow(
        protocol=protocol,
        source=source,
        destination=destination,
        source_port=row.source_port,
        destination_port=row.port,
    )
