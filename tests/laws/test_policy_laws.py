"""Laws of network policies, held by the oracle in random clusters: what may and what may not change a verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_network
from random import Random
from typing import Any

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st

from pycni.model.kube import NAMESPACE, POD, Meta, Pod
from pycni.model.policy import (
    CLUSTER_NETWORK_POLICY,
    NETWORK_POLICY,
    Action,
    ClusterNetworkPolicy,
    ClusterRule,
    Direction,
    IpBlock,
    NetworkPolicy,
    Peer,
    Rule,
    Selector,
    Tier,
)
from pycni.view import policy_oracle
from pycni.view.policy_oracle import COMPLETED, Cause, Judgement, verdict
from pycni.wire.kube import decode_object
from tests.laws.policy_manifests import manifest
from tests.laws.policy_worlds import World, make_policy, make_rule, make_selector, make_world

seeds = st.integers(0, 2**32 - 1)
laws = settings(max_examples=80, deadline=None)
Objects = dict[str, dict[str, Any]]
Change = Callable[[Objects], None]


def judge(world: World) -> list[Judgement]:
    return [verdict(world, *each) for each in world.connections]


def changed(world: World, change: Change) -> World:
    objects = {kind: dict(held) for kind, held in world.objects.items()}
    change(objects)
    return World(objects, world.connections)


def allowed(judgements: Iterable[Judgement]) -> list[bool]:
    return [each.allowed for each in judgements]


def grows(before: Iterable[Judgement], after: Iterable[Judgement]) -> bool:
    return all(new.allowed or not old.allowed for old, new in zip(before, after, strict=True))


@laws
@given(seeds)
def test_judgements_are_consistent_and_name_what_exists(seed: int) -> None:
    world = make_world(seed)
    for found in judge(world):
        assert found.allowed == (found.egress.allowed and found.ingress.allowed)
        for reason in (found.egress, found.ingress):
            event(f"{'allowed' if reason.allowed else 'denied'}: {reason.cause.value}")
            held = [world.of(name.split()[0])[name.split()[1]] for name in reason.policies]
            if reason.cause is Cause.RULE:
                section = held[0].egress if reason.direction is Direction.EGRESS else held[0].ingress
                assert 0 <= reason.rule < len(section)
            else:
                assert reason.allowed == (reason.cause is not Cause.NO_RULE)
            assert str(reason) in str(found)


@laws
@given(seeds)
def test_without_policies_everything_is_allowed(seed: int) -> None:
    def change(objects: Objects) -> None:
        objects[NETWORK_POLICY].clear()
        objects[CLUSTER_NETWORK_POLICY].clear()

    assert all(allowed(judge(changed(make_world(seed), change))))


@laws
@given(seeds)
def test_the_order_of_objects_does_not_matter(seed: int) -> None:
    world, random = make_world(seed), Random(seed)

    def change(objects: Objects) -> None:
        for kind, held in objects.items():
            objects[kind] = dict(random.sample(list(held.items()), len(held)))

    assert judge(changed(world, change)) == judge(world)


def _with_rules(
    policy: NetworkPolicy, change: Callable[[tuple[Rule, ...]], tuple[Rule, ...]]
) -> NetworkPolicy:
    """The policy with the rules of its isolated directions replaced."""
    return msgspec.structs.replace(
        policy,
        ingress=None if policy.ingress is None else change(policy.ingress),
        egress=None if policy.egress is None else change(policy.egress),
    )


@laws
@given(seeds)
def test_another_rule_of_a_network_policy_never_takes_an_allow_away(seed: int) -> None:
    world, random = make_world(seed), Random(seed)

    def change(objects: Objects) -> None:
        for key, policy in objects[NETWORK_POLICY].items():
            objects[NETWORK_POLICY][key] = _with_rules(policy, lambda rules: (make_rule(random), *rules))

    before, after = judge(world), judge(changed(world, change))
    event(f"{'more' if allowed(before) != allowed(after) else 'the same'} allowed")
    assert grows(before, after)


@laws
@given(seeds)
def test_rules_of_one_policy_may_as_well_be_policies_of_their_own(seed: int) -> None:
    world = make_world(seed)

    def change(objects: Objects) -> None:
        for key, policy in list(objects[NETWORK_POLICY].items()):
            parts = [_with_rules(policy, lambda _rules: ())]
            parts += [
                msgspec.structs.replace(
                    policy, ingress=(rule,) if into else None, egress=None if into else (rule,)
                )
                for into, rules in ((True, policy.ingress), (False, policy.egress))
                for rule in rules or ()
            ]
            del objects[NETWORK_POLICY][key]
            for number, part in enumerate(parts):
                meta = msgspec.structs.replace(part.meta, name=f"{policy.meta.name}-{number}")
                objects[NETWORK_POLICY][meta.key] = msgspec.structs.replace(part, meta=meta)

    assert allowed(judge(changed(world, change))) == allowed(judge(world))


@laws
@given(seeds)
def test_a_policy_that_selects_no_pod_changes_nothing(seed: int) -> None:
    world, random = make_world(seed), Random(seed)
    nobody = Selector(labels=(("app", "nobody"),))

    def change(objects: Objects) -> None:
        elsewhere = make_policy(random, "empty/np")
        here = msgspec.structs.replace(make_policy(random, "a/none"), pods=nobody)
        objects[NETWORK_POLICY] |= {"empty/np": elsewhere, "a/none": here}
        objects[CLUSTER_NETWORK_POLICY]["0"] = _cluster("0", Action.DENY, pods=nobody)

    assert judge(changed(world, change)) == judge(world)


def _cluster(
    name: str, action: Action, tier: Tier = Tier.ADMIN, pods: Selector | None = None
) -> ClusterNetworkPolicy:
    """About everything from and to every peer; by its name and priority the first of its tier."""
    anywhere = (Peer(namespaces=Selector()),)
    blocks = tuple(Peer(block=IpBlock(cidr=ip_network(text))) for text in ("0.0.0.0/0", "::/0"))
    return ClusterNetworkPolicy(
        meta=Meta(name=name),
        tier=tier,
        priority=0,
        pods=pods,
        ingress=(ClusterRule(action=action, peers=anywhere),),
        egress=(ClusterRule(action=action, peers=(*anywhere, *blocks)),),
    )


@laws
@given(seeds, st.sampled_from(tuple(Tier)))
def test_a_first_deny_never_allows_and_a_first_accept_never_denies(seed: int, tier: Tier) -> None:
    world = make_world(seed)
    before = judge(world)
    for action in (Action.DENY, Action.ACCEPT):

        def change(objects: Objects, action: Action = action) -> None:
            objects[CLUSTER_NETWORK_POLICY]["0"] = _cluster("0", action, tier)

        after = judge(changed(world, change))
        event(
            f"{action.value} of {tier.name}: {'something' if allowed(before) != allowed(after) else 'nothing'}"
        )
        assert grows(before, after) if action is Action.ACCEPT else grows(after, before)


@laws
@given(seeds)
def test_the_baseline_is_nothing_to_pods_that_network_policies_isolate(seed: int) -> None:
    world = make_world(seed)

    def change(objects: Objects) -> None:
        for tier, name in ((Tier.BASELINE, "0"), (Tier.BASELINE, "00")):
            objects[CLUSTER_NETWORK_POLICY][name] = _cluster(name, Action.DENY, tier)

    for old, new in zip(judge(world), judge(changed(world, change)), strict=True):
        for before, after in ((old.egress, new.egress), (old.ingress, new.ingress)):
            if before.policies and before.policies[0].startswith(f"{NETWORK_POLICY} "):
                assert after == before


@laws
@given(seeds)
def test_completed_pods_are_as_good_as_gone(seed: int) -> None:
    world = make_world(seed)

    def change(objects: Objects) -> None:
        objects[POD] = {key: pod for key, pod in objects[POD].items() if pod.phase not in COMPLETED}

    assert judge(changed(world, change)) == judge(world)


@laws
@given(seeds)
def test_namespaces_without_labels_are_known_by_name_alone(seed: int) -> None:
    world = make_world(seed)

    def bare(objects: Objects) -> None:
        for key, item in objects[NAMESPACE].items():
            objects[NAMESPACE][key] = msgspec.structs.replace(item, meta=Meta(name=key))

    def none(objects: Objects) -> None:
        objects[NAMESPACE].clear()

    assert judge(changed(world, bare)) == judge(changed(world, none))


def _each_peer(policy: NetworkPolicy, change: Callable[[Peer], Iterable[Peer]]) -> NetworkPolicy:
    def rewritten(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(
            rule
            if rule.peers is None
            else Rule(peers=tuple(part for peer in rule.peers for part in change(peer)), ports=rule.ports)
            for rule in rules
        )

    return _with_rules(policy, rewritten)


@laws
@given(seeds)
def test_a_block_with_exceptions_is_the_blocks_that_remain(seed: int) -> None:
    world = make_world(seed)

    def remaining(peer: Peer) -> list[Peer]:
        if peer.block is None:
            return [peer]
        found = [peer.block.cidr]
        for hole in peer.block.excluded:
            found = [part for block in found for part in _without(block, hole)]
        return [Peer(block=IpBlock(cidr=block)) for block in found]

    def change(objects: Objects) -> None:
        for key, policy in objects[NETWORK_POLICY].items():
            objects[NETWORK_POLICY][key] = _each_peer(policy, remaining)

    assert allowed(judge(changed(world, change))) == allowed(judge(world))


def _without(block: Any, hole: Any) -> list[Any]:
    if block.subnet_of(hole):
        return []
    return list(block.address_exclude(hole)) if hole.subnet_of(block) else [block]


@laws
@given(seeds)
def test_a_peer_by_selectors_is_its_pods_addresses_when_ports_have_no_names(seed: int) -> None:
    world = make_world(seed)
    pods = [pod for pod in world.of(POD).values() if pod.phase not in COMPLETED and not pod.host_network]

    def addresses(home: str) -> Callable[[Peer], list[Peer]]:
        def of(peer: Peer) -> list[Peer]:
            if peer.block is not None or peer.unknown:
                return [peer]
            hosts = [ip for pod in pods if _selected(peer, pod, home, world) for ip in pod.ips]
            return [Peer(block=IpBlock(cidr=ip_network(ip))) for ip in hosts] or [Peer(unknown="nobody")]

        return of

    def nameless(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
        return tuple(
            Rule(peers=rule.peers, ports=tuple(port for port in rule.ports or () if not port.name) or None)
            for rule in rules
        )

    def plain(objects: Objects) -> None:
        for key, policy in objects[NETWORK_POLICY].items():
            objects[NETWORK_POLICY][key] = _with_rules(policy, nameless)

    def change(objects: Objects) -> None:
        for key, policy in objects[NETWORK_POLICY].items():
            objects[NETWORK_POLICY][key] = _each_peer(policy, addresses(policy.meta.namespace))

    without_names = changed(world, plain)
    assert allowed(judge(changed(without_names, change))) == allowed(judge(without_names))


def _selected(peer: Peer, pod: Pod, home: str, world: World) -> bool:
    space = pod.meta.namespace
    if peer.namespaces is None:
        at_home = space == home
    else:
        held = world.of(NAMESPACE).get(space)
        labels = {"kubernetes.io/metadata.name": space, **(held.meta.labels if held is not None else {})}
        at_home = peer.namespaces.matches(labels)
    return at_home and (peer.pods is None or peer.pods.matches(pod.meta.labels))


@laws
@given(seeds, st.dictionaries(st.sampled_from(["app", "tier"]), st.sampled_from(["web", "db", "front", "x"])))
def test_the_model_and_the_oracle_select_alike(seed: int, labels: Mapping[str, str]) -> None:
    selector = make_selector(Random(seed), spaces=True)
    event(f"{'selected' if selector.matches(labels) else 'not selected'}")
    assert policy_oracle._selects(selector, labels) == selector.matches(labels)


# --- the worlds themselves -------------------------------------------------------------------------------------------


@laws
@given(seeds)
def test_worlds_are_what_decoding_makes_of_manifests(seed: int) -> None:
    world = make_world(seed)
    assert make_world(seed) == world
    assert world.snapshot().of(POD) == world.of(POD)
    for kind in (NETWORK_POLICY, CLUSTER_NETWORK_POLICY):
        for item in world.of(kind).values():
            written = manifest(item)
            assert decode_object(msgspec.json.encode(written)) == (kind, item), written
    held = [
        ip
        for pod in world.of(POD).values()
        if pod.phase not in COMPLETED and not pod.host_network
        for ip in pod.ips
    ]
    assert len(held) == len(set(held)), "addresses are one pod's"
