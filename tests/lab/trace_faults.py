"""Damages for traces: what is broken, how it is put right, and what a trace has to say of it.

Commands run by a shell in the namespace of a pod, a node or the fabric of a lab; ``{names}`` in them are the lab's own
(``names_of``). What a trace says is compared to what is written here alone: kind, node, component, interface and words
of the cause.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from pycni.lab.run import Lab
from pycni.lab.tracing import LabEyes
from pycni.model.kube import SERVICE

from .lab_tools import ROOT
from .trace_objects import SHOP

OBJECTS = (
    SHOP
    + """
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec: {nodeName: node1, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: corner}
spec: {selector: {app: near}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: nobody}
spec: {selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: ghost}
spec: {ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: silent}
spec: {ports: [{port: 80, targetPort: 9}]}
"""
)
ENDPOINTS = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: ghost-1, labels: {{kubernetes.io/service-name: ghost}}}}
addressType: IPv4
ports: [{{port: 8080, protocol: TCP}}]
endpoints: [{{addresses: ["{unused}"], conditions: {{ready: true}}, nodeName: node2}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: silent-1, labels: {{kubernetes.io/service-name: silent}}}}
addressType: IPv4
ports: [{{port: 9, protocol: TCP}}]
endpoints: [{{addresses: ["{web}"], conditions: {{ready: true}}, nodeName: node2}}]
"""
"""Endpoints that are called ready: an address nobody has, and a port nobody listens on."""


class Damage(NamedTuple):
    """Something broken, and what a trace says of it."""

    do: tuple[tuple[str, str], ...]
    """Where, and what."""
    undo: tuple[tuple[str, str], ...]
    kind: str
    node: str
    component: str
    interface: str
    said: tuple[str, ...]
    """Words of the cause."""
    words: tuple[str, ...] = ("pod1", "pod2")
    """What is asked."""
    after: str = ""
    """The kind of fault that is there without the damage, as it is meant."""


def one(where: str, do: str, undo: str, at: tuple[str, str, str, str], *said: str, **more: Any) -> Damage:
    """Broken and put right in one place. ``at``: kind, node, component, interface."""
    return Damage(((where, do),), ((where, undo),), *at, said, **more)


_known: dict[str, Mapping[str, str]] = {}


def names_of(lab: Lab, folder: str) -> Mapping[str, str]:
    """What commands call by name: addresses, ports of bridges, subnets, MACs. ``folder``: for what they keep."""
    if not folder:
        return _names(lab, folder)  # before all is there
    if lab.spec.name not in _known:
        _known[lab.spec.name] = _names(lab, folder)
    return {**_known[lab.spec.name], "tmp": folder}


def _names(lab: Lab, folder: str) -> Mapping[str, str]:
    found = {
        "tmp": folder,
        "state": str(lab.state.folder / "nodes"),
        "python": f"env PYTHONPATH={ROOT} {sys.executable}",
        **{f"{node.name}_ns": node.namespace for node in lab.nodes()},
    }
    for pod in lab.pods():
        name = pod.name.partition(".")[0]
        for address in pod.ips:
            found[f"{name}_6" if ":" in address else name] = address
        found[f"port_{name}"] = next(
            (item["name"] for item in pod.result["interfaces"] if item["name"].startswith("veth")), ""
        )
        found[f"mac_{name}"] = next(item["mac"] for item in pod.result["interfaces"] if item.get("sandbox"))
    for number in range(1, lab.spec.nodes + 1):
        pod = found[f"pod{number}"]
        found[f"net{number}"] = f"{pod.rpartition('.')[0]}.0/24"
        found[f"half{number}"] = f"{pod.rpartition('.')[0]}.0/25"
        found[f"gw{number}"] = f"{pod.rpartition('.')[0]}.1"
        found[f"via{number}"] = f"{pod.rpartition('.')[0]}.0"
        six = found.get(f"pod{number}_6", "")
        found[f"net{number}_6"] = f"{six.rpartition('::')[0]}::/64"
        found[f"via{number}_6"] = f"{six.rpartition('::')[0]}::"
    for service in LabEyes(lab).gather().objects.of(SERVICE).values():
        found[f"vip_{service.meta.name}"] = service.cluster_ips[0]
    mine = lab.pod("pod2")
    twin = next(
        pod for pod in lab.pods() if pod.node == mine.node and pod.name.startswith("pod") and pod != mine
    )
    found["twin"], found["mac_twin"] = twin.name, found[f"mac_{twin.name}"]
    found["unused"] = f"{found['pod2'].rpartition('.')[0]}.200"
    return found


