"""IPVS messages, byte by byte; the guest of tests/proxy/test_ipvs.py shows that the kernel agrees."""

from __future__ import annotations

import socket
import struct

import pytest

from pycni.model.family import Family
from pycni.model.kube import SCTP, TCP, UDP
from pycni.wire import ipvs
from pycni.wire.ipvs import DestKey, DestSpec, ServiceKey, ServiceSpec
from pycni.wire.netlink import MalformedError, Message, attr, nested

FAMILY = 0x21


def packed(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


V4 = ServiceKey(Family.V4, packed("10.96.0.1"), TCP, 80)
V6 = ServiceKey(Family.V6, packed("fd00::1"), UDP, 53)
MARK = ServiceKey(Family.V4, fwmark=0x48007580)


def body(msg):
    size, kind, flags, seq, port = struct.unpack_from("=IHHII", msg)
    assert (size, kind, flags, seq, port) == (len(msg), FAMILY, 0, 0, 0)
    return msg[16:].hex()


IDENTITY_V4 = "06000100020000000600020006000000140003000a600001" + "00" * 12 + "0600040000500000"

MESSAGES = {
    "new service": (
        ipvs.put_service(FAMILY, V4, ServiceSpec("rr", ipvs.PERSISTENT, 10800), new=True),
        "01010000" "54000180"  # NEW_SERVICE, version 1; nested CMD_ATTR_SERVICE
        + IDENTITY_V4
        + "07000600" "727200" "00"  # SCHED_NAME rr
        "0c000700" "01000000" "3d000000"  # FLAGS: persistent, of those that can be set
        "08000800" "302a0000"  # TIMEOUT 10800
        "08000900" "ffffffff",  # NETMASK
    ),
    "change a service found by mark": (
        ipvs.put_service(FAMILY, MARK, ServiceSpec("mh", ipvs.MH_FALLBACK), new=False),
        f"02010000 38000180 0600010002000000 08000500 80750048 07000600 6d6800 00 0c000700 {8:02x}000000".replace(" ", "")
        + "3d000000" "08000800" "00000000" "08000900" "ffffffff",
    ),
    "IPv6 netmasks are prefix lengths": (
        ipvs.put_service(FAMILY, V6, ServiceSpec("rr", ipvs.PERSISTENT, 60, 64), new=True),
        "01010000" "54000180" "060001000a000000" "0600020011000000" "14000300" "fd00" + "00" * 13 + "01"
        "06000400" "0035" "0000" "07000600" "727200" "00" "0c000700" "01000000" "3d000000"
        "08000800" "3c000000" "08000900" "40000000",
    ),
    "delete a service": (ipvs.del_service(FAMILY, V4), "03010000" "30000180" + IDENTITY_V4),
    "list services": (ipvs.dump_services(FAMILY), "04010000"),
    "new real server": (
        ipvs.put_dest(FAMILY, V4, DestKey(packed("10.244.1.5"), 8080), DestSpec(3, upper=9, lower=7), new=True),
        "05010000" "30000180" + IDENTITY_V4 + "48000280"
        "06000b0002000000" "14000100" "0af40105" + "00" * 12 + "06000200" "1f90" "0000"
        "08000300" "00000000" "08000400" "03000000" "08000500" "09000000" "08000600" "07000000",
    ),
    "tunnel by GUE": (
        ipvs.put_dest(
            FAMILY, V4, DestKey(packed("10.244.1.5"), 80), DestSpec(1, ipvs.TUNNEL, 0, 0, ipvs.TUN_GUE, 6080, 1), new=False
        ),
        "06010000" "30000180" + IDENTITY_V4 + "60000280"
        "06000b0002000000" "14000100" "0af40105" + "00" * 12 + "06000200" "0050" "0000"
        "08000300" "02000000" "08000400" "01000000" "08000500" "00000000" "08000600" "00000000"
        "05000d00" "01000000" "06000e00" "17c0" "0000" "06000f00" "0100" "0000",
    ),
    "delete a real server": (
        ipvs.del_dest(FAMILY, MARK, DestKey(packed("fd00::5"), 80)),
        "07010000" "14000180" "0600010002000000" "08000500" "80750048"
        "28000280" "06000b000a000000" "14000100" "fd00" + "00" * 13 + "05" "06000200" "0050" "0000",
    ),
    "timeouts": (
        ipvs.set_timeouts(FAMILY, ipvs.Timeouts(900, 120, 300)),
        "0c010000" + "08000400" "84030000" "08000500" "78000000" "08000600" "2c010000",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_packed_as_the_kernel_reads_them(name):
    message, wanted = MESSAGES[name]
    assert body(message) == wanted


SERVICES = {
    "plain": (V4, ServiceSpec("rr")),
    "persistent by network": (V4, ServiceSpec("sh", ipvs.PERSISTENT | ipvs.SH_PORT, 300, 24)),
    "ipv6": (V6, ServiceSpec("mh", ipvs.PERSISTENT, 60, 64)),
    "sctp, one packet": (
        ServiceKey(Family.V6, packed("fd00::2"), SCTP, 9),
        ServiceSpec("lc", ipvs.ONE_PACKET),
    ),
    "mark": (MARK, ServiceSpec("wlc")),
    "ipv6 mark": (ServiceKey(Family.V6, fwmark=7), ServiceSpec("wrr", ipvs.SCHED3)),
}


@pytest.mark.parametrize("name", SERVICES)
def test_services_come_back_as_they_were_sent(name):
    key, spec = SERVICES[name]
    info = ipvs.parse_service(Message(FAMILY, 0, 0, ipvs.put_service(FAMILY, key, spec, new=True)[16:]))
    assert (info.key, info.spec) == (key, spec)


DESTS = {
    "plain": (DestKey(packed("10.0.0.1"), 80), DestSpec(5)),
    "ipv6, draining, limits": (DestKey(packed("fd00::1"), 1), DestSpec(0, ipvs.ROUTE, 10, 5)),
    "gre": (DestKey(packed("10.0.0.1"), 65535), DestSpec(1, ipvs.TUNNEL, 0, 0, ipvs.TUN_GRE, 0, 2)),
}


@pytest.mark.parametrize("name", DESTS)
def test_real_servers_come_back_as_they_were_sent(name):
    key, spec = DESTS[name]
    info = ipvs.parse_dest(Message(FAMILY, 0, 0, ipvs.put_dest(FAMILY, V4, key, spec, new=True)[16:]))
    assert (info.key, info.spec) == (key, spec)


def test_counters_are_the_wide_ones():
    wide = nested(12, *(attr(n, struct.pack("=Q", 2**40 + n)) for n in (1, 2, 3, 4, 5)))
    sent = ipvs.put_service(FAMILY, V4, ServiceSpec("rr"), new=True)[16:]
    inner = sent[8:] + wide
    info = ipvs.parse_service(Message(FAMILY, 0, 0, b"\x01\x01\0\0" + nested(1, inner)))
    assert tuple(info.stats) == tuple(2**40 + n for n in (1, 2, 3, 4, 5))


LINES = {
    "-A -t 10.96.0.1:80 -s rr -p 10800": (V4, ServiceSpec("rr", ipvs.PERSISTENT, 10800)),
    "-A -u [fd00::1]:53 -s sh -p 60 -M 64 -b sh-fallback,sh-port": (
        V6,
        ServiceSpec("sh", ipvs.PERSISTENT | ipvs.SCHED1 | ipvs.SCHED2, 60, 64),
    ),
    "-A -t 10.96.0.1:80 -s sh -p 9 -M 255.255.255.0": (V4, ServiceSpec("sh", ipvs.PERSISTENT, 9, 24)),
    "-A -f 1207989632 -s mh -o -b mh-port": (MARK, ServiceSpec("mh", ipvs.ONE_PACKET | ipvs.SCHED2)),
    "-A -f 7 -6 -s lc -b flag-1,flag-3": (
        ServiceKey(Family.V6, fwmark=7),
        ServiceSpec("lc", ipvs.SCHED1 | ipvs.SCHED3),
    ),
}


@pytest.mark.parametrize("line", LINES)
def test_services_print_as_ipvsadm_prints_them(line):
    assert ipvs.service_line(*LINES[line]) == line


@pytest.mark.parametrize("size", [1, 3, 6, 30])
def test_cut_messages_raise(size):
    whole = ipvs.put_service(FAMILY, V4, ServiceSpec("rr"), new=True)[16:]
    with pytest.raises((MalformedError, struct.error, KeyError, ValueError)):
        ipvs.parse_service(Message(FAMILY, 0, 0, whole[:size]))
