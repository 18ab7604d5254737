"""Asks the Kubernetes API whose a bearer token is and whether that user may do something.

Life: ``review`` is asked for one token (authentication.k8s.io/v1 TokenReview), then whether its user may use a path of
ours (authorization.k8s.io/v1 SubjectAccessReview with nonResourceAttributes), as the API server would decide it for its
own paths. Nothing is remembered here, and no token is in any message.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from pycni.sources.kube_client import SUBJECT_ACCESS_REVIEW, TOKEN_REVIEW, KubeClient
from pycni.sources.kube_http import KubeError
from pycni.wire import typed


class Reviewed(NamedTuple):
    """The cluster's word."""

    user: str
    """"" when the token is nobody's."""
    allowed: bool = False
    reason: str = ""


class TokenReviewer:
    """``path``, ``verb``: what is to be allowed. ``audiences``: those tokens are for; (): the API server's own."""

    def __init__(
        self, client: KubeClient, path: str, verb: str = "get", audiences: tuple[str, ...] = ()
    ) -> None:
        self._client = client
        self._path, self._verb, self._audiences = path, verb, audiences

    async def review(self, token: str) -> Reviewed:
        """Raises KubeError."""
        spec: dict[str, Any] = {"token": token}
        if self._audiences:
            spec["audiences"] = list(self._audiences)
        told = _status(await self._client.create(TOKEN_REVIEW, "", _body(TOKEN_REVIEW, spec)))
        user = told.get("user")
        if told.get("authenticated") is not True or not isinstance(user, dict) or not user.get("username"):
            return Reviewed("", reason=str(told.get("error", ""))[:200].replace(token, "..."))
        if self._audiences and not set(self._audiences) & set(told.get("audiences") or ()):
            return Reviewed("", reason="it is for another audience")
        name = str(user["username"])
        access = {
            "user": name,
            "uid": user.get("uid", ""),
            "groups": user.get("groups") or [],
            "extra": user.get("extra") or {},
            "nonResourceAttributes": {"path": self._path, "verb": self._verb},
        }
        said = _status(
            await self._client.create(SUBJECT_ACCESS_REVIEW, "", _body(SUBJECT_ACCESS_REVIEW, access))
        )
        allowed = said.get("allowed") is True and said.get("denied") is not True
        return Reviewed(name, allowed, str(said.get("reason", ""))[:200])


def _body(kind: str, spec: Mapping[str, Any]) -> Mapping[str, Any]:
    group = {TOKEN_REVIEW: "authentication", SUBJECT_ACCESS_REVIEW: "authorization"}[kind]
    return {"apiVersion": f"{group}.k8s.io/v1", "kind": kind, "spec": spec}


def _status(raw: bytes) -> Mapping[str, Any]:
    try:
        found = typed.decode(raw, dict[str, Any]).get("status")
    except msgspec.DecodeError as exc:
        raise KubeError(f"a review's answer cannot be read: {exc}") from exc
    return found if isinstance(found, dict) else {}
