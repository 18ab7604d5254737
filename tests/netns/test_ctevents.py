"""Events of real connections through a router that translates; floods; what is told when events are lost."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest

from pycni import cli_traffic
from pycni.kernel import ctevents, sysctl
from pycni.kernel import netns as namespaces
from pycni.kernel.conntrack_new import Connection, remember
from pycni.kernel.ctevents import CtEvents, CtTable
from pycni.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pycni.traffic.model import Flow, Listening, Lost
from pycni.traffic.tally import Tallier, finder
from pycni.wire import ctnetlink

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
CLIENT = {4: "10.9.1.2", 6: "fd00:9:1::2"}
SERVER = {4: "10.9.2.2", 6: "fd00:9:2::2"}
OUTSIDE = {4: "10.9.2.1", 6: "fd00:9:2::1"}
VIP = {4: "10.96.0.1", 6: "fd00:96::1"}
KIND = {4: socket.AF_INET, 6: socket.AF_INET6}
RULES = """
table inet t {
  chain pre { type nat hook prerouting priority dstnat;
    ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.9.2.2:8080
    ip6 daddr fd00:96::1 tcp dport 80 dnat ip6 to [fd00:9:2::2]:8080
  }
  chain post { type nat hook postrouting priority srcnat; oifname e1 tcp dport 8080 masquerade; }
  chain through { type filter hook forward priority 0; tcp dport 9999 drop; ct state established accept; }
}
"""


def run(words, **more):
    done = subprocess.run(words.split(), check=False, capture_output=True, text=True, **more)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done


class World:
    """client - router - server; the router translates 10.96.0.1:80 and counts."""

    def __init__(self, make):
        self.client, self.router, self.server = make(), make(), make()
        run(f"ip -n {self.client} link add e0 type veth peer name e0 netns {self.router}")
        run(f"ip -n {self.server} link add e0 type veth peer name e1 netns {self.router}")
        for space, device, addresses in (
            (self.client, "e0", CLIENT),
            (self.router, "e0", {4: "10.9.1.1", 6: "fd00:9:1::1"}),
            (self.router, "e1", OUTSIDE),
            (self.server, "e0", SERVER),
        ):
            run(f"ip -n {space} addr add {addresses[4]}/24 dev {device}")
            run(f"ip -n {space} addr add {addresses[6]}/64 dev {device} nodad")
            run(f"ip -n {space} link set {device} up")
        for space, number in ((self.client, 1), (self.server, 2)):
            run(f"ip -n {space} route add default via 10.9.{number}.1")
            run(f"ip -n {space} -6 route add default via fd00:9:{number}::1")
        self.inside(self.router, self._prepare)

    def _prepare(self):
        run("nft -f -", input=RULES)
        for name in (
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
            "net.netfilter.nf_conntrack_acct",
        ):
            sysctl.put(name, 1)

    @staticmethod
    def inside(space, function):
        fd = namespaces.open_netns(namespaces.path(space))
        try:
            return namespaces.run_in(fd, function)
        finally:
            os.close(fd)

    def socket(self, space, family=4, kind=socket.SOCK_STREAM):
        made = self.inside(space, lambda: socket.socket(KIND[family], kind))
        made.settimeout(PATIENCE_S)
        return made

    @contextlib.contextmanager
    def serving(self, port=8080, family=4):
        """Answers whoever connects with what he says, and lets him close first."""
        with self.socket(self.server, family) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((SERVER[family], port))
            listener.listen(1024)
            thread = threading.Thread(target=self._serve, args=(listener,))
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join()

    @staticmethod
    def _serve(listener):
        while True:
            try:
                taken, _ = listener.accept()
            except OSError:
                return
            with taken:
                while data := taken.recv(4096):
                    taken.sendall(data)

    def say(self, address, port, text=b"hello", family=4):
        """Returns the client's port."""
        with self.socket(self.client, family) as sock:
            sock.connect((address, port))
            own = sock.getsockname()[1]
            sock.sendall(text)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        return own

    def ping(self):
        """An echo request with 56 bytes, answered."""
        made = self.inside(
            self.client, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        )
        with made:
            made.settimeout(PATIENCE_S)
            checksum = 0xFFFF - (0x0800 + 77 + 1)
            made.sendto(struct.pack(">BBHHH", 8, 0, checksum, 77, 1) + bytes(56), (SERVER[4], 0))
            while made.recv(4096)[20] != 0:
                pass