FDB = "bridge fdb show dev {dev} | awk '/dst/{{print $1; exit}}'"
RULE = "nft 'add table {f} foe; add chain {f} foe c {{ type filter hook {h} priority 0; }}; add rule {f} foe c {r}'"


def rule(
    where: str, family: str, hook: str, text: str, at: tuple[str, str, str, str], *said: str, **more: Any
) -> Damage:
    """A rule of somebody else's table."""
    do = RULE.replace("{f}", family).replace("{h}", hook).replace("{r}", text)
    return one(where, do, f"nft delete table {family} foe", at, *said, **more)


def fdb(device: str) -> str:
    return FDB.replace("{dev}", device)


ETCD = "etcdctl --endpoints=http://172.20.255.254:2379"
KEYS = "/coreos.com/network/subnets/"
SIX = ("{pod1_6}", "{pod2_6}")
WEB = ("pod1", "web:8080")
SHOP = ("pod1", "shop")

OVERLAY: Mapping[str, Damage] = {
    "forwarding entry deleted": one(
        "node1", f"m=$({fdb('flannel.1')}); echo $m >{{tmp}}/mac; bridge fdb del $m dev flannel.1 dst 172.20.0.2",
        "bridge fdb add $(cat {tmp}/mac) dev flannel.1 dst 172.20.0.2",
        ("fdb-missing", "node1", "overlay", "flannel.1"), "no forwarding entry of flannel.1 for",
    ),
    "forwarding entry deleted, IPv6": one(
        "node1", f"m=$({fdb('flannel-v6.1')}); echo $m >{{tmp}}/mac; bridge fdb del $m dev flannel-v6.1 dst fd20::2",
        "bridge fdb add $(cat {tmp}/mac) dev flannel-v6.1 dst fd20::2",
        ("fdb-missing", "node1", "overlay", "flannel-v6.1"), "no forwarding entry of flannel-v6.1 for", words=SIX,
    ),
    "forwarding entry to nowhere": one(
        "node1", f"bridge fdb replace $({fdb('flannel.1')}) dev flannel.1 dst 172.20.0.99",
        f"bridge fdb replace $({fdb('flannel.1')}) dev flannel.1 dst 172.20.0.2",
        ("peer-unknown", "node1", "overlay", "flannel.1"), "no node is known at 172.20.0.99",
    ),
    "neighbour of the overlay deleted": one(
        "node1", "ip neigh show {via2} dev flannel.1 | cut -d' ' -f1-5 >{tmp}/neigh; ip neigh del {via2} dev flannel.1",
        "ip neigh replace $(cut -d' ' -f1-3 {tmp}/neigh) nud permanent dev flannel.1",
        ("neighbour-missing", "node1", "neighbour", "flannel.1"), "no neighbour entry for {via2}",
    ),
    "VTEP MAC changed": one(
        "node2", "ip -o link show flannel.1 | grep -o 'ether [0-9a-f:]*' | cut -c7- >{tmp}/mac;"
        " ip -4 neigh show dev flannel.1 | cut -d' ' -f1-3 >{tmp}/neigh; ip link set flannel.1 address 02:00:00:00:00:77",
        "ip link set flannel.1 address $(cat {tmp}/mac); ip neigh replace $(cat {tmp}/neigh) nud permanent dev flannel.1",
        ("vtep-mac-wrong", "node2", "overlay", "flannel.1"), "flannel.1 has 02:00:00:00:00:77, the sender believes",
    ),
    "VTEP down": one(
        "node2", "ip route show dev flannel.1 >{tmp}/routes; ip -4 neigh show dev flannel.1 | cut -d' ' -f1-3 >{tmp}/neigh;"
        f" {fdb('flannel.1')} >{{tmp}}/mac; ip link set flannel.1 down",
        "ip link set flannel.1 up; ip neigh replace $(cat {tmp}/neigh) nud permanent dev flannel.1;"
        " ip route replace {net1} via {via1} dev flannel.1 onlink proto 112",
        ("vtep-missing", "node2", "overlay", ""), "no vxlan device like flannel.1 of the sender",
    ),
    "UDP 8472 filtered": rule(
        "node2", "ip", "input", "udp dport 8472 drop", ("foreign-rule", "node2", "firewall", "eth0"),
        "ip foe c", "udp dport 8472 drop",
    ),
    "UDP 8472 filtered on the way": one(
        "fabric", "nft 'add table bridge foe; add chain bridge foe c { type filter hook forward priority 0; };"
        " add rule bridge foe c udp dport 8472 drop'".replace("{", "{{").replace("}", "}}"),
        "nft delete table bridge foe", ("underlay-filtered", "node2", "underlay", "eth0"),
        "udp port 8472 from 172.20.0.1 to 172.20.0.2 is filtered on the way, an echo gets through",
    ),
    "node cut off": one(
        "fabric", "for p in $(bridge link | grep -o 'node[0-9]*[^@: ]*'); do bridge link set dev $p isolated on; done",
        "for p in $(bridge link | grep -o 'node[0-9]*[^@: ]*'); do bridge link set dev $p isolated off; done",
        ("node-cut-off", "node2", "underlay", "eth0"), "node2 is cut off", "last at underlay eth0 of node1",
    ),
    "underlay down": one(
        "node1", "echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down; ip route show default >{tmp}/route;"
        " ip -6 route show default | sed 's/pref.*//' >{tmp}/route6; ip link set eth0 down",
        "ip link set eth0 up; ip route add $(cat {tmp}/route); ip -6 route add $(cat {tmp}/route6)",
        ("underlay-no-route", "node1", "underlay", "flannel.1"), "no way to the node at 172.20.0.2",
    ),
    "MTU of the underlay lowered": one(
        "node2", "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500",
        ("mtu-too-small", "node2", "underlay", "eth0"), "of 1430 bytes vanishes", "eth0 takes 1400 bytes", "small ones pass",
    ),
    "MTU lowered on the way": one(
        "fabric", "ip link set node2 mtu 1300", "ip link set node2 mtu 1500",
        ("mtu-too-small", "node2", "underlay", "eth0"), "of 1430 bytes vanishes", "small ones pass",
    ),
    "MTU of a pod lowered": one(
        "pod2", "ip link set eth0 mtu 1280", "ip link set eth0 mtu 1430",
        ("mtu-too-small", "node2", "interface", "eth0"), "eth0 takes 1280 bytes, packets have up to 1430",
    ),
    "MTU of a pod raised": one(
        "pod1", "ip link set eth0 mtu 1500", "ip link set eth0 mtu 1430",
        ("mtu-too-small", "node1", "bridge", "{port_pod1}"), "takes 1430 bytes, packets have up to 1500",
        words=("pod1", "pod3"),
    ),
}  # fmt: skip

