"""The eBPF data plane without its agent: killed, restarted, upgraded, cleaned up; several nodes on one kernel."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycni.ipam.endpoints import EndpointStore
from pycni.kernel import bpf, bpf_build, bpf_object, bpf_places, sockdiag
from pycni.kernel import netns as namespaces
from pycni.kernel.netlink import NetlinkSocket
from pycni.model.endpoint import Endpoint
from pycni.model.family import Family
from pycni.model.kube import UDP
from pycni_proxy import ebpf
from pycni_proxy.ebpf import layout, maglev
from pycni_proxy.ebpf.driver import PROGRAMS
from tests.proxy import ebpf_rig
from tests.proxy.ebpf_rig import Rig, driver, frontend, server_address, target, vip

pytestmark = pytest.mark.root
ROOT = Path(__file__).parents[2]
V4, V6 = Family.V4, Family.V6

AGENT = """
import sys, time
from pycni.kernel import netns
from pycni_proxy import ebpf
from pycni_proxy.ebpf import layout, maglev
from pycni_proxy.ebpf.driver import Places
from tests.proxy.ebpf_rig import frontend
from pycni.model.family import Family
from pycni.model.service import NodeFacts
from pycni.reconcile.delta import diff
node, client, bpffs, cgroup, cache = sys.argv[1:]
places = Places(bpffs=bpffs, cgroup=cgroup, cache=cache)
plane = netns.run_in(netns.open_netns(node), lambda: ebpf.make(NodeFacts(name="n1"), places))
plane.driver.namespaces.add(client)
rows = plane.compiler.rows([frontend(0, family, [0, 1, 2], scheduler="rr") for family in Family])
actual = plane.driver.read()
changes = [(name, diff(table, actual[name])) for name, table in rows.items()]
plane.driver.apply([item for item in changes if not item[1].empty])
print("llvm" if "bcc" in sys.modules else "ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ebpf_rig.rig(3, "life") as made:
        yield made


def pins(rig: Rig) -> list[str]:
    return [os.path.join(where, name) for where, _, names in os.walk(f"{rig.bpffs}/pycni") for name in names]


def attached(rig: Rig) -> dict[str, list[int]]:
    fd = os.open(rig.cgroup, os.O_RDONLY)
    try:
        return {spec.function: bpf.attached(fd, spec.attach_type) for spec in PROGRAMS}
    finally:
        os.close(fd)


@contextlib.contextmanager
def agent(rig: Rig) -> Iterator[subprocess.Popen[bytes]]:
    paths = [namespaces.path(rig.names[part]) for part in ("node", "client")]
    process = subprocess.Popen(
        [sys.executable, "-c", AGENT, *paths, rig.bpffs, rig.cgroup, rig.places.cache],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/proxy"},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_services_work_on_when_the_agent_is_killed_and_a_new_one_finds_them(rig: Rig) -> None:
    rig.plane.driver.remove()
    rig.plane.driver.close()
    with agent(rig) as process:
        assert [rig.ask_tcp(vip(0, V4)) for _ in range(2)] == [0, 1]
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert rig.ask_tcp(vip(0, V4)) == 2
    assert rig.ask_tcp(vip(0, V6)) == 0
    before = attached(rig)
    with rig.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect((vip(0, V4), 80))
        rig.plane = rig.open()
        assert attached(rig) == before, "nothing is loaded or swapped again"
        assert sock.getpeername() == (vip(0, V4), 80)
    assert rig.ask_tcp(vip(0, V4)) == 1, "the turn goes on where it was"
    wanted = rig.plane.compiler.rows([frontend(0, f, [0, 1, 2], scheduler="rr") for f in Family])
    assert rig.plane.driver.read()["sock-frontends"] == wanted["sock-frontends"]


def test_no_connection_fails_over_restarts(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [0, 1, 2]))
    failures: list[Exception] = []
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            try:
                rig.ask_tcp(vip(0, V4))
            except OSError as exc:
                failures.append(exc)

    thread = threading.Thread(target=hammer)
    thread.start()
    try:
        for _ in range(10):
            rig.restart()
            rig.apply(frontend(0, V4, [0, 1, 2]))
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_an_upgrade_swaps_every_program_and_no_connection_fails(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.apply(frontend(0, V4, [0, 1, 2], scheduler="lc"))
    before = attached(rig)
    held = rig.socket(socket.AF_INET, socket.SOCK_STREAM)
    with held:
        held.connect((vip(0, V4), 80))
        original = ebpf.driver.source
        monkeypatch.setattr(
            "pycni_proxy.ebpf.driver.source",
            lambda cache: original(cache)._replace(text=original(cache).text + "\n/* newer */\n"),
        )
        stop, failures = threading.Event(), []

        def hammer() -> None:
            while not stop.is_set():
                try:
                    rig.ask_tcp(vip(0, V4))
                except OSError as exc:
                    failures.append(exc)

        thread = threading.Thread(target=hammer)
        thread.start()
        try:
            rig.restart()
        finally:
            stop.set()
            thread.join()
        after = attached(rig)
        assert not failures
        assert {name: len(ids) for name, ids in after.items()} == dict.fromkeys(before, 1)
        assert all(before[name] != after[name] for name in before)
        assert held.getpeername() == (vip(0, V4), 80), "what the old programs remembered is still known"
        states = rig.plane.driver.targets(frontend(0, V4, []).key)
        assert sum(state.active for state in states) == 1


def test_removal_leaves_no_pin_no_program_and_open_connections(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [0]))
    assert all(len(ids) == 1 for ids in attached(rig).values())
    with rig.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect((vip(0, V4), 80))
        gone = rig.plane.driver.remove()
        assert len(gone) == 11 + 2 * len(PROGRAMS)
        assert not any(attached(rig).values())
        assert not pins(rig)
        assert not os.path.exists(f"{rig.bpffs}/pycni")
        assert sock.recv(1) == b"\0"


def test_leftovers_finds_what_a_killed_agent_left_and_not_another_nodes(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [0]))
    other = rig.within("servers", lambda: ebpf.make(rig.facts, rig.places))
    try:
        other.driver.poll()
        other.driver.apply([])
        assert all(len(ids) == 2 for ids in attached(rig).values())
        gone = rig.within("node", lambda: ebpf.leftovers(rig.places))
        assert len(gone) == 11 + 2 * len(PROGRAMS)
        assert all(len(ids) == 1 for ids in attached(rig).values())
        assert rig.within("node", lambda: ebpf.leftovers(rig.places)) == []
        assert len(rig.within("servers", lambda: ebpf.leftovers(rig.places))) == 11 + 2 * len(PROGRAMS)
        assert not pins(rig)
    finally:
        other.driver.remove()
        other.driver.close()


