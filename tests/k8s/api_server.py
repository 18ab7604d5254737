"""A Kubernetes API server for tests: real semantics by default, and whatever a script says instead.

The *world* keeps objects with resourceVersions and a history, and answers lists (pages, selectors, 410 for expired
tokens), watches (bookmarks, 410 for forgotten versions), GET, POST, PUT, PATCH (merge, strategic for what we send) and
DELETE. A *script* takes the next requests that match: each step is one misbehaviour. Every request is recorded.

As a program (``python api_server.py HOST PORT OBJECTS.json``) it serves a world to other processes until it is killed,
and says so on stdout.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

KINDS = {
    "services": ("Service", "v1"),
    "endpointslices": ("EndpointSlice", "discovery.k8s.io/v1"),
    "nodes": ("Node", "v1"),
    "pods": ("Pod", "v1"),
    "namespaces": ("Namespace", "v1"),
    "networkpolicies": ("NetworkPolicy", "networking.k8s.io/v1"),
    "clusternetworkpolicies": ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
    "leases": ("Lease", "coordination.k8s.io/v1"),
}


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    client: int
    """Number of the connection it came by."""

    @property
    def watch(self) -> bool:
        return "watch" in self.query

    @property
    def json(self) -> Any:
        return json.loads(self.body)


# --- script steps ----------------------------------------------------------------------------------------------


@dataclass
class Reply:
    """One answer, whole."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)
    slow_s: float = 0.0
    """Pause before every byte of the body."""


@dataclass
class Lines:
    """The answer to a watch: lines (objects or bytes), then ``end``, ``cut`` (no last chunk), ``stall`` or ``world``."""

    lines: list[Any]
    then: str = "end"


@dataclass
class Stall:
    """Say nothing, for ever."""

    after: bytes = b""


@dataclass
class Cut:
    """Close the connection abruptly after these bytes."""

    after: bytes = b""


class Pass:
    """Let the world answer."""


def status(code: int, reason: str, message: str = "", **details: Any) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message or reason,
        "details": details,
    }


def event(kind: str, obj: Any) -> dict[str, Any]:
    return {"type": kind, "object": obj}


def bookmark(version: str) -> dict[str, Any]:
    """As the real one sends it for pods: half empty, with nulls."""
    meta = {"resourceVersion": version, "creationTimestamp": None}
    return event(
        "BOOKMARK",
        {"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": {"containers": None}, "status": {}},
    )


# --- the world ---------------------------------------------------------------------------------------------------


class World:
    def __init__(self) -> None:
        self.version = 100
        self.objects: dict[str, dict[tuple[str, str], dict[str, Any]]] = {plural: {} for plural in KINDS}
        self.history: dict[str, list[tuple[int, str, dict[str, Any]]]] = {plural: [] for plural in KINDS}
        self.forgotten = 0
        """Versions up to this one cannot be watched from."""
        self.pages: dict[str, tuple[list[dict[str, Any]], int]] = {}
        self.news = asyncio.Event()

    def put(self, plural: str, obj: dict[str, Any]) -> dict[str, Any]:
        kind, version = KINDS[plural]
        obj = {"kind": kind, "apiVersion": version, **copy.deepcopy(obj)}
        meta = obj.setdefault("metadata", {})
        key = (meta.get("namespace", ""), meta["name"])
        self.version += 1
        meta["resourceVersion"] = str(self.version)
        meta.setdefault("creationTimestamp", "2024-05-05T10:00:00Z")
        meta.setdefault("uid", f"uid-{plural}-{key[0]}-{key[1]}")
        known = key in self.objects[plural]
        self.objects[plural][key] = obj
        self._tell(plural, "MODIFIED" if known else "ADDED", obj)
        return obj

    def remove(self, plural: str, name: str, namespace: str = "") -> dict[str, Any]:
        obj = copy.deepcopy(self.objects[plural].pop((namespace, name)))
        self.version += 1
        obj["metadata"]["resourceVersion"] = str(self.version)
        self._tell(plural, "DELETED", obj)
        return obj

    def forget(self) -> None:
        """Compaction: neither versions nor pages of before now can be asked for."""
        self.forgotten = self.version
        self.pages.clear()
        self.wake()

    def wake(self) -> None:
        self.news.set()
        self.news = asyncio.Event()

    def _tell(self, plural: str, kind: str, obj: dict[str, Any]) -> None:
        self.history[plural].append((self.version, kind, obj))
        self.wake()


def selected(obj: dict[str, Any], query: dict[str, str]) -> bool:
    labels = obj["metadata"].get("labels") or {}
    for term in filter(None, query.get("labelSelector", "").split(",")):
        if term.startswith("!"):
            if term[1:] in labels:
                return False
        elif "=" in term:
            name, _, value = term.partition("=")
            if labels.get(name) != value:
                return False
        elif term not in labels:
            return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        path, _, value = term.partition("=")
        found: Any = obj
        for step in path.split("."):
            found = (found or {}).get(step)
        if found != value:
            return False
    return True


