"""What this agent does for traces, over its control socket and, where that is switched on, for other nodes by TLS.

Life: made by ``wiring_trace``; always there on the control socket, at no cost until it is asked. What an answer is made
from is taken on the event loop (``look``), the work is done on threads: those here for the control socket, a
connection's own for TLS (``trace_listen``).

    GET  /trace/state?end=SRC&end=DST[&pods=a,b]   this node and its pods, as they are and as wanted (speech.Told)
    GET  /trace/objects?end=SRC&end=DST            Services, endpoints, pods and policies the question is about
    GET  /trace/counters                           of the node's interfaces, by name (kernel.linkcounts)
    GET  /trace/peers                              the other nodes and how they are asked; on the control socket only
    POST /trace/watch    speech.Watch              lines of JSON: ready, reports, the end
    POST /trace/send     speech.Send               one probe; eyes.Launched

It is no packet cannon and no tcpdump: a probe is made here from addresses and 32 bits, a few in a second, from a pod's
own address; a watch sees packets with such bits in them, or the headers of those it was ordered to follow.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import TypeVar

import msgspec

from pycni.agent.httpd import REQUEST_SECONDS, AsyncHandler, PostHandler, Response
from pycni.agent.trace_state import Attachment, Known, attachments, inside, read
from pycni.agent.trace_watch import WATCHES, Places, RefusedError, Running
from pycni.errors import ConfigError, PycniError
from pycni.kernel import linkcounts, spacestate
from pycni.kernel.capture import Enter
from pycni.model.kube import ENDPOINT_SLICE
from pycni.model.space import NODE
from pycni.trace.model import ICMP, ICMPV6, TCP, UDP, Flow
from pycni.trace.pick import concerned, ends, pick
from pycni.tracing import speech
from pycni.tracing.ask import Door, unix
from pycni.tracing.local import LocalNode
from pycni.tracing.speech import Send, Watch
from pycni.wire import plain

JSON = "application/json"
LINES = "application/x-ndjson"
PROBES_AT_ONCE, PROBES_PER_S = 50, 10.0
FEWEST_BITS = 16
"""Of a token: with fewer, others' packets would be taken for probes."""
HEADERS = 192
"""Bytes of live traffic that are told: the headers with an overlay's around them, nothing of what is said in them."""
MANY = 40
"""Pods; of more only those a question is about are watched."""
T = TypeVar("T")


