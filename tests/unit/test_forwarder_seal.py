"""Encrypted sessions between forwarders, in memory and with a clock in hand: what comes through, what never does."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.forwarder.handshake import ANSWER, ANSWER_BYTES, DATA, HELLO, HELLO_BYTES
from pycni.forwarder.seal import (
    ANSWERS,
    DEAF_S,
    GIVE_UP_S,
    HEAD,
    REJECT_S,
    REKEY_S,
    UNPROVEN,
    WAITING,
    WINDOW,
    Keyring,
    Session,
)

PSK = bytes(range(32))
A, B, C = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]), bytes([192, 0, 2, 3])
PACKET = b"\x45" + bytes(99)


class End:
    """One forwarder with one peer."""

    def __init__(self, ours: bytes, theirs: bytes, psk: bytes = PSK) -> None:
        self.ours, self.theirs, self.psk = ours, theirs, psk
        self.restart()

    def restart(self) -> None:
        self.drops: Counter[str] = Counter()
        self.ring = Keyring(self.psk, self.drops)
        self.channel = self.ring.channel(self.ours, self.theirs)

    def send(self, packets, now=0.0) -> list[bytes]:
        return self.channel.seal(packets, now) + self.out()

    def out(self) -> list[bytes]:
        found, self.channel.out = self.channel.out, []
        return found

    def take(self, datagrams, now=0.0) -> list[bytes]:
        found = [self.ring.receive(self.channel, each, now) for each in datagrams]
        return [packet for packet in found if packet is not None]


def settle(one: End, two: End, datagrams, now=0.0) -> tuple[list[bytes], list[bytes]]:
    """Deliver what one sent, and everything that follows; the packets that came to two and to one."""
    at_two, at_one = [], []
    wire = [*datagrams]
    while wire:
        at_two += two.take(wire, now)
        back = two.out()
        at_one += one.take(back, now)
        wire = one.out()
    return at_two, at_one


def joined(now=0.0) -> tuple[End, End]:
    one, two = End(A, B), End(B, A)
    assert settle(one, two, one.send([PACKET], now), now) == ([PACKET], [])
    assert settle(two, one, two.send([PACKET], now), now) == ([PACKET], [])
    return one, two


def test_the_first_packets_wait_for_the_session_and_come_in_order():
    one, two = End(A, B), End(B, A)
    packets = [bytes([0x45, number]) * 30 for number in range(5)]
    [hello] = one.send(packets[:3])
    assert hello[0] == HELLO
    assert one.send(packets[3:]) == []
    assert settle(one, two, [hello])[0] == packets
    assert not +one.drops
    assert not +two.drops


def test_nothing_of_a_packet_can_be_seen_and_it_grows_by_32_bytes():
    one, _two = joined()
    [sealed] = one.send([PACKET])
    assert len(sealed) == len(PACKET) + 32
    assert bytes(20) not in sealed
    [again] = one.send([PACKET])
    assert sealed[16:] != again[16:]


def test_a_lost_hello_is_said_again_and_given_up_in_the_end():
    one, two = End(A, B), End(B, A)
    one.send([PACKET], now=0.0)
    said = 0
    for tenth in range(1, 10):
        one.channel.tick(tenth / 10)
        said += len(one.out())
    assert said == 2
    one.channel.tick(2.0)
    assert settle(one, two, one.out(), 2.0)[0] == [PACKET]
    lonely = End(A, B)
    lonely.send([PACKET] * (WAITING + 5), now=0.0)
    assert lonely.drops["no_session"] == 5
    lonely.channel.tick(GIVE_UP_S)
    assert lonely.drops["no_session"] == WAITING + 5
    assert not lonely.channel.opening
    assert lonely.out()[1:] == []
    assert len(lonely.send([PACKET], now=GIVE_UP_S + 1)) == 1


@pytest.mark.parametrize("both", [False, True], ids=["one says hello", "both do"])
def test_a_peer_with_another_key_gets_nothing_through(both):
    one, other = End(A, B), End(B, A, psk=bytes(32))
    wire = one.send([PACKET])
    if both:
        one.take(other.send([PACKET]))
    assert settle(one, other, wire) == ([], [])
    assert other.drops["forged"] >= 1
    assert bool(one.drops["forged"]) == both
    assert one.channel.seal([PACKET], 1.0) == []


def test_a_packet_changed_on_its_way_is_none():
    one, two = joined()
    [sealed] = one.send([PACKET])
    for place in (0, 1, 4, 8, 15, 16, 60, len(sealed) - 1):
        changed = bytearray(sealed)
        changed[place] ^= 1
        assert two.take([bytes(changed)]) == []
    assert two.take([sealed[:-1]]) == []
    assert two.take([sealed]) == [PACKET]


def test_a_replayed_packet_is_refused_before_and_after_others():
    one, two = joined()
    first = one.send([PACKET])
    assert two.take(first) == [PACKET]
    assert two.take(first) == []
    assert two.take(one.send([PACKET] * 3)) == [PACKET] * 3
    assert two.take(first) == []
    assert two.drops == {"replayed": 2}


def test_what_was_recorded_of_an_earlier_life_opens_nothing():
    one, two = End(A, B), End(B, A)
    recorded = one.send([PACKET])
    two.take(recorded)
    answers = two.out()
    recorded += answers
    one.take(answers)
    data = one.out() + one.send([PACKET])
    recorded += data
    assert two.take(data) == [PACKET, PACKET]
    for _ in range(2):
        two.restart()
        assert two.take(recorded) == []
        assert two.channel.seal([PACKET], 0.0) == [], "a replayed hello made a session to send by"


def test_a_replayed_hello_does_not_disturb_the_session_in_use():
    one, two = End(A, B), End(B, A)
    [hello] = one.send([PACKET])
    assert settle(one, two, [hello])[0] == [PACKET]
    for _ in range(UNPROVEN + 3):
        two.take([hello])
    two.out()
    assert settle(two, one, two.send([PACKET]))[0] == [PACKET]
    assert settle(one, two, one.send([PACKET]))[0] == [PACKET]


def test_hellos_are_answered_at_a_limited_rate():
    one, two = End(A, B), End(B, A)
    [hello] = one.send([PACKET])
    two.take([hello] * 1000, now=100.0)
    assert len(two.out()) == ANSWERS
    assert two.drops["too_many_hellos"] == 1000 - ANSWERS
    assert len(two.channel._sessions) == UNPROVEN
    assert len(two.ring._holders) == UNPROVEN
    two.take([hello] * 1000, now=101.0)
    assert len(two.out()) == 5


@pytest.mark.parametrize("case", ["back to its sender", "to a third node", "as if from a third node"])
def test_a_handshake_led_elsewhere_is_nobodys(case):
    one, two = End(A, B), End(B, A)
    [hello] = one.send([PACKET])
    there = {
        "back to its sender": one,
        "to a third node": End(C, A),
        "as if from a third node": End(B, C),
    }[case]
    assert there.take([hello]) == []
    assert there.out() == []
    assert there.drops["forged"] == 1
    two.take([hello])
    [answer] = two.out()
    assert answer[0] == ANSWER
    stranger = End(A, C)
    stranger.send([PACKET])
    assert stranger.take([answer]) == []
    assert stranger.out() == []


def test_both_may_say_hello_at_once():
    one, two = End(A, B), End(B, A)
    from_one, from_two = one.send([PACKET]), two.send([PACKET])
    at_one, at_two = one.take(from_two), two.take(from_one)
    for _ in range(4):
        to_two, to_one = one.out(), two.out()
        at_two += two.take(to_two)
        at_one += one.take(to_one)
    assert (at_one, at_two) == ([PACKET], [PACKET])
    for _ in range(3):
        assert settle(one, two, one.send([PACKET]))[0] == [PACKET]
        assert settle(two, one, two.send([PACKET]))[0] == [PACKET]
    assert not +one.drops
    assert not +two.drops


@pytest.mark.parametrize("who", [0, 1], ids=["who said hello", "who answered"])
def test_a_peer_that_lost_its_memory_is_back_by_the_next_packet(who):
    ends = joined()
    lost, other = ends[who], ends[1 - who]
    lost.restart()
    at_lost, _ = settle(other, lost, other.send([PACKET], 1.0), 1.0)
    assert at_lost == [], "it cannot read that one"
    assert settle(other, lost, other.send([PACKET], 1.0), 1.0)[0] == [PACKET]
    assert settle(lost, other, lost.send([PACKET], 1.0), 1.0)[0] == [PACKET]


def test_sessions_that_do_not_fit_are_replaced_once_nothing_is_heard():
    one, two = joined()
    junk = HEAD.pack(3, 0x12345678, 0) + bytes(40)
    one.take([junk], now=DEAF_S - 1)
    assert one.out() == [], "the session in use is well"
    one.take([junk], now=DEAF_S + 1)
    [hello] = one.out()
    assert settle(one, two, [hello], DEAF_S + 1) == ([], [])
    assert settle(one, two, one.send([PACKET], 5.0), 5.0)[0] == [PACKET]


def test_keys_change_with_time_and_no_packet_is_lost():
    one, two = joined()
    began = one.channel._current
    now, came = 0.0, []
    for _ in range(80):
        now += REKEY_S / 20
        for here, there in ((one, two), (two, one)):
            sent = here.send([PACKET], now)
            assert sent[0][0] == DATA, "the packet waits for a session"
            came += settle(here, there, sent, now)[0]
        one.channel.tick(now)
        two.channel.tick(now)
    assert len(came) == 160
    assert not +one.drops
    assert not +two.drops
    assert one.channel._current is not began
    assert len(one.ring._holders) <= 6
    assert len(two.ring._holders) <= 6


def test_old_keys_are_forgotten():
    one, two = joined()
    late = one.send([PACKET], 1.0)
    two.channel.tick(REJECT_S + 1)
    assert two.take(late, REJECT_S + 1) == []
    one.channel.tick(REJECT_S + 1)
    one.out()
    assert one.channel._sessions == {}
    assert one.channel.seal([PACKET], REJECT_S + 1) == []
    one.channel.close()
    two.channel.close()
    assert one.ring._holders == two.ring._holders == {}


def test_no_key_sees_a_counter_twice_whatever_happens():
    one, two = End(A, B), End(B, A)
    seen: set[tuple[int, bytes]] = set()
    now = 0.0
    for number in range(300):
        now += 1.7
        if number % 70 == 69:
            one.restart()
        one.channel.tick(now)
        sent = one.send([PACKET] * (1 + number % 3), now)
        for each in sent:
            if each[0] == 3:
                key = (id(one.channel), each[4:16])
                assert key not in seen
                seen.add(key)
        settle(one, two, sent, now)
    assert len(seen) > 300


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60))
def test_the_window_takes_each_counter_once_and_none_too_old(counters):
    session = Session(keys=None, mine=1, theirs=2, began=0.0, asked=True)  # type: ignore[arg-type]
    taken: set[int] = set()
    for counter in counters:
        wanted = counter not in taken and (not taken or counter > max(taken) - WINDOW)
        assert session.is_new(counter) == wanted
        if wanted:
            session.note(counter)
            taken.add(counter)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_rubbish_is_counted_and_answered_by_nobody(rubbish):
    one, two = joined()
    assert two.take([rubbish]) == []
    assert all(size in {HELLO_BYTES, ANSWER_BYTES} for size in map(len, two.out()))
    assert sum(two.drops.values()) == 1
    assert settle(one, two, one.send([PACKET]))[0] == [PACKET]


def test_plain_packets_are_told_from_rubbish():
    _, two = joined()
    two.take([PACKET, b"\x60" + bytes(50), b"", b"\x01\x02"])
    assert two.drops == {"plain": 2, "malformed": 2}