NODE_FAULTS: Mapping[str, Damage] = {
    "stale neighbour": one(
        "node2", "ip neigh replace {pod2} lladdr 02:00:00:00:00:99 nud permanent dev cni0", "ip neigh del {pod2} dev cni0",
        ("neighbour-wrong", "node2", "neighbour", "cni0"), "no interface on this link has 02:00:00:00:00:99",
    ),
    "stale neighbour, IPv6": one(
        "node2", "ip neigh replace {pod2_6} lladdr 02:00:00:00:00:99 nud permanent dev cni0",
        "ip neigh del {pod2_6} dev cni0", ("neighbour-wrong", "node2", "neighbour", "cni0"),
        "no interface on this link has 02:00:00:00:00:99", words=SIX,
    ),
    "neighbour is another pod": one(
        "node2", "ip neigh replace {pod2} lladdr {mac_pod4} nud permanent dev cni0", "ip neigh del {pod2} dev cni0",
        ("neighbour-wrong", "node2", "neighbour", "cni0"), "{mac_pod4} is pod default/pod4, but {pod2} is pod default/pod2",
    ),
    "foreign drop rule": rule(
        "node2", "inet", "forward", "ip daddr {pod2} drop", ("foreign-rule", "node2", "firewall", "cni0"),
        "inet foe c", "ip daddr {pod2} drop",
    ),
    "foreign drop rule, IPv6": rule(
        "node2", "ip6", "forward", "meta l4proto ipv6-icmp ip6 daddr {pod2_6} drop",
        ("foreign-rule", "node2", "firewall", "cni0"), "ip6 foe c", "ip6 daddr {pod2_6} drop", words=SIX,
    ),
    "foreign drop rule of iptables": one(
        "node2", "iptables-nft -N FOE; iptables-nft -A FOE -p tcp --dport 8080 -j DROP;"
        " iptables-nft -A FORWARD -i flannel.1 -m comment --comment 'not us' -j FOE",
        "iptables-nft -D FORWARD -i flannel.1 -m comment --comment 'not us' -j FOE; iptables-nft -F FOE; iptables-nft -X FOE;"
        " nft delete table ip filter",
        ("foreign-rule", "node2", "firewall", "cni0"), "ip filter", "FO", "tcp dport 8080", "drop", words=WEB,
    ),
    "foreign policy of a chain": one(
        "node2", "iptables-nft -P FORWARD DROP", "iptables-nft -P FORWARD ACCEPT; nft delete table ip filter",
        ("foreign-rule", "node2", "firewall", "cni0"), "ip filter FORWARD", "policy drop",
    ),
    "foreign drop rule for answers": rule(
        "node1", "ip", "forward", "ct state established ip saddr {pod2} drop",
        ("foreign-rule", "node1", "firewall", "cni0"), "the answer", "ip foe c", "ct state established ip saddr {pod2} drop",
    ),
    "foreign rule in a pod": rule(
        "pod2", "ip", "input", "icmp type echo-request drop", ("foreign-rule", "node2", "firewall", "eth0"),
        "ip foe c", "icmp type echo-request drop",
    ),
    "foreign rule of a bridge": rule(
        "node1", "bridge", "forward", "ether type ip drop", ("foreign-rule", "node1", "firewall", "{port_pod3}"),
        "bridge foe c", "ether type ip drop", words=("pod1", "pod3"),
    ),
    "filter of traffic control": one(
        "node2", "tc qdisc add dev {port_pod2} clsact; tc filter add dev {port_pod2} egress bpf da bytecode '1,6 0 0 2'",
        "tc qdisc del dev {port_pod2} clsact", ("foreign-program", "node2", "firewall", "{port_pod2}"),
        "before bridge {port_pod2} of node2", "tc filter bpf pref 49152", "(egress)",
    ),
    "forwarding off": one(
        "node2", "echo 0 >/proc/sys/net/ipv4/ip_forward", "echo 1 >/proc/sys/net/ipv4/ip_forward",
        ("forwarding-off", "node2", "routing", "flannel.1"), "net.ipv4.ip_forward is 0",
    ),
    "forwarding off, IPv6": one(
        "node2", "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding",
        ("forwarding-off", "node2", "routing", "flannel-v6.1"), "net.ipv6.conf.all.forwarding is 0", words=SIX,
    ),
    "forwarding off at one device": one(
        "node2", "echo 0 >/proc/sys/net/ipv4/conf/flannel.1/forwarding", "echo 1 >/proc/sys/net/ipv4/conf/flannel.1/forwarding",
        ("forwarding-off", "node2", "routing", "flannel.1"), "nothing that comes in by flannel.1 is forwarded",
    ),
    "blackhole route": one(
        "node1", "ip route add blackhole {half2}", "ip route del blackhole {half2}",
        ("route-blocks", "node1", "routing", ""), "a blackhole route leads here",
    ),
    "unreachable route, IPv6": one(
        "node1", "ip -6 route add unreachable {pod2_6}/128", "ip -6 route del unreachable {pod2_6}/128",
        ("route-blocks", "node1", "routing", ""), "an unreachable route leads here", words=SIX,
    ),
    "route missing": one(
        "node1", "ip route show {net2} >{tmp}/route; ip route del {net2}", "ip route add $(cat {tmp}/route) onlink",
        ("route-missing", "node1", "routing", "eth0"), "the route {net2} via {via2} dev flannel.1 is missing",
        "default via 172.20.255.254",
    ),
    "strict rp_filter": one(
        "node2", "ip route add {pod1}/32 via 172.20.0.1 dev eth0; echo 1 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter",
        "echo 0 >/proc/sys/net/ipv4/conf/flannel.1/rp_filter; ip route del {pod1}/32 via 172.20.0.1 dev eth0",
        ("rp-filter", "node2", "routing", "flannel.1"), "rp_filter is strict on flannel.1", "{pod1} via 172.20.0.1 dev eth0",
    ),
    "asymmetric return": one(
        "node2", "ip route add {pod1}/32 via 172.20.0.1 dev eth0", "ip route del {pod1}/32 via 172.20.0.1 dev eth0",
        ("asymmetric-return", "node2", "routing", "eth0"), "the answer comes by another way", "{pod1} via 172.20.0.1 dev eth0",
    ),
    "asymmetric return by a second underlay": Damage(
        (("node1", ("ip link add under2 type veth peer name under3; ip link set under3 netns {node2_ns};"
          " ip addr add 172.21.0.1/24 dev under2; ip link set under2 up")),
         ("node2", "ip addr add 172.21.0.2/24 dev under3; ip link set under3 up; ip route add {pod1}/32 via 172.21.0.1")),
        (("node1", "ip link del under2"),),
        "asymmetric-return", "node2", "routing", "under3",
        ("the answer comes by another way", "{pod1} via 172.21.0.1 dev under3"),
    ),
    "port isolated": one(
        "node1", "for p in {port_pod1} {port_pod3}; do bridge link set dev $p isolated on; done",
        "for p in {port_pod1} {port_pod3}; do bridge link set dev $p isolated off; done",
        ("port-isolated", "node1", "bridge", "{port_pod3}"), "are isolated from each other", words=("pod1", "pod3"),
    ),
    "port disabled": one(
        "node2", "bridge link set dev {port_pod2} state 0", "bridge link set dev {port_pod2} state 3",
        ("port-blocked", "node2", "bridge", "{port_pod2}"), "is disabled",
    ),
    "port down": one(
        "node2", "ip link set {port_pod2} down", "ip link set {port_pod2} up",
        ("port-down", "node2", "bridge", "{port_pod2}"), "port {port_pod2} is down",
    ),
    "port taken off its bridge": one(
        "node2", "ip link set {port_pod2} nomaster", "ip link set {port_pod2} master cni0",
        ("port-missing", "node2", "neighbour", "cni0"), "{port_pod2}, at whose other end is pod default/pod2, is no port of cni0",
    ),
    "bridge-nf-call off with services": one(
        "node1", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables", "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables",
        ("answer-unknown", "node1", "socket", ""), "was expected", words=("pod1", "corner"),
    ),
}  # fmt: skip

