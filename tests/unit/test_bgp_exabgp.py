"""exabgp's words, and what its relay remembers."""

from __future__ import annotations

import ipaddress
import json

import msgspec
import pytest

from pycni.errors import ConfigError
from pycni_bgp.annotations import NodeSettings
from pycni_bgp.engine import Plan
from pycni_bgp.exabgp import speech
from pycni_bgp.exabgp.config import config
from pycni_bgp.exabgp.memory import Memory
from pycni_bgp.exabgp.words import attributes, words
from pycni_bgp.model import Attributes, Bfd, Neighbour, Secret
from pycni_bgp.settings import BgpSettings, OspfSettings

PEER = "192.0.2.2"


def _packed(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


OUTSIDE = Neighbour(address=_packed(PEER), asn=65001, local_asn=64512, origin="setting")
INSIDE = msgspec.structs.replace(OUTSIDE, asn=64512)


def _line(kind: str, **neighbour: object) -> str:
    return json.dumps(
        {"type": kind, "neighbor": {"address": {"peer": PEER, "local": "192.0.2.1"}, **neighbour}}
    )


def _update(**update: object) -> str:
    return _line("update", direction="receive", message={"update": update})


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (_line("state", state="up"), [speech.Changed(PEER, "up")]),
        (_line("state", state="down", reason="x"), [speech.Changed(PEER, "down", "x")]),
        (
            _line(
                "open",
                direction="receive",
                open={
                    "router_id": "1.1.1.1",
                    "capabilities": {"64": {"name": "graceful restart", "time": 90}},
                },
            ),
            [speech.Opened(PEER, "1.1.1.1", 90)],
        ),
        (
            _line("open", direction="receive", open={"router_id": "1.1.1.1", "capabilities": {}}),
            [speech.Opened(PEER, "1.1.1.1", 0)],
        ),
        (
            _line(
                "open",
                direction="receive",
                open={
                    "router_id": "1.1.1.1",
                    "capabilities": {
                        "64": {"name": "graceful restart", "time": 120, "address-family-flags": {}}
                    },
                },
            ),
            [speech.Opened(PEER, "1.1.1.1", 0)],
        ),
        (
            _update(
                attribute={"origin": "igp"},
                announce={"ipv4 unicast": {"192.0.2.9": [{"nlri": "10.1.0.0/24"}, {"nlri": "10.2.0.0/24"}]}},
                withdraw={"ipv6 unicast": [{"nlri": "2001:db8::/32"}]},
            ),
            [
                speech.Said(
                    PEER,
                    (("10.1.0.0/24", "192.0.2.9"), ("10.2.0.0/24", "192.0.2.9")),
                    ("2001:db8::/32",),
                    {"origin": "igp"},
                )
            ],
        ),
        (
            _line("update", direction="receive", message={"eor": {"afi": "ipv4", "safi": "unicast"}}),
            [speech.Finished(PEER, "ipv4 unicast")],
        ),
        (_update(attribute={}), []),
        (_line("notification", direction="receive", notification={}), []),
        (_line("update", direction="send", message={}), []),
    ],
    ids=[
        "up",
        "down",
        "open",
        "open without restart",
        "open of one who only helps",
        "update",
        "end of RIB",
        "empty",
        "notification",
        "sent",
    ],
)
def test_a_line_becomes_events(line: str, wanted: list[speech.Event]) -> None:
    assert speech.decode(line) == wanted


@pytest.mark.parametrize(
    "line", ["", "{", "[]", '{"type": "state"}', _line("state"), _line("update", direction="receive")]
)
def test_what_is_not_exabgps_is_named(line: str) -> None:
    with pytest.raises(ValueError, match="exabgp says"):
        speech.decode(line)


def test_commands_are_the_difference() -> None:
    before = {"10.1.0.0/24": "next-hop a", "10.2.0.0/24": "next-hop a", "10.3.0.0/24": "next-hop a"}
    after = {"10.1.0.0/24": "next-hop a", "10.2.0.0/24": "next-hop b", "10.4.0.0/24": "next-hop b"}
    assert list(speech.commands(PEER, before, after)) == [
        f"neighbor {PEER} withdraw attributes next-hop a nlri 10.3.0.0/24",
        f"neighbor {PEER} announce attributes next-hop b nlri 10.2.0.0/24 10.4.0.0/24",
    ]
    assert not list(speech.commands(PEER, after, after))
    many = {f"10.{n >> 8}.{n & 255}.0/24": "w" for n in range(1000)}
    assert [line.count("/24") for line in speech.commands(PEER, {}, many)] == [400, 400, 200]


