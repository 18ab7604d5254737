"""Which data planes serve on this node: what was asked for, what the kernel lacks, what steps in.

Life: ``choose`` is called when the component starts and whenever its facts change, on the worker thread in the node's
namespace; it imports only the implementations it has to ask. A data plane that cannot run here is named with the
reason, once, and the next of its row serves.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

from pycni.errors import ConfigError, PycniError
from pycni.model.service import NodeFacts
from pycni_proxy.base import Dataplane, Factory

FACTORIES: Mapping[str, str] = {
    "nftables": "pycni_proxy.nft",
    "ipvs": "pycni_proxy.ipvs",
    "ebpf": "pycni_proxy.ebpf",
}
"""Data plane -> the module with the functions of ``base.Factory``."""

ROWS: Mapping[str, tuple[str, ...]] = {
    "auto": ("ipvs", "nftables"),
    "nftables": ("nftables", "ipvs"),
    "ipvs": ("ipvs", "nftables"),
    "ebpf": ("ebpf", "nftables"),
}
"""proxy-mode -> data planes in the order they are tried."""

TOGETHER = frozenset({"ebpf"})
"""What refuses some services: the next of its row runs beside it and serves those."""

Load = Callable[[str], Factory]


class Choice(NamedTuple):
    """What serves, and why not something else."""

    names: tuple[str, ...]
    """The data planes to run, the one that is asked first at the front."""
    notes: tuple[str, ...]
    """One line for each that was wanted and cannot run."""


def load(name: str) -> Factory:
    """The implementation of a data plane. Raises ConfigError when it is not installed."""
    try:
        return cast("Factory", importlib.import_module(FACTORIES[name]))
    except ModuleNotFoundError as exc:
        raise ConfigError("settings", "proxy-mode", name, f"not installed: {exc.name} is missing") from exc


def choose(mode: str, load_: Load = load) -> Choice:
    """The data planes for a proxy-mode. Raises ConfigError when this machine can run none of its row."""
    names: list[str] = []
    lacking: dict[str, str] = {}
    for name in ROWS[mode]:
        if names and not set(names) <= TOGETHER:
            break
        reason = missing(name, load_)
        if reason:
            lacking[name] = reason
        else:
            names.append(name)
    if not names:
        raise ConfigError(
            "settings", "proxy-mode", mode, "; ".join(f"{name}: {why}" for name, why in lacking.items())
        )
    notes = []
    for name, why in lacking.items():
        if mode == "auto" and name != ROWS[mode][-1]:
            notes.append(f"{names[0]} is the data plane: {name} cannot run here ({why})")
        elif name == mode:
            notes.append(f"proxy-mode {mode} cannot run here ({why}): {names[0]} serves in its place")
        else:
            notes.append(f"services that {names[0]} refuses are not served: {name} cannot run here ({why})")
    return Choice(tuple(names), tuple(notes))


def missing(name: str, load_: Load = load) -> str:
    """What this machine lacks for a data plane; "" when it can run here."""
    try:
        return load_(name).missing()
    except PycniError as exc:
        return str(exc)


def make(names: Sequence[str], facts: NodeFacts, load_: Load = load) -> tuple[Dataplane, ...]:
    """The data planes, made. Raises KernelError, ConfigError; nothing stays open then."""
    choice, made = make_chosen(Choice(tuple(names), ()), facts, load_)
    if len(choice.names) < len(names):
        for plane in made:
            plane.driver.close()
        raise ConfigError("data planes", names[0], "", choice.notes[0])
    return made


def make_chosen(choice: Choice, facts: NodeFacts, load_: Load = load) -> tuple[Choice, tuple[Dataplane, ...]]:
    """The data planes of a choice, made; one that cannot be made after all is left out when another one is behind it.

    Raises what the last one raises, and at once what may be over soon (transient errors); nothing stays open then.
    """
    made: list[Dataplane] = []
    names, notes = list(choice.names), list(choice.notes)
    try:
        for name in choice.names:
            try:
                made.append(load_(name).make(facts))
            except (PycniError, OSError) as error:
                if name == names[-1] or getattr(error, "transient", False):
                    raise
                names.remove(name)
                notes.append(f"{name} cannot be set up here ({error}): {names[-1]} serves in its place")
    except BaseException:
        for plane in made:
            plane.driver.close()
        raise
    return Choice(tuple(names), tuple(notes)), tuple(made)


def leftovers(keep: Sequence[str], load_: Load = load) -> tuple[list[str], list[str]]:
    """Remove what other data planes than ``keep`` left in this namespace: what went, and what failed, one line each."""
    gone: list[str] = []
    failed: list[str] = []
    for name in FACTORIES:
        if name in keep:
            continue
        try:
            factory = load_(name)
        except ConfigError:
            # Not installed here, so it cannot have been running either.
            continue
        try:
            gone += [f"{name}: {line}" for line in factory.leftovers()]
        except* (PycniError, OSError) as group:
            failed += [f"{name}: {error}" for error in group.exceptions]
    return gone, failed
