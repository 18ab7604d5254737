"""The iptables rules around IPVS, as lines of ``iptables-save``. Pure: a function of facts and options.

The number of rules does not depend on the number of services: what differs from service to service is in ipsets.

    mangle PREROUTING, OUTPUT  source ranges; marks for firewall-mark virtual servers and verdicts; silence (DROP)
    nat PREROUTING, OUTPUT     which connections are to be masqueraded (a bit of the connection's mark)
    filter INPUT               refusals (REJECT); what else is sent to a virtual address
    IPVS                       LOCAL_IN after filter; LOCAL_OUT after nat
    mangle POSTROUTING         our packet marks are taken off again; segment sizes of direct return
    nat POSTROUTING            masquerade

The packet's mark belongs to IPVS, which compares all 32 bits of it; so masquerading is noted on the connection, with
the same bit (``facts.masquerade_mark``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pycni.model.family import Family, Network
from pycni.model.service import NodeFacts
from pycni_proxy.ipvs import names
from pycni_proxy.ipvs.options import IpvsOptions

Chains = Mapping[str, list[str]]
TABLES = ("mangle", "nat", "filter")
RuleKey = tuple[Family, str]
Rules = tuple[str, ...]
"""Lines ``-A CHAIN ...``, chains sorted by name, each chain's lines in order."""

_DIRECT = f"{names.OURS | names.DIRECT_BIT:#x}/{names.OURS_MASK | names.DIRECT_BIT:#x}"
_NEW = "-m conntrack --ctstate NEW"


def compile_rules(facts: NodeFacts, options: IpvsOptions) -> dict[RuleKey, Rules]:
    """The rules of every table and family of this node."""
    found: dict[RuleKey, Rules] = {}
    for family in facts.families:
        if family in options.families:
            found[family, "mangle"] = _flat(_mangle(family, facts, options))
            found[family, "nat"] = _flat(_nat(family, facts))
            found[family, "filter"] = _flat(_filter(family, options))
    return found


def normalised(lines: Iterable[str]) -> Rules:
    """Of the lines of one table in ``iptables-save``, ours: chains ``PYCNI-*`` and what leads to them."""
    chains: dict[str, list[str]] = {}
    for line in lines:
        words = line.split(" ", 2)
        if words[0] != "-A" or len(words) < 3:
            continue
        if words[1].startswith(names.CHAIN_PREFIX) or f"-j {names.CHAIN_PREFIX}" in line:
            chains.setdefault(words[1], []).append(words[2])
    return _flat(chains)


def _flat(chains: Chains) -> Rules:
    return tuple(f"-A {chain} {rule}" for chain in sorted(chains) for rule in chains[chain])


def _mangle(family: Family, facts: NodeFacts, options: IpvsOptions) -> Chains:
    ours = f"{names.OURS:#x}/{names.OURS_MASK:#x}"
    addresses = [_in(family, names.IPVS_IPS, "dst"), _in(family, names.LOCAL_IP, "dst")]
    nowhere = [
        f"-d {network} {_out(family, names.IPVS_IPS, 'dst')} {_NEW} -j DROP"
        for network in _of(family, facts.service_networks)
    ]
    inside = [f"-s {network} -j PYCNI-INSIDE" for network in _of(family, facts.cluster_networks)]
    at_node = _in(family, names.NODE_IP, "dst")
    # Both headers of IPv6 are 20 bytes longer: the packet's and the tunnel's.
    mss = options.direct_mss - (0 if family is Family.V4 else 40)
    return {
        "PREROUTING": ["-j PYCNI-PRE"],
        "OUTPUT": ["-j PYCNI-OUT"],
        "POSTROUTING": ["-j PYCNI-POST"],
        "PYCNI-PRE": [*(f"{match} -g PYCNI-FROM-ANY" for match in addresses), *nowhere],
        "PYCNI-OUT": [
            # Seen again after IPVS translated it: the mark that brought it here would bring it here for ever.
            f"-m mark --mark {_DIRECT} -j MARK --set-xmark 0x0/0xffffffff",
            *(f"{match} -g PYCNI-FROM-NODE" for match in addresses),
            *nowhere,
        ],
        "PYCNI-FROM-ANY": ["-j PYCNI-FRONT", "-i lo -j PYCNI-INSIDE", *inside, "-j PYCNI-VERDICT"],
        "PYCNI-FROM-NODE": ["-j PYCNI-FRONT", "-j PYCNI-INSIDE", "-j PYCNI-VERDICT"],
        "PYCNI-FRONT": [
            f"{_in(family, names.LOAD_BALANCER_FW, 'dst,dst')} -j PYCNI-RANGES",
            _map(family, names.MARK),
            f"{at_node} {_map(family, names.NODE_MARK)}",
        ],
        "PYCNI-RANGES": [
            f"{_in(family, names.SOURCE_CIDR, 'dst,dst,src')} -j RETURN",
            f"{_in(family, names.SOURCE_IP, 'dst,dst,src')} -j RETURN",
            "-j DROP",
        ],
        "PYCNI-INSIDE": [_map(family, names.INSIDE), f"{at_node} {_map(family, names.NODE_INSIDE)}"],
        "PYCNI-VERDICT": [f"{_verdict(names.DROP_MARK)} -j DROP"],
        "PYCNI-POST": [
            f"-p tcp {_in(family, names.DIRECT, 'src')} -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss {mss}",
            f"-m mark --mark {ours} -j MARK --set-xmark 0x0/0xffffffff",
        ],
    }


