"""A lab's guest as a trace sees it: its command server does what is to be done, whether its agent lives or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from pycni.lab.inside_trace import launch
from pycni.lab.topology import LabError
from pycni.lab.uml_calls import raise_failure
from pycni.lab.uml_channel import FAILURE, VALUE, Channel, Frame
from pycni.trace.model import Flow
from pycni.tracing.eyes import Launched, Order
from pycni.tracing.remote import RemoteWatching, begun, patient

if TYPE_CHECKING:
    from pycni.lab.uml import UmlDriver


class GuestNode:
    """See ``tracing.eyes.NodeEyes``."""

    def __init__(self, name: str, driver: UmlDriver, namespaces: Mapping[str, str]) -> None:
        """``namespaces``: by space."""
        self.name = name
        self._driver, self._namespaces = driver, namespaces
        self.apart = True
        """A guest has a clock of its own."""

    def watch(self, order: Order) -> RemoteWatching:
        """See ``eyes.NodeEyes``. Raises LabError."""
        channel = self._driver.observe(self.name, msgspec.to_builtins(patient(order)), self._namespaces)
        try:
            first = _value(self.name, channel.receive())
            self.apart, ahead = begun(first, self.name)
        except OSError as exc:
            channel.close()
            raise LabError(f"the guest of {self.name} does not answer: {exc.strerror or exc}") from exc
        except BaseException:
            channel.close()
            raise
        return RemoteWatching(self.name, _ChannelLines(self.name, channel), ahead)

    def send(self, space: str, flow: Flow, token: int, size: int = 0) -> Launched:
        """See ``eyes.NodeEyes``. Raises LabError, KernelError, OSError."""
        plain = msgspec.to_builtins(flow)
        return self._driver.call(self.name, launch, self._namespaces, space, plain, token, size)


class _ChannelLines:
    """See ``tracing.remote.Lines``."""

    def __init__(self, name: str, channel: Channel) -> None:
        self._name, self._channel = name, channel
        self.over = False
        self._early = channel.queued()

    def fileno(self) -> int:
        return self._channel.fileno()

    def ready(self) -> Sequence[bytes]:
        frames, self._early = self._early, []
        self._channel.sock.setblocking(False)
        while not self.over:
            try:
                more = self._channel.feed()
            except BlockingIOError:
                break
            except OSError as exc:
                raise LabError(f"the guest of {self._name} does not answer: {exc.strerror or exc}") from exc
            self.over = more is None
            frames += more or []
        return [_value(self._name, frame) for frame in frames]

    def close(self) -> None:
        self._channel.close()


def _value(name: str, frame: Frame | None) -> bytes:
    if frame is None:
        raise LabError(f"the guest of {name} ended the connection")
    if frame[0] == FAILURE:
        raise_failure(frame[1])
    assert frame[0] == VALUE, "a watch answers with values"
    return frame[1]
