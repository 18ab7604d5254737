"""A lab as one object: brought up, found again, used, taken down.

Life: ``Lab.up`` records its intent before it makes the first namespace and removes everything again when it does not
reach its end, be it by an error or by Ctrl-C; ``Lab.open`` finds a running lab in a later process. Pods are
in ``pods``, looking at a lab in ``survey``, removing one in whatever state in ``cleanup``.
"""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec

from pycni.kernel import netns as kernel_netns
from pycni.lab import (
    driver,
    etcd,
    inside,
    modes,
    netns,
    pods,
    processes,
    ready,
    resolv,
    router,
    survey,
    topology,
)
from pycni.lab.apply import Cluster
from pycni.lab.cleanup import Wiped, clear_way, command, known, require_root, wipe
from pycni.lab.driver import Stream
from pycni.lab.matrix import Matrix
from pycni.lab.node import LabNode
from pycni.lab.objects import Mappings
from pycni.lab.policy_matrix import PolicyMatrix
from pycni.lab.probe import DEFAULT_TIMEOUT_S
from pycni.lab.processes import ProcessId
from pycni.lab.report import Progress
from pycni.lab.state import LabRecord, LabState, PodRecord
from pycni.lab.topology import LabError, LabSpec

PARALLEL = 4
"""Agents starting and pods being added at the same time: two per core of the machine this was tuned on."""


