"""Who may trace from another node: by certificate or by the cluster's word on a token.

Life: a connection of ``trace_listen`` gives what it knows of its client, the subject of a certificate that chains to
our authority and what stands in the Authorization field; ``judge`` answers who that is, or why not. Nothing of a token
is kept but a hash, and only shortly; nothing of it is logged.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from pycni.agent.trace_service import Bucket
from pycni.errors import PycniError

CERT, TOKEN = "cert", "token"
KEPT = 256
"""Tokens whose answers are remembered."""
GOOD_S, BAD_S = 60.0, 10.0
"""How long."""
REVIEWS_AT_ONCE, REVIEWS_PER_S = 20, 5.0
LONGEST_TOKEN = 16384


class Caller(NamedTuple):
    """Who asks, or why nobody may."""

    name: str
    status: int = 200
    """200, 401 (nobody is proved), 403 (somebody who may not), 503 (the cluster gives no answer)."""
    reason: str = ""


class Review(NamedTuple):
    """What the cluster says of a token."""

    user: str
    """"" when it is nobody's."""
    allowed: bool = False
    reason: str = ""


Reviewer = Callable[[str], Review]
"""Asks the cluster (blocking). Raises PycniError when there is no answer."""


class Guard:
    """Decides about callers. Any thread."""

    def __init__(
        self,
        ways: Collection[str],
        names: Collection[str] = (),
        review: Reviewer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``ways``: CERT, TOKEN. ``names``: those certificates may have; none: any that our authority has signed."""
        assert TOKEN not in ways or review is not None, "tokens are reviewed by somebody"
        self._ways, self._names, self._review, self._clock = frozenset(ways), frozenset(names), review, clock
        self._answers: dict[bytes, tuple[float, Review]] = {}
        self._lock = threading.Lock()
        self._reviews = Bucket(REVIEWS_AT_ONCE, REVIEWS_PER_S, clock)

    @property
    def needs_certificate(self) -> bool:
        """Whether there is no other way than by certificate."""
        return self._ways == {CERT}

    def judge(self, certificate: Mapping[str, Any] | None, authorization: str) -> Caller:
        """``certificate``: as ``SSLSocket.getpeercert`` has it, verified; {} or None without one."""
        if certificate and CERT in self._ways:
            return self._by_certificate(certificate)
        if TOKEN in self._ways and authorization:
            kind, _, token = authorization.partition(" ")
            token = token.strip()
            if kind.lower() != "bearer" or not token or len(token) > LONGEST_TOKEN or not token.isascii():
                return Caller("", 401, "no bearer token in Authorization")
            return self._by_token(token)
        asked = {CERT: "a client certificate", TOKEN: "a bearer token"}
        return Caller("", 401, f"{' or '.join(asked[way] for way in sorted(self._ways))} is needed")

    def _by_certificate(self, certificate: Mapping[str, Any]) -> Caller:
        names = certificate_names(certificate)
        shown = names[0] if names else "(no name)"
        if self._names and self._names.isdisjoint(names):
            return Caller(
                shown, 403, f"certificate of {', '.join(names) or shown}: none of trace-allowed-names"
            )
        return Caller(shown)

    def _by_token(self, token: str) -> Caller:
        key = hashlib.sha256(token.encode()).digest()
        now = self._clock()
        with self._lock:
            until, found = self._answers.get(key, (0.0, None))
        if found is None or until <= now:
            if not self._reviews.take():
                return Caller("", 503, "too many tokens to have reviewed: try again")
            assert self._review is not None
            try:
                found = self._review(token)
            except PycniError as error:
                return Caller("", 503, f"the cluster does not review tokens: {error}")
            self._remember(key, now, found)
        if not found.user:
            return Caller("", 401, f"the token is nobody's{f': {found.reason}' if found.reason else ''}")
        if not found.allowed:
            return Caller(found.user, 403, f"{found.user} may not get /trace")
        return Caller(found.user)

    def _remember(self, key: bytes, now: float, found: Review) -> None:
        with self._lock:
            for old in [old for old, (until, _) in self._answers.items() if until <= now]:
                del self._answers[old]
            while len(self._answers) >= KEPT:
                del self._answers[next(iter(self._answers))]
            self._answers[key] = now + (GOOD_S if found.allowed else BAD_S), found


def certificate_names(certificate: Mapping[str, Any]) -> list[str]:
    """Alternative names (RFC 5280 section 4.2.1.6) and the subject's common name, without repetition."""
    names = [
        value for kind, value in certificate.get("subjectAltName", ()) if kind in {"DNS", "URI", "email"}
    ]
    common = [
        value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"
    ]
    return list(dict.fromkeys([*common, *names]))