POD_FAULTS: Mapping[str, Damage] = {
    "veth of a pod down": one(
        "pod2", "echo 1 >/proc/sys/net/ipv6/conf/eth0/keep_addr_on_down; ip route show default >{tmp}/route;"
        " ip -6 route show default | sed 's/pref.*//' >{tmp}/route6; ip link set eth0 down",
        "ip link set eth0 up; ip route add $(cat {tmp}/route); ip -6 route replace $(cat {tmp}/route6)",
        ("port-down", "node2", "bridge", "{port_pod2}"), "port {port_pod2} is down",
    ),
    "pod without route": one(
        "pod1", "ip route show default >{tmp}/route; ip route del default", "ip route add $(cat {tmp}/route)",
        ("no-route", "node1", "routing", ""), "there is no route to {pod2}",
    ),
    "pod without route, IPv6": one(
        "pod1", "ip -6 route show default >{tmp}/route; ip -6 route del default",
        "ip -6 route add $(sed 's/pref.*//' {tmp}/route)",
        ("no-route", "node1", "routing", ""), "there is no route to {pod2_6}", words=SIX,
    ),
    "answer without route": one(
        "pod2", "ip route show default >{tmp}/route; ip route del default", "ip route add $(cat {tmp}/route)",
        ("no-route", "node2", "routing", ""), "the answer is dropped: there is no route to {pod1}",
    ),
    "wrong gateway": one(
        "pod1", "ip route show default >{tmp}/route; ip route replace default via $(echo {gw1} | sed 's/1$/200/')",
        "ip route replace $(cat {tmp}/route)",
        ("gateway-wrong", "node1", "routing", "eth0"), "where default via {gw1} dev eth0 is wanted", "nobody on this link answers",
    ),
    "nobody listens": one(
        "pod2", "true", "true", ("nobody-listens", "node2", "socket", ""), "nobody listens on tcp port 81", words=("pod1", "pod2:81"), after="nobody-listens",
    ),
}  # fmt: skip

