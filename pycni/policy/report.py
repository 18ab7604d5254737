"""What the agent's control socket answers about network policies, for ``pycnictl policy`` and ``pycnictl drops``.

Life: every answer is made on the thread that owns the engine, from the objects as they are then, what the engine has
programmed, and what is read back from the kernel for this answer. Bodies are JSON; shapes: ``effective``, ``explain``.

    GET /policies                                    all policies (Overview)
    GET /policies?pod=NAMESPACE/NAME                 those that hold for a pod (PodRules)
    GET /policies/explain?source=&destination=&port=&protocol=      what becomes of a connection (Answer)
    GET /rates/policies                              what they have denied (pycni.traffic.model.Policies)
    GET /drops                                       live denials, one JSON object a line, until the client goes
        ?pod=NAMESPACE/NAME                          those from or to a pod
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from errno import ENOENT
from functools import partial
from typing import Any
from urllib.parse import parse_qs

import msgspec

from pycni.agent import status_dump
from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.status_model import Section
from pycni.agent.traffic import Paced
from pycni.errors import KernelError, PycniError
from pycni.kernel import sysctl
from pycni.model.family import show
from pycni.model.kube import POD, PROTOCOL_NAMES
from pycni.model.policy import Direction
from pycni.policy import effective, ends, explain
from pycni.policy.base import Decision, Denied, Drop, DropReader, Packet
from pycni.policy.drops import DropHub, Work
from pycni.policy.drops_nft import NftDrops
from pycni.policy.effective import Count, Facts
from pycni.policy.effective_texts import SIDES
from pycni.policy.ends import AskError, Objects
from pycni.policy.engine import PolicyEngine
from pycni.policy.nft import BRIDGED
from pycni.policy.readback import differing
from pycni.policy.shut import REASON as SHUT
from pycni.policy.shut import TABLE as SHUT_TABLE
from pycni.traffic.model import Policies, PolicyCount
from pycni.view.policy_stages import CLOSED, SUBJECTS

log = logging.getLogger("pycni.policy")

JSON = "application/json"
LINES = "application/x-ndjson"
FRESH_S = 1.0
NOT_READY = "policies are not known yet: the agent has not programmed any"


class Routes:
    """One per agent, on its event loop."""

    def __init__(
        self,
        node: str,
        engine: Callable[[], PolicyEngine | None],
        objects: Callable[[], Objects],
        work: Work,
        *,
        trouble: Callable[[], str] = lambda: "",
        notes: Callable[[], Sequence[str]] = tuple,
        problems: Callable[[], Mapping[str, Sequence[str]]] = dict,
        readers: Sequence[Callable[[], DropReader]] = (),
        refused: Callable[[], Iterable[Denied]] = tuple,
        shut: Callable[[], Collection[bytes]] = frozenset,
        beside: Callable[[], Iterable[tuple[str, Sequence[str], Sequence[str]]]] = tuple,
    ) -> None:
        """What of the agent the answers need.

        ``engine``: None before there is one. ``objects``: a frozen snapshot as the engine sees it, with Services.
        ``work``: runs a call on the thread that owns the engine, in the node's network namespace. ``trouble``: why the
        kernel is not as the policies say. ``notes``: what is not as was asked for (no fast path, ...). ``problems``:
        lines by policy (``NetworkPolicy a/x``), of policies that cannot be read or enforced. ``readers`` open further
        sources of drops, beside nftables and the engine's fast path. ``refused``: what other parts have denied.
        ``shut``: addresses nothing passes from or to until their policies are programmed. ``beside``: tables beside
        that of the policies, each with what it is to hold and what it holds.
        """
        self._node = node
        self._engine = engine
        self._objects = objects
        self._work = work
        self._trouble = trouble
        self._notes = notes
        self._problems = problems
        self._more = tuple(readers)
        self._refused = refused
        self._shut = shut
        self._beside = beside
        self._hub = DropHub(self._open, work)
        self._counted = Paced(self._count)

    def routes(self) -> dict[str, AsyncHandler]:
        """By path."""
        return {
            "/policies": self._policies,
            "/policies/explain": self._explain,
            "/drops": self._drops,
            "/rates/policies": self._rates,
            "/dump/policies": self._dump,
        }

    def close(self) -> None:
        """Close what ``/drops`` reads from."""
        self._hub.close()

    # --- policies ------------------------------------------------------------------------------------------------

    async def _policies(self, query: str) -> Response:
        return await self._answer(partial(self._list, _asked(query)))

    def _list(self, asked: Mapping[str, str]) -> msgspec.Struct:
        engine = self._made()
        objects = self._objects()
        facts = self._facts(engine)
        if "pod" not in asked:
            return effective.overview(objects, facts)
        return effective.of_pod(objects, ends.pod_named(objects, asked["pod"]), facts)

    def _facts(self, engine: PolicyEngine) -> Facts:
        view = engine.view.tables
        addresses = [*self._shut(), *(item for key in engine.closed for item in engine.view.addresses(key))]
        closed = {*view[CLOSED], *((address, side) for address in addresses for side in Direction)}
        return Facts(
            self._node,
            planes(engine),
            counts([*denied(engine), *self._refused()]),
            self._problems(),
            frozenset((show(address), SIDES[side]) for address, side in closed),
            frozenset((show(address), SIDES[side]) for address, side in view[SUBJECTS]),
            self._trouble(),
            self._all_notes(engine),
            None if engine.fast is None else {hit[:2]: hit.connections for hit in engine.fast.hits()},
        )

    def _all_notes(self, engine: PolicyEngine) -> tuple[str, ...]:
        notes = [*self._notes(), *(f"pod {key} is closed: {why}" for key, why in engine.closed.items())]
        if engine.fast is not None:
            if engine.aside:
                notes.append(f"{engine.fast.name} stands aside: {engine.aside}")
            notes += (f"{engine.fast.name}: {text}" for text in engine.fast.problems())
        return tuple(dict.fromkeys(notes))

    # --- explain -------------------------------------------------------------------------------------------------

    async def _explain(self, query: str) -> Response:
        return await self._answer(partial(self._judge, _asked(query)))

    def _judge(self, asked: Mapping[str, str]) -> explain.Answer:
        for name in ("source", "destination"):
            if not asked.get(name):
                raise AskError(f"{name}: who?", 400)
        objects = self._objects()
        found = ends.ways(
            objects,
            asked["source"],
            asked["destination"],
            asked.get("port", ""),
            asked.get("protocol", "TCP"),
        )
        engine = self._made()
        notes = [*self._all_notes(engine)]
        mine = any(explain.directions_of(way, self._node) for way in found)
        deciders = self._deciders(engine, notes) if mine else {}
        return explain.Answer(
            node=self._node,
            connections=tuple(explain.explain(objects, way, self._node, deciders) for way in found),
            trouble=self._trouble(),
            notes=tuple(notes),
        )

    def _deciders(self, engine: PolicyEngine, notes: list[str]) -> dict[str, explain.Decide]:
        """Whom to ask, by name; what is wrong as a whole goes to ``notes``."""
        plane, fast = engine.plane, engine.fast
        found: dict[str, explain.Decide] = {"compiled": partial(plane.compiler.decide, engine.tables)}
        read = plane.driver.read()
        notes += (f"{plane.name}{explain.KERNEL}: {text}" for text in differing(engine.tables, read))
        notes += (
            f"{name} is off: what passes bridges is not judged" for name in BRIDGED if sysctl.get(name) != "1"
        )

        def kernel(packet: Packet) -> Decision:
            try:
                return plane.compiler.decide(read, packet)
            except KeyError as error:
                raise KernelError(ENOENT, "look up", str(error.args[0])) from error

        found[plane.name + explain.KERNEL] = kernel
        shut = self._shut()
        if shut:
            found[SHUT_TABLE] = partial(_shut_to, shut)
        if fast is not None and not engine.aside:
            found[fast.name] = fast.decide
            found[fast.name + explain.KERNEL] = fast.read_back
        return found

    # --- rates ---------------------------------------------------------------------------------------------------

    async def _rates(self, _query: str) -> Response:
        return await self._answer(self._counted)

    def _count(self) -> Policies:
        engine = self._engine()
        found = [] if engine is None else [*denied(engine), *self._refused()]
        at_ns, sums = time.monotonic_ns(), counts(found)
        rows = (PolicyCount(*key, count.packets, count.bytes) for key, count in sorted(sums.items()))
        return Policies(at_ns=at_ns, rows=tuple(rows))

    # --- dump ----------------------------------------------------------------------------------------------------

    async def _dump(self, _query: str) -> Response:
        return await self._work(partial(status_dump.answer, self._tables))

    def _tables(self) -> list[Section]:
        engine = self._made()
        plane = engine.plane
        found = status_dump.tables(
            "policies", plane.name, plane.compiler.text, engine.tables, plane.driver.read()
        )
        sections = [msgspec.structs.replace(found, notes=(*found.notes, *engine.closed.values()))]
        if engine.fast is not None:
            notes = [f"it stands aside: {engine.aside}"] if engine.aside else []
            sections.append(
                status_dump.section(
                    "policies", engine.fast.name, *engine.fast.sides(), [*notes, *engine.fast.problems()]
                )
            )
        # Some are there only while they have something to do.
        beside = (item for item in self._beside() if item[1] or item[2])
        return [*sections, *(status_dump.section("policies", *item) for item in beside)]

    # --- drops ---------------------------------------------------------------------------------------------------

    async def _drops(self, query: str) -> Response:
        asked = _asked(query)
        try:
            names = await self._work(partial(self._names, asked))
        except PycniError as error:
            return _failure(error)
        return Response(200, LINES, stream=partial(self._stream, names))

    def _names(self, asked: Mapping[str, str]) -> _Names:
        wanted = frozenset[bytes]()
        if "pod" in asked:
            pod = ends.pod_named(self._objects(), asked["pod"])
            wanted = frozenset(ends.addresses(pod))
            if not wanted:
                raise AskError(f"pod {pod.meta.key} has no address yet")
        return _Names(self._objects, wanted)

    async def _stream(self, names: _Names) -> AsyncGenerator[str, None]:
        # Nothing is opened before the first line is asked for, so a client that has gone leaves nothing behind.
        async with aclosing(self._hub.listen()) as news:
            try:
                await anext(news)
            except PycniError as error:
                yield _line({"node": self._node, "error": str(error)})
                return
            yield _line({"node": self._node, "listening": True})
            async for item in news:
                rows = [names.row(self._node, drop) for drop in item.drops if names.wants(drop)]
                if item.lost:
                    rows.append({"node": self._node, "lost": item.lost})
                if item.trouble:
                    rows.append({"node": self._node, "trouble": item.trouble})
                if rows:
                    yield "".join(map(_line, rows))

    def _open(self) -> list[DropReader]:
        engine = self._engine()
        makers: list[Callable[[], DropReader]] = [NftDrops]
        if engine is not None and engine.fast is not None:
            makers.append(engine.fast.drops)
        found: list[DropReader] = []
        try:
            found += (make() for make in (*makers, *self._more))
        except BaseException:
            for reader in found:
                reader.close()
            raise
        return found

    # --- all of them ---------------------------------------------------------------------------------------------

    def _made(self) -> PolicyEngine:
        engine = self._engine()
        if engine is None:
            raise AskError(f"{NOT_READY}{f' ({self._trouble()})' if self._trouble() else ''}", 503)
        return engine

    async def _answer(self, job: Callable[[], msgspec.Struct]) -> Response:
        try:
            return Response(200, JSON, msgspec.json.encode(await self._work(job)).decode() + "\n")
        except PycniError as error:
            return _failure(error)


class _Names:
    """Who has an address, as of the last ``FRESH_S`` seconds."""

    def __init__(self, objects: Callable[[], Objects], wanted: frozenset[bytes]) -> None:
        self._objects = objects
        self._wanted = wanted
        self._read = float("-inf")
        self._by_address: dict[bytes, str] = {}

    def wants(self, drop: Drop) -> bool:
        return not self._wanted or not self._wanted.isdisjoint((drop.source, drop.destination))

    def row(self, node: str, drop: Drop) -> dict[str, Any]:
        if time.monotonic() - self._read > FRESH_S:
            self._by_address = {
                address: pod.meta.key
                for pod in self._objects().of(POD).values()
                if pod.phase not in ends.COMPLETED and not pod.host_network
                for address in ends.addresses(pod)
            }
            self._read = time.monotonic()
        return {
            "time": drop.time,
            "node": node,
            "source": show(drop.source),
            "source_pod": self._by_address.get(drop.source, ""),
            "source_port": drop.source_port,
            "destination": show(drop.destination),
            "destination_pod": self._by_address.get(drop.destination, ""),
            "port": drop.port,
            "protocol": PROTOCOL_NAMES.get(drop.protocol, str(drop.protocol)),
            "direction": drop.direction,
            "policy": drop.policy,
            "more": drop.more,
            "by": drop.by,
        }


def _shut_to(shut: Collection[bytes], packet: Packet) -> Decision | None:
    """What the table of shut addresses does; None: it is not about them."""
    for side, address in (("egress", packet.source), ("ingress", packet.destination)):
        if address in shut and not packet.local:
            return Decision(False, (SHUT,), side)
    return None


def planes(engine: PolicyEngine) -> tuple[str, ...]:
    """What enforces, the fast path first."""
    return (*([engine.fast.name] if engine.fast is not None else []), engine.plane.name)


def denied(engine: PolicyEngine) -> list[Denied]:
    """What all planes have denied. Raises KernelError."""
    found = list(engine.plane.driver.denied())
    if engine.fast is not None:
        found += engine.fast.denied()
    return found


def counts(some: Sequence[Denied]) -> dict[tuple[str, str], Count]:
    """Added up."""
    found: dict[tuple[str, str], Count] = {}
    for item in some:
        key = (item.policy, item.direction)
        found[key] = found.get(key, Count()) + Count(item.packets, item.bytes)
    return found


def _asked(query: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(query).items()}


def _line(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value).decode() + "\n"


def _failure(error: PycniError) -> Response:
    return Response(error.status if isinstance(error, AskError) else 503, body=f"{error}\n")
