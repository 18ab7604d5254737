"""Where this node is on its way from one backend to another: what the network pass asks, and what is told of it.

Life: before each plan ``step`` asks ``backends.change`` for the course, by the net-conf and the leases; after each
synchronisation ``carried`` tells it what is in the kernel now. Looking at all leases costs something, so it is only
done while there is more than one backend. ``resume`` goes on where an earlier life of this agent was.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import msgspec

from pycni.agent.memory import Memory
from pycni.agent.network_plan import Plan
from pycni.backends.change import GREETING, LINGER_S, PATIENCE_S, Census, Changer, Course, census
from pycni.backends.mixed import Mixed
from pycni.model.lease import Lease, LeaseAttrs
from pycni.model.network import BackendConf, NetConf
from pycni.store import Snapshot

log = logging.getLogger("pycni.network")
NAMED = 3
"""How many leases a message names."""


class CourseKeeper:
    """One per network pass, on its event loop."""

    def __init__(self, *, follow: bool, patience_s: float = PATIENCE_S, linger_s: float = LINGER_S) -> None:
        """``follow``: whether another type in the net-conf is taken in this life, or in the next one."""
        self._follow = follow
        self._changer = Changer(patience_s, linger_s)
        self._started_with: BackendConf | None = None
        self._told: tuple[object, ...] = ()
        self._course: Course | None = None
        self._target = ""

    def resume(self, memory: Memory, published: LeaseAttrs) -> None:
        """Peers know this node by the lease of an earlier life."""
        self._changer.resume(memory.conf.backend, memory.others, published.types)

    def start_with(self, conf: NetConf) -> None:
        """What the net-conf says at the start of this life: that is taken."""
        self._started_with = conf.backend

    def step(self, conf: NetConf, snapshot: Snapshot, own: str, now: float) -> Course:
        """Where this node is. ``own``: name of our lease, "" when there is none; ``now``: seconds of any clock."""
        target, changer = conf.backend, self._changer
        self._target = target.type
        changing = changer.changing or (changer.using is not None and changer.using.type != target.type)
        seen: Census | None = None
        if changing and "lease" in snapshot.listed:
            seen = census(snapshot.of("lease"), own, target.type)
        follow = self._follow or target == self._started_with
        course = changer.step(target, seen, now, bound=bool(own), follow=follow)
        self._tell(course, target, follow=follow)
        return course

    @property
    def greets(self) -> bool:
        """Whether it counts who has answered a greeting."""
        course = self._course
        return course is not None and course.greeting and course.using.type not in GREETING

    def carried(
        self,
        plan: Plan,
        leases: Mapping[str, Lease],
        broken: Collection[str],
        now: float,
        strangers: tuple[str, ...] | None,
    ) -> None:
        """The leases are in the kernel; ``broken`` devices are not as they should be.

        ``strangers``: leases of peers that have not answered a greeting; None when that was not looked at.
        """
        how, site = plan.backend, plan.site
        if not self._changer.changing or site is None:
            return
        devices = how.devices(site) if isinstance(how, Mixed) else {how.name: frozenset[str]()}
        equipped = [kind for kind, names in devices.items() if not names.intersection(broken)]
        self._changer.carried(census(leases, site.own.key, self._target), equipped, now, strangers)

    @property
    def wake_s(self) -> float:
        """Seconds until time alone changes something; 0: never."""
        return self._changer.wake_s

    def _tell(self, course: Course, target: BackendConf, *, follow: bool) -> None:
        """Say what has become different, once."""
        before, self._course = self._course, course
        if before is not None and before != course:
            now, then = course.using.type, before.using.type
            if now != then:
                log.info("backend: peers are asked to reach this node by %s, no longer by %s", now, then)
            for kind in sorted(_types(course) - _types(before)):
                if kind != now:
                    log.info("backend: the network's is %s: made ready beside %s", kind, now)
            for kind in sorted(_types(before) - _types(course)):
                log.info("backend: %s is gone: no node uses it any more", kind)
        lacking = self._changer.lacking
        held_back = not follow and course.using.type != target.type
        told = (lacking, held_back and target.type)
        if told != self._told:
            self._told = told
            if lacking:
                more = f" and {len(lacking) - NAMED} more" if len(lacking) > NAMED else ""
                log.info(
                    "backend: %s waits for %s%s, which cannot send so yet",
                    target.type, ", ".join(lacking[:NAMED]), more,
                )  # fmt: skip
            if held_back:
                log.info(
                    "backend: the network's is %s, this node stays with %s until it is restarted (follow-backend)",
                    target.type, course.using.type,
                )  # fmt: skip


def netconfs(conf: NetConf, course: Course) -> tuple[NetConf, ...]:
    """The network with each backend this node has or is to have: the one in use, then others."""
    return tuple(msgspec.structs.replace(conf, backend=each) for each in (course.using, *course.others))


def _types(course: Course) -> set[str]:
    return {course.using.type, *(conf.type for conf in course.others)}
