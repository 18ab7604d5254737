"""Requests to the Kubernetes API: objects by kind and key, lists page by page, watches line by line.

Life: one ``KubeClient`` per API server and event loop. Requests share a few kept connections, a watch has one to
itself. A request answered by 401 is tried once more with fresh credentials; a GET that meets a connection the server
had given up is sent again on a new one. Everything else is the caller's: errors are ``KubeError`` and say with
``transient`` whether waiting helps. Bodies are bytes; ``wire/kube`` reads them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from pycni.model.kube import ENDPOINT_SLICE, NAMESPACE, NODE, POD, SERVICE
from pycni.model.policy import CLUSTER_NETWORK_POLICY, NETWORK_POLICY
from pycni.sources.kube_auth import Access
from pycni.sources.kube_http import Connection, KubeError
from pycni.wire.kube import decode_status

LEASE = "Lease"
TOKEN_REVIEW, SUBJECT_ACCESS_REVIEW = "TokenReview", "SubjectAccessReview"
"""Questions to the API: made, and answered by what is made."""
KEPT = 4
"""Idle connections kept."""
MAX_BODY = 256 << 20
MAX_ERROR = 1 << 20
MAX_LINE = 16 << 20
"""Longest line of a watch; etcd takes objects of 1.5 MB."""

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class Resource(NamedTuple):
    """Where the objects of a kind are."""

    base: str
    """``/api/v1`` or ``/apis/<group>/<version>``."""
    plural: str
    namespaced: bool
    optional: bool = False
    """A cluster may not have this kind: then the API answers 404, and there are none."""


RESOURCES: Mapping[str, Resource] = {
    SERVICE: Resource("/api/v1", "services", namespaced=True),
    ENDPOINT_SLICE: Resource("/apis/discovery.k8s.io/v1", "endpointslices", namespaced=True),
    NODE: Resource("/api/v1", "nodes", namespaced=False),
    POD: Resource("/api/v1", "pods", namespaced=True),
    NAMESPACE: Resource("/api/v1", "namespaces", namespaced=False),
    NETWORK_POLICY: Resource("/apis/networking.k8s.io/v1", "networkpolicies", namespaced=True, optional=True),
    CLUSTER_NETWORK_POLICY: Resource(
        "/apis/policy.networking.k8s.io/v1alpha2", "clusternetworkpolicies", namespaced=False, optional=True
    ),
    LEASE: Resource("/apis/coordination.k8s.io/v1", "leases", namespaced=True),
    TOKEN_REVIEW: Resource("/apis/authentication.k8s.io/v1", "tokenreviews", namespaced=False),
    SUBJECT_ACCESS_REVIEW: Resource(
        "/apis/authorization.k8s.io/v1", "subjectaccessreviews", namespaced=False
    ),
}


class Selection(NamedTuple):
    """Which objects of a kind are followed."""

    kind: str
    labels: str = ""
    """Label selector, the API's notation."""
    fields: str = ""
    """Field selector, the API's notation."""
    namespace: str = ""
    """"" for all."""

    @property
    def path(self) -> str:
        """Path of the collection."""
        resource = RESOURCES[self.kind]
        space = f"/namespaces/{quote(self.namespace, safe='')}" if self.namespace else ""
        return f"{resource.base}{space}/{resource.plural}"

    def query(self, **more: str) -> str:
        """Selectors and ``more``, empty ones left out."""
        pairs = {"labelSelector": self.labels, "fieldSelector": self.fields, **more}
        return urlencode({name: value for name, value in pairs.items() if value})


