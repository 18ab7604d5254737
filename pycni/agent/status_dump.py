"""What is wanted of this node's kernel and what it has, line by line, for ``pycnictl dump``.

Life: every part makes its sections when asked: the fabric here, pods in ``status_pods``, services, policies and BGP in
their components (routes ``/dump/services``, ``/dump/policies``, ``/dump/bgp``). ``/dump`` asks all of them, one after
the other, and sends each answer as a line as soon as it is there: reading back ten thousand services takes longer than
a request may.

    GET /dump?part=NAME              one JSON object (Dump) a line; without ``part`` all parts
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import msgspec

from pycni.agent.httpd import AsyncHandler, Response
from pycni.agent.status_ipam import NOT_YET, Attached
from pycni.agent.status_model import Dump, Section, encode
from pycni.errors import PycniError
from pycni.model.fabric import FabricState, IpipLink, UdpLink, VxlanLink
from pycni.model.family import show, show_mac
from pycni.reconcile.delta import diff
from pycni.wire import typed

if TYPE_CHECKING:
    from pycni.agent.network import NetworkComponent

JSON = "application/json"
LINES = "application/x-ndjson"
PREFIX = "/dump/"
NO_NETWORK = "no fabric is wanted yet: the network is not known, or this agent has no network component"

Sections = Callable[[], Awaitable[Sequence[Section]]]
Text = Callable[[Mapping[str, Mapping[Any, Any]]], list[str]]
"""A compiler's tables in the notation of the tool that lists them."""


class Dumper:
    """One per agent, on its event loop."""

    def __init__(
        self,
        node: str,
        network: Callable[[], NetworkComponent | None],
        attached: Callable[[], Attached | None],
        others: Mapping[str, AsyncHandler],
    ) -> None:
        """``others``: what components answer; those below ``/dump/`` are asked too."""
        self._node = node
        self._network = network
        self._attached = attached
        self._others = {
            path.removeprefix(PREFIX): handler for path, handler in others.items() if path.startswith(PREFIX)
        }

    def routes(self) -> dict[str, AsyncHandler]:
        """By path."""
        return {"/dump": self._dump}

    async def _dump(self, query: str) -> Response:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}.get("part", "")
        parts: dict[str, Sections] = {"fabric": self._fabric, "pods": self._pods}
        parts |= {name: partial(_asked, handler) for name, handler in self._others.items()}
        if asked and asked not in parts:
            return Response(400, body=f"there are {', '.join(parts)}\n")
        wanted = {name: make for name, make in parts.items() if not asked or name == asked}
        return Response(200, LINES, stream=partial(self._pieces, wanted))

    async def _pieces(self, parts: Mapping[str, Sections]) -> AsyncGenerator[str, None]:
        for name, make in parts.items():
            try:
                yield encode(Dump(node=self._node, sections=tuple(await make())))
            except PycniError as error:
                yield encode(Dump(node=self._node, sections=(), troubles={name: str(error)}))

    async def _fabric(self) -> Sequence[Section]:
        network = self._network()
        found = await network.fabric() if network is not None else None
        if found is None:
            raise DumpError(NO_NETWORK)
        return [section("fabric", "kernel", *map(fabric_lines, found))]

    async def _pods(self) -> Sequence[Section]:
        side = self._attached()
        if side is None:
            raise DumpError(NOT_YET)
        from pycni.agent import status_pods  # noqa: PLC0415 - reads namespaces: only when asked for

        return await asyncio.to_thread(status_pods.sections, side)


class DumpError(PycniError):
    """A part's state cannot be had, and why."""


async def _asked(handler: AsyncHandler) -> Sequence[Section]:
    answer = await handler("")
    if answer.status != 200:
        raise DumpError(answer.body.strip())
    return typed.decode(answer.body, list[Section])


def answer(make: Callable[[], Sequence[Section]]) -> Response:
    """What a component answers below ``/dump/``."""
    try:
        return Response(200, JSON, encode(list(make())))
    except PycniError as error:
        return Response(503, body=f"{error}\n")


