"""A node whose pods are on the underlay's own subnet: its CNI operations and its policy component, on a ``Segment``."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any, NamedTuple

from pycni.agent.cni_ops import CniOps
from pycni.agent.health import Health
from pycni.agent.pods import Pods
from pycni.ipam.endpoints import EndpointStore
from pycni.ipam.pool import Pools
from pycni.kernel import netns as namespaces
from pycni.kernel.pod import PodDriver
from pycni.model.podnet import PodNetwork
from pycni.policy import cleanup
from pycni.policy.component import PolicyComponent
from tests.netns.fresh import fresh_spaces
from tests.netns.podenv import Env, Pod, node
from tests.netns.policy_thread import Manifests, PolicyThread
from tests.netns.underlay_segment import FAR, NODE, PEER, Segment
from tests.waiting import wait_for

SERVICE = "10.96.0.10"
PODNET = PodNetwork(
    subnets=(ip_network("10.1.2.0/24"),),
    networks=(ip_network("10.1.0.0/16"),),
    mtu=1450,
    exits=("eth1",),
    own=(ip_interface("192.0.2.1/24"), ip_interface("2001:db8::1/64")),
    services=(ip_network("10.96.0.0/12"),),
)
RANGES = [
    [
        {
            "subnet": "192.0.2.0/24",
            "rangeStart": "192.0.2.10",
            "rangeEnd": "192.0.2.29",
            "gateway": "192.0.2.2",
        }
    ],
    [
        {
            "subnet": "2001:db8::/64",
            "rangeStart": "2001:db8::10",
            "rangeEnd": "2001:db8::29",
            "gateway": "2001:db8::2",
        }
    ],
]


class Folder(Manifests):
    """Manifests of the segment's node."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, NODE)

    def pod(
        self, name: str, namespace: str = "shop", *, ips: Any = (), node: str = "n1", **labels: str
    ) -> None:
        self.put(
            "Pod", name, namespace, labels,
            spec={"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 80}]}]},
            status={"phase": "Running", "podIPs": [{"ip": address} for address in ips]},
        )  # fmt: skip


class Agent:
    """CNI operations in the node's namespace; the policy component on a thread of its own in it."""

    def __init__(self, space: str, folder: Path, *, flags: tuple[str, ...] = ()) -> None:
        self.space, self.folder = space, folder
        self.flags = flags
        self.manifests = Folder(folder / "manifests")
        self.podnet: PodNetwork | None = PODNET
        self._thread: PolicyThread | None = None

    def start(self, *, listed: bool = True, ready: bool = True) -> None:
        self.health = Health()
        self.records = EndpointStore(str(self.folder / "state"))
        self.pools = Pools(str(self.folder / "networks"), in_use=self.records.in_use)
        self.driver = PodDriver()
        self.driver.start()
        self.pods = Pods(self.driver, self.records)
        self._thread = PolicyThread(
            self.space,
            ["--policy-sync-period=600", f"--state-dir={self.folder / 'state'}", *self.flags],
            self.manifests.path,
            self.records,
            health=self.health,
            listed=listed,
            exits=lambda: ("eth1",),
        )
        self.ops = CniOps(
            ipam=self.pools,
            endpoints=self.records,
            pods=self.pods,
            podnet=lambda: self.podnet,
            not_ready_reason=lambda: "",
            boot_id="boot",
            gates=[self.component.gate],
        )
        self.ops.resume()
        self.ops.adopt()
        if ready:
            wait_for(lambda: self.red == "", "policies to be programmed")

    @property
    def component(self) -> PolicyComponent:
        assert self._thread is not None
        return self._thread.component

    def read(self) -> None:
        """Let the manifests be read."""
        assert self._thread is not None
        self._thread.read()

    def stop(self) -> None:
        """As when the agent ends: the kernel keeps everything."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            thread.stop()
        finally:
            self.driver.close()
            self.pools.close()
            self.records.close()

    @property
    def red(self) -> str:
        """Why health is red; "" when it is not."""
        return self.health.red().get("policy", "")

    # --- CNI ------------------------------------------------------------------------------------------------------

    def conf(self, kind: str = "macvlan", **keys: Any) -> dict[str, Any]:
        return {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "pycni",
            "attachment": kind,
            "ipam": {"type": "pycni", "ranges": RANGES},
            **keys,
        }

    def call(self, command: str, pod: Pod | None, conf: dict[str, Any], name: str = "") -> tuple[int, Any]:
        """Exit code and decoded answer. ``name``: of the pod in namespace shop, or ``namespace/name``."""
        namespace, _, own = name.rpartition("/")
        args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace or 'shop'};K8S_POD_NAME={own}" if name else ""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.name if pod is not None else "none",
            "CNI_NETNS": namespaces.path(pod.name) if pod is not None and command != "GC" else "",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/nowhere",
            "CNI_ARGS": args,
        }
        code, out = self.ops.handle(
            environment, json.dumps(conf).encode(), pod.fd if pod is not None else None
        )
        return code, json.loads(out) if out else None

    def add(self, pod: Pod, name: str, conf: dict[str, Any] | None = None) -> dict[str, Any]:
        """ADD that succeeds; the pod object's addresses are its result's."""
        code, found = self.call("ADD", pod, conf or self.conf(), name)
        assert code == 0, found
        for entry in found["ips"]:
            address = str(ip_interface(entry["address"]).ip)
            if ":" in address:
                pod.v6 = lambda address=address: address  # type: ignore[method-assign,misc]
            else:
                pod.v4 = lambda address=address: address  # type: ignore[method-assign,misc]
        answer: dict[str, Any] = found
        return answer

    def settle(self) -> None:
        """Wait for removals in the background."""
        wait_for(lambda: not self.ops.busy(), "removals to end")

    def clear(self) -> None:
        """Remove all pods."""
        if self._thread is not None:
            for endpoint in self.records.all():
                self.ops.remove(endpoint)
            self.settle()


class Ground(NamedTuple):
    """What agents come and go on."""

    env: Env
    segment: Segment
    far: Pod
    peer: Pod


class World(NamedTuple):
    """The same with an agent."""

    env: Env
    agent: Agent
    far: Pod
    peer: Pod


@contextlib.contextmanager
def underlay() -> Iterator[Ground]:
    """The calling thread is in the node's namespace inside."""
    with fresh_spaces() as make, node(make) as env:
        segment = Segment(make)
        try:
            yield Ground(env, segment, segment.host(FAR), segment.host(PEER))
        finally:
            segment.close()


@contextlib.contextmanager
def populated(ground: Ground, folder: Path) -> Iterator[World]:
    """With an agent that is not started; its pods and its tables go at the end."""
    agent = Agent(ground.env.name, folder)
    try:
        yield World(ground.env, agent, ground.far, ground.peer)
    finally:
        agent.clear()
        agent.stop()
        _, failed = cleanup.leftovers()
    assert not failed
