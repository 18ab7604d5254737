"""Traffic control messages: token bucket filters, the redirection of what a port receives, eBPF programs.

Pure: values in, rtnetlink messages out, and back for what CHECK reads. Layouts are those of
include/uapi/linux/rtnetlink.h (tcmsg), pkt_sched.h (tbf), pkt_cls.h (u32) and tc_act/tc_mirred.h.

    tcmsg   family:8 pad:24 ifindex:32 handle:32 parent:32 info:32
    u32     selector with one key that matches everything; action mirred, redirect to egress of a device
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

from pycni.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_ECHO,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    attr,
    attr_str,
    attr_u32,
    attr_u64,
    message,
    nested,
    parse_attrs,
)

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_TBF_PARMS, TCA_TBF_RATE64, TCA_TBF_BURST = 1, 4, 6
TCA_U32_SEL, TCA_U32_ACT = 5, 7
TCA_ACT_KIND, TCA_ACT_OPTIONS = 1, 2
TCA_MIRRED_PARMS = 2
TC_H_ROOT = 0xFFFFFFFF
TC_H_CLSACT = 0xFFFFFFF1
INGRESS = 0xFFFFFFF2
"""TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS): filters on what a device receives."""
EGRESS = 0xFFFFFFF3
"""TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS): filters on what a device sends."""
CLSACT_HANDLE = 0xFFFF0000
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_ID = 6, 7, 8, 11
_ACTIONS = {"u32": TCA_U32_ACT, "matchall": 2, "flower": 3, "basic": 3, "fw": 4}
"""TCA_*_ACT by kind of filter (include/uapi/linux/pkt_cls.h)."""
_GACT_PARMS = 2
_SHOT = frozenset({2, 4})
"""TC_ACT_SHOT, TC_ACT_STOLEN."""
TBF_HANDLE = 0x00010000
REDIRECT_PRIORITY = 0xC000
"""After every filter of others: a redirect ends the chain."""
_TCMSG = struct.Struct("=B3xiIII")
_RATE = struct.Struct("=BBHhHI")
"""tc_ratespec: cell_log, linklayer, overhead, cell_align, mpu, rate (bytes/s)."""
_LIMIT = struct.Struct("=III")
"""The rest of tc_tbf_qopt: limit (bytes), buffer, mtu."""
_ETHERNET = 1
"""TC_LINKLAYER_ETHERNET: with it the kernel needs no rate tables from user space."""
_U32_ALL = struct.pack("=BBBx HHhh I IIii", 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
"""tc_u32_sel, flag TC_U32_TERMINAL, with one tc_u32_key of mask 0."""
_MIRRED = struct.Struct("=IIiiiiI")
"""tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex."""
_STOLEN, _EGRESS_REDIR = 4, 1
_ETH_P_ALL = struct.unpack("=H", b"\x00\x03")[0]
"""ETH_P_ALL as tcm_info carries it: the network's byte order in a host's integer."""


class TokenBucket(NamedTuple):
    """What the kernel reports of a token bucket filter: bytes per second and bytes."""

    rate: int
    limit: int


def add_tbf(ifindex: int, rate: int, burst: int, limit: int) -> bytes:
    """Make a token bucket filter the root of a device, or change the one there is.

    ``rate`` in bytes per second (64 bits), ``burst`` and ``limit`` in bytes (32 bits).
    """
    rate32 = min(rate, 0xFFFFFFFF)
    parms = _RATE.pack(0, _ETHERNET, 0, 0, 0, rate32) + bytes(_RATE.size) + _LIMIT.pack(limit, 0, 0)
    options = [attr(TCA_TBF_PARMS, parms), attr_u32(TCA_TBF_BURST, burst)]
    if rate > rate32:
        options.append(attr_u64(TCA_TBF_RATE64, rate))
    return message(
        RTM_NEWQDISC,
        NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE,
        _TCMSG.pack(0, ifindex, TBF_HANDLE, TC_H_ROOT, 0)
        + attr_str(TCA_KIND, "tbf")
        + nested(TCA_OPTIONS, *options),
    )


def add_clsact(ifindex: int) -> bytes:
    """Give a device hooks for filters; EEXIST when it has them."""
    header = _TCMSG.pack(0, ifindex, CLSACT_HANDLE, TC_H_CLSACT, 0)
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
    return message(RTM_NEWQDISC, flags, header + attr_str(TCA_KIND, "clsact"))


def add_redirect(ifindex: int, target: int) -> bytes:
    """Lead everything a device receives through the transmit side of another one (an ifb)."""
    mirred = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIR, target)
    action = nested(
        1, attr_str(TCA_ACT_KIND, "mirred"), nested(TCA_ACT_OPTIONS, attr(TCA_MIRRED_PARMS, mirred))
    )
    options = nested(TCA_OPTIONS, attr(TCA_U32_SEL, _U32_ALL), nested(TCA_U32_ACT, action))
    header = _TCMSG.pack(0, ifindex, 0, INGRESS, REDIRECT_PRIORITY << 16 | _ETH_P_ALL)
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_EXCL
    return message(RTM_NEWTFILTER, flags, header + attr_str(TCA_KIND, "u32") + options)


def put_program(ifindex: int, hook: int, priority: int, program: int, name: str) -> bytes:
    """Have a program (its descriptor) judge what passes a hook (INGRESS, EGRESS); one that is there is replaced.

    The program's own verdict is final (direct action); filters of smaller ``priority`` come before it.
    """
    direct_action = 1
    options = nested(
        TCA_OPTIONS,
        attr_u32(TCA_BPF_FD, program),
        attr_str(TCA_BPF_NAME, name),
        attr_u32(TCA_BPF_FLAGS, direct_action),
    )
    header = _TCMSG.pack(0, ifindex, 1, hook, _info(priority))
    flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE
    return message(RTM_NEWTFILTER, flags, header + attr_str(TCA_KIND, "bpf") + options)


def del_program(ifindex: int, hook: int, priority: int) -> bytes:
    """Take the program off a hook; ENOENT when there is none of this priority."""
    header = _TCMSG.pack(0, ifindex, 1, hook, _info(priority))
    return message(RTM_DELTFILTER, NLM_F_REQUEST, header + attr_str(TCA_KIND, "bpf"))


def get_programs(ifindex: int, hook: int) -> bytes:
    """Dump request for the filters of a hook."""
    return message(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, _TCMSG.pack(0, ifindex, 0, hook, 0))


def program_of(payload: bytes) -> tuple[int, int] | None:
    """(priority, program's id) of an RTM_NEWTFILTER payload; None when it is no program."""
    info = _TCMSG.unpack_from(payload)[4]
    attrs = parse_attrs(payload, _TCMSG.size)
    if attrs.get(TCA_KIND) != b"bpf\0" or TCA_OPTIONS not in attrs:
        return None
    number = parse_attrs(attrs[TCA_OPTIONS]).get(TCA_BPF_ID)
    return None if number is None else (info >> 16, int.from_bytes(number, sys.byteorder))


class Filter(NamedTuple):
    """A filter as far as it decides over packets."""

    kind: str
    """bpf, matchall, u32, flower, ..."""
    priority: int
    action: str
    """Of its first action: drop, mirred, police, ...; "" when it is the filter's own business."""
    program: int
    """Id of the program it runs; 0: none."""


def filter_of(payload: bytes) -> Filter | None:
    """An RTM_NEWTFILTER payload; None for what only heads others (hash tables of u32)."""
    info = _TCMSG.unpack_from(payload)[4]
    attrs = parse_attrs(payload, _TCMSG.size)
    kind = attrs.get(TCA_KIND, b"").rstrip(b"\0").decode()
    options = parse_attrs(attrs.get(TCA_OPTIONS, b""))
    if not options:
        return None
    if kind == "bpf":
        return Filter(kind, info >> 16, "", int.from_bytes(options.get(TCA_BPF_ID, b""), sys.byteorder))
    place = _ACTIONS.get(kind)
    if place is None or place not in options:
        return Filter(kind, info >> 16, "", 0) if kind != "u32" else None
    first = parse_attrs(parse_attrs(options[place]).get(1, b""))
    action = first.get(TCA_ACT_KIND, b"").rstrip(b"\0").decode()
    parms = parse_attrs(first.get(TCA_ACT_OPTIONS, b"")).get(_GACT_PARMS, b"")
    if action == "gact" and len(parms) >= 12:
        number = struct.unpack_from("=i", parms, 8)[0]
        action = "drop" if number in _SHOT else "pass"
    return Filter(kind, info >> 16, action, 0)


def dump_qdiscs() -> bytes:
    """Dump request for the queueing disciplines of all devices."""
    return message(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP, _TCMSG.pack(0, 0, 0, 0, 0))


def device_qdisc(payload: bytes) -> tuple[int, str]:
    """Device's index and kind of an RTM_NEWQDISC payload."""
    kind = parse_attrs(payload, _TCMSG.size).get(TCA_KIND, b"")
    return _TCMSG.unpack_from(payload)[1], kind.rstrip(b"\0").decode()


def _info(priority: int) -> int:
    return priority << 16 | int(_ETH_P_ALL)


def get_root(ifindex: int) -> bytes:
    """Ask for the root queueing discipline of a device; no answer: none but the built-in one.

    The kernel answers like a notification (net/sched/sch_api.c), so only a request for an echo gets it.
    """
    return message(RTM_GETQDISC, NLM_F_REQUEST | NLM_F_ECHO, _TCMSG.pack(0, ifindex, 0, TC_H_ROOT, 0))


def get_filters(ifindex: int) -> bytes:
    """Dump request for the filters on what a device receives."""
    return message(RTM_GETTFILTER, NLM_F_REQUEST | NLM_F_DUMP, _TCMSG.pack(0, ifindex, 0, INGRESS, 0))


def root_bucket(payload: bytes, ifindex: int) -> TokenBucket | None:
    """The token bucket filter an RTM_NEWQDISC payload describes, when it is the root of the device."""
    _, index, _, parent, _ = _TCMSG.unpack_from(payload)
    attrs = parse_attrs(payload, _TCMSG.size)
    if index != ifindex or parent != TC_H_ROOT or attrs.get(TCA_KIND) != b"tbf\0":
        return None
    options = parse_attrs(attrs[TCA_OPTIONS])
    parms = options[TCA_TBF_PARMS]
    rate = _RATE.unpack_from(parms)[5]
    if TCA_TBF_RATE64 in options:
        rate = int.from_bytes(options[TCA_TBF_RATE64], "little")
    return TokenBucket(rate, _LIMIT.unpack_from(parms, 2 * _RATE.size)[0])


def redirect_target(payload: bytes) -> int | None:
    """Device index an RTM_NEWTFILTER payload redirects to; None when it is another kind of filter."""
    attrs = parse_attrs(payload, _TCMSG.size)
    if attrs.get(TCA_KIND) != b"u32\0" or TCA_OPTIONS not in attrs:
        return None
    actions = parse_attrs(parse_attrs(attrs[TCA_OPTIONS]).get(TCA_U32_ACT, b""))
    for action in actions.values():
        fields = parse_attrs(action)
        if fields.get(TCA_ACT_KIND) == b"mirred\0":
            parms = parse_attrs(fields[TCA_ACT_OPTIONS])[TCA_MIRRED_PARMS]
            return int(_MIRRED.unpack_from(parms)[6])
    return None
