"""The endpoint store: what is put is there after a restart, whatever interrupted the writing."""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_interface
from pathlib import Path

import msgspec
import pytest

from pycni.ipam.endpoints import PAGE_BYTES, EndpointStore
from pycni.model.endpoint import Endpoint, Owner


def endpoint(container: str = "abc", **fields: object) -> Endpoint:
    base = {
        "network": "cbr0",
        "container_id": container,
        "ifname": "eth0",
        "state": "ready",
        "netns": "/var/run/netns/cni-1",
        "netns_inode": 4026532177,
        "boot_id": "b" * 36,
        "host_ifname": "veth12345678",
        "mac": "0a:58:0a:01:02:03",
        "addresses": (ip_interface("10.1.2.3/24"), ip_interface("fd00:1::3/64")),
        "pod_namespace": "default",
        "pod_name": "web-0",
        "pod_uid": "u-1",
        "data_dir": "/var/lib/cni/networks",
        "created": 1763696000.25,
        "conf": b'{"cniVersion":"1.1.0","name":"cbr0"}\xff',
    }
    return Endpoint(**(base | fields))  # type: ignore[arg-type]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], EndpointStore]]:
    """Opens stores on one folder; each call is a restart."""
    stores: list[EndpointStore] = []

    def open_store() -> EndpointStore:
        stores.append(EndpointStore(str(tmp_path)))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def names(tmp_path: Path) -> list[str]:
    return sorted(entry.name for entry in (tmp_path / "endpoints").iterdir())


SEQUENCES = [
    pytest.param([endpoint()], id="once"),
    pytest.param([endpoint(state="pending", addresses=()), endpoint()], id="pending, then with addresses"),
    pytest.param([endpoint(), endpoint(state="dying", conf=b"", addresses=())], id="shrinking"),
    pytest.param([endpoint(conf=b"x" * 10), endpoint(conf=b"y" * 1500)], id="outgrowing its file"),
    pytest.param([endpoint(), endpoint(conf=b"y" * 2 * PAGE_BYTES)], id="outgrowing a page"),
    pytest.param(
        [endpoint(conf=b"y" * 2 * PAGE_BYTES), endpoint(conf=b"z" * 2 * PAGE_BYTES)], id="large both times"
    ),
    pytest.param([endpoint(conf=b"y" * 2 * PAGE_BYTES), endpoint()], id="shrinking into a page"),
]


@pytest.mark.parametrize("puts", SEQUENCES)
def test_the_last_put_is_what_a_restart_finds(
    opened: Callable[[], EndpointStore], tmp_path: Path, puts: list[Endpoint]
) -> None:
    store = opened()
    for one in puts:
        store.put(one)
        assert store.get(one.owner) == one
    again = opened()
    assert again.all() == (puts[-1],)
    assert len(names(tmp_path)) == 1
    again.put(endpoint(pod_name="after"))
    assert opened().all() == (endpoint(pod_name="after"),)


def test_files_are_private_and_one_per_endpoint(opened: Callable[[], EndpointStore], tmp_path: Path) -> None:
    store = opened()
    store.put(endpoint())
    store.put(endpoint(ifname="net1", addresses=()))
    assert stat.S_IMODE((tmp_path / "endpoints").stat().st_mode) == 0o700
    for name in names(tmp_path):
        assert stat.S_IMODE((tmp_path / "endpoints" / name).stat().st_mode) == 0o600
        assert name.startswith("cbr0-abc-")
    assert len(names(tmp_path)) == 2


TRICKY = [
    Owner("a-b", "c", "eth0"),
    Owner("a", "b-c", "eth0"),
    Owner("n" * 200, "c" * 300, "eth0"),
    Owner("n" * 200, "c" * 299 + "d", "eth0"),
    Owner("net", "../../etc/passwd", "eth0"),
    Owner("net", "c", "ü🙂%$'\""),
    Owner("net", "c", "ü🙂%$'`"),
    Owner(".hidden", "c", "eth0"),
]


