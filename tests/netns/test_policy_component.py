"""The policy component with a real kernel and real packets: from a file to the kernel, before the first packet, always."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from pycni.errors import KernelError
from pycni.kernel import nft_names
from pycni.model.kube import TCP, UDP
from pycni.policy import cleanup, nft, spoof_rules
from pycni.policy.nft.layout import TABLE
from tests.netns.fabric_nodes import run
from tests.netns.policy_agent import policy_agent
from tests.proxy.topology import PODS, source_of
from tests.proxy.traffic import Dial
from tests.waiting import wait_for


@pytest.fixture
def agent(spaces, tmp_path):
    with policy_agent(spaces, tmp_path) as made:
        for name in ("a", "b", "c"):
            made.folder.pod(name)
        yield made


@pytest.fixture
def reaches(spaces, traffic):
    def ask(client, server, *, families=(0, 1), protocol=TCP, timeout=0.4):
        """What becomes of a connection in each family: all the same, or it is shown."""
        dials = [
            Dial(
                spaces.netns_of(client),
                source_of(client)[family],
                PODS[server][family],
                80,
                protocol,
                timeout,
            )
            for family in families
        ]
        found = {outcome.verdict for outcome in traffic.dial(dials)}
        for _ in range(20):  # a change may come between one dial and the next
            if len(found) == 1:
                break
            found = {outcome.verdict for outcome in traffic.dial(dials)}
        assert len(found) == 1, found
        return found.pop() == "answer"

    return ask


def tables(spaces):
    return {line.split()[-1] for line in run(spaces.names["node"], "nft list tables").splitlines()}


def test_a_policy_goes_from_its_file_to_the_kernel_and_out_again(agent, reaches):
    agent.start()
    assert reaches("b", "a")
    agent.folder.policy("deny")
    wait_for(lambda: not reaches("b", "a"), "the policy")
    assert reaches("node", "a")
    assert reaches("a", "b", timeout=0.3) is False
    agent.folder.policy("deny", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    wait_for(lambda: reaches("b", "a", timeout=1), "the change")
    assert not reaches("c", "a")
    agent.folder.drop("NetworkPolicy", "deny", "shop")
    wait_for(lambda: reaches("c", "a", timeout=1), "the removal")


def test_policies_are_there_when_the_gate_lets_a_pod_in_that_has_no_address_at_the_api(agent, reaches):
    agent.folder.pod("a", ips=False)
    agent.folder.policy("from-db", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    agent.start()
    with agent.frozen():
        agent.add("a")
        assert not reaches("c", "a")
        assert reaches("b", "a", timeout=2), "its own policy holds, not just a closed door"
        assert "pycni_shut" not in agent.tables_now()
    agent.delete("a")
    wait_for(lambda: reaches("c", "a", timeout=1), "its rows to go with it")


def test_a_pod_nobody_has_told_of_is_closed_until_somebody_does(agent, reaches):
    agent.folder.drop("Pod", "a", "shop")
    agent.folder.policy("web-only", podSelector={"matchLabels": {"app": "db"}})
    agent.start()
    assert reaches("c", "a")
    with agent.frozen():
        agent.add("a")
        assert not reaches("c", "a"), "it may be one the policy selects"
    agent.folder.pod("a")
    wait_for(lambda: reaches("c", "a", timeout=1), "the pod's object")


def test_a_pod_of_a_namespace_without_policies_is_open_at_once(agent, reaches):
    agent.folder.drop("Pod", "a", "shop")
    agent.folder.policy("deny", "lone")
    agent.start()
    agent.add("a")
    assert reaches("c", "a", timeout=2)


def test_a_pod_that_comes_before_the_listing_is_shut_until_it_is_judged(agent, reaches, spaces):
    agent.folder.policy("from-db", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    agent.start(ready=False, listed=False)
    wait_for(lambda: "no listing" in agent.red, "health to be red")
    assert reaches("b", "a"), "nothing is programmed before everything is listed"
    agent.add("a")
    assert not reaches("b", "a")
    assert reaches("node", "a", timeout=2), "what always passes"
    agent.read()
    wait_for(lambda: agent.red == "", "the first pass")
    assert reaches("b", "a", timeout=2)
    assert not reaches("c", "a")
    assert "pycni_shut" not in tables(spaces)


class Slow:
    """A driver whose transactions take long when told."""

    def __init__(self, plane):
        self._plane = plane
        self.driver = plane.driver
        self.hold = threading.Event()
        self.hold.set()
        self.busy = threading.Event()

    def __getattr__(self, name):
        return getattr(self.driver, name)

    def apply(self, changes):
        self.busy.set()
        assert self.hold.wait(20)
        self.driver.apply(changes)


def test_an_add_does_not_wait_for_a_long_pass(agent, reaches, spaces):
    agent.folder.pod("a", ips=False)
    agent.folder.policy("from-db", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    slow = []

    def wrap(plane):
        slow.append(Slow(plane))
        return plane._replace(driver=slow[0])

    agent.wrap = wrap
    agent.start()
    slow[0].hold.clear()
    slow[0].busy.clear()
    agent.folder.policy("other", "lone")
    assert slow[0].busy.wait(10)
    assert agent.add("a") < 1.0
    assert not reaches("b", "a")
    slow[0].hold.set()
    wait_for(lambda: reaches("b", "a", timeout=1), "the pod to open")
    assert not reaches("c", "a")
    wait_for(lambda: "pycni_shut" not in tables(spaces), "the shut table to go")


class Refusing:
    """A driver for which the kernel refuses chains whose name has a word in it."""

    def __init__(self, plane):
        self.driver = plane.driver
        self.word = ""

    def __getattr__(self, name):
        return getattr(self.driver, name)

    def apply(self, changes):
        self._refuse(changes)
        self.driver.apply(changes)

    def check(self, changes):
        self._refuse(changes)
        self.driver.check(changes)

    def _refuse(self, changes):
        for _, delta in changes:
            for key in (*delta.add, *delta.change):
                if self.word and self.word in str(key):
                    raise KernelError(errno.EINVAL, "change table", str(key))


def test_what_is_refused_closes_its_pods_and_turns_health_red_until_it_is_taken(agent, reaches):
    agent.folder.policy("bad", podSelector={"matchLabels": {"app": "web"}}, ingress=[{}])
    agent.folder.policy("good", podSelector={"matchLabels": {"app": "db"}}, ingress=[{}])
    made = []

    def wrap(plane):
        made.append(Refusing(plane))
        made[-1].word = "shop/bad"
        return plane._replace(driver=made[-1])

    agent.wrap = wrap
    agent.start(ready=False)
    wait_for(lambda: "refused by the kernel" in agent.red, "health to be red")
    for word in ("NetworkPolicy shop/bad", "EINVAL", "shop/a"):
        assert word in agent.red
    assert "shop/b;" not in agent.red
    assert not reaches("c", "a")
    assert not reaches("a", "b"), "closed in both directions"
    assert reaches("c", "b", timeout=2)
    assert reaches("node", "a", timeout=2)
    made[-1].word = ""
    wait_for(lambda: agent.red == "", "another try")
    assert reaches("c", "a", timeout=2)


class LongPrefix:
    """A compiler that makes a rule of one policy's denials one that no kernel takes: a log prefix of 200 bytes."""

    def __init__(self, compiler):
        self._compiler = compiler
        self.on = True

    def __getattr__(self, name):
        return getattr(self._compiler, name)

    def rows(self, table, key, value):
        found = self._compiler.rows(table, key, value)
        if not self.on or table != "sections" or key[0] != "shop/bad":
            return found
        chains = {name: (*rules, f"log {'x' * 200}") for name, rules in found["chains"].items()}
        return {**found, "chains": chains}