PLAIN: Mapping[str, Damage] = {
    "duplicate address": Damage(
        (("{twin}", "ip addr add {pod2}/24 dev eth0"),),
        (("{twin}", "ip addr del {pod2}/24 dev eth0"), ("node2", "ip neigh flush dev cni0")),
        "address-duplicate", "node2", "neighbour", "cni0",
        ("{pod2} is used twice on this link", "pod default/{twin} ({mac_twin})"),
    ),
    "duplicate address, IPv6": Damage(
        (("{twin}", "ip addr add {pod2_6}/64 dev eth0 nodad"),
         ("pod2", ("ip -6 route show default | sed 's/pref.*//' >{tmp}/route; ip addr del {pod2_6}/64 dev eth0;"
                  " ip addr add {pod2_6}/64 dev eth0;"
                  " for i in $(seq 100); do ip -6 addr show dadfailed | grep -q {pod2_6} && exit 0; sleep 0.1; done; exit 1")),
         ("node2", "ip neigh flush dev cni0")),
        (("{twin}", "ip addr del {pod2_6}/64 dev eth0"),
         ("pod2", ("ip addr del {pod2_6}/64 dev eth0; ip addr add {pod2_6}/64 dev eth0 nodad;"
                  " ip -6 route replace $(cat {tmp}/route)")),
         ("node2", "ip neigh flush dev cni0")),
        "address-duplicate", "node2", "neighbour", "cni0", ("pod default/{twin}", "dadfailed"), words=SIX,
    ),
    "ARP proxy": Damage(
        (("{twin}", ("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv4/conf/eth0/proxy_arp;"
                    " ip route add {pod2}/32 dev lo")),
         ("node2", "ip neigh replace {pod2} lladdr {mac_twin} nud stale dev cni0")),
        (("{twin}", ("echo 0 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/conf/eth0/proxy_arp;"
                    " ip route del {pod2}/32 dev lo")),
         ("node2", "ip neigh del {pod2} dev cni0")),
        "proxy-arp", "node2", "neighbour", "cni0", ("pod default/{twin} answers for {pod2}", "proxy_arp is on"),
    ),
    "route by a host missing": one(
        "node1", "ip route show {net2} >{tmp}/route; ip route del {net2}", "ip route add $(cat {tmp}/route)",
        ("no-route", "node1", "routing", ""), "{net2} via 172.20.0.2 dev eth0 is missing",
    ),
    "route by a host missing, IPv6": one(
        "node1", "ip -6 route show {net2_6} | sed 's/pref.*//' >{tmp}/route; ip -6 route del {net2_6}",
        "ip -6 route add $(cat {tmp}/route)",
        ("no-route", "node1", "routing", ""), "{net2_6} via fd20::2 dev eth0 is missing", words=SIX,
    ),
    "gateway that is nobody": one(
        "node1", "ip route replace {net2} via 172.20.0.99 proto 112", "ip route replace {net2} via 172.20.0.2 proto 112",
        ("gateway-wrong", "node1", "routing", "eth0"), "{net2} via 172.20.0.99 dev eth0, where {net2} via 172.20.0.2",
    ),
    "gateway that is another node": one(
        "node1", "ip route replace {net2} via 172.20.0.3 proto 112", "ip route replace {net2} via 172.20.0.2 proto 112",
        ("gateway-wrong", "node1", "routing", "eth0"), "{net2} via 172.20.0.3 dev eth0, where {net2} via 172.20.0.2",
    ),
    "answer by another node": one(
        "node2", "ip route replace {net1} via 172.20.0.3 proto 112", "ip route replace {net1} via 172.20.0.1 proto 112",
        ("gateway-wrong", "node2", "routing", "eth0"), "{net1} via 172.20.0.3 dev eth0, where {net1} via 172.20.0.1",
    ),
    "address of a pod gone": one(
        "pod2", "ip route show default >{tmp}/route; ip addr del {pod2}/24 dev eth0",
        "ip addr add {pod2}/24 dev eth0; ip route replace $(cat {tmp}/route)",
        ("address-missing", "node2", "interface", "eth0"), "pod default/pod2 does not have {pod2}, which was given to it",
    ),
}  # fmt: skip

