"""What a second kernel (Debian's user-mode 6.1) does with pods on the underlay: ipvlan, which the test machine lacks.

Run as its init's only program, answers in one line. That kernel has no IP families of nf_tables, so no policies here
and nothing that the node would have to translate: the pod network has neither Services nor other pods' subnets.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from typing import Any, NamedTuple

from pycni.attach.compile import compile_attachment
from pycni.attach.plan import AttachPlan
from pycni.kernel import netns as namespaces
from pycni.model.attachment import AttachmentKind
from pycni.model.cni import AddressRange, CniResult, InterfaceResult, IpamConf, PluginConf
from pycni.model.endpoint import Owner
from pycni.model.podnet import PodNetwork
from tests.netns.podenv import Allocation, Env, Pod, connect, exchange, links, node, pings, run, serving
from tests.netns.underlay_segment import FAR, NODE, PEER, Segment

PODNET = PodNetwork(
    subnets=(),
    networks=(),
    mtu=1500,
    exits=("eth1",),
    own=(ip_interface("192.0.2.1/24"), ip_interface("2001:db8::1/64")),
)
RANGES = tuple(
    (AddressRange(subnet=net, start=net[10], end=net[200], gateway=net[2]),)
    for net in (ip_network("192.0.2.0/24"), ip_network("2001:db8::/64"))
)
_NUMBERS = itertools.count()


class Ground(NamedTuple):
    env: Env
    far: Pod
    peer: Pod
    kind: AttachmentKind

    def plan(self, pod: Pod, number: int) -> AttachPlan:
        conf = PluginConf(
            cni_version="1.1.0", name="net", attachment=self.kind, ipam=IpamConf(range_sets=RANGES)
        )
        given = [
            Allocation(ip_interface(f"192.0.2.{number}/24")),
            Allocation(ip_interface(f"2001:db8::{number:x}/64")),
        ]
        return compile_attachment(conf, PODNET, given, Owner("net", pod.name, "eth0"))

    def attach(self, number: int) -> Pod:
        pod = self.env.pod()
        pod.plan = self.plan(pod, number)
        pod.links = self.env.driver.attach(pod.plan, pod.fd)
        pod.v4, pod.v6 = (lambda: f"192.0.2.{number}"), (lambda: f"2001:db8::{number:x}")  # type: ignore[method-assign]
        return pod


def make() -> str:
    name = f"pyt-uml-{next(_NUMBERS)}"
    namespaces.create(name)
    return name


@contextlib.contextmanager
def ground(kind: AttachmentKind) -> Iterator[Ground]:
    with node(make) as env:
        segment = Segment(make)
        try:
            yield Ground(env, segment.host(FAR), segment.host(PEER), kind)
        finally:
            segment.close()


def reached(world: Ground) -> dict[str, Any]:
    """Who reaches whom, and how the child looks."""
    one, two = world.attach(20), world.attach(21)
    child = links(one.name)["eth0"]
    places = {"node": NODE, "router": FAR, "far pod": PEER, "pod beside": (two.v4(), two.v6())}
    with serving(two, 80) as tcp, serving(two, 53, udp=True) as udp:
        beside = connect(one, two.v4(), 80, tcp, 5), exchange(world.peer, two.v4(), 53, udp, 5)
    found = {
        "kind": child["linkinfo"]["info_kind"],
        "uplink's MAC": child["address"] == links()["eth1"]["address"],
        "from pod": {name: [pings(one, target, wait=5) for target in pair] for name, pair in places.items()},
        "to pod": [
            pings(who, one.v4(), wait=5) and pings(who, one.v6(), wait=5) for who in (None, world.far)
        ],
        "sources": beside,
    }
    for pod in (one, two):
        world.env.detach(pod)
    return found


def life(world: Ground) -> dict[str, Any]:
    """CHECK, what is left of a failed ADD, DEL with and without a driver that knows the pod, the address again."""
    driver = world.env.driver
    one, two = world.attach(20), world.attach(21)
    assert one.plan is not None
    assert one.links is not None
    known = CniResult(interfaces=(InterfaceResult(name="eth0", mac=one.links.pod_mac.hex(":"), sandbox="x"),))
    found: dict[str, Any] = {"check": driver.check(one.plan.with_result(known), one.fd)}
    one.run("ip addr del 192.0.2.20/24 dev eth0")
    found["check after"] = driver.check(one.plan.with_result(known), one.fd)
    clash = world.env.pod()
    clash.run("ip link add eth0 type bridge")
    try:
        driver.attach(world.plan(clash, 22), clash.fd)
    except Exception as exc:
        found["clash"] = type(exc).__name__
    found["after clash"] = sorted(links(clash.name))
    world.env.detach(one)
    other = world.env.new_driver()
    assert two.plan is not None
    other.detach(two.plan.owner, None)
    assert other.wait_gone(two.plan.owner)
    found["left"] = (
        [sorted(links(pod.name)) for pod in (one, two)],
        [n for n in links() if n.startswith("veth")],
    )
    again = world.attach(20)
    found["again"] = [pings(world.peer, target, wait=5) for target in (again.v4(), again.v6())]
    found["routes"] = [line for line in run("ip route").splitlines() if "192.0.2.2" in line]
    return found


def main() -> None:
    parts: dict[str, Callable[[Ground], dict[str, Any]]] = {"reached": reached, "life": life}
    found: dict[str, Any] = {}
    with ground(AttachmentKind.IPVLAN) as world:
        for name, part in parts.items():
            try:
                found[name] = part(world)
            except BaseException:
                found[name] = {"failed": traceback.format_exc()}
    print("ANSWER", json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
