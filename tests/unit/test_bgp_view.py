"""What a node announces, put together from services that come, go and want the same addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NODE,
    SERVICE,
    EndpointSlice,
    Ingress,
    Meta,
    Service,
    ServicePortSpec,
    SliceEndpoint,
    SlicePort,
)
from pycni.model.service import NodeFacts
from pycni_bgp.model import prefix
from pycni_bgp.settings import BgpSettings
from pycni_bgp.view import Draft, Place, View

FACTS = NodeFacts(name="a", addresses=(bytes((192, 0, 2, 1)),), any_external_ip=True)
PLACE = Place(name="a", addresses=(bytes((192, 0, 2, 1)),), subnets=(ipaddress.ip_network("10.1.1.0/24"),))
SHARED = "198.51.100.9"


class Objects:
    """A store that is asked by kind."""

    def __init__(self, **addresses: str) -> None:
        """``addresses``: of services by name; those called ``bad...`` have an annotation nobody understands."""
        self.services = {f"x/{name}": _service(name, text) for name, text in addresses.items()}
        self.slices = {f"x/{name}-1": _slice(name) for name in addresses}

    def of(self, kind: str) -> Mapping[str, Any]:
        """The objects of one kind."""
        return {SERVICE: self.services, ENDPOINT_SLICE: self.slices, NODE: {}}.get(kind, {})


def _service(name: str, address: str) -> Service:
    notes = {"kube-router.io/service.advertise.clusterip": "maybe"} if name.startswith("bad") else {}
    return Service(
        meta=Meta(name=name, namespace="x", annotations=notes),
        type="LoadBalancer",
        cluster_ips=("10.96.0.8" if address == "10.96.0.7" else "10.96.0.7",),
        families=(Family.V4,),
        ingress=(Ingress(ip=address),),
        ports=(ServicePortSpec(port=80),),
    )


def _slice(name: str) -> EndpointSlice:
    return EndpointSlice(
        meta=Meta(name=f"{name}-1", namespace="x"),
        service=f"x/{name}",
        family=Family.V4,
        ports=(SlicePort(port=8080),),
        endpoints=(SliceEndpoint(address="10.1.2.3", node="a"),),
    )


def _draft(view: View, objects: Objects, changed: Mapping[str, set[str]] | None = None) -> Draft:
    view.update(objects, changed, FACTS)
    return view.plan(objects, {}, PLACE)


def _owners(draft: Draft) -> dict[str, str]:
    return {str(item): local.owner for item, local in draft.plan.local.items()}


def test_of_several_services_with_one_address_the_first_by_name_announces_it() -> None:
    for names in (("b", "a"), ("a", "b")):
        objects = Objects(**dict.fromkeys(names, SHARED))
        found = _draft(View(BgpSettings(load_balancer_ips=True)), objects)
        assert _owners(found) == {"10.1.1.0/24": "node a", f"{SHARED}/32": "Service x/a"}


def test_a_service_that_goes_leaves_its_address_to_the_next() -> None:
    view = View(BgpSettings(load_balancer_ips=True))
    objects = Objects(a=SHARED, b=SHARED)
    _draft(view, objects)
    del objects.services["x/a"], objects.slices["x/a-1"]
    found = _draft(view, objects, {SERVICE: {"x/a"}, ENDPOINT_SLICE: {"x/a-1"}})
    assert _owners(found)[f"{SHARED}/32"] == "Service x/b"


def test_what_is_withheld_and_what_is_wrong_names_the_service() -> None:
    found = _draft(
        View(BgpSettings(load_balancer_ips=True)), Objects(bad2="198.51.100.2", bad1="198.51.100.1")
    )
    assert found.withheld == {
        prefix("10.96.0.7/32"): "Service x/bad1: ClusterIP addresses are not announced (advertise-cluster-ip)"
    }
    assert [line.split(":")[0] for line in found.problems] == ["Service x/bad1", "Service x/bad2"]


def test_an_address_that_another_service_announces_is_not_withheld() -> None:
    view = View(BgpSettings(load_balancer_ips=True))
    found = _draft(view, Objects(a="10.96.0.7", b="198.51.100.1"))
    assert [str(item) for item in found.withheld] == ["10.96.0.8/32"]
    assert _owners(found)["10.96.0.7/32"] == "Service x/a"