SERVICES: Mapping[str, Damage] = {
    "policy that denies": one(
        "pod1", "true", "true", ("policy-denied", "node2", "policy", ""), "no rule of NetworkPolicy default/closed allows it",
        words=("pod1", "shut:8080"), after="policy-denied",
    ),
    "service without endpoints": one(
        "pod1", "true", "true", ("service-without-endpoints", "node1", "service", ""), "the service has no endpoint to go to",
        words=("pod1", "nobody"), after="service-without-endpoints",
    ),
    "endpoint that is nobody, called ready": one(
        "pod1", "true", "true", ("endpoint-dead", "node2", "neighbour", "cni0"),
        "nobody on this link answers for {unused}", "is called a ready endpoint of default/ghost", words=("pod1", "ghost"), after="endpoint-dead",
    ),
    "endpoint whose program is dead": one(
        "pod1", "true", "true", ("endpoint-dead", "node2", "socket", ""),
        "nobody listens on tcp port 9", "called a ready endpoint of default/silent", words=("pod1", "silent"), after="endpoint-dead",
    ),
    "translation lost": one(
        "node1", "nft list map inet pycni_proxy services4 | grep -o '{vip_shop} [.] tcp [.] 80 counter[^,}}]*'"
        " | sed 's/counter packets [0-9]* bytes [0-9]*//' >{tmp}/vip; test -s {tmp}/vip;"
        " nft delete element inet pycni_proxy services4 '{{ {vip_shop} . tcp . 80 }}'",
        'nft add element inet pycni_proxy services4 "{{ $(cat {tmp}/vip) }}"',
        ("service-not-translated", "node1", "service", ""),
        "default/shop should be translated to {web} here, and the asker gets a reset", words=SHOP,
    ),
    "policy not enforced": one(
        "node2", "nft insert rule inet pycni_policy ingress accept",
        "nft delete rule inet pycni_policy ingress handle"
        " $(nft -a list chain inet pycni_policy ingress | awk '$1==\"accept\"{{print $NF; exit}}')",
        ("policy-not-enforced", "node2", "policy", ""), "no rule of NetworkPolicy default/closed allows it",
        "and yet an answer came back", words=("pod1", "shut:8080"), after="policy-denied",
    ),
    "bridge-nf-call off with policies": one(
        "node2", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables", "echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables",
        ("policy-not-enforced", "node2", "policy", ""), "NetworkPolicy default/closed", "net.bridge.bridge-nf-call-iptables is 0",
        words=("pod4", "shut:8080"), after="policy-denied",
    ),
    "masquerading lost": one(
        "node1", "nft list table inet pycni_fabric >{tmp}/fabric; nft delete table inet pycni_fabric", "nft -f {tmp}/fabric",
        ("masquerade-missing", "node1", "masquerade", "eth0"), "it leaves as {pod1} where 172.20.0.1 should hide it",
        words=("pod1", "172.20.255.253"),
    ),
    "foreign translation": one(
        "node1", RULE.replace("filter", "nat").replace("priority 0", "priority -110").replace("{f}", "ip").replace("{h}", "prerouting").replace("{r}", "ip daddr {web} tcp dport 8080 dnat to {near}:8080"),
        "nft delete table ip foe", ("foreign-nat", "node1", "firewall", "cni0"), "ip foe c",
        "dnat to {near}:8080", words=("pod1", "web:8080"),
    ),
    "foreign translation of iptables": one(
        "node1", "iptables-nft -t nat -A PREROUTING -d {web} -p tcp --dport 8080 -j DNAT --to-destination {near}:8080",
        "nft delete table ip nat", ("foreign-nat", "node1", "firewall", "cni0"),
        "ip nat PREROUTING", "dnat to {near}:8080", words=("pod1", "web:8080"),
    ),
    "hairpin off": one(
        "node2", "bridge link set dev {port_web} hairpin off", "bridge link set dev {port_web} hairpin on",
        ("hairpin-off", "node2", "bridge", "{port_web}"), "does not send back where it came from", words=("web", "shop"),
    ),
    "connection tracking full": one(
        "node2", "conntrack -F 2>/dev/null; {python} -m tests.lab.trace_tools fill", "conntrack -F 2>/dev/null",
        ("conntrack-full", "node2", "firewall", "eth0"), "connection tracking has no room for it",
    ),
    "XDP program of somebody else": one(
        "node2", "{python} -m tests.lab.trace_tools xdp eth0 on", "{python} -m tests.lab.trace_tools xdp eth0 off",
        ("foreign-program", "node2", "firewall", "eth0"), "before underlay eth0 of node2", "foe on eth0 (xdp) of somebody else",
    ),
    "lease expired, its routes still there": one(
        "fabric", f"k=$({ETCD} get --prefix {KEYS} --keys-only | grep ${{{{PART}}}}); echo $k >{{tmp}}/key;"
        f" {ETCD} get $k --print-value-only >{{tmp}}/lease; {ETCD} del $k".replace("${{PART}}", "/{via2}-"),
        f"{ETCD} put $(cat {{tmp}}/key) <{{tmp}}/lease",
        ("lease-expired", "node2", "lease", "flannel.1"), "it has no lease", "routes to it may go at any time",
    ),
    "lease expired, its routes gone": Damage(
        (("fabric", f"k=$({ETCD} get --prefix {KEYS} --keys-only | grep ${{{{PART}}}}); echo $k >{{tmp}}/key;"
          f" {ETCD} get $k --print-value-only >{{tmp}}/lease; {ETCD} del $k".replace("${{PART}}", "/{via2}-")),
         ("node1", "ip route show {net2} >{tmp}/route; ip route del {net2}")),
        (("fabric", f"{ETCD} put $(cat {{tmp}}/key) <{{tmp}}/lease"), ("node1", "ip route add $(cat {tmp}/route) onlink")),
        "lease-expired", "node2", "lease", "eth0", ("it has no lease",),
    ),
    "checksum broken": one(
        "node2", "nft 'add table bridge foe; add chain bridge foe c {{ type filter hook forward priority 0; }};"
        " add chain bridge foe d {{ type filter hook output priority 0; }};"
        " add rule bridge foe d ip protocol tcp @th,16,16 8080 @th,112,16 set 0x1234'",
        "nft delete table bridge foe", ("checksum-wrong", "node2", "bridge", "{port_web}"),
        "its TCP checksum is wrong here and was right at", words=WEB,
    ),
}  # fmt: skip