ALL = Attributes(
    next_hop=_packed("192.0.2.1"),
    as_path=(64999,),
    origin="incomplete",
    local_pref=200,
    med=7,
    communities=("64512:1", "no-export", "1:2:3"),
    originator=_packed("1.1.1.1"),
    clusters=(_packed("2.2.2.2"),),
)


def test_attributes_in_words() -> None:
    tail = "med 7 community [ 64512:1 65535:65281 ] large-community [ 1:2:3 ] originator-id 1.1.1.1 cluster-list [ 2.2.2.2 ]"
    head = "next-hop 192.0.2.1 origin incomplete"
    assert words(OUTSIDE, ALL) == f"{head} as-path [ 64512 64999 ] {tail}"
    assert words(INSIDE, ALL) == f"{head} as-path [ 64999 ] local-preference 200 {tail}"
    assert words(INSIDE, Attributes(next_hop=_packed("2001:db8::1"))) == (
        "next-hop 2001:db8::1 origin igp local-preference 100"
    )


def test_attributes_as_exabgp_tells_of_them() -> None:
    said = {
        "origin": "incomplete",
        "as-path": {
            "1": {"element": "as-set", "value": [3, 4]},
            "0": {"element": "as-sequence", "value": [64999]},
        },
        "local-preference": 200,
        "med": 7,
        "community": [[64512, 1]],
        "large-community": [[1, 2, 3]],
        "originator-id": "1.1.1.1",
        "cluster-list": ["2.2.2.2"],
    }
    wanted = msgspec.structs.replace(ALL, as_path=(64999, 3, 4), communities=("64512:1", "1:2:3"))
    assert attributes("192.0.2.1", said) == wanted


class Told:
    """A memory and what an agent makes of what it is told."""

    def __init__(self) -> None:
        self.memory = Memory()
        self.routes: set[str] = set()
        self.state = ""

    def hear(self, event: speech.Event, now: float = 0.0) -> None:
        for message in self.memory.take(event, now, now):
            self._note(message)

    def tick(self, now: float) -> None:
        for message in self.memory.tick(now):
            self._note(message)

    def replayed(self) -> tuple[set[str], str]:
        fresh = Told()
        for message in self.memory.replay():
            fresh._note(message)
        return fresh.routes, fresh.state

    def _note(self, message: object) -> None:
        assert isinstance(message, dict)
        self.state = message.get("state", self.state)
        for prefix, route in message.get("routes", {}).items():
            (self.routes.discard if route is None else self.routes.add)(prefix)


def _say(*prefixes: str, gone: tuple[str, ...] = ()) -> speech.Said:
    return speech.Said(PEER, tuple((item, "192.0.2.9") for item in prefixes), gone, {"origin": "igp"})


def _session(told: Told, restart: int) -> None:
    told.hear(speech.Changed(PEER, "connected"))
    told.hear(speech.Opened(PEER, "1.1.1.1", restart))
    told.hear(speech.Changed(PEER, "up"))


def test_what_changes_is_told_and_a_replay_says_the_same() -> None:
    told = Told()
    _session(told, 0)
    told.hear(_say("10.1.0.0/24", "10.2.0.0/24", "2001:db8::/32"))
    told.hear(_say("10.3.0.0/24", gone=("10.1.0.0/24", "10.9.0.0/24")))
    assert told.routes == {"10.2.0.0/24", "2001:db8::/32", "10.3.0.0/24"}
    assert told.replayed() == (told.routes, "up")


