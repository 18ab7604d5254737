"""One node of a lab: its real pycnid, its CNI configuration, the runtime that makes pods on it.

Life: ``prepare`` writes the node's files, ``start`` execs the agent inside the node, ``readiness`` asks its
health endpoint there; what a node is made of is the driver's business. The object holds no state of its own: a later
command makes it again from the specification and the node's name.
"""

from __future__ import annotations

import os
import shutil
import sys
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import NamedTuple

import pycni
from pycni.errors import ConfigError, PycniError
from pycni.kernel import netns as kernel_netns
from pycni.lab import attachments, driver, inside, netns, processes, router, topology, trace_tls
from pycni.lab.processes import ProcessId
from pycni.lab.runtime import CniRuntime, load_list
from pycni.lab.state import LabState
from pycni.lab.topology import LabError, LabSpec
from pycni.model.family import Family
from pycni.model.podnet import PodNetwork
from pycni.wire.subnetenv import decode_subnet_env

REFERENCE_PLUGINS = ("/usr/lib/cni", "/opt/cni/bin")
LOG_LINES = 12
"""How much of an agent's log goes into an error message."""


class Readiness(NamedTuple):
    """What the agent says of itself."""

    ready: bool
    reason: str = ""


class LabNode:
    """A node by its name."""

    def __init__(self, spec: LabSpec, state: LabState, name: str) -> None:
        self.spec = spec
        self.name = name
        self.index = topology.node_index(name)
        self.driver = driver.of(spec, state)
        self.namespace = self.driver.space(name)
        """Name of its network namespace; "" when it has a kernel of its own."""
        self.folder = state.node_folder(name)
        """Shared between this machine and the node."""
        self.home = Path(self.driver.home(name))
        """The node's own: what is in it can be read from inside (and, with namespaces, here too)."""
        self.lab_folder = state.folder

    @property
    def netns(self) -> str:
        """Path of its network namespace; "" when it has a kernel of its own."""
        return kernel_netns.path(self.namespace) if self.namespace else ""

    @property
    def addresses(self) -> dict[Family, IPv4Interface | IPv6Interface]:
        """Underlay addresses by family."""
        return topology.underlay_addresses(self.spec, self.index)

    @property
    def socket(self) -> str:
        """The agent's CNI socket."""
        return str(self.home / "cni.sock")

    @property
    def log(self) -> Path:
        """Output of all runs of the agent."""
        return self.folder / "agent.log"

    @property
    def conflist(self) -> Path:
        """The network configuration list."""
        return self.folder / "net.d" / "10-pycni.conflist"

    @property
    def single_conflist(self) -> Path:
        """The list for pods on a bridge of this node alone."""
        return self.folder / "net.d" / "20-single.conflist"

    @property
    def data_dir(self) -> str:
        """Address reservations."""
        return str(self.home / "networks")

    @property
    def subnet_file(self) -> Path:
        """subnet.env."""
        return self.folder / "subnet.env"

    def prepare(self) -> None:
        """Write what the agent and the runtime read."""
        self.conflist.parent.mkdir(parents=True, exist_ok=True)
        self.conflist.write_text(attachments.conflist(self.spec, self.index, self.data_dir))
        self.single_conflist.write_text(attachments.single_conflist(self.spec, self.data_dir))

    def _trace_pair(self) -> trace_tls.Pair:
        addresses = [str(item.ip) for item in self.addresses.values()]
        return trace_tls.prepare(self.lab_folder, self.name, addresses)

    def arguments(self) -> list[str]:
        """The agent's flags."""
        flags = {
            "node-name": self.name,
            "etcd-endpoints": topology.etcd_endpoint(self.spec),
            "etcd-prefix": topology.ETCD_PREFIX,
            "iface": netns.UPLINK,
            "follow-backend": str(self.spec.follow_backend).lower(),
            "subnet-file": str(self.subnet_file),
            "state-dir": str(self.home / "state"),
            "cni-socket": self.socket,
            "ipam-data-dir": self.data_dir,
            # Prometheus is somewhere else (`lab scrape-config`).
            "healthz-ip": "0.0.0.0" if self.spec.families == (Family.V4,) else "::",
            "healthz-port": str(topology.HEALTH_PORT),
            "log-level": "info",
            **topology.component_flags(self.spec, str(self.lab_folder / topology.MANIFESTS)),
            **(router.flags(self.spec) if self.spec.bgp != "none" else {}),
        }
        if self.spec.trace_tls:
            pair = self._trace_pair()
            own = self.addresses[self.spec.families[0]].ip
            flags |= {
                "trace-listen": f"{'[::]' if own.version == 6 else '0.0.0.0'}:{trace_tls.PORT}",
                "trace-tls-cert": pair.certificate,
                "trace-tls-key": pair.key,
                "trace-tls-ca": pair.authority,
            }
        for family, address in self.addresses.items():
            flags["public-ip" if family is Family.V4 else "public-ipv6"] = str(address.ip)
        return ["run", "--ip-masq", *(f"--{name}={value}" for name, value in flags.items())]

    def start(self) -> ProcessId:
        """Start the agent and return at once; see ``readiness``."""
        words = [sys.executable, "-P", "-m", "pycni.agent.main", *self.arguments()]
        return processes.spawn(self.prefix() + words, self.log, processes.environment(self.spec.name))

    def prefix(self, namespace: str | None = None) -> list[str]:
        """Words before a command that run it in the node, or in a namespace on it."""
        return self.driver.prefix(self.name, self.namespace if namespace is None else namespace)

    def readiness(self) -> Readiness:
        """What ``/readyz`` answers."""
        try:
            answer = self.driver.call(self.name, inside.readiness, self.namespace, topology.HEALTH_PORT)
        except PycniError as exc:
            return Readiness(ready=False, reason=str(exc))
        return Readiness(*answer)

    def routes(self) -> list[str]:
        """Destinations of the routes its agent made. Raises KernelError, LabError."""
        return self.driver.call(
            self.name, inside.routes, self.namespace, [int(item) for item in self.spec.families]
        )

    def pod_network(self) -> PodNetwork | None:
        """What subnet.env says; None before the agent has a lease."""
        try:
            return decode_subnet_env(self.subnet_file.read_text())
        except (FileNotFoundError, ConfigError):
            return None

    def runtime(self, *, single: bool = False) -> CniRuntime:
        """A container runtime on this node, for the cluster's network or for its own alone."""
        return CniRuntime(
            load_list(self.single_conflist if single else self.conflist),
            cache_dir=self.folder,
            path=(plugin_folder(self.lab_folder), *REFERENCE_PLUGINS),
            prefix=self.prefix(),
            environment={"PYCNI_SOCKET": self.socket},
        )

    def log_end(self) -> str:
        """The last lines of the agent's output, for an error message."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(f"  {line}" for line in lines)


def plugin_folder(lab_folder: Path) -> str:
    """A folder with the executable ``pycni``: the repository's own, or for an installed package a copy of its file."""
    package = Path(pycni.__file__).parent
    for candidate in (package.parent / "cni-bin" / "pycni", package / "agent" / "data" / "pycni"):
        if os.access(candidate, os.X_OK):
            return str(candidate.parent)
        if candidate.is_file():
            copy = lab_folder / "bin" / "pycni"
            if not copy.exists():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(candidate, copy)
                copy.chmod(0o755)
            return str(copy.parent)
    raise LabError(
        f"the CNI executable 'pycni' is neither in {package.parent}/cni-bin nor in {package}/agent/data"
    )
