"""Rules of policies in the form compilers want, and sets that come and go as messages."""

from __future__ import annotations

import ipaddress
import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.model.policy import Action, ClusterRule, Direction, IpBlock, Peer, PortRange, Rule, Selector
from pycni.policy.nft.rules import _whole, condition, instructions
from pycni.view.policy_apart import apart
from pycni.view.policy_rules import Match, Ports, cluster_section, directions, group_of, section, union
from pycni.wire.netlink import MalformedError, attr, nested
from pycni.wire.nftmsg import attr_be32
from pycni.wire.nftrange import decode_ranges
from pycni.wire.nftset import IPV4, SetSpec

NETS = [f"10.0.{part}.0/{length}" for part in (0, 1, 128) for length in (24, 32)] + [
    "10.0.0.0/16",
    "0.0.0.0/0",
]
WEB = Selector(labels=(("app", "web"),))
TCP80, UDP53 = PortRange(first=80, last=80), PortRange(protocol=UDP, first=53, last=53)


def block(cidr, *excluded):
    return IpBlock(cidr=ipaddress.ip_network(cidr), excluded=tuple(map(ipaddress.ip_network, excluded)))


def text(ranges):
    return [f"{ipaddress.ip_address(first)}-{ipaddress.ip_address(last)}" for first, last in ranges]


@pytest.mark.parametrize(
    ("blocks", "ranges"),
    [
        ([], []),
        ([block("10.0.0.0/24")], ["10.0.0.0-10.0.0.255"]),
        ([block("10.0.0.0/24"), block("10.0.1.0/24")], ["10.0.0.0-10.0.1.255"]),
        ([block("10.0.0.0/24", "10.0.0.0/30")], ["10.0.0.4-10.0.0.255"]),
        ([block("10.0.0.0/24", "10.0.0.255/32", "10.0.0.8/31")], ["10.0.0.0-10.0.0.7", "10.0.0.10-10.0.0.254"]),
        ([block("10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25")], []),
        ([block("10.0.0.0/24", "10.0.0.0/25"), block("10.0.0.5/32")], ["10.0.0.5-10.0.0.5", "10.0.0.128-10.0.0.255"]),
        ([block("0.0.0.0/0")], ["0.0.0.0-255.255.255.255"]),
        ([block("::/0")], []),
    ],
    ids=["none", "one", "touching", "start cut off", "holes", "nothing left", "allowed elsewhere", "all", "other family"],
)  # fmt: skip
def test_blocks_become_disjoint_ranges(blocks, ranges):
    assert text(union(blocks, Family.V4)) == ranges


@given(st.lists(st.tuples(st.sampled_from(NETS), st.lists(st.sampled_from(NETS), max_size=3)), max_size=4))
def test_an_address_is_in_the_ranges_when_a_block_has_it(parts):
    blocks = [block(cidr, *excluded) for cidr, excluded in parts]
    ranges = union(blocks, Family.V4)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(ranges))
    for probe in (
        "0.0.0.0",
        "10.0.0.0",
        "10.0.0.255",
        "10.0.1.0",
        "10.0.2.0",
        "10.0.128.1",
        "255.255.255.255",
    ):
        address = ipaddress.ip_address(probe)
        wanted = any(
            address in item.cidr and not any(address in net for net in item.excluded) for item in blocks
        )
        assert any(first <= address.packed <= last for first, last in ranges) is wanted


def test_rules_with_the_same_ports_become_one():
    rules = [
        Rule(peers=(Peer(pods=WEB),), ports=(TCP80, UDP53)),
        Rule(peers=(Peer(block=block("10.0.0.0/24")),), ports=(UDP53, TCP80)),
        Rule(peers=(Peer(pods=WEB),)),
    ]
    first, second = section("a", rules)
    group = group_of("a", Peer(pods=WEB))
    assert (first.groups, text(first.of(Family.V4))) == ((group,), ["10.0.0.0-10.0.0.255"])
    assert first.ports == Ports(((TCP, ((80, 80),)), (UDP, ((53, 53),))))
    assert second == Match(groups=(group,))


def test_rules_with_the_same_peers_become_one():
    peers = (Peer(pods=WEB), Peer(block=block("10.0.0.0/24")))
    rules = [Rule(peers=peers, ports=(PortRange(first=port, last=port),)) for port in range(1000, 3000, 2)]
    (match,) = section("a", [*rules, Rule(peers=peers, ports=(PortRange(name="http"), UDP53))])
    assert match.ports is not None
    assert match.ports.names == ((TCP, "http"),)
    assert match.ports.numbers == (
        (TCP, tuple((port, port) for port in range(1000, 3000, 2))),
        (UDP, ((53, 53),)),
    )
    (match,) = section("a", [*rules, Rule(peers=peers)])
    assert match.ports is None