class KubeClient:
    """``request_s``: longest time for a whole request; ``silence_s``: longest pause inside its answer."""

    def __init__(
        self, access: Access, *, dial_s: float = 5.0, request_s: float = 90.0, silence_s: float = 30.0
    ) -> None:
        self._access = access
        self._dial_s = dial_s
        self._request_s = request_s
        self._silence_s = silence_s
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False
        self.dials = 0
        """Connections made."""

    def __repr__(self) -> str:
        return f"KubeClient({self._access.server})"

    @property
    def server(self) -> str:
        """The API's address, for messages."""
        return str(self._access.server)

    # --- single objects ---------------------------------------------------------------------------------------

    async def get(self, kind: str, key: str) -> bytes | None:
        """An object's JSON, None when it does not exist. Raises KubeError."""
        try:
            return await self.request("GET", object_path(kind, key))
        except KubeError as exc:
            if exc.status == 404 and exc.reason in {"NotFound", ""}:
                return None
            raise

    async def create(self, kind: str, key: str, body: Mapping[str, Any]) -> bytes:
        """Make an object; its JSON as stored. Raises KubeError (status 409 when it exists)."""
        space, _, _ = key.rpartition("/")
        path = Selection(kind, namespace=space).path
        return await self.request("POST", path, body)

    async def update(self, kind: str, key: str, body: Mapping[str, Any], subresource: str = "") -> bytes:
        """Replace an object of the resourceVersion in ``body``. Raises KubeError (409 when it changed meanwhile)."""
        return await self.request("PUT", object_path(kind, key, subresource), body)

    async def patch(
        self, kind: str, key: str, patch: Mapping[str, Any], subresource: str = "", *, content: str = MERGE
    ) -> bytes:
        """Change an object; its JSON afterwards. A resourceVersion in ``patch`` makes it conditional (409)."""
        return await self.request("PATCH", object_path(kind, key, subresource), patch, content)

    # --- collections ------------------------------------------------------------------------------------------

    async def list_page(self, selection: Selection, limit: int = 0, continue_token: str = "") -> bytes:
        """One page of a consistent listing; ``limit`` 0: all at once. Raises KubeError."""
        limits = {"limit": str(limit) if limit else "", "continue": continue_token}
        return await self.request("GET", f"{selection.path}?{selection.query(**limits)}".rstrip("?"))

    @contextlib.asynccontextmanager
    async def watch(
        self, selection: Selection, version: str, *, timeout_s: int, silence_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch from ``version`` on, without line ends. Raises KubeError also while it is read.

        The server ends it after ``timeout_s`` seconds. A cut inside a line is an error, the rest of it is not given.
        """
        query = selection.query(
            watch="1", allowWatchBookmarks="true", resourceVersion=version, timeoutSeconds=str(timeout_s)
        )
        target = f"{selection.path}?{query}"
        async with self._exchange("GET", target, b"", "", self._silence_s) as (
            connection,
            status,
            retry_after_s,
        ):
            if status != 200:
                raise await self._error("GET", target, connection, status, retry_after_s)
            async with contextlib.aclosing(_lines(connection, silence_s)) as lines:
                yield lines

    # --- requests ---------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        target: str,
        body: Mapping[str, Any] | None = None,
        content: str = "application/json",
    ) -> bytes:
        """The body of a successful answer. Raises KubeError for every other one."""
        raw = b"" if body is None else msgspec.json.encode(body)
        try:
            async with (
                asyncio.timeout(self._request_s),
                self._exchange(method, target, raw, content, self._silence_s) as (
                    connection,
                    status,
                    retry_after_s,
                ),
            ):
                if status not in {200, 201, 202}:
                    raise await self._error(method, target, connection, status, retry_after_s)
                return await self._body(connection, MAX_BODY)
        except TimeoutError:
            raise KubeError(f"{method} {target}: not done within {self._request_s:g} s") from None

    def redial(self) -> None:
        """Drop all connections, those in use too: this node's address has changed."""
        for connection in [*self._idle, *self._busy]:
            connection.abort()
        self._idle.clear()

    async def close(self) -> None:
        """Close everything. Requests under way fail."""
        self._closed = True
        for connection in list(self._busy):
            connection.abort()
        while self._idle:
            await self._idle.pop().close()

    @contextlib.asynccontextmanager
    async def _exchange(
        self, method: str, target: str, body: bytes, content: str, timeout_s: float
    ) -> AsyncIterator[tuple[Connection, int, float]]:
        """Send a request; the connection with its answer's head read. It is kept if the body is read to its end."""
        connection, status, retry_after_s = await self._ask(method, target, body, content, timeout_s)
        if status == 401 and self._access.refused():
            await self._give_back(connection, drain=True)
            connection, status, retry_after_s = await self._ask(method, target, body, content, timeout_s)
        try:
            yield connection, status, retry_after_s
        finally:
            await self._give_back(connection)

    async def _ask(
        self, method: str, target: str, body: bytes, content: str, timeout_s: float
    ) -> tuple[Connection, int, float]:
        headers = [(b"Accept", b"application/json"), *await self._access.headers()]
        if body:
            headers.append((b"Content-Type", content.encode()))
        while True:
            connection = await self._take()
            try:
                head = await connection.send(method, target, headers, body, timeout_s)
            except BaseException as exc:
                self._busy.discard(connection)
                connection.abort()
                if isinstance(exc, KubeError) and exc.unsent and method == "GET":
                    continue  # ends with a new connection at the latest
                raise
            return connection, head.status, head.retry_after_s

    async def _take(self) -> Connection:
        """A kept connection that is still good, else a new one."""
        if self._closed:
            raise KubeError(f"{self.server}: the client is closed")
        _, stamp = await self._access.tls()
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable and connection.stamp == stamp:
                break
            connection.abort()
        else:
            connection = await Connection.dial(self._access, self._dial_s)
            self.dials += 1
        self._busy.add(connection)
        return connection

    async def _give_back(self, connection: Connection, *, drain: bool = False) -> None:
        """Keep a connection for later, or drop it."""
        if drain:
            with contextlib.suppress(KubeError):
                await self._body(connection, MAX_ERROR)
        self._busy.discard(connection)
        if not self._closed and len(self._idle) < KEPT and connection.reusable:
            self._idle.append(connection)
        else:
            connection.abort()

    async def _body(self, connection: Connection, limit: int) -> bytes:
        parts, size = [], 0
        while (part := await connection.read(self._silence_s)) is not None:
            size += len(part)
            if size > limit:
                raise KubeError(f"{self.server}: an answer of more than {limit} bytes")
            parts.append(part)
        return b"".join(parts)

    async def _error(
        self, method: str, target: str, connection: Connection, status: int, retry_after_s: float
    ) -> KubeError:
        """The error an unsuccessful answer stands for."""
        try:
            found = decode_status(await self._body(connection, MAX_ERROR))
        except KubeError as exc:
            found = decode_status(str(exc).encode())
        text = f"{method} {self.server}{target}: {status} {found.reason or ''}".rstrip()
        return KubeError(
            f"{text}: {found.message[:300]}" if found.message else text,
            status=status,
            reason=found.reason,
            retry_after_s=retry_after_s,
        )


def object_path(kind: str, key: str, subresource: str = "") -> str:
    """Path of one object by its key in the store."""
    space, _, name = key.rpartition("/")
    path = f"{Selection(kind, namespace=space).path}/{quote(name, safe='')}"
    return f"{path}/{subresource}" if subresource else path


async def _lines(connection: Connection, silence_s: float) -> AsyncGenerator[bytes, None]:
    """Whole lines of an answer."""
    rest: list[bytes] = []
    size = 0
    while (part := await connection.read(silence_s)) is not None:
        *lines, tail = part.split(b"\n")
        for line in lines:
            whole = b"".join([*rest, line]) if rest else line
            rest, size = [], 0
            if whole.strip():
                yield whole
        if tail:
            rest.append(tail)
            size += len(tail)
            if size > MAX_LINE:
                raise KubeError(f"a watch line of more than {MAX_LINE} bytes")
    if rest:
        raise KubeError("the watch ended inside a line")
