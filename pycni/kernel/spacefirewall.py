"""Rules of others that decide over packets in one namespace: nftables, and iptables' old interface.

Only chains the kernel calls (those with a hook) of tables that are not ours are told of, with the rules in them, and in
what they lead to, that can end a packet's way.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterable
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.nft import Nft
from pycni.model.space import ForeignHook

OURS = "pycni"
"""Begins the names of our tables."""
_ENDING = ("drop", "reject", "queue")
_NAMES = "/proc/thread-self/net/{}_tables_names"
_LEGACY = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
_TIMEOUT_S = 10.0


def foreign_hooks() -> tuple[ForeignHook, ...]:
    """Chains of others in the calling thread's namespace. Raises KernelError."""
    return (*_nftables(), *_legacy())


def _nftables() -> Iterable[ForeignHook]:
    try:
        nft = Nft()
    except KernelError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return
        raise
    with nft:
        chains = [item["chain"] for item in nft.listing("list chains") if "chain" in item]
        hooked = [item for item in chains if "hook" in item and not item["table"].startswith(OURS)]
        tables = {(item["family"], item["table"]) for item in hooked}
        rules: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for family, table in tables:
            try:
                rules[family, table] = _ending(nft.query(f"list table {family} {table}"))
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        for item in hooked:
            there = rules.get((item["family"], item["table"]), [])
            yield _hook(
                item, [rule for chain, rule in there if chain == item["name"] or chain not in _names(hooked)]
            )


def _names(chains: list[dict[str, Any]]) -> set[str]:
    return {chain["name"] for chain in chains}


def _hook(chain: dict[str, Any], rules: list[str]) -> ForeignHook:
    return ForeignHook(
        family=chain["family"],
        table=chain["table"],
        chain=chain["name"],
        hook=chain["hook"],
        priority=chain.get("prio", 0),
        policy=chain.get("policy", "accept"),
        verdicts=tuple(rules),
    )


def _ending(listing: str) -> list[tuple[str, str]]:
    """Chain and text of each rule of a listed table that can end a packet's way."""
    found, chain = [], ""
    for raw in listing.splitlines():
        line = raw.strip()
        if line.startswith("chain "):
            chain = line.split()[1]
        elif chain and any(word in line.split() for word in _ENDING):
            found.append((chain, line))
    return found


def _legacy() -> Iterable[ForeignHook]:
    """Chains of iptables-legacy, whose rules nftables does not show."""
    for family, program in _LEGACY.items():
        try:
            with open(_NAMES.format(family), encoding="ascii") as file:
                tables = file.read().split()
        except FileNotFoundError:
            continue
        for table in tables if shutil.which(program) is not None else ():
            done = subprocess.run(
                [program, "-w", "2", "-t", table, "-S"],
                capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
            )  # fmt: skip
            rules = done.stdout.splitlines()
            ending = tuple(
                rule for rule in rules if rule.startswith("-A") and rule.split()[-1] in {"DROP", "REJECT"}
            )
            for rule in rules:
                if rule.startswith("-P"):
                    _, chain, policy = rule.split()[:3]
                    yield ForeignHook(
                        family=f"{family} legacy", table=table, chain=chain, hook=chain.lower(), priority=0,
                        policy=policy.lower(), verdicts=ending if policy else (),
                    )  # fmt: skip