def test_every_owner_has_a_file_of_its_own_with_a_harmless_name(
    opened: Callable[[], EndpointStore], tmp_path: Path
) -> None:
    store = opened()
    for network, container, ifname in TRICKY:
        store.put(endpoint(container, network=network, ifname=ifname, addresses=()))
    assert {one.owner for one in opened().all()} == set(TRICKY)
    assert len(names(tmp_path)) == len(TRICKY)
    for name in names(tmp_path):
        assert len(name) < 250
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
        assert name[0] != "."


def test_remove_forgets_and_forgives(opened: Callable[[], EndpointStore], tmp_path: Path) -> None:
    store = opened()
    store.put(endpoint())
    assert store.remove(endpoint().owner) == endpoint()
    assert store.remove(endpoint().owner) is None
    assert store.get(endpoint().owner) is None
    assert names(tmp_path) == []
    assert opened().all() == ()


def test_a_file_somebody_removed_is_written_anew(opened: Callable[[], EndpointStore], tmp_path: Path) -> None:
    store = opened()
    store.put(endpoint())
    for name in names(tmp_path):
        (tmp_path / "endpoints" / name).unlink()
    store.put(endpoint(state="dying"))
    assert opened().all() == (endpoint(state="dying"),)
    for name in names(tmp_path):
        (tmp_path / "endpoints" / name).unlink()
    assert store.remove(endpoint().owner) is not None


def test_addresses_lead_to_their_holder_until_it_gives_them_up(opened: Callable[[], EndpointStore]) -> None:
    store = opened()
    store.put(endpoint())
    address, other = ip_address("10.1.2.3"), Owner("cbr0", "other", "eth0")
    assert store.holder("cbr0", address) == endpoint().owner
    assert store.holder("elsewhere", address) is None
    assert store.in_use(other, address)
    assert not store.in_use(endpoint().owner, address)
    assert opened().holder("cbr0", address) == endpoint().owner
    store.put(endpoint(addresses=(ip_interface("10.1.2.4/24"),)))
    assert store.holder("cbr0", address) is None
    store.put(endpoint("other", addresses=(ip_interface("10.1.2.4/24"),)))
    store.remove(endpoint().owner)
    assert store.holder("cbr0", ip_address("10.1.2.4")) == other, "the later owner keeps it"


BAD = [
    pytest.param(b"", "it is empty", id="empty"),
    pytest.param(b"\0" * 512, "it is empty", id="zeros"),
    pytest.param(b'{"version":1,"network":"cbr0"', "truncated", id="torn"),
    pytest.param(b"[]", "Expected `object`", id="not an object"),
    pytest.param(b'{"version":2}', "version", id="of a later version"),
    pytest.param(
        b'{"network":"n","container_id":"c","ifname":"e","state":"ready","addresses":["10.1.2/8"]}',
        "10.1.2/8",
        id="bad address",
    ),
    pytest.param(
        b'{"network":"n","container_id":"c","ifname":"e","state":"ready"}',
        "it is the record of",
        id="another's",
    ),
]


@pytest.mark.parametrize(("content", "reason"), BAD)
def test_a_bad_file_is_put_aside_and_named(
    opened: Callable[[], EndpointStore],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
    reason: str,
) -> None:
    store = opened()
    store.put(endpoint())
    store.put(endpoint("good", addresses=()))
    bad = next(name for name in names(tmp_path) if "-abc-" in name)
    (tmp_path / "endpoints" / bad).write_bytes(content)
    with caplog.at_level(logging.ERROR):
        again = opened()
    assert [one.container_id for one in again.all()] == ["good"]
    assert again.quarantined == 1
    assert reason in caplog.text
    assert bad in caplog.text
    assert f"{bad}.bad" in names(tmp_path)
    assert opened().quarantined == 0


