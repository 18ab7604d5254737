"""Ways round network policies that a pod may try, by packets: none leads anywhere."""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from pycni.kernel import conntrack
from pycni.model.kube import POD, Meta
from pycni.model.policy import NETWORK_POLICY, NetworkPolicy
from tests.netns import frames as f
from tests.netns.evade_world import GATEWAY, OUT, UPLINK, Judged, address, judged, local, only
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Pod, connect, links, serving
from tests.netns.test_portmap import mapping

_NUMBERS = itertools.count()
AH, ESP, GRE, IPIP, IP6IN, SCTP, UDPLITE, NONE = 51, 50, 47, 4, 41, 132, 136, 59
HBH, ROUTING, DESTINATION = 0, 43, 60


@pytest.fixture(scope="module", params=["nftables", "ebpf"])
def world(request: pytest.FixtureRequest) -> Iterator[Judged]:
    with fresh_spaces() as make, judged(make, programs=request.param == "ebpf") as found:
        yield found


def token() -> bytes:
    return f"token {next(_NUMBERS):08d}".encode()


Make = Callable[[str, str, int, bytes], list[bytes]]
"""IP packets from source to destination, to a port where there are ports, carrying a token."""


def one(protocol: int, body: Callable[[int, bytes], bytes]) -> Make:
    return lambda source, target, port, mark: [f.ip(source, target, protocol, body(port, mark))]


def flags(value: int) -> Make:
    return one(f.TCP, lambda port, mark: f.tcp(port, mark, flags=value, seq=77, ack=99))


def behind(*headers: tuple[int, bytes]) -> Make:
    """UDP behind IPv6 extension headers."""
    return lambda source, target, port, mark: [f.extended(source, target, headers, f.UDP, f.udp(port, mark))]


def options(raw: bytes) -> Make:
    return lambda source, target, port, mark: [f.ip(source, target, f.UDP, f.udp(port, mark), options=raw)]


def pieces(*cuts: int, swap: bool = False, protocol: int = f.UDP) -> Make:
    """A packet in fragments cut at these bytes."""

    def make(source: str, target: str, port: int, mark: bytes) -> list[bytes]:
        body = f.udp(port, mark) if protocol == f.UDP else f.tcp(port, mark)
        whole = f.ip(source, target, protocol, body.ljust(cuts[-1] + 8, b"."))
        whole = whole[40 if ":" in source else 20 :]
        ident = next(_NUMBERS) + 1
        found = [
            f.ip(source, target, protocol, whole[start:end], offset=start, more=end is not None, ident=ident)
            for start, end in zip((0, *cuts), (*cuts, None), strict=True)
        ]
        return found[::-1] if swap else found

    return make


def overlapping(source: str, target: str, port: int, mark: bytes) -> list[bytes]:
    """The first fragment names an allowed port, a second one writes another over it."""
    good, bad = f.tcp(80, mark.ljust(24)), f.tcp(port, mark.ljust(24))
    ident = next(_NUMBERS) + 1
    parts = ((0, True, good[:24]), (0, True, bad[:24]), (24, False, bad[24:]))
    return [f.ip(source, target, f.TCP, raw, offset=at, more=more, ident=ident) for at, more, raw in parts]


def tiny(source: str, target: str, port: int, mark: bytes) -> list[bytes]:
    """Eight bytes first: ports but no flags; the rest follows."""
    return pieces(8, protocol=f.TCP)(source, target, port, mark)


def inside(protocol: int) -> Make:
    """In a tunnel to the receiver, or to the node, whose inner packet is the receiver's."""
    return lambda source, target, port, mark: [
        f.ip(source, target, protocol, f.ip(source, target, f.UDP, f.udp(port, mark)))
    ]


def srv6(source: str, target: str, port: int, mark: bytes) -> list[bytes]:
    body = struct.pack(">BBBBBH", 2, 4, 1, 0, 0, 0) + f.packed(target)
    return [f.extended(source, GATEWAY[6], [(ROUTING, body)], f.UDP, f.udp(port, mark))]