def merge(into: Any, patch: Any) -> Any:
    """RFC 7386; lists of conditions are merged by type, as the strategic patch has it."""
    if not isinstance(patch, dict):
        return patch
    into = dict(into) if isinstance(into, dict) else {}
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = merge(into.get(key), value)
    return into


def merge_strategic(into: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    patch = copy.deepcopy(patch)
    new = (patch.get("status") or {}).pop("conditions", None)
    out = merge(into, patch)
    if new is not None:
        held = {entry["type"]: entry for entry in (into.get("status") or {}).get("conditions") or []}
        held |= {entry["type"]: {**held.get(entry["type"], {}), **entry} for entry in new}
        out.setdefault("status", {})["conditions"] = list(held.values())
    return out


# --- the server --------------------------------------------------------------------------------------------------


UNKNOWN = Reply(404, b"404 page not found\n")


class ApiServer:
    """``async with ApiServer() as server``: listens on loopback; ``server.world`` and ``server.script`` are yours."""

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, port: int = 0, prefix: str = "", host: str = "127.0.0.1"
    ) -> None:
        self.world = World()
        self.requests: list[Request] = []
        self.tokens: set[str] | None = None
        """Bearer tokens that are accepted; None: nobody has to prove anything."""
        self.unknown: set[str] = set()
        """Plurals of kinds that this cluster does not have (no CRD)."""
        self.bookmark_s = 0.0
        """Seconds between bookmarks of a watch; 0: none."""
        self.connections = 0
        self.open = 0
        self.prefix = prefix
        self.server_max_page = 0
        self._tls = tls
        self._host = host
        self._port = port
        self._steps: list[tuple[Callable[[Request], bool], list[Any]]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        assert self._server is not None
        return self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{self.prefix}"

    def script(self, plural: str, *steps: Any, watch: bool | None = None, method: str = "") -> None:
        """The next requests for ``plural`` (watches only, lists only, or one method only) get these steps."""

        def matches(request: Request) -> bool:
            if f"/{plural}" not in request.path or (method and request.method != method):
                return False
            return watch is None or request.watch == watch

        self._steps.append((matches, list(steps)))

    def asked(self, plural: str, *, watch: bool = False, method: str = "GET") -> list[Request]:
        return [
            each
            for each in self.requests
            if f"/{plural}" in each.path and each.watch == watch and each.method == method
        ]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, self._port, ssl=self._tls)
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the port and cut every connection."""
        assert self._server is not None
        self._server.close()
        await self.cut()
        await self._server.wait_closed()

    async def cut(self) -> None:
        """Cut every connection; the port stays open."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            while await self._serve(reader, writer, number):
                pass
        except (OSError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        except asyncio.CancelledError:
            pass  # the test is over, or cuts everything
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.transport.abort()
            with contextlib.suppress(OSError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> bool:
        """One request; whether the connection goes on."""
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except asyncio.IncompleteReadError:
            return False
        first, *lines = head.rstrip("\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        assert parts.path.startswith(self.prefix)
        request = Request(
            method, parts.path[len(self.prefix) :], dict(parse_qsl(parts.query)), headers, body, number
        )
        self.requests.append(request)
        if self.tokens is not None:
            bearer = headers.get("authorization", "").removeprefix("Bearer ")
            if bearer not in self.tokens:
                await self._reply(writer, Reply(401, status(401, "Unauthorized")))
                return True
        return await self._answer(request, writer)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        step = self._step(request)
        if isinstance(step, Reply):
            await self._reply(writer, step)
            return True
        if isinstance(step, Lines):
            return await self._scripted_watch(request, writer, step)
        if isinstance(step, Stall):
            writer.write(step.after)
            await writer.drain()
            await asyncio.Event().wait()
        if isinstance(step, Cut):
            writer.write(step.after)
            await writer.drain()
            return False
        if _where(request.path)[0] in self.unknown:
            await self._reply(writer, UNKNOWN)
            return True
        if request.watch:
            return await self._watch(request, writer)
        await self._reply(writer, self._world_answer(request))
        return True

    def _step(self, request: Request) -> Any:
        for matches, steps in self._steps:
            if steps and matches(request):
                return steps.pop(0)
        return Pass()

    async def _reply(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        lines = [
            f"HTTP/1.1 {reply.status} Whatever",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
        ]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        if reply.slow_s:
            for index in range(len(body)):
                writer.write(body[index : index + 1])
                await writer.drain()
                await asyncio.sleep(reply.slow_s)
        else:
            writer.write(body)
        await writer.drain()

    # --- watches

    async def _scripted_watch(self, request: Request, writer: asyncio.StreamWriter, step: Lines) -> bool:
        _start(writer)
        for line in step.lines:
            _chunk(writer, line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
            await writer.drain()
        if step.then == "stall":
            await asyncio.Event().wait()
        if step.then == "world":
            return await self._watch(request, writer, started=True)
        if step.then == "cut":
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _watch(self, request: Request, writer: asyncio.StreamWriter, *, started: bool = False) -> bool:
        plural, _, _, namespace = _where(request.path)
        world = self.world
        since = int(request.query.get("resourceVersion") or world.version)
        if not started:
            if since < world.forgotten:
                await self._reply(writer, Reply(410, status(410, "Expired", "too old resource version")))
                return True
            if since > world.version:
                await self._reply(writer, Reply(504, status(504, "Timeout", "Too large resource version")))
                return True
            _start(writer)
            await writer.drain()
        ends = asyncio.get_running_loop().time() + float(request.query.get("timeoutSeconds", "300"))
        while (left := ends - asyncio.get_running_loop().time()) > 0:
            news = world.news
            if since < world.forgotten and any(
                since < v <= world.forgotten for v, _, _ in world.history[plural]
            ):
                _chunk(writer, json.dumps(event("ERROR", status(410, "Expired"))).encode() + b"\n")
                break
            for version, kind, obj in list(world.history[plural]):
                if (
                    version > since
                    and selected(obj, request.query)
                    and namespace in ("", obj["metadata"].get("namespace"))
                ):
                    _chunk(writer, json.dumps(event(kind, obj)).encode() + b"\n")
            since = world.version
            await writer.drain()
            wait_s = min(left, self.bookmark_s) if self.bookmark_s else left
            try:
                async with asyncio.timeout(wait_s):  # wait_for may swallow a cancellation
                    await news.wait()
            except TimeoutError:
                if self.bookmark_s:
                    _chunk(writer, json.dumps(bookmark(str(world.version))).encode() + b"\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    # --- lists and single objects

    def _world_answer(self, request: Request) -> Reply:
        plural, name, subresource, namespace = _where(request.path)
        if plural not in KINDS:
            return UNKNOWN
        if not name:
            return (
                self._list(plural, namespace, request)
                if request.method == "GET"
                else self._create(plural, namespace, request)
            )
        held = self.world.objects[plural].get((namespace, name))
        if held is None:
            return Reply(404, status(404, "NotFound", f'{plural} "{name}" not found'))
        if request.method == "GET":
            return Reply(200, held)
        if request.method == "DELETE":
            return Reply(200, self.world.remove(plural, name, namespace))
        new = request.json
        if request.method == "PATCH":
            strategic = "strategic" in request.headers["content-type"]
            asked = (new.get("metadata") or {}).get("resourceVersion")
            new = merge_strategic(held, new) if strategic else merge(held, new)
        else:
            asked = new["metadata"].get("resourceVersion")
        if asked is not None and asked != held["metadata"]["resourceVersion"]:
            return Reply(409, status(409, "Conflict", "the object has been modified"))
        if subresource == "status":
            new = {**held, "status": new.get("status"), "metadata": {**held["metadata"], **new["metadata"]}}
        return Reply(200, self.world.put(plural, new))

    def _create(self, plural: str, namespace: str, request: Request) -> Reply:
        new = request.json
        if namespace:
            new["metadata"]["namespace"] = namespace
        if (namespace, new["metadata"]["name"]) in self.world.objects[plural]:
            return Reply(409, status(409, "AlreadyExists"))
        return Reply(201, self.world.put(plural, new))

    def _list(self, plural: str, namespace: str, request: Request) -> Reply:
        kind, version = KINDS[plural]
        token, limit = request.query.get("continue", ""), int(request.query.get("limit") or 0)
        if token:
            if token not in self.world.pages:
                return Reply(410, status(410, "Expired", "The provided continue parameter is too old"))
            rest, at = self.world.pages.pop(token)
        else:
            at = self.world.version
            rest = [
                obj
                for (space, _), obj in sorted(self.world.objects[plural].items())
                if namespace in ("", space) and selected(obj, request.query)
            ]
        meta: dict[str, Any] = {"resourceVersion": str(at)}
        if limit and len(rest) > limit:
            meta["continue"] = f"{plural}-{at}-{len(rest)}"
            self.world.pages[meta["continue"]] = (rest[limit:], at)
            rest = rest[:limit]
        items = [
            {name: value for name, value in obj.items() if name not in ("kind", "apiVersion")} for obj in rest
        ]
        return Reply(
            200, {"kind": f"{kind}List", "apiVersion": version, "metadata": meta, "items": items or None}
        )


def _where(path: str) -> tuple[str, str, str, str]:
    """Plural, name, subresource and namespace of a path."""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    parts = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = ""
    if len(parts) > 2 and parts[0] == "namespaces" and parts[2] != "status":
        namespace, parts = parts[1], parts[2:]
    parts += [""] * 3
    return parts[0], parts[1], parts[2], namespace


def _start(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[ApiServer]:
    async with ApiServer(**options) as server:
        yield server


async def _main(host: str, port: str, objects: str) -> None:
    async with ApiServer(host=host, port=int(port)) as server:
        with open(objects) as file:
            for plural, found in json.load(file).items():
                for obj in found:
                    server.world.put(plural, obj)
        print(f"serving {server.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
