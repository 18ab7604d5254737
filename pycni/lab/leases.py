"""What the leases of a lab's nodes say, read from its etcd: by which backend a node is really reached, for instance."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence

from pycni.errors import PycniError
from pycni.lab import inside, topology
from pycni.lab.node import LabNode
from pycni.lab.topology import LabError, LabSpec
from pycni.model.lease import LeaseAttrs
from pycni.wire.lease import decode_attrs


def leases(spec: LabSpec, nodes: Sequence[LabNode]) -> dict[str, LeaseAttrs]:
    """By node; none for a node without a lease. Raises LabError when etcd does not answer."""
    try:
        listed = keys_below(spec, f"{topology.ETCD_PREFIX}/subnets/")
    except (OSError, PycniError) as exc:
        raise LabError(f"etcd does not list the leases: {exc}") from exc
    found = {}
    by_address = {str(address.ip): node.name for node in nodes for address in node.addresses.values()}
    for value in listed.values():
        attrs = decode_attrs("lease", value)
        name = by_address.get(str(attrs.public_ip)) or by_address.get(str(attrs.public_ipv6))
        if name is not None:
            found[name] = attrs
    return found


def keys_below(spec: LabSpec, prefix: str) -> dict[str, bytes]:
    """All keys of the lab's etcd below a prefix, by its JSON gateway. Raises LabError, OSError, KernelError."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    body = {"key": _coded(prefix), "range_end": _coded(end)}
    status, answer = inside.http(
        topology.fabric_namespace(spec.name),
        str(topology.underlay_address(spec.families[0], 0).ip),
        topology.ETCD_PORT,
        "/v3/kv/range",
        json.dumps(body),
    )
    if status != 200:
        raise LabError(f"{status} {answer.strip()[:200]}")
    return {
        base64.b64decode(item["key"]).decode(): base64.b64decode(item["value"])
        for item in json.loads(answer).get("kvs", ())
    }


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
