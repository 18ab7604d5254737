"""WireGuard's peers as bytes: include/uapi/linux/wireguard.h and the cross-platform text, both ways."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pycni.model.wireguard import Secret, WireguardKey, WireguardPeer, key_text, parse_key, wireguard_text
from pycni.wire import wireguard as wire
from pycni.wire.netlink import HEADER, MalformedError, Message

KEY, PSK, PRIVATE = bytes(range(1, 33)), Secret(b"\xaa" * 32), Secret(b"\xbb" * 32)
V4 = ((b"\x0a\x05\x02\0", 24),)
V6 = ((b"\xfd\0\0\x05" + bytes(12), 64),)
PEER = wire.PeerInfo(KEY, PSK, b"\xc0\0\2\2", 51820, 25, V4)
PEER6 = wire.PeerInfo(KEY, None, b"\x20\1\x0d\xb8" + bytes(11) + b"\2", 51821, 0, (*V4, *V6))

GOLDEN = {
    "device": (
        wire.set_device(33, "flannel-wg", PRIVATE, 51820),
        "50000000" "2100" "0000" "00000000" "00000000"  # nlmsghdr, the family's number as type
        "01" "01" "0000"  # genlmsghdr: SET_DEVICE, version 1
        "0f00" "0200" "666c616e6e656c2d776700" "00"  # IFNAME
        "2400" "0300" + "bb" * 32  # PRIVATE_KEY
        + "0600" "0600" "6cca" "0000",  # LISTEN_PORT 51820, host order
    ),
    "peer": (
        wire.set_peer(33, "wg", PEER, replace=True),
        "b0000000" "2100" "0000" "00000000" "00000000" "01" "01" "0000"
        "0700" "0200" "776700" "00"
        "9400" "0880" "9000" "0080"  # PEERS, first item
        "2400" "0100" + KEY.hex()  # PUBLIC_KEY
        + "0800" "0300" "02000000"  # FLAGS: REPLACE_ALLOWEDIPS
        "2400" "0200" + "aa" * 32  # PRESHARED_KEY
        + "1400" "0400" "0200" "ca6c" "c0000202" "0000000000000000"  # ENDPOINT: sockaddr_in
        "0600" "0500" "1900" "0000"  # PERSISTENT_KEEPALIVE_INTERVAL
        "2000" "0980" "1c00" "0080"  # ALLOWEDIPS, first item
        "0600" "0100" "0200" "0000" "0800" "0200" "0a050200" "0500" "0300" "18" "000000",
    ),
    "removal": (
        wire.remove_peer(33, "wg", KEY),
        "50000000" "2100" "0000" "00000000" "00000000" "01" "01" "0000"
        "0700" "0200" "776700" "00"
        "3400" "0880" "3000" "0080" "2400" "0100" + KEY.hex() + "0800" "0300" "01000000",  # REMOVE_ME
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_the_kernel_gets_these_bytes(name):
    made, expected = GOLDEN[name]
    assert made.hex() == expected


def test_an_ipv6_endpoint_is_a_sockaddr_in6_and_no_psk_is_a_key_of_zeros():
    raw = wire.set_peer(33, "wg", PEER6, replace=False)
    assert b"\x20\0\4\0\x0a\0\xca\x6d\0\0\0\0" + PEER6.endpoint + bytes(4) in raw
    assert b"\x24\0\2\0" + bytes(32) in raw
    assert b"\x08\0\3\0" not in raw  # no flags: other networks stay
    assert b"\x14\0\2\0" + V6[0][0] + b"\5\0\3\0\x40" in raw


def as_dump(raw: bytes) -> Message:
    return Message(33, 0, 0, raw[HEADER.size :])


PEERS = st.builds(
    wire.PeerInfo,
    public_key=st.binary(min_size=32, max_size=32),
    psk=st.none() | st.just(PSK),
    endpoint=st.binary(min_size=4, max_size=4)
    | st.binary(min_size=16, max_size=16).filter(lambda a: a[:12] != bytes(10) + b"\xff\xff"),
    port=st.integers(1, 65535),
    keepalive_s=st.integers(0, 65535),
    handshake=st.just(False),
    allowed=st.sets(
        st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 32))
        | st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 128)),
        max_size=4,
    ).map(lambda nets: tuple(sorted(nets))),
)


@given(PEERS)
def test_a_peer_comes_back_from_netlink_as_it_went(peer):
    [found] = wire.parse_device([as_dump(wire.set_peer(33, "wg", peer, replace=False))]).peers
    assert found == peer


@given(PEERS)
def test_a_peer_comes_back_from_the_text_as_it_went(peer):
    lines = wire.set_peer_text(peer, replace=False).decode().splitlines()
    pairs = [tuple(line.split("=", 1)) for line in lines[1:] if line]
    [found] = wire.parse_device_text(pairs).peers
    assert found == peer


def test_a_device_in_several_messages_is_put_together():
    first = wire.set_device(33, "wg", PRIVATE, 51820)
    parts = [PEER, PEER6._replace(public_key=KEY), PEER._replace(public_key=bytes(reversed(KEY)))]
    dump = [as_dump(first), *(as_dump(wire.set_peer(33, "wg", part, replace=False)) for part in parts)]
    found = wire.parse_device(dump)
    assert (found.private_key, found.port) == (PRIVATE, 51820)
    assert found.peers == (PEER._replace(allowed=tuple(sorted({*V4, *V6}))), parts[2])


def test_wireguard_go_gets_this_text():
    assert wire.set_peer_text(PEER6, replace=True).decode().splitlines() == [
        "set=1",
        f"public_key={KEY.hex()}",
        f"preshared_key={'00' * 32}",
        "endpoint=[2001:db8::2]:51821",
        "persistent_keepalive_interval=0",
        "replace_allowed_ips=true",
        "allowed_ip=10.5.2.0/24",
        "allowed_ip=fd00:5::/64",
        "",
    ]
    assert wire.set_device_text(PRIVATE, 7) == b"set=1\nprivate_key=%s\nlisten_port=7\n\n" % (b"bb" * 32)
    assert wire.remove_peer_text(KEY).decode() == f"set=1\npublic_key={KEY.hex()}\nremove=true\n\n"


ANSWER = f"""private_key={"bb" * 32}
listen_port=51820
fwmark=0
public_key={KEY.hex()}
preshared_key={"aa" * 32}
protocol_version=1
endpoint=192.0.2.2:51820
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=1
rx_bytes=2
persistent_keepalive_interval=25
allowed_ip=10.5.2.0/24
errno=0

