"""Lines of the agents' ``/drops`` as flows. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from pycni.traffic.model import DENIED, Flow, Listening, Lost

_NAMES = {"1": "ICMP", "58": "ICMPv6", "0": "ARP"}


def denial(line: bytes, now: float = 0.0) -> Flow | Lost | Listening:
    """What a line says; ``now``: the time of those that have none."""
    row: dict[str, Any] = msgspec.json.decode(line)
    node = row.get("node", "")
    if "listening" in row:
        return Listening(time=now, node=node, what="denials")
    if "error" in row or "trouble" in row:
        return Lost(time=now, node=node, what=f"denials: {row.get('error') or row.get('trouble')}")
    if "lost" in row:
        return Lost(time=now, node=node, what="denials: more than rules tell of", count=row["lost"])
    return Flow(
        time=row["time"],
        node=node,
        event=DENIED,
        verdict=DENIED,
        protocol=_NAMES.get(row["protocol"], row["protocol"]),
        source=row["source"],
        source_port=row["source_port"],
        destination=row["destination"],
        port=row["port"],
        policy=row["policy"],
        direction=row["direction"],
        by=row["by"],
        more=row["more"],
    )