def test_ports_of_one_protocol_are_joined_and_all_of_them_take_the_rest():
    ports = (
        TCP80,
        PortRange(first=81, last=90),
        PortRange(first=85, last=95),
        PortRange(protocol=SCTP),
        UDP53,
    )
    ports = (*ports, PortRange(protocol=UDP), PortRange(name="http"))
    (match,) = section("a", [Rule(ports=ports)])
    assert match == Match(
        anybody=True, ports=Ports(((TCP, ((80, 95),)), (UDP, ()), (SCTP, ())), ((TCP, "http"),))
    )


@pytest.mark.parametrize(
    "rule",
    [Rule(peers=(Peer(unknown="new"),)), Rule(peers=()), Rule(ports=())],
    ids=["a peer of an unknown kind", "no peer", "no port"],
)
def test_a_rule_that_nobody_matches_is_none(rule):
    assert section("a", [rule]) == ()


def test_a_cluster_rule_with_an_unknown_peer_fails_closed():
    unknown = (Peer(unknown="domainNames"),)
    found = cluster_section(
        [ClusterRule(action=Action.ACCEPT, peers=unknown), ClusterRule(action=Action.DENY, peers=unknown)]
    )
    assert [(rule.action, rule.match) for rule in found] == [(Action.DENY, Match(anybody=True))]


def test_groups_are_told_apart_by_where_and_who():
    peers = [Peer(pods=WEB), Peer(pods=Selector()), Peer(namespaces=WEB), Peer(namespaces=WEB, pods=WEB)]
    names = [group_of(space, peer).name for space in ("a", "b") for peer in peers]
    # What names namespaces itself is the same from everywhere.
    assert len(set(names)) == 6
    assert names[2:4] == names[6:8]
    assert group_of("a", Peer(namespaces=WEB)) == group_of("a", Peer(namespaces=WEB, pods=Selector()))


def test_names_of_ports_mean_nothing_in_blocks_at_egress():
    mixed = Rule(
        peers=(Peer(pods=WEB), Peer(block=block("10.0.0.0/24"))), ports=(PortRange(name="http"), TCP80)
    )
    (match,) = section("a", [mixed])
    assert directions(match, Direction.INGRESS) == (match,)
    pods, blocks = directions(match, Direction.EGRESS)
    assert (pods.ports, pods.ranges) == (match.ports, ((), ()))
    assert (blocks.ports, blocks.groups) == (Ports(((TCP, ((80, 80),)),)), ())
    only = match._replace(groups=(), ports=Ports(names=((TCP, "http"),)))
    assert directions(only, Direction.EGRESS) == ()


SPEC = SetSpec("net4-x", (IPV4,), interval=True)


def edges(*texts):
    """A dump's message of a set with elements: addresses, "-" before one that ends a range."""
    elements = [
        nested(
            1,
            nested(1, attr(1, ipaddress.ip_address(one.lstrip("-")).packed)),
            attr_be32(3, 1) if one.startswith("-") else b"",
        )
        for one in texts
    ]
    return struct.pack("=BBH", 1, 0, 0) + nested(3, *elements)


@pytest.mark.parametrize(
    ("dump", "ranges"),
    [
        (edges(), []),
        (edges("-10.0.1.0", "10.0.0.0"), ["10.0.0.0-10.0.0.255"]),
        (edges("-0.0.0.0", "10.0.0.1", "-10.0.0.2"), ["10.0.0.1-10.0.0.1"]),
        (edges("255.0.0.0"), ["255.0.0.0-255.255.255.255"]),
        (edges("0.0.0.0", "-0.0.0.1", "0.0.0.5", "-0.0.0.9"), ["0.0.0.0-0.0.0.0", "0.0.0.5-0.0.0.8"]),
    ],
    ids=["empty", "in any order", "an end before everything", "to the greatest", "two"],
)
def test_ranges_are_read_back(dump, ranges):
    assert text((key[:4], key[4:]) for key in decode_ranges(SPEC, [dump])) == ranges


def test_a_range_inside_another_is_malformed():
    with pytest.raises(MalformedError, match="net4-x"):
        decode_ranges(SPEC, [edges("10.0.0.0", "10.0.0.5", "-10.0.0.9")])


