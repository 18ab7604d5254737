"""Early drop on a node's uplink with real packets: what is denied ends there, nothing else is touched or lost."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import struct
import threading
import time

import pytest

from pycni.errors import ConfigError, KernelError
from pycni.kernel import bpf, bpf_build
from pycni.kernel import netns as namespaces
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.kube import TCP
from pycni.model.policy import PortRange
from pycni.policy import nft
from pycni.policy.ebpf import fastpath
from pycni.policy.ebpf.driver import Places
from pycni.policy.engine import PolicyEngine
from pycni.policy.xdp import driver, xdp
from pycni.policy.xdp.xdp import XdpPath
from pycni.wire import rtlink
from pycni.wire.netlink import parse_attrs
from tests.netns import frames as f
from tests.netns.fabric_nodes import run
from tests.netns.policy_ebpf_rig import NO_GRACE, in_node, local_pods, pins
from tests.netns.policy_rig import EVERY, Rig, Try, block, policy, rule, web
from tests.netns.test_policy_xdp_law import BLOCKS, CLOSED, PEER, POD_IP, bare, payload, shop
from tests.netns.xdp_rig import Judge, Wire, first_packet, ifindex, look, plain, sending, vxlan, wire
from tests.waiting import wait_for

OTHERS = "int other(struct xdp_md *ctx) { return XDP_PASS; }"
MODES = pytest.mark.parametrize("mode", ["native", "generic"])


@pytest.fixture
def made():
    with wire() as found:
        yield found


@pytest.fixture
def lives(made):
    """Makes paths; all of them go at the end."""
    opened: list[XdpPath] = []

    def make(mode="auto", **facts):
        opened.append(made.path(mode, **facts))
        return opened[-1]

    yield make
    if opened:
        opened.append(made.path())
        opened[-1].remove()
    for path in opened:
        shut(path)


def shut(path: XdpPath) -> None:
    """Close it, once."""
    if path.below.driver.maps["config"].fd >= 0:
        path.close()


def enforce(path, *policies):
    Judge(path).sync(shop(*policies))


def other_program(made: Wire) -> int:
    """Somebody else's link on eth0; its descriptor."""
    code = bpf_build.build(OTHERS, ["other"])
    program = bpf.load_program(bpf.XDP, code["other"], attach_type=bpf.XDP_ATTACH, name="other")
    try:
        return made.inside(lambda: bpf.create_link(program, ifindex(made), bpf.XDP_ATTACH))
    finally:
        os.close(program)


# --- frames ----------------------------------------------------------------------------------------------------------


def marked(packet_of, count=3):
    """Frames that can be told apart, by the tokens in them."""
    return {token: packet_of(token) for token in (os.urandom(8) for _ in range(count))}


def kinds(family, outer):
    """Frames that are denied, and frames that are not; outer: the family VXLAN has around them, 0: none."""

    def wrap(destination, protocol, data):
        packet = f.ip(PEER[family], destination, protocol, data)
        return vxlan(packet, outer) if outer else plain(packet)

    pod, echo = POD_IP[family], {4: f.ICMP, 6: f.ICMPV6}[family]
    denied = marked(lambda token: wrap(pod, f.TCP, f.tcp(80, token)))
    denied |= marked(lambda token: wrap(pod, echo, payload(echo) + token))
    passing = marked(lambda token: wrap(pod, f.TCP, f.tcp(80, token, flags=16)))
    passing |= marked(lambda token: wrap(pod[:-1] + "3", f.TCP, f.tcp(80, token)))
    return denied, passing


@MODES
@pytest.mark.parametrize("closed", [CLOSED, BLOCKS], ids=["deny all", "outside a block"])
def test_denied_frames_end_before_the_stack(made, lives, mode, closed):
    path = lives(mode)
    enforce(path, closed)
    assert path.devices == {"eth0": mode}
    assert not path.problems()
    denied, passing = {}, {}
    with sending(made) as (sock, catcher):
        for family in (4, 6):
            for outer in (0, 4, 6):
                refused, others = kinds(family, outer)
                denied |= refused
                passing |= others
        for frame in [*denied.values(), *passing.values()]:
            sock.send(frame)
        assert catcher.wait(*passing, seconds=5) == set(passing)
        assert not catcher.wait(*denied, seconds=0.05)
    counted = {(item.policy, item.direction): item.packets for item in path.denied()}
    assert counted == {(f"NetworkPolicy {closed.meta.key}", "ingress"): len(denied)}


