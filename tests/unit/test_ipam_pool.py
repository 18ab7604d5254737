"""A network's pool on a real directory: idempotence, atomicity, torn files, foreign changes, many threads."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from pycni.errors import ConfigError, IpamError
from pycni.ipam.allocate import SetStatus
from pycni.ipam.pool import Ipam, Pools, Reservation
from pycni.model.cni import AddressRange
from pycni.model.endpoint import Owner
from pycni.model.family import Address


def ranges(*subnets: str) -> tuple[tuple[AddressRange, ...], ...]:
    """One set with one range per subnet, gateway first."""
    nets = [ip_network(subnet) for subnet in subnets]
    return tuple((AddressRange(subnet=net, start=net[1], end=net[-1], gateway=net[1]),) for net in nets)


SMALL = ranges("10.1.2.0/29")
DUAL = ranges("10.1.2.0/29", "fd00:1::/64")


def owner(name: str, ifname: str = "eth0") -> Owner:
    return Owner("net", name, ifname)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Ipam]:
    made = Ipam(str(tmp_path), "net", lock_timeout_s=0.3)
    yield made
    made.close()


def got(
    pool: Ipam, who: Owner, sets: tuple[tuple[AddressRange, ...], ...] = SMALL, *requested: str
) -> list[str]:
    return [str(made.address) for made in pool.reserve(who, sets, [ip_address(text) for text in requested])]


def files(tmp_path: Path) -> dict[str, bytes]:
    folder = tmp_path / "net"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name != "lock"}


def reserved(tmp_path: Path) -> set[str]:
    return {name for name in files(tmp_path) if not name.startswith("last")}


def test_files_are_host_locals(pool: Ipam, tmp_path: Path) -> None:
    assert got(pool, owner("abc"), DUAL) == ["10.1.2.2/29", "fd00:1::2/64"]
    assert files(tmp_path) == {
        "10.1.2.2": b"abc\r\neth0",
        "fd00:1::2": b"abc\r\neth0",
        "last_reserved_ip.0": b"10.1.2.2",
        "last_reserved_ip.1": b"fd00:1::2",
    }


def test_the_same_owner_gets_the_same_again_and_another_interface_another(pool: Ipam) -> None:
    first = got(pool, owner("abc"), DUAL)
    assert got(pool, owner("abc"), DUAL) == first
    assert got(pool, owner("abc", "eth1"), DUAL) == ["10.1.2.3/29", "fd00:1::3/64"]
    assert pool.owners() == {
        owner("abc"): (ip_address("10.1.2.2"), ip_address("fd00:1::2")),
        owner("abc", "eth1"): (ip_address("10.1.2.3"), ip_address("fd00:1::3")),
    }


def test_an_owner_of_one_set_is_given_the_other_too(pool: Ipam) -> None:
    got(pool, owner("abc"), SMALL)
    assert got(pool, owner("abc"), DUAL) == ["10.1.2.2/29", "fd00:1::2/64"]


def test_release_frees_everything_once_and_forgives(pool: Ipam, tmp_path: Path) -> None:
    assert pool.release(owner("abc")) == ()
    assert not (tmp_path / "net").exists(), "a release must not make a directory"
    got(pool, owner("abc"), DUAL)
    assert set(map(str, pool.release(owner("abc")))) == {"10.1.2.2", "fd00:1::2"}
    assert pool.release(owner("abc")) == ()
    assert reserved(tmp_path) == set()


def test_a_released_address_is_not_the_next_one_also_after_a_restart(pool: Ipam, tmp_path: Path) -> None:
    got(pool, owner("a"))
    pool.release(owner("a"))
    assert got(pool, owner("b")) == ["10.1.2.3/29"]
    pool.release(owner("b"))
    again = Ipam(str(tmp_path), "net")
    assert got(again, owner("c")) == ["10.1.2.4/29"]
    again.close()


def test_the_last_address_shrinks_in_its_file(pool: Ipam, tmp_path: Path) -> None:
    got(pool, owner("a"), ranges("10.100.200.0/24"))
    got(pool, owner("b"), ranges("10.1.2.0/24"))
    assert files(tmp_path)["last_reserved_ip.0"] == b"10.1.2.2"


def test_exhaustion_is_clear_and_leaves_the_other_set_alone(pool: Ipam, tmp_path: Path) -> None:
    full = ranges("fd00:1::/64", "10.1.2.0/30")
    got(pool, owner("a"), full)
    before = files(tmp_path)
    with pytest.raises(IpamError, match=r"'net': no free address in range set 1 .*: 1 of 1 in use") as caught:
        got(pool, owner("b"), full)
    assert caught.value.exhausted
    after = files(tmp_path)
    after["last_reserved_ip.0"] = before["last_reserved_ip.0"]
    assert after == before, "what was taken from set 0 is given back"
    assert owner("b") not in pool.owners()


def test_status_counts_free_and_used(pool: Ipam) -> None:
    assert pool.status(DUAL) == (SetStatus(5, 0), SetStatus(2**64 - 2, 0))
    got(pool, owner("a"), DUAL)
    assert pool.status(DUAL) == (SetStatus(4, 1), SetStatus(2**64 - 3, 1))


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        pytest.param("10.1.2.2", "10.1.2.2 is in use by container a interface eth0", id="taken"),
        pytest.param("10.1.2.1", "may not be handed out", id="gateway"),
        pytest.param("10.9.9.9", "fits no range set", id="outside"),
    ],
)
def test_requests_that_cannot_be_had(pool: Ipam, requested: str, message: str) -> None:
    got(pool, owner("a"))
    with pytest.raises(IpamError, match=message) as caught:
        got(pool, owner("b"), SMALL, requested)
    assert not caught.value.exhausted
    assert list(pool.owners()) == [owner("a")]


def test_a_requested_address_is_had_and_had_again(pool: Ipam) -> None:
    assert got(pool, owner("a"), SMALL, "10.1.2.5") == ["10.1.2.5/29"]
    assert got(pool, owner("a"), SMALL, "10.1.2.5") == ["10.1.2.5/29"]
    with pytest.raises(
        IpamError, match=r"10\.1\.2\.6 cannot be had: container a interface eth0 holds 10\.1\.2\.5"
    ):
        got(pool, owner("a"), SMALL, "10.1.2.6")


def test_no_ranges_is_an_error(pool: Ipam) -> None:
    with pytest.raises(IpamError, match="no address range is configured"):
        pool.reserve(owner("a"), ())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b"])
def test_a_network_name_cannot_leave_the_data_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must be usable as a file name"):
        Ipam(str(tmp_path), name)


def test_addresses_endpoints_have_are_not_handed_out_again(tmp_path: Path) -> None:
    """An operator removed the file of a running pod."""
    taken = {ip_address("10.1.2.2"): owner("running")}

    def in_use(who: Owner, address: Address) -> bool:
        return taken.get(address, who) != who

    pool = Pools(str(tmp_path), in_use=in_use)("", "net")
    assert got(pool, owner("new")) == ["10.1.2.3/29"]
    with pytest.raises(IpamError, match=r"10\.1\.2\.2 is in use by a running pod"):
        got(pool, owner("other"), SMALL, "10.1.2.2")
    assert got(pool, owner("running"), SMALL, "10.1.2.2") == ["10.1.2.2/29"]
    pool.close()


def _write(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "net").mkdir(exist_ok=True)
    (tmp_path / "net" / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content", "who"),
    [
        pytest.param("10.1.2.2", b"abc\r\neth0", owner("abc"), id="as written"),
        pytest.param("10.1.2.2", b" abc\r\neth0 \n", owner("abc"), id="blanks around"),
        pytest.param("10.1.2.2", b"abc", owner("abc", ""), id="old: no interface"),
        pytest.param("10.1.2.2", b"", owner("", ""), id="empty"),
        pytest.param("10.1.2.2", b"\0\0\0\0", owner("", ""), id="zeros after a power loss"),
        pytest.param("fd00:0001::AB", b"abc\r\neth0", owner("abc"), id="v6 spelled unusually"),
        pytest.param("10.1.2.2", b"\xff\xfe", owner("��", ""), id="not text"),
    ],
)
def test_every_file_named_as_an_address_is_honoured_and_can_be_removed(
    pool: Ipam, tmp_path: Path, name: str, content: bytes, who: Owner
) -> None:
    _write(tmp_path, name, content)
    address = ip_address(name)
    assert pool.holder(address) == who
    assert pool.reservations() == (Reservation(address, who),)
    with pytest.raises(IpamError, match="in use by"):
        pool.reserve(owner("x"), ranges("10.1.2.0/24", "fd00:1::/64"), [address])
    assert pool.discard(Reservation(address, who))
    assert reserved(tmp_path) == set()


@pytest.mark.parametrize(
    "name", ["lock", "last_reserved_ip.0", "last_reserved_ip.x", "README", "10.1.2", "fe80::1%1"]
)
def test_other_files_reserve_nothing(pool: Ipam, tmp_path: Path, name: str) -> None:
    _write(tmp_path, name, b"abc\r\neth0")
    assert pool.owners() == {}


def test_what_is_no_plain_file_counts_as_taken(pool: Ipam, tmp_path: Path) -> None:
    (tmp_path / "net" / "10.1.2.2").mkdir(parents=True)
    (tmp_path / "net" / "10.1.2.3").symlink_to("/etc/passwd")
    os.mkfifo(tmp_path / "net" / "10.1.2.4")
    assert got(pool, owner("a")) == ["10.1.2.5/29"]


def test_an_old_file_without_interface_is_released_for_any(pool: Ipam, tmp_path: Path) -> None:
    _write(tmp_path, "10.1.2.2", b"abc")
    assert pool.release(owner("abc")) == (ip_address("10.1.2.2"),)


def test_an_old_file_stays_when_the_interface_has_its_own(pool: Ipam, tmp_path: Path) -> None:
    _write(tmp_path, "10.1.2.2", b"abc")
    _write(tmp_path, "10.1.2.3", b"abc\r\neth0")
    assert pool.release(owner("abc")) == (ip_address("10.1.2.3"),)


def test_torn_files_belong_to_nobody(pool: Ipam, tmp_path: Path) -> None:
    _write(tmp_path, "10.1.2.2", b"")
    assert pool.release(owner("")) == ()
    assert pool.release(owner("abc")) == ()
    assert "10.1.2.2" in files(tmp_path)


def test_a_file_removed_by_hand_frees_its_address_at_once(pool: Ipam, tmp_path: Path) -> None:
    got(pool, owner("a"), SMALL, "10.1.2.4")
    (tmp_path / "net" / "10.1.2.4").unlink()
    assert pool.status(SMALL) == (SetStatus(5, 0),)
    assert got(pool, owner("b"), SMALL, "10.1.2.4") == ["10.1.2.4/29"]


def test_a_change_in_the_same_clock_tick_as_ours_is_noticed(pool: Ipam, tmp_path: Path) -> None:
    for _ in range(50):
        got(pool, owner("a"))
        held = pool.addresses(owner("a"))[0]
        (tmp_path / "net" / str(held)).write_bytes(b"")
        (tmp_path / "net" / str(held)).unlink()
        assert pool.owners() == {}


def test_a_file_made_without_the_lock_is_never_overwritten(
    pool: Ipam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got(pool, owner("a"))
    real = pool._journal.create

    def create(address: Address, entry: object) -> bool:
        monkeypatch.undo()
        _write(tmp_path, str(address), b"stranger\r\neth0")
        return real(address, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(pool._journal, "create", create)
    assert got(pool, owner("b")) == ["10.1.2.4/29"]
    assert pool.holder(ip_address("10.1.2.3")) == owner("stranger")


def test_the_directory_may_be_removed_and_the_lock_file_too(pool: Ipam, tmp_path: Path) -> None:
    got(pool, owner("a"))
    (tmp_path / "net" / "lock").unlink()
    assert got(pool, owner("b")) == ["10.1.2.3/29"]
    assert (tmp_path / "net" / "lock").exists()
    (tmp_path / "net").rename(tmp_path / "old")
    assert pool.owners() == {}
    assert pool.status(SMALL) == (SetStatus(5, 0),)
    assert got(pool, owner("a")) == ["10.1.2.2/29"]


def test_a_failing_write_leaves_nothing_reserved(
    pool: Ipam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got(pool, owner("a"), DUAL)
    real_write, calls = os.write, []

    def write(fd: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(IpamError, match=r"cannot create .*/net/fd00:1::3: No space left on device"):
        got(pool, owner("b"), DUAL)
    monkeypatch.undo()
    assert reserved(tmp_path) == {"10.1.2.2", "fd00:1::2"}
    assert pool.owners().keys() == {owner("a")}


def _fail(*_: object, **__: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_failure_after_the_file_was_made_takes_it_back(
    pool: Ipam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got(pool, owner("a"))
    monkeypatch.setattr(os, "pwrite", _fail)
    with pytest.raises(IpamError, match=r"cannot write .*/net/last_reserved_ip\.0: Input/output error"):
        got(pool, owner("b"))
    assert reserved(tmp_path) == {"10.1.2.2"}
    assert pool.owners().keys() == {owner("a")}


def test_a_filesystem_that_keeps_no_exact_times_is_read_every_time(
    pool: Ipam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "utime", _fail)
    assert got(pool, owner("a")) == ["10.1.2.2/29"]
    (tmp_path / "net" / "10.1.2.2").unlink()
    assert pool.owners() == {}


def test_a_lock_held_elsewhere_is_an_error_in_time_and_does_not_stop_status(
    pool: Ipam, tmp_path: Path
) -> None:
    got(pool, owner("a"))
    with (tmp_path / "net" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pool.status(SMALL) == (SetStatus(4, 1),)
        (tmp_path / "net" / "10.1.2.2").unlink()
        assert pool.status(SMALL) == (SetStatus(4, 1),), "as known: the change cannot be read now"
        with pytest.raises(IpamError, match=r"net/lock: held by another process for more than 0\.3 s"):
            got(pool, owner("b"))
    assert pool.status(SMALL) == (SetStatus(5, 0),)


def test_status_waits_for_no_other_thread(pool: Ipam, tmp_path: Path) -> None:
    """Not even when the directory has changed, for then it would have to be read under the lock."""
    got(pool, owner("a"))
    _write(tmp_path, "10.1.2.5", b"stranger\r\neth0")
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._lock:
            entered.set()
            leave.wait(5)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(5)
    try:
        assert pool.status(SMALL) == (SetStatus(4, 1),)
        assert thread.is_alive(), "status does not wait for the lock"
    finally:
        leave.set()
        thread.join()
    assert pool.status(SMALL) == (SetStatus(3, 2),)


def test_discard_and_restore_touch_only_what_they_were_told(pool: Ipam) -> None:
    got(pool, owner("a"))
    mine = Reservation(ip_address("10.1.2.2"), owner("a"))
    assert not pool.discard(Reservation(mine.address, owner("b"))), "another's"
    assert not pool.discard(mine, unless=lambda: True)
    assert not pool.restore(mine), "still there"
    assert pool.discard(mine)
    assert not pool.discard(mine)
    assert not pool.restore(mine, unless=lambda: True)
    assert pool.restore(mine)
    assert pool.addresses(owner("a")) == (mine.address,)


def test_two_pools_on_one_directory_see_each_other(pool: Ipam, tmp_path: Path) -> None:
    other = Ipam(str(tmp_path), "net")
    for turn in range(4):
        assert got((pool, other)[turn % 2], owner(f"c{turn}")) == [f"10.1.2.{turn + 2}/29"]
    assert pool.release(owner("c3")) == (ip_address("10.1.2.5"),)
    assert other.owners() == pool.owners()
    other.close()


def test_pools_makes_one_pool_per_network(tmp_path: Path) -> None:
    pools = Pools(str(tmp_path))
    assert pools("", "a") is pools(str(tmp_path), "a")
    assert pools("", "a") is not pools("", "b")
    assert {pool.network for pool in pools.all()} == {"a", "b"}
    pools.close()


def test_200_parallel_adds_and_dels_never_share_an_address(tmp_path: Path) -> None:
    """Eight at a time and five addresses: exhaustion is the only error there may be."""
    pools = Pools(str(tmp_path))
    sets = ranges("10.1.2.0/29", "fd00:1::/64")
    holders: dict[Address, Owner] = {}
    guard, errors = threading.Lock(), list[IpamError]()

    def work(number: int) -> None:
        pool, who = pools("", "net"), owner(f"c{number}")
        for _ in range(3):
            try:
                made = pool.reserve(who, sets)
            except IpamError as error:
                errors.append(error)
                continue
            with guard:
                for allocated in made:
                    assert allocated.address.ip not in holders, f"{allocated.address} given twice"
                    holders[allocated.address.ip] = who
            assert pool.reserve(who, sets) == made
            with guard:
                for allocated in made:
                    del holders[allocated.address.ip]
            released = pool.release(who)
            assert sorted(map(str, released)) == sorted(str(allocated.address.ip) for allocated in made)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(200)))
    assert all(error.exhausted for error in errors), errors
    assert pools("", "net").owners() == {}
    assert pools("", "net").status(sets)[0] == SetStatus(5, 0)
    assert reserved(tmp_path) == set()
    pools.close()
