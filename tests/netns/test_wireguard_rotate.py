"""Changing a WireGuard key with packets under way: what is lost, what is seen, what goes on after an end in between."""

from __future__ import annotations

import json
import os
import threading
import time
from contextlib import contextmanager

import pytest

from pycni.agent import wireguard_rotate
from tests.netns.fabric_nodes import start, until
from tests.netns.test_network_component import pod
from tests.netns.test_wireguard import key_of, reach, wg, world, worlds  # noqa: F401

GAP_S = 0.02
"""Between two packets: the wait is less than 128 of them, which is what WireGuard lets wait."""
PATIENT_S = 1.0
"""In place of DELAY_S, so that no busy machine makes a node slower than its peers."""


class Flow:
    """Datagrams one way, numbered, each with the time it was sent."""

    def __init__(self, here, there, port: int) -> None:
        source, target = pod(here, "4"), pod(there, "4")
        self._out, self._in = here.socket(source), there.socket(target, port)
        self._in.settimeout(0.2)
        self._target = (target, port)
        self.sent = 0
        self.came: dict[int, float] = {}
        self.late_s = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=job) for job in (self._send, self._take)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._over.is_set():
            self._out.sendto(f"{self.sent} {time.monotonic()}".encode(), self._target)
            self.sent += 1
            time.sleep(GAP_S)

    def _take(self) -> None:
        while not (self._over.is_set() and len(self.came) == self.sent):
            try:
                number, sent = self._in.recv(100).split()
            except TimeoutError:
                if self._over.is_set():
                    return
                continue
            self.came[int(number)] = time.monotonic() - float(sent)

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        self._out.close()
        self._in.close()

    @property
    def lost(self) -> int:
        return self.sent - len(self.came)


@contextmanager
def flows(*pairs):
    made = []
    try:
        for number, (here, there) in enumerate(pairs):
            made.append(Flow(here, there, 4100 + number))
        until(lambda: all(len(flow.came) > 10 for flow in made), "packets flow", 20)
        yield made
        seen = [len(flow.came) for flow in made]
        until(lambda: all(len(f.came) > count + 10 for f, count in zip(made, seen, strict=True)), "go on", 20)
    finally:
        for flow in made:
            flow.end()


def ask(agent, target: str) -> dict:
    answer = agent.call(lambda: agent.component.routes()[target](""))
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def rotate(agent, node) -> str:
    """Have the key changed and wait until it is in force; the new one."""
    before = key_of(node)
    assert ask(agent, "/wireguard/rotate")["key"] == before
    until(lambda: ask(agent, "/wireguard")["key"] != before, "another key", 20)
    after = ask(agent, "/wireguard")
    assert (after["following"], key_of(node)) == ("", after["key"])
    return after["key"]


@worlds(("separate", "46", {}))
def test_a_key_changes_under_traffic_both_ways_and_no_packet_is_lost(world, monkeypatch):  # noqa: F811
    monkeypatch.setattr(wireguard_rotate, "DELAY_S", PATIENT_S)
    (one, two, three), agents = start(world, 1, 2, 3)
    reach(one, two)
    reach(one, three)
    reach(two, three)
    bystander = wg(two, "latest-handshakes")
    with flows((one, two), (two, one), (two, three)) as made:
        new = rotate(agents[0], one)
        for node in (two, three):
            until(lambda node=node: new in [peer for peer, _ in wg(node, "allowed-ips")], "peers follow", 20)
    print("longest wait:", *(f"{max(flow.came.values()) * 1000:.0f} ms" for flow in made))
    assert [flow.lost for flow in made] == [0, 0, 0]
    third = key_of(three)
    assert [line for line in wg(two, "latest-handshakes") if line[0] == third] == [
        line for line in bystander if line[0] == third
    ]
    assert len(wg(two, "peers")) == 2
    assert not (one.folder / "state/wireguard.key.next").exists()
    reach(one, two)


