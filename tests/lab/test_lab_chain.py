"""The lab's runtime with the reference plugins, as a check of the runtime itself: nothing of ours is attached here."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycni.errors import CniError
from pycni.kernel import netns as kernel_netns
from pycni.lab.conflist import parse_list
from pycni.lab.runtime import Attachment, CniRuntime
from pycni.lab.topology import LabSpec, node_namespace, pod_namespace


@pytest.fixture
def runtime(wired: LabSpec, tmp_path: Path) -> CniRuntime:
    bridge = {
        "type": "bridge",
        "isGateway": True,
        "ipam": {"type": "host-local", "dataDir": str(tmp_path / "ipam"), "subnet": "10.9.0.0/24"},
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    listing = {"cniVersion": "1.0.0", "name": "net", "plugins": [bridge, portmap]}
    return CniRuntime(
        parse_list(json.dumps(listing).encode()),
        cache_dir=tmp_path,
        path=("/usr/lib/cni",),
        prefix=kernel_netns.exec_prefix(node_namespace(wired.name, "node1")),
    )


@pytest.fixture
def pod(wired: LabSpec) -> Iterator[Attachment]:
    name = pod_namespace(wired.name, "x")
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    yield Attachment("c1", kernel_netns.create(name), capability_args={"portMappings": ports})
    kernel_netns.delete(name)


def test_reference_plugins_attach_check_and_detach(
    runtime: CniRuntime, pod: Attachment, wired: LabSpec, tmp_path: Path
) -> None:
    runtime.validate()
    outcome = runtime.add(pod)
    assert outcome.result is not None
    assert [item["address"] for item in outcome.result["ips"]] == ["10.9.0.2/24"]
    words = [*kernel_netns.exec_prefix(node_namespace(wired.name, "node1")), "iptables-save", "-t", "nat"]
    assert "--dport 8080" in subprocess.run(words, capture_output=True, text=True, check=True).stdout
    # Debian's portmap asks for IPv6 rules in CHECK although it has none to make: bridge and host-local alone.
    alone = {**json.loads(runtime.network.raw), "plugins": runtime.network.plugins[:1]}
    CniRuntime(
        parse_list(json.dumps(alone).encode()), cache_dir=tmp_path, path=runtime.path, prefix=runtime.prefix
    ).check(pod)
    runtime.delete(pod)
    runtime.delete(pod)
    assert not list((tmp_path / "ipam" / "net").glob("10.*"))
    assert "--dport 8080" not in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_plugins_own_error_comes_through(runtime: CniRuntime, pod: Attachment) -> None:
    with pytest.raises(CniError) as caught:
        runtime.add(pod._replace(netns="/run/netns/no-such"))
    assert "bridge ADD failed with code" in str(caught.value)
    assert "no-such" in str(caught.value)
