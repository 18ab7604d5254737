"""The files in deploy/ fit the program: settings exist, rights are those the sources use, mounts go together."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml

from pycni.agent.settings import ALIASES, BY_NAME
from pycni.agent.settings_file import load
from pycni.sources.kube_client import RESOURCES
from pycni.sources.kube_lballoc import LEASE_NAME
from pycni.wire.netconf import decode_netconf

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KINDS = {
    "SERVICE": "Service",
    "NODE": "Node",
    "LEASE": "Lease",
    "ENDPOINT_SLICE": "EndpointSlice",
    "POD": "Pod",
    "NAMESPACE": "Namespace",
    "NETWORK_POLICY": "NetworkPolicy",
    "CLUSTER_NETWORK_POLICY": "ClusterNetworkPolicy",
    "TOKEN_REVIEW": "TokenReview",
    "SUBJECT_ACCESS_REVIEW": "SubjectAccessReview",
}
VERBS = {"get", "create", "update", "patch"}


def documents(name):
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def one(name, kind):
    [found] = [item for item in documents(name) if item["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def pod():
    return one("daemonset.yaml", "DaemonSet")["spec"]["template"]["spec"]


def used():
    """(group, resource, verb) of every call the agent's sources make, read from their code."""
    found = set()

    def note(kind, verb, subresource=""):
        resource = RESOURCES[KINDS[kind]]
        group = resource.base.split("/")[2] if resource.base.startswith("/apis/") else ""
        found.add((group, resource.plural + (f"/{subresource}" if subresource else ""), verb))

    for path in (ROOT / "pycni" / "sources").glob("kube_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            owner = node.func.value
            if isinstance(owner, ast.Attribute) and owner.attr == "_client" and node.func.attr in VERBS:
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
                note(
                    node.args[0].id,
                    node.func.attr,
                    next((name for name in names if isinstance(name, str)), ""),
                )
    agent, sources = ROOT / "pycni/agent", ROOT / "pycni/sources"
    files = (agent / "wiring_proxy.py", agent / "wiring_policy.py", sources / "kube_leases.py")
    wiring = "".join(path.read_text() for path in files)
    followed = {"NODE"} | {name for name in KINDS.keys() - {"LEASE"} if re.search(rf"\b{name}\b", wiring)}
    assert "own_node(" in wiring
    for kind in followed:
        note(kind, "list")
        note(kind, "watch")
    return found


def test_rights_are_exactly_those_the_sources_use():
    granted = {
        (group, resource, verb)
        for item in documents("rbac.yaml")
        for rule in item.get("rules", ())
        for group in rule.get("apiGroups", ())
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == used()


def test_agents_may_trace_over_each_other_and_get_nothing_else_outside_the_apis_objects():
    rules = [rule for item in documents("rbac.yaml") for rule in item.get("rules", ())]
    assert [rule for rule in rules if "nonResourceURLs" in rule] == [
        {"nonResourceURLs": ["/trace"], "verbs": ["get"]}
    ]


def test_rights_to_leases_are_to_one_lease():
    named = [
        rule
        for item in documents("rbac.yaml")
        if item["kind"] == "Role"
        for rule in item["rules"]
        if rule["verbs"] != ["create"]
    ]
    assert [rule["resourceNames"] for rule in named] == [[LEASE_NAME]]


def test_roles_are_bound_to_the_account_the_pods_have(pod):
    accounts = {
        (item["metadata"]["namespace"], item["metadata"]["name"])
        for item in documents("rbac.yaml")
        if item["kind"] == "ServiceAccount"
    }
    assert accounts == {("kube-system", pod["serviceAccountName"])}
    for item in documents("rbac.yaml"):
        if item["kind"].endswith("Binding"):
            assert [(s["namespace"], s["name"]) for s in item["subjects"]] == list(accounts)
            assert any(
                other["kind"] == item["roleRef"]["kind"]
                and other["metadata"]["name"] == item["roleRef"]["name"]
                for other in documents("rbac.yaml")
            )


def test_the_agents_settings_are_accepted(pod, tmp_path):
    data = one("configmap.yaml", "ConfigMap")["data"]
    config = tmp_path / "pycnid.toml"
    config.write_text(data["pycnid.toml"])
    [container] = pod["containers"]
    assert container["args"][0] == "run"
    flags = [word for word in container["args"][1:] if not word.startswith("--config=")]
    environment = {item["name"]: "node-1" for item in container["env"] if item["name"].startswith("PYCNID_")}
    loaded = load([*flags, f"--config={config}"], environment, "other")
    assert loaded.warnings == ()
    found = loaded.settings
    assert (found.node_name, found.components, found.kube_subnet_mgr) == (
        "node-1",
        ("network", "proxy", "policy"),
        True,
    )
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["host"], asked["port"]) == (str(found.healthz_ip), found.healthz_port)
        assert asked["path"] in ("/healthz", "/readyz")


def test_the_commented_settings_are_accepted_too(tmp_path):
    text = one("configmap.yaml", "ConfigMap")["data"]["pycnid.toml"]
    lines = [
        line.removeprefix("# ") if re.match(r"# [a-z-]+ = ", line) else line for line in text.splitlines()
    ]
    config = tmp_path / "pycnid.toml"
    config.write_text("\n".join(lines))
    assert load([f"--config={config}"], {}, "n").settings.run_loadbalancer


def test_the_network_configuration_can_be_read():
    text = one("configmap.yaml", "ConfigMap")["data"]["net-conf.json"]
    assert json.loads(text)
    assert str(decode_netconf(text.encode()).network) == "10.244.0.0/16"


def test_every_mount_has_its_volume_and_every_key_its_place(pod):
    volumes = {item["name"] for item in pod["volumes"]}
    mounts = [
        mount for each in (*pod["initContainers"], *pod["containers"]) for mount in each["volumeMounts"]
    ]
    assert {mount["name"] for mount in mounts} == volumes
    data = one("configmap.yaml", "ConfigMap")["data"]
    for item in pod["containers"][0]["env"]:
        reference = item["valueFrom"].get("configMapKeyRef")
        assert reference is None or reference["key"] in data
    spaces = next(mount for mount in mounts if mount["name"] == "run-netns")
    assert spaces["mountPropagation"] == "HostToContainer"


def test_default_paths_of_the_agent_are_on_the_host(pod):
    found = load([], {}, "n").settings
    places = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    for path in (
        found.cni_socket,
        found.control_socket,
        found.state_dir,
        found.ipam_data_dir,
        found.subnet_file,
    ):
        assert any(path == place or path.startswith(f"{place}/") for place in places), path


def test_the_installer_is_called_as_it_wants(pod, capsys):
    from pycni.agent import main

    [container] = pod["initContainers"]
    job, *words = container["args"]
    assert job == "install-cni"
    with pytest.raises(SystemExit) as caught:
        main._install([*words, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word.partition("=")[0] in text for word in words)


def test_the_readme_explains_every_mount_and_every_resource(pod):
    text = (DEPLOY / "README.md").read_text()
    for each in (*pod["initContainers"], *pod["containers"]):
        for mount in each["volumeMounts"]:
            host = next(item for item in pod["volumes"] if item["name"] == mount["name"]).get("hostPath")
            assert host is None or f"`{host['path']}`" in text, mount["name"]
    for _, resource, _ in used():
        assert resource in text


def test_the_image_copies_what_there_is_and_nothing_secret():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("FROM")] == [
        "FROM debian:12-slim AS build",
        "FROM debian:12-slim",
    ]
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            *sources, _target = line.split()[1:]
            assert all((ROOT / source).exists() for source in sources), line
    assert not re.search(r"(?i)password|token|secret=", "\n".join(lines))


def test_settings_and_defaults_told_in_the_proxys_page_are_true():
    text = (ROOT / "docs" / "proxy.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| kube-[^|]*\| ([^|]*) \|", text, re.MULTILINE)
    shown = {"on": True, "not known": (), "5 min": 300, "0": 0}
    assert len(rows) == 5
    for name, told in rows:
        default = shown[told.partition(",")[0]]
        assert BY_NAME[name].default == default, name
    known = {*BY_NAME, *ALIASES}
    for setting in re.findall(r"`([a-z]+(?:-[a-z]+)+)=", text):
        assert setting in known, setting
