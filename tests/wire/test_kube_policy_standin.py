"""A policy that makes no sense denies everything to whom it may be about, wherever it comes from."""

from __future__ import annotations

import json

import pytest

from pycni.model.kube import Meta
from pycni.model.policy import Action, ClusterNetworkPolicy, NetworkPolicy, Selector, Tier
from pycni.sources.manifest_folder import ManifestFolder
from pycni.view.policy_rules import Match, cluster_section
from pycni.wire.kube import decode_event, decode_list
from pycni.wire.kube_policy_standin import of_document

WEB = Selector(labels=(("app", "web"),))
BAD_PORT = [{"ports": [{"port": 99999}]}]
SHAPES = {
    "a wrong port": ({"podSelector": {"matchLabels": {"app": "web"}}, "ingress": BAD_PORT}, WEB, True, True),
    "its directions are kept": (
        {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"], "egress": BAD_PORT},
        *(WEB, False, True),
    ),
    "unknown directions are both": ({"policyTypes": ["Sideways"]}, Selector(), True, True),
    "a selector that makes no sense selects all": (
        {"podSelector": {"matchExpressions": [{"key": "a", "operator": "Near"}]}},
        *(Selector(), True, True),
    ),
    "a selector of another type": ({"podSelector": 5}, Selector(), True, True),
    "directions of another type": ({"policyTypes": {"a": 1}, "podSelector": 1}, Selector(), True, True),
    "no object": ([], Selector(), True, True),
}


def raw(spec, kind="NetworkPolicy", **meta):
    version = "networking.k8s.io/v1" if kind == "NetworkPolicy" else "policy.networking.k8s.io/v1alpha2"
    metadata = {"name": "x", "resourceVersion": "5", **meta}
    if kind == "NetworkPolicy":
        metadata.setdefault("namespace", "a")
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_malformed_policy_isolates_whom_it_may_select(shape):
    spec, pods, ingress, egress = SHAPES[shape]
    wanted = NetworkPolicy(
        meta=Meta(name="x", namespace="a"),
        pods=pods,
        ingress=() if ingress else None,
        egress=() if egress else None,
    )
    event = decode_event("NetworkPolicy", json.dumps({"type": "ADDED", "object": raw(spec)}).encode())
    listing = {"metadata": {"resourceVersion": "7"}, "items": [raw(spec), raw({}, name="good")]}
    page = decode_list("NetworkPolicy", json.dumps(listing).encode())
    assert event.skipped is not None
    assert event.skipped.stand_in == wanted
    assert [item.stand_in for item in page.skipped] == [wanted]
    assert [item.meta.name for item in page.items] == ["good"]
    assert of_document(raw(spec)) == wanted


@pytest.mark.parametrize(
    ("spec", "tier", "priority", "namespaces", "pods"),
    [
        pytest.param({}, Tier.ADMIN, 0, Selector(), None, id="nothing"),
        pytest.param(
            {"tier": "Baseline", "priority": 7, "subject": {"namespaces": {"matchLabels": {"app": "web"}}}},
            *(Tier.BASELINE, 7, WEB, None),
            id="tier, priority and subject are kept",
        ),
        pytest.param(
            {
                "tier": 5,
                "priority": 5000,
                "subject": {"pods": {"podSelector": {"matchLabels": {"app": "web"}}}},
            },
            *(Tier.ADMIN, 0, Selector(), WEB),
            id="pods",
        ),
        pytest.param({"subject": {"pods": {}, "namespaces": {}}}, Tier.ADMIN, 0, Selector(), None, id="both"),
    ],
)
def test_a_malformed_cluster_policy_denies_all_to_its_subject(spec, tier, priority, namespaces, pods):
    rules = {"ingress": [{"action": "Shrug"}]}
    found = of_document(raw({**spec, **rules}, "ClusterNetworkPolicy"))
    assert isinstance(found, ClusterNetworkPolicy)
    assert (found.tier, found.priority, found.namespaces, found.pods) == (tier, priority, namespaces, pods)
    for section in (found.ingress, found.egress):
        assert [(rule.action, rule.match) for rule in cluster_section(section)] == [
            (Action.DENY, Match(anybody=True))
        ]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param({**raw({}), "metadata": {}}, id="no name"),
        pytest.param(
            {**raw({}), "apiVersion": "crd.projectcalico.org/v1"}, id="somebody else's kind of this name"
        ),
        pytest.param({**raw({}), "kind": "Service", "apiVersion": "v1"}, id="another kind"),
        pytest.param({"kind": ["NetworkPolicy"]}, id="no kind"),
    ],
)
def test_what_is_no_policy_of_ours_has_no_stand_in(value):
    assert of_document(value) is None


def look(folder, files):
    for name, items in files.items():
        (folder / name).write_text("\n---\n".join(json.dumps(item) for item in items))
    return ManifestFolder(folder).look(finished=files)


def test_a_file_with_a_malformed_policy_counts_for_its_policies_only(tmp_path):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": []}}
    found = look(tmp_path, {"a.yaml": [pod, raw({"ingress": BAD_PORT}), raw({}, name="good")]})
    assert {key: set(items) for key, items in found.objects.items()} == {"NetworkPolicy": {"a/x", "a/good"}}
    assert "spec.ingress[0].ports[0].port=99999" in found.broken["a.yaml"]
    assert "NetworkPolicy a/x" in found.broken["a.yaml"]


def test_a_policy_that_was_good_keeps_its_last_good_version(tmp_path):
    folder = ManifestFolder(tmp_path)
    file = tmp_path / "a.yaml"

    def held(*items):
        file.write_text("\n---\n".join(json.dumps(item) for item in items))
        return folder.look(finished={"a.yaml"})

    good = raw({"ingress": [{}]})
    first = held(good).objects
    second = held(raw({"ingress": BAD_PORT}), raw({"egress": BAD_PORT}, name="new"))
    assert second.objects["NetworkPolicy"]["a/x"] == first["NetworkPolicy"]["a/x"]
    assert second.objects["NetworkPolicy"]["a/new"].ingress == ()
    third = held(raw({"ingress": BAD_PORT}), raw({}, name="new"))
    assert third.objects["NetworkPolicy"]["a/new"].egress is None, "it makes sense now"
    last = held(good)
    assert (last.objects, last.broken) == (first, {})
