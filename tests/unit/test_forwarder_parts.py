"""Parts of the udp forwarder: its table, its bursts, its requests; and who may be told a key."""

from __future__ import annotations

import errno
import socket
import struct
from ipaddress import ip_network

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycni.forwarder.__main__ import leaving_word, main
from pycni.forwarder.paths import Paths
from pycni.forwarder.sockets import PIECE_BYTES, PIECE_PACKETS, pieces, segment_size
from pycni.forwarder.table import Table, put_all
from pycni.kernel import udp_forwarder
from pycni.wire import forwarder as wire
from pycni.wire.forwarder import Entry

PSK = bytes(range(32))


def entry(text: str, number: int, port: int = 8285) -> Entry:
    net = ip_network(text)
    end = (
        bytes([192, 0, 2, number])
        if net.version == 4
        else bytes.fromhex("20010db8") + bytes(11) + bytes([number])
    )
    return Entry(net.network_address.packed, net.prefixlen, end, port)


NETS = ["10.5.0.0/16", "10.5.1.0/24", "10.5.1.128/25", "10.5.1.7/32", "0.0.0.0/0", "fd00::/16", "fd00:5::/48"]
STEPS = st.lists(st.tuples(st.sampled_from(NETS), st.integers(0, 4)), max_size=20)
ADDRESSES = [
    "10.5.1.7",
    "10.5.1.130",
    "10.5.1.1",
    "10.5.9.1",
    "192.0.2.1",
    "fd00:5::1",
    "fd00:6::1",
    "fd01::",
]


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@settings(deadline=None)
@given(STEPS)
def test_an_address_belongs_to_the_longest_network_and_peers_live_as_long_as_their_networks(changes):
    table, model = Table(), {}
    for text, number in changes:
        if number:
            put_all(table, [entry(text, number)])
            model[text] = entry(text, number)
        else:
            table.remove(entry(text, 1))
            model.pop(text, None)
        for address in ADDRESSES:  # also between changes: what is remembered must not outlive them
            nets = [net for net in map(ip_network, model) if packed(address) in _Inside(net)]
            best = max(nets, key=lambda net: net.prefixlen, default=None)
            owner = table.owner(packed(address))
            assert (owner.packed if owner else None) == (model[str(best)].endpoint if best else None)
    assert sorted(table.entries()) == sorted(model.values())
    assert {peer.packed for peer in table.peers.values()} == {each.endpoint for each in model.values()}


class _Inside:
    def __init__(self, net):
        self.net = net

    def __contains__(self, address: bytes) -> bool:
        if len(address) * 8 != self.net.max_prefixlen:
            return False
        shift = self.net.max_prefixlen - self.net.prefixlen
        return (
            int.from_bytes(address, "big") >> shift
            == int.from_bytes(self.net.network_address.packed, "big") >> shift
        )


def test_a_network_that_moves_takes_its_peers_port_and_leaves_the_old_peer():
    table = Table()
    put_all(table, [entry("10.5.1.0/24", 1), entry("10.5.2.0/24", 2)])
    [left] = put_all(table, [entry("10.5.1.0/24", 2, port=9000)])
    assert (left.address, left.networks) == ("192.0.2.1", set())
    assert [(peer.address, peer.port) for peer in table.peers.values()] == [("192.0.2.2", 9000)]
    assert table.owner(packed("10.5.1.9")) is table.owner(packed("10.5.2.9")) is not None
    assert table.remove(entry("10.5.9.0/24", 1)) is None
    assert table.owner(b"") is None


@settings(deadline=None)
@given(st.lists(st.sampled_from([1, 40, 100, 1400, 1452, 65535]), max_size=200))
def test_a_burst_is_cut_into_runs_that_one_call_can_send(sizes):
    packets = [bytes(size) for size in sizes]
    cut = [list(piece) for piece in pieces(packets)]
    assert [packet for piece in cut for packet in piece] == packets
    for piece in cut:
        first = len(piece[0])
        assert all(len(packet) == first for packet in piece[:-1])
        assert len(piece[-1]) <= first
        assert len(piece) <= PIECE_PACKETS
        assert len(piece) == 1 or sum(map(len, piece)) <= PIECE_BYTES


def test_equal_packets_are_one_call():
    assert [len(piece) for piece in pieces([bytes(1400)] * 40 + [bytes(60)] * 2)] == [41, 1]
    assert [len(piece) for piece in pieces([bytes(60), bytes(1400), bytes(1400)])] == [1, 2]


@pytest.mark.parametrize(
    ("control", "expected"),
    [
        pytest.param([], 5000, id="one datagram"),
        pytest.param([(17, 104, struct.pack("=i", 1400))], 1400, id="many"),
        pytest.param([(0, 8, struct.pack("=i", 1400))], 5000, id="something else"),
        pytest.param([(17, 104, b"\0")], 5000, id="too short"),
    ],
)
def test_what_one_call_received_is_told_apart(control, expected):
    assert segment_size(control, 5000) == expected


