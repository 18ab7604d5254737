"""What somebody else's firewall rules do to one packet, read as nft(8) lists them. Pure.

Life: ``judge`` leads a packet through a base chain and the chains it jumps to, rule by rule, as the kernel would. A
match it does not know (``fib``, ``limit``, a set, an extension of iptables) makes a rule "perhaps": such a rule is
accused only when no other explains what was seen. Rules of iptables-legacy come in nft's words
(``wire/iptables_rules``).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from pycni.model.space import ForeignHook
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow

_PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "ipv6-icmp": ICMPV6, "icmpv6": ICMPV6}
_FAMILIES = {"ip": 4, "ip6": 16, "ipv4": 4, "ipv6": 16}
_ENDS = frozenset({"drop", "reject", "queue", "accept", "return", "jump", "goto", "continue"})
_TRANSLATES = frozenset({"dnat", "snat", "masquerade", "redirect"})
_SILENT = frozenset(
    {"counter", "log", "comment", "packets", "bytes", "prefix", "level", "notrack", "flags", "all"}
)
_RESULTS = frozenset({"oif", "oifname", "type", "check"})
"""What ``fib`` may be asked for."""
_DEEPEST = 16
"""NFT_JUMP_STACK_SIZE."""


class Met(NamedTuple):
    """A packet at a hook."""

    flow: Flow
    iif: str = ""
    oif: str = ""
    length: int = 0
    """Of its IP packet, 0: not known."""
    answer: bool = False
    """Connection tracking knows the connection already."""


class Outcome(NamedTuple):
    """What a rule does to it."""

    sure: bool
    rule: str
    """With the jumps that led there."""


class _Run:
    """One packet in one base chain."""

    def __init__(self, hook: ForeignHook, met: Met, ends: frozenset[str]) -> None:
        self.hook, self.met, self.ends = hook, met, ends
        self.sure = True
        self.perhaps: Outcome | None = None
        self.found: Outcome | None = None

    def chain(self, rules: Sequence[str], way: str, depth: int) -> bool:
        """Whether the packet's way through the hook ends in this chain."""
        for rule in rules:
            fit, verdict, target = _read(rule, self.met)
            if fit is False or not verdict:
                continue
            sure = fit is True and self.sure
            if verdict in self.ends:
                outcome = Outcome(sure, f"{way}{bare(rule)}")
                if sure:
                    self.found = outcome
                    return True
                self.perhaps = self.perhaps or outcome
            elif verdict in {"jump", "goto"}:
                if depth < _DEEPEST and self._follow(rule, fit is True, target, way, depth):
                    return True
                if verdict == "goto" and fit is True:
                    return False
            elif verdict == "return" and fit is True:
                return False
            elif verdict in _TRANSLATES | {"accept", "drop", "reject", "queue"}:
                if fit is True:
                    return True
                self.sure = False  # it may have ended here already
        return False

    def _follow(self, rule: str, fits: bool, target: str, way: str, depth: int) -> bool:
        before = self.sure
        self.sure = before and fits
        ended = self.chain(self.hook.chains.get(target, ()), f"{way}{bare(rule)}: ", depth + 1)
        if not fits:
            self.sure = before
            return False
        return ended


def judge(hook: ForeignHook, met: Met) -> Outcome | None:
    """The rule, or the chain's policy, that drops the packet; None: nothing does."""
    if not _looks(hook, met):
        return None
    run = _Run(hook, met, frozenset({"drop", "reject", "queue"}))
    ended = run.chain(hook.rules, "", 0)
    if run.found is not None:
        return run.found
    if not ended and hook.policy not in {"accept", ""}:
        return Outcome(run.sure, f"policy {hook.policy}")
    return run.perhaps


def translation(hook: ForeignHook, met: Met) -> Outcome | None:
    """The rule that translates the packet's addresses; None: nothing does."""
    if not _looks(hook, met):
        return None
    run = _Run(hook, met, _TRANSLATES)
    run.chain(hook.rules, "", 0)
    return run.found or run.perhaps


def _looks(hook: ForeignHook, met: Met) -> bool:
    """Whether this hook sees such a packet at all."""
    family = hook.family.split()[0]
    if hook.device and hook.device not in {met.iif, met.oif}:
        return False
    return family not in {"ip", "ip6"} or _FAMILIES[family] == len(met.flow.source)


def bare(rule: str) -> str:
    """A rule without its counters and comments."""
    words, skip = [], 0
    for word in rule.split("#", maxsplit=1)[0].split():
        if word == "packets":
            skip = 4
        if word == "counter":
            continue
        if not skip:
            words.append(word)
        skip = max(skip - 1, 0)
    return " ".join(words)


def _words(rule: str) -> list[str]:
    """A rule in words; sets are one word."""
    try:
        raw = shlex.split(rule.replace("{ ", "{").replace(" }", "}").replace(", ", ","))
    except ValueError:
        return rule.split()
    return raw