def tables(
    part: str,
    name: str,
    text: Text,
    desired: Mapping[str, Mapping[Any, Any]],
    actual: Mapping[str, Mapping[Any, Any]],
) -> Section:
    """A data plane's tables. What is there may make no sense, and may differ in what its lines do not show."""
    try:
        there = text(actual)
    except (LookupError, ValueError, AttributeError) as error:
        return Section(
            part=part,
            name=name,
            desired=tuple(text(desired)),
            notes=(f"what the kernel has cannot be put into words: {error!r}", *_differing(desired, actual)),
        )
    made = section(part, name, text(desired), there)
    return (
        made
        if made.missing or made.extra
        else msgspec.structs.replace(made, notes=_differing(desired, actual))
    )


def _differing(
    desired: Mapping[str, Mapping[Any, Any]], actual: Mapping[str, Mapping[Any, Any]]
) -> tuple[str, ...]:
    sizes = {
        name: diff(desired.get(name, {}), actual.get(name, {})).size
        for name in sorted(desired.keys() | actual.keys())
    }
    return tuple(f"{size} rows of {name} differ" for name, size in sizes.items() if size)


def section(
    part: str, name: str, desired: Iterable[str], actual: Iterable[str], notes: Iterable[str] = ()
) -> Section:
    """Both sides with their difference."""
    wanted, there = tuple(desired), tuple(actual)
    missing, extra = difference(wanted, there)
    return Section(
        part=part,
        name=name,
        desired=wanted,
        actual=there,
        missing=missing,
        extra=extra,
        notes=tuple(notes),
    )


def difference(desired: Sequence[str], actual: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Lines of one side only. A line of a block is another one in another block, which is named before it."""
    if desired == actual:
        return (), ()
    wanted, there = Counter(_placed(desired)), Counter(_placed(actual))
    return tuple(_lines(wanted - there)), tuple(_lines(there - wanted))


Placed = tuple[tuple[str, ...], str]
ELEMENTS = "elements = {"
"""How nft(8) begins the elements of a set: each is a line of its own here, whatever stands beside it."""


def _placed(lines: Sequence[str]) -> Iterable[Placed]:
    """Each line with the lines that open the blocks it is in; what only closes a block says nothing."""
    blocks: list[str] = []
    among_elements = False
    for line in lines:
        words = line.strip()
        if among_elements or words.startswith(ELEMENTS):
            words = words.removeprefix(ELEMENTS)
            among_elements = not words.endswith("}")
            yield from (
                (tuple(blocks), item.strip()) for item in words.rstrip("}").split(",") if item.strip()
            )
        elif words.startswith("}"):
            if blocks:
                blocks.pop()
        elif words:
            yield tuple(blocks), words
            if words.endswith("{"):
                blocks.append(words)


def _lines(found: Counter[Placed]) -> Iterable[str]:
    for (blocks, line), count in found.items():
        where = " ".join(block.rstrip(" {") for block in blocks)
        for _ in range(count):
            yield f"{where}: {line}" if where else line


def fabric_lines(state: FabricState) -> list[str]:
    """Every entry in the notation of ip(8) and bridge(8), with what else its drivers look after."""
    lines = state.text()
    for link in state.links.values():
        words = [f"link {link.name}"]
        if isinstance(link, VxlanLink):
            words += ["address", show_mac(link.mac), "learning" if link.learning else "nolearning"]
            words += ["gbp"] if link.gbp else []
        if isinstance(link, VxlanLink | IpipLink):
            words += ["dev", link.parent, "local", show(link.local)]
        if len(words) > 1:
            lines.append(" ".join(words))
        if isinstance(link, UdpLink) and link.psk:
            lines.append(f"link {link.name} psk-fingerprint {link.psk}")
        lines += [f"addr {show(address)}/{length} dev {link.name}" for address, length in link.addresses]
    if any(isinstance(link, VxlanLink) for link in state.links.values()):
        lines += [f"accept vxlan from {show(peer)}" for peer in state.vtep_peers]
    return sorted(lines)