class Refusing:
    """A socket on whose way bursts are too large."""

    def __init__(self, code: int) -> None:
        self.code, self.sent = code, []

    def sendmsg(self, packets, *_rest) -> None:
        raise OSError(self.code, "refused")

    def sendto(self, packet, address) -> None:
        self.sent.append(packet)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP])
def test_a_burst_that_is_refused_goes_one_by_one_for_a_while(code):
    paths = Paths(-1)
    put_all(paths.table, [entry("10.5.2.0/24", 2)])
    sock = Refusing(code)
    paths.sockets[4] = sock
    packets = [bytes([number]) * 100 for number in range(10)]
    peer = paths.table.peers["192.0.2.2"]
    for _ in range(2):
        paths._put_out(peer, packets)
    assert sock.sent == packets * 2
    assert not paths.drops
    sock.sendmsg = None  # not tried again yet
    paths._put_out(peer, packets)
    assert sock.sent == packets * 3


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.ENETUNREACH, errno.EPERM])
def test_what_cannot_be_sent_is_counted_by_its_reason(code):
    paths = Paths(-1)
    put_all(paths.table, [entry("10.5.2.0/24", 2)])
    paths.sockets[4] = Refusing(code)
    paths._put_out(paths.table.peers["192.0.2.2"], [bytes(100)] * 3)
    assert paths.drops == {f"send_{errno.errorcode[code].lower()}": 3}
    paths.sockets.clear()
    paths._put_out(paths.table.peers["192.0.2.2"], [bytes(100)])
    assert paths.drops["no_socket"] == 1


REQUESTS = [
    wire.Get(),
    wire.Quit(),
    wire.Configure(8285, (packed("192.0.2.1"),), (packed("198.51.100.1"),), PSK, 1400),
    wire.Put((entry("10.5.1.0/24", 2), entry("fd00:5::/48", 2))),
    wire.Remove((Entry(packed("10.5.1.0"), 24),)),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: type(each).__name__)
def test_requests_survive_the_wire(request_):
    line = wire.encode(request_)
    assert line.count(b"\n") == 1
    assert wire.decode_request(line) == request_


MALFORMED = {
    "no JSON": b"get",
    "no request": b'{"type":"stop"}',
    "port 0": wire.encode(wire.Configure(0, (), ())),
    "a short key": wire.encode(wire.Configure(1, (), (), b"short secret")),
    "local without public": wire.encode(wire.Configure(1, (bytes(4),), ())),
    "two of one family": wire.encode(wire.Configure(1, (bytes(4), bytes(4)), (bytes(4), bytes(4)))),
    "an address of 5 bytes": wire.encode(wire.Put((Entry(bytes(5), 8, bytes(4), 1),))),
    "prefix too long": wire.encode(wire.Put((Entry(bytes(4), 33, bytes(4), 1),))),
    "bits of a host": wire.encode(wire.Put((Entry(bytes([10, 5, 1, 1]), 24, bytes(4), 1),))),
    "no endpoint": wire.encode(wire.Put((Entry(bytes(4), 0),))),
    "endpoint without port": wire.encode(wire.Put((Entry(bytes(4), 0, bytes(4), 0),))),
    "deep": b"[" * 5000,
}


@pytest.mark.parametrize("line", MALFORMED.values(), ids=MALFORMED)
def test_malformed_requests_are_refused(line):
    with pytest.raises(wire.MalformedError):
        wire.decode_request(line)


def test_a_key_is_in_no_text():
    found = [repr(wire.Configure(1, (), (), PSK))]
    for key in ("x" * 44, "AAEC"):
        with pytest.raises(wire.MalformedError) as caught:
            wire.decode_request(
                msgspec.json.encode({"type": "configure", "port": 1, "local": [], "public": [], "psk": key})
            )
        found.append(str(caught.value))
    assert all("AAEC" not in text and repr(PSK) not in text and "xxx" not in text for text in found)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "usage"),
        (["/tmp", "a-name-too-long-for-a-device"], 2, "usage"),
        (["/tmp", "../up"], 2, "usage"),
        (["--show", "/nonexistent", "flannel0"], 1, "/nonexistent/flannel0.sock: No such file"),
    ],
    ids=["nothing", "long name", "path as name", "nobody to show"],
)
def test_the_programs_complaints_are_one_line(arguments, code, words, capsys):
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_forwarder_that_fails_leaves_word_of_it_which_is_told_once(tmp_path):
    def fail() -> None:
        raise RuntimeError("something nobody thought of")

    assert udp_forwarder.last_words(str(tmp_path), "flannel0") == ""
    with pytest.raises(RuntimeError):
        leaving_word(str(tmp_path / "flannel0.sock"), fail)
    assert [file.stat().st_mode & 0o777 for file in tmp_path.iterdir()] == [0o600]
    assert udp_forwarder.last_words(str(tmp_path), "flannel0") == "RuntimeError: something nobody thought of"
    assert udp_forwarder.last_words(str(tmp_path), "flannel0") == ""