PAD = b"\0\x01\x04\0\0\0\0"
BOTH: dict[str, Make] = {
    "UDP": one(f.UDP, f.udp),
    "TCP SYN": flags(2),
    "TCP ACK": flags(16),
    "TCP data": flags(24),
    "TCP SYN+ACK": flags(18),
    "TCP FIN": flags(17),
    "TCP RST": flags(4),
    "TCP RST+ACK": flags(20),
    "TCP without flags": flags(0),
    "TCP with all flags": flags(63),
    "SCTP INIT": one(SCTP, f.sctp_init),
    "UDP-Lite": one(UDPLITE, f.udp),
    "an unknown protocol": one(253, lambda _, mark: mark),
    "ESP": one(ESP, lambda _, mark: mark.ljust(32)),
    "AH before UDP": one(AH, lambda port, mark: struct.pack(">BBHII", f.UDP, 1, 0, 1, 1) + f.udp(port, mark)),
    "GRE": one(GRE, lambda _, mark: struct.pack(">HH", 0, f.IP) + mark),
    "IP in IP": inside(IPIP),
    "IPv6 in IP": inside(IP6IN),
    "two fragments": pieces(24),
    "fragments the other way round": pieces(24, swap=True),
    "a tiny first fragment": tiny,
    "fragments of eight bytes": pieces(8, 16, 24),
    "overlapping fragments": overlapping,
    "a fragment alone": lambda source, target, _, mark: [
        f.ip(source, target, f.UDP, mark.ljust(16), offset=64, ident=next(_NUMBERS) + 1)
    ],
}
V4: dict[str, Make] = {
    "echo": one(f.ICMP, lambda _, mark: f.icmp(8, 0, bytes(4) + mark)),
    "an echo answer": one(f.ICMP, lambda _, mark: f.icmp(0, 0, bytes(4) + mark)),
    "a timestamp request": one(f.ICMP, lambda _, mark: f.icmp(13, 0, bytes(4) + mark)),
    "IGMP to the pod": one(f.IGMP, lambda _, mark: b"\x22\0\0\0" + mark),
    "options: record route": options(b"\x07\x07\x04\0\0\0\0"),
    "options: router alert": options(b"\x94\x04\0\0"),
    "options: nonsense": options(b"\x1e\x04\0\0"),
}
V6: dict[str, Make] = {
    "echo": one(f.ICMPV6, lambda _, mark: f.icmp(128, 0, bytes(4) + mark)),
    "an echo answer": one(f.ICMPV6, lambda _, mark: f.icmp(129, 0, bytes(4) + mark)),
    "node information": one(f.ICMPV6, lambda _, mark: f.icmp(139, 0, bytes(12) + mark)),
    "hop-by-hop": behind((HBH, PAD)),
    "destination options": behind((DESTINATION, PAD)),
    "many destination options": behind(*[(DESTINATION, PAD)] * 7),
    "a routing header": behind((ROUTING, b"\0\2\0\0\0\0\0")),
    "an atomic fragment": behind((44, struct.pack(">BHI", 0, 0, 7))),
    "options in a fragment": behind((44, struct.pack(">BHI", 0, 0, 8)), (DESTINATION, PAD)),
    "a home address option": behind((DESTINATION, b"\2\1\2\0\0\xc9\x10" + f.packed("fd00:1:2::4"))),
    "a mobility header": behind((135, PAD)),
    "no next header": one(NONE, lambda _, mark: mark),
    "segment routing": srv6,
}
ATTACKS = {
    **{f"v{family} {name}": (family, make) for name, make in BOTH.items() for family in (4, 6)},
    **{f"v4 {name}": (4, make) for name, make in V4.items()},
    **{f"v6 {name}": (6, make) for name, make in V6.items()},
}
WAYS = {"direct": True, "by the node": False}
"""Whether the frame goes to the receiver's MAC or to the gateway's."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_reaches_an_isolated_pod(world: Judged, name: str, way: str):
    """From a, which may send to anybody, to b, which hears c only; and from e, which may send to c only, to a."""
    family, make = ATTACKS[name]
    for source, target in (("a", "b"), ("e", "a")):
        told = send(world, make, family, source, target, 9999, direct=WAYS[way])
        assert not world.received(target, told, 0.02)


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if "TCP" in name or "fragment" in name or "behind" in name]
)
def test_only_the_allowed_port_is_reached(world: Judged, name: str):
    family, make = ATTACKS[name]
    told = send(world, make, family, "a", "p", 81, direct=True)
    assert not world.received("p", told, 0.02)


NEVER = {"IP in IP", "overlapping fragments", "a fragment alone", "segment routing", "options: nonsense"}
"""What does not arrive whole anyway."""


@pytest.mark.parametrize(
    "name", ["UDP", "TCP SYN", "TCP ACK", "SCTP INIT", "two fragments", "echo", "AH before UDP"]
)
@pytest.mark.parametrize("family", [4, 6])
def test_the_same_packets_reach_a_pod_that_may_hear_them(world: Judged, name: str, family: int):
    """So silence above is the policies' doing."""
    make = ATTACKS[f"v{family} {name}"][1]
    for source, target in (("c", "b"), ("e", "c")):
        told = send(world, make, family, source, target, 9999, direct=True)
        assert world.received(target, told, 5)


