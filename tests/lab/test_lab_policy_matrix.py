"""Every case of the policy suites with real packets between nine pods on three nodes: the kernel does as the oracle says.

Then what needs connections that last: they outlive changes of policies, and do not get in each other's way.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Self
from urllib.parse import urlencode

import pytest

from pycni.lab import settle
from pycni.model.family import Family
from pycni.model.kube import PROTOCOL_NAMES, SCTP, TCP, UDP
from tests.lab.policy_build import (
    Case,
    Step,
    cnp,
    crule,
    ends,
    labels,
    named,
    np,
    pods,
    port,
    rule,
    space,
    step,
)
from tests.lab.policy_cases import CASES, UPSTREAM
from tests.lab.policy_lab import PolicyLab, verdicts
from tests.lab.policy_states import Oracle, Way, ways
from tests.lab.policy_world import PODS, SPACES, Mappings, node_of

from .conftest import unique_name

PLANES = ("nftables", "ebpf")


@pytest.fixture(scope="module", params=PLANES)
def plane(request: pytest.FixtureRequest) -> Iterator[PolicyLab]:
    with PolicyLab(unique_name(), request.param) as made:
        yield made


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_kernel_does_what_the_oracle_says(plane: PolicyLab, case: Case) -> None:
    whole = case in UPSTREAM
    for state in case.steps:
        number = plane.begin(state)
        oracle = Oracle(plane.objects(), plane.address)
        said = verdicts(oracle, state, None if whole else CASES.index(case))
        plane.await_policies(number)
        plane.check(state, oracle, said)
        if case.services:
            plane.check(state, oracle, said, services=True)


EXPLAINED = (
    "by-port",
    "named-port-at-egress",
    "excluded-by-one-allowed-by-another",
    "mixture-1",
    "mixture-2",
)


@pytest.mark.parametrize("name", EXPLAINED)
def test_agents_explain_what_oracle_compiled_values_and_kernel_say(plane: PolicyLab, name: str) -> None:
    """Of connections on one node and between nodes, by both families and three protocols."""
    state = next(case for case in CASES if case.name == name).steps[-1]
    oracle = Oracle(plane.reach(state), plane.address)
    everything = ways()
    for way in everything[:: len(everything) // 6]:
        query = urlencode(
            {
                "source": way.source,
                "destination": way.target,
                "port": way.port,
                "protocol": PROTOCOL_NAMES[way.protocol],
            }
        )
        for node in {node_of(way.source), node_of(way.target)}:
            status, body = settle.control(plane.lab.node(node), f"/policies/explain?{query}", 10)
            assert status == 200, body
            answer = json.loads(body)
            assert answer["trouble"] == ""
            found = {item["destination"]["address"]: item for item in answer["connections"]}
            item = found[plane.address(way.target, way.family)]
            told = oracle.told(way)
            assert item["allowed"] is told.allowed, told
            assert item["differences"] == []
            by = {check["by"] for check in item["checks"]}
            assert {"compiled", "nftables in the kernel"} <= by
            assert ("ebpf in the kernel" in by) is (plane.plane == "ebpf")


UNJUDGED = """
table inet pyt_unjudged {
    chain out {
        type filter hook postrouting priority 80;
        ct state new meta mark & 0x08000000 == 0 ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 meta l4proto { 6, 132 } drop
    }
}
"""


def test_programs_judge_what_goes_from_pod_to_pod(plane: PolicyLab) -> None:
    """Where connections that no program has judged are dropped, nothing changes with eBPF, and nothing works without."""
    # A node without any policy for its pods leaves them to the stack.
    one = step(
        *(np(f"{name}/p", ingress=[rule(space("x"), space("y"))], egress=[rule(space())]) for name in SPACES)
    )
    oracle = Oracle(plane.reach(one), plane.address)
    said = {way: oracle.allowed(way) for way in ways((Family.V4,)) if way.protocol in {TCP, SCTP}}
    plane.check(one, oracle, said)
    for node in plane.lab.nodes():
        plane.lab.exec(node.name, ["nft", UNJUDGED])
    try:
        if plane.plane == "ebpf":
            # Programs leave to the stack what looks like an earlier connection of the stack's.
            found = plane.shoot(said)
            assert not [way for way, outcome in found.items() if outcome.arrived and not said[way]]
            assert sum(outcome.answered for outcome in found.values()) > 0.97 * sum(said.values())
        else:
            outcomes = plane.shoot(dict.fromkeys(said, False))
            assert not any(outcome.arrived for outcome in outcomes.values())
    finally:
        for node in plane.lab.nodes():
            plane.lab.exec(node.name, ["nft", "delete table inet pyt_unjudged"])
    plane.check(one, oracle, said)


# --- connections that last -------------------------------------------------------------------------------------------

PORT = 8099


class Stream:
    """A connection over which numbered lines go and come back, one at a time, for as long as the block runs."""

    def __init__(self, plane: PolicyLab, source: str, target: str, family: Family, protocol: int) -> None:
        there = plane.address(target, family)
        self.server = plane.socket(target, family, protocol, (there, PORT))
        self.client = plane.socket(source, family, protocol, (plane.address(source, family), PORT))
        self.protocol, self.sent, self.back, self.error = protocol, 0, 0, ""
        self.accepted: socket.socket | None = None
        for sock in (self.client, self.server):
            sock.settimeout(3)
        if protocol == TCP:
            self.server.listen()
        self.client.connect((there, PORT))
        if protocol == TCP:
            self.accepted, _peer = self.server.accept()
            self.accepted.settimeout(3)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, name="stream")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop.set()
        self.thread.join()
        for sock in (self.client, self.server, self.accepted):
            if sock is not None:
                sock.close()

    def ask(self) -> None:
        """One line there and back. Raises OSError."""
        line = f"{self.sent:08}".encode() * 64
        self.sent += 1
        self.client.sendall(line)
        if self.accepted is not None:
            self.accepted.sendall(self._take(self.accepted, len(line)))
        else:
            data, sender = self.server.recvfrom(65536)
            self.server.sendto(data, sender)
        assert self._take(self.client, len(line)) == line
        self.back += 1

    @staticmethod
    def _take(sock: socket.socket, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = sock.recv(size - len(data))
            assert chunk, "closed"
            data += chunk
        return data

    def _run(self) -> None:
        while not self.stop.is_set():
            try:
                self.ask()
            except (OSError, AssertionError) as exc:
                self.error = repr(exc)
                return
            time.sleep(0.001)


def admitting(*more: Mappings) -> Step:
    """x may come to y/b by one port and nobody else by any, x/a may go there only; and more policies."""
    both = [port(PORT), port(PORT, "UDP")]
    return step(
        np("y/in", labels(pod="b"), ingress=[rule(space("x"), ports=both)]),
        np("x/out", labels(pod="a"), egress=[rule(space("y"), ports=both)]),
        *more,
    )


def test_streams_outlive_fifty_changes_of_policies(plane: PolicyLab) -> None:
    plane.reach(admitting())
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(Stream(plane, "x/a", "y/b", family, protocol))
            for family in Family
            for protocol in (TCP, UDP)
        ]
        for number in range(50):
            other = [
                np(
                    f"y/new{number}", labels(pod="b"), ingress=[rule(pods(pod="c"), ports=[port(number + 1)])]
                ),
                np(f"x/new{number}", egress=[rule(space("z"))]),
                cnp("new", number, ends(labels(ns="y")), ingress=[crule("Pass", protocols=[named("x")])]),
                np(f"z/new{number % 3}", ingress=[]),
            ]
            plane.reach(admitting(*other[: number % 5]))
    assert [(stream.error, stream.sent - stream.back) for stream in streams] == [("", 0)] * 4
    assert min(stream.back for stream in streams) > 50


def test_an_open_connection_stays_when_it_would_be_denied_now_and_a_new_one_is(plane: PolicyLab) -> None:
    plane.reach(admitting())
    with contextlib.ExitStack() as stack:
        streams = [
            stack.enter_context(Stream(plane, "x/a", "y/b", Family.V4, protocol)) for protocol in (TCP, UDP)
        ]
        closed = step(np("y/deny", ingress=[], egress=[]), np("x/deny", ingress=[], egress=[]))
        objects = plane.reach(closed)
        before = [stream.back for stream in streams]
        time.sleep(0.2)
        oracle = Oracle(objects, plane.address)
        plane.check(closed, oracle, verdicts(oracle, closed, 0))
    assert [stream.error for stream in streams] == ["", ""], "established connections are not judged again"
    assert all(stream.back > was for stream, was in zip(streams, before, strict=True))


@pytest.mark.parametrize("family", Family, ids=lambda family: family.label)
def test_a_service_is_reached_from_a_port_that_was_used_for_its_endpoint(
    plane: PolicyLab, family: Family
) -> None:
    """On one node: what the fast path remembers of the pod's own address must not catch the Service's replies."""
    source, target = next((a, b) for a in PODS for b in PODS if a != b and node_of(a) == node_of(b))
    plane.reach(step(np(f"{target[0]}/p", ingress=[rule(space(), ports=[port(81)])])))
    way = Way(source, target, family, TCP, 81)
    service = plane.shots([way], services=True)[way]
    for number, end in enumerate(((plane.address(target, family), 81), (service.address, service.at)) * 2):
        client = plane.socket(source, family, TCP, (plane.address(source, family), 20999))
        with client:
            client.settimeout(3)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
            # The prober's server is there; nobody has to accept for the handshake to be complete.
            assert client.connect_ex(end) == 0, (number, end)
