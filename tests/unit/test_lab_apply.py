"""What `lab apply` makes of manifests, before anything is carried out: checks, addresses, pods, slices, DNS, matrix."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Any

import pytest
import yaml

from pycni.errors import ConfigError
from pycni.lab import apply_check, apply_settle, dns, matrix_services, workloads
from pycni.lab.apply_check import Intent, checked, relabelled
from pycni.lab.apply_tables import age_text, endpoint_text, histogram, tables
from pycni.lab.ask import Tally
from pycni.lab.matrix_services import Asker, judge
from pycni.lab.objects import Key, Mappings, Objects, key_of
from pycni.lab.pod_words import label_changes, manifest_of
from pycni.lab.serve import ServedPod
from pycni.lab.state import PodRecord
from pycni.lab.topology import LabError
from pycni.model.family import Family
from pycni.model.kube import SliceEndpoint

NOW = 1_800_000_000.0
V4, DUAL = (Family.V4,), (Family.V4, Family.V6)
WEB = "{kind: Service, apiVersion: v1, metadata: {name: web}, spec: {selector: {app: web}, ports: [{port: 80}]}}"
POOLS = (ip_network("10.98.0.0/24"),)


def node(name: str) -> Mappings:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


BASE = {key_of(value): value for value in (node("node1"), node("node2"), apply_check.namespace("default"))}


def load(text: str) -> list[tuple[str, Mappings]]:
    return [(f"f document {number}", value) for number, value in enumerate(yaml.safe_load_all(text), 1)]


def check(text: str, objects: Mapping[Key, Mappings] = BASE, families: tuple[Family, ...] = V4) -> Intent:
    return checked(load(text), objects, families)


def service(
    text: str, objects: Mapping[Key, Mappings] = BASE, families: tuple[Family, ...] = V4
) -> dict[str, Any]:
    """The spec that is stored for ``spec`` text."""
    whole = f"{{kind: Service, apiVersion: v1, metadata: {{name: web}}, spec: {text}}}"
    return dict(check(whole, objects, families).objects[Key("Service", "default", "web")]["spec"])


def deployment(replicas: int, image: str = "x") -> str:
    return (
        "{kind: Deployment, apiVersion: apps/v1, metadata: {name: web}, spec: {"
        f"replicas: {replicas}, selector: {{matchLabels: {{app: web}}}}, template: {{metadata: {{labels: {{app: web}}}},"
        f"spec: {{containers: [{{name: c, image: {image}, ports: [{{containerPort: 80}}]}}]}}}}}}}}"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(
            "{kind: Ingress, metadata: {name: a}}", "object: kind='Ingress': the lab knows", id="kind"
        ),
        pytest.param("{kind: Pod}", "Pod: metadata=None: expected an object", id="no metadata"),
        pytest.param("{kind: Pod, apiVersion: v1, metadata: {name: A_b}}", "metadata.name='A_b'", id="name"),
        pytest.param(
            "{kind: Pod, apiVersion: v1, metadata: {name: node1}}",
            "is kept for the lab's own",
            id="name of a node",
        ),
        pytest.param(
            "{kind: Pod, apiVersion: v1, metadata: {name: a, namespace: B}}",
            "metadata.namespace='B'",
            id="namespace",
        ),
        pytest.param(
            "{kind: Pod, apiVersion: v2, metadata: {name: a}}", "apiVersion='v2': expected v1", id="version"
        ),
        pytest.param(
            "{kind: Pod, apiVersion: v1, metadata: {name: a}, spec: {nodeName: node9}}",
            "Pod default/a: spec.nodeName='node9': the lab has node1, node2",
            id="node",
        ),
        pytest.param(
            "{kind: Pod, apiVersion: v1, metadata: {name: a}, spec: {hostNetwork: true}}",
            "spec.hostNetwork=True",
            id="host network",
        ),
        pytest.param(
            "{kind: Pod, apiVersion: v1, metadata: {name: a},"
            " spec: {containers: [{ports: [{containerPort: 70000}]}]}}",
            "containerPort=70000: expected 1..65535",
            id="container port",
        ),
        pytest.param(
            f"{WEB}\n---\n{WEB}",
            "f document 2: Service default/web: metadata.name='web': is in f document 1",
            id="twice",
        ),
        pytest.param(
            "{kind: Node, apiVersion: v1, metadata: {name: n}}", "the lab has node1, node2", id="no such node"
        ),
        pytest.param(deployment(-1), "spec.replicas=-1: expected 0..500", id="replicas"),
        pytest.param(
            deployment(1).replace("matchLabels: {app: web}", "matchLabels: {app: db}"),
            "does not select the template's labels",
            id="selector",
        ),
        pytest.param(
            deployment(1).replace("apps/v1", "v1"), "apiVersion='v1': expected apps/v1", id="workload version"
        ),
        pytest.param(
            deployment(1).replace("containerPort: 80", "containerPort: x"),
            "containerPort",
            id="template's pod",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_naming_place_object_field_and_value(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(text)
    assert said in str(caught.value)
    assert str(caught.value).startswith("f document ")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        pytest.param("{type: X, ports: [{port: 1}]}", "spec.type='X'", id="type"),
        pytest.param("{ports: []}", "spec.ports=[]", id="no ports"),
        pytest.param("{ports: [{port: 0}]}", "spec.ports[0].port=0", id="port 0"),
        pytest.param(
            "{ports: [{port: 1}, {port: 2}]}", "spec.ports[0].name=None: several ports", id="no names"
        ),
        pytest.param(
            "{ports: [{port: 1, name: a}, {port: 2, name: a}]}", "spec.ports[1].name='a'", id="same name"
        ),
        pytest.param(
            "{ports: [{port: 1, name: a}, {port: 1, name: b}]}", "spec.ports[1].port=1", id="same port"
        ),
        pytest.param(
            "{clusterIP: 10.1.1.1, ports: [{port: 1}]}", "an address of 10.96.0.0/16", id="foreign address"
        ),
        pytest.param(
            "{clusterIP: 10.96.0.99, ports: [{port: 1}]}", "is Service default/other's", id="taken address"
        ),
        pytest.param("{clusterIP: x, ports: [{port: 1}]}", "spec.clusterIPs='x'", id="no address"),
        pytest.param("{ipFamilies: [IPv6], ports: [{port: 1}]}", "the lab has no such family", id="family"),
        pytest.param(
            "{ipFamilyPolicy: RequireDualStack, ports: [{port: 1}]}", "the lab has only IPv4", id="dual"
        ),
        pytest.param(
            "{type: NodePort, ports: [{port: 1, nodePort: 80}]}", "expected 30000..32767", id="node port"
        ),
        pytest.param(
            "{type: NodePort, ports: [{port: 1, nodePort: 30000}]}", "is Service default/other's", id="taken"
        ),
        pytest.param("{type: ExternalName}", "spec.externalName=None", id="external name"),
    ],
)
def test_a_wrong_service_is_refused(spec: str, said: str) -> None:
    other = check(
        "{kind: Service, apiVersion: v1, metadata: {name: other},"
        " spec: {type: NodePort, clusterIP: 10.96.0.99, ports: [{port: 1}]}}"
    ).objects
    with pytest.raises(ConfigError) as caught:
        service(spec, other)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "families", "expected"),
    [
        pytest.param(
            "{ports: [{port: 80}]}", V4, {"clusterIPs": ["10.96.0.20"], "type": "ClusterIP"}, id="default"
        ),
        pytest.param(
            "{ports: [{port: 80}]}", (Family.V6,), {"clusterIPs": ["fd00:10:96::14"]}, id="ipv6 lab"
        ),
        pytest.param("{ports: [{port: 80}]}", DUAL, {"ipFamilies": ["IPv4"]}, id="single stack by default"),
        pytest.param(
            "{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}",
            DUAL,
            {"clusterIPs": ["10.96.0.20", "fd00:10:96::14"], "ipFamilies": ["IPv4", "IPv6"]},
            id="dual",
        ),
        pytest.param(
            "{ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}",
            V4,
            {"ipFamilies": ["IPv4"]},
            id="preferred only",
        ),
        pytest.param(
            "{ipFamilies: [IPv6, IPv4], ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}",
            DUAL,
            {"clusterIPs": ["fd00:10:96::14", "10.96.0.20"], "clusterIP": "fd00:10:96::14"},
            id="families in the order asked for",
        ),
        pytest.param(
            "{clusterIP: None, ports: []}",
            DUAL,
            {"clusterIPs": ["None"], "ipFamilies": ["IPv4", "IPv6"]},
            id="headless",
        ),
        pytest.param(
            "{clusterIP: 10.96.7.7, ports: [{port: 80}]}", V4, {"clusterIPs": ["10.96.7.7"]}, id="asked for"
        ),
        pytest.param(
            "{type: NodePort, ports: [{port: 80, name: a, nodePort: 30001}, {port: 81, name: b}]}",
            V4,
            {
                "ports": [
                    {"port": 80, "name": "a", "nodePort": 30001, "protocol": "TCP", "targetPort": 80},
                    {"port": 81, "name": "b", "nodePort": 30000, "protocol": "TCP", "targetPort": 81},
                ]
            },
            id="node ports",
        ),
        pytest.param(
            "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]}",
            V4,
            {"healthCheckNodePort": 30001},
            id="health check",
        ),
        pytest.param(
            "{type: LoadBalancer, allocateLoadBalancerNodePorts: false, ports: [{port: 80}]}",
            V4,
            {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]},
            id="no node ports wanted",
        ),
    ],
)
def test_services_are_completed(spec: str, families: tuple[Family, ...], expected: dict[str, object]) -> None:
    found = service(spec, families=families)
    assert {name: found[name] for name in expected} == expected


def test_what_was_given_out_stays_when_a_service_is_applied_again() -> None:
    text = "{type: NodePort, ports: [{port: 80, name: a}, {port: 81, name: b}]}"
    whole = f"{{kind: Service, apiVersion: v1, metadata: {{name: web}}, spec: {text}}}"
    first = check(f"{WEB.replace('web', 'other')}\n---\n{whole}")
    again = check(whole, first.objects)
    assert again.objects == first.objects
    assert again.told == ["Service default/web unchanged"]
    alone = {key: value for key, value in first.objects.items() if key.name != "other"}
    assert check(whole, alone).objects == alone, "though lower ones are free by now"
    less = check(whole.replace("{port: 80, name: a}, ", ""), first.objects)
    (port,) = less.objects[Key("Service", "default", "web")]["spec"]["ports"]
    assert port["nodePort"] == first.objects[Key("Service", "default", "web")]["spec"]["ports"][1]["nodePort"]


def test_namespaces_that_are_named_come_into_being() -> None:
    found = check(WEB.replace("name: web", "name: web, namespace: shop"))
    space = found.objects[Key("Namespace", "", "shop")]
    assert space["metadata"]["labels"] == {"kubernetes.io/metadata.name": "shop"}


def test_a_node_of_the_lab_takes_labels() -> None:
    found = check(
        "{kind: Node, apiVersion: v1, metadata: {name: node1, labels: {topology.kubernetes.io/zone: a}}}"
    )
    assert found.objects[Key("Node", "", "node1")]["metadata"]["labels"] == {
        "topology.kubernetes.io/zone": "a"
    }


# workloads


def pods(intent: Intent) -> list[str]:
    return [pod["metadata"]["name"] for pod in intent.new]


def grown(intent: Intent) -> dict[Key, Mappings]:
    """The objects once the intent has been carried out."""
    kept = {key: value for key, value in intent.objects.items() if key not in intent.ended}
    return kept | {key_of(pod): pod for pod in intent.new}


def test_a_deployment_grows_shrinks_and_is_replaced_as_a_whole() -> None:
    first = check(deployment(3))
    assert pods(first) == ["web-1", "web-2", "web-3"]
    assert first.new[0]["metadata"]["labels"]["app"] == "web"
    more = check(deployment(5), grown(first))
    assert (pods(more), more.ended) == (["web-4", "web-5"], [])
    less = check(deployment(1), grown(more))
    assert (pods(less), [key.name for key in less.ended]) == ([], ["web-2", "web-3", "web-4", "web-5"])
    other = check(deployment(2, image="y"), grown(less))
    assert (pods(other), [key.name for key in other.ended]) == (["web-2", "web-3"], ["web-1"])
    same = check(deployment(2, image="y"), grown(other))
    assert (pods(same), same.ended, same.told) == ([], [], ["Deployment default/web unchanged"])


def test_an_ending_pod_is_replaced_under_another_name() -> None:
    objects = grown(check(deployment(2)))
    key = Key("Pod", "default", "web-1")
    objects[key] = apply_settle.ending(objects[key], "2026-01-01T00:00:00+00:00", 1)
    found = workloads.plan(objects[Key("Deployment", "default", "web")], objects)
    assert ([pod["metadata"]["name"] for pod in found.new], found.ended) == (["web-3"], [])


def test_a_pod_that_is_there_may_change_its_labels_and_nothing_else() -> None:
    text = "{kind: Pod, apiVersion: v1, metadata: {name: a, labels: {x: y}}, spec: {nodeName: node1}}"
    objects = grown(check(text))
    changed = check(text.replace("x: y", "x: z"), objects)
    assert (changed.new, changed.told) == ([], ["Pod default/a configured"])
    with pytest.raises(ConfigError, match="cannot be changed: delete the pod first"):
        check(text.replace("node1", "node2"), objects)


# what follows


def made(intent: Intent, ready: bool = True) -> dict[Key, Mappings]:
    """The objects with their pods made, on node1 and node2 in turn."""
    result = dict(intent.objects)
    for number, pod in enumerate(intent.new, 1):
        record = PodRecord(
            name=pod["metadata"]["name"], node=f"node{2 - number % 2}", namespace="n", container_id=f"c{number}",
            ips=(f"10.244.0.{number}", f"fd00::{number}"),
        )  # fmt: skip
        result[key_of(pod)] = apply_settle.with_status(
            pod, record, ready=ready, created="2026-01-01T00:00:00Z"
        )
    return result


def settle(objects: Mapping[Key, Mappings], now: float = 1.0) -> dict[Key, Mappings]:
    return apply_settle.settled(objects, POOLS, now).objects


def test_slices_keep_their_trigger_time_until_endpoints_change() -> None:
    key = Key("EndpointSlice", "default", "web-ipv4-0")
    objects = settle(made(check(f"{WEB}\n---\n{deployment(2)}")), 100.0)
    assert "1970-01-01T00:01:40" in str(objects[key]["metadata"]["annotations"])
    assert settle(objects, 200.0) == objects
    pod = Key("Pod", "default", "web-1")
    changed = settle({**objects, pod: apply_settle.with_ready(objects[pod], ready=False, listen=None)}, 300.0)
    assert "1970-01-01T00:05:00" in str(changed[key]["metadata"]["annotations"])
    assert [entry["conditions"]["ready"] for entry in changed[key]["endpoints"]] == [False, True]
    gone = {other: value for other, value in changed.items() if other.kind != "Service"}
    assert key not in settle(gone)


def test_slices_given_by_hand_are_used_as_they_are() -> None:
    mine = (
        "{kind: EndpointSlice, apiVersion: discovery.k8s.io/v1, addressType: IPv4, metadata: {name: mine,"
        " labels: {kubernetes.io/service-name: web}}, endpoints: [{addresses: [10.9.9.9]}], ports: [{port: 1}]}"
    )
    objects = settle(made(check(f"{WEB}\n---\n{deployment(1)}\n---\n{mine}")))
    assert [key.name for key in objects if key.kind == "EndpointSlice"] == ["mine"]


def test_balancers_get_addresses_and_lose_them_with_their_type() -> None:
    key = Key("Service", "default", "web")
    text = WEB.replace("spec: {", "spec: {type: LoadBalancer, ")
    objects = settle(check(text).objects)
    assert objects[key]["status"]["loadBalancer"]["ingress"] == [{"ip": "10.98.0.1", "ipMode": "VIP"}]
    again = settle(check(text, objects).objects)
    assert again == objects
    plain = settle(check(WEB, objects).objects)
    assert plain[key]["status"]["loadBalancer"]["ingress"] == []
    lacking = apply_settle.settled(check(text).objects, (), 1.0)
    assert lacking.problems


def test_a_pod_listens_on_its_ports_unless_it_is_told_not_to() -> None:
    objects = made(check(deployment(1)))
    record = PodRecord(name="web-1", node="node1", namespace="ns", container_id="c1")
    (served,) = apply_settle.serving("node1", objects, [record], V4)
    assert served == ServedPod(name="web-1", id="c1", namespace="ns", ports=((6, 80),), families=(2,))
    assert apply_settle.serving("node2", objects, [record], V4) == ()
    key = Key("Pod", "default", "web-1")
    objects[key] = apply_settle.with_ready(objects[key], ready=True, listen=False)
    assert apply_settle.serving("node1", objects, [record], V4) == ()
    objects[key] = apply_settle.with_ready(objects[key], ready=True, listen=True)
    assert apply_settle.serving("node1", objects, [record], V4) == (served,)


# DNS


@pytest.mark.parametrize(
    ("text", "hosts", "special"),
    [
        pytest.param(WEB, ["10.96.0.20 web.default.svc.cluster.local"], [], id="ClusterIP"),
        pytest.param(
            WEB.replace("port: 80", "port: 80, name: http"),
            ["10.96.0.20 web.default.svc.cluster.local"],
            ["srv-host=_http._tcp.web.default.svc.cluster.local,web.default.svc.cluster.local,80,0,100"],
            id="named port",
        ),
        pytest.param(
            WEB.replace("spec: {", "spec: {clusterIP: None, ").replace("port: 80", "port: 80, name: http"),
            [
                "10.244.0.1 10-244-0-1.web.default.svc.cluster.local web.default.svc.cluster.local",
                "10.244.0.2 10-244-0-2.web.default.svc.cluster.local web.default.svc.cluster.local",
            ],
            [
                "srv-host=_http._tcp.web.default.svc.cluster.local,10-244-0-1.web.default.svc.cluster.local,80,0,100",
                "srv-host=_http._tcp.web.default.svc.cluster.local,10-244-0-2.web.default.svc.cluster.local,80,0,100",
            ],
            id="headless",
        ),
        pytest.param(
            "{kind: Service, apiVersion: v1, metadata: {name: ext}, spec: {type: ExternalName, externalName: a.org.}}",
            [],
            ["cname=ext.default.svc.cluster.local,a.org"],
            id="ExternalName",
        ),
    ],
)
def test_dns_records(text: str, hosts: list[str], special: list[str]) -> None:
    found = dns.records(settle(made(check(f"{text}\n---\n{deployment(2)}"))))
    assert (found.hosts.splitlines(), found.special.splitlines()) == (hosts, special)


def test_a_headless_service_names_ready_pods_only_and_by_their_hostname() -> None:
    text = WEB.replace("spec: {", "spec: {clusterIP: None, ")
    named = deployment(2).replace("spec: {containers", "spec: {hostname: a, subdomain: web, containers")
    objects = made(check(f"{text}\n---\n{named}"))
    pod = Key("Pod", "default", "web-2")
    objects[pod] = apply_settle.with_ready(objects[pod], ready=False, listen=None)
    assert dns.records(settle(objects)).hosts == (
        "10.244.0.1 a.web.default.svc.cluster.local web.default.svc.cluster.local\n"
    )


# the matrix


ASKERS = [Asker("node1", "node1", V4), Asker("web-2", "node2", V4), Asker("client", "", V4)]
NODES = {"node1": {Family.V4: "172.20.0.1"}, "node2": {Family.V4: "172.20.0.2"}}


def tried(
    text: str, replicas: int = 2, listening: int = 2, ready: bool = True
) -> list[tuple[str, str, str, list[str]]]:
    objects = settle(made(check(f"{text}\n---\n{deployment(replicas)}"), ready))
    served = [ServedPod(name=f"web-{n}", id="", namespace="") for n in range(1, listening + 1)]
    return [
        (item.check.source, item.address, item.check.kind, sorted(item.pods))
        for item in matrix_services.plan(objects, served, ASKERS, NODES)
    ]


BOTH = ["web-1", "web-2"]


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        pytest.param(
            WEB,
            {},
            [("node1", "10.96.0.20", "tcp 80", BOTH), ("web-2", "10.96.0.20", "tcp 80", BOTH)],
            id="ClusterIP",
        ),
        pytest.param(
            WEB.replace("spec: {", "spec: {internalTrafficPolicy: Local, "),
            {"replicas": 1, "listening": 1},
            [("node1", "10.96.0.20", "tcp 80", ["web-1"])],
            id="only where there is one",
        ),
        pytest.param(
            WEB.replace("spec: {", "spec: {type: NodePort, externalTrafficPolicy: Local, "),
            {"replicas": 1, "listening": 1},
            [
                ("node1", "10.96.0.20", "tcp 80", ["web-1"]),
                ("web-2", "10.96.0.20", "tcp 80", ["web-1"]),
                ("client", "172.20.0.1", "tcp 30000 at node1", ["web-1"]),
            ],
            id="node port of a local service",
        ),
        pytest.param(WEB, {"ready": False}, [], id="nobody ready"),
        pytest.param(WEB, {"listening": 1}, [], id="somebody who is no lab server"),
        pytest.param(WEB.replace("spec: {", "spec: {clusterIP: None, "), {}, [], id="headless"),
    ],
)
def test_the_matrix_tries_what_has_to_work(
    text: str, given: dict[str, Any], expected: list[tuple[str, str, str, list[str]]]
) -> None:
    assert tried(text, **given) == expected


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(("web-1 10.1.1.1", ""), "", id="right"),
        pytest.param(("db 10.1.1.1", ""), "answered by db", id="the wrong pod"),
        pytest.param(("", "Connection refused"), "port 80: Connection refused", id="refused"),
    ],
)
def test_only_the_right_pod_is_a_success(answer: tuple[str, str], said: str) -> None:
    objects = settle(made(check(f"{WEB}\n---\n{deployment(1)}")))
    served = [ServedPod(name="web-1", id="", namespace="")]
    item = matrix_services.plan(objects, served, ASKERS, NODES)[0]
    found = judge(item, answer)
    assert found.endswith(said)
    assert bool(found) is bool(said)


# text and files


def test_tables_show_who_is_behind_a_service() -> None:
    objects = settle(made(check(f"{WEB}\n---\n{deployment(2)}")))
    shown = tables(objects, [key for key in objects if key.kind == "Service"], NOW)
    assert shown.splitlines() == [
        "NAMESPACE  NAME  TYPE       ADDRESSES   PORTS   ENDPOINTS",
        "default    web   ClusterIP  10.96.0.20  80/TCP  web-1 web-2",
    ]
    assert "nothing there" in tables(objects, [], NOW)


def test_endpoints_in_words() -> None:
    entries = [
        SliceEndpoint(address="10.0.0.1", pod="d/a"),
        SliceEndpoint(address="10.0.0.2", pod="d/b", ready=False),
        SliceEndpoint(address="10.0.0.3", pod="d/c", ready=False, terminating=True),
        *(SliceEndpoint(address=f"10.0.1.{n}") for n in range(5)),
    ]
    assert endpoint_text(entries) == "a b(not ready) c(ending) 10.0.1.0 10.0.1.1 10.0.1.2 and 2 more"


def test_a_histogram_has_a_bar_per_answer() -> None:
    found = Tally(
        asked=4, pods={"b": 2, "a": 1}, clients={"10.0.0.1": 3}, failures={"refused": 1}, longest_s=0.002
    )
    assert [line.split()[:2] for line in histogram(found).splitlines()] == [
        ["a", "1"], ["b", "2"], ["refused", "1"], ["3", "of"],
    ]  # fmt: skip


def test_objects_are_one_file_each_and_only_changed_ones_are_written(tmp_path: Any) -> None:
    folder = Objects(tmp_path / "m")
    objects = settle(made(check(f"{WEB}\n---\n{deployment(1)}")))
    assert folder.write({}, objects) == 1
    assert folder.load() == objects
    assert folder.write(objects, objects) == 1, "nothing changed"
    before = {file: file.stat().st_ino for file in folder.folder.iterdir()}
    pod = Key("Pod", "default", "web-1")
    changed = {**objects, pod: {**objects[pod], "extra": 1}}
    del changed[Key("Service", "default", "web")]
    assert folder.write(objects, changed) == folder.number() == 2
    assert folder.load() == dict(sorted(changed.items()))
    after = {file: file.stat().st_ino for file in folder.folder.iterdir()}
    assert {file.name for file in before if after.get(file) != before[file]} == {
        ".generation",
        "pod.default.web-1.json",
        "service.default.web.json",
    }


POLICIES = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}
---
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: closed}
spec:
  tier: Baseline
  priority: 7
  subject: {namespaces: {matchExpressions: [{key: env, operator: NotIn, values: [test]}]}}
  ingress: [{action: Deny, from: [{namespaces: {}}]}]
"""


