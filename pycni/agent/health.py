"""Is this agent alive, is it ready, and if not, what is red and why.

Life: every part that can fail announces itself with ``set(part, ok, reason)``, from any thread; ``expect`` makes
a part red from the start. A part may say how long its word is good: when it does not renew it in time it is red
("nothing heard ..."); a part whose reason changes by itself is asked when somebody looks. ``/healthz`` says that the
process answers at all (a supervisor restarts it otherwise), ``/readyz`` whether pods can be attached; ``/metrics`` has
both and the rest.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pycni.agent.httpd import Handler, Response
from pycni.agent.metrics import CONTENT_TYPE, Registry, Sample


class PartHealth(NamedTuple):
    """What one part last said. ``since``: when it became so; ``expires``: None or when its word is void."""

    ok: bool
    reason: str
    since: float
    expires: float | None = None


REMEMBERED = 100
"""Repairs that are told of."""


class Repair(NamedTuple):
    """Something that was not as this agent had made it, and is set right."""

    at: float
    """Seconds since the epoch."""
    part: str
    entries: int
    what: str


class Health:
    """Health by part. ``clock`` is monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._parts: dict[str, PartHealth] = {}
        self._asked: dict[str, Callable[[], str]] = {}
        self._listeners: list[Callable[[], None]] = []
        self.repairs: deque[Repair] = deque(maxlen=REMEMBERED)
        """The last ones, oldest first."""
        self.repaired_entries: dict[str, int] = {}
        """All there were, by part."""

    def repaired(self, part: str, entries: int, what: str) -> None:
        """A part found entries of its own changed by somebody else and has set them right."""
        self.repairs.append(Repair(time.time(), part, entries, what))
        self.repaired_entries[part] = self.repaired_entries.get(part, 0) + entries

    def expect(self, part: str, reason: str = "starting") -> None:
        """Red until the part says otherwise."""
        if part not in self._parts:
            self.set(part, ok=False, reason=reason)

    def set(self, part: str, ok: bool, reason: str = "", *, valid_for: float | None = None) -> None:
        """State of a part; ``valid_for``: seconds until it is red unless set again."""
        now = self._clock()
        before = self._parts.get(part)
        since = before.since if before is not None and before.ok == ok else now
        expires = None if valid_for is None else now + valid_for
        self._parts[part] = PartHealth(ok, reason, since, expires)
        if before is None or (before.ok, before.reason) != (ok, reason):
            for listener in tuple(self._listeners):
                listener()

    def ask(self, part: str, reason: Callable[[], str]) -> None:
        """Ask a part whenever somebody looks: red with ``reason()`` unless that is ""; else as it was last set."""
        self._asked[part] = reason

    def forget(self, part: str) -> None:
        """The part does not exist any more."""
        self._parts.pop(part, None)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after every change, on the thread that made it."""
        self._listeners.append(listener)

    def parts(self) -> Mapping[str, PartHealth]:
        """Every part as it is now, sorted by name, words that are void turned red."""
        now = self._clock()
        found = {}
        for name, part in sorted(self._parts.copy().items()):
            if part.expires is not None and now > part.expires:
                silent = f"nothing heard since {now - part.expires:.0f} s after its deadline"
                found[name] = PartHealth(ok=False, reason=silent, since=part.expires, expires=part.expires)
            else:
                found[name] = part
            reason = self._asked[name]() if name in self._asked else ""
            if reason:
                found[name] = PartHealth(ok=False, reason=reason, since=part.since)
        return found

    def red(self) -> Mapping[str, str]:
        """The parts that are not well, with their reasons."""
        return {name: part.reason or "not ok" for name, part in self.parts().items() if not part.ok}

    @property
    def ready(self) -> bool:
        """Whether every part is well."""
        return not self.red()

    def reason(self) -> str:
        """All that is red in one line; "" when ready."""
        return "; ".join(f"{name}: {reason}" for name, reason in self.red().items())

    def register(self, registry: Registry) -> None:
        """Metrics ``pycni_ready`` and ``pycni_part_healthy{part}``."""

        def samples() -> list[Sample]:
            return [((name,), float(part.ok)) for name, part in self.parts().items()]

        registry.callback("pycni_ready", "1 when /readyz is 200.", lambda: float(self.ready))
        registry.callback("pycni_part_healthy", "1 for each part that is well.", samples, labels=("part",))

    def readyz(self, query: str) -> Response:
        """200 "ok" or 503 with a line per red part; ``?verbose``: all parts as JSON."""
        parts = self.parts()
        status = 200 if all(part.ok for part in parts.values()) else 503
        if query.partition("=")[0] == "verbose":
            now = self._clock()
            body = {
                "ready": status == 200,
                "parts": {
                    name: {"ok": part.ok, "reason": part.reason, "for_seconds": round(now - part.since, 3)}
                    for name, part in parts.items()
                },
            }
            return Response(status, "application/json", json.dumps(body, indent=1) + "\n")
        lines = [f"{name}: {part.reason or 'not ok'}" for name, part in parts.items() if not part.ok]
        return Response(status, "text/plain; charset=utf-8", "\n".join(lines or ["ok"]) + "\n")


def routes(health: Health, registry: Registry) -> Mapping[str, Handler]:
    """What the agent's HTTP server answers."""
    return {
        "/healthz": lambda _query: Response(200, "text/plain; charset=utf-8", "ok\n"),
        "/readyz": health.readyz,
        "/metrics": lambda _query: Response(200, CONTENT_TYPE, registry.expose()),
    }