def _read(rule: str, met: Met) -> tuple[bool | None, str, str]:
    """Whether a rule fits (None: perhaps), its verdict ("" for none) and where it jumps to."""
    words = _words(rule)
    fit: bool | None = True
    at = 0
    while at < len(words):
        word = words[at]
        if word in _ENDS or word in _TRANSLATES:
            return fit, word, words[at + 1] if word in {"jump", "goto"} and at + 1 < len(words) else ""
        if word == "vmap":
            return None if fit else fit, "", ""
        if word == "fib":
            # fib saddr . iif oif missing: words of its own
            fit = False if fit is False else None
            at = next((place for place in range(at, len(words)) if words[place] in _RESULTS), at) + 2
            at += words[at - 1 : at] in (["!="], ["=="])
            continue
        used, hit = _match(words, at, met)
        if not used:
            if word in {"comment", "prefix", "level", "packets", "bytes", "group"}:
                at += 2
            elif word in _SILENT:
                at += 1
            else:
                fit, at = (False if fit is False else None), at + 1
            continue
        if hit is False:
            fit = False
        elif hit is None and fit is True:
            fit = None
        at += used
    return fit, "", ""


def _match(words: Sequence[str], at: int, met: Met) -> tuple[int, bool | None]:
    """How many words a known match takes, and whether the packet fits it; 0: no known match."""
    for size in (2, 1):
        key = " ".join(words[at : at + size])
        known = _values(key, met)
        if known is None or at + size >= len(words):
            continue
        more = at + size
        if words[more] == ".":  # several at once, against a set of tuples
            end = next((place for place in range(more, len(words)) if words[place][:1] in {"{", "@"}), more)
            return end + 1 - at, None
        wrong = words[more] == "!="
        sign = words[more] if words[more] in {"!=", "==", "<", ">", "<=", ">="} else ""
        more += bool(sign)
        if more >= len(words):
            return size, None
        hit = _compare(sign, known, words[more]) if sign[:1] in {"<", ">"} else _among(known, words[more])
        if wrong and hit is not None:
            hit = not hit
        return more + 1 - at, hit
    return 0, None


def _values(key: str, met: Met) -> list[str] | None:
    """What a packet has under a name of nft's; [] when it has nothing there, None: the name is not known here."""
    flow = met.flow
    tcp_udp = flow.protocol in {TCP, UDP}
    names = [name for name, number in _PROTOCOLS.items() if number == flow.protocol] + [str(flow.protocol)]
    echo = ("echo-request", "8") if not met.answer else ("echo-reply", "0")
    echo6 = ("echo-request", "128") if not met.answer else ("echo-reply", "129")
    four = len(flow.source) == 4
    table: dict[str, list[str]] = {
        "iifname": [met.iif], "iif": [met.iif], "oifname": [met.oif], "oif": [met.oif],
        "meta iifname": [met.iif], "meta oifname": [met.oif],
        "ip saddr": [str(ip_address(flow.source))] if four else [],
        "ip daddr": [str(ip_address(flow.destination))] if four else [],
        "ip6 saddr": [] if four else [str(ip_address(flow.source))],
        "ip6 daddr": [] if four else [str(ip_address(flow.destination))],
        "meta l4proto": names, "ip protocol": names if four else [], "ip6 nexthdr": [] if four else names,
        "meta nfproto": ["ipv4" if four else "ipv6"], "ether type": ["ip" if four else "ip6"],
        "meta protocol": ["ip" if four else "ip6"],
        "tcp dport": [str(flow.destination_port)] if flow.protocol == TCP else [],
        "tcp sport": [str(flow.source_port)] if flow.protocol == TCP else [],
        "udp dport": [str(flow.destination_port)] if flow.protocol == UDP else [],
        "udp sport": [str(flow.source_port)] if flow.protocol == UDP else [],
        "th dport": [str(flow.destination_port)] if tcp_udp else [],
        "th sport": [str(flow.source_port)] if tcp_udp else [],
        "icmp type": list(echo) if flow.protocol == ICMP else [],
        "icmpv6 type": list(echo6) if flow.protocol == ICMPV6 else [],
        "ct state": ["established"] if met.answer else ["new"],
    }  # fmt: skip
    if key in {"meta length", "ip length", "ip6 length"} and met.length:
        return [str(met.length)]
    return table.get(key)


def _among(values: Sequence[str], wanted: str) -> bool | None:
    """Whether one of the packet's values is among a rule's; None: it cannot be told."""
    if wanted.startswith("@"):
        return None
    answers = [_one(value, item) for item in _items(wanted) for value in values]
    if True in answers:
        return True
    return None if None in answers else False


def _items(wanted: str) -> Iterator[str]:
    for item in wanted.strip("{}").split(","):
        if item.strip():
            yield item.strip()


def _one(value: str, item: str) -> bool | None:
    if value == item or (item.endswith("*") and value.startswith(item[:-1])):
        return True
    try:
        if value.isdecimal():
            low, _, high = item.partition("-")
            return int(low) <= int(value) <= int(high or low) if low.isdecimal() else False
        address = ip_address(value)
    except ValueError:
        return False  # a name that is not this one
    low, dash, high = item.partition("-")
    try:
        if dash:
            first, last = ip_address(low), ip_address(high)
            return first.version == address.version and first.packed <= address.packed <= last.packed
        network = ip_network(item, strict=False)
    except ValueError:
        return None
    return network.version == address.version and address in network


def _compare(sign: str, values: Sequence[str], wanted: str) -> bool | None:
    if not values or not wanted.isdecimal() or not values[0].isdecimal():
        return None
    value, limit = int(values[0]), int(wanted)
    return {"<": value < limit, ">": value > limit, "<=": value <= limit, ">=": value >= limit}[sign]