def test_drops_are_told_with_their_policy_and_not_by_the_thousand(made, lives):
    path = lives()
    enforce(path, BLOCKS)
    reader = path.drops()
    try:
        with made.inside(lambda: f.wire("far")) as sock:
            for number in range(1000):
                sock.send(
                    plain(first_packet(f"10.0.{number // 250}.{number % 250 + 1}", POD_IP[4], f.TCP, 80))
                )
            deadline, told = time.monotonic() + 5, []
            while time.monotonic() < deadline and sum(item.packets for item in path.denied()) < 1000:
                told += reader.read()
                time.sleep(0.01)
        told += reader.read()
        assert [item.packets for item in path.denied()] == [1000]
        # Twenty a second and processor.
        assert 1 <= len(told) <= 20 * os.cpu_count() * 7
        assert len(told) < 500
        one = told[0]
        assert (one.policy, one.by, one.direction, one.protocol, one.port) == (
            "NetworkPolicy shop/blocks",
            "xdp",
            "ingress",
            TCP,
            80,
        )
        assert (one.destination, one.source_port) == (f.packed(POD_IP[4]), 40000)
        assert reader.lost == 0
    finally:
        reader.close()


def test_one_source_that_goes_on_is_told_again(made, lives):
    path = lives()
    enforce(path, CLOSED)
    reader = path.drops()
    try:
        with made.inside(lambda: f.wire("far")) as sock:
            frame, told, deadline = plain(bare(4, f.TCP, payload(f.TCP))), 0, time.monotonic() + 8
            while told < 3 and time.monotonic() < deadline:
                sock.send(frame)
                told += len(reader.read())
                time.sleep(0.02)
        assert told == 3
    finally:
        reader.close()


# --- interfaces ------------------------------------------------------------------------------------------------------


def test_native_comes_first_and_generic_where_the_driver_refuses(made, lives, monkeypatch):
    real = bpf.create_link

    def refusing(program, target, attach_type, obj="", flags=0):
        if flags & 4:
            raise KernelError(95, "attach program", obj)
        return real(program, target, attach_type, obj, flags)

    path = lives("native")
    monkeypatch.setattr(bpf, "create_link", refusing)
    path.apply()
    assert path.devices == {}
    assert re.search("xdp: eth0: native XDP: .*(EOPNOTSUPP|ENOTSUP)", " ".join(path.problems()))
    shut(path)
    path = lives("auto")
    path.apply()
    assert path.devices == {"eth0": "generic"}
    assert not path.problems()


def test_a_mode_is_changed_where_another_is_wanted(made, lives):
    for mode in ("native", "generic", "native"):
        path = lives(mode)
        path.apply()
        assert path.devices == {"eth0": mode}
        shut(path)


def test_somebody_elses_program_is_left_alone(made, lives):
    link = other_program(made)
    try:
        theirs = made.inside(lambda: look("eth0")).programs
        path = lives()
        enforce(path, CLOSED)
        path.look()
        assert path.problems() == ["xdp: eth0: somebody else's XDP program is there; it is left alone"]
        assert made.inside(lambda: look("eth0")).programs == theirs
        assert path.devices == {}
    finally:
        os.close(link)
    deadline = time.monotonic() + 5
    while made.inside(lambda: look("eth0")).programs and time.monotonic() < deadline:
        time.sleep(0.01)
    path.look()
    assert path.devices == {"eth0": "native"}
    assert not path.problems()
    with pytest.raises(KernelError, match="EBUSY"):
        other_program(made)


