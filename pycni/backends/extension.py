"""extension: shell commands of people's own carry the packets; keys, variables and lease records are flannel's.

    PreStartupCommand    before the lease; what it writes is published (a string in BackendData)
    PostStartupCommand   once the lease is held, before pods
    SubnetAddCommand     for every peer; standard input: what the peer published
    SubnetRemoveCommand  the same, when a peer goes
    ShutdownCommand      when the agent is stopped, or the network gets another backend

The commands are run by ``kernel/extension``, which remembers what was done. Here is only what follows from the leases.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from pycni.backends.base import PeerEntries, Refusal, Site, own_addresses, peer_address
from pycni.model.extension import Environment, ExtensionKey, ExtensionPeer
from pycni.model.fabric import Link
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Node
from pycni.wire import typed


class Extension:
    """``Backend.Type`` "extension"."""

    name = "extension"

    def overhead(self, _family: Family, _conf: NetConf | None = None) -> int:
        """What commands add to a packet only their author knows: Backend.MTU is then the pods'."""
        return 0

    def published(self, node: Node, conf: NetConf) -> LeaseAttrs:
        """Public addresses, and what PreStartupCommand wrote, if there is one."""
        for family in conf.families:
            own_addresses(node, conf, family)
        told = bool(conf.backend.commands.pre_startup)
        data = msgspec.json.encode(node.extension_output) if told else None
        return LeaseAttrs(
            public_ip=node.public_ip if conf.network is not None else None,
            public_ipv6=node.public_ipv6 if conf.network6 is not None else None,
            backend_type=self.name,
            backend_data=data if conf.network is not None else None,
            backend_v6_data=data if conf.network6 is not None else None,
        )

    def links(self, _site: Site) -> Mapping[str, Link]:
        """No devices of ours."""
        return {}

    def peer(self, lease: Lease, family: Family, site: Site) -> PeerEntries | Refusal:
        """One row, with the first family of the lease."""
        public = peer_address(lease, family, site, self.name)
        if isinstance(public, Refusal):
            return public
        data = _text(lease.attrs.data(family))
        if isinstance(data, Refusal):
            return data
        commands = site.conf.backend.commands
        first = next(each for each in site.conf.families if lease.of(each) is not None)
        if family is not first or not (commands.subnet_add or commands.subnet_remove):
            return PeerEntries()
        peer = ExtensionPeer(
            add=commands.subnet_add,
            remove=commands.subnet_remove,
            environment=environment(site.node, site.conf, lease, lease.attrs),
            data=data,
        )
        return PeerEntries(extension=((ExtensionKey(lease.key), peer),))


def environment(node: Node, conf: NetConf, lease: Lease | None, attrs: LeaseAttrs | None) -> Environment:
    """The variables: a node's subnets and addresses (ours, or a peer's), the network, our external interface.

    Empty ones are what there is not; without a lease there are no subnets.
    """
    subnet, subnet6 = (lease.subnet, lease.subnet6) if lease is not None else (None, None)
    public, public6 = (
        (attrs.public_ip, attrs.public_ipv6) if attrs is not None else (node.public_ip, node.public_ipv6)
    )
    values: dict[str, object] = {
        "NETWORK": conf.network,
        "IPV6NETWORK": conf.network6,
        "SUBNET": subnet,
        "IPV6SUBNET": subnet6,
        "PUBLIC_IP": public,
        "PUBLIC_IPV6": public6,
        "EXTERNAL_INTERFACE": node.underlay.name,
    }
    return tuple((name, "" if value is None else str(value)) for name, value in values.items())


def _text(data: bytes | None) -> str | Refusal:
    """What a peer published; "" when nothing."""
    if data is None:
        return ""
    try:
        return typed.decode(data, str)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return Refusal(f"its backend data {data[:80].decode('utf-8', 'replace')!r}: {str(error)[:200]}")
