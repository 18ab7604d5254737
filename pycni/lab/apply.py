"""The Kubernetes side of a lab: manifests become pods, Services with addresses, EndpointSlices and DNS records.

Life: a ``Cluster`` is made for one command. Each operation takes the lock of the lab's objects, reads them, works out
what they have to be (``apply_check``, ``apply_settle``: pure), makes pods by CNI ADD, has them served, and writes the
objects into the folder the agents watch; ends pods after their grace period with the lock free. As in Kubernetes a new
pod's object is there before its ADD, its policies before that, and it is in Services from when it listens until after
its grace period. In the end agents have the policies that follow in their kernels, or a line in ``problems`` says why
not. A command that is cut off leaves pods that are ending or were never made; the next one clears them away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pycni.lab import apply_check, apply_settle, dns, pods, resolv, serve_client, settle, topology, workloads
from pycni.lab.apply_check import Intent
from pycni.lab.dns_server import DnsServer
from pycni.lab.node import LabNode
from pycni.lab.objects import Key, Mappings, Objects, key_of
from pycni.lab.serve import ServedPod
from pycni.lab.state import PodRecord
from pycni.lab.topology import LabError, LabSpec
from pycni.model.kube import NAMESPACE, NODE, POD
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY

if TYPE_CHECKING:
    from pycni.lab.run import Lab

PARALLEL = 4
GRACE_S = 1.0
"""Of pods whose manifest names none (Kubernetes' default of 30 s is long for trying things)."""
FIRST = (NAMESPACE, NETWORK_POLICY, CLUSTER_NETWORK_POLICY)
"""What has to be known before the pods of the same change."""

State = dict[Key, Mappings]


class Cluster:
    """The objects of one lab and what is made of them."""

    def __init__(self, lab: Lab, *, held: bool = False) -> None:
        """``held``: the caller holds the lab's own lock."""
        self._lab = lab
        self._held = held
        self._objects = Objects(lab.state.folder / topology.MANIFESTS)
        self.problems: list[str] = []
        """What of the last change could not be done, one line each: listeners not opened, policies not programmed."""
        self._number = 0
        """Of the last change written."""

    def objects(self) -> State:
        """Everything there is."""
        return self._objects.load()

    def served(self) -> list[ServedPod]:
        """The pods that listen."""
        objects, records = self.objects(), self._lab.pods()
        return [
            pod
            for node in self._lab.record.nodes
            for pod in apply_settle.serving(node, objects, records, self._spec.families)
        ]

    # what the lab itself puts in

    def begin(self) -> None:
        """The Nodes and the first namespaces of a new lab: before any agent starts."""
        with self._objects.lock():
            self._write(
                {},
                self._with_nodes({_space(name): apply_check.namespace(name) for name in apply_check.SPACES}),
            )

    def refresh_nodes(self) -> None:
        """Nodes came, got their subnets, or went with their pods: a workload's and DNS come back elsewhere."""
        with self._change() as before:
            there = {Key(POD, *topology.pod_key(record.name)) for record in self._lab.pods()}
            kept = {key: value for key, value in before.items() if key.kind != POD or key in there}
            after = self._with_nodes(kept)
            new = [
                pod
                for key, value in after.items()
                if key.kind in workloads.KINDS
                for pod in workloads.plan(value, after).new
            ]
            self._carry_out(before, Intent(after, new, [], []))
        if dns.DNS_POD in before and dns.DNS_POD not in kept:
            self.start_dns()

    def announce(self, pod: Mappings, node: str) -> None:
        """``lab pod add`` is about to make a pod. Raises ConfigError, LabError when there is one already."""
        with self._change() as before:
            intent = apply_check.checked([("pod", pod)], before, self._spec.families)
            if not intent.new:
                raise LabError(f"{key_of(pod)} is there already", usage=True)
            self._write(before, {**intent.objects, key_of(pod): apply_settle.pending(pod, node)})

    def joined(self, records: Iterable[PodRecord], manifest: Mappings | None = None) -> None:
        """Pods were made by ``lab up`` or ``lab pod add``, by the manifest or plain."""
        with self._change() as before:
            after = dict(before)
            for record in records:
                key = Key(POD, *topology.pod_key(record.name))
                value = apply_settle.bare(record.name) if manifest is None else manifest
                if key not in after or apply_settle.is_pending(after[key]):
                    after[key] = apply_settle.with_status(value, record, ready=True, created=_now())
            self._settle(before, after)
        self._await_policies()

    def leaving(self, name: str) -> Mappings | None:
        """A pod is removed at once, without grace: take it out of everything first. Returns its object."""
        with self._change() as before:
            key = Key(POD, *topology.pod_key(name))
            after = {other: value for other, value in before.items() if other != key}
            self._settle(before, after)
        return before.get(key)

    def returned(self, pod: Mappings | None) -> None:
        """The pod could not be removed after all."""
        if pod is None:
            return
        with self._change() as before:
            self._settle(before, {**before, key_of(pod): pod})

    # what commands do

    def apply(self, documents: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Carry out manifests: (where it stands, mapping). Returns what became of each.

        Raises ConfigError (nothing has changed then), LabError when a pod cannot be made (no pod of this call stays).
        """
        with self._change() as before:
            intent = apply_check.checked(documents, before, self._spec.families)
            ended = self._carry_out(before, intent)
        self._await_end(ended)
        self._await_policies()
        return intent.told

    def delete(self, keys: Sequence[Key], grace_s: float | None = None) -> list[Key]:
        """Delete objects and what belongs to them; returns the objects that went. Waits for pods to end.

        Raises LabError naming one that is not there. ``grace_s``: instead of what pods' manifests say.
        """
        with self._change() as before:
            gone = [other for key in keys for other in apply_check.with_belongings(key, before)]
            after = {key: value for key, value in before.items() if key not in gone or key.kind == POD}
            ended = [key for key in gone if key.kind == POD]
            new: list[Mappings] = []
            marked = self._marked(after, ended, grace_s)
            for key, value in after.items():
                if key.kind in workloads.KINDS:
                    new += workloads.plan(value, marked).new
            ended = self._carry_out(before, Intent(marked, new, ended, []))
        self._await_end(ended)
        self._await_policies()
        return list(dict.fromkeys(gone))

    def label(self, keys: Sequence[Key], changes: Mapping[str, str | None]) -> None:
        """Set labels, take away those that are None. Raises LabError naming what is not there, ConfigError."""
        with self._change() as before:
            after = dict(before)
            for key in keys:
                apply_check.check_there(key, before)
                after[key] = apply_check.relabelled(before[key], changes)
            self._settle(before, after)
        self._await_policies()

    def set_ready(self, name: str, *, ready: bool, listen: bool | None = None) -> None:
        """Make a pod ready or not, and have it listen or not. Raises LabError."""
        self._lab.pod(name)
        with self._change() as before:
            key = Key(POD, *topology.pod_key(name))
            if key not in before:
                raise LabError(f"{key} is not among the lab's objects", usage=True)
            pod = apply_settle.with_ready(before[key], ready=ready, listen=listen)
            self._settle(before, {**before, key: pod})

    def start_dns(self) -> None:
        """Make the DNS pod and its Service."""
        self.apply([("the lab's DNS", value) for value in dns.objects(self._spec)])

    # carrying out

    @property
    def _spec(self) -> LabSpec:
        return self._lab.spec

    @contextmanager
    def _change(self) -> Iterator[State]:
        """The objects, with the lab kept from going down and pods that are due ended."""
        held = nullcontext() if self._held else self._lab.state.lock(shared=True)
        with held, self._objects.lock():
            before = self._without_unmade(self._objects.load())
            due = [key for key, pod in before.items() if key.kind == POD and _ends(pod) <= time.time()]
            if due:
                self._end_pods(before, due)
                before = self._objects.load()
            yield before

    def _without_unmade(self, objects: State) -> State:
        """The objects without pods that were announced by a command that was cut off before it had made them."""
        there = {Key(POD, *topology.pod_key(record.name)) for record in self._lab.pods()}
        kept = {
            key: value for key, value in objects.items() if not apply_settle.is_pending(value) or key in there
        }
        if len(kept) < len(objects):
            self._write(objects, kept)
        return kept

    def _carry_out(self, before: State, intent: Intent) -> list[Key]:
        """Make the pods, store everything. Returns the pods that are ending."""
        nodes = self._places(intent.new)
        wanted = _dated(before, intent.objects)
        announced = {
            **before,
            **{key: value for key, value in wanted.items() if key.kind in FIRST},
            **{
                key_of(pod): apply_settle.pending(pod, node)
                for pod, node in zip(intent.new, nodes, strict=True)
            },
        }
        if intent.new:
            self._write(before, announced)
        else:
            announced = before
        try:
            made = self._make(intent.new, nodes)
        except BaseException:
            self._write(announced, before)
            raise
        after = {**self._marked(wanted, intent.ended, None), **made}
        self._settle(announced, after)
        return intent.ended

    def _make(self, new: Sequence[Mappings], nodes: Sequence[str]) -> State:
        """Pods by CNI ADD, a few at a time. All or none. Raises LabError."""

        def make(pod: Mappings, node: str) -> PodRecord:
            key = key_of(pod)
            name = topology.pod_name(key.namespace, key.name)
            return pods.add(self._lab.state, self._lab.node(node), name)

        with ThreadPoolExecutor(PARALLEL) as pool:
            futures = [pool.submit(make, pod, node) for pod, node in zip(new, nodes, strict=True)]
        records = [future.result() for future in futures if future.exception() is None]
        failure = next((exc for future in futures if (exc := future.exception()) is not None), None)
        if failure is not None:
            for record in records:
                pods.remove(self._lab.state, self._lab.node(record.node), record, force=True)
            raise failure
        created = _now()
        return {
            key_of(pod): apply_settle.with_status(pod, record, ready=True, created=created)
            for pod, record in zip(new, records, strict=True)
        }

    def _places(self, new: Sequence[Mappings]) -> list[str]:
        """The node of each pod: the one it names, else the one with the fewest."""
        counts = dict.fromkeys(self._lab.record.nodes, 0)
        for record in self._lab.pods():
            counts[record.node] = counts.get(record.node, 0) + 1
        places = []
        for pod in new:
            wanted = (pod.get("spec") or {}).get("nodeName")
            node = wanted or min(counts, key=lambda name: (counts[name], topology.node_index(name)))
            counts[node] += 1
            places.append(node)
        return places

    def _marked(self, objects: Mapping[Key, Mappings], ended: Iterable[Key], grace_s: float | None) -> State:
        """The objects with some pods ending from now on."""
        marked = dict(objects)
        for key in ended:
            own = marked[key].get("spec", {}).get("terminationGracePeriodSeconds", GRACE_S)
            marked[key] = apply_settle.ending(marked[key], _now(), own if grace_s is None else grace_s)
        return marked

    def _settle(self, before: State, after: Mapping[Key, Mappings]) -> None:
        """Serve, complete, store, tell DNS. A new pod listens before it is in a Service, a gone one until after."""
        records = self._lab.pods()
        self.problems = self._serve({**before, **after}, records)
        pools = [topology.BALANCER_NETWORKS[family] for family in self._spec.families]
        complete, problems = apply_settle.settled(_dated(before, after), pools, time.time())
        self.problems += problems
        self._write(before, complete)
        if any(key.kind == POD and key not in after for key in before):
            self._serve(after, records)
        self._tell_dns(complete)

    def _write(self, before: Mapping[Key, Mappings], after: Mapping[Key, Mappings]) -> None:
        self._number = self._objects.write(before, after)

    def _await_policies(self) -> None:
        """Without the locks: what is written is written. Agents that do not run are not waited for."""
        if self._spec.policy != "none":
            running = [node for node in self._lab.nodes() if self._lab.agent(node.name) is not None]
            self.problems += settle.await_policies(running, self._number, settle.PATIENCE_S)

    def _serve(self, objects: Mapping[Key, Mappings], records: Sequence[PodRecord]) -> list[str]:
        """Have every node's server do what the objects say; returns what cannot be."""

        def tell(node: LabNode) -> list[str]:
            wanted = apply_settle.serving(node.name, objects, records, self._spec.families)
            return serve_client.tell(node, wanted)

        with ThreadPoolExecutor(PARALLEL) as pool:
            return [line for lines in pool.map(tell, self._lab.nodes()) for line in lines]

    def _tell_dns(self, objects: Mapping[Key, Mappings]) -> None:
        if dns.DNS_POD not in objects:
            return
        servers = topology.dns_addresses(self._spec)
        spaces = [key.name for key in objects if key.kind == NAMESPACE]
        for node in self._lab.nodes():
            for space in spaces:
                resolv.write(node, space, dns.resolv_conf(space, servers))
        record = pods.find(self._lab.state, topology.pod_name(*dns.DNS_POD[1:]))
        DnsServer(self._lab.node(record.node), record.namespace).update(dns.records(objects))

    def _await_end(self, ended: Sequence[Key]) -> None:
        """Wait until pods are due, then end them; others may work meanwhile."""
        waiting = set(ended)
        while waiting:
            objects = self._objects.load()
            waiting &= objects.keys()
            ends = [_ends(objects[key]) for key in waiting]
            if not ends:
                return
            time.sleep(max(0.0, min(ends) - time.time()))
            with self._change():
                pass  # which ends what is due

    def _end_pods(self, before: State, due: Sequence[Key]) -> None:
        """Take pods out of the objects, then away."""
        self._settle(before, {key: value for key, value in before.items() if key not in due})
        names = {topology.pod_name(key.namespace, key.name) for key in due}
        records = [record for record in self._lab.pods() if record.name in names]
        with ThreadPoolExecutor(PARALLEL) as pool:
            for future in [pool.submit(self._remove, record) for record in records]:
                future.result()

    def _remove(self, record: PodRecord) -> None:
        pods.remove(self._lab.state, self._lab.node(record.node), record, force=True)

    def _with_nodes(self, objects: Mapping[Key, Mappings]) -> State:
        """The objects with a Node for every node there is; what was applied to one stays."""
        there = {Key(NODE, "", node.name): node for node in self._lab.nodes()}
        kept = {key: value for key, value in objects.items() if key.kind != NODE or key in there}
        for key, node in there.items():
            network = node.pod_network()
            kept[key] = {
                "apiVersion": "v1",
                "kind": NODE,
                "metadata": kept.get(key, {}).get("metadata")
                or {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
                "spec": {"podCIDRs": [str(subnet) for subnet in network.subnets]} if network else {},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": str(address.ip)}
                        for address in node.addresses.values()
                    ]
                },
            }
        return dict(sorted(kept.items()))


def _ends(pod: Mappings) -> float:
    """When a pod is due to end, in seconds since the epoch; never for one that is not ending."""
    meta = pod["metadata"]
    if not workloads.is_ending(pod):
        return math.inf
    begun = datetime.fromisoformat(meta["deletionTimestamp"]).timestamp()
    return begun + float(meta.get("deletionGracePeriodSeconds") or 0)


def _dated(before: Mapping[Key, Mappings], after: Mapping[Key, Mappings]) -> State:
    """What is new was made now."""
    return {
        key: value
        if key in before or "creationTimestamp" in value["metadata"]
        else {**value, "metadata": {**value["metadata"], "creationTimestamp": _now()}}
        for key, value in after.items()
    }


def _space(name: str) -> Key:
    return Key(NAMESPACE, "", name)


def _now() -> str:
    return datetime.now(UTC).isoformat()
