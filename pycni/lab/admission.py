"""What the Kubernetes API server does to a Service before it stores it: check, complete, give out addresses. Pure.

Life: ``lab apply`` hands every Service of a manifest to ``admit`` together with those there are; what comes back is
complete: families, ClusterIPs, node ports, the health-check node port. What an earlier apply gave out stays, unless
the new manifest asks for another. Nothing is stored before all of a manifest was admitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from pycni.errors import ConfigError
from pycni.lab.objects import Key, Mappings
from pycni.lab.topology import DNS_HOST, NODE_PORTS, SERVICE_NETWORKS
from pycni.model.family import Family
from pycni.model.kube import SERVICE

TYPES = ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName")
_NAMES = {Family.V4: "IPv4", Family.V6: "IPv6"}
_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_FIRST_HOST = 20
"""ClusterIPs are given out from here on; those before are for the lab's own."""
_GIVEN = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "healthCheckNodePort")


class Taken:
    """Addresses and ports of the Services there are."""

    def __init__(self, services: Iterable[Mappings]) -> None:
        self.addresses: dict[str, str] = {}
        self.node_ports: dict[tuple[int, str], str] = {}
        for value in services:
            self.add(value)

    def add(self, value: Mappings) -> None:
        """Count a Service in."""
        spec, name = value["spec"], _name(value)
        for address in spec.get("clusterIPs") or ():
            if address != "None":
                self.addresses[str(ip_address(address))] = name
        for port in spec.get("ports") or ():
            if port.get("nodePort"):
                self.node_ports[port["nodePort"], port.get("protocol", "TCP")] = name
        if spec.get("healthCheckNodePort"):
            self.node_ports[spec["healthCheckNodePort"], "TCP"] = name

    def free_address(self, family: Family) -> str:
        """The next ClusterIP. Raises ConfigError when there is none."""
        network = SERVICE_NETWORKS[family]
        for host in range(_FIRST_HOST, network.num_addresses - 1):
            address = str(network[host])
            if address not in self.addresses:
                return address
        raise ConfigError(SERVICE, "spec.clusterIP", str(network), "has no free address left")

    def free_port(self, protocol: str) -> int:
        """The next node port. Raises ConfigError when there is none."""
        for port in NODE_PORTS:
            if (port, protocol) not in self.node_ports:
                return port
        raise ConfigError(
            SERVICE, "spec.ports.nodePort", f"{NODE_PORTS[0]}-{NODE_PORTS[-1]}", "all are taken"
        )


def admit(value: Mappings, objects: Mapping[Key, Mappings], families: Sequence[Family]) -> Mappings:
    """The Service as it is stored; ``value`` is a manifest that decodes. Raises ConfigError naming field and value."""
    obj = f"{SERVICE} {_name(value)}"
    key = Key(SERVICE, value["metadata"]["namespace"], value["metadata"]["name"])
    if not _LABEL.fullmatch(key.name):
        raise ConfigError(obj, "metadata.name", key.name, "expected a DNS label that begins with a letter")
    taken = Taken(item for other, item in objects.items() if other.kind == SERVICE and other != key)
    spec = dict(value.get("spec") or {})
    before = objects.get(key, {})
    kind = spec.setdefault("type", "ClusterIP")
    if kind not in TYPES:
        raise ConfigError(obj, "spec.type", kind, f"expected {', '.join(TYPES)}")
    result = {**before, **value, "spec": spec}
    if kind == "ExternalName":
        if not isinstance(spec.get("externalName"), str) or not spec["externalName"]:
            raise ConfigError(obj, "spec.externalName", spec.get("externalName"), "expected a DNS name")
        return result
    _keep(spec, before.get("spec") or {})
    _addresses(obj, spec, taken, families)
    spec["ports"] = _ports(obj, spec, before.get("spec") or {}, taken)
    _health_port(obj, spec, taken)
    spec.setdefault("sessionAffinity", "None")
    spec.setdefault("internalTrafficPolicy", "Cluster")
    return result


def _keep(spec: dict[str, Any], before: Mapping[str, Any]) -> None:
    """What was given out stays while the manifest says nothing else."""
    if "None" in (spec.get("clusterIP"), before.get("clusterIP")) or before.get("type") == "ExternalName":
        return
    if "clusterIP" not in spec and "clusterIPs" not in spec:
        spec |= {name: before[name] for name in _GIVEN if name in before and name not in spec}