def test_what_a_real_kernel_refuses_is_found_too(agent, reaches):
    agent.folder.policy("bad", podSelector={"matchLabels": {"app": "web"}}, ingress=[{}])
    agent.folder.policy("good", podSelector={"matchLabels": {"app": "db"}}, ingress=[{}])
    agent.wrap = lambda plane: plane._replace(compiler=LongPrefix(plane.compiler))
    agent.start(ready=False)
    wait_for(lambda: "NetworkPolicy shop/bad" in agent.red, "health to be red")
    assert not reaches("c", "a")
    assert reaches("c", "b", timeout=2)


def test_a_policy_that_makes_no_sense_isolates_and_turns_health_red(agent, reaches):
    agent.start()
    agent.folder.policy(
        "bad", podSelector={"matchLabels": {"app": "web"}}, ingress=[{"ports": [{"port": 99999}]}]
    )
    wait_for(lambda: not reaches("b", "a"), "the stand-in")
    assert reaches("c", "b", timeout=2)
    wait_for(lambda: "spec.ingress[0].ports[0].port=99999" in agent.red, "health to be red")
    agent.folder.policy("bad", podSelector={"matchLabels": {"app": "web"}}, ingress=[{}])
    wait_for(lambda: reaches("b", "a", timeout=1), "the policy, now that it makes sense")
    assert agent.red == ""


def test_a_removed_table_comes_back(agent, reaches, spaces):
    agent.folder.policy("deny")
    agent.start()
    run(spaces.names["node"], "nft flush ruleset")
    wait_for(lambda: TABLE in tables(spaces), "the table", 5)
    assert not reaches("b", "a")