@worlds(("a node that only sends", "4", {}))
def test_packets_of_a_node_that_hears_nothing_back_are_not_lost_either(world, monkeypatch):  # noqa: F811
    """Its own offer of a session is not understood in time: the peer has to speak first."""
    monkeypatch.setattr(wireguard_rotate, "DELAY_S", PATIENT_S)
    (one, two), agents = start(world, 1, 2)
    reach(one, two)
    with flows((one, two)) as [flow]:
        new = rotate(agents[0], one)
        until(lambda: wg(two, "peers") == [[new]], "the peer follows", 20)
    assert flow.lost == 0


def test_two_nodes_that_change_their_keys_at_once_find_each_other(world):  # noqa: F811
    (one, two), agents = start(world, 1, 2)
    reach(one, two)
    before = {key_of(one), key_of(two)}
    for agent in agents:
        ask(agent, "/wireguard/rotate")
    until(lambda: not {key_of(one), key_of(two)} & before, "both keys", 20)
    until(lambda: wg(one, "peers") == [[key_of(two)]], "the new peer", 20)
    until(lambda: wg(two, "peers") == [[key_of(one)]], "the new peer", 20)
    reach(one, two)


def test_while_nobody_can_be_told_the_old_key_stays_in_force_also_in_the_next_life(world):  # noqa: F811
    (one, two), (agent, _) = start(world, 1, 2)
    reach(one, two)
    old = key_of(one)
    agent.source.online = False
    ask(agent, "/wireguard/rotate")
    following = until(lambda: ask(agent, "/wireguard")["following"], "a key to follow", 20)
    until(lambda: agent.source.waiting, "an attempt to publish", 20)
    reach(one, two)
    assert [key_of(one), wg(one, "public-key")] == [old, [[old]]]
    agent.stop()
    again = one.start()
    until(again.well, "agent well", 20)
    until(lambda: ask(again, "/wireguard")["key"] == following, "the new key", 20)
    until(lambda: wg(one, "public-key") == [[following]], "the device's", 20)
    until(lambda: wg(two, "peers") == [[following]], "the peer's", 20)
    reach(one, two)


def test_a_key_that_is_old_enough_is_changed_by_itself(world):  # noqa: F811
    (one, two), agents = start(world, 1, 2, resync_s=0.5, flags={"wireguard_key_period": "24"})
    old, other = key_of(one), key_of(two)
    assert ask(agents[0], "/wireguard")["period_s"] == 86400
    agents[0].stop()
    past = time.time() - 27 * 3600  # the age differs a little from node to node
    os.utime(one.folder / "state/wireguard.key", (past, past))
    agent = one.start(resync_s=0.5, flags={"wireguard_key_period": "24"})
    until(lambda: key_of(one) != old, "a new key", 20)
    new = until(lambda: [key_of(one)] in wg(two, "peers") and key_of(one), "the peer's", 20)
    passes = agent.component._runner.passes
    until(lambda: agent.component._runner.passes > passes + 3, "more passes", 20)
    assert (key_of(one), key_of(two)) == (new, other)
    reach(one, two)


def test_without_the_wait_for_the_other_one_packets_are_lost(world, monkeypatch):  # noqa: F811
    """That the first test can fail: a peer that goes by the new key before its owner does loses packets."""
    monkeypatch.setattr(wireguard_rotate, "DELAY_S", 0.0)
    (one, two), agents = start(world, 1, 2)
    reach(one, two)
    took = agents[0].component._took

    def slow(held) -> None:
        # As if the news of its own lease came late to the node.
        agents[0]._loop.call_later(0.2, took, held)

    agents[0].source.on_held = slow
    agents[0].component._took = slow
    with flows((one, two)) as [flow]:
        rotate(agents[0], one)
    assert flow.lost > 0


@pytest.mark.parametrize("name", ["wireguard.key", "wireguard.key.next"])
def test_a_key_file_that_holds_none_is_named_and_never_shown(world, name):  # noqa: F811
    node = world.node(1)
    (node.folder / "state").mkdir()
    (node.folder / "state" / name).write_text("hunter2")
    agent = node.start()
    until(lambda: f"state/{name}" in agent.health.reason(), agent.health.reason(), 20)
    assert "hunter2" not in agent.health.reason()
