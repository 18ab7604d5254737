"""Services in a lab of guests: IPVS of a real kernel, from the manifest to the connection."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest

from pycni.lab.apply import Cluster
from pycni.lab.ask_client import ask_from
from pycni.lab.objects import Key
from pycni.lab.run import Lab
from pycni.lab.topology import LabError, LabSpec

from .conftest import unique_name
from .lab_tools import ROOT, ctl, within

EXAMPLE = ROOT / "docs" / "examples" / "web.yaml"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Two guests, both families, IPVS, the example applied."""
    made = Lab.up(LabSpec(name=unique_name(), driver="uml", nodes=2, family="dual", pods=1, proxy="ipvs"))
    try:
        done = ctl("lab", "apply", "--name", made.spec.name, "-f", str(EXAMPLE))
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        made.down()


def vip(lab: Lab) -> str:
    spec = Cluster(lab).objects()[Key("Service", "shop", "web")]["spec"]
    return str(spec["clusterIP"])


def real_servers(lab: Lab, node: str, address: str) -> int:
    """How many real servers IPVS of a node has for a TCP service."""
    words = ["ipvsadm", "-Ln", "-t", f"{address}:80"]
    listed = lab.exec(node, words, check=False).stdout.splitlines()
    return sum(line.strip().startswith("->") and "RemoteAddress" not in line for line in listed)


def test_a_pod_finds_the_service_by_name_and_is_served_in_exact_turn(lab: Lab) -> None:
    for node in lab.nodes():
        assert within(20, lambda node=node: real_servers(lab, node.name, vip(lab)) == 3)
    done = ctl("lab", "ask", "--name", lab.spec.name, "pod1", "web.shop:80", "--count", "30", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["pods"] == {"web-1.shop": 10, "web-2.shop": 10, "web-3.shop": 10}
    assert set(found["clients"]) == {lab.pod("pod1").ips[0]}


def test_everybody_reaches_the_service_and_the_client_every_node_port(lab: Lab) -> None:
    matrix = lab.matrix()
    assert matrix.failed() == []
    asking = {check.source for check in matrix.reasons if check.target == "shop/web"}
    assert asking == {"client", "node1", "node2", *(pod.name for pod in lab.pods())}


def test_the_service_goes_on_without_any_agent_and_takes_changes_after(lab: Lab) -> None:
    for node in lab.nodes():
        lab.signal_agent(node.name, signal.SIGKILL)
    found = ask_from(lab, "pod2", f"{vip(lab)}:80", count=12)
    assert (len(found.pods), dict(found.failures)) == (3, {})
    lab.start_agents([node.name for node in lab.nodes()])
    address = vip(lab)
    assert ctl("lab", "delete", "--name", lab.spec.name, "-f", str(EXAMPLE)).returncode == 0
    for node in lab.nodes():
        assert within(20, lambda node=node: real_servers(lab, node.name, address) == 0)
    assert ctl("lab", "apply", "--name", lab.spec.name, "-f", str(EXAMPLE)).returncode == 0
    assert within(20, lambda: len(ask_from(lab, "node2", f"{vip(lab)}:80", count=12).pods) == 3)


def test_nftables_is_refused_for_guests_before_anything_is_made(lab_name: str) -> None:
    with pytest.raises(LabError, match="the guests' kernel has no nftables for IP; take ipvs"):
        Lab.up(LabSpec(name=lab_name, driver="uml", proxy="nftables"))
