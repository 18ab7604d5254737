"""Machines without machines for vagrant/provision: each host is namespaces (network, mounts, processes, name) of its own, with the
machine's files below a layer of its own.

What the scripts write to /etc, /opt, /usr/local and /var is seen by this host alone, /run is empty, and all of it is gone with the
host's first process. ``Hosts.on`` is a program by which ``vagrant/cluster.sh`` runs commands on a host.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from unittest import mock

from pycni.lab import cleanup, netns, processes, uml
from pycni.lab.run import Lab
from pycni.lab.state import LabRecord, LabState
from pycni.lab.topology import LabSpec

ROOT = Path(__file__).parents[2]
PROVISION = ROOT / "vagrant/provision"
INSIDE = """
mkdir -p {layers} && mount -t tmpfs tmpfs {layers}
for folder in etc opt usr/local var; do
  mkdir -p {layers}/$folder/upper {layers}/$folder/work
  mount -t overlay overlay -o lowerdir=/$folder,upperdir={layers}/$folder/upper,workdir={layers}/$folder/work /$folder
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/lock
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
hostname {host}
touch {up}
# The first process has to take leave of those that nobody else does.
while :; do sleep 1000 & wait $!; done
"""


class Hosts:
    """A router and nodes on one bridge. A context manager."""

    def __init__(self, name: str, folder: Path, nodes: int, **settings: str) -> None:
        self.name, self.folder = name, folder
        rows = [("router", "192.168.57.2", "fd57::2")]
        rows += [(f"node{i}", f"192.168.57.{10 + i}", f"fd57::{10 + i}") for i in range(1, nodes + 1)]
        self.rows = {host: (v4, v6) for host, v4, v6 in rows}
        self.settings = {
            "PYCNI_UNDERLAY": "192.168.57.0/24",
            "PYCNI_UNDERLAY6": "fd57::/64",
            "PYCNI_NODES": str(nodes),
            "PYCNI_FAMILY": "dual",
            "PYCNI_BACKEND": "vxlan",
            "PYCNI_ATTACHMENT": "bridge",
            "PYCNI_PROXY": "nftables",
            "PYCNI_POLICY": "nftables",
            "PYCNI_BGP": "exabgp",
            "PYCNI_PODS": "2",
            "PYCNI_KUBERNETES": "0",
            "PYCNI_SOURCE": str(ROOT),
            "PYCNI_PACKAGES": "present",
            "PYCNI_PYTHON": "checkout",
            "PYCNI_SERVICES": "direct",
            "PYCNI_HOSTS": " ".join("=".join(row) for row in rows),
            **settings,
        }
        self._holders: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        for holder in self._holders.values():
            # What holds the namespace of processes is its first one; with it all others end.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()
        for space in [self._space(host) for host in [*self.rows, "wire"]]:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)

    def _space(self, host: str) -> str:
        return f"{self.name}-{host}"

    def _make(self) -> None:
        wire = self._space("wire")
        ip(f"netns add {wire}")
        ip(f"-n {wire} link add br0 type bridge mcast_snooping 0")
        ip(f"-n {wire} link set br0 up")
        for host, (v4, _) in self.rows.items():
            space = self._space(host)
            ip(f"netns add {space}")
            ip(f"-n {wire} link add {host} type veth peer name eth1 netns {space}")
            ip(f"-n {wire} link set {host} master br0 up")
            ip(f"-n {space} link set lo up")
            ip(f"-n {space} link set eth1 up")
            ip(f"-n {space} address add {v4}/24 dev eth1")
            if host != "router":
                ip(f"-n {space} route add default via {self.rows['router'][0]}")
                ip(f"-n {space} -6 route add default dev eth1")
            self._hold(host)
        self._write_on({host: f"nsenter -t {self._first(host)} -m -u -n -p" for host in self.rows})

    def _write_on(self, prefixes: Mapping[str, str]) -> None:
        """``prefixes``: what comes before a command that runs on a host."""
        self.on = self.folder / "on"
        exports = shlex.join(f"{key}={value}" for key, value in self.settings.items())
        cases = "\n".join(f"{host}) prefix={shlex.quote(prefix)} ;;" for host, prefix in prefixes.items())
        self.on.write_text(
            f"#!/bin/sh\nhost=$1; shift\ncase $host in\n{cases}\nesac\n"
            f'exec $prefix env -i PATH="$PATH" HOME=/root {exports} "$@"\n'
        )
        self.on.chmod(0o755)

    def _hold(self, host: str) -> None:
        up = self.folder / f"{host}.up"
        layers = self.folder / f"{host}.layers"
        text = INSIDE.format(layers=layers, host=host, up=up)
        words = [
            "ip",
            "netns",
            "exec",
            self._space(host),
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--uts",
        ]
        words += ["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-ec", text]
        holder = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        self._holders[host] = holder
        while not up.exists():
            assert holder.poll() is None, f"{host} has ended"
            time.sleep(0.02)

    def _first(self, host: str) -> int:
        """Pid of the first process inside."""
        pid = self._holders[host].pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    def run(
        self, host: str, *words: str, check: bool = True, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """A command on a host; ``more``: variables."""
        row = dict(zip(("PYCNI_ADDRESS", "PYCNI_ADDRESS6"), self.rows[host], strict=True))
        variables = [f"{key}={value}" for key, value in {"PYCNI_HOST": host, **row, **more}.items()]
        done = subprocess.run(
            [str(self.on), host, "env", *variables, *words],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{host}: {' '.join(words)} exits with {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def provision(self, host: str) -> str:
        """What Vagrant does on a new machine."""
        return self.run(host, "sh", str(PROVISION / "host.sh")).stdout

    def cluster(self, *words: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """``vagrant/cluster.sh``."""
        environment: Mapping[str, str] = {**os.environ, **self.settings, "PYCNI_ON": str(self.on), **more}
        done = subprocess.run(
            ["sh", str(ROOT / "vagrant/cluster.sh"), *words],
            capture_output=True, text=True, check=False, env=environment, timeout=600,
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(f"cluster.sh {' '.join(words)}\n{done.stdout}{done.stderr}")
        return done


GUEST = """
mkdir -p {layers} && mount -t tmpfs tmpfs {layers}
for folder in etc opt usr/local; do
  mkdir -p {layers}/$folder/upper {layers}/$folder/work
  mount -t overlay overlay -o lowerdir=/$folder,upperdir={layers}/$folder/upper,workdir={layers}/$folder/work /$folder
