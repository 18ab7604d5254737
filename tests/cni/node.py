"""One real node for the tests: a namespace with an underlay interface, an etcd and a pycnid process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pycni.lab import etcd
from tests.cni.runtimes import inside

ROOT = Path(__file__).resolve().parents[2]
DUAL = {
    "Network": "10.244.0.0/16",
    "EnableIPv6": True,
    "IPv6Network": "fd00:10:244::/48",
    "Backend": {"Type": "vxlan"},
}


def ip(namespace: str, *lines: str) -> None:
    """Run lines of `ip -batch` inside a namespace."""
    subprocess.run(
        ["ip", "-n", namespace, "-batch", "-"],
        input="\n".join(lines),
        text=True,
        check=True,
        capture_output=True,
    )


class AgentNode:
    """The node; ``start_agent``/``kill_agent`` as often as a test likes."""

    program = "pycni.agent.main"
    """Module that is the agent."""

    def __init__(self, name: str, folder: Path, netconf: dict[str, Any]) -> None:
        self.name, self.folder = name, folder
        self.far = f"{name}x"
        self.socket = folder / "cni.sock"
        self.ipam = folder / "ipam"
        self.agent: subprocess.Popen[bytes] | None = None
        for namespace in (self.name, self.far):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
        ip(
            self.name,
            "link set lo up",
            f"link add eth0 type veth peer name eth0 netns {self.far}",
            "addr add 192.168.50.1/24 dev eth0",
            "addr add fd00:50::1/64 dev eth0 nodad",
            "link set eth0 up",
        )
        ip(
            self.far,
            "link set lo up",
            "addr add 192.168.50.9/24 dev eth0",
            "addr add fd00:50::9/64 dev eth0 nodad",
            "link set eth0 up",
        )
        self.etcd = etcd.start(etcd.EtcdOptions(data_dir=folder / "etcd", netns=f"/run/netns/{name}"))
        self.etcdctl("put", "/coreos.com/network/config", json.dumps(netconf))

    def etcdctl(self, *args: str) -> str:
        """etcdctl inside the node."""
        done = subprocess.run(
            [*inside(self.name), "etcdctl", f"--endpoints={self.etcd.endpoint}", *args],
            env={**os.environ, "ETCDCTL_API": "3"},
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    def start_agent(self, *extra: str) -> None:
        """Start pycnid and wait until it serves."""
        self.spawn_agent(*extra)
        self.wait_ready()

    def spawn_agent(self, *extra: str) -> None:
        """Start pycnid."""
        with (self.folder / "pycnid.log").open("ab") as log:
            self.agent = subprocess.Popen(
                [
                    *inside(self.name),
                    sys.executable,
                    "-m",
                    self.program,
                    "run",
                    f"--etcd-endpoints={self.etcd.endpoint}",
                    "--iface=eth0",
                    f"--subnet-file={self.folder}/subnet.env",
                    f"--state-dir={self.folder}/state",
                    f"--cni-socket={self.socket}",
                    f"--ipam-data-dir={self.ipam}",
                    f"--node-name={self.name}",
                    "--healthz-ip=127.0.0.1",
                    "--healthz-port=9999",
                    *extra,
                ],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )

    def wait_ready(self, timeout_s: float = 20.0) -> None:
        """Wait until a STATUS through the shim succeeds."""
        deadline = time.monotonic() + timeout_s
        while self.cni("STATUS", {"cniVersion": "1.1.0", "name": "t", "type": "pycni"})[0]:
            assert self.agent is not None
            if self.agent.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "pycnid.log").read_text()[-4000:])
            time.sleep(0.05)

    def cni(self, command: str, conf: dict[str, Any], **variables: str) -> tuple[int, Any]:
        """Call the shim once inside the node; returns exit code and decoded stdout (None when empty)."""
        env = {
            "PATH": os.environ["PATH"],
            "PYCNI_SOCKET": str(self.socket),
            "CNI_COMMAND": command,
            "CNI_PATH": f"{self.folder}/bin:/usr/lib/cni",
            **{f"CNI_{key}": value for key, value in variables.items()},
        }
        done = subprocess.run(
            [*inside(self.name), str(ROOT / "cni-bin" / "pycni")],
            input=json.dumps(conf).encode(),
            env=env,
            capture_output=True,
            check=False,
            timeout=60,
        )
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None

    def kill_agent(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the agent and reap it."""
        if self.agent is not None:
            self.agent.send_signal(number)
            self.agent.wait(15)
            self.agent = None

    def reservations(self, network: str) -> set[str]:
        """Addresses on record in host-local's format."""
        folder = self.ipam / network
        if not folder.is_dir():
            return set()
        return {f.name for f in folder.iterdir() if f.name[0].isdigit() or ":" in f.name}

    def stop(self) -> None:
        try:
            self.kill_agent(signal.SIGTERM)
        finally:
            self.etcd.kill()
            for namespace in (self.name, self.far):
                subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


@contextmanager
def agent_node(
    name: str, folder: Path, netconf: dict[str, Any] | None = None, *extra: str
) -> Iterator[AgentNode]:
    """A node with a ready agent, taken away at the end."""
    node = AgentNode.__new__(AgentNode)
    try:
        node.__init__(name, folder, netconf or DUAL)  # type: ignore[misc]
        node.start_agent(*extra)
        yield node
    finally:
        if hasattr(node, "etcd"):
            node.stop()
        else:
            for namespace in (name, f"{name}x"):
                subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def tcp_answers(
    namespace: str, address: str, port: int, *, listen_in: str, listen_port: int | None = None
) -> str:
    """Listen inside one namespace, connect from another; returns the client address the listener saw."""
    from pycni.kernel import netns

    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def sock() -> socket.socket:
        return socket.socket(family, socket.SOCK_STREAM)

    server_fd, client_fd = netns.open_netns(listen_in), netns.open_netns(namespace)
    try:
        with netns.run_in(server_fd, sock) as server, netns.run_in(client_fd, sock) as client:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", listen_port or port))
            server.listen(1)
            server.settimeout(3)
            client.settimeout(3)
            client.connect((address, port))
            connection, peer = server.accept()
            with connection:
                client.sendall(b"ping")
                assert connection.recv(4) == b"ping"
            return str(peer[0])
    finally:
        os.close(server_fd)
        os.close(client_fd)
