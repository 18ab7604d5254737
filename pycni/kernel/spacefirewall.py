"""Rules of others that decide over packets in one namespace: nftables, and iptables' old interface.

Only chains the kernel calls (those with a hook) of tables that are not ours are told of, with all rules in them and in
what they lead to, so that ``trace/foreign`` can lead a packet through them.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pycni.errors import KernelError
from pycni.kernel.nft import Nft
from pycni.kernel.nft_names import tables
from pycni.model.space import ForeignHook
from pycni.wire.iptables_rules import in_nft_words

OURS = "pycni"
"""Begins the names of our tables."""
OUR_CHAINS = "PYCNI-"
"""Begins the names of our chains in tables of iptables, which are everybody's."""
_ENDING = ("drop", "reject", "queue")
_HEADS = ("type ", "policy ", "devices ")
"""Of lines of a listed chain that are no rules."""
_NAMES = "/proc/thread-self/net/{}_tables_names"
_LEGACY = {"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}
_TIMEOUT_S = 10.0


def foreign_hooks() -> tuple[ForeignHook, ...]:
    """Chains of others in the calling thread's namespace. Raises KernelError."""
    return (*_nftables(), *_legacy())


def _nftables() -> Iterable[ForeignHook]:
    if all(name.startswith(OURS) for _, name in tables()):
        return  # the library takes its time
    try:
        nft = Nft()
    except KernelError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return
        raise
    with nft:
        chains = [item["chain"] for item in nft.listing("list chains") if "chain" in item]
        hooked = [item for item in chains if "hook" in item and not item["table"].startswith(OURS)]
        named = {(item["family"], item["table"]) for item in hooked}
        rules: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {}
        for family, table in named:
            try:
                rules[family, table] = _without_ours(_rules(nft.query(f"list table {family} {table}")))
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        for item in hooked:
            there = rules.get((item["family"], item["table"]), {})
            own = {chain["name"] for chain in hooked if chain["table"] == item["table"]}
            yield from _hooks(item, there, own)


def _hooks(
    chain: dict[str, Any], rules: dict[str, tuple[str, ...]], hooked: set[str]
) -> Iterable[ForeignHook]:
    """One per device, for chains of family netdev."""
    others = {name: found for name, found in rules.items() if name not in hooked}
    mine = rules.get(chain["name"], ())
    devices = chain.get("dev", "")
    for device in [devices] if isinstance(devices, str) else devices:
        yield ForeignHook(
            family=chain["family"],
            table=chain["table"],
            chain=chain["name"],
            hook=chain["hook"],
            priority=chain.get("prio", 0),
            policy=chain.get("policy", "accept"),
            device=device,
            verdicts=tuple(rule for found in (mine, *others.values()) for rule in found if _ends(rule)),
            rules=mine,
            chains=others,
        )


def _rules(listing: str) -> dict[str, tuple[str, ...]]:
    """Rules of a listed table by chain; a rule whose set takes several lines is one."""
    found: dict[str, list[str]] = {}
    chain, rule = "", ""
    for raw in listing.splitlines():
        line = raw.strip()
        if not chain and line.startswith("chain "):
            chain = line.split()[1]
            found[chain] = []
        elif chain and not rule and line == "}":
            chain = ""
        elif chain and line and not line.startswith(_HEADS):
            rule = f"{rule} {line}".strip()
            if rule.count("{") == rule.count("}"):
                found[chain].append(rule)
                rule = ""
    return {name: tuple(rules) for name, rules in found.items()}


def _without_ours(rules: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Rules by chain without our chains and what leads to them."""
    return {
        chain: tuple(rule for rule in found if not rule.rpartition(" ")[2].startswith(OUR_CHAINS))
        for chain, found in rules.items()
        if not chain.startswith(OUR_CHAINS)
    }


def _ends(rule: str) -> bool:
    """Whether it can end a packet's way."""
    return any(word in rule.split() for word in _ENDING)


def _legacy() -> Iterable[ForeignHook]:
    """Chains of iptables-legacy, whose rules nftables does not show."""
    for family, program in _LEGACY.items():
        try:
            with open(_NAMES.format(family), encoding="ascii") as file:
                names = file.read().split()
        except FileNotFoundError:
            continue
        for table in names if shutil.which(program) is not None else ():
            done = subprocess.run(
                [program, "-w", "2", "-t", table, "-S"],
                capture_output=True, text=True, check=False, timeout=_TIMEOUT_S,
            )  # fmt: skip
            yield from _legacy_hooks(family, table, done.stdout.splitlines())


def _legacy_hooks(family: str, table: str, lines: Iterable[str]) -> Iterable[ForeignHook]:
    policies, ending = dict[str, str](), []
    rules: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("-P"):
            _, chain, policy = line.split()[:3]
            policies[chain] = policy.lower()
        elif line.startswith("-A"):
            chain, rule = in_nft_words(line, family)
            if line.split()[-1] in {"DROP", "REJECT"} and not chain.startswith(OUR_CHAINS):
                ending.append(line)
            rules.setdefault(chain, []).append(rule)
    found = _without_ours(rules)
    others = {chain: there for chain, there in found.items() if chain not in policies}
    for chain, policy in policies.items():
        yield ForeignHook(
            family=f"{family} legacy", table=table, chain=chain, hook=chain.lower(), priority=0, policy=policy,
            verdicts=tuple(ending), rules=found.get(chain, ()), chains=others,
        )  # fmt: skip