class TraceService:
    """One per agent. Methods without ``async`` block and may be called from any thread but the event loop's."""

    def __init__(
        self,
        look: Callable[[], Known],
        peers: Callable[[], speech.Peers],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``look`` and ``peers`` are called on the event loop."""
        self._look = look
        self._peers = peers
        self._places = Places()
        self._probes = Bucket(PROBES_AT_ONCE, PROBES_PER_S, clock)
        self._threads = ThreadPoolExecutor(WATCHES + 4, "trace")
        self._loop = asyncio.get_running_loop()

    @property
    def watches(self) -> int:
        """Open at the moment."""
        return self._places.open

    def close(self) -> None:
        """Let what is under way end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    # --- any thread -------------------------------------------------------------------------------------------

    def known(self) -> Known:
        """What the agent knows, asked from another thread. Raises RefusedError."""

        async def look() -> Known:
            return self._look()

        try:
            return asyncio.run_coroutine_threadsafe(look(), self._loop).result(5.0)
        except (TimeoutError, RuntimeError) as exc:
            raise RefusedError(503, "the agent is busy, or stops") from exc

    def state(self, known: Known, query: str) -> bytes:
        """See ``/trace/state``. Raises KernelError."""
        words, pods = speech.asked_of(query)
        found = read(known, ends(words), pods)
        return speech.told(found.part, found.terms, found.objects, found.unread)

    def objects(self, known: Known, query: str) -> bytes:
        """See ``/trace/objects``."""
        return plain.encode(pick(known.objects, ends(speech.asked_of(query)[0])))

    def counters(self, _known: Known, _query: str) -> bytes:
        """See ``/trace/counters``. Raises KernelError."""
        return msgspec.json.encode(linkcounts.read())

    def watch(self, known: Known, raw: bytes) -> Running:
        """Begin to watch; whoever gets it closes it. Raises RefusedError, KernelError, OSError."""
        asked = _asked(raw, Watch)
        if not asked.order.patterns and not FEWEST_BITS <= asked.order.bits <= 32:
            raise RefusedError(400, f"probes are known by {FEWEST_BITS} to 32 bits")
        pods = attachments(known)
        if len(pods) > MANY:
            meant = ends(asked.ends)
            slices = pick(known.objects, meant)[ENDPOINT_SLICE]
            wanted = {item.name for item in concerned([pod.place for pod in pods], meant, slices)}
            pods = [pod for pod in pods if pod.place.name in wanted]
        return Running(self._places, _node(known, pods), asked, HEADERS if asked.order.patterns else 0)

    def send(self, known: Known, raw: bytes) -> bytes:
        """Send one probe. Raises RefusedError."""
        asked = _asked(raw, Send)
        pods = [item for item in attachments(known) if item.place.name == asked.space]
        if asked.space != NODE and not pods:
            raise RefusedError(404, f"no pod {asked.space!r} on {known.settings.node_name}")
        own = set(pods[0].place.addresses) if pods else _addresses()
        _check(asked.flow, own)
        if not 0 <= asked.token < 1 << 32:
            raise RefusedError(400, "a token has 32 bits")
        if not 0 <= asked.size < 1 << 16:
            raise RefusedError(400, "a packet has up to 65535 bytes")
        if not self._probes.take():
            raise RefusedError(429, f"more than {PROBES_PER_S:g} probes in a second")
        try:
            node, more = _node(known, pods), (asked.size,) if asked.size else ()
            return msgspec.json.encode(node.send(asked.space, asked.flow, asked.token, *more))
        except (PycniError, OSError) as error:
            text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise RefusedError(409, text, getattr(error, "errno", 0) or 0) from error

    # --- on the event loop ------------------------------------------------------------------------------------

    def routes(self) -> dict[str, AsyncHandler]:
        """What the control socket answers."""
        return {
            speech.STATE: self._answer(self.state),
            speech.OBJECTS: self._answer(self.objects),
            speech.COUNTERS: self._answer(self.counters),
            speech.PEERS: self._tell_peers,
        }

    def posts(self) -> dict[str, PostHandler]:
        """What is posted there."""
        return {speech.WATCH: self._watched, speech.SEND: self._sent}

    def _answer(self, work: Callable[[Known, str], bytes]) -> AsyncHandler:
        async def answer(query: str) -> Response:
            known = self._look()
            return await self._done(lambda: Response(200, JSON, work(known, query).decode()))

        return answer

    async def _tell_peers(self, _query: str) -> Response:
        return Response(200, JSON, msgspec.json.encode(self._peers()).decode())

    async def _sent(self, _query: str, body: bytes) -> Response:
        known = self._look()
        return await self._done(lambda: Response(200, JSON, self.send(known, body).decode()))

    async def _watched(self, _query: str, body: bytes) -> Response:
        known = self._look()
        found: list[Running] = []

        def begin() -> Response:
            found.append(self.watch(known, body))
            return Response(200, LINES)

        answer = await self._done(begin)
        if not found:
            return answer
        # Who goes before the answer's head is taken never asks for a line, nor ends anything.
        self._loop.call_later(REQUEST_SECONDS + 1, self._forget, found[0])
        return answer._replace(stream=lambda: self._pieces(found[0]))

    def _forget(self, running: Running) -> None:
        if not running.begun:
            self._threads.submit(running.close)

    async def _pieces(self, running: Running) -> AsyncGenerator[str, None]:
        try:
            while (piece := await self._work(running.step)) is not None:
                if piece:
                    yield piece.decode()
        finally:
            await self._work(running.close)

    async def _done(self, work: Callable[[], Response]) -> Response:
        try:
            return await self._work(work)
        except (PycniError, OSError) as error:
            return refusal(error)

    async def _work(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._threads, work)


class Bucket:
    """How often something may be done: so many at once, so many in a second in the long run. Any thread."""

    def __init__(self, most: int, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._per_s, self._clock = most, per_s, clock
        self._left, self._at = float(most), clock()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether it may be done now."""
        with self._lock:
            now = self._clock()
            self._left = min(self._left + (now - self._at) * self._per_s, self._most)
            self._at = now
            if self._left < 1:
                return False
            self._left -= 1
            return True


def refusal(error: PycniError | OSError) -> Response:
    """An error as an answer."""
    status = error.status if isinstance(error, RefusedError) else 503
    body: Mapping[str, object] = {"error": str(error), "errno": getattr(error, "errno", 0) or 0}
    return Response(status, JSON, msgspec.json.encode(body).decode() + "\n")


def _asked(raw: bytes, kind: type[T]) -> T:
    try:
        found: T = speech.read(raw, kind)
    except ConfigError as exc:
        raise RefusedError(400, f"not understood: {exc.reason}") from exc
    return found


def _node(known: Known, pods: list[Attachment]) -> LocalNode:
    """This node's namespaces; ours is the node's own."""
    settings = known.settings
    spaces: dict[str, Enter] = {NODE: lambda function: function()}
    for item in pods:
        spaces[item.place.name] = _enter(item)
    # Policies by eBPF have no rules that could be traced: what they deny is told by this agent itself.
    fast = "policy" in settings.components and settings.policy == "ebpf"
    own = Door(settings.node_name, unix(settings.control_socket)) if fast else None
    return LocalNode(settings.node_name, spaces, own)


def _enter(item: Attachment) -> Enter:
    return lambda function: inside(item.endpoint, function)


def _addresses() -> set[bytes]:
    return {item.address for item in spacestate.read(firewall=False, devices=()).addresses}


def _check(flow: Flow, own: set[bytes]) -> None:
    """A first packet from an address of its own, to one other. Raises RefusedError."""
    if flow.protocol not in {ICMP, TCP, UDP, ICMPV6}:
        raise RefusedError(400, f"probes are of ICMP, TCP or UDP, not of protocol {flow.protocol}")
    if len(flow.source) not in {4, 16} or len(flow.source) != len(flow.destination):
        raise RefusedError(400, "two addresses of one family are needed")
    if (flow.protocol == ICMPV6) != (len(flow.source) == 16) and flow.protocol in {ICMP, ICMPV6}:
        raise RefusedError(400, "ICMP goes with IPv4, ICMPv6 with IPv6")
    if not all(0 <= port < 1 << 16 for port in (flow.source_port, flow.destination_port)):
        raise RefusedError(400, "ports have 16 bits")
    if flow.source not in own:
        raise RefusedError(403, f"{ip_address(flow.source)} is no address of where the probe is to start")
    if ip_address(flow.destination).is_multicast or flow.destination in {b"\xff" * 4, bytes(4), bytes(16)}:
        raise RefusedError(400, f"{ip_address(flow.destination)} is nobody in particular")
