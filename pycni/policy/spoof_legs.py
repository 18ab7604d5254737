"""The nftables table that holds pods on links of their own (attachment ``ptp``) to their own addresses. Pure.

    table inet pycni_leg_guard:     the sets of ``bridge pycni_guard`` (``spoof_rules``), one hook: prerouting

Rows, rules and what is refused are the bridge's, as far as there is such a thing on a link with two ends: ARP, foreign
ethertypes and broadcasts reach nobody but the node, which has no use for them, and from pod to pod only what is routed
comes. The table is there only while such pods are: every packet the node receives passes its hook.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pycni.policy import spoof_rules
from pycni.policy.spoof_rules import Layout
from pycni.wire.nftmsg import Hook

TABLE = "pycni_leg_guard"
_PRE_ROUTING = 0
"""include/uapi/linux/netfilter.h"""
HOOKS = {"prerouting": Hook("filter", _PRE_ROUTING, spoof_rules.HOOKS["prerouting"].priority)}
"""After fragments are put together, before a connection is made of a packet (-200) and before any translation."""
_UNHEARD = frozenset({"arp", "frame", "between"})
"""What those chains judge never comes here."""


def on_legs() -> Layout:
    """The table."""
    return Layout(TABLE, HOOKS, dict(_chains(spoof_rules.fixed_chains())))


def _chains(bridged: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, rules in bridged.items():
        if name not in HOOKS and name in spoof_rules.HOOKS:
            continue
        if name.removeprefix("refuse-") not in _UNHEARD:
            yield name, tuple(rule for rule in rules if not _leads_to(rule, _UNHEARD))


def _leads_to(rule: str, chains: frozenset[str]) -> bool:
    target = rule.rpartition("goto ")[2]
    return target.removeprefix("refuse-") in chains