def test_a_bridge_switched_past_the_filters_is_switched_back(agent, reaches, spaces):
    agent.folder.policy("deny")
    agent.flags = ["--policy-sync-period=5"]
    agent.start()
    run(spaces.names["node"], f"sysctl -qw {nft.BRIDGED[0]}=0")
    run(spaces.names["node"], "nft flush ruleset")  # which has everything looked at again
    wait_for(lambda: TABLE in tables(spaces), "the table", 5)
    assert not reaches("b", "a")


@pytest.mark.parametrize("way", ["stopped", "changed meanwhile"])
def test_there_is_no_window_at_a_restart(agent, spaces, traffic, reaches, way):
    """Datagrams are sent all the time; not one that is denied arrives, before, between and after."""
    agent.folder.policy("from-db", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    agent.start()
    agent.add("a")
    agent.add("b")
    assert not reaches("c", "a", protocol=UDP)
    passed, tried, stop = [], [], threading.Event()

    def knock():
        while not stop.is_set():
            dials = [
                Dial(spaces.netns_of("c"), source_of("c")[family], PODS["a"][family], 80, UDP, 0.02)
                for family in (0, 1)
            ]
            found = traffic.dial(dials)
            tried.append(len(found))
            passed.extend(outcome for outcome in found if outcome.verdict == "answer")

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        for _ in range(3):
            agent.stop()
            if way == "changed meanwhile":
                agent.folder.policy("more", "lone")
            time.sleep(0.1)
            agent.start()
            assert TABLE in tables(spaces)
        agent.stop()
        time.sleep(0.2)
    finally:
        stop.set()
        thread.join()
    assert sum(tried) > 40
    assert not passed
    assert reaches("b", "a", timeout=2)


def test_records_are_admitted_again_by_a_restarted_agent(agent, reaches):
    """The API has no address of the pod, the records have; a namespace with policies stays judged, not closed."""
    agent.folder.pod("a", ips=False)
    agent.folder.policy("from-db", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    agent.start()
    agent.add("a")
    agent.stop()
    assert not reaches("c", "a")
    agent.start()
    assert not reaches("c", "a")
    assert reaches("b", "a", timeout=2)


def test_programs_are_made_taken_over_and_taken_away(agent, reaches):
    """With what nftables judges below them there is no moment in which a policy does not hold."""
    agent.folder.policy("from-db", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "db"}}}]}])
    agent.flags = ["--policy=ebpf"]
    agent.start()
    for name in PODS:
        agent.add(name)
    wait_for(lambda: agent.flows is not None, "the fast path to judge", 60)
    assert reaches("b", "a", timeout=2)
    assert not reaches("c", "a")
    wait_for(lambda: agent.flows, "connections it carries")
    agent.stop()
    assert not reaches("c", "a")
    agent.folder.policy(
        "from-db",
        ingress=[{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]}],
    )
    agent.start()
    assert not reaches("b", "a"), "it holds as soon as health is green, whatever programs said before"
    assert reaches("c", "a", timeout=2)
    wait_for(lambda: agent.flows is not None, "the fast path to judge again", 60)
    assert not reaches("b", "a")
    agent.stop()
    agent.flags = []
    agent.start()
    assert agent.pins() == []
    assert not reaches("b", "a")
    assert reaches("c", "a", timeout=2)


def test_senders_are_checked_from_the_gate_on_until_that_is_switched_off(agent):
    agent.checks = "true"
    agent.start()
    agent.add("a")
    assert spoof_rules.TABLE in agent.tables_now()
    guard = agent.component.gate._guard
    assert guard.devices() == {"pa"}
    agent.delete("a")
    assert guard.devices() == set()
    agent.add("b")
    agent.stop()
    agent.start()
    wait_for(lambda: agent.component.gate._guard is not None, "the check")
    wait_for(lambda: agent.component.gate._guard.devices() == {"pb"}, "records to be taken over")
    agent.stop()
    agent.checks = "false"
    agent.start()
    wait_for(lambda: spoof_rules.TABLE not in agent.tables_now(), "the check to go")


def test_cleanup_leaves_nothing(agent, spaces):
    agent.folder.policy("deny")
    agent.start(ready=False, listed=False)
    agent.add("a")
    agent.read()
    wait_for(lambda: agent.red == "", "the first pass")
    agent.add("b")
    agent.stop()
    gone, failed = agent._inside(cleanup.leftovers)
    assert f"table inet {TABLE}" in gone
    assert failed == []
    assert not {name for name in tables(spaces) if name.startswith("pycni")}
    assert agent._inside(nft_names.tables) == []
