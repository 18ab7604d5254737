"""Probes and pings that run in guests, behind the interface of those that run here.

Life of a run: every guest opens its hosts' sockets and tells where they are reached; all of them learn of all; each
tries the checks that start at its own hosts while it answers the others, and sends its reasons back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from pycni.lab.checks import Check
from pycni.lab.probe import Doors
from pycni.lab.stations import Host
from pycni.lab.topology import LabError
from pycni.lab.traffic import TrafficReport
from pycni.lab.uml_calls import Ping, Request, Round, Wait, raise_failure
from pycni.lab.uml_channel import FAILURE, REQUEST, Channel
from pycni.wire import typed

T = TypeVar("T")


class FarProbes:
    """A prober in every guest. A context manager: they end with it."""

    def __init__(
        self, groups: Mapping[str, Sequence[Host]], openers: Mapping[str, Callable[[], Channel]]
    ) -> None:
        """``groups``: hosts by node; ``openers`` ask a node's guest for a prober."""
        self._homes = {host.name: node for node, hosts in groups.items() for host in hosts}
        self._channels: dict[str, Channel] = {}
        self._silent: dict[str, str] = {}
        """Why a node has no prober."""
        everything: list[Doors] = []
        try:
            for node, opener in openers.items():
                try:
                    self._channels[node] = opener()
                except LabError as exc:
                    self._silent[node] = str(exc)
                    dead = [
                        (host.name, family, str(exc)) for host in groups[node] for family in host.addresses
                    ]
                    everything.append(Doors([], dead))
            everything += [_value(channel, Doors) for channel in self._channels.values()]
        except BaseException:
            self._close()
            raise
        self._doors = Doors(
            [door for doors in everything for door in doors.open],
            [door for doors in everything for door in doors.broken],
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the probers."""
        self._close()

    def run(self, checks: Iterable[Check]) -> dict[Check, str]:
        """Try all checks. The value is "" for success, else why it failed, in words. Raises LabError."""
        asked = tuple(checks)
        shares: dict[str, list[Check]] = {node: [] for node in self._channels}
        reasons: dict[Check, str] = {}
        for check in asked:
            node = self._homes[check.source]
            if node in self._silent:
                reasons[check] = self._silent[node]
            else:
                shares[node].append(check)
        for node, share in shares.items():
            round_ = Round(others=self._doors, checks=tuple(share))
            _send(self._channels[node], round_)
        for node, share in shares.items():
            reasons.update(zip(share, _value(self._channels[node], list[str]), strict=True))
        return {check: reasons[check] for check in asked}

    def _close(self) -> None:
        for channel in self._channels.values():
            channel.close()


class FarTraffic:
    """A stream of pings from a guest. A context manager."""

    def __init__(
        self, opener: Callable[[Request], Channel], namespace: str, address: str, interval: float
    ) -> None:
        """``opener`` sends a request to the guest; ``namespace`` is a path in it; ``interval`` in seconds."""
        self._opener = opener
        self._request = Ping(namespace=namespace, address=address, interval=interval)
        self._report: TrafficReport | None = None

    def __enter__(self) -> Self:
        """Start sending. Raises LabError, KernelError, OSError."""
        self._channel = self._opener(self._request)
        try:
            _value(self._channel, bool)
        except BaseException:
            self._channel.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop sending; see ``report``."""
        try:
            if value is None:
                _send(self._channel, Wait(count=0, timeout=0))
                self._report = _value(self._channel, TrafficReport)
        finally:
            self._channel.close()

    def wait_answered(self, count: int, timeout: float = 5.0) -> bool:
        """Wait until ``count`` more answers have come; whether they did."""
        _send(self._channel, Wait(count=count, timeout=timeout))
        return _value(self._channel, bool)

    def report(self) -> TrafficReport:
        """The outcome, once the block has been left."""
        assert self._report is not None, "the block is left first"
        return self._report


def _send(channel: Channel, message: Any) -> None:
    try:
        channel.send(REQUEST, msgspec.json.encode(message))
    except OSError as exc:
        raise LabError(f"a guest went away: {exc.strerror or exc}") from exc


def _value(channel: Channel, kind: type[T]) -> T:
    """The next answer. Raises what went wrong in the guest, LabError."""
    try:
        frame = channel.receive()
    except OSError as exc:
        raise LabError(f"a guest does not answer: {exc.strerror or exc}") from exc
    if frame is None:
        raise LabError("a guest ended the connection")
    if frame[0] == FAILURE:
        raise_failure(frame[1])
    return typed.decode(frame[1], kind)
