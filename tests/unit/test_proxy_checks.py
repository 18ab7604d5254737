"""Which healthCheckNodePorts a node has to answer, as services come, change and go."""

from __future__ import annotations

import pytest

from pycni.model.kube import ENDPOINT_SLICE, NODE, SERVICE, Meta, Service
from pycni.model.service import HealthCheck, NodeFacts, Resolved
from pycni.store import Store
from pycni_proxy.base import Dataplane
from pycni_proxy.engine import Engine
from pycni_proxy.nft.compile import NftCompiler


class Nothing:
    """A kernel that takes everything and tells nothing."""

    def read(self):
        return {}

    def apply(self, changes):
        pass


def resolve(service, _slices, _facts):
    """A check for every service that has a port for it."""
    port = service.health_check_node_port
    return Resolved(health_check=HealthCheck(port, "a", service.meta.name, 0) if port else None, changed=1.0)


@pytest.mark.parametrize("whole", [False, True], ids=["what changed", "everything"])
def test_checks_are_those_of_the_services_there_are(whole):
    store = Store()
    tracker = store.track(SERVICE, ENDPOINT_SLICE, NODE)
    facts = NodeFacts(name="n1", addresses=())
    engine = Engine(facts, [Dataplane("nftables", NftCompiler(facts), Nothing())], resolver=resolve)
    story = [{"x": 30001, "y": 0}, {"x": 30002, "y": 30003}, {"x": 0, "y": 30003}, {"z": 30004}, {}]
    for ports in story:
        store.replace(
            SERVICE,
            {
                f"a/{name}": Service(meta=Meta(name=name, namespace="a"), health_check_node_port=port)
                for name, port in ports.items()
            },
        )
        changed = tracker.take()
        engine.sync(store.snapshot(), None if whole else changed)
        found = {item.service: item.port for item in engine.health_checks()}
        assert found == {name: port for name, port in ports.items() if port}