@pytest.mark.parametrize("suffix", [".json", ".next"])
@pytest.mark.parametrize("kind", ["folder", "link", "fifo"])
def test_what_is_no_file_stops_no_start(
    tmp_path: Path, opened: Callable[[], EndpointStore], kind: str, suffix: str
) -> None:
    store = opened()
    store.put(endpoint())
    path = tmp_path / "endpoints" / f"x{suffix}"
    make = {
        "folder": path.mkdir,
        "link": lambda: path.symlink_to("/dev/zero"),
        "fifo": lambda: os.mkfifo(path),
    }
    make[kind]()
    assert opened().all() == store.all()
    assert not path.is_symlink()
    assert not path.exists()


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("first", [endpoint(conf=b"old"), endpoint(conf=b"o" * 2 * PAGE_BYTES), None])
@pytest.mark.parametrize("second", [endpoint(conf=b"new"), endpoint(conf=b"n" * 2 * PAGE_BYTES)])
def test_a_put_killed_at_any_system_call_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Endpoint | None, second: Endpoint
) -> None:
    steps = 0
    while True:
        folder = tmp_path / str(steps)
        store = EndpointStore(str(folder))
        if first is not None:
            store.put(first)
        left = steps

        def counted(name: str, real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal left
                if left == 0:
                    if name == "pwrite":  # the kernel heeds signals between pages
                        fd, content, offset = args
                        real(fd, content[: len(content) // PAGE_BYTES * PAGE_BYTES], offset)  # type: ignore[index,arg-type]
                    raise Killed(name)
                left -= 1
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("open", "pwrite", "unlink", "rename"):
                patch.setattr(os, name, counted(name, getattr(os, name)))
            try:
                store.put(second)
            except Killed:
                finished = False
            else:
                finished = True
        store.close()
        again = EndpointStore(str(folder))
        found = again.get(second.owner)
        assert found in ((second,) if finished else (first, second))
        assert again.quarantined == 0
        again.put(second)
        again.close()
        if finished:
            assert steps >= 2
            return
        steps += 1


def test_a_record_whose_writing_was_cut_short_is_dropped(
    opened: Callable[[], EndpointStore], tmp_path: Path
) -> None:
    store = opened()
    store.put(endpoint())
    name = names(tmp_path)[0]
    (tmp_path / "endpoints" / name.replace(".json", ".next")).write_bytes(b'{"version":1,')
    (tmp_path / "endpoints" / "other-123.next").write_bytes(b"")
    assert opened().all() == (endpoint(),)
    assert names(tmp_path) == [name]


def test_followers_hear_of_every_change_in_order(opened: Callable[[], EndpointStore]) -> None:
    store, heard = opened(), list[tuple[Endpoint | None, Endpoint | None]]()
    store.put(endpoint(state="pending"))
    stop = store.subscribe(lambda before, after: heard.append((before, after)), replay=True)
    store.put(endpoint())
    store.put(endpoint())
    store.remove(endpoint().owner)
    stop()
    stop()
    store.put(endpoint())
    pending = endpoint(state="pending")
    assert heard == [(None, pending), (pending, endpoint()), (endpoint(), None)]


def test_a_failing_follower_is_logged_and_harms_nobody(
    opened: Callable[[], EndpointStore], caplog: pytest.LogCaptureFixture
) -> None:
    store, heard = opened(), list[Endpoint | None]()

    def fail(_before: Endpoint | None, _after: Endpoint | None) -> None:
        raise ValueError("of no use")

    store.subscribe(fail)
    store.subscribe(lambda _before, after: heard.append(after))
    store.put(endpoint())
    assert heard == [endpoint()]
    assert "of no use" in caplog.text
    assert "container_id='abc'" in caplog.text


def test_many_threads_put_and_remove(opened: Callable[[], EndpointStore]) -> None:
    store, barrier = opened(), threading.Barrier(8)

    def work(number: int) -> None:
        barrier.wait(10)
        for turn in range(25):
            one = endpoint(f"{number}.{turn}", addresses=())
            store.put(msgspec.structs.replace(one, state="pending"))
            store.put(one)
            if turn % 2:
                store.remove(one.owner)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    expected = {f"{number}.{turn}" for number in range(8) for turn in range(0, 25, 2)}
    assert {one.container_id for one in store.all()} == expected
    again = opened()
    assert {one.container_id for one in again.all()} == expected
    assert {one.state for one in again.all()} == {"ready"}