def test_interfaces_and_tunnels_come_and_go(made, lives):
    path = lives(devices=("eth0", "late", "lo"))
    enforce(path, CLOSED)
    assert path.devices == {"eth0": "native"}
    assert sorted(path.problems()) == [
        "xdp: late: there is no such interface",
        "xdp: lo: not an Ethernet interface",
    ]
    run(made.name, "ip link add late address 02:00:00:00:00:05 type veth peer name late2")
    run(made.name, f"ip link add vx9 type vxlan id 9 local {PEER[4]} dstport 8472 dev late nolearning")
    judge = Judge(path)
    inside = vxlan(bare(4, f.TCP, payload(f.TCP)), vni=9, destination=PEER[4])
    frame = plain(bare(4, f.TCP, payload(f.TCP)), f.mac("02:00:00:00:00:05"))
    assert not judge.drops(inside)
    assert not judge.drops(frame)
    path.look()
    assert path.devices == {"eth0": "native", "late": "native"}
    assert judge.drops(inside)
    assert judge.drops(frame)
    run(made.name, "ip link del late")
    path.look()
    assert path.devices == {"eth0": "native"}
    assert not judge.drops(inside)
    os.close(judge._fd)


def test_another_life_finds_everything_as_it_was(made, lives):
    path = lives()
    enforce(path, CLOSED)
    programs = made.inside(lambda: look("eth0")).programs
    shut(path)
    path = lives()
    enforce(path, CLOSED)
    assert made.inside(lambda: look("eth0")).programs == programs


def test_the_death_of_the_agent_leaves_it_at_work(made):
    child = os.fork()
    if not child:  # pragma: no cover - another process
        enforce(made.path(), CLOSED)
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    denied = marked(lambda token: plain(bare(4, f.TCP, f.tcp(80, token))))
    passing = marked(lambda token: plain(bare(4, f.TCP, f.tcp(80, token, flags=16))))
    with sending(made) as (sock, catcher):
        for frame in [*denied.values(), *passing.values()]:
            sock.send(frame)
        assert catcher.wait(*passing, seconds=5) == set(passing)
        assert not catcher.wait(*denied, seconds=0.05)
        assert made.inside(lambda: xdp.leftovers(made.places))
        made.inside(lambda: fastpath.leftovers(made.places))
        for frame in denied.values():
            sock.send(frame)
        assert catcher.wait(*denied, seconds=5) == set(denied)
    assert not made.inside(lambda: look("eth0")).programs


def test_what_the_machine_lacks_is_said(monkeypatch):
    monkeypatch.setattr(driver, "missing", lambda cache: "no kernel headers")
    monkeypatch.setattr(fastpath, "missing", lambda places: "")
    with pytest.raises(ConfigError, match="policy-xdp='auto': no kernel headers"):
        xdp.make("n1", mode="auto", devices=("eth0",))


# --- a node with pods ------------------------------------------------------------------------------------------------

WORLDS = {
    "default deny": (policy("shop/deny", web(app="db"), ingress=()),),
    "a block with an exception": (policy("shop/b", ingress=(rule(block("10.244.2.0/24", "10.244.2.11/32"), block("fd00:244:2::/64"), ports=[PortRange(first=80, last=80)]),)),),
}  # fmt: skip
FROM_OUTSIDE = [one for one in EVERY if one.client in {"x", "y", "out"} and one.port == 80]


@pytest.fixture(scope="module")
def bpffs():
    with pins() as found:
        yield found


def rig_of(spaces, traffic, bpffs, mode, *, tracked):
    def make():
        places = Places(bpffs=bpffs)
        below = fastpath.make("n1", uplinks=("eth0",), places=places, times=NO_GRACE) if tracked else None
        return xdp.make("n1", mode=mode, devices=("eth0",), fast=below, places=places)

    engine = PolicyEngine("n1", in_node(spaces, nft.make), in_node(spaces, make))
    rig = Rig(engine, spaces, traffic)
    rig.engine.fast.pods(local_pods(spaces))
    return rig


def close(rig):
    rig.engine.fast.remove()
    rig.engine.fast.close()
    rig.engine.plane.driver.remove()
    rig.engine.plane.driver.close()