def test_a_nodes_pins_can_be_removed_by_its_namespace(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [0]))
    assert bpf_places.remove_node(namespaces.path(rig.names["client"]), rig.bpffs) == []
    assert rig.ask_tcp(vip(0, V4)) == 0
    gone = bpf_places.remove_node(namespaces.path(rig.names["node"]), rig.bpffs)
    assert len(gone) == 11 + 2 * len(PROGRAMS)
    assert not any(attached(rig).values())
    assert not os.path.exists(f"{rig.bpffs}/pycni")
    assert bpf_places.remove_node(namespaces.path(rig.names["node"]), rig.bpffs) == []


def test_two_nodes_on_one_kernel_serve_their_own_sockets_only(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [0]))
    other = rig.within("servers", lambda: ebpf.make(rig.facts, rig.places))
    try:
        rows = other.compiler.rows([frontend(0, V4, [2])])
        other.driver.apply([(name, ebpf_rig.diff(table, {})) for name, table in rows.items()])
        assert {rig.ask_tcp(vip(0, V4)) for _ in range(4)} == {0}
        assert {rig.ask_tcp(vip(0, V4), where="servers") for _ in range(4)} == {2}
    finally:
        other.driver.remove()
        other.driver.close()
    assert rig.ask_tcp(vip(0, V4)) == 0


def test_pods_are_served_from_their_record_on_and_not_after_it(rig: Rig, tmp_path: Path) -> None:
    rig.apply(frontend(0, V4, [0]))
    ours = driver(rig.plane)
    store = EndpointStore(str(tmp_path))
    name = f"{rig.prefix}-pod"
    namespaces.create(name)
    try:
        cookie = bpf_places.cookie_of(namespaces.path(name)).to_bytes(8, sys.byteorder)
        pod = Endpoint(network="n", container_id="c", ifname="eth0", netns=namespaces.path(name))
        served = ours._maps["served"]
        ours.follow(store)
        assert cookie not in served.items()
        store.put(pod)
        assert cookie in served.items()
        # A restarted agent: the record is replayed, what is no pod any more goes.
        served.put(b"\x77" * 8, b"\1\0\0\0")
        rig.restart()
        ours = driver(rig.plane)
        ours.follow(store)
        there = ours._maps["served"].items()
        assert cookie in there
        assert b"\x77" * 8 not in there
        store.remove(pod.owner)
        assert cookie not in ours._maps["served"].items()
    finally:
        namespaces.delete(name)
        store.close()


