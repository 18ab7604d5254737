"""What is tried on pods of more than one kind of attachment."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

import pytest

from pycni.attach.plan import AttachPlan
from pycni.kernel import pod as pod_module
from pycni.kernel import podlink
from pycni.model.cni import Bandwidth, PortMapping
from tests.netns.podenv import Env, Pod, run, serving

EVERYTHING: Mapping[str, Any] = {
    "ip_masq": True,
    "mac_spoof_check": True,
    "port_mappings": (PortMapping(host_port=80, container_port=80),),
    "bandwidth": Bandwidth(ingress_rate=10**7, ingress_burst=10**6, egress_rate=10**7, egress_burst=10**6),
}
"""Asked of an attachment, it goes through every step."""
_PLACES = {"shape": pod_module.tc, "claim": pod_module.PodTables, "let_loopback_out": pod_module.podports}
MOMENTS = ("before", "after")


def fail_at(
    env: Env,
    pod: Pod,
    plan: AttachPlan,
    *,
    step: str,
    moment: str,
    places: Mapping[str, Any],
) -> None:
    """Attach, and have a step fail before or after its work. ``places``: of steps that are this kind's own."""
    place = {**_PLACES, **places}.get(step, podlink)
    real = getattr(place, step)

    def broken(*args: Any, **kwargs: Any) -> None:
        if moment == "after":
            real(*args, **kwargs)
        raise RuntimeError(step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, step, broken)
        with pytest.raises(RuntimeError, match=step):
            env.driver.attach(plan, pod.fd)
        if (step, moment) == ("create", "after"):
            # Nobody can know of a link whose making was not reported; the caller's DEL finds it by its owner.
            env.driver.detach(plan.owner)
            env.driver.wait_gone(plan.owner)


def sees_no_loopback_of_the_node(pod: Pod, device: str, via: str) -> None:
    """``device`` is open for loopback, for a mapped port; a pod whose packets come by it cannot use that.

    ``via``: the pod's gateway, as words of ``ip route``.
    """
    assert run(f"sysctl -n net.ipv4.conf.{device}.route_localnet").strip() == "1"
    pod.run("sysctl -qw net.ipv4.conf.all.route_localnet=1")
    pod.run(f"ip route add 127.0.0.2/32 via {via} table 9")
    pod.run("ip rule add pref 1 to 127.0.0.2 lookup 9")
    pod.run("ip rule add pref 2 lookup local")
    pod.run("ip rule del pref 0")

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("127.0.0.2", 9999))

    with serving(None, 9999, udp=True) as server:
        server.settimeout(0.3)
        pod.inside(send)
        with pytest.raises(TimeoutError):
            server.recvfrom(16)
        run("nft flush chain inet pycni_pods guard")
        pod.inside(send)
        assert server.recvfrom(16)[0] == b"x", "without the guard it would have come"