@pytest.mark.parametrize(
    ("mode", "tracked"), [("native", True), ("generic", False)], ids=["ebpf", "nftables"]
)
def test_what_comes_from_outside_is_what_the_api_says(spaces, traffic, bpffs, mode, tracked):
    rig = rig_of(spaces, traffic, bpffs, mode, tracked=tracked)
    try:
        assert rig.engine.fast.devices == {"eth0": mode}
        for world in WORLDS.values():
            rig.only(*world)
            tries = [one for one in FROM_OUTSIDE if one.server in {"a", "b"}] + [
                Try("a", "x", 0, 17, 80),
                Try("b", "y", 1, 17, 80),
            ]
            allowed = [rig.judged(one)[0] for one in tries]
            assert True in allowed
            assert False in allowed
            assert rig.passes(tries, 0.4) == allowed
            if tracked:
                assert all(not item.packets for item in rig.engine.plane.driver.denied()), (
                    "something came to the stack"
                )
            else:
                # UDP may be answers, for all it knows.
                assert sum(item.packets for item in rig.engine.fast.denied())
    finally:
        close(rig)


def inside(path, call):
    fd = namespaces.open_netns(path)
    try:
        return namespaces.run_in(fd, call)
    finally:
        os.close(fd)


class Echoes:
    """An echo request every two milliseconds from a host to a pod, and which of them were answered."""

    def __init__(self, path: str, source: str, target: str) -> None:
        self._sock = inside(path, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
        self._sock.bind((source, 0))
        self._sock.settimeout(0.002)
        self._target = target
        self.sent = 0
        self.answered: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            packet = f.icmp(8, 0, struct.pack(">HH", 4711, self.sent))
            packet = packet[:2] + struct.pack(">H", f.checksum(packet)) + packet[4:]
            self._sock.sendto(packet, (self._target, 0))
            self.sent += 1
            self._take()
        deadline = time.monotonic() + 5
        while len(self.answered) < self.sent and time.monotonic() < deadline:
            self._take()

    def _take(self) -> None:
        with contextlib.suppress(TimeoutError):
            raw = self._sock.recv(2048)
            kind, _, _, number, sequence = struct.unpack_from(">BBHHH", raw, (raw[0] & 15) * 4)
            if (kind, number) == (0, 4711):
                self.answered.add(sequence)

    def stop(self) -> set[int]:
        """Ends them; says which were lost."""
        self._over.set()
        self._thread.join()
        self._sock.close()
        return set(range(self.sent)) - self.answered


def carrier_changes(spaces):
    with in_node(spaces, NetlinkSocket) as sock:
        [reply] = sock.request(rtlink.get_link(name="eth0"), "look", "eth0")
    return int.from_bytes(parse_attrs(reply.payload, 16)[35], "little")


def test_nothing_is_lost_while_it_comes_changes_and_goes(spaces, traffic, bpffs, monkeypatch):
    """Not a packet, and the interface never loses its carrier."""
    before = carrier_changes(spaces)
    echoes = Echoes(spaces.path("far"), "10.244.2.11", "10.244.1.11")
    try:
        wait_for(lambda: echoes.answered, "an echo")
        rig = rig_of(spaces, traffic, bpffs, "native", tracked=False)
        try:
            for number in range(10):
                rig.only(policy(f"shop/deny{number}", web(app="db"), ingress=()))
            source = driver.source
            newer = lambda cache: source(cache)._replace(text=source(cache).text + "/* newer */")  # noqa: E731
            monkeypatch.setattr(driver, "source", newer)
            old = in_node(spaces, lambda: look("eth0")).programs
            rig.engine.fast.close()
            places = Places(bpffs=bpffs)
            rig.engine.fast = in_node(
                spaces, lambda: xdp.make("n1", mode="native", devices=("eth0",), places=places)
            )
            rig.engine.sync(rig.store.snapshot())
            assert in_node(spaces, lambda: look("eth0")).programs != old
            assert rig.engine.fast.devices == {"eth0": "native"}
        finally:
            close(rig)
        answered = len(echoes.answered)
        wait_for(lambda: len(echoes.answered) > answered + 20, "echoes")
    finally:
        lost = echoes.stop()
    assert echoes.sent > 100
    assert not lost
    assert carrier_changes(spaces) == before
