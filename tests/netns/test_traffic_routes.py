"""What the agent answers for traffic: counters in the pod's view, names, and how often what is costly is read."""

from __future__ import annotations

import asyncio
import os
import subprocess
from ipaddress import ip_interface

import msgspec
import pytest

from pycni.agent.httpd import Response
from pycni.agent.traffic import Paced, TrafficRoutes
from pycni.kernel import netns as namespaces
from pycni.model.attachment import AttachmentKind
from pycni.model.endpoint import Endpoint
from pycni.model.family import Family
from pycni.model.kube import (
    ENDPOINT_SLICE,
    NODE,
    POD,
    EndpointSlice,
    KubeNode,
    Meta,
    Pod,
    SliceEndpoint,
)
from pycni.store import Store
from pycni.traffic.model import Counted, Names, Policies, PolicyCount, ServiceNames


def run(words, **more):
    done = subprocess.run(words.split(), check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def inside(space, function):
    fd = namespaces.open_netns(namespaces.path(space))
    try:
        return namespaces.run_in(fd, function)
    finally:
        os.close(fd)


class Records:
    """The agent's records of pods, as far as they are read here."""

    def __init__(self, *endpoints):
        self.found = endpoints
        self.told = []

    def all(self):
        return self.found

    def subscribe(self, callback):
        self.told.append(callback)


def endpoint(name, space, **more):
    fields = {"network": "n", "container_id": f"c-{name}", "ifname": "eth0", "state": "ready"}
    fields |= {"pod_namespace": "a", "pod_name": name, "netns": namespaces.path(space)}
    return Endpoint(**{**fields, **more})


def ask(routes, path, kind, query=""):
    answer = asyncio.run(routes.routes()[path](query))
    assert answer.status == 200, answer.body
    return msgspec.json.decode(answer.body, type=kind)


def link(node, pod):
    run(f"ip -n {node} link add veth1 address 02:00:00:00:00:01 type veth peer name eth0 netns {pod}")
    for space, device, address in ((node, "veth1", "10.1.0.1"), (pod, "eth0", "10.1.0.2")):
        run(f"ip -n {space} addr add {address}/24 dev {device}")
        run(f"ip -n {space} link set {device} up")


def send(space, target, count):
    program = (
        "import socket;s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM);"
        f"[s.sendto(b'x'*972,('{target}',9)) for _ in range({count})]"
    )
    run_in = ["ip", "netns", "exec", space, "python3", "-c", program]
    subprocess.run(run_in, check=True)


@pytest.mark.parametrize(
    "kind", [AttachmentKind.BRIDGE, AttachmentKind.MACVLAN], ids=["by the node's end", "inside the pod"]
)
def test_counters_are_in_the_pods_view(netns_factory, kind):
    node, pod = netns_factory(), netns_factory()
    link(node, pod)
    host = "veth1" if kind is AttachmentKind.BRIDGE else ""
    records = Records(
        endpoint("there", pod, host_ifname=host, attachment=kind),
        endpoint("dying", pod, host_ifname=host, attachment=kind, state="dying"),
        endpoint("without-device", pod, host_ifname="veth9", ifname="eth9", attachment=kind),
        endpoint("without-namespace", "pyt-none", host_ifname="veth9", attachment=kind),
        endpoint("another-namespace", pod, host_ifname="veth9", attachment=kind, netns_inode=1),
    )

    def scenario():
        routes = TrafficRoutes("n1", Store(), {})
        routes.follow_pods(records)
        before = ask(routes, "/rates", Counted)
        send(pod, "10.1.0.1", 20)
        send(node, "10.1.0.2", 5)
        routes._inside._due = 0.0
        return before, ask(routes, "/rates", Counted)

    before, after = inside(node, scenario)
    assert [row.pod for row in after.pods] == ["a/there"]
    assert after.at_ns > before.at_ns
    (was,), (now,) = before.pods, after.pods
    assert 20 <= now.packets_out - was.packets_out < 40
    assert 20_000 <= now.bytes_out - was.bytes_out < 25_000
    assert 5 <= now.packets_in - was.packets_in < 30
    # What refuses the packets comes back, with a part of each.
    assert 5_000 <= now.bytes_in - was.bytes_in < 15_000


def test_where_packets_go_from_pod_to_pod_every_pod_is_counted_inside(netns_factory):
    node, pod = netns_factory(), netns_factory()
    link(node, pod)

    def scenario():
        routes = TrafficRoutes("n1", Store(), {}, short_cuts=True)
        routes.follow_pods(Records(endpoint("there", pod, host_ifname="gone")))
        return ask(routes, "/rates", Counted)

    assert [row.pod for row in inside(node, scenario).pods] == ["a/there"]


def test_components_are_asked_and_their_troubles_are_told(netns):
    rows = (PolicyCount("NetworkPolicy a/x", "ingress", 1, 2),)

    async def policies(_query):
        return Response(200, body=msgspec.json.encode(Policies(at_ns=5, rows=rows)).decode())

    async def services(_query):
        return Response(503, body="not yet\n")

    routes = TrafficRoutes("n1", Store(), {"/rates/policies": policies, "/rates/services": services})
    found = inside(netns, lambda: ask(routes, "/rates", Counted))
    assert (found.policies.rows, found.services.rows, dict(found.troubles)) == (
        rows,
        (),
        {"services": "not yet"},
    )


def test_names_of_pods_and_nodes_and_nothing_while_nothing_changes(netns):
    store, generation = Store(), ["1"]
    store.replace(
        POD,
        {
            "a/p": Pod(meta=Meta(name="p", namespace="a"), ips=("10.1.0.9", "fd00::9")),
            "a/host": Pod(meta=Meta(name="host", namespace="a"), ips=("192.0.2.1",), host_network=True),
            "a/done": Pod(meta=Meta(name="done", namespace="a"), ips=("10.1.0.8",), phase="Succeeded"),
        },
    )
    store.replace(
        NODE,
        {"n2": KubeNode(meta=Meta(name="n2"), internal_ips=("192.0.2.2",), external_ips=("203.0.113.2",))},
    )
    store.replace(
        ENDPOINT_SLICE,
        {
            "a/s": EndpointSlice(
                meta=Meta(name="s", namespace="a"),
                service="a/s",
                family=Family.V4,
                endpoints=(SliceEndpoint(address="10.1.0.7", pod="a/far"), SliceEndpoint(address="10.9.9.9")),
            )
        },
    )

    async def services(_query):
        return Response(200, body=msgspec.json.encode(ServiceNames(generation=generation[0])).decode())

    records = Records(endpoint("own", netns, addresses=(ip_interface("10.1.0.2/24"),)))
    routes = TrafficRoutes("n1", store, {"/names/services": services})
    routes.follow_pods(records)

    def names(known=""):
        return inside(netns, lambda: ask(routes, "/names", Names, f"known={known}"))

    run(f"ip -n {netns} addr add 192.0.2.1/32 dev lo")
    first = names()
    assert first.pods == {"10.1.0.9": "a/p", "fd00::9": "a/p", "10.1.0.7": "a/far", "10.1.0.2": "a/own"}
    assert first.nodes == {"192.0.2.2": "n2", "203.0.113.2": "n2"}
    assert first.local == ("10.1.0.2",)
    assert "192.0.2.1" in first.addresses
    again = names(first.generation)
    assert (again.fresh, again.pods) == (False, {})
    changes = [
        lambda: store.delete(POD, "a/p"),
        lambda: records.told[0](None, records.found[0]),
        lambda: generation.__setitem__(0, "2"),
    ]
    known = first.generation
    for change in changes:
        change()
        found = names(known)
        assert found.fresh
        known = found.generation


def test_what_is_costly_is_read_a_tenth_of_the_time():
    clock, reads = [0.0], []

    def read():
        reads.append(clock[0])
        clock[0] += 2.0
        return len(reads)

    paced = Paced(read, lambda: clock[0])
    assert paced() == 1
    clock[0] = 19.9
    assert paced() == 1
    clock[0] = 20.1
    assert paced() == 2
    assert reads == [0.0, 20.1]
