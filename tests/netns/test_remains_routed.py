"""What a clean-up takes of routed pods' network, and what it leaves to the pods."""

from __future__ import annotations

from collections.abc import Callable

from pycni.kernel.remains import remove_network
from pycni.model.attachment import AttachmentKind
from tests.netns.podenv import node, pings, run


def test_routes_of_the_last_resort_go_and_pods_keep_theirs(netns_factory: Callable[[], str]) -> None:
    with node(netns_factory) as env:
        out, pod = env.outside((4, 6)), env.attach((4, 6), attachment=AttachmentKind.PTP)
        removed = remove_network()
        assert removed.pods == 1
        assert set(removed.gone) == {"route 10.1.2.0/24", "route fd00:1:2::/64"}
        assert "unreachable" not in run("ip route") + run("ip -6 route")
        assert pings(out, pod.v4())
        assert pings(out, pod.v6())
        assert remove_network().gone == ()