def send(
    world: Judged, make: Make, family: int, source: str, target: str, port: int, *, direct: bool
) -> bytes:
    """Send an attack; returns the token to look for."""
    mark = token()
    ends: tuple[Pod, Pod] = getattr(world, source), getattr(world, target)
    to = ends[1].plan.mac if direct else world.gateway
    for packet in make(address(ends[0], family), address(ends[1], family), port, mark):
        world.send(source, f.ether(to, ends[0].plan.mac, packet))
    return mark


def test_the_plane_that_is_meant_has_judged(world: Judged):
    """The programs, where there are some, and the table elsewhere."""
    judge = world.fast or world.engine.plane.driver

    def denied() -> int:
        return sum(item.packets for item in judge.denied())

    before = denied()
    for family in (4, 6):
        send(world, ATTACKS["v4 UDP"][1], family, "a", "b", 9999, direct=True)
    assert denied() == before + 2


def test_a_forged_answer_opens_nothing(world: Judged):
    """b may send to anybody: were a packet of its to a tracked, a's packets would be answers."""
    b, a = world.b, world.a
    for family in (4, 6):
        forged = f.ip(address(b, family), address(a, family), f.UDP, f.udp(7000, b"x", 7001))
        world.send("a", f.ether(a.plan.mac, b.plan.mac, forged))
        world.send("a", f.ether(world.gateway, b.plan.mac, forged))
        world.send("a", f.ether(world.gateway, a.plan.mac, forged))
        mark = token()
        answer = f.ip(address(a, family), address(b, family), f.UDP, f.udp(7001, mark, 7000))
        world.send("a", f.ether(b.plan.mac, a.plan.mac, answer))
        assert not world.received("b", mark, 0.05)


def test_an_error_about_anothers_connection_does_not_pass(world: Judged):
    """c has a connection with b; a knows its ports."""
    for family in (4, 6):
        b, c = address(world.b, family), address(world.c, family)
        mark = token()
        world.send(
            "c", f.ether(world.b.plan.mac, world.c.plan.mac, f.ip(c, b, f.UDP, f.udp(7100, mark, 7101)))
        )
        assert world.received("b", mark, 5)
        world.send(
            "b", f.ether(world.c.plan.mac, world.b.plan.mac, f.ip(b, c, f.UDP, f.udp(7101, mark, 7100)))
        )
        about = f.ip(b, c, f.UDP, f.udp(7101, mark := token(), 7100))
        protocol, kind = (f.ICMP, 3) if family == 4 else (f.ICMPV6, 1)
        for code in (0, 3, 4):
            packet = f.ip(address(world.a, family), b, protocol, f.icmp(kind, code, bytes(4) + about))
            world.send("a", f.ether(world.b.plan.mac, world.a.plan.mac, packet))
            world.send("a", f.ether(world.gateway, world.a.plan.mac, packet))
        assert not world.received("b", mark, 0.05)
        # c itself may tell b so.
        packet = f.ip(c, b, protocol, f.icmp(kind, 3, bytes(4) + about))
        world.send("c", f.ether(world.b.plan.mac, world.c.plan.mac, packet))
        assert world.received("b", mark, 5)