def allows(matches, group, address, protocol, number, names=()):
    """Whether one of the matches has this peer and this port."""
    return any(
        (
            match.anybody
            or group in {part.name for one in match.groups for part in one.parts or (one,)}
            or any(first <= address <= last for first, last in match.ranges[0])
        )
        and (
            match.ports is None
            or bool(set(match.ports.names) & set(names))
            or any(
                item == protocol and (not ranges or any(low <= number <= high for low, high in ranges))
                for item, ranges in match.ports.numbers
            )
        )
        for match in matches
    )


PEERS = [Peer(pods=Selector(labels=(("app", f"a{number}"),))) for number in range(3)] + [
    Peer(block=block(f"10.0.{number}.0/24")) for number in range(3)
]
PORTS = [PortRange(protocol=protocol, first=low, last=high) for protocol in (TCP, UDP) for low, high in ((1, 9), (5, 5), (4, 7), (9, 12))] + [
    PortRange(), PortRange(name="http"), PortRange(name="dns"),
]  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.lists(st.sampled_from(PEERS), min_size=1, max_size=2)),
            st.one_of(st.none(), st.lists(st.sampled_from(PORTS), min_size=1, max_size=2)),
        ),
        min_size=5,
        max_size=9,
    )
)
def test_matches_brought_apart_allow_the_same(rules):
    whole = section(
        "a", [Rule(peers=peers and tuple(peers), ports=ports and tuple(ports)) for peers, ports in rules]
    )
    parts = apart(whole)
    pieces = [item.ports for item in parts if item.ports is not None]
    if parts is not whole:
        assert all(len(item.groups) < 2 for item in parts if item.ports is not None)
        for protocol in (TCP, UDP):
            for number in range(14):
                owners = [
                    item for item in pieces if allows([Match(True, ports=item)], "", b"", protocol, number)
                ]
                assert len(owners) < 2
    for index in range(4):
        group = group_of("a", PEERS[index]).name if index < 3 else ""
        for protocol, number, names in itertools.product((TCP, UDP), range(14), ((), ((TCP, "http"),))):
            ask = (group, bytes((10, 0, index, 1)), protocol, number, names)
            assert allows(parts, *ask) is allows(whole, *ask)


def test_what_would_grow_too_much_stays_as_it_is():
    rules = [
        Rule(
            peers=(Peer(pods=Selector(labels=(("app", str(number)),))),),
            ports=(PortRange(first=1, last=number),),
        )
        for number in range(1, 60)
    ]
    whole = section("a", rules)
    assert len(whole) == 59
    assert apart(whole) is whole
    assert len(apart(section("a", rules[:5]))) == 5


@pytest.mark.parametrize("most", [2, 3])
def test_many_groups_become_a_union(most):
    peers = tuple(PEERS[:most]) + (Peer(namespaces=WEB),) * (most - 1)
    (match,) = section("a", [Rule(peers=peers, ports=None)])
    (group,) = match.groups
    assert {part.name for part in group.parts} == {group_of("a", peer).name for peer in peers}
    assert group.namespace == ""
    assert section("a", [Rule(peers=peers[::-1], ports=None)]) == (match,)
    assert section("b", [Rule(peers=peers, ports=None)]) != (match,)
    (own,) = section("a", [Rule(peers=tuple(PEERS[:3]), ports=None)])
    assert own.groups[0].namespace == "a"


@pytest.mark.parametrize(
    "rule",
    [
        "if 4 ingress group 0123456789ab then accept",
        "if 6 egress group 0123456789ab ports 00112233445566ff then goto deny-egress-0",
        "if 6 ingress block ffeeddccbbaa9988 ports 00112233445566ff then accept",
        "if 4 egress block ffeeddccbbaa9988 then accept",
        "if 4 ingress ports 00112233445566ff then accept",
        "if 6 ingress group-of 00112233445566ff then accept",
        "if 4 egress block-of 00112233445566ff then accept",
        "if 4 egress group 0123456789ab proto 6 named http then accept",
        "if 4 ingress then accept",
    ],
)
def test_a_rule_made_from_its_kind_is_the_whole_rule(rule):
    found = condition(rule)
    assert instructions(rule) == _whole(found)
    other = rule.replace("0123456789ab", "ba9876543210").replace("00112233445566ff", "ff66554433221100")
    assert (instructions(other) == instructions(rule)) is (other == rule)
