"""Leader election by a coordination.k8s.io/v1 Lease: reading it, judging it, writing the next one. Pure.

The rules are client-go's (tools/leaderelection): whoever's name is in the record leads until the record has not changed
for ``leaseDurationSeconds`` of the *observer's* clock; clocks of different machines are never compared. Every write
names the version it replaces, so of two candidates one fails.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from pycni.errors import ConfigError
from pycni.wire.gojson import shorten


class _Meta(msgspec.Struct, rename="camel"):
    resource_version: str | None = None


class _Spec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct):
    metadata: _Meta | None = None
    spec: _Spec | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """What the Lease says."""

    holder: str = ""
    """"" when the last leader gave it back."""
    duration_s: int = 0
    acquired: str = ""
    renewed: str = ""
    transitions: int = 0
    version: str = ""
    """Its resourceVersion."""


class Move(enum.Enum):
    """What a candidate does next."""

    CREATE = "create"
    TAKE = "take"
    RENEW = "renew"
    WAIT = "wait"


_decoder = msgspec.json.Decoder(_Lease)


def decode_record(raw: bytes) -> Record:
    """A Lease object. Raises ConfigError."""
    try:
        lease = _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as exc:
        raise ConfigError("Lease", "JSON", shorten(raw), str(exc) or type(exc).__name__) from None
    spec, meta = lease.spec or _Spec(), lease.metadata or _Meta()
    return Record(
        holder=spec.holder_identity or "",
        duration_s=max(spec.lease_duration_seconds or 0, 0),
        acquired=spec.acquire_time or "",
        renewed=spec.renew_time or "",
        transitions=max(spec.lease_transitions or 0, 0),
        version=meta.resource_version or "",
    )


def next_move(record: Record | None, identity: str, unchanged_s: float) -> Move:
    """What ``identity`` does about a record it has seen unchanged for ``unchanged_s`` seconds."""
    if record is None:
        return Move.CREATE
    if record.holder == identity:
        return Move.RENEW
    if not record.holder or unchanged_s > record.duration_s:
        return Move.TAKE
    return Move.WAIT


def next_lease(
    name: str, namespace: str, record: Record | None, identity: str, *, duration_s: int, now: float
) -> Mapping[str, Any]:
    """The Lease object to write over ``record``; ``identity`` "" gives the lead back. ``now``: epoch seconds."""
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    keeps = record is not None and record.holder == identity
    taken = record is not None and not keeps and identity
    transitions = 0 if record is None else record.transitions + bool(taken)
    metadata = {"name": name, "namespace": namespace}
    if record is not None:
        metadata["resourceVersion"] = record.version
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": identity,
            # Given back: nobody has to wait for it to end.
            "leaseDurationSeconds": duration_s if identity else 1,
            "acquireTime": record.acquired if record is not None and keeps and record.acquired else stamp,
            "renewTime": stamp,
            "leaseTransitions": transitions,
        },
    }
