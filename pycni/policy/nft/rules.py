"""The rules of network policies: a short notation, and what it means as nf_tables instructions and as nft text. Pure.

Life of a rule: ``compile`` and ``layout`` write it down as words; ``instructions`` packs it for the kernel, which keeps
the words as the rule's comment, so that a restarted agent (and ``nft list``) reads them back; ``evaluate`` interprets
them; ``nft_text`` prints what they mean. N is 4 or 6, D ``egress`` or ``ingress``.

    established accept           connections that are established, and what belongs to them (ICMP errors)
    judged accept                packets of connections that a fast path of this node has judged
    neighbours A B accept        ICMPv6 of these types
    local accept                 sent by this node
    family N goto C              packets of this family
    own N source|destination accept
    self N accept                from a pod to itself
    judge N D                    what policies say of the pod
    closed N D goto C            a pod that should have been judged
    if N D [group G | block PLACE] [ports PLACE | proto P named NAME] then accept|goto C
    if N D group-of|block-of PLACE then accept|goto C         the group or blocks that ``classes`` has for the port
    jump C / goto C / accept / drop
    count D NAME                 counts packets denied by a policy
    log TEXT                     tells nfnetlink_log, some per second
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from pycni.policy.base import JUDGED_MARK
from pycni.policy.nft.layout import (
    CLASSES,
    ID,
    LOG_BURST,
    LOG_GROUP,
    LOG_RATE,
    PORTS,
    blocks,
    group_id,
    groups,
    named_id,
    named_ports,
    verdicts,
)
from pycni.view.policy_rules import Named
from pycni.wire import nftexpr as x

_SADDR, _DADDR = {4: 12, 6: 8}, {4: 16, 6: 24}
_SIZE = {4: 4, 6: 16}
_IP = {4: "ip", 6: "ip6"}
_NFPROTO = {4: 2, 6: 10}
_ICMPV6 = 58


class Condition(NamedTuple):
    """An ``if`` rule taken apart."""

    version: int
    side: str
    group: str
    """The other end has to be in; ""."""
    block: str
    """Place of the blocks the other end has to be in; ""."""
    ports: str
    """Place of the protocols and ports one of which it has to be; "": any."""
    named: Named | None
    """Of the destination."""
    by_port: str
    """Place in ``classes``; ``group`` or ``block`` is the same then: which one it is that has to have the other end."""
    verdict: str
    """``accept`` or a chain."""


def condition(rule: str) -> Condition:
    """Take an ``if`` rule apart."""
    head, _, verdict = rule.partition(" then ")
    _, version, side, *words = head.split()
    found = dict(zip(words[::2], words[1::2], strict=True))
    return Condition(
        int(version),
        side,
        found.get("group", found.get("group-of", "")),
        found.get("block", found.get("block-of", "")),
        found.get("ports", ""),
        (int(found["proto"]), found["named"]) if "named" in found else None,
        found.get("group-of", found.get("block-of", "")),
        verdict.removeprefix("goto "),
    )


def instructions(rule: str) -> bytes:
    """A rule as expressions for ``nftmsg.add_rule``."""
    word, _, rest = rule.partition(" ")
    if word == "if":
        return _if(condition(rule))
    return _PACK[word](rest.split(), rest)


def nft_text(rule: str) -> str:
    """A rule in nft's language, simplified as ``listing`` says."""
    word, _, rest = rule.partition(" ")
    if word == "if":
        return _if_text(condition(rule))
    return _TEXT[word](rest.split(), rest)


# Instructions.


@lru_cache(maxsize=64)
def _address(version: int, register: int, *, source: bool) -> bytes:
    return x.payload(x.NETWORK_HEADER, (_SADDR if source else _DADDR)[version], _SIZE[version], register)


_GROUP, _BLOCK, _PLACE = (bytes((0xE0 + number,)) * ID for number in range(3))
"""Stand for names in a rule that is made once for all of its kind."""


def _if(found: Condition) -> bytes:
    """Rules of a kind differ in names of eight bytes only: the rest is made once."""
    if found.named is not None:
        return _whole(found)
    kind = found._replace(
        group=found.group and _GROUP.hex(),
        block=found.block and _BLOCK.hex(),
        ports=found.ports and _PLACE.hex(),
        by_port=found.by_port and _PLACE.hex(),
    )
    out = _of_a_kind(kind)
    if found.by_port:
        return out.replace(_PLACE, bytes.fromhex(found.by_port))
    if found.group:
        out = out.replace(_GROUP, group_id(found.group))
    elif found.block:
        out = out.replace(_BLOCK, bytes.fromhex(found.block))
    return out.replace(_PLACE, bytes.fromhex(found.ports)) if found.ports else out