@pytest.fixture
def world(netns_factory):
    return World(netns_factory)


class Reader:
    """The program that ``pycnictl flows -f`` runs on a node."""

    def __init__(self, space, what="events"):
        words = ["ip", "netns", "exec", space, sys.executable, "-m", "pycni.cli_traffic", "/none", what, "n1"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, cwd=ROOT)
        self.heard = []
        self.listening = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        assert what == "table" or self.listening.wait(PATIENCE_S)

    def _read(self):
        decoder = msgspec.json.Decoder(Flow | Lost | Listening)
        for line in self.process.stdout:
            item = decoder.decode(line)
            self.heard.append(item)
            if isinstance(item, Listening):
                self.listening.set()

    def flows(self, **fields):
        return [
            item
            for item in list(self.heard)
            if isinstance(item, Flow) and all(getattr(item, key) == value for key, value in fields.items())
        ]

    def lost(self):
        return [item for item in list(self.heard) if isinstance(item, Lost)]

    def until(self, condition):
        deadline = time.monotonic() + PATIENCE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert condition(), self.heard[-20:]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()  # nobody listens any more: it ends by itself
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self.process.wait()
            self._thread.join()
            self.process.stdout.close()


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"])
def test_a_translated_connection_is_told_from_its_beginning_to_its_end(world, family):
    with Reader(world.router) as reader, world.serving(family=family):
        own = world.say(VIP[family], 80, b"x" * 1000, family)
        reader.until(lambda: reader.flows(event="ended", source_port=own))
        run(f"ip netns exec {world.router} conntrack -D -p tcp")
        direct = world.say(SERVER[family], 8080, b"y", family)
        reader.until(lambda: reader.flows(event="ended", source_port=direct))
    (began,) = reader.flows(event="new", source_port=own)
    assert (began.source, began.destination, began.port) == (CLIENT[family], VIP[family], 80)
    assert (began.translated_destination, began.translated_port) == (SERVER[family], 8080)
    assert began.translated_source == OUTSIDE[family]
    (ended,) = reader.flows(event="ended", source_port=own)
    assert ended.state in {"time-wait", "close"}
    assert ended.answered
    assert ended.bytes_out > 1000
    assert ended.bytes_back > 1000
    assert ended.packets_out >= 3
    assert 0 <= ended.duration_s <= PATIENCE_S
    (plain,) = reader.flows(event="new", source_port=direct)
    assert plain.translated_destination == ""
    assert reader.lost() == []
    assert reader.process.returncode == 0


def test_a_denied_packet_is_no_connection_and_a_refused_one_ends_at_once(world):
    with Reader(world.router) as reader, world.socket(world.client) as denied:
        denied.setblocking(False)
        denied.connect_ex((SERVER[4], 9999))
        with world.socket(world.client) as refused, pytest.raises(ConnectionRefusedError):
            refused.connect((SERVER[4], 7))
        reader.until(lambda: reader.flows(port=7, event="ended"))
    assert [item.event for item in reader.flows(port=7)] == ["new", "ended"]
    assert reader.flows(port=9999) == []


