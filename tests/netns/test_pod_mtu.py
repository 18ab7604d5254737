"""Running pods get the MTU the network has come to, both ends and the bridge; nothing else is touched."""

from __future__ import annotations

import json

import msgspec
import pytest

from pycni.kernel import netns as namespaces
from pycni.kernel.podmtu import PodAt, follow
from pycni.model.attachment import AttachmentKind
from tests.netns.podenv import PODNET, Env, Pod, pings, run


def mtu(device: str, where: str = "") -> int:
    return int(json.loads(run(f"ip -j link show {device}", where))[0]["mtu"])


def mtus(pod: Pod) -> tuple[int, int]:
    """Of the host's end and the pod's."""
    assert pod.plan is not None
    return mtu(pod.plan.host), mtu("eth0", pod.name)


def place(env: Env, pod: Pod, size: int, **conf: object) -> PodAt:
    plan = env.plan(pod, podnet=msgspec.structs.replace(PODNET, mtu=size), **conf)
    return PodAt(plan, namespaces.path(pod.name), namespaces.inode(pod.fd))


@pytest.mark.parametrize("kind", [AttachmentKind.BRIDGE, AttachmentKind.PTP])
@pytest.mark.parametrize("size", [1500, 1420])
def test_both_ends_and_the_bridge_get_the_new_one_and_packets_of_it_pass(env: Env, kind, size):
    one, two = (env.attach(attachment=kind) for _ in range(2))
    places = [place(env, pod, size, attachment=kind) for pod in (one, two)]
    changed = follow(places)
    assert [line.rpartition(": ")[2] for line in changed] == [f"MTU {size} in place of 1450"] * 2
    assert follow(places) == []
    env.driver.resync([item.plan for item in places])
    assert mtus(one) == mtus(two) == (size, size)
    assert kind is not AttachmentKind.BRIDGE or mtu("cni0") == size
    assert pings(one, two.v4(), size=size - 28, wait=5)


def test_repairs_do_not_take_the_bridge_back_to_an_older_mtu(env: Env):
    old = env.attach()
    new = env.pod()
    new.plan = place(env, new, 1500).plan
    new.links = env.driver.attach(new.plan, new.fd)
    known = [place(env, pod, 1500).plan for pod in (old, new)]
    for _ in range(3):
        env.driver.resync(known)
        assert mtu("cni0") == 1500
    env.detach(old)
    env.detach(new)


def test_what_was_set_on_purpose_in_the_pod_stays(env: Env):
    pod = env.attach()
    pod.run("ip link set eth0 mtu 1300")
    follow([place(env, pod, 1420)])
    assert mtus(pod) == (1420, 1300)


def test_another_namespace_of_the_name_is_left_alone(env: Env):
    pod, other = env.attach(), env.attach()
    wrong = PodAt(place(env, pod, 1420).plan, namespaces.path(other.name), namespaces.inode(pod.fd))
    gone = PodAt(place(env, pod, 1420).plan, "/run/netns/pyt-not-there", 1)
    assert follow([wrong]) == follow([gone]) == []
    assert mtus(pod) == mtus(other) == (1450, 1450)


def test_a_pod_whose_configuration_names_an_mtu_keeps_that(env: Env):
    pod = env.attach(mtu=1400)
    assert follow([place(env, pod, 1500, mtu=1400)]) == []
    assert mtus(pod) == (1400, 1400)