@pytest.mark.parametrize(
    ("restart", "reason", "kept"),
    [(90, "peer reset", True), (0, "peer reset", False), (90, "notification received (6,2)", False)],
    ids=["restarts", "did not ask", "said good-bye"],
)
def test_routes_of_a_neighbour_that_restarts_are_kept(restart: int, reason: str, kept: bool) -> None:
    told = Told()
    _session(told, restart)
    told.hear(_say("10.1.0.0/24"))
    told.hear(speech.Changed(PEER, "down", reason), now=100)
    assert told.routes == ({"10.1.0.0/24"} if kept else set())
    told.tick(189)
    assert bool(told.routes) is kept
    told.tick(190)
    assert told.routes == set()
    assert told.replayed()[0] == set()


def test_what_a_neighbour_does_not_tell_again_is_forgotten_at_the_end_of_its_tale() -> None:
    told = Told()
    _session(told, 90)
    told.hear(_say("10.1.0.0/24", "10.2.0.0/24", "2001:db8::/32"))
    told.hear(speech.Changed(PEER, "down", "peer reset"), now=100)
    _session(told, 90)
    told.hear(_say("10.2.0.0/24"), now=110)
    assert told.routes == {"10.1.0.0/24", "10.2.0.0/24", "2001:db8::/32"}
    told.hear(speech.Finished(PEER, "ipv4 unicast"), now=111)
    assert told.routes == {"10.2.0.0/24", "2001:db8::/32"}
    told.hear(speech.Finished(PEER, "ipv6 unicast"), now=112)
    assert told.routes == {"10.2.0.0/24"}
    told.tick(1000)
    assert told.routes == {"10.2.0.0/24"}


def test_a_neighbour_is_not_believed_too_early_that_it_has_told_everything() -> None:
    told = Told()
    _session(told, 90)
    told.hear(_say("10.1.0.0/24", "10.2.0.0/24"))
    told.hear(speech.Changed(PEER, "down", "peer reset"), now=100)
    told.hear(speech.Changed(PEER, "up"), now=110)
    told.hear(speech.Finished(PEER, "ipv4 unicast"), now=110)
    told.hear(_say("10.2.0.0/24"), now=111)
    told.tick(112.9)
    assert told.routes == {"10.1.0.0/24", "10.2.0.0/24"}
    told.tick(113)
    assert told.routes == {"10.2.0.0/24"}


def test_a_neighbour_that_is_back_has_time_to_tell_everything() -> None:
    told = Told()
    _session(told, 90)
    told.hear(_say("10.1.0.0/24"))
    told.hear(speech.Changed(PEER, "down", "peer reset"), now=100)
    told.hear(speech.Changed(PEER, "up"), now=189)
    told.tick(191)
    assert told.routes == {"10.1.0.0/24"}
    told.tick(189 + 360)
    assert told.routes == set()


def _plan(neighbour: Neighbour, settings: BgpSettings | None = None) -> Plan:
    return Plan(
        router_id=_packed("192.0.2.1"),
        settings=settings or BgpSettings(),
        own=NodeSettings(name="a", addresses=(_packed("192.0.2.1"),)),
        sessions={neighbour.address: neighbour},
        local={},
    )


@pytest.mark.parametrize(
    ("neighbour", "settings", "words"),
    [
        ({"password": Secret('a"b')}, None, "password=***"),
        ({"bfd": Bfd()}, None, "bfd"),
        ({"address": _packed("2001:db8::9")}, None, "no ipv6 address"),
        ({}, BgpSettings(ospf=OspfSettings()), "no OSPF"),
    ],
    ids=["password", "BFD", "family", "OSPF"],
)
def test_what_exabgp_cannot_do_is_refused_by_name(
    neighbour: dict[str, object], settings: BgpSettings | None, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(_plan(msgspec.structs.replace(OUTSIDE, **neighbour), settings), ("relay", "x"))
    assert words in str(caught.value)


def test_a_session_in_the_configuration() -> None:
    neighbour = msgspec.structs.replace(OUTSIDE, port=1179, hops=3, ttl_security=True, password=Secret("a b"))
    text = config(_plan(neighbour), ("python", "relay.py", "/run/x"))
    for line in (
        "run python relay.py /run/x;",
        "local-address 192.0.2.1;",
        "peer-as 65001;",
        "connect 1179;",
        "incoming-ttl 253;",
        'md5-password "a b";',
        "graceful-restart 90;",
    ):
        assert f"  {line}\n" in text