done
mkdir -p /run/netns /var/lib/dpkg
mount -t hostfs -o ro,/var/lib/dpkg none /var/lib/dpkg
echo $$ >{up}
while :; do sleep 1000 & wait $!; done
"""


GUEST_MEMORY = "768M"
"""etcd's log takes 128 MB at once, and half of the memory is what files may have."""


class Guests(Hosts):
    """The same as User-Mode Linux guests: nodes of a lab without its agents, and no router."""

    def __init__(self, name: str, folder: Path, nodes: int, **settings: str) -> None:
        super().__init__(name, folder, nodes, **settings)
        self.rows = {f"node{i}": (f"172.20.0.{i}", f"fd57::{10 + i}") for i in range(1, nodes + 1)}
        self.settings["PYCNI_HOSTS"] = " ".join("=".join((host, *row)) for host, row in self.rows.items())

    def __exit__(self, *_exc: object) -> None:
        cleanup.down(self.name)
        for holder in self._holders.values():
            holder.wait()

    def _make(self) -> None:
        spec = LabSpec(name=self.name, nodes=len(self.rows), driver="uml", proxy="ipvs")
        state = LabState(self.name)
        lab = Lab(state, LabRecord(spec=spec, boot_id=processes.boot_id()))
        state.save(lab.record)
        netns.make_fabric(spec)
        lab.driver.prepare()
        with mock.patch.object(uml, "MEMORY", GUEST_MEMORY):
            for index in range(1, spec.nodes + 1):
                lab._begin_node(index)
        lab.driver.finish_nodes(lab.record.nodes, lab.record.processes)
        prefixes = {}
        for host in self.rows:
            up = state.node_folder(host) / "holder"
            text = GUEST.format(layers="/run/layers", up=up)
            prefix = lab.driver.prefix(host, "")
            words = [*prefix, "unshare", "--mount", "--propagation", "private", "sh", "-ec", text]
            self._holders[host] = subprocess.Popen(words, stdin=subprocess.DEVNULL)
            while not up.exists() or not up.read_text().endswith("\n"):
                assert self._holders[host].poll() is None, f"{host} has ended"
                time.sleep(0.05)
            prefixes[host] = f"{shlex.join(prefix)} nsenter -t {up.read_text().strip()} -m"
        self._write_on(prefixes)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)