@lru_cache(maxsize=1024)
def _of_a_kind(found: Condition) -> bytes:
    return _whole(found)


def _whole(found: Condition) -> bytes:
    version = found.version
    size = _SIZE[version] // 4
    if found.by_port:
        return _by_port(found) + _then(found.verdict)
    out = b""
    if found.group:
        out += _other(version, found.side, 0) + x.immediate(size, group_id(found.group))
        out += _lookup(groups(version))
    if found.block:
        out += x.immediate(0, bytes.fromhex(found.block)) + _other(version, found.side, 2)
        out += _lookup(blocks(version))
    if found.ports:
        out += x.immediate(0, bytes.fromhex(found.ports)) + _SERVICE + _lookup(PORTS)
    if found.named is not None:
        out += x.meta(x.META_L4PROTO, 0) + x.cmp(0, bytes((found.named[0],)))
        out += _address(version, 0, source=False) + x.payload(x.TRANSPORT_HEADER, 2, 2, size)
        out += x.immediate(size + 1, named_id(found.named)) + _lookup(named_ports(version))
    return out + _then(found.verdict)


def _by_port(found: Condition) -> bytes:
    """What ``classes`` says goes beside the address. As in ``_judge``, nft wants to have seen something there."""
    version = found.version
    size = _SIZE[version] // 4
    service = x.immediate(0, bytes.fromhex(found.by_port)) + _SERVICE
    if found.group:
        filling = x.meta(x.META_MARK, size) + x.meta(x.META_MARK, size + 1)
        service += x.lookup(CLASSES, 0, size - 1)
        return filling + service + _other(version, found.side, 0) + _lookup(groups(version))
    service += x.lookup(CLASSES, 0, 0)
    return x.meta(x.META_MARK, 1) + service + _other(version, found.side, 3) + x.lookup(blocks(version), 1)


_SERVICE = x.meta(x.META_L4PROTO, 2) + x.payload(x.TRANSPORT_HEADER, 2, 2, 3)


def _other(version: int, side: str, register: int) -> bytes:
    """The address of the other end."""
    return _address(version, register, source=side == "ingress")


@lru_cache(maxsize=16)
def _lookup(name: str) -> bytes:
    return x.lookup(name, 0)


@lru_cache(maxsize=1024)
def _then(verdict: str) -> bytes:
    return x.goto(verdict)


_SENT_HERE = x.meta(x.META_IIF, 0) + x.cmp(0, x.host32(0))
"""What came in by a device is not sent by this node, whatever source it has: IPv6 has no martians. What a bridge hands
on has no device here either; pods are held to their addresses there (``policy/spoof``)."""


def _established() -> bytes:
    bits = x.host32(x.STATE_ESTABLISHED | x.STATE_RELATED)
    return x.ct_state(0) + x.bitwise(0, bits, bytes(4)) + x.cmp(0, bytes(4), x.NEQ) + x.goto("accept")


def _judged() -> bytes:
    mark = x.meta(x.META_MARK, 0) + x.bitwise(0, x.host32(JUDGED_MARK), bytes(4))
    return mark + x.cmp(0, bytes(4), x.NEQ) + x.goto("accept")


def _neighbours(first: int, last: int) -> bytes:
    kind = x.meta(x.META_L4PROTO, 0) + x.cmp(0, bytes((_ICMPV6,))) + x.payload(x.TRANSPORT_HEADER, 0, 1, 0)
    ends = bytes((first,)), bytes((last,))
    return kind + (x.cmp(0, ends[0]) if first == last else x.within(0, *ends)) + x.goto("accept")


