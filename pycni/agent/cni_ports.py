"""What the CNI operations need from the rest of the agent, as Protocols, so that each can be replaced in a test."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ipaddress import IPv4Interface, IPv6Interface
from typing import Protocol

from pycni.attach.plan import AttachPlan
from pycni.attach.result import AttachedLinks
from pycni.ipam.allocate import Allocation, RangeSets, SetStatus
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Address

Interface = IPv4Interface | IPv6Interface


class PodDriver(Protocol):
    """The kernel's side of attachments (``kernel/pod``)."""

    def attach(self, plan: AttachPlan, netns_fd: int) -> AttachedLinks:
        """Make it true; what was made is taken back when it fails. KernelError EEXIST: the interface is there."""

    def detach(
        self,
        owner: Owner,
        netns_fd: int | None,
        addresses: Iterable[Interface],
        on_gone: Callable[[], None] | None,
    ) -> bool:
        """Cut the pod off before this returns, delete its devices after it, then call ``on_gone``.

        ``on_gone`` comes on any thread, at once when there is nothing to delete, not at all when this raises. With a
        namespace, an interface of the owner's name in it goes too, whoever made it. What is missing is success.
        """

    def hurry(self) -> None:
        """Somebody waits for deletions that are under way."""

    def resync(self, plans: Iterable[AttachPlan]) -> list[str]:
        """Take over attachments of an earlier run and repair what all of them share; says what it repaired."""

    def check(self, plan: AttachPlan, netns_fd: int) -> Sequence[str]:
        """Everything in which the kernel differs from the plan, in words."""


class Ipam(Protocol):
    """The reservations of one network in one data directory (``ipam/pool``)."""

    @property
    def data_dir(self) -> str:
        """The directory."""

    def reserve(
        self, owner: Owner, range_sets: RangeSets, requested: Sequence[Address] = ()
    ) -> tuple[Allocation, ...]:
        """One address from each set, the same ones for the same owner. IpamError."""

    def release(self, owner: Owner) -> tuple[Address, ...]:
        """Free what the owner holds; nothing is fine. IpamError."""

    def addresses(self, owner: Owner) -> tuple[Address, ...]:
        """What the owner holds."""

    def owners(self) -> Mapping[Owner, tuple[Address, ...]]:
        """Everybody who holds something."""

    def status(self, range_sets: RangeSets) -> tuple[SetStatus, ...]:
        """Free and used addresses of each set, without waiting."""


IpamFactory = Callable[[str, str], Ipam]
"""The pool of (data directory, network); "": the agent's default directory."""


class Endpoints(Protocol):
    """The node's record of attachments (``ipam/endpoints``)."""

    def put(self, endpoint: Endpoint) -> None:
        """Store, replacing the owner's former one."""

    def get(self, owner: Owner) -> Endpoint | None:
        """The owner's endpoint."""

    def remove(self, owner: Owner) -> Endpoint | None:
        """Forget it."""

    def all(self) -> tuple[Endpoint, ...]:
        """Every endpoint."""


class EndpointGate(Protocol):
    """Something that has to be in place before a pod's first packet and taken away after its last (policy)."""

    def admit(self, endpoint: Endpoint, netns_fd: int | None = None) -> None:
        """Returns when it is in place; an error makes ADD fail. Addresses and MAC are known, devices not made yet.

        ``netns_fd``: the pod's namespace, the caller's to close; None: not known.
        """

    def attached(self, endpoint: Endpoint) -> None:
        """The pod has its devices and may send; an error makes ADD fail and the attachment be undone."""

    def gone(self, endpoint: Endpoint) -> None:
        """The endpoint is cut off; also called for one that was never admitted."""
