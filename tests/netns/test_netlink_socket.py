from __future__ import annotations

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pycni.errors import KernelError
from pycni.kernel import netns as namespaces
from pycni.kernel.netlink import BATCH_MESSAGES, NetlinkSocket
from pycni.wire import rtlink, rtnl
from pycni.wire.netlink import HEADER


class ScriptedKernel(threading.Thread):
    """Answers dumps over a socket pair: the first ``interrupted`` ones are marked NLM_F_DUMP_INTR."""

    def __init__(self, interrupted: int) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.interrupted, self.dumps = interrupted, 0

    def run(self) -> None:
        while request := self.theirs.recv(4096):
            seq = HEADER.unpack_from(request)[3]
            self.dumps += 1
            mark = 0x10 if self.dumps <= self.interrupted else 0
            item = HEADER.pack(20, 16, 2 | mark, seq, 0) + struct.pack("=I", self.dumps)
            self.theirs.send(item + HEADER.pack(20, 3, 2 | mark, seq, 0) + bytes(4))


class Adapter:
    """Gives a socket pair's end the one call of a netlink socket it lacks."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> object:
        return getattr(self._sock, name)

    def sendto(self, data: bytes, _address: object) -> int:
        return self._sock.send(data)


def scripted(interrupted: int, use: Callable[[NetlinkSocket], None]) -> int:
    kernel = ScriptedKernel(interrupted)
    kernel.start()
    try:
        use(NetlinkSocket(sock=Adapter(kernel.ours)))  # type: ignore[arg-type]
    finally:
        kernel.ours.send(b"")
        kernel.join(5)
        kernel.ours.close()
        kernel.theirs.close()
    return kernel.dumps


def test_an_interrupted_dump_is_repeated_until_it_is_whole() -> None:
    seen: list[bytes] = []
    assert scripted(3, lambda sock: seen.extend(m.payload for m in sock.dump(rtlink.dump_links()))) == 4
    assert seen == [struct.pack("=I", 4)]


def test_a_table_that_never_stands_still_is_an_error_not_half_a_list() -> None:
    def use(sock: NetlinkSocket) -> None:
        with pytest.raises(KernelError, match="EINTR"):
            sock.dump(rtlink.dump_links(), "dump links")

    scripted(10_000, use)


def test_each_message_of_a_batch_gets_its_own_result(netns: str) -> None:
    fd = namespaces.open_netns(namespaces.path(netns))
    with namespaces.socket_in(fd) as sock:
        os.close(fd)
        sock.request(rtlink.set_link(1, up=True))
        count = BATCH_MESSAGES * 2 + 3
        good = [rtnl.new_route(bytes([10, n >> 8, n & 255, 0]), 24, oif=1) for n in range(count)]
        bad = {5, BATCH_MESSAGES - 1, BATCH_MESSAGES, count - 1}
        msgs = [rtnl.new_route(b"\x0a\xff\0\0", 24, oif=4242) if n in bad else good[n] for n in range(count)]
        results = sock.batch(msgs)
        assert {n for n, error in enumerate(results) if error} == bad
        assert all(results[n].errno == errno.ENODEV for n in bad)  # type: ignore[union-attr]
        listed = [m for m in sock.dump(rtnl.dump_routes(2)) if rtnl.parse_route(m).protocol == 4]
        assert len(listed) == count - len(bad)


def test_an_error_names_operation_object_and_the_kernels_reason(netns: str) -> None:
    fd = namespaces.open_netns(namespaces.path(netns))
    with namespaces.socket_in(fd) as sock:
        os.close(fd)
        with pytest.raises(
            KernelError, match=r"add route 10.0.0.0/8: ENETUNREACH \(Nexthop has invalid gateway\)"
        ):
            sock.request(
                rtnl.new_route(b"\x0a\0\0\0", 8, gateway=b"\x0b\0\0\x01", oif=0), "add route", "10.0.0.0/8"
            )


def test_the_thread_is_home_again_after_a_call_inside(netns: str) -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        inside = namespaces.run_in(fd, lambda: os.readlink("/proc/thread-self/ns/net"))
        assert inside == f"net:[{namespaces.inode(fd)}]" != home
        with pytest.raises(ZeroDivisionError):
            namespaces.run_in(fd, lambda: 1 // 0)
    finally:
        os.close(fd)
    assert os.readlink("/proc/thread-self/ns/net") == home


def test_a_process_that_cannot_leave_a_pods_namespace_ends(netns: str) -> None:
    program = f"""
import os, resource
from pycni.kernel import netns
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
fd = netns.open_netns({namespaces.path(netns)!r})
netns.run_in(fd, lambda: os.closerange(3, 100))  # takes the way home with it
print("still here")
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, cwd=root)
    assert (done.returncode, done.stdout) == (-signal.SIGABRT, b"")


def test_other_threads_stay_where_they_are(netns: str) -> None:
    fd = namespaces.open_netns(namespaces.path(netns))
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        leave.wait(5)

    worker = threading.Thread(target=lambda: namespaces.run_in(fd, stay))
    worker.start()
    try:
        assert inside.wait(5)
        assert not namespaces.is_current(fd)
        assert namespaces.run_in(fd, lambda: namespaces.is_current(fd))
    finally:
        leave.set()
        worker.join()
        os.close(fd)


def test_wrong_files_are_named(tmp_path: object) -> None:
    with pytest.raises(KernelError, match="/run/netns/no-such: ENOENT"):
        namespaces.open_netns("/run/netns/no-such")
    fd = os.open("/proc/self/status", os.O_RDONLY)
    try:
        with pytest.raises(KernelError, match="EINVAL"):
            namespaces.run_in(fd, lambda: None)
    finally:
        os.close(fd)


def test_a_name_in_use_is_refused_and_a_missing_one_is_gone_already(netns: str) -> None:
    with pytest.raises(KernelError, match="EEXIST"):
        namespaces.create(netns)
    namespaces.delete("pyt-no-such")