def _nat(family: Family, facts: NodeFacts) -> Chains:
    bit = f"{facts.masquerade_mark:#x}"
    masquerade = "-j PYCNI-MASQUERADE"
    cluster = _in(family, names.CLUSTER_IP, "dst,dst")
    networks = _of(family, facts.cluster_networks)
    chains = {
        "PREROUTING": ["-j PYCNI-SERVICES"],
        "OUTPUT": ["-j PYCNI-OWN"],
        "POSTROUTING": ["-j PYCNI-POSTROUTING"],
        "PYCNI-OWN": [
            *(
                f"{_in(family, name, 'dst,dst')} {masquerade}"
                for name in (names.EXTERNAL_IP_LOCAL, names.LOAD_BALANCER_LOCAL)
            ),
            # A route to one's own address gives that address as source: nobody could answer to it.
            f"{_in(family, names.IPVS_IPS, 'src')} {cluster} {masquerade}",
            f"{_in(family, names.NODE_IP, 'dst')} -j PYCNI-OWN-PORTS",
            "-j PYCNI-SERVICES",
        ],
        "PYCNI-OWN-PORTS": _ports(family, names.NODE_PORT_LOCAL, masquerade),
        "PYCNI-SERVICES": [
            *(
                f"{_in(family, name, 'dst,dst')} {masquerade}"
                for name in (names.EXTERNAL_IP, names.LOAD_BALANCER)
            ),
            f"{_in(family, names.NODE_IP, 'dst')} -j PYCNI-NODE-PORTS",
        ],
        "PYCNI-NODE-PORTS": _ports(family, names.NODE_PORT, masquerade),
        "PYCNI-MASQUERADE": [f"-j CONNMARK --set-xmark {bit}/{bit}"],
        "PYCNI-POSTROUTING": [
            f"-m connmark --mark {bit}/{bit} -j MASQUERADE --random-fully",
            f"{_in(family, names.LOOP_BACK, 'dst,dst,src')} -j MASQUERADE --random-fully",
        ],
    }
    if facts.masquerade_all:
        chains["PYCNI-SERVICES"].insert(0, f"{cluster} {masquerade}")
    elif networks:
        chains["PYCNI-SERVICES"].insert(0, f"{cluster} -j PYCNI-OUTSIDERS")
        chains["PYCNI-OUTSIDERS"] = [*(f"-s {network} -j RETURN" for network in networks), masquerade]
    return chains


def _filter(family: Family, options: IpvsOptions) -> Chains:
    silent = "icmp-port-unreachable" if family is Family.V4 else "icmp6-port-unreachable"
    icmp = "icmp" if family is Family.V4 else "ipv6-icmp"
    mark = _verdict(names.REJECT_MARK)
    known = [_in(family, name, "dst,dst") for name in names.FRONTENDS]
    accept: list[str] = []
    ports: Chains = {}
    if options.permit_all:
        accept = [f"{match} -j ACCEPT" for match in (*known, f"-m mark --mark {_DIRECT}")]
        accept.append(f"{_in(family, names.NODE_IP, 'dst')} -j PYCNI-NODE-PORTS")
        both = (names.NODE_PORT, names.NODE_PORT_LOCAL)
        ports = {"PYCNI-NODE-PORTS": [rule for sets in both for rule in _ports(family, sets, "-j ACCEPT")]}
    return {
        **ports,
        "INPUT": ["-j PYCNI-INPUT"],
        "PYCNI-INPUT": [
            f"-p tcp {mark} -j REJECT --reject-with tcp-reset",
            f"{mark} -j REJECT --reject-with {silent}",
            *accept,
            f"{_in(family, names.IPVS_IPS, 'dst')} {_NEW} -j PYCNI-OTHERS",
        ],
        "PYCNI-OTHERS": [
            f"-m mark --mark {_DIRECT} -j RETURN",
            *(f"{match} -j RETURN" for match in known),
            f"{_in(family, names.LOCAL_IP, 'dst')} -j RETURN",
            f"-p {icmp} -j RETURN",
            "-p tcp -j REJECT --reject-with tcp-reset",
            f"-j REJECT --reject-with {silent}",
        ],
    }


def _verdict(mark: int) -> str:
    """A verdict's mark; the bit that only routes the packet here does not matter."""
    return f"-m mark --mark {mark:#x}/{0xFFFFFFFF & ~names.DIRECT_BIT:#x} {_NEW}"


def _ports(family: Family, sets: Mapping[int, str], target: str) -> list[str]:
    return [
        f"-p {protocol} {_in(family, name, 'dst,dst' if protocol == 'sctp' else 'dst')} {target}"
        for protocol, name in zip(("tcp", "udp", "sctp"), sets.values(), strict=True)
    ]


def _in(family: Family, base: str, sides: str) -> str:
    return f"-m set --match-set {names.set_name(base, family)} {sides}"


def _out(family: Family, base: str, sides: str) -> str:
    return f"-m set ! --match-set {names.set_name(base, family)} {sides}"


def _map(family: Family, base: str) -> str:
    return f"-j SET --map-set {names.set_name(base, family)} dst,dst --map-mark"


def _of(family: Family, networks: Iterable[Network]) -> list[Network]:
    return sorted({network for network in networks if Family.of(network) is family})