def test_policies_are_applied_shown_and_refused_by_what_is_wrong() -> None:
    found = check(POLICIES)
    assert [line.rpartition(" ")[2] for line in found.told] == ["created", "created"]
    held = {key: value for key, value in found.objects.items() if "Policy" in key.kind}
    assert set(held) == {Key("NetworkPolicy", "shop", "web"), Key("ClusterNetworkPolicy", "", "closed")}
    assert Key("Namespace", "", "shop") in found.objects
    rows = [line.split("  ") for line in tables(held, set(held), NOW).splitlines()]
    words = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert ["shop", "web", "app=web", "1 rule", "-", "-"] in words
    assert ["-", "closed", "Baseline", "7", "env notin (test)", "all", "1 rule", "-", "-"] in words
    with pytest.raises(ConfigError, match=r"spec\.priority=1001: expected 0\.\.1000"):
        check(POLICIES.replace("priority: 7", "priority: 1001"))


def test_ages_are_told_in_the_largest_unit_that_fits_twice() -> None:
    def age(seconds: float) -> str:
        made = {"metadata": {"creationTimestamp": datetime.fromtimestamp(NOW - seconds, UTC).isoformat()}}
        return age_text(made, NOW)

    assert [age(item) for item in (0, 119, 120, 7199, 7200, 172799, 172800)] == [
        "0s", "119s", "2m", "119m", "2h", "47h", "2d",
    ]  # fmt: skip
    assert age_text({"metadata": {}}, NOW) == "-"