def _self(version: int) -> bytes:
    both = _address(version, 0, source=True) + _address(version, _SIZE[version] // 4, source=False)
    return both + x.lookup(f"self{version}", 0) + x.goto("accept")


def _judge(version: int, side: str) -> bytes:
    # The name lies behind a filling: nft 1.0.6 stops with a failed assertion where a map's value starts a key.
    filling = x.meta(x.META_MARK, 1) + x.meta(x.META_MARK, 2)
    found = _address(version, 3, source=side == "egress") + x.lookup(f"judged_{side}{version}", 3, 0)
    return filling + found + x.lookup(verdicts(side, version), 1, x.VERDICT)


def _closed(version: int, side: str, chain: str) -> bytes:
    address = _address(version, 0, source=side == "egress")
    return address + x.lookup(f"closed_{side}{version}", 0) + x.goto(chain)


def _own(version: int, end: str) -> bytes:
    return (
        (_SENT_HERE if end == "source" else b"")
        + _address(version, 0, source=end == "source")
        + x.lookup(f"own{version}", 0)
        + x.goto("accept")
    )


_COUNT, _LIMIT, _DROP = x.counter(), x.limit(LOG_RATE, LOG_BURST), x.goto("drop")
_Pack = Callable[[list[str], str], bytes]
_PACK: Mapping[str, _Pack] = {
    "established": lambda _, __: _established(),
    "judged": lambda _, __: _judged(),
    "neighbours": lambda words, _: _neighbours(int(words[0]), int(words[1])),
    "local": lambda _, __: (
        _SENT_HERE + x.fib_type(0, source=True) + x.cmp(0, x.host32(x.RTN_LOCAL)) + x.goto("accept")
    ),
    "family": lambda words, _: (
        x.meta(x.META_NFPROTO, 0) + x.cmp(0, bytes((_NFPROTO[int(words[0])],))) + x.goto(words[2])
    ),
    "own": lambda words, _: _own(int(words[0]), words[1]),
    "self": lambda words, _: _self(int(words[0])),
    "judge": lambda words, _: _judge(int(words[0]), words[1]),
    "closed": lambda words, _: _closed(int(words[0]), words[1], words[3]),
    "jump": lambda words, _: x.jump(words[0]),
    "goto": lambda words, _: x.goto(words[0]),
    "accept": lambda _, __: x.goto("accept"),
    "drop": lambda _, __: _DROP,
    "count": lambda _, __: _COUNT,
    "log": lambda _, text: _LIMIT + x.log(LOG_GROUP, text),
}


# Text.


def _verdict(name: str) -> str:
    return name if name in {"accept", "drop"} else f"goto {name}"


def _if_text(found: Condition) -> str:
    ip = _IP[found.version]
    other = f"{ip} {'saddr' if found.side == 'ingress' else 'daddr'}"
    words = []
    if found.group:
        words.append(f"{other} @{groups(found.version)}-{found.group}")
    if found.block:
        words.append(f"{other} @{blocks(found.version)}-{found.block}")
    if found.ports:
        words.append(f"meta l4proto . th dport @{PORTS}-{found.ports}")
    if found.named is not None:
        words.append(f"{ip} daddr . th dport @{named_ports(found.version)}-{named_id(found.named).hex()}")
    return " ".join([*words, _verdict(found.verdict)])


def _judge_text(words: list[str]) -> str:
    version, side = words
    end = "saddr" if side == "egress" else "daddr"
    return f"{_IP[int(version)]} {end} vmap @judged_{side}{version}"


_Text = Callable[[list[str], str], str]
_TEXT: Mapping[str, _Text] = {
    "established": lambda _, __: "ct state established,related accept",
    "judged": lambda _, __: f"meta mark & {JUDGED_MARK:#010x} != 0 accept",
    "neighbours": lambda words, _: f"icmpv6 type {'-'.join(sorted({*words[:2]}))} accept",
    "local": lambda _, __: "iif 0 fib saddr type local accept",
    "family": lambda words, _: f"meta nfproto ipv{words[0]} goto {words[2]}",
    "own": lambda words, _: (
        f"{'iif 0 ' if words[1] == 'source' else ''}"
        f"{_IP[int(words[0])]} {'saddr' if words[1] == 'source' else 'daddr'} @own{words[0]} accept"
    ),
    "self": lambda words, _: (
        f"{_IP[int(words[0])]} saddr . {_IP[int(words[0])]} daddr @self{words[0]} accept"
    ),
    "judge": lambda words, _: _judge_text(words),
    "closed": lambda words, _: (
        f"{_IP[int(words[0])]} {'saddr' if words[1] == 'egress' else 'daddr'} @closed_{words[1]}{words[0]}"
        f" goto {words[3]}"
    ),
    "jump": lambda words, _: f"jump {words[0]}",
    "goto": lambda words, _: f"goto {words[0]}",
    "accept": lambda _, __: "accept",
    "drop": lambda _, __: "drop",
    "count": lambda _, text: f'counter comment "{text}"',
    "log": lambda _, text: (
        f'limit rate {LOG_RATE}/second burst {LOG_BURST} packets log prefix "{text}" group {LOG_GROUP}'
    ),
}
