"""A lab without an overlay: routes between nodes by BGP, and a router outside that learns where services are."""

from __future__ import annotations

import json
import signal
import time

import pytest

from pycni.lab import router
from pycni.lab.ask_client import ask_from
from pycni.lab.topology import LabError, LabSpec, check_spec

from .conftest import LabMaker
from .lab_tools import ctl, within

WEB = """
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""


@pytest.mark.parametrize("engine", ["bird", "exabgp"])
def test_pods_and_balanced_services_are_reached_by_routes_of_bgp(make_lab: LabMaker, engine: str) -> None:
    """Also while an agent is dead; an address with traffic policy Local leads to the node that has the endpoint."""
    lab = make_lab(nodes=2, pods=1, family="dual", backend="alloc", bgp=engine, proxy="nftables")
    assert not lab.missing_routes()
    assert not lab.matrix().failed()
    done = ctl("lab", "apply", "--name", lab.spec.name, "-f", "-", feed=WEB)
    assert done.returncode == 0, done.stderr
    listed = json.loads(ctl("lab", "get", "services", "--name", lab.spec.name, "--json").stdout)["items"]
    web = next(item for item in listed if item["metadata"]["name"] == "web")
    address = web["status"]["loadBalancer"]["ingress"][0]["ip"]
    assert within(10, lambda: f"{address}/32" in router.known(lab.spec)), router.known(lab.spec)
    assert within(10, lambda: ask_from(lab, "client", f"{address}:80").pods == {"web": 1})
    hops = ctl("lab", "exec", "--name", lab.spec.name, "client", "--", "ip", "route", "get", address).stdout
    assert "via 172.20.0.2 " in hops
    before = router.known(lab.spec)
    lab.signal_agent("node2", signal.SIGKILL)
    for _ in range(10):
        assert ask_from(lab, "client", f"{address}:80").pods == {"web": 1}
        assert router.known(lab.spec) == before
        time.sleep(0.1)
    lab.start_agent("node2")
    assert router.known(lab.spec) == before
    assert not lab.matrix().failed()
    shown = ctl("bgp", "--name", lab.spec.name, "--node", "node2").stdout
    assert "Service default/web" in shown
    assert shown.count("Established") == 2
    done = ctl("lab", "delete", "pod", "web", "--name", lab.spec.name)
    assert done.returncode == 0, done.stderr
    assert within(10, lambda: f"{address}/32" not in router.known(lab.spec)), (
        "withdrawn with its last endpoint"
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (LabSpec(backend="alloc"), "--bgp"),
        (LabSpec(driver="uml", proxy="ipvs", bgp="bird"), "no BIRD"),
    ],
    ids=["no routes at all", "guests"],
)
def test_what_cannot_be_is_refused(spec: LabSpec, words: str) -> None:
    with pytest.raises(LabError, match=words):
        check_spec(spec)