@pytest.mark.parametrize(
    "group", ["01:80:c2:00:00:00", "01:80:c2:00:00:03", "01:80:c2:00:00:0e", "01:80:c2:00:00:02"]
)
@pytest.mark.parametrize("family", [4, 6])
def test_frames_to_the_bridges_own_groups_bring_no_forged_source_to_the_node(
    world: Judged, group: str, family: int
):
    """Bridges hand such frames to the port's device itself, past all hooks of the bridge family."""
    kind = socket.AF_INET if family == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as server:
        server.bind(("0.0.0.0" if family == 4 else "::", 7200))
        server.settimeout(0.1)
        forged = f.ip(OUT[family], GATEWAY[family], f.UDP, f.udp(7200, token()))
        for _ in range(3):
            world.send("a", f.ether(f.mac(group), world.a.plan.mac, forged))
        with pytest.raises(TimeoutError):
            server.recv(100)


def test_a_mapped_port_of_the_node_is_judged_as_the_pods(world: Judged):
    """Whoever may not reach the pod may not reach it by the node's address either."""
    h = world.env.attach((4, 6), is_default_gateway=True, port_mappings=(mapping(8088, 80),))
    world.put("h", h, "b")
    world.guard.admit(local(h))
    world.sync()
    for family in (4, 6):
        with serving(h, 80, family=family) as server:
            for target in (UPLINK[family], GATEWAY[family]):
                assert connect(world.a, target, 8088, server, wait=0.3) == ""
                assert connect(world.c, target, 8088, server, wait=5)
            assert connect(world.out, UPLINK[family], 8088, server, wait=0.3) == ""
            assert connect(None, UPLINK[family], 8088, server, wait=5)


@pytest.mark.parametrize("family", [4, 6])
def test_nobody_outside_passes_as_the_node(world: Judged, family: int):
    """A machine beside the node sends to a pod with the node's own address."""
    world.out.run("ip neigh flush all", ok=False)
    uplink = f.mac(links()["eth1"]["address"])
    own = f.mac(links(world.out.name)["eth0"]["address"])
    for source in (UPLINK[family], GATEWAY[family]):
        told = token()
        packet = f.ip(source, address(world.b, family), f.UDP, f.udp(9999, told))
        world.send("out", f.ether(uplink, own, packet))
        assert not world.received("b", told, 0.05), source


@pytest.mark.parametrize("family", [4, 6])
def test_an_address_given_on_is_judged_anew(world: Judged, family: int):
    """c talks with a pod; the pod goes, another one with other policies gets its address, and c goes on sending."""
    env = world.env
    old = env.attach((4, 6), is_default_gateway=True)
    world.put("old", old, "b")
    world.guard.admit(local(old))
    world.sync()
    with world.c.inside(lambda: datagrams(family, 7300)) as client:
        with old.inside(lambda: datagrams(family, 53)) as server:
            client.sendto(b"?", (address(old, family), 53))
            asked = server.recvfrom(10)
            server.sendto(b"!", asked[1])
            assert client.recv(10) == b"!"
        env.detach(old)
        world.guard.gone(old.plan.host)
        assert conntrack.forget_host([item.address for item in old.plan.addresses]) >= 1
        world.store.delete(POD, "ns/old")
        new = env.pod()
        new.number = old.number
        new.plan = env.plan(new, (4, 6), is_default_gateway=True)
        world.put("new", new, "shut")
        world.store.put(
            NETWORK_POLICY,
            "ns/shut",
            NetworkPolicy(meta=Meta(name="shut", namespace="ns"), pods=only("shut"), ingress=()),
        )
        world.sync()
        world.guard.admit(local(new))
        env.driver.attach(new.plan, new.fd)
        try:
            with new.inside(lambda: datagrams(family, 53)) as server:
                server.settimeout(0.1)
                for _ in range(3):
                    client.sendto(b"?", (address(new, family), 53))
                    with pytest.raises(TimeoutError):
                        server.recv(10)
        finally:
            env.detach(new)
            world.guard.gone(new.plan.host)
            world.store.delete(POD, "ns/new")
            world.sync()


def datagrams(family: int, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET if family == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0" if family == 4 else "::", port))
    sock.settimeout(5)
    return sock