class Lab:
    """A running lab."""

    def __init__(self, state: LabState, record: LabRecord) -> None:
        self.state = state
        self.record = record
        self.driver = driver.of(record.spec, state)

    @property
    def spec(self) -> LabSpec:
        """What it was made from."""
        return self.record.spec

    # up and down

    @classmethod
    def up(cls, spec: LabSpec, progress: Progress | None = None) -> Lab:
        """Make a lab and wait until every agent is ready. Raises LabError, KernelError; then nothing of it is left."""
        progress = progress or Progress(quiet=True)
        topology.check_spec(spec)
        require_root()
        state = LabState(spec.name)
        with state.lock(wait=1.0):
            clear_way(state, progress)
            lab = cls(state, LabRecord(spec=spec, boot_id=processes.boot_id()))
            state.save(lab.record)
            try:
                lab._build(progress)
            except BaseException:
                wipe(state)
                raise
        return lab

    @classmethod
    def open(cls, name: str = "default") -> Lab:
        """Find a running lab. Raises LabError telling what to do when there is none."""
        require_root()
        state = LabState(topology.check_lab_name(name))
        record = state.load()
        if record is None:
            if netns.found(name):
                raise LabError(f"the record of lab {name} is lost; clean up with: {command('down', name)}")
            others = f" (there are: {', '.join(known())})" if known() else ""
            raise LabError(f"no lab {name}{others}; make one with: {command('up', name)}")
        if record.boot_id != processes.boot_id():
            raise LabError(f"lab {name} is from before the last boot; clean up with: {command('down', name)}")
        if record.phase != "up":
            raise LabError(f"lab {name} is not up (starting, or its start was cut off)")
        return cls(state, record)

    def down(self) -> Wiped:
        """Remove the lab."""
        with self.state.lock():
            return wipe(self.state)

    def _build(self, progress: Progress) -> None:
        spec = self.spec
        with progress.step(f"underlay: {spec.nodes} nodes on one segment, MTU {spec.mtu}"):
            netns.make_fabric(spec)
            self.driver.prepare()
            for index in range(1, spec.nodes + 1):
                self._begin_node(index)
            if spec.has_client:
                netns.make_client(spec)
            if spec.bgp != "none":
                self._remember("router", router.start(spec, self.state))
        cluster = Cluster(self, held=True)
        cluster.begin()
        with progress.step(f"etcd at {topology.etcd_endpoint(spec)}"):
            self._start_etcd()
        with progress.step(self.driver.waiting) if self.driver.waiting else nullcontext():
            self.driver.finish_nodes(self.record.nodes, self.record.processes)
        with progress.step(f"pycnid ready on {spec.nodes} nodes, {spec.backend}, {spec.family}") as update:
            self.start_agents([node.name for node in self.nodes()], update)
        for missing in self.missing_routes():
            progress.line(f"  but {missing}")
        survey.greet(spec, self.nodes())
        if spec.pods:
            with progress.step(f"{spec.nodes * spec.pods} pods by CNI ADD"):
                cluster.joined(self._make_pods(spec.pods))
        cluster.refresh_nodes()
        if spec.proxy != "none":
            with progress.step(f"DNS as Service kube-dns at {' '.join(topology.dns_addresses(spec))}"):
                cluster.start_dns()
        self._save(phase="up")

    def _begin_node(self, index: int) -> LabNode:
        node = LabNode(self.spec, self.state, topology.node_name(index))
        node.prepare()
        parts = self.driver.begin_node(index)
        self._save(nodes=(*self.record.nodes, node.name), processes={**self.record.processes, **parts})
        return node

    def _make_pods(self, per_node: int) -> list[PodRecord]:
        names = [(f"pod{n}", node.name) for n, node in enumerate(self.nodes() * per_node, 1)]
        with ThreadPoolExecutor(PARALLEL) as pool:
            added = [pool.submit(pods.add, self.state, self.node(node), name) for name, node in names]
        return [future.result() for future in added]

    def _start_etcd(self) -> None:
        address = topology.underlay_address(self.spec.families[0], 0).ip
        options = etcd.EtcdOptions(
            data_dir=self.state.folder / "etcd",
            host=str(address),
            netns=kernel_netns.path(topology.fabric_namespace(self.spec.name)),
            name=f"lab-{self.spec.name}",
            # Alone it has nobody to wait for: it leads after 0.1 s instead of after one.
            extra=("--heartbeat-interval=10", "--election-timeout=100"),
            environment=processes.mark(self.spec.name),
        )
        try:
            process = etcd.start(options).outlive()
        except etcd.EtcdError as exc:
            raise LabError(str(exc)) from exc
        self._remember("etcd", processes.identify(process.pid))
        self.put_config(topology.net_conf(self.spec))

    def put_config(self, value: str) -> None:
        """Write the network's configuration, by etcd's JSON gateway."""
        fields = {"key": f"{topology.ETCD_PREFIX}/config", "value": value}
        body = {name: base64.b64encode(text.encode()).decode() for name, text in fields.items()}
        status, answer = inside.http(
            topology.fabric_namespace(self.spec.name),
            str(topology.underlay_address(self.spec.families[0], 0).ip),
            topology.ETCD_PORT,
            "/v3/kv/put",
            json.dumps(body),
        )
        if status != 200:
            raise LabError(f"etcd refuses {fields['key']}: {status} {answer.strip()[:200]}")

    def set_backend(self, backend: str, keys: Mapping[str, Any]) -> None:
        """Have the network's configuration name another backend. Raises LabError when the lab cannot have it."""
        spec = msgspec.structs.replace(self.spec, backend=backend, backend_conf=dict(keys))
        topology.check_spec(spec)
        with self.state.lock():
            self._reload()
            self.put_config(topology.net_conf(spec))
            self._save(spec=spec)

    # nodes and agents

    def nodes(self) -> list[LabNode]:
        """All nodes."""
        return [LabNode(self.spec, self.state, name) for name in self.record.nodes]

    def node(self, name: str) -> LabNode:
        """One node. Raises LabError naming the ones there are."""
        if name not in self.record.nodes:
            raise LabError(
                f"lab {self.spec.name} has no node {name!r}: {', '.join(self.record.nodes)}", usage=True
            )
        return LabNode(self.spec, self.state, name)

    def add_node(self) -> LabNode:
        """One more node, its agent ready."""
        with self.state.lock():
            self._reload()
            taken = {topology.node_index(name) for name in self.record.nodes}
            index = next(number for number in range(1, topology.MAX_NODES + 2) if number not in taken)
            if index > topology.MAX_NODES:
                raise LabError(f"lab {self.spec.name}: more than {topology.MAX_NODES} nodes are not possible")
            node = self._begin_node(index)
            self.driver.finish_nodes(self.record.nodes, self.record.processes)
            self.start_agents([node.name])
            self.missing_routes()
            survey.greet(self.spec, self.nodes())
            Cluster(self, held=True).refresh_nodes()
        return node

    def remove_node(self, name: str) -> None:
        """Switch a node off for good, with its pods: no good-bye, as a power cut. Its lease stays in etcd."""
        self.node(name)
        with self.state.lock():
            self._reload()
            gone = [pod for pod in self.pods() if pod.node == name]
            self.driver.remove_node(name, [pod.namespace for pod in gone], self.record.processes)
            for pod in gone:
                self.state.drop_pod(pod.name)
            others = {
                key: value for key, value in self.record.processes.items() if key.partition(" ")[0] != name
            }
            self._save(nodes=tuple(item for item in self.record.nodes if item != name), processes=others)
            Cluster(self, held=True).refresh_nodes()

    def missing_routes(self, timeout: float | None = None) -> list[str]:
        """Wait until every node has routes to the pods of all others; what is missing then, in words.

        An agent is ready when its own node is; that its peers know of it takes some milliseconds more.
        """
        return ready.await_routes(self.spec, self.nodes(), self.driver.poll_s, timeout)

    def agent(self, node: str) -> ProcessId | None:
        """The agent's process when it runs."""
        process = self.record.processes.get(self.node(node).name)
        return process if process is not None and process.alive() else None

    def start_agent(self, node: str) -> ProcessId:
        """Start a node's agent and wait until it is ready."""
        if self.agent(node) is not None:
            raise LabError(f"the agent of {node} is running")
        self.start_agents([node])
        return self.record.processes[node]

    def signal_agent(self, node: str, number: int) -> None:
        """Send a signal to a node's agent; SIGTERM and SIGKILL wait for its end."""
        process = self.agent(node)
        if process is None:
            raise LabError(f"the agent of {node} is not running")
        self.driver.signal(node, process, number)

    def start_agents(self, names: Sequence[str], update: Callable[[str], None] | None = None) -> None:
        """Start agents, a few at a time, until all are ready. Raises LabError with the log of one that is not.

        ``update`` is told how many are.
        """
        nodes = [self.node(name) for name in names]
        ready.start_agents(nodes, self._start_agent, PARALLEL, self.driver.poll_s, update)

    def _start_agent(self, node: LabNode) -> ProcessId:
        process = node.start()
        self._remember(node.name, process)
        return process

    # pods

    def pods(self) -> list[PodRecord]:
        """All pods."""
        return self.state.pods()

    def pod(self, name: str) -> PodRecord:
        """One pod. Raises LabError naming the ones there are."""
        return pods.find(self.state, name)

    def add_pod(
        self,
        node: str | None = None,
        name: str | None = None,
        capability_args: Mapping[str, Any] | None = None,
        manifest: Mappings | None = None,
        network: str = modes.CLUSTER,
    ) -> PodRecord:
        """Make a pod by CNI ADD. ``node`` None: the one with the fewest pods; ``name`` None: the next free one.

        ``manifest``: its object, of which name and namespace follow from ``name``, which has to be given then. It is
        there before the ADD, as in Kubernetes. ``network``: another one than the cluster's (``modes``); such a pod is
        no object of the cluster. Raises LabError with the plugin's error; then nothing of it is left.
        """
        if name is not None:
            topology.check_pod_name(name)
        modes.check(network, self.spec.driver, capabilities=capability_args, manifest=manifest)
        with self.state.lock(shared=True):
            self._reload()
            chosen = self.node(pods.home(self.state, network, node) or self._emptiest())
            cluster = Cluster(self, held=True)
            if manifest is not None and name is not None:
                cluster.announce(manifest, chosen.name)
            if name is None:
                pod = pods.add_any(self.state, chosen, capability_args, network)
            else:
                pod = pods.add(self.state, chosen, name, capability_args, network)
            if network == modes.CLUSTER:
                cluster.joined([pod], manifest)
        return pod

    def remove_pod(self, name: str, *, force: bool = False) -> None:
        """End what runs in the pod, send DEL, remove its namespace. ``force``: also when DEL fails."""
        with self.state.lock(shared=True):
            pod = self.pod(name)
            cluster = Cluster(self, held=True)
            value = cluster.leaving(name)
            try:
                pods.remove(self.state, self.node(pod.node), pod, force=force)
            except BaseException:
                cluster.returned(value)
                raise

    def _emptiest(self) -> str:
        counts = dict.fromkeys(self.record.nodes, 0)
        for pod in self.pods():
            counts[pod.node] = counts.get(pod.node, 0) + 1
        return min(self.record.nodes, key=lambda name: (counts[name], topology.node_index(name)))

    # use

    def namespace_of(self, target: str) -> str:
        """Namespace of a node ("": it has a kernel of its own), a pod, ``fabric`` or ``client``. Raises LabError."""
        if target == topology.FABRIC:
            return topology.fabric_namespace(self.spec.name)
        if target == topology.CLIENT and self.spec.has_client:
            return topology.client_namespace(self.spec.name)
        if target in self.record.nodes:
            return self.driver.space(target)
        names = [*self.record.nodes, *(pod.name for pod in self.pods())]
        if target not in names:
            raise LabError(
                f"lab {self.spec.name} has no node or pod {target!r}: {', '.join(names)}", usage=True
            )
        return self.pod(target).namespace

    def exec_argv(self, target: str, argv: Sequence[str]) -> list[str]:
        """The words that run a command in a node, a pod, ``fabric`` or ``client``. Raises LabError."""
        space = self.namespace_of(target)
        if target in {topology.FABRIC, topology.CLIENT}:
            return [*kernel_netns.exec_prefix(space), *argv]
        if target in self.record.nodes:
            return [*self.driver.prefix(target, space), *argv]
        pod = self.pod(target)
        node = self.node(pod.node)
        if modes.root(pod, {item.name: item for item in self.pods()}) != modes.CLUSTER:
            return [*node.prefix(space), *argv]
        return [*node.prefix(space), *resolv.words(node, topology.pod_key(target)[0], argv)]

    def traffic(self, source: str, address: str, interval: float = 0.005) -> AbstractContextManager[Stream]:
        """Pings from a node or a pod to an address every ``interval`` seconds. Raises LabError."""
        node = source if source in self.record.nodes else self.pod(source).node
        return self.driver.traffic(node, self.namespace_of(source), address, interval)

    def exec(
        self, target: str, argv: Sequence[str], *, check: bool = True, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command there and collect its output. ``check``: raise CalledProcessError when it fails."""
        return subprocess.run(
            self.exec_argv(target, argv), capture_output=True, text=True, check=check, timeout=timeout
        )

    def matrix(self, timeout: float = DEFAULT_TIMEOUT_S) -> Matrix:
        """Try who reaches whom. Raises LabError when there is no pod."""
        cluster, nodes, there = Cluster(self), self.nodes(), self.pods()
        tries = survey.service_tries(self.spec, nodes, there, cluster.objects(), cluster.served())
        return survey.run_matrix(self.spec, nodes, there, tries, timeout)

    def policy_matrix(
        self, only: tuple[int, int] | None = None, timeout: float = DEFAULT_TIMEOUT_S
    ) -> PolicyMatrix:
        """Try what policies do between pods. ``only``: one (protocol, port). Raises LabError without two pods."""
        return survey.run_policy_matrix(self.spec, self.pods(), Cluster(self).objects(), only, timeout)

    def status(self) -> dict[str, Any]:
        """The object ``lab status --json`` prints."""
        objects = Cluster(self).objects()
        return survey.status(self.spec, self.nodes(), self.pods(), self.record.processes, objects)

    # record

    def _remember(self, name: str, process: ProcessId) -> None:
        self._save(processes={**self.record.processes, name: process})

    def _save(self, **changes: Any) -> None:
        self.record = msgspec.structs.replace(self.record, **changes)
        self.state.save(self.record)

    def _reload(self) -> None:
        record = self.state.load()
        if record is None:
            raise LabError(f"lab {self.spec.name} has been taken down")
        self.record = record
