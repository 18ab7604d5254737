"""A lab's router outside the cluster: BIRD in the client's namespace, which learns by BGP what nodes announce.

Life: ``start`` is called once, before the nodes' agents start; nodes that come later find it, as it takes sessions from
any address of the underlay. What it learned is in the client's kernel, so that the client reaches addresses of services
(and pods) as a host behind a real fabric would. It ends with the lab, like everything in the lab's namespaces.
"""

from __future__ import annotations

import shutil
from ipaddress import ip_address

from pycni.kernel import netns as kernel_netns
from pycni.lab import inside, netns, processes, topology
from pycni.lab.processes import ProcessId
from pycni.lab.state import LabState
from pycni.lab.topology import LabError, LabSpec
from pycni.wire import rtnl

ASN = 64600
NODES_ASN = 64512


def start(spec: LabSpec, state: LabState) -> ProcessId:
    """Start it. Raises LabError without BIRD."""
    program = shutil.which("bird")
    if program is None:
        raise LabError("--bgp: there is no BIRD (Debian: bird2) on this machine", usage=True)
    folder = state.folder / "router"
    folder.mkdir()
    file = folder / "bird.conf"
    file.write_text(configuration(spec))
    words = [program, "-f", "-c", str(file), "-s", str(folder / "bird.ctl"), "-P", str(folder / "bird.pid")]
    prefix = kernel_netns.exec_prefix(topology.client_namespace(spec.name))
    return processes.spawn([*prefix, *words], folder / "bird.log", processes.environment(spec.name))


def configuration(spec: LabSpec) -> str:
    """For BIRD 2: sessions with whoever comes from the underlay, the best routes into the kernel, nothing announced."""
    lines = ["router id 192.0.2.1;", "protocol device { }", "protocol direct { ipv4; ipv6; }"]
    for family in spec.families:
        lines += [
            f"protocol kernel kernel_{family.label} {{",
            "  merge paths on;",
            f"  {family.label} {{ export where source = RTS_BGP; }};",
            "}",
        ]
    family = spec.families[0]
    channels = " ".join(f"{item.label} {{ import all; export none; }};" for item in spec.families)
    lines += [
        "protocol bgp nodes {",
        f"  local {topology.client_address(family).ip} as {ASN};",
        f"  neighbor range {topology.client_address(family).network} as {NODES_ASN};",
        '  dynamic name "node";',
        "  graceful restart on;",
        f"  {channels}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def flags(spec: LabSpec) -> dict[str, str]:
    """Flags of agents that have it for a neighbour."""
    return {
        "bgp-engine": spec.bgp,
        "peer-router-ips": str(topology.client_address(spec.families[0]).ip),
        "peer-router-asns": str(ASN),
        "cluster-asn": str(NODES_ASN),
        "advertise-external-ip": "true",
        "advertise-loadbalancer-ip": "true",
    }


def known(spec: LabSpec) -> set[str]:
    """Destinations it has learned. Raises KernelError."""
    with netns.socket_in(topology.client_namespace(spec.name)) as sock:
        return {
            f"{ip_address(route.destination)}/{route.prefix_len}"
            for family in spec.families
            for route in map(
                rtnl.parse_route, sock.dump(rtnl.dump_routes(int(family), protocol=inside.RTPROT_BIRD))
            )
        }