"""


def test_wireguard_gos_answer_is_understood():
    code, pairs = wire.parse_answer(ANSWER.encode())
    assert code == 0
    assert wire.parse_device_text(pairs) == wire.DeviceInfo(PRIVATE, 51820, (PEER._replace(handshake=True),))


@pytest.mark.parametrize(
    ("raw", "code"), [(b"errno=0\n\n", 0), (b"errno=-22\n\n", 22), (b"errno=22\n\n", 22)]
)
def test_an_errno_is_positive(raw, code):
    assert wire.parse_answer(raw) == (code, [])


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"listen_port=1\n\n", b"errno=x\n\n", b"nothing\nerrno=0\n\n"])
def test_anything_else_is_malformed(raw):
    with pytest.raises(MalformedError):
        wire.parse_answer(raw)


@pytest.mark.parametrize("pair", [("private_key", "zz"), ("listen_port", "x"), ("public_key", "0")])
def test_a_wrong_value_is_malformed_and_not_shown_when_it_is_a_key(pair):
    with pytest.raises(MalformedError) as caught:
        wire.parse_device_text([pair])
    assert pair[0] == "listen_port" or pair[1] not in str(caught.value).split()


@pytest.mark.parametrize(
    "text", ["", "AAAA", key_text(bytes(32)), key_text(KEY)[:-1], key_text(KEY) + "\n", "ä" * 44]
)
def test_what_is_no_key_is_none(text):
    assert parse_key(text) is None


def test_a_key_is_written_as_wg_writes_it():
    assert parse_key(key_text(KEY)) == KEY
    assert len(key_text(KEY)) == 44


def test_a_peers_line_has_no_secret():
    peer = WireguardPeer(PEER6.endpoint, 51821, PEER6.allowed, 25, PSK.fingerprint)
    assert wireguard_text(WireguardKey("flannel-wg", KEY), peer) == (
        f"peer {key_text(KEY)} dev flannel-wg endpoint [2001:db8::2]:51821"
        " allowed-ips 10.5.2.0/24,fd00:5::/64 persistent-keepalive 25 psk"
    )
    assert PSK.fingerprint != PRIVATE.fingerprint
    assert "aa" not in repr(PSK)