def test_maglev_in_the_kernel_moves_few_clients_when_an_endpoint_goes(rig: Rig) -> None:
    """Sixty pods, five endpoints, one goes: at most 2/5 of the pods change theirs."""
    clients = 60
    names = [f"{rig.prefix}-m{number}" for number in range(clients)]
    made: list[str] = []

    def choices() -> list[int]:
        found = []
        for name in names:
            fd = namespaces.open_netns(namespaces.path(name))
            try:
                sock = namespaces.run_in(fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                with sock, namespaces.socket_in(fd, sockdiag.NETLINK_SOCK_DIAG) as diag:
                    sock.connect((vip(0, V4), 80))
                    found += [item.peer[3] - 1 for item in sockdiag.connected(diag, UDP)]
            finally:
                os.close(fd)
        return found

    try:
        for name in names:
            namespaces.create(name)
            made.append(name)
            subprocess.run(
                [*namespaces.exec_prefix(name), "ip", "-batch", "-"],
                input=b"link set lo up\nroute add default dev lo\n",
                check=True,
            )
            driver(rig.plane).namespaces.add(namespaces.path(name))
        rig.apply(frontend(0, V4, range(5), protocol=UDP, scheduler="mh"))
        before = choices()
        rig.apply(frontend(0, V4, [0, 1, 3, 4], protocol=UDP, scheduler="mh"))
        after = choices()
        rig.apply(frontend(0, V4, range(70), protocol=UDP, scheduler="mh"))
        among_many = choices()
        cookies = [bpf_places.cookie_of(namespaces.path(name)) for name in names]
    finally:
        for name in made:
            namespaces.delete(name)
    moved = sum(was != now for was, now in zip(before, after, strict=True))
    print(f"clients per endpoint: {sorted(collections.Counter(before).items())}, moved: {moved} of {clients}")
    assert len(before) == clients
    assert set(before) == set(range(5))
    assert 2 not in after
    assert moved <= 2 * clients // 5
    for count, found in ((5, before), (70, among_many)):
        everybody = [layout.pack_target(target(number, V4)) for number in range(count)]
        table = maglev.table(everybody, layout.MAGLEV_SIZES[maglev.size_class(count)])
        assert found == [table[_mix(cookie) % len(table)] for cookie in cookies]


def _mix(value: int) -> int:
    """The hash of sock.c (the finalizer of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        value ^= value >> 33
        value = value * factor % 2**64
    return (value ^ value >> 33) & 0xFFFFFFFF


def test_the_agent_starts_without_a_compiler_when_the_build_is_on_disk(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_build, "missing", lambda cache: "no bcc")
    assert ebpf.missing(rig.places) == ""
    rig.plane.driver.remove()
    rig.plane.driver.close()
    rig.plane = rig.open()
    rig.apply(frontend(0, V4, [1]))
    assert rig.ask_tcp(vip(0, V4)) == 1


def test_without_bcc_and_build_one_sentence_says_so(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_build.importlib.util, "find_spec", lambda name: None)
    places = rig.places._replace(cache=str(tmp_path))
    assert ebpf.missing(places) == "the Python package bcc is not installed (Debian: python3-bpfcc)"


def test_links_name_the_programs_that_run(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [1]))
    links = bpf_object.attached_programs(driver(rig.plane).folder)
    assert {name: [number] for name, number in links.items()} == attached(rig)


def test_a_socket_of_an_endpoint_reaches_itself_through_its_service(rig: Rig) -> None:
    rig.apply(frontend(0, V4, [0]))
    driver(rig.plane).namespaces.add(namespaces.path(rig.names["servers"]))
    assert target(0, V4).address
    with rig.socket(socket.AF_INET, socket.SOCK_STREAM, "servers") as sock:
        sock.bind((server_address(0, V4), 0))
        sock.connect((vip(0, V4), 80))
        assert sock.recv(1) == b"\0"


def test_the_netlink_socket_of_the_diagnosis_lists_the_translated_address(rig: Rig) -> None:
    rig.apply(frontend(0, V6, [1], protocol=UDP))
    with rig.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.connect((vip(0, V6), 80))
        with rig.within("client", lambda: NetlinkSocket(sockdiag.NETLINK_SOCK_DIAG)) as diag:
            peers = [(item.peer, item.port) for item in sockdiag.connected(diag, UDP)]
    assert peers == [target(1, V6)[:2]]
