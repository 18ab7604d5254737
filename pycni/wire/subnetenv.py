"""flannel's subnet.env: what a node tells its CNI plugins, and what it remembers over a restart.

Written as flannel writes it (IPv4 lines, IPv6 lines, MTU, masquerading; lines of families that are off are left
out). ``FLANNEL_SUBNET`` is the *first address* of the subnet with the subnet's length. Read as the shell-like file
it is: comments, ``export`` and quotes are allowed; networks may be a comma-separated list, as flannel's Kubernetes
mode writes it.
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Network, IPv6Network

from pycni.errors import ConfigError
from pycni.model.family import Family, Network
from pycni.model.podnet import PodNetwork
from pycni.wire.gojson import is_number

OBJ = "subnet.env"
_NAMES = {
    Family.V4: ("FLANNEL_NETWORK", "FLANNEL_SUBNET"),
    Family.V6: ("FLANNEL_IPV6_NETWORK", "FLANNEL_IPV6_SUBNET"),
}


def encode_subnet_env(net: PodNetwork) -> str:
    """The file's text, ending in a newline."""
    lines = []
    for family, (network_name, subnet_name) in _NAMES.items():
        subnet = net.subnet(family)
        if subnet is None:
            continue
        networks = ",".join(str(network) for network in net.networks if Family.of(network) is family)
        lines += [
            f"{network_name}={networks}",
            f"{subnet_name}={subnet.network_address + 1}/{subnet.prefixlen}",
        ]
    lines += [f"FLANNEL_MTU={net.mtu}", f"FLANNEL_IPMASQ={'true' if net.ip_masq else 'false'}"]
    return "\n".join(lines) + "\n"


def decode_subnet_env(text: str) -> PodNetwork:
    """What the file says; what it leaves out is empty, 0 or False. Raises ConfigError for a value that is none."""
    values = _variables(text)
    subnets: list[Network] = []
    networks: list[Network] = []
    for family, (network_name, subnet_name) in _NAMES.items():
        if values.get(subnet_name):
            subnets.append(_network(family, subnet_name, values[subnet_name]))
        parts = (part.strip() for part in values.get(network_name, "").split(","))
        networks.extend(_network(family, network_name, part) for part in parts if part)
    mtu = values.get("FLANNEL_MTU", "0") or "0"
    if not is_number(mtu) or len(mtu) > 5 or int(mtu) > 65535:
        raise ConfigError(OBJ, "FLANNEL_MTU", mtu, "expected 0..65535")
    masq = values.get("FLANNEL_IPMASQ", "false") or "false"
    if masq not in ("true", "false"):
        raise ConfigError(OBJ, "FLANNEL_IPMASQ", masq, "expected true or false")
    return PodNetwork(subnets=tuple(subnets), networks=tuple(networks), mtu=int(mtu), ip_masq=masq == "true")


def previous_subnets(text: str) -> tuple[IPv4Network | None, IPv6Network | None]:
    """The subnets the node had, for ``LeaseSource.acquire``. Raises as ``decode_subnet_env``."""
    net = decode_subnet_env(text)
    subnet, subnet6 = net.subnet(Family.V4), net.subnet(Family.V6)
    assert subnet is None or isinstance(subnet, IPv4Network)
    assert subnet6 is None or isinstance(subnet6, IPv6Network)
    return subnet, subnet6


def _variables(text: str) -> dict[str, str]:
    """``NAME=value`` lines; other lines mean nothing to us."""
    values = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        if not equals or name.startswith("#"):
            continue
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[name.strip()] = value
    return values


def _network(family: Family, name: str, text: str) -> Network:
    """A network, or the network around an address with a length."""
    try:
        if "/" not in text or "%" in text:
            raise ValueError(text)
        found = ipaddress.ip_network(text, strict=False)
        if Family.of(found) is not family:
            raise ValueError(text)
    except ValueError:
        reason = f"expected an {'IPv4' if family is Family.V4 else 'IPv6'} address with its prefix length"
        raise ConfigError(OBJ, name, text, reason) from None
    return found
