"""What a service asks for beyond the API: kube-router's annotations, and the affinity that goes with them. Pure.

Life: ``wishes`` reads a Service's annotations once; ``services`` builds frontends from the result. Names and values are
kube-router's (its user guide; field names are those of ``Options``). A value nobody knows is a problem line and the
default holds.
"""

from __future__ import annotations

from typing import NamedTuple

from pycni.model.kube import Service
from pycni.model.service import DEFAULT_OPTIONS, Options

PREFIX = "kube-router.io/service."
SCHEDULERS = frozenset(
    ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")
)
"""Schedulers of the kernel's IPVS (net/netfilter/ipvs)."""
FLAGS = frozenset({"flag-1", "flag-2", "flag-3"})
"""IP_VS_SVC_F_SCHED1 to 3: for sh and mh fallback and port."""
DEFAULT_AFFINITY_S = 10800
MAX_AFFINITY_S = 86400


class Wishes(NamedTuple):
    """The annotations of one Service, understood."""

    options: Options = DEFAULT_OPTIONS
    """Without ``dsr``, which is for some addresses only."""
    dsr: str = ""
    local: bool = False
    """Both traffic policies are Local, whatever the spec says."""
    skip_load_balancer: bool = False


_NONE = Wishes()


def wishes(service: Service, problems: list[str]) -> Wishes:
    """Read annotations and affinity; what cannot be honoured is added to ``problems``."""
    affinity = _affinity(service.affinity_s, problems)
    found = {
        key[len(PREFIX) :]: value.strip()
        for key, value in service.meta.annotations.items()
        if key.startswith(PREFIX)
    }
    if not found:
        return Wishes(Options(affinity_s=affinity)) if affinity else _NONE
    scheduler = found.get("scheduler", "")
    if scheduler and scheduler not in SCHEDULERS:
        problems.append(_unknown("scheduler", scheduler, "a scheduler of the kernel's IPVS"))
        scheduler = ""
    dsr = found.get("dsr", "")
    if dsr not in {"", "tunnel"}:
        problems.append(_unknown("dsr", dsr, "tunnel"))
        dsr = ""
    options = Options(
        scheduler=scheduler,
        sched_flags=_flags(found.get("schedflags", ""), problems),
        affinity_s=affinity,
        hairpin=_switch(found, "hairpin", problems),
        hairpin_external=_switch(found, "hairpin.externalips", problems),
    )
    return Wishes(
        DEFAULT_OPTIONS if options == DEFAULT_OPTIONS else options,
        dsr,
        _switch(found, "local", problems),
        _switch(found, "skiplbips", problems),
    )


def _affinity(seconds: int, problems: list[str]) -> int:
    if 0 <= seconds <= MAX_AFFINITY_S:
        return seconds
    problems.append(
        f"spec.sessionAffinityConfig.clientIP.timeoutSeconds {seconds}: not within 1 to {MAX_AFFINITY_S},"
        f" {DEFAULT_AFFINITY_S} is used"
    )
    return DEFAULT_AFFINITY_S


def _flags(text: str, problems: list[str]) -> tuple[str, ...]:
    named = {part.strip() for part in text.split(",")} - {""}
    problems.extend(
        _unknown("schedflags", flag, "flag-1, flag-2 or flag-3") for flag in sorted(named - FLAGS)
    )
    return tuple(sorted(named & FLAGS))


def _switch(found: dict[str, str], name: str, problems: list[str]) -> bool:
    """Present means on, as in kube-router, unless it says "false"."""
    value = found.get(name)
    if value is None or value == "false":
        return False
    if value in {"", "true"}:
        return True
    problems.append(_unknown(name, value, "true or false"))
    return False


def _unknown(name: str, value: str, known: str) -> str:
    return f"annotation {PREFIX}{name} {value!r}: not {known}, the default is used"
