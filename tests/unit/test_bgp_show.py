"""What birdc answers, read: sessions and learned routes."""

from __future__ import annotations

import ipaddress

import pytest

from pycni_bgp.bird import show
from pycni_bgp.bird.config import address_of, session_name
from pycni_bgp.engine import Adjacency, Route, Session
from pycni_bgp.model import Attributes, prefix

PROTOCOLS = """\
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     10:43:48.008

pods4      Static     master4    up     10:43:48.008
  Channel ipv4
    State:          UP
    Routes:         7 imported, 7 exported, 7 preferred

nc0000201  BGP        ---        up     10:43:52.467  Established
  BGP state:          Established
    Neighbor address: 192.0.2.1
  Channel ipv4
    Routes:         5 imported, 2 filtered, 3 exported, 1 preferred
  Channel ipv6
    Routes:         1 imported, 1 exported, 1 preferred

n20010db8000000000000000000000009 BGP        ---        start  10:43:51.827  Active        Socket: Connection refused
  BGP state:          Active
    Neighbor address: 2001:db8::9
    Connect delay:    0.312/5
    Last error:       Socket: Connection refused
  Channel ipv4
    State:          DOWN
    Table:          master4

kernel4    Kernel     master4    up     10:43:48.008
  Channel ipv4
    Routes:         0 imported, 9 exported, 0 preferred
"""
ROUTES = """\
Table master4:
203.0.113.0/24       unicast [nc0000201 10:45:01.671] * (100) [AS65003i]
\tvia 192.0.2.1 on eth0
\tType: BGP univ
\tBGP.origin: Incomplete
\tBGP.as_path: 65003 { 65004 65005 }
\tBGP.next_hop: 192.0.2.1
\tBGP.med: 7
\tBGP.local_pref: 100
\tBGP.community: (64512,7) (65535,65281)
\tBGP.large_community: (1, 2, 3)
\tBGP.originator_id: 192.0.2.7
\tBGP.cluster_list: 0.0.0.42 0.0.0.43
                     unicast [n20010db8000000000000000000000009 10:45:01.715 from 192.0.2.1] (100) [i]
\tvia 192.0.2.9 on eth0
\tBGP.origin: IGP
\tBGP.as_path:
\tBGP.next_hop: 2001:db8::9 fe80::9
192.0.2.0/24         unicast [direct1 10:44:56.853] * (20)
\tdev eth0
\tType: device univ

Table master6:
2001:db8:2::/64      blackhole [pods6 10:44:56.853] * (200)
\tType: static univ
2001:db8:3::/64      unreachable [nc0000201 10:45:01.759 from 192.0.2.1] * (100) [i]
\tBGP.origin: EGP
\tBGP.next_hop: 2001:db8::1
"""


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def test_sessions_are_read() -> None:
    assert show.sessions(PROTOCOLS) == [
        Session(_packed("192.0.2.1"), "Established", "10:43:52.467", "", 6, 4),
        Session(_packed("2001:db8::9"), "Active", "10:43:51.827", "Socket: Connection refused"),
    ]


def test_learned_routes_are_read_and_others_left_out() -> None:
    one, two = _packed("192.0.2.1"), _packed("2001:db8::9")
    assert show.routes(ROUTES) == [
        Route(
            one,
            prefix("203.0.113.0/24"),
            Attributes(
                next_hop=one,
                as_path=(65003, 65004, 65005),
                origin="incomplete",
                local_pref=100,
                med=7,
                communities=("64512:7", "65535:65281", "1:2:3"),
                originator=_packed("192.0.2.7"),
                clusters=(bytes((0, 0, 0, 42)), bytes((0, 0, 0, 43))),
            ),
            best=True,
        ),
        Route(two, prefix("203.0.113.0/24"), Attributes(next_hop=two), best=False),
        Route(
            one,
            prefix("2001:db8:3::/64"),
            Attributes(next_hop=_packed("2001:db8::1"), origin="egp"),
            best=True,
        ),
    ]


@pytest.mark.parametrize("text", ["", "\n", "Table master4:\n"], ids=["nothing", "a line", "an empty table"])
def test_nothing_is_read_from_nothing(text: str) -> None:
    assert show.sessions(text) == []
    assert show.routes(text) == []


def test_an_address_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not appear to be"):
        show.routes(ROUTES.replace("BGP.next_hop: 192.0.2.1", "BGP.next_hop: somewhere"))


@pytest.mark.parametrize("text", ["192.0.2.1", "2001:db8::9"])
def test_a_protocol_is_named_by_its_neighbour(text: str) -> None:
    assert address_of(session_name(_packed(text))) == _packed(text)


def test_neighbours_of_ospf_are_read() -> None:
    text = (
        "ospf4:\nRouter ID   \tPri\t     State     \tDTime\tInterface  Router IP\n"
        "192.0.2.11  \t  1\tFull/DR   \t 3.580\teth0       192.0.2.11\n"
    )
    assert show.adjacencies(text) == [Adjacency(_packed("192.0.2.11"), "Full/DR", "eth0", "192.0.2.11")]


@pytest.mark.parametrize("name", ["pods4", "n", "nothing", "n0102", "kernel6"])
def test_other_protocols_are_no_neighbours(name: str) -> None:
    assert address_of(name) is None
