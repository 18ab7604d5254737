"""The loader of eBPF programs: builds by content, pins that outlive a process, swaps, and words for every failure."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pycni.errors import KernelError
from pycni.kernel import bpf, bpf_build, bpf_places, bpf_tc
from pycni.kernel import netns as namespaces
from pycni.kernel.bpf_build import BuildError
from pycni.kernel.bpf_map import BATCH_ENTRIES, BpfMap, MapSpec
from pycni.kernel.bpf_object import Attachment, BpfObject, ProgramSpec, Source, attached_programs
from pycni.kernel.netlink import NetlinkSocket

CACHE = "/var/cache/pycni/bpf"
COUNTS = MapSpec("counts", bpf.HASH, 4, 8, 64)
CONNECT = ProgramSpec("on_connect", bpf.CGROUP_SOCK_ADDR, bpf.INET4_CONNECT)
TEXT = """
static void *(*look)(void *, void *) = (void *)1;
int on_connect(struct bpf_sock_addr *ctx) {
    u32 key = %d;
    u64 *count = look((void *)bpf_pseudo_fd(1, 0), &key);
    if (count)
        __sync_fetch_and_add(count, 1);
    return 1;
}
"""


@pytest.fixture
def bpffs() -> Iterator[str]:
    where = f"/run/pyt{os.getpid()}-loader"
    try:
        yield bpf_places.bpffs(where)
    finally:
        ctypes.CDLL(None).umount2(where.encode(), 2)
        shutil.rmtree(where, ignore_errors=True)


@pytest.fixture
def cgroup() -> Iterator[tuple[int, int]]:
    where = os.path.join(bpf_places.cgroup2(), f"pyt{os.getpid()}-loader")
    os.mkdir(where)
    fd = os.open(where, os.O_RDONLY)
    try:
        yield fd, bpf_places.cgroup_id(where)
    finally:
        os.close(fd)
        os.rmdir(where)


@pytest.fixture
def small() -> Iterator[Callable[..., BpfMap]]:
    made: list[BpfMap] = []

    def make(kind: int = bpf.HASH, entries: int = 20000, flags: int = 0) -> BpfMap:
        made.append(BpfMap.create(MapSpec("t", kind, 4, 8, entries, flags)))
        return made[-1]

    yield make
    for item in made:
        item.close()


def opened(folder: str, text: str = TEXT % 0, maps: tuple[MapSpec, ...] = (COUNTS,)) -> BpfObject:
    return BpfObject(folder, Source(text, cache=CACHE), maps, (CONNECT,))


def place(cgroup: tuple[int, int]) -> list[Attachment]:
    return [Attachment("here", "on_connect", *cgroup)]


def number(value: int, size: int = 4) -> bytes:
    return value.to_bytes(size, "little")


# --- maps -----------------------------------------------------------------------------------------------------------


def test_single_entries_come_and_go(small: Callable[..., BpfMap]) -> None:
    table = small()
    assert table.get(number(1)) is None
    assert table.put(number(1), number(5, 8), bpf.NOEXIST)
    assert not table.put(number(1), number(6, 8), bpf.NOEXIST)
    assert table.get(number(1)) == number(5, 8)
    assert not table.put(number(2), number(6, 8), bpf.EXIST)
    assert table.delete(number(1))
    assert not table.delete(number(1))


@pytest.mark.parametrize("count", [0, 1, 2, 3, BATCH_ENTRIES, BATCH_ENTRIES + 1, 15000])
@pytest.mark.parametrize("kind", [bpf.HASH, bpf.LRU_HASH], ids=["hash", "lru"])
def test_many_entries_come_and_go(small: Callable[..., BpfMap], kind: int, count: int) -> None:
    table = small(kind, 40000)
    content = {number(key): number(key * 7, 8) for key in range(count)}
    table.update(content)
    assert table.items() == content
    table.remove([number(key) for key in range(0, count, 2)] + [number(10**6 + key) for key in range(5)])
    assert table.items() == {
        key: value for key, value in content.items() if int.from_bytes(key, "little") % 2
    }


def test_without_batches_entries_go_one_by_one(
    small: Callable[..., BpfMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "batch", lambda *args: (0, errno.EINVAL))
    table = small()
    content = {number(key): number(key, 8) for key in range(50)}
    table.update(content)
    assert table.items() == content
    table.remove(list(content)[:40])
    assert len(table.items()) == 10


def test_a_full_map_names_itself_and_its_size(small: Callable[..., BpfMap]) -> None:
    table = small(entries=4)
    with pytest.raises(KernelError, match=r"write map t\[\w+\]: E2BIG \(full: it holds 4 entries\)"):
        table.update({number(key): bytes(8) for key in range(9)})


def test_values_of_each_processor_are_read_apart(small: Callable[..., BpfMap]) -> None:
    table = small(bpf.PERCPU_HASH)
    content = {number(key): number(key, 8) for key in range(5)}
    table.update(content)
    table.put(number(9), number(9, 8))
    found = table.items()
    assert found.keys() == {*content, number(9)}
    for key, raw in found.items():
        assert set(table.parts(raw)) == {number(int.from_bytes(key, "little"), 8)}
        assert table.get(key) == raw


def test_an_entry_is_taken_once(small: Callable[..., BpfMap]) -> None:
    table = small()
    table.put(number(1), number(5, 8))
    assert table.take(number(1)) == number(5, 8)
    assert table.take(number(1)) is None


def test_a_bucket_with_more_than_a_batch_is_read_whole(
    small: Callable[..., BpfMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pycni.kernel.bpf_map.BATCH_ENTRIES", 1)
    table = small(entries=64)
    content = {number(key): number(key, 8) for key in range(60)}
    for key, value in content.items():
        table.put(key, value)
    assert table.items() == content
    assert b"".join(keys for keys, _ in table.batches()) == b"".join(table.items())


def test_prefix_maps_are_made_for_policies() -> None:
    table = BpfMap.create(MapSpec("lpm", bpf.LPM_TRIE, 8, 4, 16, bpf.NO_PREALLOC))
    try:
        table.put(number(8) + b"\x0a\0\0\0", number(1))
        assert table.get(number(32) + b"\x0a\1\2\3") == number(1)
        assert table.get(number(32) + b"\x0b\1\2\3") is None
    finally:
        table.close()


# --- builds ---------------------------------------------------------------------------------------------------------


def test_a_build_from_disk_takes_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    first = bpf_build.build(TEXT % 0, ["on_connect"], cache=CACHE)
    monkeypatch.setattr(bpf_build.subprocess, "run", lambda *args, **kw: pytest.fail("a child was started"))
    monkeypatch.setattr(bpf_build, "missing", lambda cache: "no bcc")
    assert bpf_build.build(TEXT % 0, ["on_connect"], cache=CACHE) == first


def test_another_source_flag_or_function_is_another_build() -> None:
    names = {
        bpf_build.digest("a", ["f"]),
        bpf_build.digest("b", ["f"]),
        bpf_build.digest("a", ["g"]),
        bpf_build.digest("a", ["f"], ["-DX"]),
    }
    assert len(names) == 4
    assert bpf_build.digest("a", ["f", "g"]) == bpf_build.digest("a", ["g", "f"])


@pytest.mark.parametrize("content", [b"", b"{", b'{"on_connect": "zz"}', b"[]"])
def test_a_torn_file_in_the_cache_is_no_build(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert bpf_build.cached("x", str(tmp_path)) is None


def test_the_compilers_words_reach_the_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="use of undeclared identifier 'nowhere'"):
        bpf_build.build("int f(void *ctx) { return nowhere; }", ["f"], cache=CACHE)


def test_without_bcc_the_sentence_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpf_build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BuildError, match="bcc is not installed"):
        bpf_build.build("int f(void *ctx) { return 1; }", ["f"], cache=str(tmp_path))


def test_without_headers_the_sentence_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_build, "SOURCES", str(tmp_path))
    monkeypatch.setattr(bpf_build.platform, "release", lambda: "0.0.0")
    assert "linux-headers" in bpf_build.missing(str(tmp_path))


def test_a_number_without_a_map_is_refused() -> None:
    code = bpf_build.build(TEXT % 0, ["on_connect"], cache=CACHE)["on_connect"]
    assert bpf_build.maps_used(code) == {0}
    with pytest.raises(BuildError, match="names map 0 of 0"):
        bpf_build.relocate(code, [])


def test_the_agent_process_never_loads_bcc() -> None:
    script = "import sys, pycni_proxy.ebpf as e; e.missing(); sys.exit('bcc' in sys.modules)"
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root}/proxy"}
    command = [os.path.join(root, ".venv/bin/python"), "-c", script]
    assert subprocess.run(command, env=environment, check=False).returncode == 0


# --- programs -------------------------------------------------------------------------------------------------------


def test_the_verifiers_verdict_is_in_the_error() -> None:
    text = "int bad(struct bpf_sock_addr *ctx) { int nothing; return nothing; }"
    code = bpf_build.build(text, ["bad"], cache=CACHE)["bad"]
    with pytest.raises(KernelError, match=r"load program bad: EACCES \(.*R0 !read_ok\)") as caught:
        bpf.load_program(bpf.CGROUP_SOCK_ADDR, code, attach_type=bpf.INET4_CONNECT, name="bad")
    assert len(str(caught.value)) < 2000


def test_nothing_is_pinned_or_attached_before_commit(bpffs: str, cgroup: tuple[int, int]) -> None:
    item = opened(f"{bpffs}/pycni/n/p")
    assert item.fresh == {"counts"}
    assert not os.path.exists(f"{bpffs}/pycni")
    item.commit(place(cgroup))
    assert len(bpf.attached(cgroup[0], bpf.INET4_CONNECT)) == 1
    item.close()
    assert len(bpf.attached(cgroup[0], bpf.INET4_CONNECT)) == 1, "pins keep it"
    assert bpf_places.remove_tree(item.folder) == ["links/here", "maps/counts", "programs/on_connect"]
    assert bpf.attached(cgroup[0], bpf.INET4_CONNECT) == []
    assert not os.path.exists(f"{bpffs}/pycni")


def test_a_second_commit_does_nothing(bpffs: str, cgroup: tuple[int, int]) -> None:
    for expected in (["program on_connect", "attached here", "map counts"], []):
        item = opened(f"{bpffs}/pycni/n/p")
        assert item.commit(place(cgroup)) == expected
        item.close()


def test_other_source_swaps_the_program_under_the_same_link(bpffs: str, cgroup: tuple[int, int]) -> None:
    folder = f"{bpffs}/pycni/n/p"
    first = opened(folder)
    first.commit(place(cgroup))
    first.maps["counts"].put(number(3), number(9, 8))
    before = attached_programs(folder)
    first.close()
    second = opened(folder, TEXT % 1)
    assert second.fresh == set()
    assert second.commit(place(cgroup)) == ["program on_connect", "swapped here"]
    assert attached_programs(folder) != before
    assert len(bpf.attached(cgroup[0], bpf.INET4_CONNECT)) == 1
    assert second.maps["counts"].get(number(3)) == number(9, 8)
    second.close()


def test_a_larger_map_takes_over_what_the_old_one_held(bpffs: str, cgroup: tuple[int, int]) -> None:
    folder = f"{bpffs}/pycni/n/p"
    first = opened(folder)
    first.commit(place(cgroup))
    first.maps["counts"].put(number(3), number(9, 8))
    first.close()
    second = opened(folder, maps=(COUNTS._replace(entries=128),))
    assert second.fresh == {"counts"}
    assert second.maps["counts"].items() == {number(3): number(9, 8)}
    assert second.commit(place(cgroup)) == ["program on_connect", "swapped here", "map counts"]
    second.close()
    third = opened(folder, maps=(COUNTS._replace(entries=128),))
    assert third.fresh == set()
    assert third.commit(place(cgroup)) == []
    third.close()


def test_a_map_of_another_shape_starts_empty(bpffs: str, cgroup: tuple[int, int]) -> None:
    folder = f"{bpffs}/pycni/n/p"
    first = opened(folder)
    first.commit(place(cgroup))
    first.maps["counts"].put(number(3), number(9, 8))
    first.close()
    second = opened(folder, maps=(COUNTS._replace(value=16),))
    assert second.maps["counts"].items() == {}
    second.close()


@pytest.mark.parametrize("step", range(1, 5))
def test_a_process_that_dies_in_the_middle_is_followed_by_a_whole_one(
    bpffs: str, cgroup: tuple[int, int], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Killed at the n-th pin of an upgrade that changes program and map: at every moment one program is attached."""
    folder = f"{bpffs}/pycni/n/p"
    first = opened(folder)
    first.commit(place(cgroup))
    first.close()
    larger = (COUNTS._replace(entries=128), MapSpec("more", bpf.HASH, 4, 4, 8))
    calls = 0
    real = os.rename

    def rename(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == step:
            raise KeyboardInterrupt
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename)
        second = opened(folder, TEXT % 1, larger)
        try:
            second.commit(place(cgroup))
        except KeyboardInterrupt:
            assert calls == step
        second.close()
    assert len(bpf.attached(cgroup[0], bpf.INET4_CONNECT)) == 1
    third = opened(folder, TEXT % 1, larger)
    third.commit(place(cgroup))
    assert len(bpf.attached(cgroup[0], bpf.INET4_CONNECT)) == 1
    third.close()
    assert sorted(os.listdir(f"{folder}/maps")) == ["counts", "more"]
    fourth = opened(folder, TEXT % 1, larger)
    assert fourth.commit(place(cgroup)) == []
    fourth.close()


