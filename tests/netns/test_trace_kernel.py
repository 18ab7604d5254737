"""What the kernel says of packets, in namespaces of our own: rules met, drop reasons, connections."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from pycni.errors import KernelError
from pycni.kernel import dropreason, netns, nfttrace
from pycni.kernel.conntrack_ask import ConnectionAsker
from pycni.kernel.dropreason import DropWatch, Symbols
from pycni.kernel.nfttrace import RuleTrace, Told
from pycni.model.spot import Spot
from pycni.wire.ctnetlink import SEEN_REPLY, Tuple

T = TypeVar("T")
PATIENCE_S = 10.0
WORD = b"pyT1"
PORT = 55555
SPOTS = [Spot(4, 17, 28, WORD)]
"""The first word of a UDP datagram."""
HERE = bytes((127, 0, 0, 1))


@pytest.fixture
def space() -> Iterator[str]:
    name = f"pyt{os.getpid()}trk"
    netns.create(name)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        netns.delete(name)


def inside(name: str, function: Callable[[], T]) -> T:
    fd = netns.open_netns(netns.path(name))
    try:
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


def nft(name: str, text: str) -> str:
    words = [*netns.exec_prefix(name), "nft", "-f", "-"] if not text.startswith("list") else [
        *netns.exec_prefix(name), "nft", *text.split()
    ]  # fmt: skip
    return subprocess.run(words, input=text, text=True, check=True, capture_output=True).stdout


def send(name: str, payload: bytes, port: int = PORT) -> int:
    """From a socket of its own, whose port is returned."""
    with inside(name, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.sendto(payload, ("127.0.0.1", port))
        return int(sock.getsockname()[1])


def until(read: Callable[[], list[T]], wanted: Callable[[list[T]], bool]) -> list[T]:
    found: list[T] = []
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        found += read()
        if wanted(found):
            return found
        time.sleep(0.01)
    pytest.fail(f"not within {PATIENCE_S} s: {found}")


FOE = """
add table ip foe
add chain ip foe c { type filter hook input priority 0; }
add chain ip foe d
add rule ip foe c counter
add rule ip foe c jump d
add rule ip foe d udp dport 55555 counter drop comment "not here"
add table bridge foe
"""


def test_rules_are_told_in_order_with_texts_and_nobody_elses(space: str) -> None:
    nft(space, FOE)
    trace = inside(space, lambda: RuleTrace(SPOTS, 0xABCD))
    try:
        assert "pycni_trace_0000abcd" in nft(space, "list tables")
        send(space, b"other" * 4)
        send(space, WORD)
        met = until(trace.read, lambda found: any(item.met.verdict == "drop" for item in found))
        # Somebody else's traces of other packets are not ours.
        nft(space, "add rule ip foe c udp dport 7777 meta nftrace set 1\n")
        send(space, b"other" * 4, 7777)
        send(space, WORD)
        again = until(trace.read, lambda found: any(item.met.verdict == "drop" for item in found))
    finally:
        trace.close()

    def words(found: list[Told]) -> list[tuple[str, str, str]]:
        return [
            (item.met.chain, item.rule.text, item.met.verdict) for item in found if item.met.table == "foe"
        ]

    expected = [
        ("c", "counter", "continue"),
        ("c", "jump d", "jump d"),
        ("d", "udp dport 55555 counter drop", "drop"),
    ]
    assert words(met) == words(again) == expected
    assert met[0].met.network[16:20] == HERE
    assert met[0].met.transport[2:4] == PORT.to_bytes(2, "big")
    assert next(item.rule.comment for item in met if item.rule.text.startswith("udp")) == "not here"
    assert "pycni_trace" not in nft(space, "list tables")


def test_rules_of_ours_are_told_by_their_comments(space: str) -> None:
    nft(
        space,
        "add table inet pycni_x\nadd chain inet pycni_x c { type filter hook input priority 0; }\n"
        'add rule inet pycni_x c udp dport 55555 drop comment "what it is for"\n',
    )
    trace = inside(space, lambda: RuleTrace(SPOTS, 1))
    try:
        send(space, WORD)
        met = until(trace.read, lambda found: any(item.met.verdict == "drop" for item in found))
    finally:
        trace.close()
    assert [item.rule.text for item in met if item.met.verdict == "drop"] == ["what it is for"]


def test_two_traces_at_once_do_not_disturb_each_other(space: str) -> None:
    nft(space, FOE)
    traces = [inside(space, lambda number=number: RuleTrace(SPOTS, number)) for number in (1, 2)]
    try:
        send(space, WORD)
        for trace in traces:
            until(trace.read, lambda found: any(item.met.verdict == "drop" for item in found))
    finally:
        for trace in traces:
            trace.close()
    assert nft(space, "list tables").split() == ["table", "ip", "foe", "table", "bridge", "foe"]


def test_the_kernel_takes_the_table_away_from_who_was_killed(space: str, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = (
        "import time\nfrom pathlib import Path\nfrom pycni.kernel.nfttrace import RuleTrace\n"
        "from pycni.model.spot import Spot\n"
        f"trace = RuleTrace([Spot(4, 17, 28, {WORD!r})], 5)\nPath({str(ready)!r}).touch()\ntime.sleep(60)\n"
    )
    with subprocess.Popen([*netns.exec_prefix(space), sys.executable, "-c", script]) as process:
        try:
            until(lambda: [1] if ready.exists() else [], bool)
            assert "pycni_trace_00000005" in nft(space, "list tables")
        finally:
            process.send_signal(signal.SIGKILL)
    until(lambda: [1] if "pycni_trace" not in nft(space, "list tables") else [], bool)


def test_tables_are_listed_by_family(space: str) -> None:
    assert inside(space, nfttrace.tables) == []
    nft(space, FOE)
    assert sorted(inside(space, nfttrace.tables)) == [(2, "foe"), (7, "foe")]


def test_a_drop_has_the_kernels_reason_place_and_namespace(space: str, tmp_path: Path) -> None:
    number = inside(space, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    for _ in range(2):  # asking the kernel's type information, then the disk
        watch = DropWatch(SPOTS, str(tmp_path))
        try:
            before = time.time_ns()
            send(space, b"other" * 4)
            send(space, WORD)
            found = until(watch.read, bool)
        finally:
            watch.close()
        [drop] = found
        assert (drop.reason, drop.space) == ("no_socket", number)
        assert drop.packet[28:] == WORD, "nothing of what is in memory behind the packet"
        assert "udp" in Symbols().name(drop.place)
        assert abs(drop.time_ns - before) < PATIENCE_S * 1e9
    assert [file.name[:6] for file in tmp_path.iterdir()] == ["drops-"]


def test_a_kernel_that_tells_no_reasons_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropreason, "BTF", str(tmp_path / "none"))
    with pytest.raises(KernelError, match="no type information"):
        DropWatch(SPOTS, str(tmp_path))


def test_a_listener_leaves_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    watch = DropWatch(SPOTS, str(tmp_path))
    watch.close()
    watch.close()
    assert watch.read() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_connection_is_found_by_either_direction_and_behind_its_translation(space: str) -> None:
    nft(
        space,
        "add table ip nat\nadd chain ip nat c { type nat hook output priority -100; }\n"
        f"add rule ip nat c udp dport {PORT} dnat to 127.0.0.1:7000\n",
    )
    with inside(space, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as server:
        server.bind(("127.0.0.1", 7000))
        server.settimeout(PATIENCE_S)
        port = send(space, WORD)
        server.recv(100)
    asker = inside(space, ConnectionAsker)
    try:
        entry = asker.ask(socket.IPPROTO_UDP, Tuple(HERE, HERE, port, PORT))
        assert entry is not None
        assert entry.target_translated
        assert not entry.status & SEEN_REPLY
        assert (entry.reply.source_port, entry.reply.target_port) == (7000, port)
        assert asker.ask(socket.IPPROTO_UDP, Tuple(HERE, HERE, 7000, port)) is not None
        assert asker.ask(socket.IPPROTO_UDP, Tuple(HERE, HERE, 1, 2)) is None
        assert asker.ask(socket.IPPROTO_ICMP, Tuple(HERE, HERE, 1, 8 << 8)) is None
    finally:
        asker.close()
