"""Three etcds: any of them may die, even the leader, and nobody notices."""

from __future__ import annotations

import time

import pytest

from .small_fabric import SmallFabric, fabrics
from .test_outage import change, follows, until, waits_for_etcd

shared = fabrics("46 vxlan", count=2, members=3)


def leader(fabric: SmallFabric) -> int:
    """Index of the member that leads."""
    for index, member in enumerate(fabric.members):
        if member.alive():
            answer = fabric.call("maintenance/status", member=index)
            if answer.get("leader") == answer["header"]["member_id"]:
                return index
    raise AssertionError("nobody leads")


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_member_dies_and_comes_back(fabric: SmallFabric, which: str) -> None:
    before = [node.tables() for node in fabric.nodes]
    with fabric.traffic() as streams:
        index = (leader(fabric) + (which == "follower")) % 3
        fabric.members[index].kill()
        seconds = change(fabric, 150)
        assert all(node.ready() for node in fabric.nodes)
        until(lambda: follows(fabric), seconds=10.0)
        fabric.revive(index)
        change(fabric, 151)
        time.sleep(0.2)
    assert [node.tables() for node in fabric.nodes] == before
    print(f"a change arrives {seconds:.2f} s after the {which} was killed; {streams}")


def test_two_of_three_die_and_come_back(fabric: SmallFabric) -> None:
    before = [node.tables() for node in fabric.nodes]
    with fabric.traffic():
        for index in (0, 1):
            fabric.members[index].kill()
        until(lambda: waits_for_etcd(fabric), seconds=10.0)
        assert [node.tables() for node in fabric.nodes] == before
        assert all(node.ready() for node in fabric.nodes)
        for index in (0, 1):
            fabric.revive(index)
        change(fabric, 152)
    assert [node.tables() for node in fabric.nodes] == before