DENIED = """
apiVersion: v1
kind: Pod
metadata: {name: shut, labels: {app: shut}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {matchLabels: {app: shut}}, policyTypes: [Ingress]}
"""
PEER = "{python} -m tests.lab.trace_tools peer {state}/"
SECRET: Mapping[str, Damage] = {
    "peer without allowed IPs": one(
        "node1", f"{PEER}node1/state/wireguard flannel-wg allowed 192.0.2.0/24",
        f"{PEER}node1/state/wireguard flannel-wg allowed {{net2}}",
        ("wireguard-peer-missing", "node1", "overlay", "flannel-wg"), "no peer of flannel-wg has {pod2} among its allowed IPs",
    ),
    "peer that may not send": one(
        "node2", f"{PEER}node2/state/wireguard flannel-wg allowed 192.0.2.0/24",
        f"{PEER}node2/state/wireguard flannel-wg allowed {{net1}}",
        ("wireguard-peer-missing", "node2", "overlay", "flannel-wg"), "no peer of flannel-wg may send from {pod1}",
    ),
    "peer without allowed IPs, IPv6": one(
        "node1", f"{PEER}node1/state/wireguard flannel-wg-v6 allowed 2001:db8::/64",
        f"{PEER}node1/state/wireguard flannel-wg-v6 allowed {{net2_6}}",
        ("wireguard-peer-missing", "node1", "overlay", "flannel-wg-v6"), "has {pod2_6} among its allowed IPs", words=SIX,
    ),
    "peer at a wrong endpoint": Damage(
        # Cut apart, as WireGuard would learn the right endpoint from the next packet of the peer's.
        (("fabric", "for p in node1 node2; do bridge link set dev $p isolated on; done"),
         ("node1", f"{PEER}node1/state/wireguard flannel-wg endpoint 172.20.0.99")),
        (("node1", f"{PEER}node1/state/wireguard flannel-wg endpoint 172.20.0.2"),
         ("fabric", "for p in node1 node2; do bridge link set dev $p isolated off; done")),
        "peer-unknown", "node1", "overlay", "flannel-wg", ("no node is known at 172.20.0.99",),
    ),
    "policy that denies, by eBPF": one(
        "pod1", "true", "true", ("policy-denied", "node2", "policy", ""), "no rule of NetworkPolicy default/closed allows it",
        words=("pod1", "shut:8080"), after="policy-denied",
    ),
    "foreign drop rule beside eBPF": rule(
        "node2", "inet", "forward", "ip daddr {pod2} drop", ("foreign-rule", "node2", "firewall", "cni0"), "inet foe c",
        "ip daddr {pod2} drop",
    ),
}  # fmt: skip