def test_labels_are_set_and_taken_away_and_a_namespace_keeps_its_name() -> None:
    assert label_changes(["app=web", "old-", "empty="]) == {"app": "web", "old": None, "empty": ""}
    for wrong in ("app", "=x", "-"):
        with pytest.raises(LabError, match="expected KEY=VALUE"):
            label_changes([wrong])
    space = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"a": "1", "b": "2"}},
    }
    changed = relabelled(space, {"a": "3", "b": None, "kubernetes.io/metadata.name": "other"})
    assert changed["metadata"]["labels"] == {"a": "3", "kubernetes.io/metadata.name": "shop"}
    assert space["metadata"]["labels"] == {"a": "1", "b": "2"}, "the old one is as it was"


def test_a_pod_is_made_of_words() -> None:
    value = manifest_of("web.shop", "app=web,tier=front", "http:80,53/udp,8443")
    assert value["metadata"] == {
        "name": "web",
        "namespace": "shop",
        "labels": {"app": "web", "tier": "front"},
    }
    assert value["spec"]["containers"][0]["ports"] == [
        {"name": "http", "containerPort": 80, "protocol": "TCP"},
        {"containerPort": 53, "protocol": "UDP"},
        {"containerPort": 8443, "protocol": "TCP"},
    ]
    assert manifest_of("one", "", "")["metadata"]["labels"] == {"pod": "one"}
    for wrong in ("http:", ":80", "80/ICMP", "x"):
        with pytest.raises(LabError, match=r"expected .NAME:.NUMBER"):
            manifest_of("one", "", wrong)
    with pytest.raises(LabError, match="has no value"):
        manifest_of("one", "app-", "")


def test_policies_are_written_before_the_pods_they_are_about(tmp_path: Any, monkeypatch: Any) -> None:
    order: list[Key] = []
    monkeypatch.setattr(Objects, "_put", lambda _self, key, _value: order.append(key))
    keys = [Key("Pod", "a", "p"), Key("NetworkPolicy", "a", "n"), Key("ClusterNetworkPolicy", "", "c")]
    Objects(tmp_path).write({}, {key: {} for key in keys})
    assert order[-1] == keys[0]