def test_what_is_no_longer_wanted_is_unpinned(bpffs: str, cgroup: tuple[int, int]) -> None:
    folder = f"{bpffs}/pycni/n/p"
    first = opened(folder, maps=(COUNTS, MapSpec("extra", bpf.HASH, 4, 4, 8)))
    first.commit(place(cgroup))
    first.close()
    second = opened(folder)
    assert second.commit([]) == ["removed maps/extra", "removed links/here"]
    assert bpf.attached(cgroup[0], bpf.INET4_CONNECT) == []
    second.close()


def test_a_link_whose_group_is_gone_is_made_anew(bpffs: str, cgroup: tuple[int, int]) -> None:
    folder = f"{bpffs}/pycni/n/p"
    where = os.path.join(bpf_places.cgroup2(), f"pyt{os.getpid()}-gone")
    os.mkdir(where)
    fd = os.open(where, os.O_RDONLY)
    first = opened(folder)
    try:
        first.commit([Attachment("here", "on_connect", fd, bpf_places.cgroup_id(where))])
    finally:
        os.close(fd)
        os.rmdir(where)
    assert first.commit(place(cgroup)) == ["attached here"]
    first.close()


# --- places ---------------------------------------------------------------------------------------------------------


def test_every_namespace_has_a_folder_of_its_own(netns_factory: Callable[[], str]) -> None:
    folders = []
    for _ in range(2):
        fd = namespaces.open_netns(namespaces.path(netns_factory()))
        try:
            folders.append(namespaces.run_in(fd, lambda: bpf_places.folder("a.b/c", "services")))
            cookie = namespaces.run_in(fd, bpf_places.cookie)
        finally:
            os.close(fd)
        assert folders[-1] == f"/sys/fs/bpf/pycni/a_b_c@{cookie}/services"
    assert len(set(folders)) == 2


