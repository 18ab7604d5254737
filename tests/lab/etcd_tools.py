"""etcd for tests: starting servers and clusters, waiting for things, and a TCP relay that cuts and stalls.

The fixtures are in ``etcd_fixtures``. Only processes started here are signalled.
"""

import asyncio
import contextlib
import itertools
import os
import socket
import subprocess
from pathlib import Path

from pycni.lab import etcd as lab_etcd
from pycni.sources.etcd import EtcdClient
from pycni.sources.etcd_config import EtcdConfig

_numbers = itertools.count()


def free_ports(count):
    """Loopback TCP ports nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class Servers:
    """Starts members below one folder and ends them all."""

    def __init__(self, folder, origin):
        self.folder = Path(folder)
        self.origin = origin
        self.started = []

    def options(self, **more):
        client, peer = free_ports(2)
        name = f"m{next(_numbers)}"
        values = {"name": name, "client_port": client, "peer_port": peer, "data_dir": self.folder / name}
        return lab_etcd.EtcdOptions(binary=lab_etcd.find_binary(self.origin), **(values | more))

    def start(self, **more):
        return self.restart(self.options(**more))

    def restart(self, options):
        process = lab_etcd.start(options)
        self.started.append(process)
        return process

    def cluster(self, size=3, election_ms=300):
        ports = free_ports(size)
        members = {f"c{next(_numbers)}": port for port in ports}
        flags = ("--heartbeat-interval=30", f"--election-timeout={election_ms}")
        for name, port in members.items():
            options = self.options(
                name=name, peer_port=port, data_dir=self.folder / name, members=members, extra=flags
            )
            self.started.append(lab_etcd.start(options, wait=False))
        for process in self.started[-size:]:
            lab_etcd.wait_serving(process)
        return self.started[-size:]

    def ctl(self, process, *words, **environment):
        """Run the etcdctl that belongs to this etcd; the connection by environment."""
        binary = process.options.binary.with_name("etcdctl")
        base = {"PATH": os.environ["PATH"], "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": process.endpoint}
        done = subprocess.run(
            [binary, *words], env=base | environment, capture_output=True, text=True, timeout=20, check=False
        )
        assert done.returncode == 0, f"etcdctl {words}: {done.stderr}"
        return done.stdout

    def stop(self):
        for process in self.started:
            process.kill()


def client(*endpoints, **more):
    """A client with the short limits of a test."""
    values = {"call_timeout_s": 2.0, "dial_timeout_s": 2.0} | more
    return EtcdClient(EtcdConfig(endpoints=tuple(endpoints), **values))


async def until(condition, timeout_s=10.0, step_s=0.01):
    """Wait until something holds; returns the seconds it took."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        assert loop.time() - start < timeout_s, f"still not after {timeout_s} s"
        await asyncio.sleep(step_s)
    return loop.time() - start


@contextlib.asynccontextmanager
async def running(*coroutines):
    """Run something beside the test; what it raises reaches the test, and it ends with it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        yield tasks
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Relay:
    """A TCP relay: ``cut`` resets connections, ``budgets`` cuts after so many bytes, ``stall`` holds bytes back."""

    def __init__(self, port):
        self.target = port
        self.budgets = iter(())
        self.budget = None
        self.closed = False
        self.cuts = 0
        self._go = asyncio.Event()
        self._go.set()
        self._writers = set()
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc):
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self):
        self.cuts += bool(self._writers)
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self):
        self._go.clear()

    def go_on(self):
        self._go.set()

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        try:
            if self.closed:
                writer.transport.abort()
                return
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                writer.transport.abort()
                return
            self._writers |= {writer, far_writer}
            try:
                await asyncio.gather(
                    self._copy(reader, far_writer, limited=False),
                    self._copy(far_reader, writer, limited=True),
                )
            finally:
                for end in (writer, far_writer):
                    end.transport.abort()
                    self._writers.discard(end)
        finally:
            self._tasks.discard(asyncio.current_task())

    async def _copy(self, reader, writer, *, limited):
        with contextlib.suppress(ConnectionError, OSError):
            while data := await reader.read(4096):
                await self._go.wait()
                if limited and self.budget is not None:
                    self.budget -= len(data)
                    if self.budget < 0:
                        self.budget = next(self.budgets, None)
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