def _addresses(obj: str, spec: dict[str, Any], taken: Taken, families: Sequence[Family]) -> None:
    """clusterIP(s), ipFamilies, ipFamilyPolicy."""
    asked = [ip for ip in spec.get("clusterIPs") or [spec.get("clusterIP")] if ip]
    if asked == ["None"]:
        names = spec.get("ipFamilies") or [_NAMES[family] for family in families]
        spec |= {"clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": names}
        return
    policy = spec.setdefault("ipFamilyPolicy", "SingleStack" if len(asked) < 2 else "RequireDualStack")
    wanted = [next(f for f, name in _NAMES.items() if name == text) for text in spec.get("ipFamilies") or ()]
    wanted = wanted or [Family.of(ip_address(ip)) for ip in asked]
    for family in wanted:
        if family not in families:
            raise ConfigError(obj, "spec.ipFamilies", _NAMES[family], "the lab has no such family")
    if policy == "RequireDualStack" and len(families) < 2:
        raise ConfigError(obj, "spec.ipFamilyPolicy", policy, f"the lab has only {_NAMES[families[0]]}")
    wanted = wanted or list(families[:1])
    if policy in {"PreferDualStack", "RequireDualStack"}:
        wanted += [family for family in families if family not in wanted]
    addresses = {Family.of(ip_address(ip)): str(ip_address(ip)) for ip in asked}
    for family, address in addresses.items():
        network = SERVICE_NETWORKS[family]
        if ip_address(address) not in network:
            raise ConfigError(obj, "spec.clusterIP", address, f"expected an address of {network}")
        if address in taken.addresses:
            raise ConfigError(obj, "spec.clusterIP", address, f"is Service {taken.addresses[address]}'s")
    result = [addresses.get(family) or taken.free_address(family) for family in wanted]
    spec |= {"clusterIP": result[0], "clusterIPs": result, "ipFamilies": [_NAMES[item] for item in wanted]}


def _ports(
    obj: str, spec: Mapping[str, Any], before: Mapping[str, Any], taken: Taken
) -> list[dict[str, Any]]:
    ports = [dict(port) for port in spec.get("ports") or ()]
    if not ports and spec["clusterIP"] != "None":
        raise ConfigError(obj, "spec.ports", [], "expected at least one port")
    seen: dict[object, int] = {}
    for index, port in enumerate(ports):
        place = f"spec.ports[{index}]"
        protocol = port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port["port"])
        if len(ports) > 1 and not port.get("name"):
            raise ConfigError(obj, f"{place}.name", port.get("name"), "several ports need names")
        if port.get("name") and not _LABEL.fullmatch(port["name"]):
            raise ConfigError(obj, f"{place}.name", port["name"], "expected a DNS label")
        for same, what in ((port.get("name"), "name"), ((port["port"], protocol), "port")):
            if seen.setdefault(same, index) != index:
                raise ConfigError(
                    obj, f"{place}.{what}", port.get(what), f"is that of spec.ports[{seen[same]}]"
                )
    if _has_node_ports(spec):
        _node_ports(obj, ports, before, taken)
    else:
        for port in ports:
            port.pop("nodePort", None)
    return ports


def _has_node_ports(spec: Mapping[str, Any]) -> bool:
    kind = spec["type"]
    return kind == "NodePort" or (
        kind == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts") is not False
    )


def _node_ports(obj: str, ports: list[dict[str, Any]], before: Mapping[str, Any], taken: Taken) -> None:
    """Those asked for first, then those it had, then free ones."""
    for index, port in enumerate(ports):
        number = port.get("nodePort")
        if number:
            _take_port(obj, f"spec.ports[{index}].nodePort", number, port["protocol"], taken)
    held = {
        (port["port"], port.get("protocol", "TCP")): port.get("nodePort")
        for port in before.get("ports") or ()
    }
    for port in ports:
        protocol = port["protocol"]
        if not port.get("nodePort"):
            number = held.get((port["port"], protocol))
            if not number or (number, protocol) in taken.node_ports:
                number = taken.free_port(protocol)
            port["nodePort"] = number
            taken.node_ports[number, protocol] = obj.removeprefix(f"{SERVICE} ")


def _health_port(obj: str, spec: dict[str, Any], taken: Taken) -> None:
    if spec["type"] != "LoadBalancer" or spec.get("externalTrafficPolicy") != "Local":
        spec.pop("healthCheckNodePort", None)
        return
    number = spec.get("healthCheckNodePort")
    if number:
        _take_port(obj, "spec.healthCheckNodePort", number, "TCP", taken)
    else:
        spec["healthCheckNodePort"] = taken.free_port("TCP")


def _take_port(obj: str, place: str, number: int, protocol: str, taken: Taken) -> None:
    if number not in NODE_PORTS:
        raise ConfigError(obj, place, number, f"expected {NODE_PORTS[0]}..{NODE_PORTS[-1]}")
    if (number, protocol) in taken.node_ports:
        raise ConfigError(obj, place, number, f"is Service {taken.node_ports[number, protocol]}'s")
    taken.node_ports[number, protocol] = obj.removeprefix(f"{SERVICE} ")


def dns_address(family: Family) -> str:
    """ClusterIP of the lab's DNS service."""
    return str(SERVICE_NETWORKS[family][DNS_HOST])


def _name(value: Mappings) -> str:
    meta = value["metadata"]
    return f"{meta.get('namespace') or 'default'}/{meta['name']}"
