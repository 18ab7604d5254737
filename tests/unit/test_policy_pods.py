"""Pods as this node's records have them, laid over what the cluster says."""

from __future__ import annotations

from ipaddress import ip_interface

import pytest

from pycni.ipam.endpoints import EndpointStore
from pycni.model.endpoint import Endpoint
from pycni.model.kube import POD, Meta, Pod
from pycni.policy.base import LocalPod
from pycni.policy.pods import LocalPods, Overlay, addresses_of
from pycni.store import Store

MAC = "02:00:00:00:00:01"


def pod(name="p", *ips, uid="", node="n1", **more):
    return Pod(meta=Meta(name=name, namespace="a", uid=uid), node=node, ips=ips, **more)


def record(name="p", *addresses, uid="", container="c1", state="ready", ifname="eth0", namespace="a"):
    return Endpoint(
        network="net",
        container_id=container,
        ifname=ifname,
        state=state,
        host_ifname=f"v{container}",
        mac=MAC,
        addresses=tuple(map(ip_interface, addresses)),
        pod_namespace=namespace,
        pod_name=name,
        pod_uid=uid,
    )


CASES = {
    "no record": (pod("p", "10.0.0.1"), [], ("10.0.0.1",)),
    "the API does not know its address yet": (pod("p"), [record("p", "10.0.0.1/24")], ("10.0.0.1",)),
    "both say the same": (pod("p", "10.0.0.1"), [record("p", "10.0.0.1/24")], ("10.0.0.1",)),
    "both families": (
        pod("p", "10.0.0.1"),
        [record("p", "10.0.0.1/24", "fd00::1/64")],
        ("10.0.0.1", "fd00::1"),
    ),
    "the API's object is of an earlier pod of that name": (
        pod("p", "10.0.0.1", uid="old"),
        [record("p", "10.0.0.2/24", uid="new")],
        ("10.0.0.1",),
    ),
    "and had the same address": (
        pod("p", "10.0.0.1", uid="old"),
        [record("p", "10.0.0.1/24", uid="new")],
        (),
    ),
    "its address is another pod's now": (pod("p", "10.0.0.1"), [record("q", "10.0.0.1/24")], ()),
    "a pod of another node claims an address of ours": (
        pod("p", "10.0.0.1", node="n2"),
        [record("q", "10.0.0.1/24")],
        (),
    ),
    "several networks": (
        pod("p", "10.0.0.1"),
        [record("p", "10.0.0.1/24"), record("p", "192.168.9.1/24", ifname="net1")],
        ("10.0.0.1", "192.168.9.1"),
    ),
    "an address given anew while its last pod is being removed": (
        pod("p"),
        [record("p", "10.0.0.1/24", container="c2"), record("q", "10.0.0.1/24", container="c1", state="dying")],
        ("10.0.0.1",),
    ),
    "a pod on the host's network": (
        pod("p", "192.0.2.1", host_network=True),
        [record("q", "192.0.2.1/24")],
        ("192.0.2.1",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_addresses_of_a_pod(case):
    given, records, wanted = CASES[case]
    pods = LocalPods("n1")
    for item in records:
        pods.put(item)
    assert pods.corrected(given).ips == wanted


def test_a_pod_with_a_record_runs_here_whatever_the_api_says_of_its_node():
    pods = LocalPods("n1")
    pods.put(record("p", "10.0.0.1/24"))
    assert pods.corrected(pod("p", node="")).node == "n1"
    assert pods.corrected(pod("q", node="")).node == ""


def test_what_changes_is_told_once_and_again_after_a_failure():
    pods = LocalPods("n1")
    assert pods.put(record("p", "10.0.0.1/24", state="pending"))
    moved = pods.take()
    assert (moved.keys, moved.addresses) == ({"a/p"}, {bytes((10, 0, 0, 1))})
    assert pods.take() == (set(), set())
    pods.put_back(moved)
    assert pods.take().keys == {"a/p"}
    assert pods.put(record("p", "10.0.0.1/24")), "it has its device now"
    assert not pods.put(record("p", "10.0.0.1/24"))
    assert pods.remove(record("p").owner)
    assert not pods.remove(record("p").owner)
    assert pods.take().keys == {"a/p"}
    assert pods.holders() == {}


def test_a_pod_that_was_cut_off_does_not_come_back_by_its_dying_record():
    pods = LocalPods("n1")
    pods.put(record("p", "10.0.0.1/24"))
    pods.remove(record("p").owner)
    assert not pods.put(record("p", "10.0.0.1/24", state="dying"))
    assert pods.holders() == {}


def test_the_next_holder_of_an_address_keeps_it_when_the_last_one_is_forgotten():
    pods = LocalPods("n1")
    pods.put(record("p", "10.0.0.1/24", container="c1"))
    pods.put(record("q", "10.0.0.1/24", container="c2"))
    pods.remove(record("p", container="c1").owner)
    assert {address: item.key for address, item in pods.holders().items()} == {bytes((10, 0, 0, 1)): "a/q"}


def test_pods_with_devices_are_those_that_are_ready():
    pods = LocalPods("n1")
    pods.put(record("p", "10.0.0.1/24", container="c1"))
    pods.put(record("q", "10.0.0.2/24", container="c2", state="pending"))
    pods.put(record("", "10.0.0.3/24", container="c3", namespace=""))
    mac = bytes.fromhex(MAC.replace(":", ""))
    assert set(pods.pods()) == {
        LocalPod("a/p", "vc1", mac, (bytes((10, 0, 0, 1)),)),
        LocalPod("c3", "vc3", mac, (bytes((10, 0, 0, 3)),)),
    }


def test_records_of_a_store_are_followed_from_the_first(tmp_path):
    endpoints, pods, told = EndpointStore(str(tmp_path)), LocalPods("n1"), []
    try:
        endpoints.put(record("p", "10.0.0.1/24"))
        pods.follow(endpoints, lambda: told.append(1))
        assert [item.key for item in pods.holders().values()] == ["a/p"]
        endpoints.put(record("q", "10.0.0.2/24", container="c2"))
        assert len(told) == 2
        endpoints.remove(record("p").owner)
        assert [item.key for item in pods.holders().values()] == ["a/q"]
        assert len(told) == 3
    finally:
        endpoints.close()


def test_the_overlay_is_the_store_with_corrected_pods():
    store, pods = Store(), LocalPods("n1")
    store.put(POD, "a/p", pod("p"))
    store.put("Namespace", "a", "kept")
    pods.put(record("p", "10.0.0.1/24"))
    for objects in (Overlay(store.current(), pods), Overlay(store.current(), pods).frozen()):
        assert objects.of(POD).get("a/p").ips == ("10.0.0.1",)
        assert objects.of(POD).get("a/q") is None
        assert (set(objects.of(POD)), len(objects.of(POD))) == ({"a/p"}, 1)
        assert objects.of("Namespace")["a"] == "kept"


def test_addresses_are_packed():
    assert addresses_of(record("p", "10.0.0.1/24", "fd00::1/64")) == (
        bytes((10, 0, 0, 1)),
        bytes((0xFD, *[0] * 14, 1)),
    )
