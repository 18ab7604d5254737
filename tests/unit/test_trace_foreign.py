"""Rules of somebody else against packets: what fits, what does not, and what cannot be told."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

import pytest

from pycni.model.space import ForeignHook
from pycni.trace.foreign import Met, Outcome, bare, judge, translation
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow
from pycni.wire.iptables_rules import in_nft_words


def flow(protocol: int = TCP, port: int = 80, source: str = "10.1.0.2", target: str = "10.1.1.3") -> Flow:
    return Flow(
        protocol=protocol,
        source=ip_address(source).packed,
        destination=ip_address(target).packed,
        source_port=40000,
        destination_port=port,
    )


def hook(*rules: str, **more: Any) -> ForeignHook:
    fields = {"family": "inet", "table": "foe", "chain": "c", "hook": "forward", "priority": 0, **more}
    return ForeignHook(rules=rules, **fields)


MET = Met(flow(), "flannel.1", "cni0", 60)
SURE, PERHAPS, NO = True, False, None
RULES = {
    "drop": SURE,
    "reject with icmpx admin-prohibited": SURE,
    "counter packets 4 bytes 240 drop": SURE,
    'comment "accept all" drop': SURE,
    'log prefix "drop it " level warn drop': SURE,
    "accept": NO,
    "return": NO,
    "ip daddr 10.1.1.3 drop": SURE,
    "ip daddr 10.1.1.4 drop": NO,
    "ip daddr != 10.1.1.4 drop": SURE,
    "ip saddr 10.1.0.0/24 tcp dport 80 drop": SURE,
    "ip saddr { 10.9.0.0/24, 10.1.0.0/24 } drop": SURE,
    "ip saddr 10.1.0.1-10.1.0.9 drop": SURE,
    "ip saddr @bad drop": PERHAPS,
    "ip6 daddr fd00::1 drop": NO,
    "tcp dport { 22, 80-90 } drop": SURE,
    "tcp dport 81 drop": NO,
    "udp dport 80 drop": NO,
    "meta l4proto { tcp, udp } th dport 80 drop": SURE,
    "meta l4proto icmp drop": NO,
    'iifname "flannel.1" drop': SURE,
    'iifname "flannel*" oifname "cni0" drop': SURE,
    'iifname != "flannel.1" drop': NO,
    'iifname { "eth0", "eth1" } drop': NO,
    "ct state new drop": SURE,
    "ct state established,related drop": NO,
    "ct state invalid drop": NO,
    "meta length > 1000 drop": NO,
    "ip length < 100 drop": SURE,
    "fib saddr . iif oif 0 drop": PERHAPS,
    "fib daddr type local drop": PERHAPS,
    "fib daddr type != local tcp dport 81 drop": NO,
    "ip saddr . tcp dport { 10.1.0.2 . 80 } drop": PERHAPS,
    "ip saddr . tcp dport @pairs udp dport 80 drop": NO,
    "limit rate over 10/second drop": PERHAPS,
    "fib saddr . iif oif 0 tcp dport 81 drop": NO,
    'xt match "string" drop': PERHAPS,
}


@pytest.mark.parametrize(("rule", "sure"), RULES.items(), ids=RULES)
def test_a_rule_is_read_as_the_kernel_does(rule: str, sure: bool | None) -> None:
    found = judge(hook(rule), MET)
    assert (found.sure if found is not None else None) is sure


CHAINS = {
    "what is accepted before is not dropped": (("tcp dport 80 accept", "drop"), None),
    "what may be accepted before may be dropped": (("ip saddr @good accept", "drop"), (False, "drop")),
    "a chain it jumps to drops": (
        ('iifname "flannel.1" jump inner', "accept"), (True, 'iifname "flannel.1" jump inner: tcp dport 80 drop'),
    ),
    "a chain it does not jump to": (('iifname "eth0" jump inner',), None),
    "a chain it may jump to": (("ip saddr @some jump inner",), (False, "ip saddr @some jump inner: tcp dport 80 drop")),
    "back from a chain": (("jump quiet", "drop"), (True, "drop")),
    "not back from a chain": (("goto quiet", "drop"), None),
    "the sure one before the uncertain one": (("ip saddr @bad drop", "tcp dport 80 drop"), (False, "ip saddr @bad drop")),
}  # fmt: skip


@pytest.mark.parametrize(("rules", "want"), CHAINS.values(), ids=CHAINS)
def test_chains_are_followed(rules: tuple[str, ...], want: tuple[bool, str] | None) -> None:
    found = judge(hook(*rules, chains={"inner": ("tcp dport 80 drop",), "quiet": ("return", "accept")}), MET)
    if rules[0] == "ip saddr @bad drop":
        assert found is not None
        assert found.rule in {"ip saddr @bad drop", "tcp dport 80 drop"}
        return
    assert found == (Outcome(*want) if want is not None else None)


def test_a_chains_policy_drops_what_is_left() -> None:
    assert judge(hook("tcp dport 81 accept", policy="drop"), MET) == Outcome(True, "policy drop")
    assert judge(hook("tcp dport 80 accept", policy="drop"), MET) is None
    assert judge(hook("ip saddr @good accept", policy="drop"), MET) == Outcome(False, "policy drop")


@pytest.mark.parametrize(
    ("family", "device", "seen"),
    [
        ("ip", "", True),
        ("ip6", "", False),
        ("netdev", "cni0", True),
        ("netdev", "eth9", False),
        ("ip legacy", "", True),
    ],
)
def test_chains_see_packets_of_their_family_and_device(family: str, device: str, seen: bool) -> None:
    assert (judge(hook("drop", family=family, device=device), MET) is not None) is seen


def test_answers_are_established_and_pings_have_types() -> None:
    ping = Met(flow(ICMP), "eth0", "cni0")
    assert judge(hook("icmp type echo-request drop"), ping) is not None
    assert judge(hook("icmp type echo-request drop"), ping._replace(answer=True)) is None
    assert judge(hook("ct state established drop"), ping._replace(answer=True)) is not None
    six = Met(flow(ICMPV6, source="fd00::1", target="fd00::2"))
    assert judge(hook("icmpv6 type echo-request ip6 daddr fd00::/64 drop"), six) is not None


def test_a_translation_is_found() -> None:
    rules = hook("udp dport 53 dnat to 10.9.9.9:53", "ip daddr 10.1.1.3 tcp dport 80 dnat to 10.1.1.4:8080")
    assert translation(rules, MET) == Outcome(True, "ip daddr 10.1.1.3 tcp dport 80 dnat to 10.1.1.4:8080")
    assert translation(rules, MET._replace(flow=flow(UDP, 54))) is None
    assert judge(rules, MET) is None


def test_counters_do_not_belong_to_a_rule() -> None:
    assert bare("ip daddr 10.1.1.3 counter packets 12 bytes 99 drop # handle 7") == "ip daddr 10.1.1.3 drop"


LINES = {
    "-A FORWARD -s 10.1.0.0/24 -p tcp -m tcp --dport 80 -j DROP": "ip saddr 10.1.0.0/24 meta l4proto tcp th dport 80 drop",
    "-A FORWARD ! -i eth0 -j REJECT --reject-with icmp-port-unreachable": "iifname != eth0 reject",
    '-A FORWARD -m comment --comment "a b" -j DROP': "drop",
    "-A FORWARD -m conntrack --ctstate NEW,INVALID -j DROP": "ct state {new,invalid} drop",
    "-A FORWARD -p udp -m multiport --dports 53,60:70 -j DROP": "meta l4proto udp th dport {53,60-70} drop",
    "-A FORWARD -i cni+ -j KUBE": "iifname cni* jump KUBE",
    "-A FORWARD -m string --string x --algo bm -j DROP": "xt --string xt --algo drop",
    "-A PREROUTING -d 10.1.1.3/32 -j DNAT --to-destination 10.1.1.4": "ip daddr 10.1.1.3/32 dnat",
}


@pytest.mark.parametrize(("line", "words"), LINES.items(), ids=LINES)
def test_rules_of_iptables_are_put_into_words_of_nft(line: str, words: str) -> None:
    assert in_nft_words(line, "ip") == (line.split()[1], words)


def test_other_lines_of_iptables_are_no_rules() -> None:
    assert in_nft_words("-P FORWARD ACCEPT", "ip") == ("", "")