def test_mounting_twice_mounts_once(bpffs: str) -> None:
    assert bpf_places.bpffs(bpffs) == bpffs
    with open("/proc/self/mountinfo") as file:
        assert sum(f" {bpffs} " in line for line in file) == 1


# --- interfaces -----------------------------------------------------------------------------------------------------

PACKETS = """
static void *(*look)(void *, void *) = (void *)1;
int on_packet(struct __sk_buff *skb) {
    u32 key = %d;
    u64 *count = look((void *)bpf_pseudo_fd(1, 0), &key);
    if (count)
        __sync_fetch_and_add(count, 1);
    return 0;
}
"""


@pytest.fixture
def device(netns: str) -> Iterator[tuple[NetlinkSocket, int, str]]:
    """A namespace whose loopback is up, seen through a netlink socket."""
    subprocess.run([*namespaces.exec_prefix(netns), "ip", "link", "set", "lo", "up"], check=True)
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        with namespaces.socket_in(fd) as sock:
            yield sock, 1, netns
    finally:
        os.close(fd)


def datagrams(netns: str, count: int) -> None:
    fd = namespaces.open_netns(namespaces.path(netns))
    try:
        with namespaces.run_in(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.bind(("127.0.0.1", 0))
            for _ in range(count):
                sock.sendto(b"?", sock.getsockname())
                assert sock.recv(8) == b"?"
    finally:
        os.close(fd)


def packet_program(table: BpfMap, key: int) -> int:
    code = bpf_build.build(PACKETS % key, ["on_packet"], cache=CACHE)["on_packet"]
    return bpf.load_program(bpf.SCHED_CLS, bpf_build.relocate(code, [table.fd]), name="on_packet")


@pytest.mark.parametrize("hook", [bpf_tc.INGRESS, bpf_tc.EGRESS], ids=["ingress", "egress"])
def test_filters_see_packets_and_are_swapped_in_one_step(
    device: tuple[NetlinkSocket, int, str], small: Callable[..., BpfMap], hook: int
) -> None:
    sock, index, netns = device
    table = small()
    table.update({number(key): bytes(8) for key in range(2)})
    ids = []
    for key in (0, 1):
        program = packet_program(table, key)
        try:
            bpf_tc.attach(sock, index, hook, program, priority=7, name="test")
            ids.append(bpf.program_info(program).id)
        finally:
            os.close(program)
        assert bpf_tc.attached(sock, index, hook) == {7: ids[-1]}
        datagrams(netns, 5)
    assert table.items() == {number(0): number(5, 8), number(1): number(5, 8)}
    assert ids[0] != ids[1]
    assert bpf_tc.detach(sock, index, hook, 7)
    assert not bpf_tc.detach(sock, index, hook, 7)
    assert bpf_tc.attached(sock, index, hook) == {}


def test_taking_a_program_off_a_bare_device_is_no_error(device: tuple[NetlinkSocket, int, str]) -> None:
    assert not bpf_tc.detach(device[0], device[1], bpf_tc.INGRESS, 7)
    assert not bpf_tc.detach(device[0], 999, bpf_tc.INGRESS, 7)


@pytest.mark.parametrize("kind", ["tcx", "xdp"])
def test_links_put_programs_on_interfaces(
    bpffs: str, device: tuple[NetlinkSocket, int, str], small: Callable[..., BpfMap], kind: str
) -> None:
    _, index, netns = device
    spec = (
        ProgramSpec("on_packet", bpf.SCHED_CLS, bpf.TCX_INGRESS)
        if kind == "tcx"
        else ProgramSpec("on_packet", bpf.XDP, bpf.XDP_ATTACH)
    )
    text = (
        PACKETS % 0
        if kind == "tcx"
        else (PACKETS % 0).replace("__sk_buff", "xdp_md").replace("return 0", "return 2")
    )
    fd = namespaces.open_netns(namespaces.path(netns))
    item = BpfObject(f"{bpffs}/pycni/n/p", Source(text, cache=CACHE), (COUNTS,), (spec,))
    try:
        item.maps["counts"].put(number(0), bytes(8))
        where = [Attachment("lo", "on_packet", index, index)]
        done = namespaces.run_in(fd, lambda: item.commit(where))
        assert "attached lo" in done
        datagrams(netns, 4)
        assert item.maps["counts"].get(number(0)) == number(4, 8)
        assert namespaces.run_in(fd, lambda: item.commit(where)) == []
        item.detach()
        datagrams(netns, 4)
        assert item.maps["counts"].get(number(0)) == number(4, 8)
    finally:
        item.close()
        os.close(fd)