def test_udp_and_pings_are_told_and_stand_in_the_table(world):
    with Reader(world.router) as reader, world.socket(world.client, 4, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", (SERVER[4], 53))
        world.ping()
        reader.until(lambda: reader.flows(protocol="UDP") and reader.flows(protocol="ICMP"))
    with Reader(world.router, "table") as table:
        table.process.wait(PATIENCE_S)
    (udp,) = table.flows(protocol="UDP")
    assert (udp.event, udp.port, udp.answered, udp.packets_out) == ("present", 53, False, 1)
    (ping,) = table.flows(protocol="ICMP")
    assert (ping.port, ping.answered, ping.bytes_back) == (0, True, 84)


def test_changes_of_state_come_only_when_they_are_wanted(world):
    with Reader(world.router) as few, Reader(world.router, "changes") as all_of_them, world.serving():
        own = world.say(SERVER[4], 8080)
        for reader in (few, all_of_them):
            reader.until(lambda reader=reader: reader.flows(event="ended", source_port=own))
    assert [item.event for item in few.flows(source_port=own)] == ["new", "ended"]
    states = [item.state for item in all_of_them.flows(event="changed", source_port=own)]
    assert states[:2] == ["syn-recv", "established"]


def test_hundreds_of_connections_a_second_are_told_one_by_one(world):
    """Four clients as fast as they can; every connection they made is told once, or the loss is."""
    made, each = [], 250
    with Reader(world.router) as reader, world.serving():

        def client():
            made.extend(world.say(VIP[4], 80) for _ in range(each))

        threads = [threading.Thread(target=client) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        reader.until(lambda: len(reader.flows(event="ended", port=80)) >= len(made) or reader.lost())
    assert len(made) == 4 * each
    told = [item.source_port for item in reader.flows(event="new", port=80)]
    # A port may have been used twice: numbers, not sets.
    assert sorted(told) == sorted(made) or reader.lost()
    assert not reader.lost() or all("more events" in item.what for item in reader.lost())


def connections(first, count):
    target = ipaddress.ip_address("10.9.2.2").packed
    return [
        Connection(struct.pack(">I", 0x0B000000 + number), 4000, target, 80, 17, 600)
        for number in range(first, first + count)
    ]


def fill(some):
    with NetlinkSocket(NETLINK_NETFILTER) as sock:
        return remember(sock, some)


def test_what_a_flood_made_the_kernel_throw_away_is_told_and_read_from_the_table(world, monkeypatch):
    monkeypatch.setattr(cli_traffic, "CtEvents", partial(CtEvents, buffer=4096))
    count = 3000

    def scenario():
        told, answer = [], cli_traffic.flows("events", "n1")
        told += next(answer)
        fill(connections(0, count))
        while not any(isinstance(item, Lost) for item in told):
            told += next(answer)
        fill(connections(count, 1))
        while not any(isinstance(item, Flow) and item.source == "11.0.11.184" for item in told):
            told += next(answer)
        answer.close()
        return told

    told = world.inside(world.router, scenario)
    (lost,) = [item for item in told if isinstance(item, Lost)]
    assert "more events than the buffer holds" in lost.what
    sources = [item.source for item in told if isinstance(item, Flow) and item.source.startswith("11.")]
    assert len(sources) == len(set(sources)) == count + 1, "each once, whether heard or read"
    assert sum(item.resynced for item in told if isinstance(item, Flow)) > count / 2


def test_a_flood_costs_no_memory(world):
    """What is not read stays in the kernel, which holds a buffer of it."""

    def scenario():
        events = CtEvents(buffer=1 << 16)
        try:
            fill(connections(0, 5000))
            kept = 0
            while found := events.read():
                kept += len(found)
            return kept, events.overruns
        finally:
            events.close()

    kept, overruns = world.inside(world.router, scenario)
    assert 0 < kept < 5000
    assert overruns > 0


def test_counters_of_one_connection_are_asked_for(world):
    def scenario():
        with CtTable() as table:
            fill(connections(0, 2))
            one, two = [item for item in table.entries() if item.original.source.startswith(b"\x0b")]
            assert table.counted(one)._replace(sent=one.sent, answered=one.answered) == one
            other = table.counted(two._replace(ident=one.ident))
            gone = table.counted(one._replace(original=one.original._replace(source_port=9)))
            return one, two, other, gone

    one, two, other, gone = world.inside(world.router, scenario)
    assert other == two._replace(ident=one.ident), "another connection's counters are not taken for its own"
    assert gone.original.source_port == 9


def test_settings_of_connection_tracking_are_read(world):
    found = world.inside(world.router, ctevents.settings)
    assert found.accounting == 1
    assert found.limit > 1000
    assert found.events in {0, 1, 2}


def test_readings_of_the_table_count_what_went_through_a_service(world):
    target = ipaddress.ip_address(VIP[4]).packed
    pods = {
        ipaddress.ip_address(CLIENT[4]).packed: "a/client",
        ipaddress.ip_address(SERVER[4]).packed: "b/web-1",
    }
    find = finder({(target, ctnetlink.TCP, 80): "b/web"}, frozenset())
    tallier = Tallier()

    def read():
        with CtTable() as table:
            tallier.read(table.entries(), pods, find, accounting=True)

    world.inside(world.router, read)
    with world.serving():
        for _ in range(3):
            world.say(VIP[4], 80, b"x" * 1000)
        with world.socket(world.client) as held:
            held.connect((VIP[4], 80))
            world.inside(world.router, read)
    (service,) = tallier.services().values()
    assert (service.new, service.active) == (4, 1)
    assert 3000 < service.bytes_out < 9000
    assert {name: item.new for name, item in tallier.pods().items()} == {"a/client": 4, "b/web-1": 4}
