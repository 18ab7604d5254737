"""Kubernetes objects from JSON: what is kept, what absent means, what is refused, and that nothing else ever happens."""

import json

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.errors import ConfigError
from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP, ContainerPort, Ingress, ServicePortSpec, SlicePort
from pycni.wire import kube
from pycni.wire.kube import decode_event, decode_list, decode_object, decode_status, from_mapping

VERSIONS = {"EndpointSlice": "discovery.k8s.io/v1"}


def whole(kind, meta=None, **rest):
    meta = {"name": "web", "namespace": "default", **(meta or {})}
    return {"apiVersion": VERSIONS.get(kind, "v1"), "kind": kind, "metadata": meta, **rest}


def decode(kind, meta=None, **rest):
    found_kind, found = decode_object(json.dumps(whole(kind, meta, **rest)).encode())
    assert found_kind == kind
    return found


def service(**spec):
    return decode("Service", spec=spec)


SERVICE_FIELDS = [
    ("clusterIPs", {"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "FD00:0::1"]}, "cluster_ips", ("10.0.0.1", "fd00::1")),
    ("only clusterIP", {"clusterIP": "10.0.0.1"}, "cluster_ips", ("10.0.0.1",)),
    ("headless", {"clusterIP": "None", "clusterIPs": ["None"]}, "cluster_ips", ("None",)),
    ("not assigned", {"clusterIP": ""}, "cluster_ips", ()),
    ("ExternalName", {"type": "ExternalName", "externalName": "a.b", "clusterIP": ""}, "cluster_ips", ()),
    ("leading zeros are decimal", {"clusterIP": "010.000.0.09"}, "cluster_ips", ("10.0.0.9",)),
    ("an IPv4 address in IPv6 clothes", {"externalIPs": ["::ffff:192.0.2.1"]}, "external_ips", ("192.0.2.1",)),
    ("families", {"ipFamilies": ["IPv6", "IPv4"]}, "families", (Family.V6, Family.V4)),
    ("families by address", {"clusterIP": "fd00::1"}, "families", (Family.V6,)),
    ("no families without addresses", {"clusterIP": "None"}, "families", ()),
    ("null lists", {"ports": None, "externalIPs": None, "loadBalancerSourceRanges": None}, "ports", ()),
    ("null selector", {"selector": None}, "selector", {}),
    ("ranges", {"loadBalancerSourceRanges": [" 10.1.2.3/8 ", "FD00::/8"]}, "source_ranges", ("10.0.0.0/8", "fd00::/8")),
    ("affinity", {"sessionAffinity": "ClientIP"}, "affinity_s", 10800),
    ("affinity off", {"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}}, "affinity_s", 0),
    ("affinity time", {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 7}}}, "affinity_s", 7),
    ("affinity null", {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": None}}, "affinity_s", 10800),
    ("internal local", {"internalTrafficPolicy": "Local"}, "internal_local", True),
    ("external cluster", {"externalTrafficPolicy": "Cluster"}, "external_local", False),
    ("node ports allocated by default", {}, "allocate_node_ports", True),
    ("node ports not allocated", {"allocateLoadBalancerNodePorts": False}, "allocate_node_ports", False),
    ("class", {"loadBalancerClass": "default"}, "load_balancer_class", "default"),
    ("asked address", {"loadBalancerIP": "FD00::1"}, "load_balancer_ip", "fd00::1"),
    ("asked for nothing", {"loadBalancerIP": ""}, "load_balancer_ip", ""),
    ("family policy by default", {}, "family_policy", "SingleStack"),
    ("distribution", {"trafficDistribution": "PreferClose"}, "traffic_distribution", "PreferClose"),
    ("health check", {"healthCheckNodePort": 30123}, "health_check_node_port", 30123),
    ("not ready", {"publishNotReadyAddresses": True}, "publish_not_ready", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("spec", "field", "value"), [row[1:] for row in SERVICE_FIELDS], ids=[row[0] for row in SERVICE_FIELDS]
)
def test_a_services_field_means_what_the_api_says(spec, field, value):
    assert getattr(service(**spec), field) == value


def test_service_ports_keep_names_numbers_and_protocols():
    ports = [
        {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns-udp", "nodePort": 30053},
        {"name": "s", "protocol": "SCTP", "port": 9, "targetPort": 99},
        {"port": 80, "targetPort": "8080"},
        {"port": 81, "nodePort": None},
    ]
    assert service(ports=ports).ports == (
        ServicePortSpec(port=53, name="dns", protocol=UDP, target_port="dns-udp", node_port=30053),
        ServicePortSpec(port=9, name="s", protocol=SCTP, target_port=99),
        ServicePortSpec(port=80, protocol=TCP, target_port=8080),
        ServicePortSpec(port=81),
    )


def test_only_ingress_entries_with_an_address_count():
    entries = [
        {"ip": "192.0.2.1", "ipMode": "Proxy"},
        {"hostname": "lb.example"},
        {"ip": "192.0.2.2", "ipMode": "VIP"},
    ]
    found = decode("Service", status={"loadBalancer": {"ingress": entries}})
    assert found.ingress == (Ingress(ip="192.0.2.1", proxy=True), Ingress(ip="192.0.2.2"))
    assert decode("Service", status={"loadBalancer": {"ingress": None}}).ingress == ()
    assert decode("Service", status={}).ingress == ()


def slice_(endpoints, meta=None, **rest):
    return decode("EndpointSlice", meta, addressType="IPv4", endpoints=endpoints, **rest)


CONDITIONS = [
    ("absent", {}, (True, True, False)),
    ("null", {"conditions": None}, (True, True, False)),
    ("nulls", {"conditions": {"ready": None, "serving": None, "terminating": None}}, (True, True, False)),
    ("not ready", {"conditions": {"ready": False}}, (False, False, False)),
    ("serving and terminating", {"conditions": {"ready": False, "serving": True, "terminating": True}}, (False, True, True)),
    ("ready only", {"conditions": {"ready": True, "serving": False}}, (True, False, False)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("entry", "expected"), [row[1:] for row in CONDITIONS], ids=[row[0] for row in CONDITIONS]
)
def test_absent_conditions_are_resolved_as_the_api_says(entry, expected):
    (found,) = slice_([{"addresses": ["10.0.0.1"], **entry}]).endpoints
    assert (found.ready, found.serving, found.terminating) == expected


def test_a_slice_keeps_service_ports_places_and_hints():
    entry = {
        "addresses": ["10.0.0.1", "10.0.0.2"],
        "nodeName": "n1",
        "zone": "z1",
        "targetRef": {"kind": "Pod", "namespace": "other", "name": "p"},
        "hints": {"forZones": [{"name": "z1"}, {"name": "z2"}], "forNodes": [{"name": "n1"}]},
    }
    meta = {
        "labels": {"kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "", "app": "web"},
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2024-01-01T00:00:00.5Z"},
    }
    found = slice_(
        [entry, {"addresses": None}],
        meta,
        ports=[{"name": None, "port": None}, {"name": "u", "port": 5, "protocol": "UDP"}],
    )
    assert (found.service, found.headless, found.changed) == ("default/web", True, 1704067200.5)
    assert found.ports == (SlicePort(port=0), SlicePort(port=5, name="u", protocol=UDP))
    assert "app" not in found.meta.labels, "labels nobody asks for cost memory"
    (endpoint,) = found.endpoints
    assert endpoint.address == "10.0.0.1", "consumers use the first address only"
    assert (endpoint.node, endpoint.zone, endpoint.pod) == ("n1", "z1", "other/p")
    assert (endpoint.hint_zones, endpoint.hint_nodes) == (("z1", "z2"), ("n1",))


def test_a_pods_ports_are_those_of_containers_and_sidecars():
    spec = {
        "nodeName": "n1",
        "containers": [{"ports": [{"containerPort": 80, "name": "http"}]}, {"ports": None}],
        "initContainers": [
            {
                "restartPolicy": "Always",
                "ports": [{"containerPort": 15001, "protocol": "UDP", "hostPort": 5}],
            },
            {"ports": [{"containerPort": 1}]},
        ],
        "terminationGracePeriodSeconds": 0,
        "hostname": "h",
        "subdomain": "s",
    }
    status = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "podIPs": [{"ip": "10.0.0.1"}, {"ip": "FD00::1"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    found = decode("Pod", spec=spec, status=status)
    assert found.ports == (
        ContainerPort(port=80, name="http"),
        ContainerPort(port=15001, protocol=UDP, host_port=5),
    )
    assert (found.ips, found.ready, found.grace_s, found.node, found.phase) == (
        ("10.0.0.1", "fd00::1"),
        True,
        0,
        "n1",
        "Running",
    )
    assert (found.hostname, found.subdomain, found.host_network) == ("h", "s", False)
    bare = decode("Pod", spec={"containers": None}, status={"podIP": "10.0.0.9", "conditions": None})
    assert (bare.ips, bare.ready, bare.grace_s, bare.ports) == (("10.0.0.9",), False, 30, ())


@pytest.mark.parametrize("kind", ["containers", "initContainers", "ephemeralContainers"])
@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (None, False),
        ({}, False),
        ({"privileged": False, "capabilities": {"add": ["NET_RAW", "NET_BIND_SERVICE"]}}, False),
        ({"capabilities": {"drop": ["NET_ADMIN"]}}, False),
        ({"privileged": True}, True),
        ({"capabilities": {"add": ["NET_RAW", "NET_ADMIN"]}}, True),
        ({"capabilities": {"add": ["cap_net_admin"]}}, True),
        ({"capabilities": {"add": ["ALL"]}}, True),
    ],
)
def test_who_may_change_a_pods_network_is_known(kind, context, expected):
    found = decode("Pod", spec={kind: [{"name": "a"}, {"name": "b", "securityContext": context}]})
    assert found.net_admin is expected


def test_a_node_keeps_pod_networks_and_addresses_by_type():
    addresses = [
        {"type": "InternalIP", "address": "192.0.2.1"},
        {"type": "Hostname", "address": "n1"},
        {"type": "ExternalIP", "address": "FD00::5"},
    ]
    found = decode("Node", spec={"podCIDR": "10.244.1.7/24"}, status={"addresses": addresses})
    assert found.meta.key == "web", "nodes have no namespace"
    assert (found.pod_cidrs, found.internal_ips, found.external_ips) == (
        ("10.244.1.0/24",),
        ("192.0.2.1",),
        ("fd00::5",),
    )
    both = decode("Node", spec={"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]})
    assert both.pod_cidrs == ("10.244.1.0/24", "fd00:1::/64")


ANNOTATIONS = [
    ("kube-router's", "Service", "kube-router.io/service.scheduler", True),
    ("flannel's", "Node", "flannel.alpha.coreos.com/public-ip", True),
    ("flannel's under another prefix", "Node", "net.example/team-backend-data", True),
    ("flannel's names mean nothing elsewhere", "Service", "net.example/public-ip", False),
    ("topology mode", "Service", "service.kubernetes.io/topology-mode", True),
    ("ours", "Pod", "pycni/x", True),
    ("kubectl's", "Service", "kubectl.kubernetes.io/last-applied-configuration", False),
]


@pytest.mark.parametrize(
    ("kind", "name", "kept"), [row[1:] for row in ANNOTATIONS], ids=[row[0] for row in ANNOTATIONS]
)
def test_annotations_are_kept_by_prefix(kind, name, kept):
    found = decode(kind, {"annotations": {name: "v", "other": None}}, spec={})
    assert (found.meta.annotations == {name: "v"}) is kept
    assert kept or found.meta.annotations == {}


def test_metadata_says_when_and_whether_it_is_going():
    found = decode(
        "Namespace",
        {
            "uid": "u",
            "creationTimestamp": "1970-01-01T00:01:00Z",
            "deletionTimestamp": "2024-01-01T00:00:00Z",
            "labels": {"a": None},
        },
    )
    assert (found.meta.created, found.meta.deleting, found.meta.uid, found.meta.labels) == (
        60,
        True,
        "u",
        {"a": ""},
    )
    assert decode("Namespace", {"creationTimestamp": "yesterday"}).meta.created == 0


REFUSED = [
    ("no name", whole("Service", {"name": None}), "Service", "metadata.name", None),
    ("a name with a slash", whole("Service", {"name": "a/b"}), "Service", "metadata.name", "a/b"),
    ("no port number", whole("Service", spec={"ports": [{"name": "x"}]}), "Service default/web", "spec.ports[0].port", None),
    ("a port too large", whole("Service", spec={"ports": [{"port": 1}, {"port": 70000}]}), "Service default/web", "spec.ports[1].port", 70000),
    ("a target too large", whole("Service", spec={"ports": [{"port": 1, "targetPort": "99999"}]}), "Service default/web", "spec.ports[0].targetPort", 99999),
    ("an unknown protocol", whole("Service", spec={"ports": [{"port": 1, "protocol": "tcp"}]}), "Service default/web", "spec.ports[0].protocol", "tcp"),
    ("a port that is a text", whole("Service", spec={"ports": [{"port": "http"}]}), "Service default/web", "spec.ports[0].port", "http"),
    ("no address", whole("Service", spec={"clusterIP": "10.0.0.256"}), "Service default/web", "spec.clusterIPs", "10.0.0.256"),
    ("an address with a zone", whole("Service", spec={"externalIPs": ["fe80::1%eth0"]}), "Service default/web", "spec.externalIPs", "fe80::1%eth0"),
    ("no network", whole("Service", spec={"loadBalancerSourceRanges": ["10.0.0.0"]}), "Service default/web", "spec.loadBalancerSourceRanges", "10.0.0.0"),
    ("a mask for a length", whole("Service", spec={"loadBalancerSourceRanges": ["10.0.0.0/255.0.0.0"]}), "Service default/web", "spec.loadBalancerSourceRanges", "10.0.0.0/255.0.0.0"),
    ("an unknown family", whole("Service", spec={"ipFamilies": ["IPv5"]}), "Service default/web", "spec.ipFamilies", "IPv5"),
    ("affinity of no time", whole("Service", spec={"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}), "Service default/web", "spec.sessionAffinityConfig.clientIP.timeoutSeconds", 0),
    ("an unknown address type", whole("EndpointSlice", addressType="MAC"), "EndpointSlice default/web", "addressType", "MAC"),
    ("an address of the other family", whole("EndpointSlice", addressType="IPv6", endpoints=[{"addresses": ["10.0.0.1"]}]), "EndpointSlice default/web", "endpoints.addresses", "10.0.0.1"),
    ("a slice of names", whole("EndpointSlice", addressType="FQDN"), "EndpointSlice default/web", "addressType", "FQDN"),
    ("a pod's wrong address", whole("Pod", status={"podIPs": [{"ip": "x"}]}), "Pod default/web", "status.podIPs", "x"),
    ("a node's wrong network", whole("Node", spec={"podCIDRs": ["10.244.0.0/33"]}), "Node web", "spec.podCIDRs", "10.244.0.0/33"),
    ("labels that are no map", whole("Service", {"labels": ["x"]}), "Service default/web", "metadata.labels", ["x"]),
    ("another kind", whole("Secret"), "object", "kind", "Secret"),
    ("an old version", {**whole("EndpointSlice"), "apiVersion": "discovery.k8s.io/v1beta1"}, "EndpointSlice default/web", "apiVersion", "discovery.k8s.io/v1beta1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("obj", "name", "field", "value"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_nonsense_is_refused_naming_object_field_and_value(obj, name, field, value):
    with pytest.raises(ConfigError) as caught:
        decode_object(json.dumps(obj).encode())
    assert (caught.value.obj, caught.value.field, caught.value.value) == (name, field, value)


def test_one_bad_object_does_not_cost_the_others():
    items = [
        {"metadata": {"name": "a", "namespace": "d"}, "spec": {"ports": [{"port": 0}]}},
        {"metadata": {"name": "b", "namespace": "d"}},
    ]
    page = decode_list(
        "Service",
        json.dumps({"metadata": {"resourceVersion": "7", "continue": "c"}, "items": items}).encode(),
    )
    assert [found.meta.name for found in page.items] == ["b"]
    assert [(skip.key, skip.error.field) for skip in page.skipped] == [("d/a", "spec.ports[0].port")]
    assert (page.resource_version, page.continue_token) == ("7", "c")


def test_one_object_of_the_wrong_shape_does_not_cost_the_others():
    items = [
        {"metadata": {"name": "a", "namespace": "d"}, "spec": {"ports": "none"}},
        {"metadata": {"name": "b"}},
        5,
        None,
    ]
    page = decode_list("Service", json.dumps({"metadata": {}, "items": items}).encode())
    assert [found.meta.key for found in page.items] == ["default/b"]
    first = page.skipped[0]
    assert (first.key, first.error.field, first.error.value) == ("d/a", "spec.ports", "none")
    assert len(page.skipped) == 3


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"<html>", b"{", b'{"items":7}', b"{}", b'"\xff"', b"[" * 100_000]
)
def test_what_is_no_list_is_one_error(body):
    with pytest.raises(ConfigError, match="list of Service"):
        decode_list("Service", body)


def test_a_list_may_say_null_for_nothing():
    page = decode_list("Pod", b'{"metadata":{"resourceVersion":"1"},"items":null}')
    assert (page.items, page.skipped, page.resource_version) == ([], [], "1")


def test_a_bookmark_of_a_pod_with_null_containers_moves_the_version_only():
    line = b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"9","creationTimestamp":null},"spec":{"containers":null},"status":{}}}'
    assert decode_event("Pod", line) == kube.Event("BOOKMARK", "", None, "9")


def test_a_deletion_counts_even_of_what_never_made_sense():
    line = json.dumps(
        {"type": "DELETED", "object": whole("Service", {"resourceVersion": "5"}, spec={"clusterIP": "x"})}
    )
    event = decode_event("Service", line.encode())
    assert (event.key, event.object, event.skipped, event.resource_version) == (
        "default/web",
        None,
        None,
        "5",
    )


@pytest.mark.parametrize("spec", [{"clusterIP": "x"}, {"clusterIP": 7}], ids=["value", "type"])
def test_a_bad_object_in_a_watch_is_skipped_by_name_and_moves_the_version(spec):
    line = json.dumps({"type": "ADDED", "object": whole("Service", {"resourceVersion": "5"}, spec=spec)})
    event = decode_event("Service", line.encode())
    assert (event.key, event.object, event.resource_version) == ("default/web", None, "5")
    assert event.skipped.key == "default/web"
    assert "Service default/web" in str(event.skipped.error)


def test_a_slice_of_names_is_no_object_and_no_error():
    raw = whole("EndpointSlice", {"resourceVersion": "5"}, addressType="FQDN")
    event = decode_event("EndpointSlice", json.dumps({"type": "MODIFIED", "object": raw}).encode())
    assert (event.key, event.object, event.skipped) == ("default/web", None, None)
    assert from_mapping(raw) is None


def test_an_error_event_carries_its_status():
    status = {
        "kind": "Status",
        "code": 429,
        "reason": "TooManyRequests",
        "message": "slow",
        "details": {"retryAfterSeconds": 3},
    }
    event = decode_event("Service", json.dumps({"type": "ERROR", "object": status}).encode())
    assert event.status == kube.Status(429, "TooManyRequests", "slow", 3.0)
    assert decode_event("Service", b'{"type":"ERROR","object":[]}').status.code == 0


@pytest.mark.parametrize(
    "line", [b"", b"{}", b'{"type":"EXPLODED","object":{}}', b'{"type":"ADDED"', b"\xff", b'{"type":7}']
)
def test_what_is_no_event_is_one_error(line):
    with pytest.raises(ConfigError, match="watch of Pod"):
        decode_event("Pod", line)


def test_a_yaml_document_becomes_the_same_object_as_its_json():
    text = """
    apiVersion: v1
    kind: Service
    metadata: {name: web, creationTimestamp: 2024-01-01T00:00:00Z, labels: {1: a}}
    spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
    """
    kind, found = from_mapping(yaml.safe_load(text))
    raw = whole(
        "Service",
        {"creationTimestamp": "2024-01-01T00:00:00Z", "labels": {"1": "a"}},
        spec={
            "clusterIP": "10.0.0.1",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http"}],
        },
    )
    assert (kind, found) == decode_object(json.dumps(raw).encode())


@pytest.mark.parametrize(
    "document", [{}, {"kind": None}, {"kind": "Deployment", "apiVersion": "apps/v1"}, {"kind": ["Service"]}]
)
def test_documents_of_other_kinds_are_left_to_others(document):
    assert from_mapping(document) is None


# --- whatever comes ----------------------------------------------------------------------------------------------

WORDS = [
    "10.0.0.1",
    "fd00::1",
    "None",
    "",
    "TCP",
    "Local",
    "ClientIP",
    "IPv4",
    "LoadBalancer",
    "10.0.0.0/8",
    "80",
    "x",
    "FQDN",
    "Pod",
    "2024-01-01T00:00:00Z",
    "9999-99-99",
    "0001-01-01T00:00:00Z",
]
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
)


def _fields(struct):
    return [field.encode_name for field in msgspec.structs.fields(struct)]


KEYS = sorted({name for struct in vars(kube).values() if isinstance(struct, type) and issubclass(struct, msgspec.Struct) for name in _fields(struct)}
              | {name for struct in __import__("pycni.wire.kube_types", fromlist=["x"]).Wire.__subclasses__() for name in _fields(struct)})  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=6)
    ),
    max_leaves=25,
)
KINDS = st.sampled_from(sorted(kube.API_VERSIONS))


@settings(deadline=None)
@given(KINDS, TREES, TREES, TREES)
def test_whatever_tree_comes_is_an_object_or_one_configerror(kind, meta, spec, status):
    obj = {
        "apiVersion": kube.API_VERSIONS[kind],
        "kind": kind,
        "metadata": meta,
        "spec": spec,
        "status": status,
    }
    if isinstance(spec, dict):
        obj |= {name: value for name, value in spec.items() if name not in obj}
    raw = json.dumps(obj).encode()
    try:
        found_kind, found = decode_object(raw)
    except ConfigError as exc:
        str(exc)
    else:
        assert found_kind == kind
        assert decode_object(raw)[1] == found
    page = decode_list(kind, json.dumps({"metadata": {}, "items": [obj]}).encode())
    assert len(page.items) + len(page.skipped) <= 1
    event = decode_event(kind, json.dumps({"type": "ADDED", "object": obj}).encode())
    assert [event.object] == page.items or event.object is None
    assert (event.skipped is None) == (not page.skipped)


@settings(deadline=None)
@given(KINDS, st.binary(max_size=60))
def test_whatever_bytes_come_are_one_configerror_or_a_value(kind, raw):
    decode_status(raw)
    for read in (lambda: decode_object(raw), lambda: decode_list(kind, raw), lambda: decode_event(kind, raw)):
        try:
            read()
        except ConfigError as exc:
            str(exc)
