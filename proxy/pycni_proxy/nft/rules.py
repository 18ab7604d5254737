"""The rules of the service proxy: a short notation, and what it means as nf_tables instructions and as nft text. Pure.

Life of a rule: ``compile`` and ``layout`` write it down as words; ``instructions`` packs it for the kernel, which keeps
the words as the rule's comment, so that a restarted agent (and ``nft list``) reads them back; ``evaluate`` interprets
them; ``nft_text`` prints what they mean. N is 4 or 6, S names one of the maps of targets, WHERE is
``vip`` or ``port`` (a node port: the address is cleared).

    family N goto C             packets of this family
    serve N vip|port|local      a frontend's verdict: by address; by node port at the addresses of @node_ports;
                                the same, only for addresses this node has
    unknown N goto C            other ports of a known ClusterIP
    unallocated N drop          addresses of the service networks that nobody has
    outside N mark              sources outside the pods' networks
    mark / unmark               to be masqueraded / no more
    node mark goto C            sent by this node: marked, then on to C
    node goto C                 sent by this node
    cluster N goto C            sources inside the pods' networks
    from NET goto C             sources inside a network
    goto C / drop / reset / unreachable / masquerade
    hairpin N goto C            source and destination are the same target of this node
    marked goto C
    dnat N S WHERE HOW COUNT OFFSET            translate to one of COUNT targets, indexes from OFFSET on
    recall N S WHERE SECONDS                   translate to the remembered target, if it still is one
    forget N S WHERE                           drop a memory that did not help
    learn N S WHERE HOW COUNT OFFSET SECONDS   choose, remember, translate
    pick N S WHERE HOW COUNT OFFSET            choose by id without remembering (the memory is full)

HOW: ``random``; ``turn`` (one after the other); hashes of ``source``, ``source-port`` (source address and port) or
``destination``, with a fixed seed, so that every node and every life of the agent chooses the same.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pycni.wire import nftexpr as x

SEED = 0x70796E69
_SADDR, _DADDR = {4: 12, 6: 8}, {4: 16, 6: 24}
_SIZE = {4: 4, 6: 16}
_IP = {4: "ip", 6: "ip6"}
_LOOPBACK = {4: "127.0.0.0/8", 6: "::1/128"}
_NFPROTO = {4: 2, 6: 10}
_PROTOCOLS = "meta l4proto { tcp, udp, sctp }"


def instructions(rule: str, mark: int) -> bytes:
    """A rule as expressions for ``nftmsg.add_rule``. ``mark`` is the bit that asks for masquerading."""
    word, *rest = rule.split()
    return _PACK[word](rest, mark)


def nft_text(rule: str, mark: int) -> str:
    """A rule in nft's language. What reads a map inside a key, nft itself can only list: it is shown with ``( )``.

    The two steps from a frontend to its chain are shown as one, by a verdict map ``services<N>``.
    """
    word, *rest = rule.split()
    return _TEXT[word](rest, mark).replace("goto drop", "drop")


class Chosen(NamedTuple):
    """The indexes a rule chooses from."""

    size: int
    offset: int
    by_id: bool
    """Whether an index leads to an id first."""


def target_rule(rule: str) -> Chosen | None:
    """What a rule chooses from; None for one that chooses nothing."""
    word, *rest = rule.split()
    return Chosen(int(rest[4]), int(rest[5]), word == "learn") if word in {"dnat", "learn"} else None


# Instructions.


def _family(version: int) -> bytes:
    return x.meta(x.META_NFPROTO, 0) + x.cmp(0, bytes((_NFPROTO[version],)))


def _address(version: int, register: int, *, source: bool) -> bytes:
    offset = (_SADDR if source else _DADDR)[version]
    return x.payload(x.NETWORK_HEADER, offset, _SIZE[version], register)


def _frontend(version: int, where: str, register: int) -> bytes:
    """Address . protocol . port from ``register`` on; takes ``_words(version) + 2`` registers."""
    size = _SIZE[version]
    out = _address(version, register, source=False)
    if where != "vip":
        out += x.bitwise(register, bytes(size), bytes(size))
    after = register + size // 4
    return out + x.meta(x.META_L4PROTO, after) + x.payload(x.TRANSPORT_HEADER, 2, 2, after + 1)


def _choice(version: int, how: str, count: int, offset: int, register: int) -> bytes:
    """An index into ``register``; the registers behind hold address . protocol . port, and hashes use those behind."""
    if how in {"random", "turn"}:
        return x.numgen(register, count, random=how == "random", offset=offset)
    size = _SIZE[version]
    source = register + 3 + size // 4
    load = _address(version, source, source=how != "destination")
    if how == "source-port":
        load += x.payload(x.TRANSPORT_HEADER, 0, 2, source + size // 4)
        size += 4
    return load + x.jhash(source, size, register, count, seed=SEED, offset=offset)


def _mark(mark: int) -> bytes:
    return x.meta(x.META_MARK, 0) + x.bitwise(0, x.host32(~mark & 0xFFFFFFFF), x.host32(mark)) + x.set_mark(0)


def _unmark(_: list[str], mark: int) -> bytes:
    clear = x.bitwise(0, x.host32(~mark & 0xFFFFFFFF), bytes(4))
    return x.meta(x.META_MARK, 0) + clear + x.set_mark(0)


def _marked(rest: list[str], mark: int) -> bytes:
    test = x.bitwise(0, x.host32(mark), bytes(4)) + x.cmp(0, bytes(4), x.NEQ)
    return x.meta(x.META_MARK, 0) + test + x.goto(rest[1])


def _serve(rest: list[str], _: int) -> bytes:
    version, how = int(rest[0]), rest[1]
    out = b"" if how != "local" else x.fib_type(0, source=False) + x.cmp(0, x.host32(x.RTN_LOCAL))
    out += _family(version)
    if how != "vip":
        if how == "local":
            out += _outside_loopback(version)
        out += _address(version, 0, source=False) + x.lookup(f"node_ports{version}", 0)
    # The name lies behind a filling; see below.
    filling = x.meta(x.META_MARK, 1) + x.meta(x.META_MARK, 2)
    found = x.lookup(f"services{version}", 3, 0) + x.lookup("verdicts", 1, x.VERDICT)
    return out + filling + _frontend(version, how, 3) + found


def _outside_loopback(version: int) -> bytes:
    net = ipaddress.ip_network(_LOOPBACK[version])
    load = _address(version, 0, source=False)
    if version == 4:
        load += x.bitwise(0, net.netmask.packed, bytes(4))
    return load + x.cmp(0, net.network_address.packed, x.NEQ)


def _in_set(name: str, *, source: bool, absent: bool = False) -> Callable[[int], bytes]:
    def pack(version: int) -> bytes:
        load = _family(version) + _address(version, 0, source=source)
        return load + x.lookup(f"{name}{version}", 0, absent=absent)

    return pack


def _from(rest: list[str], _: int) -> bytes:
    net = ipaddress.ip_network(rest[0])
    size = _SIZE[net.version]
    mask = b"" if net.prefixlen == 8 * size else x.bitwise(0, net.netmask.packed, bytes(size))
    if net.prefixlen == 0:
        return _family(net.version) + x.goto(rest[2])
    load = _family(net.version) + _address(net.version, 0, source=True) + mask
    return load + x.cmp(0, net.network_address.packed) + x.goto(rest[2])


def _node(rest: list[str], mark: int) -> bytes:
    test = x.fib_type(0, source=True) + x.cmp(0, x.host32(x.RTN_LOCAL))
    return test + (_mark(mark) if rest[0] == "mark" else b"") + x.goto(rest[-1])


def _hairpin(rest: list[str], _: int) -> bytes:
    version = int(rest[0])
    status = x.bitwise(0, x.host32(x.CT_STATUS_DNAT), bytes(4)) + x.cmp(0, bytes(4), x.NEQ)
    pair = _address(version, 0, source=True) + _address(version, _SIZE[version] // 4, source=False)
    test = x.ct_status(0) + status + _family(version) + pair
    return test + x.lookup(f"hairpin{version}", 0) + x.goto(rest[2])


def _dnat(rest: list[str], _: int) -> bytes:
    version, shard, where, how, count, offset = _choosing(rest)
    words = _SIZE[version] // 4
    key = _choice(version, how, count, offset, 0) + _frontend(version, where, 1)
    return _family(version) + key + x.lookup(f"targets{version}{shard}", 0, 0) + x.dnat(version, 0, words)


def _choosing(rest: list[str]) -> tuple[int, str, str, str, int, int]:
    version, shard, where, how, count, offset = rest[:6]
    return int(version), shard, where, how, int(count), int(offset)


# With affinity the registers are (IPv6 in parentheses), so that every key lies in one piece and is loaded once:
#   0, 1 filling   2 index or id   3 (3-6) address   4 (7) protocol   5 (8) port   6 (9-12) client   then spare
# The filling is for nft up to 1.0.6, which stops with a failed assertion where a map's value is part of a key or of
# an element: a value that starts in a register before is not noticed. ``affinity`` gives filling and id, ``ids`` two
# fillings and the id.


def _client(version: int, where: str) -> bytes:
    """Address . protocol . port . client."""
    words = _SIZE[version] // 4
    return _family(version) + _frontend(version, where, 3) + _address(version, words + 5, source=True)


def _by_id(version: int, shard: str) -> bytes:
    """Translate to the target with the id in register 2."""
    return x.lookup(f"targets{version}{shard}", 2, 0) + x.dnat(version, 0, _SIZE[version] // 4)


def _recall(rest: list[str], _: int) -> bytes:
    version, shard, where, timeout = int(rest[0]), rest[1], rest[2], int(rest[3]) * 1000
    name = f"affinity{version}"
    # What is remembered keeps its value, only its time starts anew: any registers will do. Should it end between the
    # two instructions, protocol and port are remembered, which is no id.
    again = x.remember(name, 3, 3 + _SIZE[version] // 4, timeout)
    return (
        _client(version, where)
        + x.meta(x.META_MARK, 2)
        + x.lookup(name, 3, 1)
        + again
        + _by_id(version, shard)
    )


def _forget(rest: list[str], _: int) -> bytes:
    version = int(rest[0])
    return _client(version, rest[2]) + x.forget(f"affinity{version}", 3, 3 + _SIZE[version] // 4)


def _learn(rest: list[str], _: int) -> bytes:
    version, shard, where, how, count, offset = _choosing(rest)
    # The choice may load an address where the client belongs, so it comes first.
    out = x.meta(x.META_MARK, 1) + _choice(version, how, count, offset, 2) + _client(version, where)
    out += x.lookup(f"ids{version}", 2, 0)
    if len(rest) > 6:
        out += x.remember(f"affinity{version}", 3, 1, int(rest[6]) * 1000)
    return out + _by_id(version, shard)


_Pack = Callable[[list[str], int], bytes]
_PACK: Mapping[str, _Pack] = {
    "family": lambda rest, _: _family(int(rest[0])) + x.goto(rest[2]),
    "serve": _serve,
    "unknown": lambda rest, _: _in_set("cluster_ips", source=False)(int(rest[0])) + x.goto(rest[2]),
    "unallocated": lambda rest, _: _in_set("service_networks", source=False)(int(rest[0])) + x.goto("drop"),
    "outside": lambda rest, mark: _in_set("cluster", source=True, absent=True)(int(rest[0])) + _mark(mark),
    "mark": lambda _, mark: _mark(mark),
    "unmark": _unmark,
    "node": _node,
    "cluster": lambda rest, _: _in_set("cluster", source=True)(int(rest[0])) + x.goto(rest[2]),
    "from": _from,
    "goto": lambda rest, _: x.goto(rest[0]),
    "drop": lambda _, __: x.goto("drop"),
    "reset": lambda _, __: x.meta(x.META_L4PROTO, 0) + x.cmp(0, b"\x06") + x.reject_tcp(),
    "unreachable": lambda _, __: x.reject_port(),
    "masquerade": lambda _, __: x.masquerade(),
    "hairpin": _hairpin,
    "marked": _marked,
    "dnat": _dnat,
    "recall": _recall,
    "forget": _forget,
    "learn": _learn,
    "pick": _learn,
}


# Text.


def _frontend_text(version: str, where: str) -> str:
    address = f"{_IP[int(version)]} daddr"
    if where != "vip":
        address = f"({address} & {'0.0.0.0' if version == '4' else '::'})"
    return f"{address} . meta l4proto . th dport"


def _choice_text(version: str, how: str, count: str, offset: str) -> str:
    ip = _IP[int(version)]
    what = {
        "random": f"numgen random mod {count}",
        "turn": f"numgen inc mod {count}",
        "source": f"jhash {ip} saddr mod {count} seed {SEED:#x}",
        "source-port": f"jhash {ip} saddr . th sport mod {count} seed {SEED:#x}",
        "destination": f"jhash {ip} daddr mod {count} seed {SEED:#x}",
    }[how]
    return what if offset == "0" else f"{what} offset {offset}"


def _serve_text(rest: list[str], _: int) -> str:
    version, how = rest[0], rest[1]
    ip = _IP[int(version)]
    found = f"{_frontend_text(version, how)} vmap @services{version}"
    if how == "vip":
        return found
    listed = f"{ip} daddr @node_ports{version} {found}"
    return (
        listed if how == "port" else f"fib daddr type local {ip} daddr != {_LOOPBACK[int(version)]} {listed}"
    )


def _dnat_text(rest: list[str], _: int) -> str:
    version, shard, where = rest[:3]
    key = f"{_choice_text(version, *rest[3:6])} . {_frontend_text(version, where)}"
    return f"{_PROTOCOLS} dnat {_IP[int(version)]} to {key} map @targets{version}{shard}"


def _client_text(version: str, where: str) -> str:
    return f"{_frontend_text(version, where)} . {_IP[int(version)]} saddr"


def _recall_text(rest: list[str], _: int) -> str:
    version, shard, where, seconds = rest
    client = _client_text(version, where)
    known = f"({client} map @affinity{version})"
    found = f"{known} . {_frontend_text(version, where)} map @targets{version}{shard}"
    again = f"update @affinity{version} {{ {client} timeout {seconds}s : {known} }}"
    return f"{again} dnat {_IP[int(version)]} to {found}"


def _learn_text(rest: list[str], _: int) -> str:
    version, shard, where = rest[:3]
    client, frontend = _client_text(version, where), _frontend_text(version, where)
    known = f"({_choice_text(version, *rest[3:6])} . {frontend} map @ids{version})"
    out = f"dnat {_IP[int(version)]} to {known} . {frontend} map @targets{version}{shard}"
    if len(rest) > 6:
        out = f"update @affinity{version} {{ {client} timeout {rest[6]}s : {known} }} {out}"
    return out


def _source_text(rest: list[str]) -> str:
    net = ipaddress.ip_network(rest[0])
    source = f"{_IP[net.version]} saddr {net}" if net.prefixlen else f"meta nfproto ipv{net.version}"
    return f"{source} goto {rest[2]}"


def _mark_text(mark: int) -> str:
    return f"meta mark set meta mark | {mark:#010x}"


_Text = Callable[[list[str], int], str]
_TEXT: Mapping[str, _Text] = {
    "family": lambda rest, _: f"meta nfproto ipv{rest[0]} goto {rest[2]}",
    "serve": _serve_text,
    "unknown": lambda rest, _: f"{_IP[int(rest[0])]} daddr @cluster_ips{rest[0]} goto {rest[2]}",
    "unallocated": lambda rest, _: f"{_IP[int(rest[0])]} daddr @service_networks{rest[0]} drop",
    "outside": lambda rest, mark: f"{_IP[int(rest[0])]} saddr != @cluster{rest[0]} {_mark_text(mark)}",
    "mark": lambda _, mark: _mark_text(mark),
    "unmark": lambda _, mark: f"meta mark set meta mark & {~mark & 0xFFFFFFFF:#010x}",
    "node": lambda rest, mark: (
        "fib saddr type local " + (_mark_text(mark) + " " if rest[0] == "mark" else "") + f"goto {rest[-1]}"
    ),
    "cluster": lambda rest, _: f"{_IP[int(rest[0])]} saddr @cluster{rest[0]} goto {rest[2]}",
    "from": lambda rest, _: _source_text(rest),
    "goto": lambda rest, _: f"goto {rest[0]}",
    "drop": lambda _, __: "drop",
    "reset": lambda _, __: "meta l4proto tcp reject with tcp reset",
    "unreachable": lambda _, __: "reject",
    "masquerade": lambda _, __: "masquerade fully-random",
    "hairpin": lambda rest, _: (
        f"ct status dnat {_IP[int(rest[0])]} saddr . {_IP[int(rest[0])]} daddr @hairpin{rest[0]} goto {rest[2]}"
    ),
    "marked": lambda rest, mark: f"meta mark & {mark:#010x} != 0x00000000 goto {rest[1]}",
    "dnat": _dnat_text,
    "recall": _recall_text,
    "forget": lambda rest, _: (
        f"delete @affinity{rest[0]} {{ {_client_text(rest[0], rest[2])} : meta l4proto }}"
    ),
    "learn": _learn_text,
    "pick": _learn_text,
}
