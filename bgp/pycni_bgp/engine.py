"""What a BGP engine is: something that holds sessions and carries routes, told what it shall do by values. Pure.

Life: the component puts a ``Plan`` together whenever sessions, policy or announcements changed and hands it to the
engine, which brings its sessions there without disturbing those that stay as they are. An engine may keep learned
routes in the kernel itself (BIRD does). It is a process of its own, supervised: when it ends, routes stay, neighbours
keep theirs (graceful restart), and it is started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from pycni.errors import PycniError
from pycni.model.family import Family
from pycni_bgp.annotations import NodeSettings
from pycni_bgp.model import PORT, Attributes, Local, Neighbour, Prefix
from pycni_bgp.settings import BgpSettings

LEAST_S = 3.0
"""Some neighbours say that they have told everything before they have (seen with FRR 8.4): not believed so early."""


class BgpError(PycniError):
    """An engine does not answer, or refuses. Trying again later can succeed."""

    transient = True


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All an engine has to know."""

    router_id: bytes
    """Four bytes."""
    settings: BgpSettings
    own: NodeSettings
    sessions: Mapping[bytes, Neighbour]
    local: Mapping[Prefix, Local]
    """What this node announces."""
    draining: bool = False
    port: int = PORT
    """To listen on."""
    uplink: str = ""
    """The external interface."""

    def local_address(self, neighbour: Neighbour) -> bytes:
        """Where this node's end of a session has to be; empty leaves it to the kernel."""
        if neighbour.local_address:
            return neighbour.local_address
        same = (item for item in self.own.listen if Family.of_packed(item) is neighbour.family)
        return next(same, b"")


class Session(NamedTuple):
    """A session as the engine sees it."""

    address: bytes
    state: str
    """Idle, Connect, Active, OpenSent, OpenConfirm or Established (RFC 4271, 8.2.2)."""
    since: str = ""
    """When it came into this state, as the engine says it."""
    error: str = ""
    """What ended it last."""
    imported: int = 0
    exported: int = 0

    @property
    def up(self) -> bool:
        """Established."""
        return self.state == "Established"


class Adjacency(NamedTuple):
    """A neighbour of OSPF."""

    router_id: bytes
    state: str
    """As the engine says it: Full/DR, 2-Way/Other ..."""
    interface: str
    address: str


class Route(NamedTuple):
    """A learned path and what the engine thinks of it."""

    neighbour: bytes
    prefix: Prefix
    attributes: Attributes
    best: bool


class Engine(Protocol):
    """One engine. On one event loop."""

    name: str
    protocol: int
    """rtm_protocol of the routes it keeps, or has kept, in the kernel."""
    leaving: Callable[[], bool]
    """Asked when ``run`` is cancelled: whether neighbours are to forget this node."""

    @property
    def trouble(self) -> str:
        """Why it does not do what it was told last; "" when it does."""

    async def put(self, plan: Plan) -> None:
        """Go by this plan from now on; an engine that is down takes it when it is up.

        Raises ConfigError for what this engine cannot do, BgpError when it refuses.
        """

    async def sessions(self) -> Sequence[Session]:
        """All of them. Raises BgpError."""

    async def learned(self) -> Sequence[Route]:
        """All learned routes. Raises BgpError."""

    def told(self) -> Mapping[bytes, Iterable[str]] | None:
        """Prefixes that neighbours were told of, as text, by neighbour; None: this engine does not say."""

    async def wanted(self) -> Mapping[Prefix, tuple[bytes, ...]] | None:
        """Next hops of what was learned, for the kernel; None: it keeps routes by more than BGP. Raises BgpError."""

    async def adjacencies(self) -> Sequence[Adjacency]:
        """Neighbours of OSPF of both versions. Raises BgpError."""

    async def run(self) -> None:
        """Keep the engine running for ever; cancelled, it ends it and leaves what it learned in the kernel.

        Neighbours keep this node's routes for a while then (graceful restart), unless it is ``leaving``.
        """
