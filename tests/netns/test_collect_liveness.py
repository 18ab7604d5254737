"""What the agent sees of real namespaces: by path, by process, by mount; and what runtimes recorded."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from pycni.agent import liveness
from pycni.agent.liveness import Observer
from pycni.ipam.collect import Held, Verdict, judge_endpoint, judge_reservation
from pycni.kernel import netns
from pycni.model.endpoint import Endpoint, Owner

ADDRESSES = ("198.18.77.5/24", "fd00:77::5/64")


@pytest.fixture
def make() -> Iterator[Callable[[], str]]:
    """Makes named namespaces, each with ADDRESSES on its loopback; returns the path."""
    names: list[str] = []

    def make_one() -> str:
        name = f"pyt{os.getpid()}-{len(names)}"
        path = netns.create(name)
        names.append(name)
        for address in ADDRESSES:
            _run(path, "ip", "address", "add", address, "dev", "lo")
        _run(path, "ip", "link", "set", "lo", "up")
        return path

    yield make_one
    for name in names:
        netns.delete(name)


def _run(path: str, *command: str) -> None:
    subprocess.run(["nsenter", f"--net={path}", "--", *command], check=True, timeout=10)


@pytest.fixture
def resident() -> Iterator[Callable[[str], int]]:
    """Keeps a process in a namespace; returns its id."""
    started: list[subprocess.Popen[bytes]] = []

    def start(path: str) -> int:
        process = subprocess.Popen(["nsenter", f"--net={path}", "--", "cat"], stdin=subprocess.PIPE)
        started.append(process)
        wanted = os.stat(path).st_ino
        for _ in range(500):
            if os.stat(f"/proc/{process.pid}/ns/net").st_ino == wanted:
                return process.pid
            threading.Event().wait(0.01)
        raise AssertionError("the process never got there")

    yield start
    for process in started:
        process.communicate(b"", timeout=10)


def endpoint(path: str, **fields: object) -> Endpoint:
    base = {
        "network": "net",
        "container_id": "abc",
        "ifname": "eth0",
        "state": "ready",
        "netns": path,
        "netns_inode": os.stat(path).st_ino,
        "boot_id": liveness.boot_id(),
        "host_ifname": "pytgone0",
        "addresses": tuple(map(ip_interface, ADDRESSES)),
    }
    return Endpoint(**(base | fields))  # type: ignore[arg-type]


def held(container: str = "abc", address: str = "198.18.77.5") -> Held:
    return Held("/data", ip_address(address), Owner("net", container, "eth0"))


def test_a_living_pod_is_recognised_by_its_path_without_looking_around(make: Callable[[], str]) -> None:
    one = endpoint(make())
    view = Observer(()).view([], [one])
    assert view.paths == {one.netns: one.netns_inode}
    assert (view.complete, view.inodes) == (False, frozenset())
    assert judge_endpoint(one, view).verdict is Verdict.ALIVE


def test_a_removed_namespace_is_gone(make: Callable[[], str]) -> None:
    one = endpoint(make())
    netns.delete(os.path.basename(one.netns))
    view = Observer(()).view([], [one])
    assert view.complete
    judged = judge_endpoint(one, view)
    assert judged.verdict is Verdict.GONE, judged.why


def test_a_plain_file_left_at_the_path_is_no_namespace(make: Callable[[], str], tmp_path: Path) -> None:
    path = tmp_path / "cni-1"
    path.touch()
    assert liveness.namespaces_at([str(path), "", "relative", "/nowhere", make()]).keys() == {
        f"/run/netns/pyt{os.getpid()}-0"
    }


def test_a_pod_whose_path_vanished_is_found_through_its_process(
    make: Callable[[], str], resident: Callable[[str], int]
) -> None:
    one = endpoint(make())
    resident(one.netns)
    netns.delete(os.path.basename(one.netns))
    view = Observer(()).view([], [one])
    assert one.netns_inode in view.inodes
    judged = judge_endpoint(one, view)
    assert judged.verdict is Verdict.ALIVE, judged.why


def test_the_next_namespace_may_have_the_same_number_and_is_told_apart(make: Callable[[], str]) -> None:
    other = make()
    one = endpoint("/proc/self/ns/net", netns="/run/netns/pyt-was", netns_inode=os.stat(other).st_ino)
    again = Observer(()).view([], [one], deep=True)
    assert judge_endpoint(one, again).verdict is Verdict.ALIVE, "a namespace with its number and its address"
    stranger = endpoint(other, netns="/run/netns/pyt-was", addresses=(ip_interface("198.18.99.1/24"),))
    judged = judge_endpoint(stranger, again)
    assert judged.verdict is Verdict.GONE
    assert "another namespace now" in judged.why


@pytest.mark.parametrize("occupied", [True, False], ids=["with a process", "only mounted"])
def test_addresses_in_every_namespace_are_seen(
    make: Callable[[], str], resident: Callable[[str], int], occupied: bool
) -> None:
    path = make()
    if occupied:
        resident(path)
    before = os.stat("/proc/thread-self/ns/net").st_ino
    view = Observer(()).view([], [], deep=True)
    assert {ip_address(text.split("/")[0]) for text in ADDRESSES} <= view.addresses
    assert os.stat(path).st_ino in view.inodes
    assert view.complete
    assert os.stat("/proc/thread-self/ns/net").st_ino == before, "the looking thread is home again"


def test_only_the_hosts_own_links_count(make: Callable[[], str]) -> None:
    path = make()
    _run(path, "ip", "link", "add", "pytv0", "type", "veth", "peer", "name", "pytv1")
    assert "pytv0" not in Observer(()).view([], []).links
    fd = netns.open_netns(path)
    try:
        inside = netns.run_in(fd, lambda: Observer(()).view([], []))
    finally:
        os.close(fd)
    assert {"lo", "pytv0", "pytv1"} <= inside.links


def _cache(folder: Path, container: str, **fields: Any) -> Path:
    record = {
        "kind": "cniCacheV1",
        "containerId": container,
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "net",
        "result": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": "cni0", "mac": "x"},
                {"name": "vethpyt9", "mac": "x"},
                {"name": "eth0", "mac": "x", "sandbox": "/run/netns/y"},
            ],
            "ips": [{"address": "198.18.77.5/24", "interface": 2}],
        },
    }
    file = folder / f"net-{container}-eth0"
    file.write_text(json.dumps(record | fields))
    return file


def test_records_of_runtimes_are_read(make: Callable[[], str], tmp_path: Path) -> None:
    path = make()
    _cache(tmp_path, "abc", netns=path)
    _cache(tmp_path, "gone", netns="/run/netns/pyt-gone")
    (tmp_path / "other-x-eth0").write_text("not ours, not read")
    view = Observer([str(tmp_path / "missing"), str(tmp_path)]).view(
        [held(), held("gone", "198.18.88.1")], []
    )
    assert view.cache_readable
    record = view.cached[Owner("net", "abc", "eth0")]
    assert (record.netns, record.host_links, record.addresses) == (
        path,
        ("vethpyt9",),
        (ip_address("198.18.77.5"),),
    )
    assert judge_reservation(held(), view).verdict is Verdict.ALIVE
    assert judge_reservation(held("gone", "198.18.88.1"), view).verdict is Verdict.GONE
    assert len(view.cached) == 2


@pytest.mark.parametrize(
    ("content", "addresses"),
    [
        pytest.param(b"", (), id="empty"),
        pytest.param(b'{"kind":"cniCacheV1","cont', (), id="torn"),
        pytest.param(
            b'{"cniVersion":"0.3.1","ips":[{"address":"198.18.88.2/24"}]}', (), id="bare result of old libcni"
        ),
        pytest.param(b'{"containerId":5}', (), id="wrong type"),
    ],
)
def test_a_record_that_says_nothing_still_says_that_del_has_not_succeeded(
    tmp_path: Path, content: bytes, addresses: tuple[str, ...]
) -> None:
    (tmp_path / "net-abc-eth0").write_bytes(content)
    view = Observer([str(tmp_path)]).view([held(address="198.18.88.2")], [])
    assert judge_reservation(held(address="198.18.88.2"), view).verdict is Verdict.UNKNOWN
    assert view.cached[Owner("net", "abc", "eth0")].addresses == addresses


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        pytest.param(
            {"ip4": {"ip": "10.1.2.3/24"}, "ip6": {"ip": "fd00::3/64"}}, ("10.1.2.3", "fd00::3"), id="0.2.0"
        ),
        pytest.param({"ips": [{"version": "4", "address": "10.1.2.3/24"}]}, ("10.1.2.3",), id="0.4.0"),
        pytest.param({"ips": [{"address": "nonsense"}, 5, None]}, (), id="nonsense"),
        pytest.param({"ips": "nonsense", "interfaces": {}}, (), id="wrong types"),
    ],
)
def test_addresses_are_read_from_results_of_every_version(
    tmp_path: Path, result: dict[str, Any], expected: tuple[str, ...]
) -> None:
    _cache(tmp_path, "abc", netns="/x", result=result)
    view = Observer([str(tmp_path)]).view([held("other")], [])
    assert tuple(map(str, view.cached[Owner("net", "abc", "eth0")].addresses)) == expected


def test_without_a_folder_of_records_nothing_can_be_proven(tmp_path: Path) -> None:
    view = Observer([str(tmp_path / "missing")]).view([held(address="198.18.88.3")], [])
    judged = judge_reservation(held(address="198.18.88.3"), view)
    assert (judged.verdict, view.complete) == (Verdict.UNKNOWN, True), judged.why


def test_a_view_from_an_own_pid_namespace_is_not_called_complete(
    make: Callable[[], str], tmp_path: Path
) -> None:
    """As in a container without hostPID: pods' processes are hidden, so nothing may be concluded from them."""
    make()
    script = tmp_path / "look.py"
    script.write_text(
        "from pycni.agent.liveness import Observer\n"
        "view = Observer(()).view([], [], deep=True)\n"
        "print(view.complete, len(view.inodes))\n"
    )
    root = Path(liveness.__file__).parents[2]
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", os.sys.executable, str(script)],  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert done.stdout.split()[0] == "False", done.stderr


def test_fib_trie_yields_local_addresses_only() -> None:
    trie = (
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.9.0.0\n        /24 link UNICAST\n     |-- 10.9.0.7\n"
        "        /32 link UNICAST\n        /32 host LOCAL\n     |-- 10.9.0.8\n        /32 link UNICAST\n"
        "     |-- 10.9.0.9\n        /32 host LOCAL\n     |-- 10.9.0.255\n        /32 link BROADCAST\n"
    )
    assert liveness._LOCAL.findall(trie) == ["10.9.0.7", "10.9.0.9"]
