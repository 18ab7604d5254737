"""What follows from a lab's specification."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from pycni.lab import attachments, topology
from pycni.lab.topology import LabError, LabSpec, PodNamespace
from pycni.model.family import Family


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("pycni-default-fabric", PodNamespace("default", "fabric"), id="fabric"),
        pytest.param("pycni-default-node12", PodNamespace("default", "node12"), id="node"),
        pytest.param("pycni-default-pod.web-1", PodNamespace("default", "pod.web-1"), id="pod with a dash"),
        pytest.param("pycni-a-b-node1", PodNamespace("a-b", "node1"), id="lab with a dash"),
        pytest.param(
            "pycni-a-node1-fabric", PodNamespace("a-node1", "fabric"), id="lab called like a node of lab a"
        ),
        pytest.param(
            "pycni-a-pod.b-fabric", PodNamespace("a", "pod.b-fabric"), id="pod called like a fabric"
        ),
        pytest.param("pycni-a-node1x", None, id="no role"),
        pytest.param("pycni-node1", None, id="no lab"),
        pytest.param("cni-1234", None, id="foreign"),
        pytest.param("xpycni-default-node1", None, id="foreign prefix"),
    ],
)
def test_a_namespace_name_has_one_reading(name: str, expected: PodNamespace | None) -> None:
    assert topology.parse_namespace(name) == expected


@pytest.mark.parametrize("lab", ["default", "a", "a-node1", "x-pod", "node1"])
def test_namespaces_made_for_a_lab_are_found_as_that_labs(lab: str) -> None:
    topology.check_lab_name(lab)
    made = [
        topology.fabric_namespace(lab),
        topology.node_namespace(lab, "node3"),
        topology.pod_namespace(lab, "web-fabric"),
    ]
    assert [parsed and parsed.lab for parsed in map(topology.parse_namespace, made)] == [lab] * 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        pytest.param({"name": "Lab"}, "--name 'Lab'", id="capital"),
        pytest.param({"name": "a.b"}, "--name 'a.b'", id="dot"),
        pytest.param({"name": "-a"}, "--name '-a'", id="leading dash"),
        pytest.param({"name": ""}, "--name ''", id="empty"),
        pytest.param({"name": "x" * 31}, "--name", id="too long for a socket path"),
        pytest.param({"nodes": 0}, "--nodes 0", id="no nodes"),
        pytest.param({"nodes": 101}, "--nodes 101", id="too many nodes"),
        pytest.param({"pods": -1}, "--pods -1", id="negative pods"),
        pytest.param({"backend": "carrier-pigeon"}, "--backend 'carrier-pigeon'", id="backend"),
        pytest.param({"backend": "ipip", "family": "dual"}, "--family 'dual': backend ipip", id="ipip, IPv6"),
        pytest.param({"backend": "bgp"}, "--backend 'bgp': makes no routes", id="nobody makes routes"),
        pytest.param(
            {"backend": "wireguard", "driver": "uml"},
            "--driver 'uml': not with backend wireguard",
            id="guests",
        ),
        pytest.param(
            {"backend": "wireguard", "family": "ipv6", "mtu": 1355},
            "--mtu 1355: must be 1360 to",
            id="mtu of IPv6 pods",
        ),
        pytest.param({"attach": "glue"}, "--attach 'glue': not one of", id="attachment"),
        pytest.param(
            {"attach": "ipvlan", "driver": "uml"}, "--attach 'ipvlan': guests", id="underlay, guests"
        ),
        pytest.param({"backend_conf": {"Type": "udp"}}, "--backend-conf Type 'udp'", id="another backend"),
        pytest.param(
            {"backend": "wireguard", "backend_conf": {"Mode": "x"}}, "--backend-conf: .*Mode", id="key"
        ),
        pytest.param({"family": "ipv5"}, "--family 'ipv5'", id="family"),
        pytest.param({"mtu": 1000}, "--mtu 1000", id="mtu"),
    ],
)
def test_what_cannot_be_built_is_refused_by_flag_and_value(change: dict[str, object], named: str) -> None:
    with pytest.raises(LabError, match="^" + named.replace("'", "'")) as caught:
        topology.check_spec(LabSpec(**change))  # type: ignore[arg-type]
    assert caught.value.usage


@pytest.mark.parametrize("name", ["node1", "fabric", "A", "a_b", "", "a."])
def test_pod_names_that_would_mislead_exec_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="pod name"):
        topology.check_pod_name(name)


def test_no_two_hosts_of_the_largest_lab_share_an_address() -> None:
    spec = LabSpec(family="dual", nodes=topology.MAX_NODES)
    addresses = [
        address
        for index in range(spec.nodes + 1)
        for address in topology.underlay_addresses(spec, index).values()
    ]
    assert len({str(address.ip) for address in addresses}) == len(addresses)
    assert len({address.network for address in addresses}) == 2


@pytest.mark.parametrize(
    ("family", "endpoint", "expected"),
    [
        pytest.param(
            "ipv4",
            "http://172.20.255.254:2379",
            {"Network": "10.244.0.0/16", "SubnetLen": 24, "Backend": {"Type": "vxlan"}},
            id="ipv4",
        ),
        pytest.param(
            "ipv6",
            "http://[fd20::ffff]:2379",
            {
                "EnableIPv4": False,
                "EnableIPv6": True,
                "IPv6Network": "fd00:10:244::/48",
                "IPv6SubnetLen": 64,
                "Backend": {"Type": "vxlan"},
            },
            id="ipv6",
        ),
        pytest.param(
            "dual",
            "http://172.20.255.254:2379",
            {
                "Network": "10.244.0.0/16",
                "SubnetLen": 24,
                "EnableIPv6": True,
                "IPv6Network": "fd00:10:244::/48",
                "IPv6SubnetLen": 64,
                "Backend": {"Type": "vxlan"},
            },
            id="dual",
        ),
    ],
)
def test_net_conf_and_etcd_follow_the_family(family: str, endpoint: str, expected: dict[str, object]) -> None:
    spec = LabSpec(family=family)
    assert json.loads(topology.net_conf(spec)) == expected
    assert topology.etcd_endpoint(spec) == endpoint


def test_further_keys_of_the_backend_go_into_the_net_conf() -> None:
    spec = LabSpec(backend="vxlan", backend_conf={"VNI": 7, "DirectRouting": True})
    topology.check_spec(spec)
    assert json.loads(topology.net_conf(spec))["Backend"] == {
        "Type": "vxlan",
        "VNI": 7,
        "DirectRouting": True,
    }


@pytest.mark.parametrize("kind", ["bridge", "ptp", "macvlan", "ipvlan"])
def test_the_list_of_a_node_says_how_pods_are_attached(kind: str) -> None:
    spec = LabSpec(attach=kind, family="dual", backend="vxlan")
    topology.check_spec(spec)
    [ours] = json.loads(attachments.conflist(spec, 1, "/d"))["plugins"]
    assert ours.get("attachment", "bridge") == kind
    assert ours.get("hairpinMode", False) is (kind == "bridge"), "elsewhere the plugin refuses it"
    assert ("ranges" in ours["ipam"]) is (kind in {"macvlan", "ipvlan"})


def test_pods_on_the_underlay_have_addresses_no_host_has_and_no_other_nodes_pods() -> None:
    spec = LabSpec(family="dual", nodes=topology.MAX_NODES, attach="macvlan", backend="alloc")
    topology.check_spec(spec)
    for family in Family:
        net = topology.underlay_address(family, 0).network
        hosts = {topology.underlay_address(family, index).ip for index in range(spec.nodes + 1)}
        hosts.add(topology.client_address(family).ip)
        end = None
        for index in range(1, spec.nodes + 1):
            part = attachments.underlay_range(index, family)
            first, last = ip_address(part["rangeStart"]), ip_address(part["rangeEnd"])
            assert part["subnet"] == str(net)
            assert first in net
            assert last in net
            assert int(first) < int(last)
            assert end is None or int(first) > end, "parts do not overlap"
            assert not [host for host in hosts if int(first) <= int(host) <= int(last)]
            end = int(last)


def test_a_lab_of_backend_extension_has_commands_of_its_own_unless_it_is_given_some() -> None:
    spec = LabSpec(backend="extension", family="ipv6")
    topology.check_spec(spec)
    backend = json.loads(topology.net_conf(spec))["Backend"]
    assert backend["MTU"] == 1430
    assert {"PreStartupCommand", "SubnetAddCommand", "SubnetRemoveCommand"} <= backend.keys()
    given = LabSpec(backend="extension", backend_conf={"SubnetAddCommand": "true"})
    assert json.loads(topology.net_conf(given))["Backend"] == {"Type": "extension", **given.backend_conf}


def test_families_are_ordered_ipv4_first() -> None:
    assert LabSpec(family="dual").families == (Family.V4, Family.V6)


def test_a_chained_portmap_gets_the_port_mappings_and_ours_does_not() -> None:
    listing = json.loads(attachments.conflist(LabSpec(chain=("portmap",)), 1, "/d"))
    ours, portmap = listing["plugins"]
    assert "portMappings" not in ours["capabilities"]
    assert portmap == {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
