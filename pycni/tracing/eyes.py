"""What a trace needs of nodes, wherever they are: to look at them, to watch for a probe and to send it.

Life: a lab's nodes are namespaces of this machine (``local``); a cluster's are asked through their agents. ``course``
does not know which. Everything that travels between nodes is a msgspec value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import msgspec

from pycni.kernel.capture import Frame
from pycni.model.space import World
from pycni.trace.cluster import NodeTerms, Objects
from pycni.trace.frames import ALL_BITS
from pycni.trace.live import Pattern
from pycni.trace.model import Flow, Note


class Gathered(NamedTuple):
    """What a trace goes by."""

    world: World
    objects: Objects
    terms: Mapping[str, NodeTerms]
    trouble: str = ""
    """Why nothing is wanted; "" when it is known."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to watch for: probes, by their tokens, or live traffic, by patterns."""

    token: int
    """The probe's 32 random bits."""
    flow: Flow
    """The probe as it leaves its socket."""
    bits: int = ALL_BITS
    """How many of the token's upper bits the probes of this watch have in common."""
    more: tuple[Flow, ...] = ()
    """Further probes' flows, where answers are known by their ports; of live traffic: as it is named elsewhere."""
    deep: bool = True
    """Tell of rules met, of drops and of connections, too."""
    patterns: tuple[Pattern, ...] = ()
    """Of live traffic; (): probes are watched for."""
    seconds: float = 5.0
    """The longest a watch lasts, whatever happens to who asked for it."""


class Report(NamedTuple):
    """What was seen and said since the last look."""

    frames: tuple[Frame, ...] = ()
    notes: tuple[Note, ...] = ()


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A probe that was sent, or was to be."""

    flow: Flow
    refused: str = ""
    """Why it did not leave its socket."""


class Watching(Protocol):
    """One node under watch. Closing it leaves nothing behind."""

    def filenos(self) -> Sequence[int]:
        """To poll for reading."""

    def drain(self) -> Report:
        """What has come in; never waits. Raises KernelError, OSError."""

    def close(self) -> None:
        """Stop."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class NodeEyes(Protocol):
    """One node."""

    @property
    def name(self) -> str:
        """The node's."""

    @property
    def apart(self) -> bool:
        """Whether its clock is another one than ours; known once it is watched."""

    def watch(self, order: Order) -> Watching:
        """Begin to watch all spaces; ready when this returns. Raises KernelError, OSError."""

    def send(self, space: str, flow: Flow, token: int, size: int = 0) -> Launched:
        """Send one probe from a space, bound to the flow's source. Raises OSError (no socket for it can be had).

        ``size``: bytes of the IP packet, which must not be taken apart on its way; 0: as small as it comes.
        """


class Eyes(Protocol):
    """All nodes a trace may lead over."""

    def gather(self) -> Gathered:
        """Look at everything. Raises PycniError."""

    @property
    def nodes(self) -> Mapping[str, NodeEyes]:
        """Those that can be watched."""
