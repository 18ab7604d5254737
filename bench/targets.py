"""Every target the project's issues name, and which row of which benchmark, or which test, answers it. Pure.

Life: written by hand when an issue names a target; ``judge`` joins it with a run's rows, ``html`` and the table at the
end of a run show the result. The bounds themselves (``<= 0.9``) stand in the rows.
"""

from __future__ import annotations

from typing import NamedTuple


class Target(NamedTuple):
    """Answered by rows of a benchmark."""

    issue: int
    words: str
    file: str
    """``bench/test_<file>.py``; or ``suite``: the run itself."""
    question: str
    """Of the rows, as in a file name: ``*`` is anything. All of them have to reach their targets."""
    only_told: bool = False
    """The issue asks for the figure and promises nothing."""


class Proven(NamedTuple):
    """No figure: answered by a test."""

    issue: int
    words: str
    test: str


TARGETS = (
    # The pod network.
    Target(2, "ADD+DEL p50 <= 0.9 of bridge + host-local, one at a time", "cni", "(a) ADD+DEL p50, 1 at a time"),
    Target(2, "ADD+DEL p50 <= 0.4 of it with ipMasq, one at a time", "cni", "(b) ADD+DEL p50, 1 at a time"),
    Target(2, "pods/s >= 1.0 of it, eight at a time", "cni", "(a) ??? pods/s, 8 at a time"),
    Target(2, "pods/s >= 2.5 of it with ipMasq, eight at a time", "cni", "(b) ??? pods/s, 8 at a time"),
    Target(2, "processor time per ADD and DEL", "cni", "(?) CPU per ADD+DEL, *", only_told=True),
    Target(2, "vxlan as fast as built by hand (>= 0.97)", "wire", "vxlan, *"),
    Target(2, "host-gw as fast as built by hand (>= 0.97)", "wire", "host-gw, *"),
    Target(2, "1,000 leases in <= 1.0 of ip -batch + bridge -batch", "fabric", "1,000 leases into the kernel, *"),
    Target(2, "1,000 leases within 1 s of the start", "fabric", "process start until 1000 leases *"),
    Target(2, "one more lease within 3 ms of its put", "fabric", "one more lease among 1000: *"),
    Target(2, "the agent's memory at 1,000 and 5,000 leases", "fabric", "agent memory at *", only_told=True),
    Target(2, "a deleted route is back within 1 s", "drift", "a deleted route *"),
    Target(2, "a deleted FDB entry is back within 1 s", "drift", "a deleted FDB entry *"),
    Target(2, "a deleted neighbour is back within 1 s", "drift", "a deleted neighbour *"),
    Target(2, "agent killed under a ping every 5 ms: none lost", "lab", "pings lost *"),
    Target(2, "STATUS p99 < 5 ms inside the agent during 100 ADDs", "status", "STATUS while 100 ADDs run, *"),
    Target(2, "make lab to the proven matrix in 10 s", "lab", "make lab: *"),
    # Services.
    Target(3, "nftables: a full sync in <= 1.0 of nft -f", "proxy", "nftables: * services x 5 into the kernel, *"),
    Target(3, "nftables: one endpoint among 10,000 services in < 5 ms", "proxy", "nftables: one endpoint changed among 10000, *"),
    Target(3, "nftables: one service more among 10,000 in < 5 ms", "proxy", "nftables: one service added among 10000, *"),
    Target(3, "nftables: growth linear or better", "proxy", "nftables: seconds per service, *"),
    Target(3, "IPVS: a full sync in <= 1.0 of ipvsadm -R and its like", "proxy_uml", "ipvs (guest): * services x 5, against *"),
    Target(3, "IPVS: one endpoint among 10,000 services in < 5 ms", "proxy_uml", "ipvs (guest): one endpoint changed among 10000, *"),
    Target(3, "IPVS: one service more among 10,000 in < 5 ms", "proxy_uml", "ipvs (guest): one service added among 10000, *"),
    Target(3, "IPVS: growth linear or better", "proxy_uml", "ipvs (guest): seconds per service, *"),
    Target(3, "the agent under 120 MiB at 10,000 services", "proxy_agent", "agent with 10000 services of the API: memory"),
    Target(3, "eBPF: connecting through a service within 5 % of direct", "proxy", "ebpf: connect through a VIP among *"),
    Target(3, "eBPF: a packet through a service costs nothing", "proxy", "ebpf: processor time of a datagram through a VIP *"),
    Target(3, "eBPF, nftables behind it: one change among 10,000 in < 5 ms", "proxy", "ebpf, nftables behind it: one * among 10000, *"),
    Target(3, "connect times and connections/s of the others", "proxy", "nftables: connect through a VIP among *", only_told=True),
    Target(3, "nftables: connecting is flat from 1 to 10,000 services", "proxy", "nftables: connect at * services against 1"),
    Target(3, "IPVS: connecting is flat from 1 to 10,000 services", "proxy_uml", "ipvs (guest): connect at * services against *"),
    # Policies.
    Target(4, "nftables: new connections flat within 5 % to 10,000 rules", "policy_path", "one, one node: connect(2), us, nftables with 10,000 rules against 1"),
    Target(4, "nftables: connections/s flat within 5 %", "policy_path", "one, one node: new connections/s, nftables with 10,000 rules against 1"),
    Target(4, "nftables: round trip flat within 5 %", "policy_path", "one, one node: round trip*, nftables with 10,000 rules against 1"),
    Target(4, "nftables: throughput flat within 5 %", "policy_path", "one, one node: Gbit/s, nftables with 10,000 rules against 1"),
    Target(4, "eBPF: new connections flat within 5 % to 10,000 rules", "policy_path", "one, one node: connect(2), us, ebpf with 10,000 rules against 1"),
    Target(4, "eBPF: connections/s flat within 5 %", "policy_path", "one, one node: new connections/s, ebpf with 10,000 rules against 1"),
    Target(4, "eBPF: round trip flat within 5 %", "policy_path", "one, one node: round trip*, ebpf with 10,000 rules against 1"),
    Target(4, "eBPF: throughput flat within 5 %", "policy_path", "one, one node: Gbit/s, ebpf with 10,000 rules against 1"),
    Target(4, "eBPF: round trip at most plain bridging's", "policy_path", "*, one node: round trip*, ebpf with 10,000 rules against no policies"),
    Target(4, "XDP drops within 20 % of a bare drop program", "policy_xdp", "XDP: *"),
    Target(4, "XDP drops at least twice what nftables does", "policy_xdp", "XDP beside nftables*"),
    Target(4, "nftables: a pod or policy changed in < 5 ms", "policy", "nftables: 1,000 policies, *: a *"),
    Target(4, "eBPF: a pod or policy changed in < 5 ms", "policy", "ebpf: 1,000 policies, *: a *"),
    Target(4, "1,000 policies over 5,000 pods synced within 1 s", "policy", "*: 1,000 policies, 5,000 pods, *: full sync"),
    Target(4, "memory at that size", "policy", "*: memory of the engine, *", only_told=True),
    Target(4, "the whole agent's memory (kube-router: 64-98 MiB)", "policy_agent", "agent with 1,000 policies *: memory"),
    # Backends and routers.
    Target(5, "overlays within 3 % of built by hand", "backends", "*: throughput"),
    Target(5, "their round trips within 3 % of built by hand", "backends", "*: round trip"),
    Target(5, "processor time per Gbit of every backend", "backends", "*: processor time per Gbit", only_told=True),
    Target(5, "udp far slower than host-gw", "backends", "the field's claim*: udp far slower, *"),
    Target(5, "vxlan near host-gw", "backends", "the field's claim*: vxlan near, *"),
    Target(5, "host-gw nearest to a bare cable", "backends", "the field's claim*: host-gw nearest, *"),
    Target(5, "10,000 routes to the peer within 1.2 of bare BIRD", "bgp", "bird: announced *, to the peer, 10000 routes"),
    Target(5, "10,000 routes to the kernel within 1.2 of bare BIRD", "bgp", "bird: learned, to the kernel, 10000 routes"),
    Target(5, "failover with BFD under 1 s", "bgp", "bird: a router is cut off, *, BFD *, worst"),
    Target(5, "failover without BFD", "bgp", "*: a router is cut off, *, hold time *, worst", only_told=True),
    Target(5, "a node joins, seen by the last of 20", "bgp", "*: one more node, its route in the kernels of all *", only_told=True),
    # Traces.
    Target(6, "a trace across VXLAN, Service and policy under 2 s", "trace", "trace across VXLAN, *"),
    Target(6, "the same as typed", "trace", "*the command as typed, *"),
    Target(6, "the same through agents", "trace_agents", "a trace through agents, p50 / p99"),
    Target(6, "prediction alone under 100 ms", "trace", "prediction*"),
    Target(6, "effect on other traffic below the noise", "trace", "other traffic, a trace a second: *"),
    Target(6, "pycnictl --help: 60 ms more than a bare interpreter", "trace", "pycnictl --help, *"),
    Target(6, "status under 300 ms", "trace", "pycnictl status*"),
    # The field's claims, scale, and the suite itself.
    Target(7, "user-space UDP is far slower than kernel VXLAN", "backends", "the field's claim: udp far slower than vxlan, *"),
    Target(7, "udp pays in copies and context switches", "backends", "the field's claim: udp's *"),
    Target(7, "VXLAN is slower than host-gw", "backends", "the field's claim: vxlan slower than host-gw, *"),
    Target(7, "nftables stays flat with the number of services", "proxy", "nftables: connect at * services against 1"),
    Target(7, "eBPF stays flat with the number of services", "proxy", "ebpf: connect at * services against 1"),
    Target(7, "IPVS stays flat with the number of services", "proxy_uml", "ipvs (guest): connect at * services against *"),
    Target(7, "iptables chains grow with the number of services", "proxy", "iptables*: connect at * services against 1"),
    Target(7, "rr behaves as told", "schedulers", "*: rr: *"),
    Target(7, "lc behaves as told", "schedulers", "*: lc: *"),
    Target(7, "sh behaves as told", "schedulers", "*: sh: *"),
    Target(7, "dh behaves as told", "schedulers", "*: dh: *"),
    Target(7, "eBPF beats netfilter for policy", "policy_path", "one, one node: *, ebpf against nftables, *"),
    Target(7, "eBPF beats iptables and ipset for policy", "policy_path", "one, one node: *, ebpf* against iptables+ipset*"),
    Target(7, "XDP beats netfilter for policy", "policy_xdp", "XDP beside nftables*"),
    Target(7, "MTU 9000 matters", "mtu", "*: Gbit/s at MTU 9000 against 1500"),
    Target(7, "its consistency across nodes matters", "mtu", "one node at 9000, the other at 1500: *"),
    Target(7, "notrack helps or not", "handbook", "tunnel without connection tracking: *", only_told=True),
    Target(7, "the handbook's sysctls help or not", "handbook", "*: does it help?", only_told=True),
    Target(7, "10 to 5,000 nodes: start, memory, processor, etcd", "scale", "* nodes: *", only_told=True),
    Target(7, "10 to 50,000 services", "scale", "* Services of *: *", only_told=True),
    Target(7, "100,000 pods", "scale", "100,000 pods of *: *", only_told=True),
    Target(7, "the whole suite in under 40 minutes", "suite", "the whole suite, minutes"),
    Target(7, "a quick run in under 6 minutes", "suite", "a quick run of the whole suite, minutes"),
)  # fmt: skip
PROVEN = (
    Proven(2, "200 ADDs and DELs at once, agent killed: no leak, no address twice", "tests/cni/test_crash.py"),
    Proven(2, "100 malformed inputs to a running agent: one clear answer each", "tests/cni/test_malformed_agent.py"),
    Proven(2, "20 nodes come up on this machine", "tests/lab/test_lab_demo.py"),
    Proven(3, "no failed request over 100 endpoint replacements: nftables, eBPF", "tests/proxy/test_hammer.py"),
    Proven(3, "the same with IPVS; mh moves at most 2/N of the flows", "tests/proxy/test_ipvs.py"),
    Proven(3, "a switch of data planes loses nothing, leaves nothing", "tests/proxy/test_life.py"),
    Proven(4, "no byte of a denied pod, from its first moment on, agent killed", "tests/lab/test_life_policy.py"),
    Proven(4, "the matrix of policies: oracle = compiled = kernel", "tests/lab/test_lab_policy_matrix.py"),
    Proven(5, "kill -9 of agent, engine and peers loses no packet", "tests/netns/test_bgp_kill.py"),
    Proven(5, "backends changed on live nodes, the gap printed", "tests/lab/test_lab_change.py"),
    Proven(6, "all injected faults, 25 at least, named rightly", "tests/lab/test_trace_faults.py"),
    Proven(6, "no false alarm in 200 healthy traces", "tests/lab/test_trace_healthy.py"),
)  # fmt: skip
