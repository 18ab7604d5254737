"""Leases in Node objects, as flannel's Kubernetes subnet manager keeps them: ``sources.leases`` without etcd.

Life: the cluster gives every node its pod networks (``spec.podCIDRs``); ``netconf`` waits for the configuration file;
``acquire`` writes our annotations and has our lease then; ``run`` follows all nodes into the store (``kube_nodes``),
looks at the file and keeps our annotations what they should be; ``publish`` changes them. A lease ends with its node
object and is never renewed. Nodes of both kinds form one network: annotations and condition are flannel's.

Everything waits and tries again while the API is away; nothing leaves the store meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network
from typing import NoReturn

from pycni.errors import ConfigError, StoreError
from pycni.model.kube import NODE, KubeNode
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.reconcile.backoff import Backoff
from pycni.sources.insisting import Insisting, lost_lease
from pycni.sources.kube import SILENCE_S, KindFollower, Selection
from pycni.sources.kube_client import STRATEGIC, KubeClient
from pycni.sources.kube_nodes import NodeLeases
from pycni.sources.leases_own import LeaseLostError
from pycni.store import Store
from pycni.wire.kube import decode_object
from pycni.wire.kube_flannel import DEFAULT_PREFIX, annotation_names, node_subnets, wanted_annotations
from pycni.wire.lease import HeldLease
from pycni.wire.netconf import decode_netconf, unknown_keys

__all__ = ["HeldLease", "KubeLeaseSource", "LeaseLostError"]
log = logging.getLogger("pycni.leases")
NETCONF, CONFIG = "netconf", "config"


class KubeLeaseSource(Insisting):
    """The interface of ``sources.leases.LeaseSource``. Times are in seconds; one event loop.

    ``look_s``: how often the file is looked at. ``check_s``: how often our node object is read though nothing was heard
    of it. ``set_condition``: whether our node's condition NodeNetworkUnavailable
    is set to False. ``grace_s``: see ``kube_nodes``. Raises ConfigError for a wrong ``prefix``.
    """

    def __init__(
        self,
        client: KubeClient,
        node_name: str,
        conf_path: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        set_condition: bool = True,
        look_s: float = 2.0,
        retry_s: float = 30.0,
        check_s: float = 300.0,
        grace_s: float = 60.0,
        silence_s: float = SILENCE_S,
        rng: random.Random | None = None,
    ) -> None:
        super().__init__("the Kubernetes API answers again", retry_s, rng, (StoreError, ConfigError))
        self.on_held: Callable[[HeldLease], None] = lambda _held: None
        """Called whenever what we hold has changed."""
        self.held: HeldLease | None = None
        """The lease of this node, as far as we know."""
        self.written = 0
        """Times our annotations were written."""
        self._client = client
        self._name = node_name
        self._expected = ""
        self._path = conf_path
        self._names = annotation_names(prefix)
        self._set_condition = set_condition
        self._look_s = look_s
        self._check_s = check_s
        self._nodes = NodeLeases(node_name, self._names, grace_s=grace_s)
        self._nodes.on_own = self._saw_own
        self.follower = KindFollower(
            client, Selection(NODE), self._nodes, silence_s=silence_s, longest_pause_s=retry_s, rng=self._rng
        )
        """The watch of the nodes with its counters."""
        self._lock = asyncio.Lock()
        self._attrs: LeaseAttrs | None = None
        self._own: KubeNode | None = None
        self._declared = False
        self._news = asyncio.Event()
        self._conf: NetConf | None = None
        self._conf_raw: bytes | None = None
        self._conf_trouble = ""

    # --- state for health and metrics ------------------------------------------------------------------------

    @property
    def expected(self) -> str:
        """The record an earlier life of this node held. Set it before ``run``."""
        return self._expected

    @expected.setter
    def expected(self, name: str) -> None:
        self._expected = name
        self._nodes.expected = bool(name)

    @property
    def connected(self) -> bool:
        """Whether the nodes are being followed right now."""
        return self.follower.connected

    @property
    def malformed(self) -> dict[str, str]:
        """Nodes that cannot be read: name -> why."""
        return {**self.follower.malformed, **self._nodes.malformed}

    # --- what the network component calls --------------------------------------------------------------------

    async def netconf(self) -> NetConf:
        """The network configuration; waits until the file holds a valid one."""
        while (conf := self._read_conf()) is None:
            self._wait_for(f"net-conf: {self._conf_trouble}")
            await asyncio.sleep(self._look_s)
        self._over()
        return conf

    async def acquire(
        self,
        attrs: LeaseAttrs,
        previous: tuple[IPv4Network | None, IPv6Network | None] = (None, None),
        remembered: HeldLease | None = None,
    ) -> HeldLease:
        """Our lease: the node's pod networks with ``attrs``; waits until the node has them and says so.

        Which subnet it is, is not ours to choose: ``previous`` and ``remembered`` only show whether it has changed.
        """
        async with self._lock:
            while True:
                conf = await self.netconf()
                node = await self._insist(f"reading node {self._name}", self._read_node)
                reason, lease = self._lease(node, conf, attrs)
                if lease is not None and node is not None:
                    break
                self._wait_for(reason)
                await asyncio.sleep(min(self._look_s, self._retry_s))
            before = remembered.lease if remembered is not None else None
            was = (before.subnet, before.subnet6) if before is not None else previous
            if was not in ((None, None), (lease.subnet, lease.subnet6)):
                log.warning("lease %s: this node had %s and %s before", lease.key, *was)
            await self._insist(f"annotating node {self._name}", lambda: self._annotate(node, attrs))
            log.info("lease %s: held, by spec.podCIDRs of node %s", lease.key, self._name)
            return self._took(lease)

    async def publish(self, attrs: LeaseAttrs) -> HeldLease:
        """Change what our annotations tell peers. Waits until it is written. Raises LeaseLostError."""
        async with self._lock:
            assert self.held is not None, "publish before acquire"
            node = await self._insist(f"reading node {self._name}", self._read_node)
            lease = Lease(subnet=self.held.lease.subnet, subnet6=self.held.lease.subnet6, attrs=attrs)
            if node is not None:
                self._need_same(node)
                await self._insist(f"annotating node {self._name}", lambda: self._annotate(node, attrs))
            else:
                self._attrs = attrs
                log.warning("node %s does not exist: peers will be told when it does", self._name)
            self._over()
            return self._took(lease)

    def readdressed(self) -> None:
        """This node's address has changed: connections made from the old one are dead."""
        self._client.redial()

    async def run(self, store: Store) -> NoReturn:
        """Follow all nodes into the store and keep our annotations, for ever. May start before ``acquire``.

        Raises LeaseLostError when our node has other pod networks: acquire anew, then run again.
        """
        self._nodes.store = store
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.follower.run(), name="follow nodes")
                tasks.create_task(self._follow_conf(store), name="follow net-conf")
                tasks.create_task(self._keep(), name="keep annotations")
        except BaseExceptionGroup as group:
            lost = lost_lease(group)
            self.held = None
            raise lost from None
        finally:
            self._nodes.close()
        raise AssertionError("the tasks are eternal")

    # --- net-conf ---------------------------------------------------------------------------------------------

    async def _follow_conf(self, store: Store) -> NoReturn:
        """Look at the file again and again: it is mounted from a ConfigMap and replaced as a whole."""
        while True:
            conf = self._read_conf()
            if conf is not None:
                self._nodes.use(conf.families)
                store.put(NETCONF, CONFIG, conf)
            await asyncio.sleep(self._look_s)

    def _read_conf(self) -> NetConf | None:
        """The file's net-conf; the last valid one while it is missing or wrong, None before there was one."""
        try:
            with open(self._path, "rb") as file:
                raw = file.read(1 << 20)
            if raw != self._conf_raw:
                self._conf = decode_netconf(raw)
                self._conf_raw = raw
                unknown = unknown_keys(raw)
                if unknown:
                    log.warning("%s: unknown keys ignored: %s", self._path, ", ".join(unknown))
        except (OSError, ConfigError) as exc:
            text = f"{self._path}: {exc.strerror if isinstance(exc, OSError) else exc}"
            if text != self._conf_trouble:
                rest = "; the last net-conf stays in force" if self._conf is not None else ""
                log.error("%s%s", text, rest)  # noqa: TRY400  # no bug of ours to trace
            self._conf_trouble = text
        else:
            self._conf_trouble = ""
        return self._conf

    # --- our own node -----------------------------------------------------------------------------------------

    def _lease(self, node: KubeNode | None, conf: NetConf, attrs: LeaseAttrs) -> tuple[str, Lease | None]:
        """Our lease, or why there is none."""
        if node is None:
            return (
                f"node {self._name} does not exist in Kubernetes (node-name must be the node object's)",
                None,
            )
        try:
            subnet, subnet6 = node_subnets(node, conf.families)
        except ConfigError as exc:
            return str(exc), None
        lease = Lease(subnet=subnet, subnet6=subnet6, attrs=attrs)
        missing = [family.label for family in conf.families if lease.of(family) is None]
        if missing:
            reason = f"node {self._name} has no {' and '.join(missing)} podCIDR (spec.podCIDRs: {list(node.pod_cidrs)})"
            return f"{reason}: is kube-controller-manager started with --allocate-node-cidrs?", None
        return "", lease

    async def _read_node(self) -> KubeNode | None:
        raw = await self._client.get(NODE, self._name)
        if raw is None:
            return None
        _, node = decode_object(raw)
        assert isinstance(node, KubeNode)
        return node

    async def _annotate(self, node: KubeNode, attrs: LeaseAttrs) -> None:
        """Have our node object say ``attrs``. Raises StoreError."""
        wrong = self._wrong(node, attrs)
        self._attrs = attrs
        if not wrong:
            return
        # Through the status subresource, as flannel: its roles allow nothing else.
        await self._client.patch(
            NODE, self._name, {"metadata": {"annotations": wrong}}, "status", content=STRATEGIC
        )
        self.written += 1

    def _wrong(self, node: KubeNode, attrs: LeaseAttrs) -> dict[str, str]:
        """The annotations of ours that say something else, as they should be."""
        told = node.meta.annotations
        wanted = wanted_annotations(attrs, told, self._names)
        return {name: text for name, text in wanted.items() if told.get(name) != text}

    async def _declare_available(self) -> None:
        """Tell the scheduler that pods here have a network; clouds taint a node until somebody does."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "NetworkUnavailable",
            "status": "False",
            "reason": "FlannelIsUp",
            "message": "Flannel is running on this node",
            "lastTransitionTime": now,
            "lastHeartbeatTime": now,
        }
        patch = {"status": {"conditions": [condition]}}
        await self._client.patch(NODE, self._name, patch, "status", content=STRATEGIC)

    def _saw_own(self, node: KubeNode | None) -> None:
        """The follower has seen our node object."""
        self._own = node
        self._news.set()

    async def _keep(self) -> NoReturn:
        """Correct our annotations whenever somebody has changed them."""
        fighting = Backoff(min(0.2, self._retry_s), self._retry_s, jitter=0.5, chance=self._rng.random)
        loop = asyncio.get_running_loop()
        quiet_after = 0.0
        while True:
            check = False
            try:
                async with asyncio.timeout(self._check_s * self._rng.uniform(0.8, 1.0)):
                    await self._news.wait()
            except TimeoutError:
                check = True
            self._news.clear()
            written = self.written
            try:
                async with self._lock:
                    if check:
                        self._own = await self._read_node()
                    await self._look_after()
            except StoreError as exc:
                self._trouble.warn(f"annotations of node {self._name}: {exc}; trying again")
                self._news.set()
                await asyncio.sleep(fighting.next())
                continue
            if self.written > written:
                # Two agents with one name would correct each other for ever: each correction waits longer.
                if loop.time() > quiet_after:
                    fighting.reset()
                await asyncio.sleep(fighting.next())
                quiet_after = loop.time() + self._retry_s

    async def _look_after(self) -> None:
        node, attrs = self._own, self._attrs
        if self.held is None or attrs is None or node is None:
            return
        self._need_same(node)
        if self._wrong(node, attrs):
            # Maybe only the watch is behind what we have written ourselves.
            fresh = await self._read_node()
            if fresh is not None and self._wrong(fresh, attrs):
                self._need_same(fresh)
                log.warning("annotations of node %s were changed; written again", self._name)
                await self._annotate(fresh, attrs)
        if self._set_condition and not self._declared:
            await self._declare_available()
            self._declared = True

    def _need_same(self, node: KubeNode) -> None:
        """Raise LeaseLostError when the node has other pod networks than ours."""
        assert self.held is not None
        lease = self.held.lease
        if not node.pod_cidrs:
            return  # made anew, and about to get some
        mine = {str(net) for net in (lease.subnet, lease.subnet6) if net is not None}
        if not mine <= set(node.pod_cidrs):
            raise LeaseLostError(lease.key, f"spec.podCIDRs, which is {', '.join(node.pod_cidrs)} now")

    def _took(self, lease: Lease) -> HeldLease:
        """Our annotations were written or found right."""
        held = HeldLease(lease=lease, expires=None)
        self._over()
        news = held != self.held
        self.held = held
        self._nodes.own_changed(lease.attrs)
        self._news.set()
        if news:
            self.on_held(held)
        return held
