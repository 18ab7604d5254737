"""One pass of the network component: from what is known to what the kernel holds.

Life of a pass: look at the underlay when it may have changed; derive the plan when an input did; make the node ready
for pods; compile the leases; carry the difference into the kernel. What the pass finds wrong with its inputs is
``trouble``: the plan stays as it is and health is red. What the kernel refuses fails the pass, which is repeated.

All state changes happen on the event loop; blocking work is handed to ``work`` (one thread).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

import msgspec

from pycni.agent import memory
from pycni.agent.drift import Concern, Watchman
from pycni.agent.fabric_sync import FabricSync, Outcome, raise_for
from pycni.agent.memory import Memory
from pycni.agent.network_course import CourseKeeper, netconfs
from pycni.agent.network_inputs import InputMaker, Work
from pycni.agent.network_plan import NodeOptions, Plan, make_plan, need_fit
from pycni.agent.network_report import NetworkReport
from pycni.agent.settings import Settings
from pycni.agent.vtep_probe import VtepProber
from pycni.agent.vtep_probe_targets import Targets
from pycni.agent.wireguard_rotate import KeyRotation
from pycni.backends.bgp import COMPONENT
from pycni.backends.change import Course
from pycni.backends.compiler import FabricCompiler, Touched
from pycni.backends.extension import Extension, environment
from pycni.backends.wireguard import published_key
from pycni.errors import ConfigError, KernelError
from pycni.kernel.fabric import Failure, Tables
from pycni.model.extension import Commands
from pycni.model.fabric import FabricState
from pycni.model.family import Family
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import NetConf
from pycni.model.node import Underlay
from pycni.model.podnet import PodNetwork
from pycni.store import Snapshot, Store
from pycni.wire.lease import HeldLease

log = logging.getLogger("pycni.network")

INPUT_RETRY_S = 1.0
"""Between attempts to get what a plan is made from: a key in a file, the output of a command."""
AT_ONCE_S = 0.001
FindUnderlay = Callable[[Settings, Sequence[Family]], Underlay]


class NetworkPass:
    """The reconcile pass with what it remembers. Called by one runner, on one event loop."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        sync: FabricSync,
        work: Work,
        report: NetworkReport,
        *,
        find_underlay: FindUnderlay,
        prober: VtepProber | None,
        resync_s: float,
        course: CourseKeeper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._sync = sync
        self._work = work
        self._report = report
        self._find_underlay = find_underlay
        self._prober = prober
        self._resync_s = resync_s
        self.course = course
        """Where this node is on its way from one backend to another."""
        self._options = NodeOptions(
            name=settings.node_name,
            public_ip=settings.public_ip,
            public_ipv6=settings.public_ipv6,
            ip_masq=settings.ip_masq,
            ip_masq_exclude=settings.ip_masq_exclude,
            ip_masq_fully_random=not settings.ip_masq_fully_random_disable,
            bgp=COMPONENT in settings.components,
            services=settings.service_cluster_ip_range,
        )
        self.keys = KeyRotation(settings.state_dir, settings.node_name, settings.wireguard_key_period * 3600)
        self._maker = InputMaker(settings, self._options, sync, work, self.keys)
        self.watchman = Watchman()
        self.stale = Concern.EVERYTHING
        """What the next pass has to look at."""
        self.conf: NetConf | None = None
        """The net-conf in use when the store has none yet."""
        self.held: HeldLease | None = None
        self.acquired = False
        """Whether ``held`` was confirmed by the source in this life."""
        self.last_published: LeaseAttrs | None = None
        """What peers were told last, also by an earlier life."""
        self.plan: Plan | None = None
        self.pods: PodNetwork | None = None
        """Set once this node is ready for pods."""
        self.planned = asyncio.Event()
        """Set whenever a plan was made."""
        self.trouble = ""
        self.again_in = 0.0
        """Seconds until the next pass has to come; 0 when it need not."""
        self._underlay: Underlay | None = None
        self._seen_for: tuple[Family, ...] | None = None
        self._underlay_trouble = self._plan_trouble = self._file_trouble = ""
        self._inputs: object = None
        self._planned_for: NetConf | None = None
        self._prepared: object = None
        self._compiler: FabricCompiler | None = None
        self._targets = Targets(prober, bgp=self._options.bgp) if prober is not None else None
        self._last_full = float("-inf")

    @property
    def newest_conf(self) -> NetConf | None:
        """The net-conf to go by: the store's, else the one we were told or remember."""
        found: NetConf | None = self._store.snapshot().of("netconf").get("config", self.conf)
        return found

    @property
    def compiler(self) -> FabricCompiler | None:
        """Peers, refusals and what is wanted of them; None before the first plan."""
        return self._compiler

    @property
    def desired(self) -> FabricState | None:
        """A copy of what the kernel is to hold; None before the first plan."""
        if self._compiler is None:
            return None
        state = self._compiler.state
        tables = {name: dict(getattr(state, name)) for name in ("links", *Tables._fields)}
        return msgspec.structs.replace(state, **tables)

    def look(self, desired: FabricState) -> FabricState:
        """What the kernel holds of it (blocking). Raises KernelError."""
        return self._sync.look(desired)

    @property
    def settled(self) -> bool:
        """Whether the plan follows from the newest net-conf."""
        return self.plan is not None and self._planned_for == self.newest_conf

    async def __call__(self) -> None:
        """Run one pass. Raises KernelError, OSError or a group of KernelErrors; the next one looks at everything."""
        stale, self.stale = self.stale, Concern.NOTHING
        self.again_in = 0.0
        try:
            await self._run(stale)
        except BaseException:
            self.stale |= stale | Concern.FABRIC
            raise

    async def _run(self, stale: Concern) -> None:
        now = asyncio.get_running_loop().time()
        routine = now - self._last_full >= self._resync_s
        if routine:
            stale |= Concern.EVERYTHING
        snapshot = self._store.snapshot()
        conf = self.newest_conf
        await self._look_at_underlay(conf, stale)
        course = await self._make_plan(conf, snapshot)
        plan, held = self.plan, self.held
        if plan is None or plan.site is None or held is None:
            self.pods = None
            self._tell_trouble()
            return
        await self._prepare(plan, held, routine)
        self._tell_trouble()
        if "lease" not in snapshot.listed:
            return
        reason = self.watchman.last if stale & Concern.FABRIC and not routine else ""
        outcome = await self._synchronise(plan, snapshot, stale)
        if outcome is not None and outcome.changed and reason:
            self._report.repaired(outcome.changed, reason)
        self.watchman.last = ""
        self._report.synchronised()
        # What was carried out may make the next step possible.
        moved = conf is not None and self._step(conf, snapshot) != course
        self.again_in = sooner(self.again_in, AT_ONCE_S if moved else self.course.wake_s)

    def _tell_trouble(self) -> None:
        self.trouble = self._underlay_trouble or self._plan_trouble or self._file_trouble
        self._report.trouble(self.trouble)

    def switch_checksum(self, device: str, *, on: bool) -> bool:
        """Switch a device's checksum offload (blocking); whether that changed it. Raises KernelError."""
        return self._sync.switch_checksum(device, on)

    # --- inputs ---------------------------------------------------------------------------------------------

    async def _look_at_underlay(self, conf: NetConf | None, stale: Concern) -> None:
        """Find the external interface, when it may be another one or have changed."""
        families = conf.families if conf is not None else ()
        if self._underlay is not None and families == self._seen_for and not stale & Concern.UNDERLAY:
            return
        try:
            found = await self._work(lambda: self._find_underlay(self._settings, families))
        except (ConfigError, KernelError) as error:
            self._underlay_trouble = str(error)
            self.stale |= Concern.UNDERLAY
            return
        self._underlay_trouble = ""
        self._seen_for = families
        if found != self._underlay:
            log.info(
                "underlay %s: mtu %d, %s", found.name, found.mtu, ", ".join(str(own) for own in found.on_link)
            )
        self._underlay = found

    def _step(self, conf: NetConf, snapshot: Snapshot) -> Course:
        """Which backends this node has now."""
        own = self.held.lease.key if self.held is not None else ""
        return self.course.step(conf, snapshot, own, asyncio.get_running_loop().time())

    async def _make_plan(self, conf: NetConf | None, snapshot: Snapshot) -> Course | None:
        """Derive the plan again when an input changed; a wrong input leaves the plan as it is."""
        underlay = self._underlay
        if conf is None or underlay is None:
            return None
        course = self._step(conf, snapshot)
        lease = self.held.lease if self.held is not None else None
        subnets = (lease.subnet, lease.subnet6) if lease is not None else None
        published = published_key(lease.attrs) if lease is not None else b""
        now = asyncio.get_running_loop().time()
        inputs = (conf, underlay, subnets, self.acquired, course, self.keys.inputs(published, now))
        if inputs == self._inputs:
            return course
        macs = self.plan.node.macs if self.plan is not None else {}
        try:
            made = await self._maker.make(
                netconfs(conf, course), underlay, macs, self.last_published, published
            )
        except (ConfigError, KernelError) as error:  # can be set right meanwhile: the next pass tries again
            self._plan_trouble = str(error)
            self.again_in = INPUT_RETRY_S
            self.planned.set()
            return course
        try:
            if lease is not None and self.acquired:
                need_fit(conf, lease)
            plan = make_plan(
                self._options,
                underlay,
                conf,
                made.macs,
                lease,
                wireguard_key=made.wireguard_key,
                following_key=made.following_key,
                extension_output=made.extension_output,
                course=course,
            )
        except ConfigError as error:
            self._plan_trouble = str(error)
        else:
            self._plan_trouble = ""
            self._planned_for = conf
            if plan != self.plan:
                self.plan = plan
                self._compiler = None
                self._report.replanned()
        self._inputs = (*inputs[:-1], self.keys.inputs(published, now))
        self.planned.set()
        return course

    # --- effects --------------------------------------------------------------------------------------------

    async def _prepare(self, plan: Plan, held: HeldLease, routine: bool) -> None:
        """Make this node ready for pods, and remember the lease."""
        if self._prepared == (plan, held) and not routine:
            return
        assert plan.pods is not None
        pods, settings = plan.pods, self._settings
        families, underlay = plan.conf.families, plan.node.underlay.name
        commands = _commands(plan)

        def job() -> str:
            if commands is not None and plan.site is not None:
                variables = environment(plan.node, plan.conf, plan.site.own, plan.attrs)
                try:
                    self._sync.extension.settle(commands, variables)
                except KernelError as error:
                    if plan.conf.backend.commands == commands:
                        raise
                    return str(error)  # the network still has another backend, which is looked after
            self._sync.prepare(families, underlay, plan.firewall)
            try:
                if self.acquired:
                    memory.save(settings.state_dir, Memory(held, plan.conf, plan.others))
                memory.save_subnet_env(settings.subnet_file, pods)
            except OSError as error:
                return f"{error.filename or settings.subnet_file} cannot be written: {error.strerror}"
            return ""

        self._file_trouble = await self._work(job)
        if pods != self.pods:
            log.info(
                "pods of this node: %s, mtu %d", " and ".join(str(net) for net in pods.subnets), pods.mtu
            )
        self._prepared = (plan, held) if not self._file_trouble else None
        self.pods = pods

    async def _synchronise(self, plan: Plan, snapshot: Snapshot, stale: Concern) -> Outcome | None:
        """Compile the leases and make the kernel equal; None when there was nothing to do."""
        now = asyncio.get_running_loop().time()
        leases, wait_s = self.keys.held_back(snapshot.of("lease"), now)
        self.again_in = sooner(self.again_in, wait_s)
        compiler = self._compiler
        if compiler is None:
            assert plan.site is not None
            compiler = fresh = FabricCompiler(plan.backend, plan.site)
            # Thousands of peers at once take too long for the loop's thread.
            touched = await self._work(lambda: fresh.update(leases))
            self._compiler = compiler
            if self._targets is not None:
                self._targets.clear()
            stale |= Concern.FABRIC
        else:
            touched = compiler.update(leases)
        self._note(plan, compiler, touched, leases)
        self.watchman.expect(compiler.tables, plan.node.underlay)
        if stale & Concern.FABRIC or not self._sync.known:
            started = asyncio.get_running_loop().time()
            outcome = await self._work(lambda: self._sync.full(compiler.state, plan.firewall))
            self._last_full = started
            log.debug("fabric read: %d entries differed", outcome.changed)
        elif not touched.empty:
            outcome = await self._work(lambda: self._sync.part(compiler.tables, touched, compiler.remotes))
        elif stale & Concern.FIREWALL:
            await self._carried(plan, leases, ())
            if await self._work(lambda: self._sync.check_firewall(plan.firewall, compiler.state.vtep_peers)):
                self._report.repaired(1, "the nftables table was changed")
            return None
        else:
            await self._carried(plan, leases, ())
            return None
        await self._carried(plan, leases, outcome.failures)
        if outcome.names is not None:
            in_place = not outcome.links_changed and not outcome.failures
            self.watchman.expect(compiler.tables, plan.node.underlay, outcome.names, in_place=in_place)
        if outcome.links_changed and self._prober is not None:
            await self._prober.reassert()
        raise_for(outcome.failures)
        if _commands(plan) is None and not self._sync.extension.idle:
            await self._work(self._sync.extension.leave)
        return outcome

    async def _carried(self, plan: Plan, leases: Mapping[str, Lease], failures: Sequence[Failure]) -> None:
        """Tell the course what is in the kernel, unless something of a peer is missing."""
        broken = [failure.key for failure in failures if failure.table == "links"]
        if len(broken) != len(failures):
            return
        if plan.others:
            await self._work(lambda: self._sync.reverse_path.loosen([*plan.pods.exits] if plan.pods else []))
        else:
            await self._work(self._sync.reverse_path.restore)
        strangers: tuple[str, ...] | None = None
        if self.course.greets and self._compiler is not None:
            met = await self._work(self._sync.met)
            strangers = tuple(
                sorted(
                    {
                        name
                        for (name, _), entries in self._compiler.peers.items()
                        if not met.issuperset(key for key, _ in entries.wireguard)
                    }
                )
            )
        self.course.carried(plan, leases, broken, asyncio.get_running_loop().time(), strangers)

    def _note(
        self, plan: Plan, compiler: FabricCompiler, touched: Touched, leases: Mapping[str, Lease]
    ) -> None:
        """Tell report and prober about peers that came, went or changed."""
        if not touched.peers:
            return
        self._report.judged(touched.peers, compiler.refusals, len(compiler.peers))
        if self._targets is not None:
            self._targets.note(plan, compiler.peers, touched.peers, leases)


def _commands(plan: Plan) -> Commands | None:
    """The commands of the extension backend, where the node has that."""
    confs = (plan.conf.backend, *plan.others)
    return next((conf.commands for conf in confs if conf.type == Extension.name), None)


def sooner(*seconds: float) -> float:
    """The shortest of several waits, of which 0 is none."""
    return min(filter(None, seconds), default=0.0)
