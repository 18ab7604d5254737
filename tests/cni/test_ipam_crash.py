"""kill -9 in the middle of reserving, recording and releasing: nothing is given twice, nothing is lost for good.

A child process works as CNI ADD and DEL do, on eight threads, and keeps a ledger with one line before each release and
after each reservation. It is killed at a random moment; what it left behind stays in use for the following rounds
(its pods live on), until the collector, told that they are gone, has to bring every address back.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import threading
import time
from collections.abc import Collection
from ipaddress import ip_interface, ip_network
from pathlib import Path

import msgspec
import pytest

from pycni.agent.collector import Collector
from pycni.ipam.collect import Held, View
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools
from pycni.model.cni import AddressRange
from pycni.model.endpoint import Endpoint, Owner

ROUNDS = 200
ROUNDS_BETWEEN_SWEEPS = 6
THREADS = 8
NETS = (ip_network("10.1.2.0/25"), ip_network("fd00:1::/64"))
SETS = tuple((AddressRange(subnet=net, start=net[1], end=net[-1], gateway=net[1]),) for net in NETS)


def work(folder: Path, round_number: int, ledger: int, started: int) -> None:
    """The child: attach and detach for ever."""
    endpoints = EndpointStore(str(folder))
    pools = Pools(str(folder / "networks"), in_use=endpoints.in_use)

    def attach_and_detach(thread: int) -> None:
        pool = pools("", "net")
        turn = 0
        while True:
            turn += 1
            container = f"c{round_number}.{thread}.{turn}"
            owner = Owner("net", container, "eth0")
            pending = Endpoint(
                network="net", container_id=container, ifname="eth0", boot_id="boot", data_dir=pool.data_dir
            )
            endpoints.put(pending)
            made = pool.reserve(owner, SETS)
            lines = "".join(f"+ {one.address.ip} {container}\n" for one in made)
            os.write(ledger, lines.encode())
            addresses = tuple(one.address for one in made)
            ready = msgspec.structs.replace(pending, state="ready", addresses=addresses)
            endpoints.put(ready)
            if turn == 1:
                os.write(started, b".")
            if turn % 3:
                endpoints.put(msgspec.structs.replace(ready, state="dying"))
                os.write(ledger, lines.replace("+", "-").encode())
                pool.release(owner)
                endpoints.remove(owner)
            elif turn > 30:
                time.sleep(60)

    threads = [threading.Thread(target=attach_and_detach, args=(n,), daemon=True) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    time.sleep(60)


def run_and_kill(folder: Path, round_number: int, chance: random.Random) -> None:
    ledger = os.open(folder / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    reading, started = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work(folder, round_number, ledger, started)
        finally:
            os._exit(3)
    os.close(started)
    try:
        assert os.read(reading, 1), "the child never began"
        time.sleep(chance.choice([0.0, 0.001, 0.003, 0.01, 0.03]) * chance.random())
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        os.close(ledger)
        os.close(reading)
    assert os.WIFSIGNALED(status), "the child failed by itself"


class Ledger:
    """Replays the children's lines: an address may have one holder at a time."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "ledger"
        self.done = 0
        self.holders: dict[str, str] = {}
        self.given = 0

    def replay(self) -> None:
        lines = self.file.read_text().splitlines()
        for line in lines[self.done :]:
            sign, address, container = line.split()
            if sign == "+":
                assert address not in self.holders, (
                    f"{address} given to {container} and {self.holders[address]}"
                )
                self.holders[address] = container
                self.given += 1
            else:
                assert self.holders.pop(address) == container
        self.done = len(lines)


class AllGone:
    """A node on which every pod has vanished."""

    def view(self, _held: Collection[Held], _endpoints: Collection[Endpoint], *, deep: bool = False) -> View:
        return View(boot_id="boot", complete=True, cache_readable=True)


def check_and_sweep(folder: Path, ledger: Ledger, *, sweep: bool) -> None:
    """A restarted agent: what it loads is consistent; and, when told so, everything comes back."""
    endpoints = EndpointStore(str(folder))
    pools = Pools(str(folder / "networks"), in_use=endpoints.in_use)
    with contextlib.closing(endpoints), contextlib.closing(pools):
        assert endpoints.quarantined == 0
        pool = pools("", "net")
        owners = pool.owners()
        for address, container in ledger.holders.items():
            assert owners.get(Owner("net", container, "eth0")), f"{container} lost {address}"
        held = [
            (address, one.owner)
            for one in endpoints.all()
            for address in one.addresses
            if one.state == "ready"
        ]
        assert len({address for address, _ in held}) == len(held), "two endpoints have one address"
        for address, owner in held:
            assert address.ip in owners[owner]
        recorded = {one.owner for one in endpoints.all()}
        assert {owner for owner in owners if owner.container_id} <= recorded, (
            "a reservation nobody would release"
        )
        if not sweep:
            return

        def remove(endpoint: Endpoint) -> None:
            pools(endpoint.data_dir, endpoint.network).release(endpoint.owner)
            endpoints.remove(endpoint.owner)

        now = iter(range(0, 100_000, 400))
        collector = Collector(
            pools=pools,
            endpoints=endpoints,
            remove=remove,
            busy=lambda: (),
            observer=AllGone(),  # type: ignore[arg-type]
            clock=lambda: float(next(now)),
        )
        collector.sweep()
        collector.sweep()
        assert collector.failures == 0
        assert endpoints.all() == ()
        assert pool.owners() == {}
        assert [state.used for state in pool.status(SETS)] == [0, 0]
        left = {entry.name for entry in (folder / "networks" / "net").iterdir()}
        assert left <= {"lock", "last_reserved_ip.0", "last_reserved_ip.1"}
        assert list((folder / "endpoints").iterdir()) == []
        ledger.holders.clear()


@pytest.mark.timeout(60)
def test_killed_at_random_moments_no_address_is_given_twice_and_all_come_back(tmp_path: Path) -> None:
    chance = random.Random(time.time_ns())
    ledger = Ledger(tmp_path)
    began = time.monotonic()
    rounds = 0
    while rounds < ROUNDS and time.monotonic() - began < 8:
        rounds += 1
        run_and_kill(tmp_path, rounds, chance)
        ledger.replay()
        check_and_sweep(tmp_path, ledger, sweep=rounds % ROUNDS_BETWEEN_SWEEPS == 0)
    check_and_sweep(tmp_path, ledger, sweep=True)
    assert rounds >= 10, "too slow to prove anything"
    assert ledger.given > rounds


def test_a_lock_dies_with_its_holder(tmp_path: Path) -> None:
    """flock(2): an ADD after a kill waits for nobody."""
    pools = Pools(str(tmp_path), lock_timeout_s=5)
    pools("", "net").reserve(Owner("net", "a", "eth0"), SETS)
    reading, writing = os.pipe()
    holder = os.fork()
    if holder == 0:
        with (tmp_path / "net" / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            os.write(writing, b".")
            time.sleep(60)
        os._exit(3)
    try:
        assert os.read(reading, 1)
        killer = threading.Timer(0.2, os.kill, (holder, signal.SIGKILL))
        began = time.monotonic()
        killer.start()
        made = pools("", "net").reserve(Owner("net", "b", "eth0"), SETS)
        waited = time.monotonic() - began
        killer.join()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        os.close(reading)
        os.close(writing)
        pools.close()
    assert made[0].address == ip_interface("10.1.2.3/25")
    assert 0.15 < waited < 2
