"""A lab with the nine pods: brought to a step's state, probed, compared."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Self

from pycni.kernel import netns
from pycni.lab import settle
from pycni.lab.apply import Cluster
from pycni.lab.objects import Key, Mappings, Objects, key_of
from pycni.lab.policy_probe import Outcome, PolicyProber, Shot
from pycni.lab.policy_station import Target
from pycni.lab.run import Lab
from pycni.lab.stations import Inside
from pycni.lab.topology import MANIFESTS, LabSpec, pod_name
from pycni.model.family import Family
from pycni.model.kube import TCP
from tests.lab import policy_states as states
from tests.lab.policy_build import Step
from tests.lab.policy_states import Oracle, Way, ways
from tests.lab.policy_world import (
    PODS,
    PORTS,
    PROTOCOLS,
    SPACES,
    pod_object,
    service_object,
    space_object,
)


def lab_name(pod: str) -> str:
    """What the lab calls a pod of the world."""
    space, name = pod.split("/")
    return pod_name(space, name)


class PolicyLab:
    """The lab, its pods' prober, and what is there when no case has changed anything."""

    def __init__(self, name: str, plane: str) -> None:
        self.plane = plane
        self.lab = Lab.up(LabSpec(name=name, nodes=3, family="dual", pods=0, proxy="nftables", policy=plane))
        try:
            values = [space_object(space) for space in SPACES]
            values += [make(pod) for make in (pod_object, service_object) for pod in PODS]
            self.cluster = Cluster(self.lab)
            self.cluster.apply([("the world", value) for value in values])
            self._objects = Objects(self.lab.state.folder / MANIFESTS)
            self.base = self.now = self._objects.load()
            self._ips = {pod: self.lab.pod(lab_name(pod)).ips for pod in PODS}
            targets = [
                Target(
                    pod,
                    netns.path(self.lab.pod(lab_name(pod)).namespace),
                    {family: self.address(pod, family) for family in Family},
                )
                for pod in PODS
            ]
            self.prober = PolicyProber(targets, PORTS)
        except BaseException:
            self.lab.down()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.prober.__exit__(None, None, None)
        self.lab.down()

    def address(self, pod: str, family: Family) -> str:
        return next(ip for ip in self._ips[pod] if (":" in ip) == (family is Family.V6))

    # --- states ----------------------------------------------------------------------------------------------------

    def begin(self, step: Step) -> int:
        """Write a step's state, without waiting for it; returns the change's number."""
        after = dict(self.base)
        for pod in PODS:
            key = Key("Pod", *pod.split("/"))
            after[key] = states.labelled(after[key], step.pods.get(pod))
        for space, labels in step.spaces.items():
            name = {"kubernetes.io/metadata.name": space}
            after[Key("Namespace", "", space)] = space_object(space, {**labels, **name})
        after |= {key_of(value): value for value in states.policies_of(step, self.address)}
        return self.write(after)

    def write(self, after: Mapping[Key, Mappings]) -> int:
        with self._objects.lock():
            number = self._objects.write(self.now, after)
        self.now = dict(after)
        return number

    def await_policies(self, number: int) -> None:
        assert settle.await_policies(self.lab.nodes(), number, settle.PATIENCE_S) == []

    def reach(self, step: Step) -> states.Objects:
        """Bring lab and kernel to a step's state; returns the objects."""
        number = self.begin(step)
        objects = self.objects()
        self.await_policies(number)
        return objects

    def objects(self) -> states.Objects:
        kinds = {"Pod", "Namespace", "Node", "NetworkPolicy", "ClusterNetworkPolicy"}
        return states.Objects(value for key, value in self.now.items() if key.kind in kinds)

    def socket(self, pod: str, family: Family, protocol: int, end: tuple[str, int]) -> socket.socket:
        """A socket in a pod, bound to an address and port. To be closed by the caller."""

        def make() -> socket.socket:
            kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
            sock = socket.socket(socket.AddressFamily(family), kind)
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(end)
            except BaseException:
                sock.close()
                raise
            return sock

        with Inside() as inside:
            return inside(netns.path(self.lab.pod(lab_name(pod)).namespace), make)

    # --- shots -----------------------------------------------------------------------------------------------------

    def shots(self, chosen: Iterable[Way], *, services: bool = False) -> dict[Way, Shot]:
        found = {way: Shot(*way) for way in chosen}
        if not services:
            return found
        vips = {
            (key.namespace, key.name, ":" in ip): ip
            for key, value in self.base.items()
            if key.kind == "Service"
            for ip in value["spec"]["clusterIPs"]
        }
        return {
            way: shot._replace(
                address=vips[(*way.target.split("/"), way.family is Family.V6)], at=way.port + 8000
            )
            for way, shot in found.items()
        }

    def shoot(self, said: Mapping[Way, bool], *, services: bool = False) -> dict[Way, Outcome]:
        """Try everything; ``said``: what is expected to get through."""
        shots = self.shots(said, services=services)
        outcomes = self.prober.run(shots.values(), {shots[way]: allowed for way, allowed in said.items()})
        return {way: outcomes[shot] for way, shot in shots.items()}

    def check(self, step: Step, oracle: Oracle, said: Mapping[Way, bool], *, services: bool = False) -> None:
        """Every connection does what the oracle says, and of those denied nothing comes to the pod's device."""
        outcomes = self.shoot(said, services=services)
        wrong = [
            way
            for way, outcome in outcomes.items()
            if outcome.allowed is not said[way] or outcome.arrived is not said[way] or not outcome.sound
        ]
        if wrong:
            told = "\n".join(f"{Shot(*way)}: {outcomes[way]}\n{oracle.told(way)}" for way in wrong[:6])
            number = len(wrong)
            raise AssertionError(
                f"{number} of {len(said)} are not as the oracle says, services={services}:\n{told}"
            )


_KNOWN: dict[tuple[str, int | None], dict[Way, bool]] = {}


def verdicts(oracle: Oracle, step: Step, turn: int | None = None) -> dict[Way, bool]:
    """Of every way. Where no addresses are named both families fare alike, and so do all labs with the same pods.

    ``turn``: of IPv6 only one protocol then, another one each time.
    """
    text = str(step)
    if "ipBlock" in text or "networks" in text:
        return {way: oracle.allowed(way) for way in ways()}
    if (text, turn) not in _KNOWN:
        found = {way: oracle.allowed(way) for way in ways((Family.V4,))}
        protocols = PROTOCOLS if turn is None else (PROTOCOLS[turn % len(PROTOCOLS)],)
        _KNOWN[text, turn] = found | {
            way._replace(family=Family.V6): allowed
            for way, allowed in found.items()
            if way.protocol in protocols
        }
    return _KNOWN[text, turn]
