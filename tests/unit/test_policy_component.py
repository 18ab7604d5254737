"""The policy component on a kernel in memory: when it programs, whom it shuts, what it says; and which fast path it takes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading

import pytest

from pycni.agent.health import Health
from pycni.agent.metrics import Registry
from pycni.agent.settings_file import load
from pycni.errors import ConfigError, KernelError
from pycni.kernel import bpf_places
from pycni.model.kube import NAMESPACE, NODE, POD, KubeNode, Meta, Namespace, Pod
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.policy import component_fast
from pycni.policy.base import Dataplane
from pycni.policy.component import PolicyComponent
from pycni.policy.component_fast import FastMaker
from pycni.policy.component_report import PolicyReport
from pycni.policy.nft.compile import NftCompiler
from pycni.reconcile.backoff import Backoff
from pycni.store import Store
from tests.netns.policy_rig import policy, web
from tests.unit.test_policy_pods import record
from tests.unit.test_policy_refusals import Kernel, chain_of

P, Q = bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2))
DENY = policy("a/deny", ingress=())


class Driver(Kernel):
    """That can be held in the middle of a transaction."""

    def __init__(self):
        super().__init__()
        self.go, self.busy, self.closed = threading.Event(), threading.Event(), False
        self.go.set()

    def apply(self, changes):
        self.busy.set()
        assert self.go.wait(10)
        super().apply(changes)

    def denied(self):
        return []

    def close(self):
        self.closed = True


class FakeShut:
    def __init__(self, found=()):
        self.now = set(found)
        self.fail = None

    def held(self):
        return frozenset(self.now)

    def add(self, addresses):
        if self.fail:
            raise self.fail
        self.now.update(addresses)

    def discard(self, addresses):
        self.now.difference_update(addresses)

    def repair(self):
        pass

    def close(self):
        pass


class FakeFast:
    name = "ebpf"

    def __init__(self, **made):
        self.made, self.log, self.served, self.fail = made, [], None, {}

    def __getattr__(self, name):
        def call(*args, **more):
            self.log.append(name)
            if name in self.fail:
                raise self.fail[name]
            if name == "pods":
                self.served = {pod.key for pod in args[0]}
            return [] if name in {"remove", "denied", "problems"} else None

        return call


class Modules:
    """What ``load`` imports."""

    def __init__(self):
        self.made, self.fail, self.removed = [], {}, []

    def __call__(self, name):
        part = name.split(".")[2]
        modules = self

        class Module:
            @staticmethod
            def make(node, **more):
                if part in modules.fail:
                    raise modules.fail[part]
                fast = FakeFast(node=node, part=part, **more)
                modules.made.append(fast)
                return fast

            @staticmethod
            def leftovers():
                modules.removed.append(part)
                return [f"{part} gone"]

        return Module


class World:
    def __init__(self, *flags, recorded=False):
        self.settings = load(["--components=policy", "--node-name=n1", *flags], {}, "n1").settings
        self.store, self.driver, self.shut, self.modules = Store(), Driver(), FakeShut(), Modules()
        self.health, self.registry = Health(), Registry()
        self.recorded, self.malformed, self.exits = recorded, {}, ("eth0", "flannel.1")

    def list_all(self, *policies, pods=(("p", "10.0.0.1"),)):
        self.store.replace(NAMESPACE, {"a": Namespace(meta=Meta(name="a"))})
        self.store.replace(NODE, {"n1": KubeNode(meta=Meta(name="n1"))})
        self.store.replace(NETWORK_POLICY, {item.meta.key: item for item in policies})
        self.store.replace(CLUSTER_NETWORK_POLICY, {})
        self.store.replace(POD, {f"a/{name}": self.pod(name, *ips) for name, *ips in pods})

    @staticmethod
    def pod(name, *ips):
        return Pod(meta=Meta(name=name, namespace="a", labels={"name": name}), node="n1", ips=ips)

    def run(self, scenario):
        async def main():
            self.component = PolicyComponent(
                self.settings,
                self.store,
                health=self.health,
                metrics=self.registry,
                recorded=self.recorded,
                exits=lambda: self.exits,
                malformed=lambda: self.malformed,
                make=lambda: Dataplane("fake", NftCompiler(), self.driver),
                see_bridged=lambda: False,
                make_shut=lambda: self.shut,
                load=self.modules,
                backoff=Backoff(0.01, 0.05),
            )
            task = asyncio.create_task(self.component.run())
            try:
                await scenario(self)
            finally:
                self.driver.go.set()
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

        asyncio.run(main())

    @property
    def red(self):
        return self.health.red().get("policy", "")

    async def until(self, condition, seconds=10.0):
        async with asyncio.timeout(seconds):
            while not condition():
                await asyncio.sleep(0.002)

    async def admit(self, endpoint):
        await asyncio.to_thread(self.component.gate.admit, endpoint)

    def judged(self, address):
        return address in self.driver.tables.get("judged_ingress4", {})


@pytest.fixture(autouse=True)
def no_pins(monkeypatch):
    pins = set()
    monkeypatch.setattr(bpf_places, "existing", lambda part="": [part] if part in pins else [])
    monkeypatch.setattr(component_fast, "stand_aside", lambda: None)
    return pins


def test_nothing_is_programmed_before_everything_is_listed():
    async def scenario(world):
        for kind in (NETWORK_POLICY, CLUSTER_NETWORK_POLICY, NAMESPACE, NODE):
            world.store.replace(kind, {})
        await world.until(lambda: "no listing of Pod yet" in world.red)
        assert world.driver.tables == {}
        world.list_all(DENY)
        await world.until(lambda: world.red == "")
        assert world.judged(P)
        world.store.delete(NETWORK_POLICY, "a/deny")
        await world.until(lambda: not world.judged(P))

    World().run(scenario)


def test_records_of_pods_are_waited_for():
    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: "records" in world.red)
        assert world.driver.tables == {}

    World("--policy-spoof-check=false", recorded=True).run(scenario)


def test_a_pod_is_judged_when_the_gate_lets_it_in():
    async def scenario(world):
        world.list_all(DENY, pods=(("p",),))
        await world.until(lambda: world.red == "")
        await world.admit(record("p", "10.0.0.1/24"))
        assert world.judged(P)
        assert world.shut.now == set()
        world.component.gate.gone(record("p", "10.0.0.1/24"))
        await world.until(lambda: not world.judged(P))

    World().run(scenario)


def test_changes_that_are_pending_are_programmed_along_with_a_new_pod():
    """The policy was created before the pod; the pass for it has not run yet."""

    async def scenario(world):
        world.list_all(pods=(("p",),))
        await world.until(lambda: world.red == "")
        world.store.put(NETWORK_POLICY, "a/deny", DENY)
        world.component.gate.admit(record("p", "10.0.0.1/24"))
        assert world.judged(P)

    World().run(scenario)


def test_with_many_changes_pending_a_pod_starts_shut():
    async def scenario(world):
        world.list_all(DENY, pods=(("p",),))
        await world.until(lambda: world.red == "")
        for number in range(100):
            world.store.put(POD, f"a/x{number}", world.pod(f"x{number}"))
        world.component.gate.admit(record("p", "10.0.0.1/24"))
        assert world.shut.now == {P}
        await world.until(lambda: world.judged(P) and not world.shut.now)

    World().run(scenario)


def test_a_pod_that_comes_before_the_listing_is_shut_until_the_first_pass():
    async def scenario(world):
        await world.until(lambda: "no listing" in world.red)
        await world.admit(record("p", "10.0.0.1/24"))
        assert world.shut.now == {P}
        world.list_all(DENY, pods=(("p",),))
        await world.until(lambda: not world.shut.now)
        assert world.judged(P)

    World().run(scenario)


def test_what_an_earlier_agent_shut_is_opened_by_the_first_pass():
    async def scenario(world):
        world.shut.now = {P, Q}
        world.list_all(DENY)
        await world.until(lambda: not world.shut.now)
        assert world.judged(P)

    World().run(scenario)


def test_an_add_during_a_pass_is_shut_and_opened_by_the_next():
    async def scenario(world):
        world.list_all(DENY, pods=(("p",), ("q",)))
        await world.until(lambda: world.red == "")
        world.driver.busy.clear()
        world.driver.go.clear()
        world.store.put(NETWORK_POLICY, "a/more", policy("a/more", web(name="q"), egress=()))
        await asyncio.to_thread(world.driver.busy.wait, 10)
        await world.admit(record("p", "10.0.0.1/24"))
        assert world.shut.now == {P}
        world.driver.go.set()
        await world.until(lambda: not world.shut.now)
        assert world.judged(P)

    World().run(scenario)


def test_an_add_fails_only_when_the_pod_cannot_even_be_shut():
    async def scenario(world):
        world.shut.fail = KernelError(errno.ENOMEM, "change table")
        with pytest.raises(KernelError):
            await world.admit(record("p", "10.0.0.1/24"))
        await world.admit(record("q", container="c2"))  # no address: a bridge without IPAM
        await world.admit(record("", "10.0.0.9/24", container="c3", namespace=""))

    World().run(scenario)


@pytest.mark.parametrize("code", [errno.ENOBUFS, errno.EINTR, errno.EPERM])
def test_a_pass_that_fails_is_tried_again_with_everything_read_back(code):
    async def scenario(world):
        world.driver.fail = [KernelError(code, "change table")] * 3
        world.list_all(DENY)
        await world.until(lambda: "passes failed" in world.red)
        await world.until(lambda: world.red == "")
        assert world.judged(P)
        assert world.driver.checks == 0

    World().run(scenario)


def test_a_kernel_that_refuses_a_new_pod_has_it_shut_and_retried():
    async def scenario(world):
        world.list_all(DENY, pods=(("p",),))
        await world.until(lambda: world.red == "")
        world.driver.fail = [KernelError(errno.ENOBUFS, "change table")] * 2
        await world.admit(record("p", "10.0.0.1/24"))
        assert world.shut.now == {P}
        await world.until(lambda: world.judged(P) and not world.shut.now)

    World().run(scenario)


def test_a_refused_policy_is_named_with_its_pods_and_taken_when_the_kernel_relents():
    async def scenario(world):
        world.driver.refuses = chain_of("np-ingress4-a/deny")
        world.list_all(DENY)
        await world.until(lambda: "refused by the kernel" in world.red)
        for word in ("NetworkPolicy a/deny (ingress)", "EINVAL", "closed pods: a/p"):
            assert word in world.red
        assert P in world.driver.tables["closed_ingress4"]
        assert not world.judged(P)
        world.driver.refuses = lambda *_: 0
        await world.until(lambda: world.red == "")
        assert world.judged(P)

    World().run(scenario)


def test_policies_that_cannot_be_read_are_red_and_other_objects_are_not():
    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: world.red == "")
        world.malformed = {"Service a/x": "no", "Pod a/y": "no"}
        assert world.red == ""
        world.malformed |= {
            "NetworkPolicy a/z": "NetworkPolicy a/z: spec.x=1: expected 2",
            "file b.yaml": "b",
        }
        assert "NetworkPolicy a/z: spec.x=1" in world.red
        assert "b" in world.red

    World().run(scenario)


def test_the_kernel_keeps_everything_when_the_component_stops():
    world = World()

    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: world.red == "")

    world.run(scenario)
    assert world.judged(P)
    assert world.driver.closed


# --- the fast path ---------------------------------------------------------------------------------------------------


def test_a_fast_path_is_made_after_the_first_pass_and_serves_pods_with_devices():
    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: bool(world.modules.made) and "judge" not in world.red)
        (fast,) = world.modules.made
        assert fast.made == {
            "node": "n1",
            "part": "ebpf",
            "uplinks": ("eth0", "flannel.1"),
            "spoof_check": True,
        }
        await world.until(lambda: fast.served == set())
        assert fast.log[:3] == ["update", "apply", "pods"], "it is made standing aside"
        world.component._pods.put(record("p", "10.0.0.1/24"))
        world.component._changed()
        await world.until(lambda: fast.served == {"a/p"})

    World("--policy=ebpf").run(scenario)


def test_programs_of_an_earlier_agent_stand_aside_before_anything_is_programmed(no_pins, monkeypatch):
    no_pins.add("policy")

    async def scenario(world):
        aside = []
        monkeypatch.setattr(component_fast, "stand_aside", lambda: aside.append(world.driver.applies))
        world.exits = None
        world.list_all(DENY)
        await world.until(lambda: world.red == "" and world.judged(P))
        assert (aside, world.modules.made) == ([0], []), "the interfaces are not known yet"
        world.exits = ("eth0",)
        await world.until(lambda: bool(world.modules.made))
        assert world.modules.made[0].made["uplinks"] == ("eth0",)
        assert world.modules.removed == []

    World("--policy=ebpf").run(scenario)


def test_programs_that_cannot_even_stand_aside_are_taken_away(no_pins, monkeypatch):
    no_pins |= {"policy", "xdp"}

    def fail():
        raise KernelError(errno.EPROTO, "stand aside")

    async def scenario(world):
        monkeypatch.setattr(component_fast, "stand_aside", fail)
        world.list_all(DENY)
        await world.until(lambda: world.red == "")
        assert world.modules.removed == ["xdp", "ebpf"]

    World("--policy=ebpf").run(scenario)


@pytest.mark.parametrize(
    ("flags", "pins", "removed"),
    [
        pytest.param((), {"policy", "xdp"}, ["xdp", "ebpf"], id="nftables again"),
        pytest.param(("--policy=ebpf",), {"policy", "xdp"}, ["xdp"], id="no early drop any more"),
        pytest.param(("--policy=ebpf",), {"policy"}, [], id="as before"),
        pytest.param((), set(), [], id="nothing there"),
    ],
)
def test_programs_that_are_not_wanted_go_before_anything_is_programmed(no_pins, flags, pins, removed):
    no_pins |= pins

    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: world.red == "")
        assert world.modules.removed == removed

    World(*flags).run(scenario)


def test_what_the_machine_lacks_is_said_once_and_nftables_judges_alone(no_pins, caplog):
    no_pins.add("policy")

    async def scenario(world):
        world.modules.fail["ebpf"] = ConfigError("setting", "policy", "ebpf", "bcc is not installed")
        world.list_all(DENY)
        await world.until(lambda: world.red == "" and world.judged(P))
        for number in range(5):
            world.store.put(POD, f"a/x{number}", world.pod(f"x{number}"))
            await asyncio.sleep(0.02)
        assert ["bcc is not installed" in note for note in world.component.report.notes] == [True]
        assert world.modules.removed == ["ebpf"], "programs nobody keeps up to date must not judge"

    World("--policy=ebpf").run(scenario)
    assert sum("bcc is not installed" in line for line in caplog.messages) == 1


def test_a_fast_path_that_cannot_stand_aside_is_given_up():
    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: bool(world.modules.made) and world.modules.made[0].served == set())
        fast = world.modules.made[0]
        fast.fail["aside"] = KernelError(errno.EIO, "write map")
        world.store.put(POD, "a/q", world.pod("q", "10.0.0.2"))
        await world.until(lambda: world.judged(Q))
        assert fast.log[-2:] == ["remove", "close"]

    World("--policy=ebpf").run(scenario)


def test_a_fast_path_that_fails_is_brought_up_to_date_later(monkeypatch):
    monkeypatch.setattr("pycni.policy.component.FAST_S", 0.1)

    async def scenario(world):
        world.list_all(DENY)
        await world.until(lambda: bool(world.modules.made) and world.modules.made[0].served == set())
        fast = world.modules.made[0]
        fast.fail["apply"] = KernelError(errno.E2BIG, "write map")
        world.store.put(POD, "a/q", world.pod("q", "10.0.0.2"))
        await world.until(lambda: world.judged(Q))
        assert "E2BIG" in world.component._engine.aside
        del fast.fail["apply"]
        await world.until(lambda: not world.component._engine.aside)
        assert world.red == ""

    World("--policy=ebpf").run(scenario)


MAKERS = {
    "ebpf alone": (("--policy=ebpf",), {}, ["ebpf"], ""),
    "ebpf and xdp": (("--policy=ebpf", "--policy-xdp=auto"), {}, ["ebpf", "xdp"], ""),
    "xdp alone": (("--policy-xdp=generic",), {}, ["xdp"], ""),
    "xdp cannot be had": (
        ("--policy=ebpf", "--policy-xdp=native"),
        {"xdp": KernelError(errno.EOPNOTSUPP, "attach program", "eth0")},
        *(["ebpf"], "no early drop"),
    ),
    "ebpf cannot be had": (
        ("--policy=ebpf", "--policy-xdp=auto"),
        {"ebpf": ConfigError("setting", "policy", "ebpf", "no bcc")},
        *([], "no bcc; nftables judges alone"),
    ),
    "the kernel fails": (("--policy=ebpf",), {"ebpf": KernelError(errno.ENOMEM, "load")}, [], "for now"),
}


@pytest.mark.parametrize("case", MAKERS)
def test_which_programs_settings_give(case):
    flags, fail, made, said = MAKERS[case]
    modules, report = Modules(), PolicyReport(Health(), Registry(), valid_s=60)
    modules.fail = fail
    settings = load(["--components=policy", "--node-name=n1", *flags], {}, "n1").settings
    maker = FastMaker(settings, report, lambda: ("eth0", "flannel.1"), modules)
    assert maker.wanted
    found = maker.make()
    assert [item.made["part"] for item in modules.made] == made
    assert (found is modules.made[-1]) if made else (found is None)
    assert said in "".join(report.notes) if said else not report.notes
    assert maker.wanted is ("no bcc" not in said)
    if "xdp" in made:
        assert modules.made[-1].made["devices"] == ("eth0",)
        assert modules.made[-1].made["fast"] is (modules.made[0] if "ebpf" in made else None)
