"""The state of the address pools for people: every reservation with its pod, and everything irregular.

Pure; ``pycnictl ipam show`` prints `rows`, ``pycnictl ipam check`` prints `audit`. Judgement is ``collect``'s, at one
moment and without waiting for a second look: what is under way right now may show as a leak that is none.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import msgspec

from pycni.ipam.collect import (
    Held,
    Verdict,
    View,
    judge_endpoint,
    judge_reservation,
    newest_by_inode,
    unclaimed,
    unreserved,
)
from pycni.model.endpoint import Endpoint, Owner
from pycni.model.family import Address

Kind = Literal["leaked-endpoint", "leaked-reservation", "unverified-reservation", "unreserved", "duplicate"]
"""Endpoint whose pod is gone; reservation nobody uses; reservation nothing is known of (made by another plugin);
address of a running pod without reservation; address two endpoints have."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One reservation. Empty pod names: attached by something that told none, or before pycni."""

    network: str
    address: str
    container_id: str
    ifname: str
    state: str
    """The endpoint's state; ``unrecorded`` without endpoint, ``torn`` without owner."""
    pod_namespace: str
    pod_name: str
    data_dir: str


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One irregularity: what kind, about whom, and why it is thought so."""

    kind: Kind
    network: str
    address: str
    """Empty when the endpoint has none; several are separated by commas."""
    container_id: str
    ifname: str
    data_dir: str
    why: str


def rows(reservations: Collection[Held], endpoints: Collection[Endpoint]) -> tuple[Row, ...]:
    """Every reservation with what is known of its owner, by network and address."""
    by_owner = {endpoint.owner: endpoint for endpoint in endpoints}
    ordered = sorted(
        reservations, key=lambda held: (held.owner.network, held.address.version, int(held.address))
    )
    return tuple(_row(held, by_owner.get(held.owner)) for held in ordered)


def _row(held: Held, endpoint: Endpoint | None) -> Row:
    without = "unrecorded" if held.owner.container_id else "torn"
    return Row(
        network=held.owner.network,
        address=str(held.address),
        container_id=held.owner.container_id,
        ifname=held.owner.ifname,
        state=without if endpoint is None else endpoint.state,
        pod_namespace="" if endpoint is None else endpoint.pod_namespace,
        pod_name="" if endpoint is None else endpoint.pod_name,
        data_dir=held.data_dir,
    )


def audit(
    reservations: Collection[Held],
    endpoints: Collection[Endpoint],
    view: View,
    *,
    busy: Collection[Owner] = (),
) -> tuple[Finding, ...]:
    """Everything irregular at this moment; owners with an operation under way are left out."""
    owners_busy = frozenset(busy)
    found = [finding for finding in _endpoints(endpoints, view) if _owner(finding) not in owners_busy]
    for held in unclaimed(reservations, endpoints):
        verdict, why = judge_reservation(held, view)
        if held.owner in owners_busy or verdict is Verdict.ALIVE:
            continue
        kind: Kind = "leaked-reservation" if verdict is Verdict.GONE else "unverified-reservation"
        found.append(_finding(kind, held.owner, str(held.address), held.data_dir, why))
    for endpoint, address in unreserved(reservations, endpoints, view):
        if endpoint.owner not in owners_busy:
            why = "a running pod has the address, but its reservation file is missing"
            found.append(_finding("unreserved", endpoint.owner, str(address), endpoint.data_dir, why))
    return tuple(found)


def _endpoints(endpoints: Collection[Endpoint], view: View) -> list[Finding]:
    found: list[Finding] = []
    first: dict[tuple[str, Address], Endpoint] = {}
    newest = newest_by_inode(endpoints, view.boot_id)
    for endpoint in endpoints:
        verdict, why = judge_endpoint(endpoint, view, newest)
        if verdict is Verdict.GONE:
            shown = ", ".join(str(interface.ip) for interface in endpoint.addresses)
            found.append(_finding("leaked-endpoint", endpoint.owner, shown, endpoint.data_dir, why))
        for interface in endpoint.addresses:
            other = first.setdefault((endpoint.network, interface.ip), endpoint)
            if other is not endpoint:
                why = f"container {other.container_id} interface {other.ifname} has it too"
                found.append(_finding("duplicate", endpoint.owner, str(interface.ip), endpoint.data_dir, why))
    return found


def _owner(finding: Finding) -> Owner:
    return Owner(finding.network, finding.container_id, finding.ifname)


def _finding(kind: Kind, owner: Owner, address: str, data_dir: str, why: str) -> Finding:
    return Finding(
        kind=kind,
        network=owner.network,
        address=address,
        container_id=owner.container_id,
        ifname=owner.ifname,
        data_dir=data_dir,
        why=why,
    )
